"""The contract of mdmf_deploy.runtime.Engine, held by every implementation."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import msgspec
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from helpers import handmade
from helpers.libraries import needed

from mdmf_deploy import runtime
from mdmf_deploy.bundle.bundle import Bundle
from mdmf_deploy.bundle.manifest import MODEL
from mdmf_deploy.bundle.recipe import Precision, Recipe
from mdmf_deploy.errors import BundleError, RuntimeUnavailable
from mdmf_deploy.hardware.host import saturates_int8
from mdmf_deploy.model.engine import TorchEngine
from mdmf_deploy.model.pfs import MdmfModel
from mdmf_deploy.runtime import ENGINES, ON_GPU, Engine, open_engine, ort, preference
from mdmf_deploy.runtime.ort import OrtEngine
from mdmf_deploy.tasks.export.int8 import Restorable
from mdmf_deploy.tasks.verify import environment

REFERENCE = "pytorch"


@pytest.fixture(scope="module", params=[*ENGINES, REFERENCE])
def engine(request: pytest.FixtureRequest, tiny_bundle: Path, tiny_recipe: Recipe) -> Iterator[Engine]:
    if request.param == REFERENCE:
        torch.manual_seed(0)
        yield TorchEngine(MdmfModel(tiny_recipe))
        return
    try:
        opened = open_engine(request.param, Bundle.open(tiny_bundle))
    except RuntimeUnavailable as error:
        pytest.skip(str(error))
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((32, 3, 56, 56)).astype(np.float32)


def test_it_gives_float32_signatures_and_names_itself(engine: Engine, images: np.ndarray) -> None:
    signatures = engine(images[:3])
    assert signatures.shape == (3, 4, 8)
    assert signatures.dtype == np.float32
    assert engine.name in (*ENGINES, REFERENCE)
    assert engine.precision == "fp32"


@pytest.mark.parametrize("batch", [1, 7, 8])
def test_a_signature_does_not_depend_on_its_batch(engine: Engine, images: np.ndarray, batch: int) -> None:
    whole = engine(images)
    parts = np.concatenate([engine(images[start : start + batch]) for start in range(0, 32, batch)])
    np.testing.assert_array_equal(parts, whole)


def test_a_signature_does_not_depend_on_its_place(engine: Engine, images: np.ndarray) -> None:
    order = np.random.default_rng(1).permutation(32)
    np.testing.assert_array_equal(engine(images[order]), engine(images)[order])


@pytest.fixture(scope="module")
def int8_bundle(tiny_bundle: Path, tiny_quantised: onnx.ModelProto, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The tiny bundle's model in int8, but for its first layer; only for engines to run."""
    graphs = Restorable(tiny_bundle / MODEL, tiny_quantised, tmp_path_factory.mktemp("int8"))
    return Bundle(graphs.variant(["patch_embed.proj"], MODEL).parent, Bundle.open(tiny_bundle).manifest)


@pytest.mark.parametrize("name", list(ENGINES))
def test_int8_signatures_depend_on_neither_batch_nor_threads(
    name: str, int8_bundle: Bundle, images: np.ndarray
) -> None:
    # Its weights lie in a file beside the graph, too.
    try:
        engines = [open_engine(name, int8_bundle, threads) for threads in (1, 2)]
    except RuntimeUnavailable as error:
        pytest.skip(str(error))
    whole = engines[0](images)
    for engine in engines:
        for batch in (1, 7, 8, 32):
            parts = [engine(images[start : start + batch]) for start in range(0, 32, batch)]
            np.testing.assert_array_equal(np.concatenate(parts), whole)
        engine.close()


