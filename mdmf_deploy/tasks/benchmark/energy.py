"""Energy by RAPL (Intel's name; Linux shows AMD's counters in the same place), of whole processor packages."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

POWERCAP = Path("/sys/class/powercap")


@dataclass(frozen=True, slots=True)
class Reading:
    """package -> (counter, where it wraps around), both in microjoules."""

    packages: dict[str, tuple[int, int]]


def read(root: Path = POWERCAP) -> Reading | str:
    """The counters of all packages, or why there is none."""
    # A zone is intel-rapl:<n>; intel-rapl:<n>:<m> are parts of it, and "psys" is the whole board.
    zones = [zone for zone in sorted(root.glob("intel-rapl:*")) if zone.name.count(":") == 1]
    packages: dict[str, tuple[int, int]] = {}
    for zone in zones:
        try:
            if (zone / "name").read_text().strip() == "psys":
                continue
            counter = int((zone / "energy_uj").read_text())
            packages[zone.name] = (counter, int((zone / "max_energy_range_uj").read_text()))
        except PermissionError:
            return f"no permission to read {zone / 'energy_uj'}; run as root, or: sudo chmod a+r {zone / 'energy_uj'}"
        except (OSError, ValueError) as error:
            return f"{zone} cannot be read: {error}"
    return Reading(packages) if packages else f"no RAPL counter in {root} (virtual machines rarely show one)"


def joules(before: Reading, after: Reading) -> float:
    """Energy between two readings less than one turn of the counter apart (minutes, at full load)."""
    used = 0
    for name, (start, turn) in before.packages.items():
        end = after.packages[name][0]
        used += end - start if end >= start else end - start + turn
    return used / 1e6
