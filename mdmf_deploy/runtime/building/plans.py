"""Plans on disk: each beside a card that says what it is; one that does not match its card or its key is not loaded."""

from __future__ import annotations

import hashlib
import platform
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from mdmf_deploy.files import cache_folder, write_to_cache
from mdmf_deploy.runtime.building.profiles import Profile

_KIND = "engines"


class Tensor(msgspec.Struct, frozen=True, kw_only=True):
    """An input or output.  shape: -1 for the batch.  type: as the library names it, "FLOAT" for float32."""

    name: str
    shape: tuple[int, ...]
    type: str


class PlanCard(msgspec.Struct, frozen=True, kw_only=True):
    """The JSON beside a plan.

    sha256, size: of the plan.  inputs, outputs: of the network.  layers, fused_attention: of the engine, how many
    in all, and how many are whole attention blocks in one kernel; None where the builder did not tell.
    """

    key: EngineKey
    profile: str
    sha256: str
    size: int
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    layers: int | None
    fused_attention: int | None
    build_seconds: float


class Plan(NamedTuple):
    """A plan that has matched its card and key.  data: what TensorRT calls a serialised engine."""

    path: Path
    data: bytes
    card: PlanCard


def plan_path(key: EngineKey) -> Path:
    """Where a plan of this key lies, or would: <library>-<model>-<key>.plan in the cache folder."""
    return cache_folder(_KIND) / f"{_stem(key)}-{key.digest[:24]}.plan"


def timing_path(key: EngineKey) -> Path:
    """Where the builder's timings lie: they hold for every model on this GPU, with this library and these flags."""
    parts = (key.library, key.version, key.compute_capability, key.gpu, key.platform, *key.flags)
    return cache_folder(_KIND) / f"timing-{hashlib.sha256(repr(parts).encode()).hexdigest()[:24]}.cache"


def layers_path(plan: Path) -> Path:
    """Where the engine inspector's JSON lies."""
    return plan.with_suffix(".layers.json")


def find(key: EngineKey) -> Plan | str:
    """The plan of this key, or why there is none to load."""
    path = plan_path(key)
    try:
        card = msgspec.json.decode(_card_path(path).read_bytes(), type=PlanCard)
        data = path.read_bytes()
    except FileNotFoundError:
        return _closest(key)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        return f"{path} cannot be read ({error})"
    if differences := key.differences(card.key):
        return f"{path} is another engine's: {', '.join(differences)}"
    if hashlib.sha256(data).hexdigest() != card.sha256:
        short = f"{len(data)} bytes, expected {card.size}" if len(data) != card.size else "its hash is not its card's"
        return f"{path} is damaged: {short}"
    return Plan(path, data, card)


def keep(card: PlanCard, data: bytes) -> Plan:
    """Write a plan and its card, the card last, each whole or not at all."""
    path = plan_path(card.key)
    # What was told of an earlier plan of this key does not hold for this one.
    layers_path(path).unlink(missing_ok=True)
    write_to_cache(path, data)
    _write_card(path, card)
    return Plan(path, data, card)


def amend(plan: Plan, card: PlanCard) -> Plan:
    """Write what has become known of a plan into its card."""
    _write_card(plan.path, card)
    return plan._replace(card=card)


def _closest(key: EngineKey) -> str:
    """That there is no plan, and what the plan of this model that differs least was made for."""
    apart: list[list[str]] = []
    for path in cache_folder(_KIND).glob(f"{_stem(key)}-*.json"):
        try:
            card = msgspec.json.decode(path.read_bytes(), type=PlanCard)
        except (OSError, msgspec.DecodeError, UnicodeDecodeError):
            continue
        if card.key != key:
            apart.append(key.differences(card.key))
    closest: list[str] = min(apart, key=len, default=[])
    return f"the engine at hand is another: {', '.join(closest)}" if closest else "there is no engine yet"


def _stem(key: EngineKey) -> str:
    return f"{key.library}-{key.model[:12]}"


def _card_path(plan: Path) -> Path:
    return plan.with_suffix(".json")


def _write_card(path: Path, card: PlanCard) -> None:
    write_to_cache(_card_path(path), msgspec.json.format(msgspec.json.encode(card), indent=2) + b"\n")


class EngineKey(msgspec.Struct, frozen=True, kw_only=True):
    """What a plan was, or is to be, built from and for.

    model: Manifest.model_sha256.  library, version: "tensorrt" or "tensorrt_rtx", and which.
    compute_capability: as "8.9".  gpu: the GPU's name, "" where the plan is for any GPU of its compute capability.
    profile: what counts of it (batch, workspace_mib, level).  flags: how the builder was told to build.
    platform: operating system and processor, as "Linux x86_64".
    """

    model: str
    library: str
    version: str
    compute_capability: str
    gpu: str
    profile: dict[str, Any]
    flags: tuple[str, ...]
    platform: str

    @property
    def digest(self) -> str:
        """SHA-256, hex, over the canonical JSON of all of it."""
        return hashlib.sha256(msgspec.json.encode(self, order="sorted")).hexdigest()

    def differences(self, other: EngineKey) -> list[str]:
        """What another plan has that this one has not, in words; none for the same key."""
        mine, theirs = msgspec.to_builtins(self), msgspec.to_builtins(other)
        return [
            f"{name} {theirs[name] or 'none'} in place of {mine[name]}" for name in mine if mine[name] != theirs[name]
        ]


def profile_key(profile: Profile) -> dict[str, Any]:
    """Of a profile, what makes engines differ: all but its name and its summary."""
    return {name: part for name, part in msgspec.to_builtins(profile).items() if name not in ("name", "summary")}


def this_platform() -> str:
    return f"{platform.system()} {platform.machine()}"
