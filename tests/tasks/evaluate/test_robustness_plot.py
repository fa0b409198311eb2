"""The picture of a robustness sweep."""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from fakes.hashing_detector import HashingDetector
from helpers.libraries import needed
from PIL import Image

from mdmf_deploy.errors import RuntimeUnavailable, UsageError
from mdmf_deploy.tasks.evaluate.datasets import find_images
from mdmf_deploy.tasks.evaluate.robustness import AXES, Axis, Step, SweepResult, sweep
from mdmf_deploy.tasks.evaluate.robustness_plot import picture, write_picture

OWN = Axis("resize", "Resize, factor", (Step("0.5", "resize:0.5"), Step("as is", "as is"), Step("2", "resize:2")))


@pytest.fixture(scope="module")
def result(shared_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> SweepResult:
    needed("matplotlib")
    return swept(shared_dataset, tmp_path_factory.mktemp("sweep"))


@pytest.fixture(scope="module")
def svg(result: SweepResult) -> bytes:
    return picture(result, "svg")


def swept(dataset: Path, folder: Path, axes: tuple[Axis, ...] = (AXES[0], OWN), calibrated: bool = True) -> SweepResult:
    detector = HashingDetector(calibrated=calibrated)
    return sweep(detector, find_images(dataset), folder / "rows", axes=axes, resamples=20)  # type: ignore[arg-type]


def texts(svg: bytes) -> list[str]:
    found = ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")
    return ["".join(one.itertext()) for one in found]


def curves(svg: bytes, colour: str) -> list[list[float]]:
    """Return the heights of the points of each curve of a colour, from the top of the picture."""
    found = []
    for path in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}path"):
        style = path.get("style", "")
        if "fill: none" in style and f"stroke: {colour}" in style and "stroke-width: 1.6" in style:
            found.append([float(y) for y in re.findall(r"[ML] \S+ (\S+)", path.get("d", ""))])
    return found


def test_each_axis_has_its_title_and_its_steps(result: SweepResult, svg: bytes) -> None:
    shown = texts(svg)
    for axis in result.axes:
        assert axis.title in shown
        assert {step.label for step in axis.steps} <= set(shown)
    [caption] = [text for text in shown if text.startswith("6 real images and 6 of 2 generators.")]
    assert "Bundle bbbbbbbbbbbb, onnxruntime fp32." in caption


def test_the_curves_are_the_tables(result: SweepResult, svg: bytes) -> None:
    for colour, figures in (
        ("#0072b2", [[result.tables[step.condition].mean["auroc"] for step in axis.steps] for axis in result.axes]),
        ("#d55e00", [[result.tables[step.condition].fpr for step in axis.steps] for axis in result.axes]),
    ):
        *heights, in_legend = curves(svg, colour)
        assert len(set(in_legend)) == 1
        values = [[one.value for one in curve if one is not None] for curve in figures]
        assert [len(curve) for curve in heights] == [7, 3]
        # The panels stand beside each other, and so share one scale.
        assert np.corrcoef(np.concatenate(heights), np.concatenate(values))[0, 1] == pytest.approx(-1, abs=1e-6)


def test_the_papers_figures_stand_beside_its_own_axes_alone(shared_dataset: Path, tmp_path: Path, svg: bytes) -> None:
    label = "AUROC in the paper: ViT-L/14, its ImageNet generators"
    assert label in texts(svg)
    assert label not in texts(picture(swept(shared_dataset, tmp_path, (OWN,)), "svg"))


def test_without_verdicts_the_picture_says_so(shared_dataset: Path, tmp_path: Path) -> None:
    needed("matplotlib")
    shown = texts(picture(swept(shared_dataset, tmp_path, (OWN,), calibrated=False), "svg"))
    assert shown.count("no verdicts") == 1


def test_the_ending_names_the_format_and_the_same_result_gives_the_same_bytes(
    result: SweepResult, svg: bytes, tmp_path: Path
) -> None:
    write_picture(tmp_path / "sweep.svg", result)
    assert (tmp_path / "sweep.svg").read_bytes() == svg
    write_picture(tmp_path / "sweep.PNG", result)
    with Image.open(io.BytesIO((tmp_path / "sweep.PNG").read_bytes())) as image:
        assert image.format == "PNG"
        assert min(image.size) > 400


@pytest.mark.parametrize("name", ["sweep.pdf", "sweep"])
def test_another_ending_is_refused(result: SweepResult, tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match=r"choose one of \.svg, \.png"):
        write_picture(tmp_path / name, result)
    assert not (tmp_path / name).exists()


def test_without_matplotlib_the_error_says_how_to_install_it(
    result: SweepResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(RuntimeUnavailable, match=r"run: pip install 'mdmf-deploy\[evaluate\]'"):
        write_picture(tmp_path / "sweep.svg", result)
    assert not (tmp_path / "sweep.svg").exists()
