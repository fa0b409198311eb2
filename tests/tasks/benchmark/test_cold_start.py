"""Cold start and memory are measured in processes of their own."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from fakes.fake_time import FakeClock, FakeDetector, subject

from mdmf_deploy.errors import RuntimeUnavailable
from mdmf_deploy.tasks.benchmark import child, cold_start
from mdmf_deploy.tasks.benchmark.results import ColdStart, Settings


def measure(bundle: Path, photos: Path, name: str = "onnxruntime fp32") -> ColdStart:
    detector = FakeDetector(FakeClock(), 0.0)
    detector.bundle = SimpleNamespace(path=bundle)
    settings = Settings(batch_size=4, cold_starts=1)
    return cold_start.measure(subject(detector, name), sorted(photos.iterdir()), settings)


def test_memory_and_times_are_those_of_a_fresh_process(tiny_bundle: Path, photos: Path) -> None:
    # Linux's ru_maxrss of a child is at least what its parent held when it started the child.
    held = bytearray(400 * 2**20)
    held[:: 2**12] = b"x" * len(held[:: 2**12])
    start = measure(tiny_bundle, photos)
    assert (child.peak_kib() or 10**9) > 400 * 1024
    assert start.peak_mib is None or 20 < start.peak_mib < 350
    assert start.peak_images == 25  # six batches of 4, more than are ever in flight, after the first row
    assert start.process.runs == 1
    assert 0 < start.importing + start.opening + start.first_row < start.process.median


def test_a_process_that_fails_gives_its_reason(tiny_bundle: Path, photos: Path) -> None:
    with pytest.raises(RuntimeUnavailable, match=r"abacus fp32 does not run in a process of its own: .*abacus"):
        measure(tiny_bundle, photos, "abacus fp32")
