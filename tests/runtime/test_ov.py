"""OpenVINO: its agreement with ONNX Runtime, what it refuses, and what it leaves behind in a process."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import msgspec
import numpy as np
import pytest
from helpers import handmade
from helpers.libraries import needed

from mdmf_deploy.bundle.bundle import Bundle
from mdmf_deploy.bundle.recipe import Precision
from mdmf_deploy.errors import RuntimeUnavailable
from mdmf_deploy.runtime import open_engine

ov = needed("mdmf_deploy.runtime.ov")

INTERRUPTED = """
import gc, os, signal, sys, threading, time
from mdmf_deploy.bundle.bundle import Bundle
from mdmf_deploy.runtime.ov import OpenVinoEngine

signal.signal(signal.SIGINT, signal.default_int_handler)
engines = [OpenVinoEngine(Bundle.open(sys.argv[1]))]

def free():
    engines.pop().close()
    gc.collect()

thread = threading.Thread(target=free)
thread.start()
thread.join()
try:
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(10)
except KeyboardInterrupt:
    print("interrupted")
"""


def test_it_agrees_with_onnxruntime_prints_nothing_and_sends_nothing(
    tiny_bundle: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    bundle = Bundle.open(tiny_bundle)
    images = np.random.default_rng(0).standard_normal((32, 3, 56, 56)).astype(np.float32)
    ours, theirs = (open_engine(name, bundle)(images) for name in ("openvino", "onnxruntime"))
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    assert capfd.readouterr() == ("", "")
    code = (
        "import sys; import mdmf_deploy.runtime.ov; print(sorted(m for m in sys.modules if m == 'openvino_telemetry'))"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout == "[]\n"


def test_running_in_another_precision_is_an_error(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
def test_int8_is_refused_where_it_would_saturate_and_auto_goes_on(
    architecture: str,
    features: tuple[str, ...],
    precision: Precision,
    refused: bool,
    tiny_bundle: Path,
    monkeypatch: pytest.MonkeyPatch,
    messages: Callable[[], str],
) -> None:
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
    line = messages()
    assert "\n" not in line
    assert ("without VNNI" in line) is refused


@pytest.mark.skipif(os.name != "posix", reason="needs SIGINT")
def test_an_interrupt_after_another_thread_freed_the_engine_is_only_an_interrupt(tiny_bundle: Path) -> None:
    command = [sys.executable, "-c", INTERRUPTED, str(tiny_bundle)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "interrupted\n", "")
