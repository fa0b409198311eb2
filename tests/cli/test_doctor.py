"""`mdmf doctor`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from helpers.libraries import needed
from helpers.mdmf import mdmf

from mdmf_deploy import runtime
from mdmf_deploy.bundle import bundle
from mdmf_deploy.errors import RuntimeUnavailable
from mdmf_deploy.hardware import gpu


def test_runtimes_and_versions_are_listed() -> None:
    import onnxruntime

    result = mdmf("doctor", "--json")
    printed = json.loads(result.stdout)
    assert result.exit_code == 0
    assert {"name": "onnxruntime", "version": onnxruntime.__version__, "missing": None, "enable": None} in printed[
        "runtimes"
    ]
    openvino = next(runtime for runtime in printed["runtimes"] if runtime["name"] == "openvino")
    assert openvino["enable"] == (openvino["missing"] and "pip install 'mdmf-deploy[openvino]'")
    assert "-" not in (openvino["version"] or "")
    assert {"cpu", "export", "gpu", "openvino", "scale"} <= {extra["name"] for extra in printed["extras"]}
    assert printed["machine"]["cores"] >= 1
    assert f"ready {onnxruntime.__version__}" in mdmf("doctor").stdout


def test_exits_with_1_and_an_install_hint_if_nothing_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "ENGINES", {"imaginary": ("mdmf_deploy.runtime.imaginary", "X", "openvino")})
    result = mdmf("doctor")
    assert result.exit_code == 1
    assert result.stdout.startswith("This machine cannot run `mdmf detect` yet, because it has no runtime; run:")
    assert "no: No module named 'mdmf_deploy.runtime.imaginary'" in result.stdout
    assert "pip install 'mdmf-deploy[openvino]'" in result.stdout


def test_the_shipped_bundles_are_checked(tiny_bundle: Path, bundle_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle, "shipped", lambda name: tiny_bundle)
    found = json.loads(mdmf("doctor", "--json").stdout)["bundles"]
    facts = {
        "bundle_id": bundle.Bundle.open(tiny_bundle).bundle_id,
        "calibration_id": None,
        "calibrated": False,
        "runtimes": {"onnxruntime": "verified"},
        "refused": {},
        "problem": None,
    }
    assert found == [{"name": name, **facts} for name in ("dinov2s", "starter")]
    monkeypatch.undo()
    shipped = json.loads(mdmf("doctor", "--json").stdout)["bundles"]
    assert {one["name"]: one["calibration_id"] for one in shipped} == {
        name: bundle.Bundle.open(name).calibration_id for name in ("dinov2s", "starter")
    }
    (bundle_copy / "bank.safetensors").write_bytes(b"damaged")
    monkeypatch.setattr(bundle, "shipped", lambda name: bundle_copy)
    result = mdmf("doctor")
    assert result.exit_code == 0
    assert result.stdout.startswith("The bundle dinov2s in the package is damaged; ")
    assert "bank.safetensors: has 7 bytes, the manifest says" in " ".join(result.stdout.split())


def test_it_opens_with_what_this_machine_can_do(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle, "shipped", lambda name: tiny_bundle)
    monkeypatch.setattr(gpu, "probe", raising("no GPU: there is no driver; install it"))
    monkeypatch.setattr(runtime, "ENGINES", {"onnxruntime": runtime.ENGINES["onnxruntime"]})
    expected = (
        "This machine can run `mdmf detect`. For dinov2s it takes onnxruntime (verified). "
        "No GPU can be used: there is no driver."
    )
    opening, _, rest = mdmf("doctor").stdout.partition("\n\n")
    assert " ".join(opening.split()) == expected
    assert " ".join(json.loads(mdmf("doctor", "--json").stdout)["summary"]) == expected
    assert max(map(len, [*opening.splitlines(), *rest.splitlines()])) <= 80


@pytest.mark.parametrize("saturates", [True, False])
def test_it_names_the_runtime_that_auto_takes(saturates: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenVINO works everywhere, but refuses the int8 of the bundles in the package where its sums overflow."""
    needed("mdmf_deploy.runtime.ov")
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setattr("mdmf_deploy.hardware.host.this_cpu", lambda: ("", () if saturates else ("avx_vnni",)))
    report = json.loads(mdmf("doctor", "--json").stdout)
    for found in report["bundles"]:
        engine = runtime.open_engine("auto", bundle.Bundle.open(found["name"]))
        engine.close()
        assert next(iter(found["runtimes"])) == engine.name == ("onnxruntime" if saturates else "openvino")
        assert ("openvino" in found["refused"]) is saturates
    assert ("It cannot take openvino: its int8 sums overflow" in " ".join(report["summary"])) is saturates


def test_a_runtime_that_is_not_verified_is_no_promise(bundle_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = bundle.Bundle.open(bundle_copy)
    manifest = msgspec.structs.replace(opened.manifest, verification=())
    bundle.write_bundle(bundle_copy, manifest, opened.files())
    monkeypatch.setattr(bundle, "shipped", lambda name: bundle_copy)
    monkeypatch.setattr(runtime, "ENGINES", {"onnxruntime": runtime.ENGINES["onnxruntime"]})
    first = "This machine runs onnxruntime, none verified for dinov2s; run `mdmf verify`."
    assert json.loads(mdmf("doctor", "--json").stdout)["summary"][0] == first


def raising(text: str) -> Callable[[], None]:
    def probe() -> None:
        raise RuntimeUnavailable(text)

    return probe
