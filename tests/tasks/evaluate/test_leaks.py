"""The audit warns of a data set whose files tell its classes apart, and not of one whose files do not."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from helpers.bad_inputs import encoded
from helpers.synthetic_photos import synthetic_photo
from PIL import Image

from mdmf_deploy.errors import install
from mdmf_deploy.tasks.evaluate.datasets import KnownImage
from mdmf_deploy.tasks.evaluate.facts import Facts
from mdmf_deploy.tasks.evaluate.leaks import BOUND, UNDECIDED, LeakAudit, audit_leaks, lines
from mdmf_deploy.tasks.evaluate.separation import LEAST, level_for

COUNT = 16  # images of each class

Writer = Callable[[int, np.random.Generator], bytes]
"""Makes the file of an image, given its seed."""


def picture(seed: int, width: int = 64, height: int = 48) -> Image.Image:
    return Image.fromarray(synthetic_photo(seed, width, height))


def coded(seed: int, rng: np.random.Generator, **options: Any) -> bytes:
    """A JPEG or, one time in three, a PNG, as in a collection of many sources."""
    if "quality" not in options and rng.random() < 1 / 3:
        return encoded(picture(seed), "PNG")
    return encoded(picture(seed), "JPEG", **({"quality": int(rng.integers(70, 96))} | options))


def sized(seed: int, low: int, high: int, rng: np.random.Generator) -> bytes:
    return encoded(picture(seed, int(rng.integers(low, high)), int(rng.integers(low, high))), "JPEG")


def exif() -> Image.Exif:
    block = Image.Exif()
    block[271] = "a maker"
    return block


def depth(seed: int, bits: int) -> bytes:
    grey = np.asarray(picture(seed).convert("L"))
    return encoded(grey.astype(np.uint16) * 257 if bits == 16 else grey, "PNG")


LEAKS: dict[str, tuple[Writer, Writer, set[str]]] = {
    "format": (
        lambda seed, rng: encoded(picture(seed), "JPEG"),
        lambda seed, rng: encoded(picture(seed), "PNG"),
        {"codec"},
    ),
    "size": (
        lambda seed, rng: sized(seed, 40, 70, rng),
        lambda seed, rng: sized(seed, 75, 90, rng),
        {"width", "height", "megapixels"},
    ),
    "aspect": (
        lambda seed, rng: encoded(picture(seed, 80, 50), "JPEG"),
        lambda seed, rng: encoded(picture(seed, 50, 80), "JPEG"),
        {"aspect", "width", "height"},
    ),
    "EXIF": (
        lambda seed, rng: coded(seed, rng, quality=90, exif=exif()),
        lambda seed, rng: coded(seed, rng, quality=90),
        {"exif"},
    ),
    "subsampling": (
        lambda seed, rng: coded(seed, rng, quality=90, subsampling="4:2:0"),
        lambda seed, rng: coded(seed, rng, quality=90, subsampling="4:4:4"),
        {"subsampling"},
    ),
    "quality": (
        lambda seed, rng: coded(seed, rng, quality=int(rng.integers(60, 80))),
        lambda seed, rng: coded(seed, rng, quality=int(rng.integers(85, 98))),
        {"quality"},
    ),
    "tables": (
        lambda seed, rng: coded(seed, rng, quality=90),
        lambda seed, rng: encoded(picture(seed), "JPEG", qtables=[[7] * 64, [9] * 64]),
        {"tables"},
    ),
    "bit depth": (lambda seed, rng: depth(seed, 8), lambda seed, rng: depth(seed, 16), {"bit_depth"}),
}


def written(folder: Path, real: Writer, generated: Writer, count: int = COUNT) -> list[KnownImage]:
    """Write a data set of `count` images of each class."""
    rng = np.random.default_rng(0)
    images = []
    for seed in range(2 * count):
        path = folder / f"{seed}.bin"
        path.write_bytes((real if seed < count else generated)(seed, rng))
        images.append(KnownImage(path, str(seed), None if seed < count else "g"))
    return images


def drawn(count: int, seed: int, generators: int = 1) -> tuple[list[KnownImage], list[Facts]]:
    """Return a data set without files, whose facts are drawn alike for both classes."""
    rng = np.random.default_rng(seed)
    images = [KnownImage(Path(str(n)), None, None if n < count else f"g{n % generators}") for n in range(2 * count)]
    facts = []
    for _ in images:
        width, height = (int(rng.choice([512, 640, 1024, 4000]) + rng.integers(0, 90)) for _ in range(2))
        blocks = {name: bool(rng.random() < 0.3) for name in ("exif", "xmp", "icc", "text")}
        one = Facts(codec="png", width=width, height=height, bit_depth=8, colour="colour", c2pa=False, **blocks)
        if rng.random() < 0.6:
            one = msgspec.structs.replace(
                one,
                codec="jpeg",
                quality=int(rng.integers(60, 98)),
                tables=str(rng.choice(["standard", "a", "b", "c"])),
                subsampling=str(rng.choice(["4:2:0", "4:4:4"])),
                progressive=bool(rng.random() < 0.2),
            )
        facts.append(one)
    return images, facts


def facts_at_the_top(audit: LeakAudit) -> set[str]:
    best = max(table.auroc.value for table in audit.overall.facts if table.auroc is not None)
    return {table.name for table in audit.overall.facts if table.auroc is not None and table.auroc.value == best}


@pytest.mark.parametrize("leak", LEAKS)
def test_a_data_set_made_to_leak_is_warned_of_and_the_fact_is_named(leak: str, tmp_path: Path) -> None:
    real, generated, names = LEAKS[leak]
    audit = audit_leaks(written(tmp_path, real, generated))
    assert audit.verdict == audit.overall.verdict == "leak"
    assert audit.overall.auroc is not None
    assert audit.overall.auroc.value > 0.95
    assert facts_at_the_top(audit) & names
    first, *rest = lines(audit)
    assert first.startswith(
        "warning: format, size and metadata alone tell 16 real images from 16 generated ones "
        f"(AUROC {audit.overall.auroc.value:.3f} ["
    )
    assert "--match" in rest[0]
    assert any(line.strip().startswith(tuple(name.replace("_", " ") for name in names)) for line in rest)
    assert len(rest) < 10


def test_a_matched_data_set_is_not_warned_of(tmp_path: Path) -> None:
    audit = audit_leaks(written(tmp_path, coded, coded, 20))
    assert audit.verdict == "none found"
    [line] = lines(audit)
    assert line.startswith(
        "leaks: none found in format, size and metadata of 20 real and 20 generated images (AUROC 0."
    )
    assert line.endswith("]); more images would show smaller leaks")


@pytest.mark.parametrize(
    ("count", "generators", "seeds", "many"), [(LEAST, 1, 2, 200), (20, 1, 2, 200), (60, 3, 1, 100)]
)
def test_small_sets_that_do_not_leak_raise_no_false_alarm(count: int, generators: int, seeds: int, many: int) -> None:
    """docs/evaluation.md holds the counts, which MDMF_LONG=1 measures again."""
    tried = many if os.environ.get("MDMF_LONG") == "1" else seeds
    alarms = sum(audit_leaks(*drawn(count, seed, generators)).verdict == "leak" for seed in range(tried))
    assert alarms <= tried // 100


def test_the_content_is_no_leak() -> None:
    """Bytes per pixel tell flat pictures from detailed ones, so they are shown and not called a leak."""
    images, facts = drawn(20, 0)
    flat = [
        msgspec.structs.replace(fact, bytes_per_pixel=0.1 if image.generator else 1.0)
        for image, fact in zip(images, facts, strict=True)
    ]
    audit = audit_leaks(images, flat)
    assert audit.verdict == "none found"
    [table] = [table for table in audit.overall.facts if table.name == "bytes_per_pixel"]
    assert table.auroc is not None
    assert table.auroc.value == 1
    assert table.generated.quartiles == (0.1, 0.1, 0.1)


@pytest.mark.parametrize(
    ("real", "generated"), [(1, 1), (1, 40), (LEAST - 1, 40), (40, LEAST - 1), (0, 5), (5, 0), (0, 0)]
)
def test_too_few_images_are_no_evidence(real: int, generated: int) -> None:
    images, facts = drawn(40, 0)
    facts = [
        msgspec.structs.replace(fact, codec="jpeg" if image.generator else "png")
        for image, fact in zip(images, facts, strict=True)
    ]
    chosen = [*range(real), *range(40, 40 + generated)]
    audit = audit_leaks([images[n] for n in chosen], [facts[n] for n in chosen])
    assert audit.verdict == "too few images"
    assert lines(audit) == [
        f"leaks: too few files to look for any ({real} real and {generated} generated images; at least {LEAST} of each "
        "are needed)"
    ]


def test_a_leak_of_one_generator_among_many_is_found_and_named() -> None:
    images, facts = drawn(100, 0, generators=5)
    facts = [
        msgspec.structs.replace(fact, codec="webp") if image.generator == "g3" else fact
        for image, fact in zip(images, facts, strict=True)
    ]
    audit = audit_leaks(images, facts)
    worst, *others = audit.generators
    assert (audit.verdict, worst.generator, worst.verdict) == ("leak", "g3", "leak")
    assert worst.facts[0].name == "codec"
    # The best of many facts was looked for, so its interval is wider than that of the model.
    assert worst.auroc is not None
    assert worst.facts[0].auroc is not None
    assert worst.facts[0].auroc.value == worst.auroc.value == 1
    assert worst.facts[0].auroc.low < worst.auroc.low
    assert {other.verdict for other in others} == {"none found"}
    text = "\n".join(lines(audit))
    assert "1 of 5 generators leak: g3 (AUROC 1.000" in text
    few = [image for n, image in enumerate(images) if image.generator in (None, "g3") or n < 105]
    of_few = audit_leaks(few, [fact for image, fact in zip(images, facts, strict=True) if image in few])
    # Generators of one image are not compared, and so do not widen the intervals.
    assert of_few.level == level_for(2)
    assert sorted(found.verdict for found in of_few.generators) == ["leak"] + ["too few images"] * 4


def test_a_generator_is_compared_with_its_own_real_images_alone() -> None:
    """As in GenImage. Each generator's images look like its own real ones, and unlike the others."""
    images, facts = drawn(150, 0, generators=2)
    sizes = {"g0": 256, "g1": 1024}
    own = [
        image if image.generator else KnownImage(image.path, None, None, compared_with="g0" if n % 2 else "g1")
        for n, image in enumerate(images)
    ]
    alike = [
        msgspec.structs.replace(fact, width=size, height=size)
        for image, fact in zip(own, facts, strict=True)
        for size in [sizes[image.generator or image.compared_with or ""]]
    ]
    audit = audit_leaks(own, alike)
    assert audit.verdict == "none found"
    assert {(found.real, found.generated) for found in audit.generators} == {(75, 75)}
    assert audit_leaks(images, alike).verdict == "leak"


