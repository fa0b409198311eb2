"""Sources are balanced, pairs stay aligned, and a batch depends on seed and step alone."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from mdmf_deploy.bundle.recipe import Pairs, Preprocessing, Reals, Recipe
from mdmf_deploy.tasks.train.batches import CropBatches, SourceSampler, normalised
from mdmf_deploy.tasks.train.data import Dataset, LabelledImage
from mdmf_deploy.tasks.train.pairs import PairMaker

SOURCES = {"real/photos": 30, "real/art_a": 6, "generated/small": 4, "generated/large": 36, "generated/unseen": 5}
PLAIN = Preprocessing(crop=28, mean=(0, 0, 0), std=(1 / 255, 1 / 255, 1 / 255))


def images() -> list[LabelledImage]:
    """Images by number. Those of "unseen" are for testing."""
    found: list[LabelledImage] = []
    for source, count in SOURCES.items():
        for _ in range(count):
            number = len(found)
            part = "test" if source.endswith("unseen") else "train"
            found.append(LabelledImage(Path(str(number)), f"{number:064x}", source, part))  # type: ignore[arg-type]
    return found


SOURCE = [image.source for image in images()]


class Numbered:
    """Stands in for the pixel cache. The red channel of every file is twice its number."""

    def __call__(self, path: Path) -> NDArray[np.uint8]:
        pixels = np.random.default_rng(int(path.name)).integers(0, 256, (90, 80, 3), np.uint8)
        pixels[..., 0] = 2 * int(path.name)
        return pixels


class Inverting(PairMaker):
    """Stands in for autoencoders. A reconstruction is the photograph with its channels in reverse order."""

    def __call__(
        self, pixels: NDArray[np.uint8], sha256: str, name: str
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        return pixels, pixels[..., ::-1]


def batches(
    recipe: Recipe, share: float = 0.0, batch: int = 8, seed: int = 0, reals: Reals | None = None
) -> CropBatches:
    pairs = Pairs(autoencoders=("invert",), share=share)
    reals = reals or Reals(featureless=0, enlarged=0)
    training = msgspec.structs.replace(recipe.training, batch=batch, seed=seed, pairs=pairs, reals=reals)
    changed = msgspec.structs.replace(recipe, training=training, preprocessing=PLAIN)
    maker = Inverting({"invert": None}, {}, Path(), 512)  # type: ignore[dict-item]
    return CropBatches(Dataset(tuple(images()), ()), changed, maker, Numbered(), torch.device("cpu"))  # type: ignore[arg-type]


@pytest.fixture
def untouched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Crops without blur, noise and codecs, so that their numbers can be read."""
    from mdmf_deploy.tasks.train import batches as module
    from mdmf_deploy.tasks.train.augment import Degradation

    monkeypatch.setattr(module, "Degradation", lambda: Degradation(blurred=0, noisy=0, jpeg=0, jpeg_twice=0, webp=0))


def sources(crops: torch.Tensor, channel: int = 0) -> list[str]:
    return [SOURCE[round(float(crop[channel].median()) / 2)] for crop in crops]


def test_a_batch_depends_on_seed_and_step_alone(tiny_recipe: Recipe) -> None:
    first, again = batches(tiny_recipe), batches(tiny_recipe)
    again(3)
    assert torch.equal(first(7).real, again(7).real)
    assert torch.equal(first(7).generated, again(7).generated)
    assert not torch.equal(first(7).real, first(8).real)
    assert not torch.equal(first(7).real, batches(tiny_recipe, seed=1)(7).real)


def test_a_source_weighs_the_square_root_of_its_size() -> None:
    sampler = SourceSampler([image for image in images() if image.source in ("generated/small", "generated/large")])
    rng = np.random.default_rng(0)
    drawn = Counter(sampler.draw(rng, 1)[0].source for _ in range(4000))
    assert drawn["generated/large"] / drawn["generated/small"] == pytest.approx(3, rel=0.1)