@pytest.mark.parametrize("saturates", [False, True])
def test_onnxruntime_takes_exact_int8_products_only_where_it_must(
    saturates: bool, int8_bundle: Bundle, images: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[onnxruntime.SessionOptions] = []
    session = onnxruntime.InferenceSession
    monkeypatch.setattr(
        onnxruntime,
        "InferenceSession",
        lambda path, options, providers: opened.append(options) or session(path, options, providers=providers),
    )
    exact = not saturates_int8()
    usual = OrtEngine(int8_bundle, 1)(images)
    monkeypatch.setattr(ort, "saturates_int8", lambda: saturates)
    extracted = OrtEngine(int8_bundle, 1)(images)
    with nullcontext() if saturates else pytest.raises(RuntimeError, match="does not have"):
        assert opened[-1].get_session_config_entry("session.x64quantprecision") == "1"
    # The same products by another kernel.
    if exact or saturates:
        np.testing.assert_array_equal(extracted, usual)


def test_openvino_agrees_with_onnxruntime_says_nothing_and_sends_nothing(
    tiny_bundle: Path, images: np.ndarray, capfd: pytest.CaptureFixture[str]
) -> None:
    needed("mdmf_deploy.runtime.ov")
    bundle = Bundle.open(tiny_bundle)
    ours, theirs = (open_engine(name, bundle)(images) for name in ("openvino", "onnxruntime"))
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    assert capfd.readouterr() == ("", "")
    code = (
        "import sys; import mdmf_deploy.runtime.ov; print(sorted(m for m in sys.modules if m == 'openvino_telemetry'))"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout == "[]\n"


def test_openvino_running_in_another_precision_is_an_error(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ov = needed("mdmf_deploy.runtime.ov")
    compile_model = ov.openvino.Core.compile_model
    monkeypatch.setattr(
        ov.openvino.Core,
        "compile_model",
        lambda core, model, device, asked: compile_model(
            core, model, device, {**asked, "INFERENCE_PRECISION_HINT": ov.openvino.Type.dynamic}
        ),
    )
    with pytest.raises(RuntimeUnavailable, match=r"asked for CPU in f32, got CPU in "):
        open_engine("openvino", Bundle.open(tiny_bundle))


@pytest.mark.parametrize(
    ("architecture", "features", "precision", "refused"),
    [
        ("x86_64", ("avx2", "avx512f"), "int8", True),
        ("x86_64", ("avx2", "avx512f"), "fp32", False),
        ("x86_64", ("avx2", "avx_vnni"), "int8", False),
        ("aarch64", ("asimd",), "int8", False),
    ],
)
def test_openvino_refuses_int8_where_it_would_saturate_and_auto_goes_on(
    architecture: str,
    features: tuple[str, ...],
    precision: Precision,
    refused: bool,
    tiny_bundle: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    needed("mdmf_deploy.runtime.ov")
    monkeypatch.setattr("platform.machine", lambda: architecture)
    monkeypatch.setattr("mdmf_deploy.hardware.host.this_cpu", lambda: ("", features))
    opened = Bundle.open(tiny_bundle)
    card = msgspec.structs.replace(opened.manifest.model, precision=precision)
    only = msgspec.structs.replace(handmade.record(True, "openvino"), precision=precision)
    bundle = Bundle(opened.path, msgspec.structs.replace(opened.manifest, model=card, verification=(only,)))
    with pytest.raises(RuntimeUnavailable, match=r"without VNNI.*onnxruntime.*fp32") if refused else nullcontext():
        open_engine("openvino", bundle).close()
    chosen = open_engine("auto", bundle)
    chosen.close()
    assert chosen.name == ("onnxruntime" if refused else "openvino")
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert ("without VNNI" in said) is refused


def test_the_caller_owns_the_result(engine: Engine, images: np.ndarray) -> None:
    first = engine(images[:2])
    kept = first.copy()
    engine(images[2:4])
    np.testing.assert_array_equal(first, kept)
    first += 1
    np.testing.assert_array_equal(engine(images[:2]), kept)


def test_images_are_left_as_they_were(engine: Engine, images: np.ndarray) -> None:
    given = images[:2].copy()
    given.flags.writeable = False
    engine(given)
    np.testing.assert_array_equal(given, images[:2])


@pytest.mark.parametrize("name", list(ENGINES))
def test_a_closed_engine_cannot_be_called(name: str, tiny_bundle: Path, images: np.ndarray) -> None:
    try:
        opened = open_engine(name, Bundle.open(tiny_bundle))
    except RuntimeUnavailable as error:
        pytest.skip(str(error))
    opened.close()
    with pytest.raises(AttributeError):
        opened(images[:1])


def test_an_unknown_runtime_names_the_known_ones(tiny_bundle: Path) -> None:
    with pytest.raises(RuntimeUnavailable, match="onnxruntime"):
        open_engine("onxruntime", Bundle.open(tiny_bundle))


def test_a_runtime_that_is_not_installed_says_how_to_get_it(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ENGINES, "absent", ("no_such_module", "Engine", "gpu"))
    with pytest.raises(RuntimeUnavailable, match=r"no_such_module; run: pip install 'mdmf-deploy\[gpu\]'"):
        open_engine("absent", Bundle.open(tiny_bundle))


def bundle_with(*speeds: tuple[str, bool, float | None] | tuple[str, bool, float | None, str]) -> Bundle:
    """A bundle with records: runtime, whether it passed, images a second."""
    found = [
        msgspec.structs.replace(
            handmade.record(passed, name),
            images_per_second=speed,
            # Versions differ between runtimes, and from one day to another.
            environment={"machine": "x86_64", "processor": "".join(machine), "python": str(place), name: "1.0"},
        )
        for place, (name, passed, speed, *machine) in enumerate(speeds)
    ]
    return Bundle(Path(), handmade.manifest(verification=tuple(found)))


@pytest.mark.parametrize(
    ("speeds", "first"),
    [
        ([("onnxruntime", True, 100.0), ("openvino", True, 200.0)], "openvino"),
        ([("onnxruntime", True, 200.0), ("openvino", True, 100.0)], "onnxruntime"),
        ([("onnxruntime", True, 100.0), ("openvino", False, 200.0)], "onnxruntime"),
        ([("openvino", True, 50.0)], "openvino"),
        ([("onnxruntime", True, None), ("openvino", True, None)], "onnxruntime"),
        # One figure compares nothing.
        ([("onnxruntime", True, None), ("openvino", True, 1.0)], "onnxruntime"),
        # The newest record decides, on speed as on coverage.
        ([("openvino", True, 300.0), ("onnxruntime", True, 200.0), ("openvino", True, 100.0)], "onnxruntime"),
        ([("openvino", True, 300.0), ("onnxruntime", True, 200.0), ("openvino", False, 300.0)], "onnxruntime"),
        # A fast machine's record of the slower runtime hides nothing, nor a slow one's of the faster.
        ([("onnxruntime", True, 100.0), ("openvino", True, 200.0), ("onnxruntime", True, 900.0, "new")], "openvino"),
        ([("onnxruntime", True, 200.0), ("openvino", True, 100.0), ("openvino", True, 900.0, "new")], "onnxruntime"),
        ([("onnxruntime", True, 100.0), ("openvino", True, 200.0), ("openvino", True, 10.0, "new")], "openvino"),
        # Measured on two machines, they have not been compared.
        ([("onnxruntime", True, 100.0), ("openvino", True, 900.0, "new")], "onnxruntime"),
        # Of two machines that compared them, the newest.
        (
            [
                ("openvino", True, 100.0, "new"),
                ("onnxruntime", True, 100.0),
                ("openvino", True, 200.0),
                ("onnxruntime", True, 900.0, "new"),
            ],
            "onnxruntime",
        ),
        ([], "onnxruntime"),
    ],
)
def test_auto_prefers_the_fastest_of_the_verified_on_one_machine(
    speeds: list[tuple[str, bool, float | None]], first: str
) -> None:
    order = preference(bundle_with(*speeds))
    assert next(iter(order)) == first
    assert set(order) == set(ENGINES) - ON_GPU
    covered = {name for name, _ in bundle_with(*speeds).covered}
    assert {name for name, why in order.items() if why.startswith("verified")} == covered


def test_auto_shows_only_figures_that_were_compared_and_not_as_this_machines() -> None:
    pair = [("onnxruntime", True, 100.0, "old"), ("openvino", True, 200.0, "old")]
    assert preference(bundle_with(*pair, ("onnxruntime", True, 900.0, "new"))) == {
        "openvino": "verified, 200 images/s where they were compared",
        "onnxruntime": "verified, 100 images/s where they were compared",
    }
    alone = bundle_with(("openvino", True, 900.0))
    assert preference(alone) == {"openvino": "verified", "onnxruntime": "not verified"}


def test_what_makes_machines_the_same_is_recorded() -> None:
    assert environment("onnxruntime").keys() >= set(runtime._MACHINE)


def test_auto_says_in_one_line_what_it_chose_and_why(tiny_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chosen = open_engine("auto", Bundle.open(tiny_bundle))
    assert chosen.name == "onnxruntime"
    said = capsys.readouterr().err
    assert said.startswith("mdmf: runtime onnxruntime (verified; ")
    assert "openvino: not verified" in said
    assert said.count("\n") == 1
    chosen.close()


def test_auto_passes_over_what_is_missing(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    absent = {"absent": ("no_such_module", "Engine", "gpu")}
    monkeypatch.setattr(runtime, "ENGINES", absent)
    with pytest.raises(RuntimeUnavailable, match="no runtime is installed"):
        open_engine("auto", Bundle.open(tiny_bundle))
    monkeypatch.setattr(runtime, "ENGINES", absent | {"onnxruntime": ENGINES["onnxruntime"]})
    bundle = Bundle.open(tiny_bundle)
    unverified = Bundle(bundle.path, msgspec.structs.replace(bundle.manifest, verification=()))
    open_engine("auto", unverified).close()
    said = capsys.readouterr().err
    assert said.startswith("mdmf: runtime onnxruntime (not verified; ")
    assert "no_such_module" in said


def test_a_graph_that_cannot_be_loaded_is_one_line(bundle_copy: Path) -> None:
    bundle = Bundle.open(bundle_copy)
    (bundle_copy / MODEL).write_bytes(b"not a graph")
    with pytest.raises(BundleError, match=r"model\.onnx: onnxruntime .* cannot load it") as failure:
        open_engine("onnxruntime", bundle)
    assert "\n" not in str(failure.value)
