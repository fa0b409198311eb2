"""Shared fixtures: one tiny random model, exported once a session, and a folder of small photographs of nothing."""

from __future__ import annotations

import gc
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from filelock import FileLock
from helpers.synthetic_photos import write_photos

from mdmf_deploy.bundle.recipe import Backbone, Head, Preprocessing, Recipe

if TYPE_CHECKING:
    from onnx import ModelProto

# PyTorch's threads wait for work by spinning, which takes the cores from other processes.
# PyTorch reads this when it is imported. The number of threads stays as it is.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# Hundreds of child processes import the package. Each compiles all of it where nothing keeps the compiled files.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# Files that take long. They start first, so that no process is left alone with one at the end.
_LONG = (
    "kernels/test_sanitizers.py",
    "runtime/building/test_rtx_builds.py",
    "docs/test_long_pages.py",
    "docs/test_pages.py",
    "cli/test_train.py",
    "cli/test_export.py",
    "tasks/train/test_train.py",
    "runtime/test_pt.py",
    "runtime/test_engines.py",
    "runtime/test_onnx_in_torch.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start long files first. Skip GPU tests without a GPU, unless MDMF_REQUIRE_GPU=1 asks them to fail."""
    places = {Path(__file__).parent / name: place for place, name in enumerate(_LONG)}
    items.sort(key=lambda item: places.get(item.path, len(_LONG)))
    if os.environ.get("MDMF_REQUIRE_GPU") == "1" or shutil.which("nvidia-smi"):
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="no CUDA GPU on this machine"))


def pytest_collection_finish() -> None:
    """Look less often for garbage, and never among the thousands of tests, which stay to the end."""
    gc.freeze()
    gc.set_threshold(100_000, 50, 100)


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], None]], Path]:
    """Make a folder once for all processes of a test run: once(name, make) calls make(folder) if it isn't there yet."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def made(name: str, make: Callable[[Path], None]) -> Path:
        folder = shared / f"once-{name}"
        with FileLock(f"{folder}.lock"):
            if not folder.exists():
                scratch = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=shared))
                make(scratch)
                scratch.rename(folder)
        return folder

    return made


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Compile into a cache of the tests' own, leave the user's alone, and score with the small bundle by default.

    Speeds are measured on one batch a turn: no test asserts a time.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mdmf_deploy.runtime.SECONDS_PER_TURN", 0.0)
        patch.setenv("MDMF_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("MDMF_BUNDLE", "starter")
        yield


@pytest.fixture
def messages(caplog: pytest.LogCaptureFixture) -> Callable[[], str]:
    """The package's log messages since the last call, one per line, without debug messages."""
    caplog.set_level("INFO", "mdmf_deploy")

    def read() -> str:
        lines = [record.getMessage() for record in caplog.records]
        caplog.clear()
        return "\n".join(lines)

    return read


@pytest.fixture(scope="session")
def tiny_recipe() -> Recipe:
    return Recipe(
        name="tiny",
        summary="A random model for tests.",
        backbone=Backbone(architecture="starter_vit14"),
        preprocessing=Preprocessing(crop=56),
        head=Head(pool=2, hidden=(16,), signature=8),
    )


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 12 distinct images; none of them is in the tiny bundle's bank."""
    folder = tmp_path_factory.mktemp("photos")
    write_photos(folder, 12, first_seed=0)
    return folder


@pytest.fixture(scope="session")
def tiny_bundle(once: Callable[[str, Callable[[Path], None]], Path], tiny_recipe: Recipe) -> Path:
    """A bundle of a random model with a bank of 16 images, shared by the whole run, so never change it.

    Its real images lie beside it.
    """

    def make(folder: Path) -> None:
        import torch

        from mdmf_deploy.model.pfs import MdmfModel
        from mdmf_deploy.tasks.export.export import export_detector

        write_photos(folder, 20, first_seed=100)
        torch.manual_seed(0)
        detector = MdmfModel(tiny_recipe)
        torch.nn.init.trunc_normal_(detector.backbone.pos_embed, std=0.02)
        reals = sorted(path for path in folder.iterdir() if path.is_file())
        # One runtime, so that "auto" chooses the same one every time.
        export_detector(detector, tiny_recipe, reals, folder / "tiny.mdmf", runtimes=["onnxruntime"])

    return once("tiny", make) / "tiny.mdmf"


@pytest.fixture(scope="session")
def tiny_quantised(
    once: Callable[[str, Callable[[Path], None]], Path], tiny_bundle: Path, tiny_recipe: Recipe
) -> ModelProto:
    """The tiny bundle's graph in int8, as NNCF makes it; never change it."""
    import onnx

    from mdmf_deploy.bundle.manifest import MODEL

    def make(folder: Path) -> None:
        from mdmf_deploy.tasks.export.int8 import quantise
        from mdmf_deploy.tasks.export.ladder import center_crops

        reals = sorted(path for path in tiny_bundle.parent.iterdir() if path.is_file())
        onnx.save(quantise(tiny_bundle / MODEL, center_crops(reals[:8], tiny_recipe.preprocessing)), folder / MODEL)

    return onnx.load(once("tiny-int8", make) / MODEL)


@pytest.fixture
def bundle_copy(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A private copy of the tiny bundle."""
    return Path(shutil.copytree(tiny_bundle, tmp_path / "copy.mdmf"))
