"""Plots of an evaluation: what they say agrees with the table, whatever the data."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from itertools import combinations, count
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from matplotlib.patches import Rectangle
from sklearn.metrics import roc_curve

from mdmf_deploy.detection.rows import Row
from mdmf_deploy.tasks.evaluate.comparison import Judged
from mdmf_deploy.tasks.evaluate.datasets import KnownImage
from mdmf_deploy.tasks.evaluate.evaluate import tabulate
from mdmf_deploy.tasks.evaluate.plots import plots_of, thresholds_of
from mdmf_deploy.tasks.plots import encoded

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.text import Text

_NUMBERS = count()


def images(generator: str | None, scores: np.ndarray, threshold: float | None = 0.5) -> list[Judged]:
    return [
        Judged(
            KnownImage(Path("x"), f"{next(_NUMBERS):064x}", generator),
            Row(
                uri="x",
                score=float(score),
                threshold=threshold,
                size_group=None if threshold is None else "up to 0.5 MP",
                verdict="uncalibrated" if threshold is None else "generated" if score > threshold else "real",
            ),
        )
        for score in scores
    ]


@pytest.fixture(scope="module")
def judged() -> list[Judged]:
    rng = np.random.default_rng(0)
    return [
        *images(None, rng.normal(0.3, 0.1, 60)),
        *images("easy", rng.normal(0.7, 0.1, 20)),
        *images("hard $x_1$", rng.normal(0.4, 0.1, 20)),
    ]


def test_curves_are_those_of_scikit_learn_and_the_worst_generator_is_named(judged: list[Judged]) -> None:
    table = tabulate("as is", judged, resamples=10)
    roc, scores, bars = plots_of(judged, table)
    assert [picture.name for picture in (roc, scores, bars)] == ["roc", "scores", "generators"]
    worst = next(line for line in roc.figure.axes[0].lines if str(line.get_label()).startswith("worst"))
    own = [pair for pair in judged if pair.image.generator in (None, "hard $x_1$")]
    fpr, tpr, _ = roc_curve(
        [pair.image.generator is not None for pair in own],
        [pair.row.score for pair in own],
        drop_intermediate=False,
    )
    assert np.allclose(worst.get_xdata(), fpr)
    assert np.allclose(worst.get_ydata(), tpr)
    assert f"hard $x_1$ with {table.worst_auroc:.3f}" in roc.description
    assert bars.description.index("hard $x_1$") < bars.description.index("easy")


def test_a_histogram_weighs_generators_alike(judged: list[Judged]) -> None:
    many = [*judged, *images("easy", np.full(200, 0.7))]
    _, scores, _ = plots_of(many, tabulate("as is", many, resamples=2))
    # Of each class there is a filled histogram and an outline.
    bars = [patch for patch in scores.figure.axes[0].patches if isinstance(patch, Rectangle)]
    real, generated = bars[: len(bars) // 2], bars[len(bars) // 2 :]
    for of_class in (real, generated):
        assert sum(bar.get_height() for bar in of_class) == pytest.approx(1.0)
    # 220 of the 240 generated images lie here, and they are one generator of two.
    assert sum(bar.get_height() for bar in generated if bar.get_x() > 0.55) == pytest.approx(0.5, abs=0.06)
    assert [line.get_label() for line in scores.figure.axes[0].lines] == ["threshold, up to 0.5 MP"]


def test_names_of_any_kind_are_drawn_and_the_same_figure_gives_the_same_bytes(judged: list[Judged]) -> None:
    odd = [*judged, *images("<script>&\u202e生成" + "x" * 80, np.full(3, 0.6))]
    table = tabulate("as is", odd, resamples=5)
    files = [[encoded(picture.figure, "svg") for picture in plots_of(odd, table)] for _ in range(2)]
    assert files[0] == files[1]
    for data in files[0]:
        assert ET.fromstring(data).tag.endswith("svg")
        assert b"<script" not in data
    bars, again = (encoded(plots_of(odd, table)[2].figure, "png") for _ in range(2))
    assert bars.startswith(b"\x89PNG")
    assert bars == again


def test_uncalibrated_images_have_no_thresholds_and_no_rates() -> None:
    bare = [*images(None, np.array([0.1, 0.2]), None), *images("g", np.array([0.3]), None)]
    assert thresholds_of(bare) == {}
    _, scores, bars = plots_of(bare, tabulate("as is", bare, resamples=2))
    assert not scores.figure.axes[0].lines
    assert [text.get_text() for text in bars.figure.axes[1].texts] == ["uncalibrated"]


def test_equal_thresholds_of_several_sizes_are_one_line() -> None:
    pairs = [*images(None, np.array([0.1]), 0.4), *images(None, np.array([0.2]), 0.5), *images(None, np.zeros(2), 0.4)]
    assert thresholds_of(pairs) == {0.4: "up to 0.5 MP", 0.5: "up to 0.5 MP"}


def texts_of(artist: Artist) -> list[Text]:
    # Importing Matplotlib's class for texts here would choose the folder of its fonts before the package does.
    return artist.findobj(lambda found: hasattr(found, "get_fontsize"))


def test_no_text_lies_on_another_or_leaves_its_picture(judged: list[Judged]) -> None:
    many = [*judged, *(one for n in range(6) for one in images(f"generator {n}", np.linspace(0.2, 0.9, 5)))]
    for data in (judged, many):
        for picture in plots_of(data, tabulate("as is", data, resamples=5)):
            picture.figure.draw_without_rendering()
            axes = [axis for one in picture.figure.axes for axis in (one.xaxis, one.yaxis)]
            ticks = {text for axis in axes for text in texts_of(axis) if text is not axis.label}  # not all are drawn
            texts = [text for text in texts_of(picture.figure) if text.get_text() and text not in ticks]
            boxes = [text.get_window_extent() for text in texts]
            assert len(boxes) > 2
            for (one, box), (other, another) in combinations(zip(texts, boxes, strict=True), 2):
                assert not box.overlaps(another), (picture.name, one.get_text(), other.get_text())
            for one, box in zip(texts, boxes, strict=True):
                inside = picture.figure.bbox
                assert inside.x0 <= box.x0 <= box.x1 <= inside.x1, (picture.name, one.get_text())
                assert inside.y0 <= box.y0 <= box.y1 <= inside.y1, (picture.name, one.get_text())
