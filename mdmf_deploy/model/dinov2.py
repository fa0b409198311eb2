"""DINOv2's vision transformer with the official key names (Oquab et al., TMLR 2024, facebookresearch/dinov2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mdmf_deploy.errors import RecipeError, ShapeMismatch
from mdmf_deploy.model.architectures import Architecture

_EPSILON = 1e-6


class PatchEmbed(nn.Module):
    def __init__(self, width: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, kernel_size=patch, stride=patch)

    def forward(self, images: Tensor) -> Tensor:
        embedded: Tensor = self.proj(images)
        return embedded.flatten(2).transpose(1, 2)


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        attended = F.scaled_dot_product_attention(q, k, v)
        projected: Tensor = self.proj(attended.transpose(1, 2).reshape(batch, tokens, width))
        return projected


class Mlp(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return result


class SwiGLU(nn.Module):
    """ViT-g's feed-forward layer. Its hidden width is rounded as in the official SwiGLUFFNFused."""

    def __init__(self, width: int) -> None:
        super().__init__()
        hidden = (int(4 * width * 2 / 3) + 7) // 8 * 8
        self.w12 = nn.Linear(width, 2 * hidden)
        self.w3 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.w12(x).chunk(2, dim=-1)
        result: Tensor = self.w3(F.silu(gate) * value)
        return result


class LayerScale(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Block(nn.Module):
    def __init__(self, width: int, heads: int, ffn: str) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=_EPSILON)
        self.attn = Attention(width, heads)
        self.ls1 = LayerScale(width)
        self.norm2 = nn.LayerNorm(width, eps=_EPSILON)
        self.mlp = SwiGLU(width) if ffn == "swiglu" else Mlp(width)
        self.ls2 = LayerScale(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.ls1(self.attn(self.norm1(x)))
        result: Tensor = x + self.ls2(self.mlp(self.norm2(x)))
        return result


class DinoV2(nn.Module):
    """Images (B, 3, H, W) to patch tokens (B, width, H / patch, W / patch).

    The class token and the registers take part in attention and are then dropped. Raises ShapeMismatch if H or W is
    not a multiple of the patch.

    taken: the blocks whose tokens are returned, counted from 1, in ascending order. Their C channels are concatenated
        as they leave the block, without the final layer norm. Blocks after the last one are not built. Empty means the
        last block with the layer norm, the official "x_norm_patchtokens".
    Raises RecipeError for blocks that the architecture does not have.
    """

    def __init__(self, architecture: Architecture, taken: Sequence[int] = ()) -> None:
        super().__init__()
        a = architecture
        depth = max(taken, default=a.depth)
        if depth > a.depth:
            raise RecipeError(
                f"backbone.blocks = {list(taken)}, but this backbone has blocks 1 to {a.depth}; leave {depth} out"
            )
        self.architecture = a
        self.taken = tuple(taken)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, a.width))
        self.pos_embed = nn.Parameter(torch.zeros(1, a.position_grid**2 + 1, a.width))
        if a.registers:
            self.register_tokens = nn.Parameter(torch.zeros(1, a.registers, a.width))
        # In every official checkpoint, but used only by masked training.
        self.mask_token = nn.Parameter(torch.zeros(1, a.width))
        self.patch_embed = PatchEmbed(a.width, a.patch)
        self.blocks = nn.ModuleList(Block(a.width, a.heads, a.ffn) for _ in range(depth))
        if not taken:
            self.norm = nn.LayerNorm(a.width, eps=_EPSILON)

    @property
    def width(self) -> int:
        """The number of channels that it returns per patch."""
        return self.architecture.width * max(1, len(self.taken))

    def position_embedding(self, rows: int, columns: int) -> Tensor:
        """Return the position embedding (1, 1 + rows * columns, C), resampled bicubically.

        In the official code, models without registers were released with `interpolate_offset=0.1`, which enters as a
        scale factor. Models with registers were released with offset 0 and antialiasing, and the target enters as a
        size. In transformers, the target enters as a size for all of them.
        """
        side = self.architecture.position_grid
        if (rows, columns) == (side, side):
            return self.pos_embed
        grid = self.pos_embed[:, 1:].reshape(1, side, side, -1).permute(0, 3, 1, 2).float()
        how: dict[str, Any] = {"mode": "bicubic", "antialias": self.architecture.antialias}
        if self.architecture.offset:
            offset = self.architecture.offset
            how["scale_factor"] = ((rows + offset) / side, (columns + offset) / side)
        else:
            how["size"] = (rows, columns)
        resampled = F.interpolate(grid, **how)
        patches = resampled.flatten(2).transpose(1, 2).to(self.pos_embed.dtype)
        return torch.cat([self.pos_embed[:, :1], patches], dim=1)

    def bake_position_embedding(self, crop: int) -> None:
        """Replace the trained grid for good by its resampling for this crop (in pixels), for export."""
        side = crop // self.architecture.patch
        with torch.no_grad():
            baked = self.position_embedding(side, side).clone()
        self.pos_embed = nn.Parameter(baked, requires_grad=False)
        self.architecture = replace(self.architecture, position_grid=side)

    def forward(self, images: Tensor) -> Tensor:
        patch = self.architecture.patch
        height, width = images.shape[-2:]
        if height % patch or width % patch:
            raise ShapeMismatch(f"images: expected sides that are multiples of {patch}, got {height} x {width}")
        rows, columns = height // patch, width // patch
        x = self.patch_embed(images)
        x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], dim=1)
        x = x + self.position_embedding(rows, columns)
        skip = 1
        if self.architecture.registers:
            registers = self.register_tokens.expand(x.shape[0], -1, -1)
            x = torch.cat([x[:, :1], registers, x[:, 1:]], dim=1)
            skip += self.architecture.registers
        collected = []
        for number, block in enumerate(self.blocks, start=1):
            x = block(x)
            if number in self.taken:
                collected.append(x[:, skip:])
        tokens: Tensor = torch.cat(collected, dim=2) if collected else self.norm(x)[:, skip:]
        return tokens.transpose(1, 2).reshape(x.shape[0], -1, rows, columns)
