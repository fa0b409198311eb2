"""The audit of a data set, the conditions, and the tables of an evaluation, with a stand-in for the detector."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import msgspec
import pytest

from mdmf_deploy.detection.rows import Row
from mdmf_deploy.errors import UsageError
from mdmf_deploy.tasks.evaluate.audit import audit
from mdmf_deploy.tasks.evaluate.conditions import Condition
from mdmf_deploy.tasks.evaluate.datasets import KnownImage, find_images
from mdmf_deploy.tasks.evaluate.evaluate import judge, tabulate, unscored


def bundle(bank: Iterable[str] = (), calibration: Iterable[str] | None = None) -> Any:
    calibrated = None if calibration is None else SimpleNamespace(image_sha256=tuple(calibration))
    return SimpleNamespace(bank=SimpleNamespace(hashes=frozenset(bank)), calibration=calibrated)


def row(score: float | None, verdict: Literal["real", "generated", "uncertain", "uncalibrated", "error"]) -> Row:
    return Row(uri="x", score=score, verdict=verdict, status="error" if score is None else "ok")


def pairs(generator: str | None, *rows: Row) -> list[tuple[KnownImage, Row]]:
    return [(KnownImage(Path("x"), "0", generator), row) for row in rows]


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
    assert table.mean == {"auroc": 0.75, "ap": (hard.ap.value + 1) / 2, "acc": 0.75, "tpr": 0.75}
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
