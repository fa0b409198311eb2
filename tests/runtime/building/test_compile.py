"""The builder with TensorRT-RTX, on the tiny model: its results, progress, failures and interruption."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers.libraries import needed

from mdmf_deploy.bundle.bundle import Bundle
from mdmf_deploy.bundle.manifest import MODEL
from mdmf_deploy.errors import EngineError, UsageError
from mdmf_deploy.runtime.building.compile import count_fused_attention, new_log, new_monitor
from mdmf_deploy.runtime.building.flavours import RTX, allows_tf32, builder_flags, parse_capability, set_flags
from mdmf_deploy.runtime.building.obtain import layer_names, obtain
from mdmf_deploy.runtime.building.plans import BuildRequest
from mdmf_deploy.runtime.building.profiles import BatchRange, Profile

library = needed("tensorrt_rtx")

SMALL = Profile(summary="For tests.", batch=BatchRange(opt=2, max=4), workspace_mib=64, name="small")


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Keep the plans of this module: a build takes seconds."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("MDMF_CACHE", str(folder))
        yield folder


def requested(bundle: Path, capability: tuple[int, int] = (8, 9), gpu: str = "") -> BuildRequest:
    return BuildRequest(Bundle.open(bundle), RTX, library, SMALL, capability, gpu)


class Bars:
    """The part of rich.progress.Progress that a monitor uses."""

    def __init__(self, interrupt_at: int | None = None) -> None:
        self.steps, self.open, self.seen = 0, {}, []
        self._interrupt_at = interrupt_at

    def add_task(self, name: str, total: int | None) -> int:
        self.seen.append(name.strip())
        self.open[len(self.seen)] = total
        return len(self.seen)

    def update(self, task: int, completed: int) -> None:
        assert 0 < completed <= self.open[task]
        self.steps += 1
        if self.steps == self._interrupt_at:
            raise KeyboardInterrupt

    def remove_task(self, task: int) -> None:
        del self.open[task]


def shown_by(bars: Bars, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Let builds show their progress on these bars. Return the list to which each build adds its monitor."""
    monitors: list[Any] = []

    @contextmanager
    def show(library: Any, title: str) -> Any:
        monitors.append(new_monitor(library, bars))
        yield monitors[-1]

    monkeypatch.setattr("mdmf_deploy.runtime.building.compile.shown_progress", show)
    return monitors


def test_a_plan_is_built_once_and_without_a_terminal_nothing_is_shown(
    tiny_bundle: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False)
    lines: list[str] = []
    first = obtain(requested(tiny_bundle, gpu="NVIDIA GeForce RTX 4090"), lines.append)
    assert first.card.key.gpu == ""
    assert obtain(requested(tiny_bundle, gpu="NVIDIA RTX 4000 Ada"), lines.append) == first
    assert lines == ["rtx: there is no engine yet; building for compute capability 8.9, profile small"]
    assert capfd.readouterr() == ("", "")


def test_a_plan_is_built_again_when_asked_and_every_phase_of_the_builder_is_a_bar_while_it_lasts(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    obtain(requested(tiny_bundle), lambda text: None)
    bars, lines = Bars(), list[str]()
    shown_by(bars, monkeypatch)
    obtain(requested(tiny_bundle), lines.append, again=True)
    assert "asked to build again" in lines[0]
    assert "Building engine" in bars.seen
    assert bars.steps > 10
    assert bars.open == {}


def test_an_interrupted_build_for_another_gpu_ends_at_its_next_step_and_keeps_nothing(
    tiny_bundle: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    obtain(requested(tiny_bundle), lambda text: None)
    plans = sorted(cache.rglob("*.plan"))
    bars, lines = Bars(interrupt_at=3), list[str]()
    shown_by(bars, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        obtain(requested(tiny_bundle, (12, 0)), lines.append)
    assert "the closest engine differs: compute_capability 8.9 in place of 12.0" in lines[0]
    assert bars.steps < 10
    assert sorted(cache.rglob("*.plan")) == plans


def test_a_graph_that_does_not_parse_is_an_error_of_one_line(bundle_copy: Path) -> None:
    # A bundle that was not checked: one that was opened would be refused before the parser sees it.
    unchecked = Bundle(bundle_copy, Bundle.open(bundle_copy).manifest)
    # No test builds for this GPU to the end, so there is no plan yet.
    request = replace(requested(bundle_copy, (12, 0)), bundle=unchecked)
    (bundle_copy / MODEL).write_bytes(b"not a graph")
    with pytest.raises(
        EngineError, match=r"model\.onnx: tensorrt_rtx .* cannot parse it \(.*Failed to parse"
    ) as failure:
        obtain(request, lambda text: None)
    assert "\n" not in str(failure.value)


def test_a_build_that_fails_is_one_line_in_the_builders_own_words(tiny_bundle: Path) -> None:
    """RTX has no float32 products for Turing."""
    words = r"cannot build it \(.*FP32 GEMM is not supported.*\); free memory .* export the bundle in another precision"
    with pytest.raises(EngineError, match=words) as failure:
        obtain(requested(tiny_bundle, (7, 5)), lambda text: None)
    assert "\n" not in str(failure.value)


def test_an_unknown_compute_capability_names_the_known_ones(tiny_bundle: Path) -> None:
    with pytest.raises(UsageError, match=r"does not build for compute capability 9\.0; it knows 7\.5, .*tensorrt"):
        obtain(requested(tiny_bundle, (9, 0)), lambda text: None)


@pytest.mark.parametrize(("text", "pair"), [("8.9", (8, 9)), ("89", (8, 9)), ("12.0", (12, 0)), ("120", (12, 0))])
def test_compute_capabilities_are_parsed(text: str, pair: tuple[int, int]) -> None:
    assert parse_capability(text) == pair


@pytest.mark.parametrize("text", ["", "ada", "8.", ".9", "sm_89", "8"])
def test_another_text_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"give one as 8\.9"):
        parse_capability(text)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_the_key_names_the_flags_that_are_set(precision: str) -> None:
    config = library.Builder(new_log(library)).create_builder_config()
    set_flags(library, config, precision)
    named = builder_flags(RTX, library, precision)
    for flag in ("TF32", "DISTRIBUTIVE_INDEPENDENCE"):
        assert config.get_flag(getattr(library.BuilderFlag, flag)) is (flag in named)
    assert allows_tf32(precision) is (precision == "fp16")


def test_the_log_keeps_errors_and_layers() -> None:
    log = new_log(library)
    log.log(library.ILogger.ERROR, "one\nline")
    log.log(library.ILogger.WARNING, "not this")
    log.log(
        library.ILogger.VERBOSE,
        "Layers:\nName: __myl_Fc_myl0_0, LayerType: kgen, ...\nName: _gemm_mha_v2_myl0_1, LayerType: kgen",
    )
    assert log.problems == ["one line"]
    assert log.layers == ["__myl_Fc_myl0_0", "_gemm_mha_v2_myl0_1"]
    assert count_fused_attention(log.layers) == 1


def test_the_inspectors_report_may_lack_details_of_layers() -> None:
    assert layer_names('{"Layers": [{"Name": "a", "LayerType": "kgen"}, "b", {}], "Bindings": []}') == ["a", "b", ""]
    assert layer_names("{}") == []
