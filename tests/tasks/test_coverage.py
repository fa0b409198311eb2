"""A command verifies the runtimes it needs, no others, and never takes one that failed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
from fakes.failing_engines import BrokenEngine, ClosedEngine, CountedEngine, DriftingEngine, ForbiddenEngine, TwinEngine
from helpers.handmade import record

from mdmf_deploy.bundle.bundle import Bundle, write_bundle
from mdmf_deploy.errors import GateFailed
from mdmf_deploy.tasks.coverage import open_verified, verify_again

Table = Callable[..., None]


def with_records(path: Path, *records: object) -> Bundle:
    bundle = Bundle.open(path)
    return write_bundle(path, msgspec.structs.replace(bundle.manifest, verification=records), bundle.files())


@pytest.fixture
def unverified(bundle_copy: Path) -> Bundle:
    return with_records(bundle_copy)


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> Iterator[Table]:
    """Replace the table of runtimes, in this order, and check that all engines get closed."""

    def replace(**own: type) -> None:
        table = {name: (kind.__module__, kind.__name__, "cpu") for name, kind in own.items()}
        monkeypatch.setattr("mdmf_deploy.runtime.ENGINES", table)

    yield replace
    assert CountedEngine.open == []


def test_a_verified_runtime_is_opened_as_it_is(tiny_bundle: Path, engines: Table) -> None:
    engines(onnxruntime=CountedEngine, twin=ForbiddenEngine)
    lines: list[str] = []
    bundle = Bundle.open(tiny_bundle)
    engine, after = open_verified("auto", bundle, lines.append)
    engine.close()
    assert (engine.name, after, lines) == ("onnxruntime", bundle, [])


def test_auto_verifies_all_runtimes_that_work_on_the_cpu(unverified: Bundle, engines: Table) -> None:
    """Not those on a GPU, nor PyTorch. Both that pass get a speed, and the faster one is opened."""
    engines(
        drifting=DriftingEngine,
        closed=ClosedEngine,
        broken=BrokenEngine,
        onnxruntime=CountedEngine,
        twin=TwinEngine,
        tensorrt=ForbiddenEngine,
        torch=ForbiddenEngine,
    )
    lines: list[str] = []
    engine, after = open_verified("auto", unverified, lines.append)
    assert CountedEngine.open == [engine.name]
    engine.close()
    records = {one.runtime: one for one in after.manifest.verification}
    assert {name: one.passed for name, one in records.items()} == {"drifting": False, "onnxruntime": True, "twin": True}
    speeds = {name: one.images_per_second for name, one in records.items() if one.passed}
    assert engine.name == max(speeds, key=lambda name: speeds[name] or 0.0)
    assert records["drifting"].images_per_second is None
    assert after.covered == (("onnxruntime", "fp32"), ("twin", "fp32"))
    assert any(line.startswith("drifting fp32 failed: max_score_change") for line in lines)
    assert "broken: not verified, Exception from src/core.cpp:97: no memory" in lines
    assert Bundle.open(unverified.path).manifest.verification == ()


def test_a_runtime_asked_for_is_verified_alone(unverified: Bundle, engines: Table) -> None:
    engines(onnxruntime=ForbiddenEngine, twin=TwinEngine)
    engine, after = open_verified("twin", unverified, lambda line: None)
    engine.close()
    assert after.covered == (("twin", "fp32"),)


@pytest.mark.parametrize("asked", ["auto", "drifting"])
def test_a_gate_that_fails_names_its_figure(unverified: Bundle, engines: Table, asked: str) -> None:
    engines(drifting=DriftingEngine)
    with pytest.raises(GateFailed, match=r"on drifting fp32: max_score_change \S+ beyond 0\.1, .*; nothing is written"):
        open_verified(asked, unverified, lambda line: None)


def test_a_recorded_failure_is_not_measured_again(bundle_copy: Path, engines: Table) -> None:
    """It may have been found on many images, where the few probes pass."""
    engines(onnxruntime=CountedEngine, twin=TwinEngine)
    failed = with_records(bundle_copy, record(passed=False))
    lines: list[str] = []
    with pytest.raises(GateFailed, match=r"onnxruntime fp32: flipped_verdicts 0\.5 beyond 0\.01"):
        open_verified("onnxruntime", failed, lines.append)
    assert lines == []
    engine, after = open_verified("auto", failed, lines.append)
    engine.close()
    assert (engine.name, [one.runtime for one in after.manifest.verification]) == ("twin", ["onnxruntime", "twin"])


def test_runtimes_that_lost_their_verification_are_verified_again(bundle_copy: Path, engines: Table) -> None:
    engines(onnxruntime=CountedEngine, tensorrt=ForbiddenEngine, drifting=DriftingEngine)
    runtimes = ("onnxruntime", "tensorrt", "drifting", "gone")
    old = with_records(bundle_copy, *(record(runtime=name) for name in runtimes))
    new = with_records(bundle_copy)
    lines: list[str] = []
    after = verify_again(old, new, lines.append)
    assert after.covered == Bundle.open(bundle_copy).covered == (("onnxruntime", "fp32"),)
    for name in runtimes[1:]:
        assert f"{name} fp32 is no longer verified; run `mdmf verify {new.path} --runtime {name}`" in lines
