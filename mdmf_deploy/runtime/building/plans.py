"""Plans: the request for one, the key it is kept under, and its files in the cache.

A plan is a serialised engine. It lies beside a card, a JSON file that describes it. A plan that does not match its card
or its key is not loaded.
"""

from __future__ import annotations

import hashlib
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from mdmf_deploy.bundle.bundle import Bundle
from mdmf_deploy.errors import UsageError
from mdmf_deploy.files import CACHE_VARIABLE, cache_folder, failure, only_writer, write_to_cache
from mdmf_deploy.runtime.building.flavours import Flavour, builder_flags, dotted
from mdmf_deploy.runtime.building.profiles import Profile

_KIND = "engines"


class EngineKey(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that an engine depends on.

    model: Manifest.model_sha256.
    library, version: "tensorrt", "tensorrt_rtx" or "onnxruntime", and its version.
    compute_capability: like "8.9".
    gpu: the GPU's name, or "" if the engine fits every GPU of its compute capability.
    profile: Profile.key, with batch, workspace_mib and level.
    flags: the builder's flags.
    platform: operating system and processor, like "Linux x86_64".
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
        """SHA-256 of the key's canonical JSON, in hex."""
        return hashlib.sha256(msgspec.json.encode(self, order="sorted")).hexdigest()

    def differences(self, other: EngineKey) -> list[str]:
        """Describe each field in which another key differs. The list is empty for an equal key."""
        mine, theirs = msgspec.to_builtins(self), msgspec.to_builtins(other)
        return [
            f"{name} {theirs[name] or 'none'} in place of {mine[name]}" for name in mine if mine[name] != theirs[name]
        ]


@dataclass(frozen=True, slots=True)
class BuildRequest:
    """An engine to build or to find in the cache.

    bundle: the source of the graph and its precision.
    flavour, library: TensorRT or TensorRT-RTX, and its imported module.
    profile: the batches to build for.
    capability: the compute capability to build for, (major, minor).
    gpu: the name of the GPU to build on and for. Portable flavours ignore it.
    """

    bundle: Bundle
    flavour: Flavour
    library: Any
    profile: Profile
    capability: tuple[int, int]
    gpu: str = ""

    @property
    def precision(self) -> str:
        """The precision of the bundle's graph."""
        return self.bundle.manifest.model.precision

    @property
    def key(self) -> EngineKey:
        """The key of the engine."""
        return EngineKey(
            model=self.bundle.manifest.model_sha256,
            library=self.flavour.module,
            version=str(self.library.__version__),
            compute_capability=dotted(self.capability),
            gpu="" if self.flavour.portable else self.gpu,
            profile=self.profile.key,
            flags=builder_flags(self.flavour, self.library, self.precision),
            platform=this_platform(),
        )


class Tensor(msgspec.Struct, frozen=True, kw_only=True):
    """An input or output of an engine.

    shape: -1 stands for the batch.
    type: the library's name for it, like "FLOAT" for float32.
    """

    name: str
    shape: tuple[int, ...]
    type: str


class PlanCard(msgspec.Struct, frozen=True, kw_only=True):
    """The JSON beside a plan.

    profile: the profile's name.
    sha256, size: of the plan's bytes.
    inputs, outputs: of the network.
    layers: the number of layers in the engine, or None if the builder did not report it.
    fused_attention: how many of these layers are a whole attention block in one kernel, or None.
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
    """A plan that matches its card and its key. data: the serialised engine."""

    path: Path
    data: bytes
    card: PlanCard


def this_platform() -> str:
    """Return the operating system and processor, like "Linux x86_64"."""
    return f"{platform.system()} {platform.machine()}"


def plan_path(key: EngineKey) -> Path:
    """Return the path of this key's plan, existing or not: <library>-<model>-<key>.plan in the cache folder."""
    return cache_folder(_KIND) / f"{_stem(key)}-{key.digest[:24]}.plan"


def timing_path(key: EngineKey) -> Path:
    """Return the path of the builder's timings. They serve every model on this GPU, with this library and flags."""
    parts = (key.library, key.version, key.compute_capability, key.gpu, key.platform, *key.flags)
    return cache_folder(_KIND) / f"timing-{hashlib.sha256(repr(parts).encode()).hexdigest()[:24]}.cache"


def layers_path(plan: Path) -> Path:
    """Return the path of the engine inspector's JSON for a plan."""
    return plan.with_suffix(".layers.json")


def find(key: EngineKey) -> Plan | str:
    """Return the plan of this key, or the reason why there is none to load."""
    path = plan_path(key)
    try:
        card = msgspec.json.decode(_card_path(path).read_bytes(), type=PlanCard)
        data = path.read_bytes()
    except FileNotFoundError:
        return _closest(key)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        return f"{path} cannot be read ({error})"
    if differences := key.differences(card.key):
        return f"{path} belongs to another engine: {', '.join(differences)}"
    if hashlib.sha256(data).hexdigest() != card.sha256:
        short = f"{len(data)} bytes, expected {card.size}" if len(data) != card.size else "its hash is not its card's"
        return f"{path} is damaged: {short}"
    return Plan(path, data, card)


def keep(card: PlanCard, data: bytes) -> Plan:
    """Write a plan and then its card, each atomically. Another process that keeps the same engine waits.

    Raises UsageError if they cannot be written.
    """
    path = plan_path(card.key)
    try:
        # Without the lock, one process's plan might be left with the other's card.
        with only_writer(path, wait=True):
            # The inspector's JSON of an earlier plan does not describe this one.
            layers_path(path).unlink(missing_ok=True)
            write_to_cache(path, data)
            _write_card(path, card)
    except OSError as error:
        raise UsageError(failure(path, error, f"set {CACHE_VARIABLE} to another folder")) from error
    return Plan(path, data, card)


def amend(plan: Plan, card: PlanCard) -> Plan:
    """Replace a plan's card by one that knows more."""
    _write_card(plan.path, card)
    return plan._replace(card=card)


def _closest(key: EngineKey) -> str:
    """Report that there is no plan, and how the most similar plan of this model differs."""
    apart: list[list[str]] = []
    for path in cache_folder(_KIND).glob(f"{_stem(key)}-*.json"):
        try:
            card = msgspec.json.decode(path.read_bytes(), type=PlanCard)
        except (OSError, msgspec.DecodeError, UnicodeDecodeError):
            continue
        if card.key != key:
            apart.append(key.differences(card.key))
    closest: list[str] = min(apart, key=len, default=[])
    return f"the closest engine differs: {', '.join(closest)}" if closest else "there is no engine yet"


def _stem(key: EngineKey) -> str:
    return f"{key.library}-{key.model[:12]}"


def _card_path(plan: Path) -> Path:
    return plan.with_suffix(".json")


def _write_card(path: Path, card: PlanCard) -> None:
    write_to_cache(_card_path(path), msgspec.json.format(msgspec.json.encode(card), indent=2) + b"\n")
