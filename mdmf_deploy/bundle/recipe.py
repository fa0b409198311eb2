"""Recipes: every choice about a model variant that is made before training and export.

A recipe is one TOML file, in export/recipes/ or given by its path, read into frozen values. Unknown keys and wrong
types are errors that name the file and the place in it.
"""

from __future__ import annotations

import math
import tomllib
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from mdmf_deploy.bundle.documents import Name, Rate
from mdmf_deploy.errors import RecipeError
from mdmf_deploy.files import room
from mdmf_deploy.text import one_line

Precision = Literal["fp32", "fp16", "int8"]
Part = Literal["train", "validation", "test"]
Resampling = Literal["official", "transformers"]
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
MOST_CROP, MOST_CROPS = 2048, 256
Opset = Annotated[int, Meta(ge=1, le=1000)]
_Change = Annotated[float, Meta(ge=0.0, le=1e9)]


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

    crop: 14 to 2048. A crop of 2048 pixels takes 50 MB, and a batch eight times as much.
    crops: the most crops taken of an image, the crop plan, 1 to 256. mdmf_deploy.images.crops places them. An image's
        score is the mean of its crops' scores.
    mean: of each channel, 0 to 1.  std: of each, 0.001 to 1000.
    """

    crop: int = 224
    crops: int = 1
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    def __post_init__(self) -> None:
        if self.crop < 14:
            raise ValueError(f"crop must be at least one patch of 14 pixels, got {self.crop}")
        if self.crop > MOST_CROP:
            raise ValueError(f"crop must be at most {MOST_CROP} pixels, got {self.crop}")
        if not 1 <= self.crops <= MOST_CROPS:
            raise ValueError(f"crops must be at least 1 and at most {MOST_CROPS}, got {self.crops}")
        # "not all" rather than the opposite comparison, so that a NaN is refused.
        if not all(0.0 <= value <= 1.0 for value in self.mean):
            raise ValueError(f"mean must be 0 to 1, got {self.mean}")
        if not all(1e-3 <= value <= 1e3 for value in self.std):
            raise ValueError(f"std must be positive, 0.001 to 1000, got {self.std}")


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

    opset: Opset = 18
    precision: Precision = "fp32"


class GateLimits(_Frozen, frozen=True, kw_only=True):
    """The largest changes of decisions with which an exported model passes the gate (mdmf_deploy.tasks.verify).

    max_score_change: largest |change of score| of an image, in standard deviations of real scores.
    min_rank_correlation: Spearman's, between source and exported scores.
    max_flipped_verdicts: fraction of images whose verdict changes at the threshold.
    max_fpr_change: |change of the false positive rate| on real images.
    """

    max_score_change: _Change = 0.1
    min_rank_correlation: Annotated[float, Meta(ge=-1.0, le=1.0)] = 0.999
    max_flipped_verdicts: Rate = 0.01
    max_fpr_change: Rate = 0.01


class BankPlan(_Frozen, frozen=True, kw_only=True):
    """The size of the bank.

    max_signatures: a larger bank is thinned to this many, evenly over its images. 0 keeps all.
    """

    max_signatures: int = 0


class Split(_Frozen, frozen=True, kw_only=True):
    """Fractions of the images in each part. The rest is for testing.

    An image's part follows from its content hash, so it never changes.
    held_out: sources whose images are used only for testing: "real/NAME", "generated/NAME", or NAME for both. An
        image's source is the folder it lies in.
    """

    train: float = 0.65
    validation: float = 0.15
    held_out: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not (self.train > 0 and self.validation > 0 and self.train + self.validation < 1):
            raise ValueError("train and validation must be positive and leave something for the test part")


class Pairs(_Frozen, frozen=True, kw_only=True):
    """Aligned pairs (Rajan and Lee, ICLR 2025): photographs, and what an autoencoder makes of them, treated alike.

    autoencoders: TAESD's names, such as "taesd3". Empty means no pairs.
    held_out: an autoencoder that is only measured, never trained on. Empty means none.
    share: the fraction of each class of a batch that consists of pairs.
    weight: of the loss that asks for a higher score of the second half of each pair.
    """

    autoencoders: tuple[str, ...] = ()
    held_out: str = ""
    share: float = 0.25
    weight: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1 or self.weight < 0:
            raise ValueError(f"expected share in [0, 1] and weight >= 0, got {self.share} and {self.weight}")
        if self.held_out in self.autoencoders:
            raise ValueError(f"autoencoder {self.held_out!r} cannot be trained on and held out; leave it out of one")


class Reals(_Frozen, frozen=True, kw_only=True):
    """Shares of the real class in a batch.

    featureless: flats, gradients, skies and text that training draws itself.
    enlarged: corners of photographs, enlarged 6 to 16 times.
    drawn: of the rest, art and screenshots, if there are any.
    """

    featureless: float = 1 / 12
    enlarged: float = 1 / 24
    drawn: float = 0.25

    def __post_init__(self) -> None:
        if min(self.featureless, self.enlarged) < 0 or not 0 <= self.drawn <= 1:
            raise ValueError("featureless and enlarged must not be negative, and drawn must be in [0, 1]")
        if self.featureless + self.enlarged > 0.5:
            raise ValueError("featureless and enlarged reals can be at most half of the real class")


class Adapters(_Frozen, frozen=True, kw_only=True):
    """Low-rank adapters of the backbone (LoRA; Hu et al., ICLR 2022). A weight W becomes W + scale * B @ A.

    blocks: the blocks whose linear layers are adapted, counted from 1. Empty means none.
    rank: the number of rows of A.
    """

    blocks: tuple[int, ...] = ()
    rank: int = 8
    scale: float = 2.0

    def __post_init__(self) -> None:
        if any(block < 1 for block in self.blocks) or list(self.blocks) != sorted(set(self.blocks)):
            raise ValueError(f"blocks are counted from 1 and ascend, such as [4, 5, 6]; got {list(self.blocks)}")
        if self.rank < 1 or self.scale <= 0:
            raise ValueError(f"rank must be at least 1 and scale positive, got {self.rank} and {self.scale}")


class BankGate(_Frozen, frozen=True, kw_only=True):
    """Limits that a trained detector must keep on the validation part (docs/method.md, "The bank must matter").

    min_kernel: the least mean kernel value between the signatures of real images and those of the bank.
    max_swapped_auroc: the largest AUROC when the bank holds generated images instead of real ones.
    """

    min_kernel: float = 0.2
    max_swapped_auroc: float = 0.5


class Training(_Frozen, frozen=True, kw_only=True):
    """How `mdmf train` fits the PFS head, the bandwidth and, on request, the backbone.

    objective: "image", over scores of images, or "pooled", the paper's over pools of patches (docs/method.md,
        "Objectives").
    test_power: the weight of the objective.
    patch_cross_entropy: the weight of a real/generated logistic loss of a linear probe on the signatures. The probe is
        discarded after training.
    sigma: the kernel bandwidth, or two bounds between which it is learnt. Without it, it is learnt freely.
    batch: images of each class per step.
    learning_rate: of the head. backbone_learning_rate: of the backbone or its adapters, where they are trained.
    dropout: of the head's inputs and hidden layers.
    regulariser: lambda in the objective's denominator.
    average: decay of the exponential moving average of the weights, which training returns. 0 returns the last ones.
    """

    objective: Literal["image", "pooled"] = "image"
    test_power: float = 1.0
    patch_cross_entropy: float = 0.0
    sigma: float | tuple[float, float] | None = None
    steps: int = 2000
    batch: int = 32
    learning_rate: float = 1e-3
    backbone_learning_rate: float = 5e-4
    weight_decay: float = 0.05
    dropout: float = 0.0
    warmup: int = 100
    regulariser: float = 1e-4
    seed: int = 0
    average: float = 0.0
    split: Split = Split()
    reals: Reals = Reals()
    pairs: Pairs = Pairs()
    lora: Adapters = Adapters()
    gate: BankGate = BankGate()

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch < 2 or self.learning_rate <= 0 or self.regulariser <= 0:
            raise ValueError("steps must be at least 1, batch at least 2, learning_rate and regulariser positive")
        if self.backbone_learning_rate <= 0 or not 0 <= self.dropout < 1:
            raise ValueError("backbone_learning_rate must be positive, and dropout in [0, 1)")
        if min(self.warmup, self.weight_decay, self.patch_cross_entropy, self.test_power) < 0 or not (
            0 <= self.average < 1
        ):
            raise ValueError(
                "warmup, weight_decay, patch_cross_entropy and test_power must not be negative, average in [0, 1)"
            )
        low, high = self.sigma if isinstance(self.sigma, tuple) else (self.sigma or 1.0, self.sigma or 1.0)
        if not 0 < low <= high or self.sigma == 0:
            raise ValueError(f"sigma must be positive, or two bounds such as [0.5, 1.0]; got {self.sigma}")


class Recipe(_Frozen, frozen=True, kw_only=True):
    """One model variant, from training to its bundle."""

    name: Name
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


def recipe_path(name_or_path: str | Path) -> Path:
    """Return the file of a recipe, given its name ("starter") or that file. Raises RecipeError for an unknown name."""
    path = Path(name_or_path)
    if path.suffix == ".toml":
        return path
    path = room("export") / "recipes" / f"{name_or_path}.toml"
    if not path.is_file():
        known = ", ".join(recipe_names())
        raise RecipeError(f"recipe {str(name_or_path)!r} is not known; choose one of {known}, or give a .toml file")
    return path


def load_recipe(name_or_path: str | Path) -> Recipe:
    """Read a recipe by its name ("starter") or from a TOML file.

    Raises RecipeError naming the file, the place, and what was expected there.
    """
    path = recipe_path(name_or_path)
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"), parse_float=_finite)
    except OSError as error:
        raise RecipeError(f"recipe {path}: {error.strerror}; give the path of a readable .toml file") from error
    except (ValueError, RecursionError) as error:
        raise RecipeError(f"recipe {path} is not valid TOML: {one_line(str(error))}") from error
    try:
        return msgspec.convert(table, Recipe)
    except msgspec.ValidationError as error:
        raise RecipeError(f"recipe {path}: {error}") from error


def _finite(text: str) -> float:
    # No choice is "nan" or "inf", and a NaN passes every comparison that asks for what is wrong.
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is not a finite number")
    return value


def part_of(sha256: str, split: Split, source: str | None = None) -> Part:
    """Return the part of an image with this SHA-256 (hex). Images of held-out sources are all "test".

    The part depends on nothing else, so copies of a file always share it.

    source: "real/NAME" or "generated/NAME".
    """
    if source is not None and not {source, source.partition("/")[2]}.isdisjoint(split.held_out):
        return "test"
    # The first 52 bits as a number in [0, 1), which a float64 holds exactly.
    position = int(sha256[:13], 16) / 16**13
    if position < split.train:
        return "train"
    return "validation" if position < split.train + split.validation else "test"


def source_of(path: Path, generator: str | None = None) -> str:
    """Return the source of an image: "generated/NAME", or "real/NAME" with the name of the folder it lies in."""
    return f"generated/{generator}" if generator is not None else f"real/{path.parent.name}"