def test_few_images_that_seem_to_leak_are_not_passed_over_in_silence() -> None:
    """5 in 6 generated images, and 1 in 6 real ones, are PNGs: clear among 400 images, and not among 40."""
    verdicts = {}
    for count in (20, 200):
        images, facts = drawn(count, 0)
        leaning = [
            msgspec.structs.replace(fact, codec="png" if (n % 6 > 0) == (image.generator is not None) else "jpeg")
            for n, (image, fact) in enumerate(zip(images, facts, strict=True))
        ]
        audit = audit_leaks(images, leaning)
        verdicts[count] = audit.verdict
        if count == 20:
            first, second, *_ = lines(audit)
            assert first.startswith("leaks: perhaps. Format, size and metadata tell 20 real images from 20 generated")
            assert second.startswith("  codec 0.7")
            assert audit.overall.auroc is not None
            assert audit.overall.auroc.low <= BOUND < UNDECIDED < audit.overall.auroc.value
    assert verdicts == {20: "undecided", 200: "leak"}


def test_tables_show_shares_and_quartiles_of_each_class() -> None:
    images, facts = drawn(50, 1)
    audit = audit_leaks(images, facts)
    tables = {table.name: table for table in audit.overall.facts}
    real = [fact for image, fact in zip(images, facts, strict=True) if image.generator is None]
    assert tables["codec"].real.shares == {
        codec: sum(fact.codec == codec for fact in real) / 50
        for codec in sorted({fact.codec for fact in real}, key=lambda codec: -sum(f.codec == codec for f in real))
    }
    qualities = [fact.quality for fact in real if fact.quality is not None]
    assert tables["quality"].real.known == len(qualities) < 50
    assert tables["quality"].real.quartiles == tuple(np.quantile(qualities, [0.25, 0.5, 0.75]))
    assert msgspec.json.decode(msgspec.json.encode(audit), type=LeakAudit) == audit


