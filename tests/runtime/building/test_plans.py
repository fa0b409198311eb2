"""Keys, and plans on disk: none is taken for another."""

from __future__ import annotations

import hashlib
import platform
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from helpers import handmade

from mdmf_deploy.bundle.bundle import Bundle
from mdmf_deploy.bundle.manifest import MODEL, MODEL_DATA, FileEntry
from mdmf_deploy.runtime.building.flavours import RTX, TENSORRT, Flavour
from mdmf_deploy.runtime.building.plans import (
    BuildRequest,
    EngineKey,
    Plan,
    PlanCard,
    find,
    keep,
    layers_path,
    plan_path,
    timing_path,
)
from mdmf_deploy.runtime.building.profiles import load_profile

KEY = EngineKey(
    model="a" * 64,
    library="tensorrt",
    version="11.4.0.106",
    compute_capability="8.9",
    gpu="NVIDIA GeForce RTX 4090",
    profile=load_profile().key,
    flags=("DISTRIBUTIVE_INDEPENDENCE",),
    platform="Linux x86_64",
)
# Another value of each field.
OTHERS = {
    "model": "b" * 64,
    "library": "tensorrt_rtx",
    "version": "10.16.1.11",
    "compute_capability": "9.0",
    "gpu": "NVIDIA H100 PCIe",
    "profile": load_profile("latency").key,
    "flags": ("TF32", "DISTRIBUTIVE_INDEPENDENCE"),
    "platform": "Linux aarch64",
}
DATA = bytes(range(256)) * 8


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MDMF_CACHE", str(tmp_path))


def card(key: EngineKey = KEY) -> PlanCard:
    return PlanCard(
        key=key,
        profile="default",
        sha256=hashlib.sha256(DATA).hexdigest(),
        size=len(DATA),
        inputs=(),
        outputs=(),
        layers=97,
        fused_attention=4,
        build_seconds=2.5,
    )


def test_the_keys_digest_never_changes() -> None:
    """Plans in users' caches are found by it."""
    profile = {"batch": {"min": 1, "opt": 8, "max": 32}, "workspace_mib": 2048, "level": 3}
    digest = "ac417500af655192f9f03eba05865eec9da001b168a0ed60b130f362b7f37bc4"
    assert msgspec.structs.replace(KEY, profile=profile).digest == digest


def test_a_plan_reads_back() -> None:
    kept = keep(card(), DATA)
    assert find(KEY) == kept
    assert isinstance(kept, Plan)


def test_the_tests_cover_every_field_of_the_key() -> None:
    assert OTHERS.keys() == set(EngineKey.__struct_fields__)


@pytest.mark.parametrize("part", OTHERS)
def test_a_plan_is_not_found_under_another_key(part: str) -> None:
    other = msgspec.structs.replace(KEY, **{part: OTHERS[part]})
    assert other.digest != KEY.digest
    keep(card(), DATA)
    assert isinstance(find(other), str)


@pytest.mark.parametrize("part", OTHERS)
def test_a_plan_under_a_name_that_is_not_its_own_is_refused(part: str) -> None:
    """This happens when the caches of two machines are copied together."""
    other = msgspec.structs.replace(KEY, **{part: OTHERS[part]})
    kept = keep(card(), DATA)
    for suffix in (".plan", ".json"):
        kept.path.with_suffix(suffix).rename(plan_path(other).with_suffix(suffix))
    reason = find(other)
    assert isinstance(reason, str)
    assert f"{part} {getattr(KEY, part)} in place of {OTHERS[part]}" in reason


@pytest.mark.parametrize(
    "damage",
    [DATA[:-1], b"", DATA[:100] + b"!" + DATA[101:], DATA + b"!"],
    ids=["cut short", "empty", "one byte changed", "too long"],
)
def test_a_damaged_plan_is_not_loaded(damage: bytes) -> None:
    kept = keep(card(), DATA)
    kept.path.write_bytes(damage)
    reason = find(KEY)
    assert isinstance(reason, str)
    assert f"{kept.path} is damaged" in reason


@pytest.mark.parametrize("text", [b"", b"{}", b"\xff", b'{"key": 1}'])
def test_a_damaged_card_is_reported(text: bytes) -> None:
    kept = keep(card(), DATA)
    kept.path.with_suffix(".json").write_bytes(text)
    reason = find(KEY)
    assert isinstance(reason, str)
    assert "cannot be read" in reason


def test_without_a_plan_the_closest_one_is_named() -> None:
    assert find(KEY) == "there is no engine yet"
    keep(card(msgspec.structs.replace(KEY, gpu="NVIDIA T4", compute_capability="7.5", version="10.13")), DATA)
    keep(card(msgspec.structs.replace(KEY, version="10.16.1.11")), DATA)
    assert find(KEY) == "the closest engine differs: version 10.16.1.11 in place of 11.4.0.106"


def test_a_new_plan_removes_the_report_on_the_old_one() -> None:
    kept = keep(card(), DATA)
    layers_path(kept.path).write_text("{}")
    keep(card(), DATA)
    assert not layers_path(kept.path).exists()


def test_timings_are_shared_by_models_and_profiles_alone() -> None:
    def shared(part: str) -> bool:
        return timing_path(msgspec.structs.replace(KEY, **{part: OTHERS[part]})) == timing_path(KEY)

    assert {part for part in OTHERS if shared(part)} == {"model", "profile"}


def bundle(precision: str = "fp32", **hashes: str) -> Bundle:
    files = {name: FileEntry(sha256=sha256, size=1) for name, sha256 in ({MODEL: "1" * 64} | hashes).items()}
    manifest = handmade.manifest(files=files)
    card = msgspec.structs.replace(manifest.model, precision=precision)
    return Bundle(Path("b.mdmf"), msgspec.structs.replace(manifest, model=card))


def key(flavour: Flavour = TENSORRT, **changes: Any) -> EngineKey:
    given: dict[str, Any] = {
        "bundle": bundle(),
        "library": SimpleNamespace(__version__="10.16.1.11"),
        "profile": load_profile(),
        "capability": (8, 9),
        "gpu": "NVIDIA L4",
    }
    return BuildRequest(flavour=flavour, **given | changes).key


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"bundle": bundle(**{MODEL: "2" * 64})}, "model"),
        ({"bundle": bundle(**{MODEL_DATA: "2" * 64})}, "model"),
        ({"bundle": bundle("fp16")}, "flags"),
        ({"library": SimpleNamespace(__version__="10.16.1.12")}, "version"),
        ({"profile": load_profile("latency")}, "profile"),
        ({"capability": (9, 0)}, "compute_capability"),
        ({"gpu": "NVIDIA GeForce RTX 4090"}, "gpu"),
    ],
)
def test_whatever_a_plan_depends_on_changes_its_key(change: dict[str, Any], part: str) -> None:
    assert key(**change).digest != key().digest
    (difference,) = key(**change).differences(key())
    assert difference.startswith(f"{part} ")


def test_the_library_and_the_platform_change_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = key(), key(RTX)
    assert ours.library != theirs.library
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    assert key().differences(ours) == [f"platform {ours.platform} in place of {key().platform}"]


def test_a_portable_plan_is_for_any_gpu_of_its_compute_capability() -> None:
    assert key(RTX).digest == key(RTX, gpu="NVIDIA GeForce RTX 4090").digest
    assert key(RTX).digest != key(RTX, capability=(12, 0)).digest
