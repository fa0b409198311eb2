"""`mdmf detect --list-inputs`: the inputs of a run, and the files in folders that it skips."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from mdmf_deploy.cli.console import log, print_json, print_text
from mdmf_deploy.images.inputs import Inputs, uri

_SHOWN = 20


def print_inputs(inputs: Inputs, as_json: bool) -> None:
    """Print the inputs on stdout, one per line, and how many there are and are skipped, by suffix, on stderr.

    With as_json, print all of it as one JSON document on stdout.
    """
    suffixes = Counter(path.suffix.lower() for path in inputs.paths)
    print_names([uri(path) for path in inputs.paths], suffixes, inputs.others, as_json)


def print_names(names: Sequence[str], suffixes: Mapping[str, int], others: Mapping[str, int], as_json: bool) -> None:
    """Print the same for inputs by their uri and the numbers of their suffixes."""
    skipped = sum(others.values())
    if as_json:
        print_json(
            {
                "inputs": list(names),
                "by_suffix": _named(suffixes),
                "skipped": skipped,
                "skipped_by_suffix": _named(others),
            }
        )
        return
    for name in names:
        print_text(name)
    log(f"{len(names)} to read: {counted(suffixes)}")
    log(f"{skipped} skipped in folders: {counted(others)}" if others else "nothing skipped")


def counted(numbers: Mapping[str, int]) -> str:
    """Return how many files have each suffix, such as ".txt 12, (none) 4, .xmp 3"."""
    suffixes = _named(numbers)
    shown = [f"{suffix} {count}" for suffix, count in list(suffixes.items())[:_SHOWN]]
    if len(suffixes) > _SHOWN:
        shown.append(f"{len(suffixes) - _SHOWN} more {sum(list(suffixes.values())[_SHOWN:])}")
    return ", ".join(shown)


def _named(suffixes: Mapping[str, int]) -> dict[str, int]:
    """Return printable suffixes and their numbers, the most frequent first, then by name."""
    ordered = sorted(suffixes.items(), key=lambda item: (-item[1], item[0]))
    return {uri(suffix) if suffix else "(none)": count for suffix, count in ordered}