def test_an_image_is_drawn_once_if_there_are_enough() -> None:
    sampler = SourceSampler(images())
    rng = np.random.default_rng(0)
    for count in (1, 40, len(images())):
        assert len({image.path for image in sampler.draw(rng, count)}) == count
    assert len(sampler.draw(rng, 100)) == 100


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_pairs_are_aligned_and_a_batch_never_repeats_a_photograph(
    share: float, tiny_recipe: Recipe, untouched: None
) -> None:
    make, pairs = batches(tiny_recipe, share), round(8 * share)
    for step in range(4):
        batch = make(step)
        assert batch.paired == pairs
        assert batch.real.shape == batch.generated.shape == (8, 3, 28, 28)
        # One window, one flip, one scale and one codec.
        assert torch.equal(batch.real[:pairs], batch.generated[:pairs].flip(1))
        assert len({float(crop[0].median()) for crop in batch.real}) == 8
        assert set(sources(batch.generated[pairs:])) <= {"generated/small", "generated/large"}
        assert Counter(sources(batch.real))["real/art_a"] == 2


def test_pairs_are_made_in_advance_if_most_of_them_are_needed(tiny_recipe: Recipe) -> None:
    reals = sum(image.part == "train" and image.generator is None for image in images())
    enough = math.ceil(3 * reals / 4)
    for count, made in ((enough, reals), (enough - 1, 0)):
        make, seen, phases = batches(tiny_recipe, 0.5), [], []
        make._pairs = lambda pixels, sha256, name, seen=seen: seen.append(sha256)  # type: ignore[assignment, misc]
        make.prepare(count, phases.append)
        assert len(set(seen)) == len(seen) == made
        assert [phase.done for phase in phases] == (list(range(reals + 1)) if made else [])
    batches(tiny_recipe, 0.0).prepare(10**6, phases.append)
    assert not phases


def test_both_halves_of_a_pair_get_the_same_noise_and_codecs(
    tiny_recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mdmf_deploy.tasks.train import batches as module
    from mdmf_deploy.tasks.train.augment import Degradation

    monkeypatch.setattr(module, "Degradation", lambda: Degradation(noisy=0.5, webp=0.5))
    make = batches(tiny_recipe, 1.0, batch=16)
    make._pairs = lambda pixels, sha256, name: (pixels, pixels)  # type: ignore[method-assign, assignment]
    for step in range(3):
        batch = make(step)
        assert torch.equal(batch.real, batch.generated)


def test_sources_held_out_are_never_drawn(tiny_recipe: Recipe, untouched: None) -> None:
    make = batches(tiny_recipe)
    for step in range(6):
        batch = make(step)
        assert "generated/unseen" not in sources(batch.generated)
        assert all(source.startswith("real/") for source in sources(batch.real))


def test_webp_changes_images_of_both_classes(tiny_recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    from mdmf_deploy.tasks.train import batches as module
    from mdmf_deploy.tasks.train.augment import Degradation

    made = []
    for share in (0.0, 1.0):
        monkeypatch.setattr(module, "Degradation", lambda share=share: Degradation(webp=share))
        made.append(batches(tiny_recipe)(0))
    for half in ("real", "generated"):
        without, coded = (getattr(batch, half) for batch in made)
        assert all(not torch.equal(a, b) for a, b in zip(without, coded, strict=True))
        assert (without - coded).abs().mean() < 60


def test_featureless_and_enlarged_reals_come_last(tiny_recipe: Recipe, untouched: None) -> None:
    batch = batches(tiny_recipe, reals=Reals(featureless=0.25, enlarged=0.25))(0)
    detail = [float(crop[1].diff(dim=-1).abs().mean()) for crop in batch.real]
    assert min(detail[:4]) > 2 * max(detail[4:6])  # noise, against enlarged noise


def test_normalised_is_the_preprocessing_of_detection() -> None:
    from mdmf_deploy.images.crops import normalise

    crops = np.random.default_rng(0).integers(0, 256, (2, 14, 14, 3), np.uint8)
    ours = normalised(torch.from_numpy(crops).permute(0, 3, 1, 2).float(), Preprocessing(crop=14))
    np.testing.assert_allclose(ours.numpy(), normalise(crops, Preprocessing(crop=14)), atol=1e-5)
