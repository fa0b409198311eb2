"""The engine key: everything that a plan depends on.  A plan with another key is not this one, whatever its name."""

from __future__ import annotations

import hashlib
import platform
from typing import Any

import msgspec

from mdmf_deploy.building.profiles import Profile


class EngineKey(msgspec.Struct, frozen=True, kw_only=True):
    """What a plan was, or is to be, built from and for.

    model: mdmf_deploy.bundle.manifest.Manifest.model_sha256.  library, version: "tensorrt" or "tensorrt_rtx", and which.
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
