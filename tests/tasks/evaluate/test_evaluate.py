"""The audit of a data set, the conditions, and the tables of an evaluation, with a stand-in for the detector."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import msgspec
import pytest

from mdmf_deploy.detection.rows import Row
from mdmf_deploy.errors import UsageError
from mdmf_deploy.tasks.evaluate.audit import audit
from mdmf_deploy.tasks.evaluate.conditions import Condition
from mdmf_deploy.tasks.evaluate.datasets import Kind, KnownImage, find_images
from mdmf_deploy.tasks.evaluate.evaluate import judge, tabulate, threshold_of, unscored

_NUMBERS = count()


def bundle(bank: Iterable[str] = (), calibration: Iterable[str] | None = None) -> Any:
    calibrated = None if calibration is None else SimpleNamespace(image_sha256=tuple(calibration), videos=None)
    return SimpleNamespace(bank=SimpleNamespace(hashes=frozenset(bank)), calibration=calibrated)


def row(score: float | None, verdict: Literal["real", "generated", "uncertain", "uncalibrated", "error"]) -> Row:
    return Row(uri="x", score=score, verdict=verdict, status="error" if score is None else "ok")


def pairs(
    generator: str | None, *rows: Row, kind: Kind | None = None, beside: str | None = None
) -> list[tuple[KnownImage, Row]]:
    """Images with hashes of their own."""
    return [(KnownImage(Path("x"), f"{next(_NUMBERS):064x}", generator, kind, beside), row) for row in rows]


def test_a_generator_that_lost_every_image_is_named(dataset: Path) -> None:
    images = find_images(dataset)
    gone = [image.sha256 or "" for image in images if image.generator == "b"]
    kept, report = audit(images, bundle(gone[:1], gone[1:]))
    assert report.left_out == ("b",)
    assert unscored(kept, []) == []
    assert audit(images, bundle(gone[:1]))[1].left_out == ()
    broken = [*pairs(None, row(0.1, "real")), *pairs("a", row(0.2, "real")), *pairs("b", row(None, "error"))]
    whole = [*broken, *pairs("b", row(0.3, "real"))]
    tables = [tabulate("x", judged, resamples=2) for judged in (whole, broken)]
    assert unscored([image for image, _ in whole], tables[:1]) == []
    assert unscored([image for image, _ in whole], tables) == ["b"]


def test_rows_name_the_file_not_the_changed_image(dataset: Path) -> None:
    class Detector:
        def stream(self, sources: Iterable[object]) -> Iterator[Row]:
            for i, source in enumerate(sources):
                assert isinstance(source, bytes)
                yield Row(uri="bytes", sha256=hashlib.sha256(source).hexdigest(), score=float(i))

    images = find_images(dataset)
    judged = list(judge(Detector(), images, Condition.parse("jpeg:50")))  # type: ignore[arg-type]
    assert [image for image, _ in judged] == images
    assert [(row.uri, row.sha256) for _, row in judged] == [(str(s.path), s.sha256) for s in images]
    assert [row.score for _, row in judged] == list(range(12))


def test_tables_show_the_worst_generator_first() -> None:
    real = [row(0.1, "real"), row(0.2, "real"), row(0.3, "uncertain"), row(0.6, "generated")]
    judged = [
        *pairs("easy", row(0.8, "generated"), row(0.9, "generated")),
        *pairs(None, *real),
        *pairs("hard", row(0.05, "uncertain"), row(0.7, "generated"), row(None, "error")),
    ]
    table = tabulate("as is", judged, resamples=50)
    assert list(table.generators) == ["hard", "easy"]
    assert [figure.images for figure in table.generators.values()] == [2, 2]
    assert table.fpr is not None
    assert table.fpr.value == 0.25
    hard, easy = table.generators.values()
    assert hard.tpr
    assert easy.acc
    assert (hard.auroc.value, hard.tpr.value, easy.auroc.value, easy.acc.value) == (0.5, 0.5, 1.0, 0.875)
    means = {name: mean.value for name, mean in table.mean.items() if mean is not None}
    assert {name: means[name] for name in ("auroc", "acc", "tpr")} == {"auroc": 0.75, "acc": 0.75, "tpr": 0.75}
    assert means["ap"] == (hard.ap.value + 1) / 2
    assert table.few == ["hard", "easy"]
    assert (table.pooled.images, table.pooled.auroc.value, table.worst_auroc) == (4, 0.75, 0.5)
    assert table.unreadable == ("x",)
    assert (table.real_uncertain, hard.uncertain, easy.uncertain, table.pooled.uncertain) == (1, 1, 0, 1)


def test_uncalibrated_verdicts_give_no_rates() -> None:
    judged = [*pairs(None, row(0.1, "uncalibrated")), *pairs("g", row(0.2, "uncalibrated"))]
    table = tabulate("as is", judged, resamples=10)
    assert (table.fpr, table.pooled.acc, table.pooled.tpr, table.mean["tpr"]) == (None, None, None, None)
    assert (table.real_uncertain, table.pooled.uncertain) == (None, None)
    assert table.pooled.auroc.value == 1


def test_sizes_that_no_verdict_can_fire_for_give_no_rates() -> None:
    """An FPR or a TPR of 0 would look like a finding."""
    unsized = msgspec.structs.replace(row(0.2, "uncertain"), reason="no_calibration_for_this_size")
    judged = [*pairs(None, row(0.1, "real"), unsized), *pairs("small", row(0.3, "generated")), *pairs("large", unsized)]
    table = tabulate("as is", judged, resamples=10)
    assert table.fpr is not None
    assert table.generators["small"].tpr is not None
    assert (table.generators["large"].tpr, table.generators["large"].acc, table.mean["tpr"]) == (None, None, None)
    nothing = tabulate("as is", [*pairs(None, unsized), *pairs("small", row(0.3, "generated"))], resamples=10)
    assert (nothing.fpr, nothing.pooled.tpr) == (None, None)


@pytest.mark.parametrize(("generator", "missing"), [(None, "generated"), ("g", "real")])
def test_one_class_alone_cannot_be_judged(generator: str | None, missing: str) -> None:
    with pytest.raises(UsageError, match=f"no {missing} image"):
        tabulate("as is", pairs(generator, row(0.1, "real")))


def test_a_generator_is_compared_with_the_real_images_beside_it() -> None:
    judged = [
        *pairs(None, row(0.1, "real"), row(0.2, "real"), beside="a"),
        *pairs(None, row(0.8, "generated"), beside="b"),
        *pairs(None, row(0.4, "real")),
        *pairs("a", row(0.3, "real")),
        *pairs("b", row(0.7, "real")),
        *pairs("c", row(0.5, "real")),
    ]
    table = tabulate("as is", judged, resamples=5)
    assert {name: figure.auroc.value for name, figure in table.generators.items()} == {"a": 1.0, "b": 0.0, "c": 1.0}
    # Against all four real images, each would have another.
    assert table.pooled.auroc.value == pytest.approx((2 + 3 + 3) / 12)
    assert table.real_images == 4


def test_a_real_image_beside_two_generators_counts_once_among_all() -> None:
    [(image, one)] = pairs(None, row(0.2, "generated"), beside="a")
    twice = [(image, one), (KnownImage(image.path, image.sha256, None, compared_with="b"), one)]
    judged = [*twice, *pairs("a", row(0.3, "real")), *pairs("b", row(0.1, "real"))]
    table = tabulate("as is", judged, resamples=5)
    assert table.real_images == 1
    assert table.fpr is not None
    assert table.fpr.value == 1
    assert {name: figure.auroc.value for name, figure in table.generators.items()} == {"a": 1.0, "b": 0.0}


def test_kinds_are_apart_and_take_all_generated_images_if_none_has_the_kind() -> None:
    judged = [
        *pairs(None, row(0.1, "real"), row(0.2, "real"), kind="photographs"),
        *pairs(None, row(0.9, "generated"), row(0.8, "uncertain"), kind="art"),
        *pairs(None, row(0.3, "real"), kind="screenshots"),
        *pairs("g", row(0.6, "generated")),
        *pairs("h", row(0.7, "generated"), kind="screenshots"),
    ]
    table = tabulate("as is", judged, resamples=5)
    assert list(table.kinds) == ["photographs", "art", "screenshots", "other"]
    found = {
        kind: (group.real_images, group.fpr and group.fpr.value, group.generated_images, group.all_generated)
        for kind, group in table.kinds.items()
    }
    assert found == {
        "photographs": (2, 0.0, 2, True),
        "art": (2, 0.5, 2, True),
        "screenshots": (1, 0.0, 1, False),
        "other": (0, None, 1, False),
    }
    areas = {kind: group.auroc and group.auroc.value for kind, group in table.kinds.items()}
    assert areas == {"photographs": 1.0, "art": 0.0, "screenshots": 1.0, "other": None}
    assert table.kinds["art"].real_uncertain == 1
    assert tabulate("x", [*pairs(None, row(0.1, "real")), *pairs("g", row(0.2, "real"))], resamples=2).kinds == {}


def test_a_group_is_averaged_over_its_generators_not_pooled() -> None:
    judged = [
        *pairs(None, row(0.5, "real"), kind="photographs"),
        *pairs("many", *[row(0.9, "generated")] * 9),
        *pairs("one", row(0.1, "real")),
    ]
    group = tabulate("as is", judged, resamples=5).kinds["photographs"]
    assert group.auroc is not None
    assert group.tpr is not None
    assert (group.auroc.value, group.tpr.value, group.generators) == (0.5, 0.5, 2)


def test_sizes_are_those_of_the_calibration_and_stand_from_small_to_large() -> None:
    def sized(score: float, group: str | None, side: int = 100, frames: int | None = None) -> Row:
        return Row(
            uri="x", score=score, verdict="real", size_group=group, width=side, height=side, frames=frames, status="ok"
        )

    names = ["above 8 MP", "videos", "0.5 to 2 MP", "up to 0.5 MP", "2 to 8 MP"]
    judged = [*pairs(None, *(sized(0.1, name) for name in names)), *pairs("g", sized(0.2, "up to 0.5 MP"))]
    table = tabulate("as is", judged, resamples=2)
    assert list(table.sizes) == ["up to 0.5 MP", "0.5 to 2 MP", "2 to 8 MP", "above 8 MP", "videos"]
    assert [group.generated_images for group in table.sizes.values()] == [1, 0, 0, 0, 0]
    # Without a calibration, sizes are those that a new one would have.
    bare = [sized(0.1, None, side) for side in (100, 1000, 2000, 4000)]
    again = tabulate("as is", [*pairs(None, *bare, sized(0.1, None, frames=3)), *judged[-1:]], resamples=2)
    assert list(again.sizes) == list(table.sizes)


def test_the_best_threshold_is_found_on_the_other_half() -> None:
    """Scores of one half lie far from those of the other, so a threshold of the same images would be right always."""
    even = [(0.1, None), (0.2, "g"), (0.1, None), (0.2, "g")]
    odd = [(0.3, None), (0.4, "g"), (0.3, None), (0.4, "g")]
    judged = [
        (KnownImage(Path("x"), f"{2 * n + half:064x}", generator), row(score, "real"))
        for half, images in enumerate((even, odd))
        for n, (score, generator) in enumerate(images)
    ]
    table = tabulate("as is", judged, resamples=2)
    best = table.generators["g"].best_acc
    assert best is not None
    # The odd half's 0.35 misses all of the even half, and the even half's 0.15 flags all of the odd one.
    assert sorted(table.best_thresholds) == pytest.approx([0.15, 0.35])
    assert best.value == 0.5
    given = tabulate("as is", judged, resamples=2, threshold=0.25)
    assert given.best_thresholds == (0.25,)
    assert threshold_of(judged) in (pytest.approx(0.15), pytest.approx(0.35))


def test_a_half_without_a_class_gives_no_best_threshold() -> None:
    judged = [
        (KnownImage(Path("x"), "0" * 64, None), row(0.1, "real")),
        (KnownImage(Path("x"), "1" * 64, "g"), row(0.2, "real")),
    ]
    table = tabulate("as is", judged, resamples=2)
    assert (table.best_thresholds, table.pooled.best_acc) == ((), None)
