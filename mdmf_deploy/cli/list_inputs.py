"""`mdmf detect --list-inputs`: the inputs of a run, and the files in folders that it skips."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from mdmf_deploy.cli.console import log, print_json, print_text
from mdmf_deploy.images.inputs import Inputs, uri

_SHOWN = 20


def print_inputs(inputs: Inputs, as_json: bool) -> None:
    """Print the inputs on stdout, one per line, and how many there are and are skipped, by suffix, on stderr.

    With as_json, print all of it as one JSON document on stdout.
    """
    suffixes = Counter(path.suffix.lower() for path in inputs.paths)
    if as_json:
        print_json(
            {
                "inputs": [uri(path) for path in inputs.paths],
                "by_suffix": _named(suffixes),
                "skipped": inputs.skipped,
                "skipped_by_suffix": _named(inputs.others),
            }
        )
        return
    for path in inputs.paths:
        print_text(uri(path))
    log(f"{len(inputs.paths)} to read: {counted(suffixes)}")
    log(f"{inputs.skipped} skipped in folders: {counted(inputs.others)}" if inputs.others else "nothing skipped")


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
