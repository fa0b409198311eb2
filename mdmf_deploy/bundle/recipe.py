"""Recipes: every choice about a model variant that is made before training and export.

A recipe is one TOML file, in export/recipes/ or given by its path, read into frozen values. Unknown keys and wrong
types are errors that name the file and the place in it.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Literal

import msgspec

from mdmf_deploy.errors import RecipeError
from mdmf_deploy.files import room

Precision = Literal["fp32", "fp16", "int8"]
Part = Literal["train", "validation", "test"]
Resampling = Literal["official", "transformers"]
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class _Frozen(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pass


class Backbone(_Frozen, frozen=True, kw_only=True):
    """The model's backbone.

    architecture: a name in mdmf_deploy.model.architectures.
    blocks: the blocks whose tokens feed the head, counted from 1, in ascending order. Their tokens are concatenated,
        without the final layer norm. Later blocks are left out of the model. Empty means the last block, normalised.
    position_resampling: how the position embedding is fitted to the crop. "official" as Meta's code does,
        "transformers" as Hugging Face's Dinov2Model does. They differ for models without registers.
    """

    architecture: str
    blocks: tuple[int, ...] = ()
    position_resampling: Resampling = "official"

    def __post_init__(self) -> None:
        if any(block < 1 for block in self.blocks) or list(self.blocks) != sorted(set(self.blocks)):
            raise ValueError(f"blocks are counted from 1 and ascend, such as [3, 6, 9]; got {list(self.blocks)}")


class Preprocessing(_Frozen, frozen=True, kw_only=True):
    """uint8 RGB -> (pixel / 255 - mean) / std, on square crops of `crop` pixels at the image's own scale.

    crops: the most crops taken of an image, the crop plan. mdmf_deploy.images.crops places them. An image's score is
        the mean of its crops' scores.
    """

    crop: int = 224
    crops: int = 1
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    def __post_init__(self) -> None:
        if self.crop < 14:
            raise ValueError(f"crop must be at least one patch of 14 pixels, got {self.crop}")
        if self.crops < 1:
            raise ValueError(f"crops must be at least 1, got {self.crops}")
        if min(self.std) <= 0:
            raise ValueError(f"std must be positive, got {self.std}")


class Head(_Frozen, frozen=True, kw_only=True):
    """The PFS head: pool x pool patches, and an MLP whose hidden layers are linear, norm, activation.

    hidden: widths of the hidden layers.
    signature: d, the number of values in a signature.
    normalise: divide each signature by its length. A signature of length zero stays zero.
    kernel: the meaning of the bandwidth in a head trained elsewhere. "gaussian" is exp(-d^2 / (2 sigma^2)), "mmd-mp" is
        exp(-d^2 / sigma0) as in MMD-MP (Zhang et al., ICLR 2024). Reading turns sigma0 into sigma = sqrt(sigma0 / 2).
    key_map: our key -> the key in a head trained elsewhere, for example "layers.0.weight" = "mlp.0.weight". Also takes
        "sigma" or "log_sigma", and "backbone" for the prefix of the backbone's keys (mdmf_deploy.model.checkpoints).
    """

    pool: int = 7
    hidden: tuple[int, ...] = (512, 512)
    signature: int = 128
    activation: Literal["gelu", "relu", "softplus"] = "gelu"
    norm: Literal["none", "layernorm", "batchnorm"] = "none"
    normalise: bool = False
    kernel: Literal["gaussian", "mmd-mp"] = "gaussian"
    key_map: dict[str, str] = {}

    def __post_init__(self) -> None:
        if self.pool < 1 or self.signature < 1 or any(width < 1 for width in self.hidden):
            raise ValueError("pool, signature and every hidden width must be at least 1")
        if self.kernel != "gaussian" and not self.key_map:
            raise ValueError(f"kernel = {self.kernel!r} is for a head trained elsewhere; name its keys in key_map")


class Export(_Frozen, frozen=True, kw_only=True):
    """Choices of `mdmf export`.

    opset: ONNX operator set.
    precision: the precision that `--precision auto` tries first. If it is refused, auto tries fp32.
    """

    opset: int = 18
    precision: Precision = "fp32"


class GateLimits(_Frozen, frozen=True, kw_only=True):
    """The largest changes of decisions with which an exported model passes the gate (mdmf_deploy.tasks.verify).

    max_score_change: largest |change of score| of an image, in standard deviations of real scores.
    min_rank_correlation: Spearman's, between source and exported scores.
    max_flipped_verdicts: fraction of images whose verdict changes at the threshold.
    max_fpr_change: |change of the false positive rate| on real images.
    """

    max_score_change: float = 0.1
    min_rank_correlation: float = 0.999
    max_flipped_verdicts: float = 0.01
    max_fpr_change: float = 0.01


class BankPlan(_Frozen, frozen=True, kw_only=True):
    """The size of the bank.

    max_signatures: a larger bank is thinned to this many, evenly over its images. 0 keeps all.
    """

    max_signatures: int = 0


class Split(_Frozen, frozen=True, kw_only=True):
    """Fractions of the images in each part. The rest is for testing.

    An image's part follows from its content hash, so it never changes.
    held_out: generators whose images are used only for testing.
    """

    train: float = 0.65
    validation: float = 0.15
    held_out: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not (self.train > 0 and self.validation > 0 and self.train + self.validation < 1):
            raise ValueError("train and validation must be positive and leave something for the test part")


class Autoencoder(_Frozen, frozen=True, kw_only=True):
    """One small autoencoder, which makes aligned generated counterparts of real photographs.

    factor: spatial reduction of its latent (2, 4, 8, ...).  upsampler: how its decoder restores the size.
    """

    factor: int
    upsampler: Literal["nearest", "bilinear", "transposed", "pixelshuffle"]
    channels: int = 16
    width: int = 32
    steps: int = 600

    def __post_init__(self) -> None:
        if self.factor < 2 or self.factor & (self.factor - 1):
            raise ValueError(f"an autoencoder's factor must be a power of two from 2, got {self.factor}")
        if self.width < 4 or self.width % 2 or self.channels < 1 or self.steps < 1:
            raise ValueError("an autoencoder needs an even width from 4, and channels and steps from 1")


class Pairs(_Frozen, frozen=True, kw_only=True):
    """Aligned pairs (Rajan and Lee, ICLR 2025): real photographs and their reconstructions, treated alike.

    share: fraction of each class of a batch that consists of pairs.
    views: matched versions of every image (scale, JPEG quality), drawn the same way for both classes.
    min_scale: views are shrunk by a factor drawn from [min_scale, 1].
    jpeg_quality: the range (low, high) that views' quality is drawn from.
    """

    autoencoders: tuple[Autoencoder, ...] = ()
    share: float = 0.5
    views: int = 2
    min_scale: float = 0.6
    jpeg_quality: tuple[int, int] = (70, 96)

    def __post_init__(self) -> None:
        low, high = self.jpeg_quality
        if not (1 <= low <= high <= 100 and 0 < self.min_scale <= 1 and 0 <= self.share <= 1 and self.views >= 0):
            raise ValueError(
                "expected 1 <= jpeg_quality <= 100 (low, high), 0 < min_scale <= 1, 0 <= share <= 1, views >= 0"
            )
        if self.autoencoders and not self.views:
            raise ValueError("autoencoders need at least one view to reconstruct")


class Training(_Frozen, frozen=True, kw_only=True):
    """How `mdmf train` fits the PFS head, the bandwidth and, on request, the backbone.

    objective: "image" (docs/method.md: per-image scores) or "pooled" (the paper's test power over pools of patches).
    batch: images of each class per step.
    regulariser: lambda in the objective's denominator.
    patch_cross_entropy: weight of an auxiliary per-patch real/generated logistic loss on the backbone's tokens. Used
        only when the backbone is trained. Its classifier is discarded after training.
    average: decay of the exponential moving average of the weights, which training returns. 0 returns the last weights.
    """

    objective: Literal["image", "pooled"] = "image"
    steps: int = 2000
    batch: int = 32
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    warmup: int = 100
    regulariser: float = 1e-4
    seed: int = 0
    patch_cross_entropy: float = 0.0
    average: float = 0.0
    split: Split = Split()
    pairs: Pairs = Pairs()

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch < 2 or self.learning_rate <= 0 or self.regulariser <= 0:
            raise ValueError("steps must be at least 1, batch at least 2, learning_rate and regulariser positive")
        if self.warmup < 0 or self.weight_decay < 0 or self.patch_cross_entropy < 0 or not 0 <= self.average < 1:
            raise ValueError("warmup, weight_decay and patch_cross_entropy must not be negative, average in [0, 1)")


class Recipe(_Frozen, frozen=True, kw_only=True):
    """One model variant, from training to its bundle."""

    name: str
    summary: str
    backbone: Backbone
    preprocessing: Preprocessing = Preprocessing()
    head: Head = Head()
    export: Export = Export()
    verification: GateLimits = GateLimits()
    bank: BankPlan = BankPlan()
    training: Training = Training()


def recipe_names() -> list[str]:
    """Return the names of the recipes in the package, sorted."""
    return sorted(path.stem for path in (room("export") / "recipes").glob("*.toml"))


def load_recipe(name_or_path: str | Path) -> Recipe:
    """Read a recipe by its name ("starter") or from a TOML file.

    Raises RecipeError naming the file, the place, and what was expected there.
    """
    path = Path(name_or_path)
    if path.suffix != ".toml":
        path = room("export") / "recipes" / f"{name_or_path}.toml"
        if not path.is_file():
            known = ", ".join(recipe_names())
            raise RecipeError(f"recipe {str(name_or_path)!r} is not known; choose one of {known}, or give a .toml file")
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecipeError(f"recipe {path}: {error.strerror}; give the path of a readable .toml file") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RecipeError(f"recipe {path} is not valid TOML: {error}") from error
    try:
        return msgspec.convert(table, Recipe)
    except msgspec.ValidationError as error:
        raise RecipeError(f"recipe {path}: {error}") from error


def part_of(sha256: str, split: Split, generator: str | None = None) -> Part:
    """Return the part of an image with this SHA-256 (hex). Images of held-out generators are all "test".

    The part depends on nothing else, so copies of a file always share it.
    """
    if generator is not None and generator in split.held_out:
        return "test"
    # The first 52 bits as a number in [0, 1), which a float64 holds exactly.
    position = int(sha256[:13], 16) / 16**13
    if position < split.train:
        return "train"
    return "validation" if position < split.train + split.validation else "test"
