"""Build profiles: the batches an engine is built for, and the cost of building it (engines/profiles/*.toml)."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import msgspec

from mdmf_deploy.errors import ProfileError
from mdmf_deploy.files import room

DEFAULT = "default"


class BatchRange(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The batch sizes an engine runs, in images: any from min to max. It is fastest at opt."""

    min: int = 1
    opt: int
    max: int

    def __post_init__(self) -> None:
        if not 1 <= self.min <= self.opt <= self.max:
            raise ValueError(f"expected 1 <= min <= opt <= max, got {self.min}, {self.opt}, {self.max}")


class Profile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One build profile.

    summary: one line on what it is for.
    batch: the batch sizes.
    workspace_mib: the most GPU memory that one layer may use for itself, in MiB.
    level: TensorRT's optimisation level, 0 to 5. A higher one searches longer. TensorRT's own default is 3.
    name: the file's name without .toml.
    """

    summary: str
    batch: BatchRange
    workspace_mib: int
    level: int = 3
    name: str = ""

    def __post_init__(self) -> None:
        if self.workspace_mib < 1 or not 0 <= self.level <= 5:
            raise ValueError("expected workspace_mib from 1 and level from 0 to 5")

    @property
    def key(self) -> dict[str, Any]:
        """The part of the profile that changes an engine: all but its name and summary."""
        return {field: part for field, part in msgspec.to_builtins(self).items() if field not in ("name", "summary")}


def profile_names() -> list[str]:
    """Return the names of the profiles in the package, sorted."""
    return sorted(path.stem for path in (room("engines") / "profiles").glob("*.toml"))


def load_profile(name_or_path: str | Path = DEFAULT) -> Profile:
    """Read a profile by its name ("default") or from a TOML file.

    Raises ProfileError naming the file, the place in it and what was expected there.
    """
    path = Path(name_or_path)
    if path.suffix != ".toml":
        path = room("engines") / "profiles" / f"{name_or_path}.toml"
        if not path.is_file():
            known = ", ".join(profile_names())
            raise ProfileError(
                f"profile {str(name_or_path)!r} is not known; choose one of {known}, or give a .toml file"
            )
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ProfileError(f"profile {path}: {error.strerror}; give the path of a readable .toml file") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ProfileError(f"profile {path} is not valid TOML: {error}") from error
    try:
        return msgspec.convert(table | {"name": path.stem}, Profile)
    except msgspec.ValidationError as error:
        raise ProfileError(f"profile {path}: {error}") from error
