"""The key of a plan follows everything that it depends on."""

from __future__ import annotations

import platform
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import handmade
import msgspec
import pytest

from mdmf_deploy.building import key_for
from mdmf_deploy.building.flavours import RTX, TENSORRT, Flavour
from mdmf_deploy.building.keys import EngineKey
from mdmf_deploy.building.profiles import load_profile
from mdmf_deploy.bundle.bundle import Bundle
from mdmf_deploy.bundle.manifest import MODEL, MODEL_DATA, FileEntry


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
    return key_for(flavour=flavour, **given | changes)


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
def test_what_a_plan_depends_on_changes_its_key(change: dict[str, Any], part: str) -> None:
    assert key(**change).digest != key().digest
    (difference,) = key(**change).differences(key())
    assert difference.startswith(f"{part} ")


def test_so_do_the_library_and_the_platform(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = key(), key(RTX)
    assert ours.library != theirs.library
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    assert key().differences(ours) == [f"platform {ours.platform} in place of {key().platform}"]


def test_a_portable_plan_is_for_any_gpu_of_its_compute_capability() -> None:
    assert key(RTX).digest == key(RTX, gpu="NVIDIA GeForce RTX 4090").digest
    assert key(RTX).digest != key(RTX, capability=(12, 0)).digest
