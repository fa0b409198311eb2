"""Cold start and memory come from processes of their own."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from fakes.fake_time import FakeClock, FakeDetector, subject

from mdmf_deploy.errors import RuntimeUnavailable
from mdmf_deploy.tasks.benchmark import child
from mdmf_deploy.tasks.benchmark import cold_start as starting
from mdmf_deploy.tasks.benchmark.results import Settings

SETTINGS = Settings(batch_size=4, cold_starts=1)


def opened(bundle: Path) -> FakeDetector:
    detector = FakeDetector(FakeClock(), 0.0)
    detector.bundle = SimpleNamespace(path=bundle)
    return detector


def test_a_fresh_process_tells_its_times_and_its_memory(tiny_bundle: Path, photos: Path) -> None:
    start = starting.measure(subject(opened(tiny_bundle), "onnxruntime fp32"), sorted(photos.iterdir()), SETTINGS)
    assert start.peak_images == 25  # six batches of 4, more than are ever in hand, after the first row
    assert start.process.runs == 1
    assert 0 < start.importing + start.opening + start.first_row < start.process.median
    assert start.peak_mib is None or start.peak_mib > 20


def test_memory_is_of_that_process_alone(tiny_bundle: Path, photos: Path) -> None:
    # What ru_maxrss would say of a child: at least what its parent held when it was started.
    held = bytearray(400 * 2**20)
    held[:: 2**12] = b"x" * len(held[:: 2**12])
    start = starting.measure(subject(opened(tiny_bundle), "onnxruntime fp32"), sorted(photos.iterdir()), SETTINGS)
    assert start.peak_mib is None or start.peak_mib < 350
    assert (child.peak_kib() or 10**9) > 400 * 1024


def test_a_process_that_fails_says_why(tiny_bundle: Path, photos: Path) -> None:
    with pytest.raises(RuntimeUnavailable, match=r"abacus fp32 does not run in a process of its own: .*abacus"):
        starting.measure(subject(opened(tiny_bundle), "abacus fp32"), sorted(photos.iterdir()), SETTINGS)
