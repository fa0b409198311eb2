"""What a figure depends on beside the bundle: the machine, the libraries, the day."""

from __future__ import annotations

import subprocess
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import msgspec

from mdmf_deploy.hardware.host import Machine, cores, look_at_machine, text_of

_LIBRARIES = ("numpy", "pillow", "onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt", "tensorrt-rtx", "cuda-core")
_GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")


class Environment(msgspec.Struct, frozen=True, kw_only=True):
    """date: UTC, ISO 8601.  commit: of the source tree the package runs from, None for an installed wheel.

    cores: worth using, by affinity and quota.  governor: of the cores' frequency, None where the system does not say.
    libraries: those installed that time or pixels depend on.
    """

    date: str
    version: str
    commit: str | None
    machine: Machine
    cores: int
    governor: str | None
    decoder: str
    libraries: dict[str, str]


def look_around() -> Environment:
    from mdmf_deploy import __version__
    from mdmf_deploy.images.decode import decoder_version

    return Environment(
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        version=__version__,
        commit=_commit(),
        machine=look_at_machine(),
        cores=cores(),
        governor=text_of(_GOVERNOR).strip() or None,
        decoder=decoder_version(),
        libraries=_libraries(),
    )


def _libraries() -> dict[str, str]:
    found = {}
    for name in _LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _commit() -> str | None:
    source = Path(__file__).resolve().parents[2]
    if not (source / ".git").exists():
        return None
    command = ["git", "-C", str(source), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