def test_unreadable_files_are_counted(tmp_path: Path) -> None:
    images = written(tmp_path, coded, coded, LEAST)
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"\xff\xd8\xff")
    audit = audit_leaks([*images, KnownImage(broken, "x", None), KnownImage(tmp_path / "gone.jpg", None, "g")])
    assert (audit.overall.real, audit.overall.generated) == (LEAST, LEAST)
    assert audit.unreadable == (str(broken), str(tmp_path / "gone.jpg"))
    assert lines(audit)[-1] == "leaks: 2 files could not be read and were left out"


def test_a_video_among_images_is_a_leak_of_its_format() -> None:
    images, facts = drawn(20, 0)
    facts = [Facts(codec="mp4") if image.generator else fact for image, fact in zip(images, facts, strict=True)]
    audit = audit_leaks(images, facts)
    assert audit.verdict == "leak"
    assert audit.overall.facts[0].name == "codec"


def test_without_scikit_learn_facts_are_looked_at_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.ensemble", None)
    images, facts = drawn(30, 0)
    audit = audit_leaks(images, facts)
    assert audit.verdict == "none found"
    assert audit.overall.auroc is None
    assert audit.missing == install("evaluate")
    assert lines(audit)[-1].endswith(f"run: {install('evaluate')}")
    leaking = [
        msgspec.structs.replace(fact, codec="jpeg" if image.generator else "png")
        for image, fact in zip(images, facts, strict=True)
    ]
    audit = audit_leaks(images, leaking)
    assert (audit.verdict, audit.overall.facts[0].name) == ("leak", "codec")
    assert audit.overall.facts[0].auroc is not None
    assert audit.overall.facts[0].auroc.low > BOUND
    alarms = sum(audit_leaks(*drawn(20, seed)).verdict == "leak" for seed in range(30))
    assert alarms == 0


def test_the_order_of_images_hardly_matters_and_a_second_audit_is_the_same() -> None:
    images, facts = drawn(30, 3)
    audit = audit_leaks(images, facts)
    assert audit == audit_leaks(images, facts)
    turned = audit_leaks(images[::-1], facts[::-1])
    assert turned.verdict == audit.verdict
    shares = [{table.name: table.real for table in found.overall.facts} for found in (audit, turned)]
    assert shares[0]["width"] == shares[1]["width"]
