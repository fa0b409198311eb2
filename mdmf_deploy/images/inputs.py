"""Command-line arguments to the paths to score, in a stable order, and printable names for all paths.

The kinds of argument, tried in this order:
  "-"        a list of paths on standard input, separated by NULs if it contains any, else one per line
  "@FILE"    the same list in FILE (write "./@name" for a path that begins with "@")
  a folder   every file below it with an image extension, hidden or not, sorted by the bytes of its path. Other files
             are counted as skipped. Links are followed, each real folder once.
  a file     always an input, whatever its name, even if it does not exist (its own row then reports that)
  a glob     only if no path of that very name exists. Each match counts as if it were named itself.
"""

from __future__ import annotations

import glob
import os
import re
import sys
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mdmf_deploy.errors import UsageError

IMAGE_EXTENSIONS = frozenset(
    {".apng", ".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
)
"""Lower-case suffixes that make a folder's files inputs. Their format is recognised by content alone."""

_UNPRINTABLE = frozenset({"Cc", "Cs", "Zl", "Zp"})


@dataclass(frozen=True, slots=True)
class Inputs:
    """The inputs of a run.

    paths: in the order of the arguments, with each folder sorted.  skipped: number of other files in folders.
    """

    paths: tuple[Path, ...]
    skipped: int


def expand(arguments: Sequence[str]) -> Inputs:
    """Expand command-line arguments to inputs. A path given twice is two inputs.

    Raises UsageError if there is no argument, or one yields nothing: an empty path, a folder without images, a glob
    without a match, an empty or unreadable list.
    """
    if not arguments:
        raise UsageError("no input was given; name images, folders or globs, or give - for a list on standard input")
    if list(arguments).count("-") > 1:
        raise UsageError("- was given more than once; standard input can be read only once")
    paths: list[Path] = []
    skipped = 0
    for argument in arguments:
        for name, literal in _names(argument):
            found, passed = _named(name, literal)
            paths += found
            skipped += passed
    return Inputs(tuple(paths), skipped)


def in_folder(folder: str | Path) -> Inputs:
    """Return the inputs below a folder, whatever characters its name has.

    Raises UsageError if it contains no image or cannot be listed.
    """
    paths, skipped = _folder(str(folder))
    return Inputs(tuple(paths), skipped)


def uri(path: str | Path) -> str:
    r"""Return a path as one line of valid UTF-8. `from_uri` gives the path back.

    The path is unchanged, with two exceptions. A backslash is written `\\`. Each byte of a control character, of a line
    or paragraph separator, or of a name that is not UTF-8 is written `\xNN`.
    """
    return "".join(_escaped(character) for character in Path(path).as_posix())


def from_uri(text: str) -> Path:
    """Return the path that `uri` wrote as `text`."""
    plain = re.sub(
        rb"\\(?:x([0-9a-f]{2})|\\)",
        lambda match: bytes.fromhex(match[1].decode()) if match[1] else b"\\",
        text.encode("utf-8"),
    )
    return Path(os.fsdecode(plain))


def _escaped(character: str) -> str:
    if character == "\\":
        return "\\\\"
    if unicodedata.category(character) in _UNPRINTABLE:
        return "".join(f"\\x{byte:02x}" for byte in os.fsencode(character))
    return character


def _names(argument: str) -> Iterator[tuple[str, bool]]:
    """Yield (name, whether it is literal) for each path of an argument, before folders and globs are expanded."""
    if argument == "-":
        yield from ((name, True) for name in _listed(sys.stdin.buffer.read(), "the list on standard input"))
    elif argument.startswith("@"):
        source = Path(argument[1:])
        try:
            data = source.read_bytes()
        except OSError as error:
            raise UsageError(
                f"list {uri(source)}: {error.strerror}; give a readable file after @, or ./{uri(argument)} for an image"
            ) from error
        yield from ((name, True) for name in _listed(data, f"the list {uri(source)}"))
    else:
        yield argument, False


def _listed(data: bytes, source: str) -> list[str]:
    separated = data.split(b"\0") if b"\0" in data else [line.removesuffix(b"\r") for line in data.split(b"\n")]
    names = [os.fsdecode(name) for name in separated if name.strip()]
    if not names:
        raise UsageError(f"{source} holds no path; write one per line, or separate them with NUL")
    return names


def _named(name: str, literal: bool) -> tuple[list[Path], int]:
    if not name:
        raise UsageError("an empty path was given; name an image or a folder")
    if os.path.isdir(name):  # noqa: PTH112 (Path.is_dir raises on an embedded NUL)
        return _folder(name)
    if literal or os.path.lexists(name) or not glob.has_magic(name):
        return [Path(name)], 0
    matches = sorted(glob.glob(name, recursive=True), key=os.fsencode)  # noqa: PTH207 (Path.glob refuses absolute patterns)
    if not matches:
        raise UsageError(f"glob {uri(name)} matches nothing; check the folder and the pattern")
    paths: dict[Path, None] = {}
    skipped = 0
    for match in matches:
        if not os.path.isdir(match):  # noqa: PTH112
            paths[Path(match)] = None
            continue
        found, passed = _walk(match)
        paths |= dict.fromkeys(found)
        skipped += passed
    if not paths:
        raise UsageError(f"glob {uri(name)} matches folders without images ({skipped} other files skipped)")
    return list(paths), skipped


def _folder(name: str) -> tuple[list[Path], int]:
    paths, skipped = _walk(name)
    if not paths:
        raise UsageError(
            f"no images in {uri(name)} ({skipped} other files skipped); "
            f"images end in one of {' '.join(sorted(IMAGE_EXTENSIONS))}"
        )
    return paths, skipped


def _walk(top: str) -> tuple[list[Path], int]:
    """Return the images below a folder, sorted by the bytes of their paths, and the number of other entries.

    A subfolder that cannot be listed is returned like an image, so that it costs a row and is not silently skipped. The
    entries of a folder that can be listed but not searched cannot be inspected, so each one named like an image costs a
    row.
    """
    paths: list[Path] = []
    skipped = 0
    seen: set[tuple[int, int]] = set()
    waiting = [Path(top)]
    while waiting:
        folder = waiting.pop()
        try:
            status = folder.stat()
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            entries = sorted(folder.iterdir(), key=os.fsencode, reverse=True)
        except OSError as error:
            if folder == Path(top):
                raise UsageError(f"folder {uri(folder)}: {error.strerror}; give a folder that can be read") from error
            paths.append(folder)
            continue
        for entry in entries:
            if os.path.isdir(entry):  # noqa: PTH112 (Path.is_dir raises below a folder that cannot be searched)
                waiting.append(entry)
            elif entry.suffix.lower() in IMAGE_EXTENSIONS:
                paths.append(entry)
            else:
                skipped += 1
    return sorted(paths, key=os.fsencode), skipped
