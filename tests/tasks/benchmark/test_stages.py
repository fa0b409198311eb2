"""The table of stages, and the conclusions it draws from its rounds."""

from __future__ import annotations

from itertools import cycle
from pathlib import Path

import pytest
from helpers.crop_plans import planned

from mdmf_deploy.bundle.recipe import Preprocessing
from mdmf_deploy.detection.feed import Prepared
from mdmf_deploy.tasks.benchmark import samples, stages
from mdmf_deploy.tasks.benchmark.results import Settings
from mdmf_deploy.tasks.benchmark.rounds import RealClock
from mdmf_deploy.tasks.benchmark.stages import END_TO_END, NAMES, Cost, table
from mdmf_deploy.tasks.benchmark.subjects import opened

MS = {"read": 0.5, "decode": 8.0, "crop": 0.5, "engine": 10.0, "reduction": 1.0, "write": 0.0}


def rounds(end_to_end: float, cores: float = 2.0, **changes: float) -> list[dict[str, Cost]]:
    costs = {name: Cost(ms, ms) for name, ms in (MS | changes).items()}
    return [costs | {END_TO_END: Cost(end_to_end, cores * end_to_end)}] * 3


def test_the_sum_is_compared_with_end_to_end() -> None:
    found = table("0.5 MP", 24, 8, rounds(16.0, cores=1.25), lanes=2)
    assert [stage.name for stage in found.stages] == list(NAMES)
    assert found.total == pytest.approx(20)
    assert found.explained == pytest.approx(20 / 16)
    assert found.explained_cpu == pytest.approx(1)
    assert found.end_to_end.cores == pytest.approx(1.25)


def test_cpu_time_counts_every_core_a_stage_took() -> None:
    both = [costs | {"engine": Cost(10.0, 20.0)} for costs in rounds(16.0, cores=1.875)]
    assert table("", 24, 8, both, lanes=2).explained_cpu == pytest.approx(1)


def test_the_limit_is_the_threads_that_need_longest() -> None:
    found = table("", 24, 8, rounds(12.0), lanes=2)
    assert (found.limit, found.limit_share) == ("engine", pytest.approx(10 / 12))
    # 30 ms of decoding in two threads, which also read and crop for 1 ms, need 15.5 ms an image.
    found = table("", 24, 8, rounds(18.0, decode=30.0), lanes=2)
    assert (found.limit, found.limit_share) == ("decoding", pytest.approx(15.5 / 18))
    assert table("", 24, 8, rounds(18.0, decode=18.0), lanes=2).limit == "engine"
    # None of three stages takes as long as the engine, but they take turns.
    assert table("", 24, 8, rounds(18.0, read=6.0, crop=7.0), lanes=2).limit == "decoding"
    found = table("", 24, 8, rounds(18.0, reduction=6.0, write=5.0), lanes=8)
    assert (found.limit, found.limit_share) == ("reduction + write", pytest.approx(11 / 18))


def test_figures_are_medians_of_the_rounds_and_cores_are_of_all_time() -> None:
    calm, stalled = rounds(16.0), rounds(16.0)
    calm[1] = calm[1] | {"engine": Cost(100.0, 10.0)}
    found = table("", 24, 8, [*calm[:2], stalled[0]], lanes=2)
    engine = next(stage for stage in found.stages if stage.name == "engine")
    assert engine.ms.median == pytest.approx(10)
    assert engine.cores == pytest.approx(30 / 120)


def test_a_clock_that_stands_still_causes_no_division_by_zero() -> None:
    nothing = [dict.fromkeys((*NAMES, END_TO_END), Cost(0.0, 0.0))] * 2
    found = table("", 24, 8, nothing, lanes=2)
    assert (found.explained, found.explained_cpu, found.limit_share) == (0, 0, 0)


def test_stages_are_measured_on_the_same_images_that_are_streamed(
    tiny_bundle: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared, crops = [], set()
    prepare = stages.prepare

    def recorded(n: int, path: Path, preprocessing: Preprocessing, count: int, *more: object) -> Prepared:
        prepared.append(path)
        crops.add(count)
        return prepare(n, path, preprocessing, count, *more)  # type: ignore[arg-type]

    monkeypatch.setattr(stages, "prepare", recorded)
    bundle = planned(tiny_bundle, 2, tmp_path / "planned.mdmf").path
    sample = samples.given(sorted(photos.iterdir())[:3])
    settings = Settings(batch_size=1, seconds=1000.0, cv_limit=1e9)
    with opened([str(bundle)], ["onnxruntime"], [], settings, sample.paths, tmp_path) as subjects:
        (found,) = stages.measure(subjects, sample, settings, RealClock(), pace=0.001)
    streamed = [path for _, path in zip(range(16), cycle(sample.paths), strict=False)]
    assert found.count == 16
    assert prepared == streamed[:2] + 5 * streamed
    assert crops == {2}
    assert all(stage.ms.median > 0 for stage in found.stages)


def test_end_to_end_writes_each_row_as_it_comes(
    tiny_bundle: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    settings = Settings(batch_size=1, seconds=0.0035)
    sample = samples.given(sorted(photos.iterdir())[:3])
    with opened([str(tiny_bundle)], ["onnxruntime"], [], settings, [], tmp_path) as (subject,):
        stream = subject.detector.stream
        monkeypatch.setattr(
            subject.detector, "stream", lambda paths: (order.append("row") or row for row in stream(paths))
        )
        monkeypatch.setattr(stages.JsonlWriter, "write", lambda self, row: order.append("written"))
        stages.measure([subject], sample, settings, RealClock(), pace=0.001)
    # After a warm-up of two images come rounds of three, which end to end and then alone write every row.
    rounds = order[6:]
    assert len(rounds) >= 18
    assert rounds == (["row", "written"] * 3 + ["written"] * 3) * (len(rounds) // 9)
