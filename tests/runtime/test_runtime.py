"""The table of runtimes: opening one by name, the choice of "auto", and speeds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
from helpers import handmade

from mdmf_deploy import runtime
from mdmf_deploy.bundle.bundle import Bundle
from mdmf_deploy.errors import RuntimeUnavailable
from mdmf_deploy.runtime import ENGINES, MACHINE_FIELDS, ON_GPU, images_per_second, open_engine, preference
from mdmf_deploy.tasks.doctor import diagnose
from mdmf_deploy.tasks.verify import environment


def test_an_unknown_runtime_names_the_known_ones(tiny_bundle: Path) -> None:
    with pytest.raises(RuntimeUnavailable, match="onnxruntime"):
        open_engine("onxruntime", Bundle.open(tiny_bundle))


def test_a_runtime_that_is_not_installed_names_its_extra(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ENGINES, "absent", ("no_such_module", "Engine", "openvino"))
    with pytest.raises(RuntimeUnavailable, match=r"no_such_module; run: pip install 'mdmf-deploy\[openvino\]'"):
        open_engine("absent", Bundle.open(tiny_bundle))


def test_an_old_onnxruntime_is_refused(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to 1.24.0 it reads weights from any file that a graph names, and through links."""
    monkeypatch.setattr("onnxruntime.__version__", "1.24.0")
    old = "onnxruntime 1.24.0 is too old, expected 1.24.1 or newer"
    with pytest.raises(RuntimeUnavailable, match=rf"{old}; run: pip install 'mdmf-deploy\[cpu\]'"):
        open_engine("onnxruntime", Bundle.open(tiny_bundle))
    [here] = [one for one in diagnose().runtimes if one.name == "onnxruntime"]
    assert (here.version, here.missing, here.enable) == (None, old, "pip install 'mdmf-deploy[cpu]'")


def bundle_with(*speeds: tuple[str, bool, float | None] | tuple[str, bool, float | None, str]) -> Bundle:
    """Return a bundle with records: the runtime, whether it passed, its images per second, and the machine."""
    found = [
        msgspec.structs.replace(
            handmade.record(passed, name),
            images_per_second=speed,
            # The versions differ between runtimes and between days.
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
        # PyTorch takes seconds to start.
        ([("torch", True, 300.0), ("onnxruntime", True, 200.0), ("openvino", True, 100.0)], "onnxruntime"),
        ([("torch", True, 300.0), ("onnxruntime", False, 200.0)], "torch"),
        # One speed compares nothing.
        ([("onnxruntime", True, None), ("openvino", True, 1.0)], "onnxruntime"),
        # The newest record decides, on speed as on coverage.
        ([("openvino", True, 300.0), ("onnxruntime", True, 200.0), ("openvino", True, 100.0)], "onnxruntime"),
        ([("openvino", True, 300.0), ("onnxruntime", True, 200.0), ("openvino", False, 300.0)], "onnxruntime"),
        # Records of one runtime on a faster or slower machine change nothing.
        ([("onnxruntime", True, 100.0), ("openvino", True, 200.0), ("onnxruntime", True, 900.0, "new")], "openvino"),
        ([("onnxruntime", True, 200.0), ("openvino", True, 100.0), ("openvino", True, 900.0, "new")], "onnxruntime"),
        ([("onnxruntime", True, 100.0), ("openvino", True, 200.0), ("openvino", True, 10.0, "new")], "openvino"),
        # Measured on two machines, they have not been compared.
        ([("onnxruntime", True, 100.0), ("openvino", True, 900.0, "new")], "onnxruntime"),
        # If two machines compared them, the newest counts.
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
def test_auto_prefers_the_fastest_verified_runtime_of_one_machine(
    speeds: list[tuple[str, bool, float | None]], first: str
) -> None:
    order = preference(bundle_with(*speeds))
    assert next(iter(order)) == first
    assert set(order) == set(ENGINES) - ON_GPU
    covered = {name for name, _ in bundle_with(*speeds).covered}
    assert {name for name, why in order.items() if why.startswith("verified")} == covered


def test_auto_shows_only_speeds_that_were_compared() -> None:
    pair = [("onnxruntime", True, 100.0, "old"), ("openvino", True, 200.0, "old")]
    assert preference(bundle_with(*pair, ("onnxruntime", True, 900.0, "new"))) == {
        "openvino": "verified, 200 images/s where speeds were compared",
        "onnxruntime": "verified, 100 images/s where speeds were compared",
        "torch": "not verified",
    }
    alone = bundle_with(("openvino", True, 900.0))
    assert preference(alone) == {"openvino": "verified", "onnxruntime": "not verified", "torch": "not verified"}


def test_the_fields_that_identify_a_machine_are_recorded() -> None:
    assert environment("onnxruntime").keys() >= set(MACHINE_FIELDS)


def test_auto_reports_its_choice_and_the_reason_in_one_line(tiny_bundle: Path, messages: Callable[[], str]) -> None:
    chosen = open_engine("auto", Bundle.open(tiny_bundle))
    assert chosen.name == "onnxruntime"
    line = messages()
    assert line == "runtime onnxruntime (verified)"
    assert "\n" not in line
    chosen.close()


def test_auto_skips_runtimes_that_are_missing(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, messages: Callable[[], str]
) -> None:
    absent = {"absent": ("no_such_module", "Engine", "gpu")}
    monkeypatch.setattr(runtime, "ENGINES", absent)
    with pytest.raises(RuntimeUnavailable, match="no runtime is installed"):
        open_engine("auto", Bundle.open(tiny_bundle))
    monkeypatch.setattr(runtime, "ENGINES", absent | {"onnxruntime": ENGINES["onnxruntime"]})
    bundle = Bundle.open(tiny_bundle)
    unverified = Bundle(bundle.path, msgspec.structs.replace(bundle.manifest, verification=()))
    open_engine("auto", unverified).close()
    line = messages()
    assert line.startswith("runtime onnxruntime (not verified; ")
    assert "no_such_module" in line


class Slow:
    """An engine that advances a clock by `seconds` per call."""

    name, precision = "slow", "fp32"

    def __init__(self, clock: list[float], seconds: float) -> None:
        self.clock, self.seconds, self.shapes = clock, seconds, set()

    def __call__(self, images: np.ndarray) -> np.ndarray:
        self.clock[0] += self.seconds * (1 if self.shapes else 100)  # The first call compiles.
        self.shapes.add(images.shape)
        return images

    def close(self) -> None:
        pass


def test_speed_is_that_of_the_best_call_after_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])
    engines = [Slow(clock, 0.25), Slow(clock, 2.0)]
    assert images_per_second(engines, 56) == [32.0, 4.0]
    assert [engine.shapes for engine in engines] == [{(8, 3, 56, 56)}] * 2
