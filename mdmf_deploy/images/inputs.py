"""Command-line arguments to the paths to score, in a stable order, and printable names for all paths.

The kinds of argument, tried in this order:
  "-"        a list of paths on standard input, as described in lists.py
  "@FILE"    the same list in FILE (write "./@name" for a path that begins with "@")
  a folder   every file below it whose name or content says image or video, hidden or not, sorted by the bytes of its
             path. Other files are counted as skipped. Links are followed, each real folder once.
  a file     always an input, whatever its name, even if it does not exist (its own row then reports that)
  a URL      an input, too, whose own row says that nothing is read from the network
  a glob     only if no path of that very name exists. Each match counts as if it were named itself.

The root of a file system, the user's home and the folders that hold it are searched only if the caller says so.
"""

from __future__ import annotations

import glob
import os
import re
import stat
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path, PurePath

from mdmf_deploy.errors import UsageError
from mdmf_deploy.files import refuse_url
from mdmf_deploy.images.listing import is_named_like_input, skipped_as
from mdmf_deploy.images.lists import read_list
from mdmf_deploy.images.paths import Paths, encode
from mdmf_deploy.images.places import Guard
from mdmf_deploy.text import escaped, is_printable

_STORES = ("s3:/", "gs:/", "gcs:/", "abfs:/", "abfss:/", "hdfs:/")

MANY = 100_000
"""Folders with more files than this are announced before anything is read."""


@dataclass(frozen=True, slots=True)
class Inputs:
    """The inputs of a run.

    paths: in the order of the arguments, with each folder sorted.
    others: lower-case suffix ("" for none, "._*" for side files of macOS) -> number of files in folders that have it
        and are no inputs.
    """

    paths: Sequence[Path]
    others: Mapping[str, int] = field(default_factory=dict)

    @property
    def skipped(self) -> int:
        """The number of other files in folders."""
        return sum(self.others.values())


def expand(
    arguments: Sequence[str], whole_disk: bool = False, tell: Callable[[str], None] = lambda line: None
) -> Inputs:
    """Expand command-line arguments to inputs. A path given twice is two inputs.

    whole_disk: search a root, the home or a folder that holds it as well, and follow links to them.
    tell: called with each line that the user should read before anything is scored.
    Raises UsageError if there is no argument, or one yields nothing: an empty path, a folder without images, a glob
    without a match, an empty or unreadable list. Raises it for a folder that needs `whole_disk`, too.
    """
    if not arguments:
        raise UsageError("no input was given; name images, folders or globs, or give - for a list on standard input")
    if list(arguments).count("-") > 1:
        raise UsageError("- was given more than once; standard input can be read only once")
    search = _Search(whole_disk, tell)
    paths = Paths(chain.from_iterable(map(search.argument, arguments)))
    search.tell_total()
    return Inputs(paths, dict(search.others))


def in_folder(folder: str | Path, whole_disk: bool = False, tell: Callable[[str], None] = lambda line: None) -> Inputs:
    """Return the inputs below a folder, whatever characters its name has.

    Raises UsageError if it contains no image, cannot be listed or, as for `expand`, needs `whole_disk`.
    """
    search = _Search(whole_disk, tell)
    paths = Paths(search.folder(str(folder)))
    return Inputs(paths, dict(search.others))


def uri(path: str | Path) -> str:
    r"""Return a path as one line of valid UTF-8. `from_uri` gives the path back.

    The path is unchanged, with two exceptions. A backslash is written `\\`. Each byte of a control character, of a line
    or paragraph separator, of an invisible character (such as one that turns text around, or joins two emoji), or of a
    name that is not UTF-8 is written `\xNN`.
    """
    text = escaped_text(Path(path).as_posix())
    return re.sub(r"^(https?|ftps?|s3|gs|file):/(?=[^/])", lambda m: f"{m[1]}://{'/' * (m[1] == 'file')}", text)


def escaped_text(text: str) -> str:
    """Return a text with the escapes of `uri`."""
    return text if text.isprintable() and "\\" not in text else "".join(map(_escaped, text))


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
    return character if is_printable(character) else escaped(character)


def why_missing(path: str | Path) -> str:
    """Return the line for a row whose file does not exist: the reason, and what to do about it."""
    refused = refuse_url(path)
    if refused is not None:
        store = str(path).lower().startswith(_STORES)
        return f"{refused}, or add --engine ray, which reads object stores" if store else refused
    if str(path).startswith("~"):
        return f"{uri(path)} does not exist; write the home folder in full, since only a shell expands ~"
    if str(path).startswith(("'", '"')):
        return f"{uri(path)} does not exist; its quotes count as part of the name"
    return f"{uri(path)} does not exist; check the path"


class _Search:
    """Expands the arguments of one run to the bytes of paths, which take less memory, and counts what it finds.

    others: suffix -> number of files that are no inputs.
    """

    def __init__(self, whole_disk: bool, tell: Callable[[str], None]) -> None:
        self.others: Counter[str] = Counter()
        self._whole_disk, self._tell = whole_disk, tell
        self._guard = Guard()
        self._images = 0
        self._told = False

    def argument(self, argument: str) -> Iterable[bytes]:
        """Return the inputs of one argument."""
        if argument == "-":
            return self._listed(_standard_input(), "standard input")
        if argument.startswith("@"):
            return self._listed(_file(argument), f"the list {uri(argument[1:])}")
        if not argument:
            raise UsageError("an empty path was given; name an image or a folder")
        if os.path.isdir(argument):  # noqa: PTH112 (Path.is_dir raises on an embedded NUL)
            return self.folder(argument)
        if os.path.lexists(argument) or not glob.has_magic(argument) or refuse_url(argument) is not None:
            return [encode(argument)]
        return self._glob(argument)

    def folder(self, name: str, source: str = "") -> list[bytes]:
        """Return the images below a folder. source: the list that names it."""
        before = self.others.total()
        paths = self._walk(name, f"{source}: " if source else "")
        if not paths:
            raise UsageError(
                f"no images in {uri(name)} ({self.others.total() - before} other files skipped): neither the name nor "
                "the content of a file says image or video; name files themselves to score them anyway"
            )
        return paths

    def tell_total(self) -> None:
        """Say how much all folders hold, if that is much and no single one has been announced."""
        if self._images + self.others.total() > MANY and not self._told:
            self._tell(f"the folders hold {_count(self._images, self.others.total())}")

    def _listed(self, names: Iterable[str], source: str) -> Iterator[bytes]:
        unquoted: list[str] = []
        count = 0
        for name in names:
            bare = _unquoted(name)
            if bare is not None:
                count += 1
                unquoted = unquoted or [name]
            found = name if bare is None else bare
            if os.path.isdir(found):  # noqa: PTH112
                yield from self.folder(found, source)
            else:
                yield encode(found)
        if unquoted:
            paths_are = "1 path is" if count == 1 else f"{count} paths are"
            self._tell(f"{source}: {paths_are} read without the quotes, such as {uri(unquoted[0])}")

    def _glob(self, pattern: str) -> Iterable[bytes]:
        self._refuse_glob_of_a_disk(pattern)
        matches = sorted(glob.glob(pattern, recursive=True), key=os.fsencode)  # noqa: PTH207 (Path.glob refuses absolute patterns)
        if not matches:
            raise UsageError(f"glob {uri(pattern)} matches nothing; check the folder and the pattern")
        paths: dict[bytes, None] = {}
        before = self.others.total()
        for match in matches:
            if os.path.isdir(match):  # noqa: PTH112
                paths |= dict.fromkeys(self._walk(match, f"glob {uri(pattern)}: "))
            else:
                paths[encode(match)] = None
        if not paths:
            skipped = self.others.total() - before
            raise UsageError(f"glob {uri(pattern)} matches folders without images ({skipped} other files skipped)")
        return paths

    def _refuse_glob_of_a_disk(self, pattern: str) -> None:
        """Refuse "/*" like "/", and "/**/*.jpg", which would list a whole disk before the first match."""
        parts = PurePath(pattern).parts
        plain = next(n for n, part in enumerate(parts) if glob.has_magic(part))
        if "**" in parts[plain:] or all(set(part) == {"*"} for part in parts[plain:]):
            base = Path(*parts[:plain])
            self._refuse_whole_disk(base, self._guard.why(base), f"glob {uri(pattern)}: ")

    def _refuse_whole_disk(self, folder: Path, what: str | None, source: str) -> None:
        if what is not None and not self._whole_disk:
            raise UsageError(
                f"{source}{uri(folder)} is {what}; name a folder of images, or give --yes to search all of it"
            )

    def _walk(self, top: str, source: str) -> list[bytes]:
        """Return the images below a folder, sorted by the bytes of their paths, and count the other entries.

        A subfolder that cannot be listed is returned like an image, so that it costs a row and is not silently skipped.
        The entries of a folder that can be listed but not searched cannot be inspected, so each one named like an image
        costs a row. So does a file named like an image that has another content, or none.
        """
        self._refuse_whole_disk(Path(top), self._guard.why(top), source)
        paths: list[bytes] = []
        others: Counter[str] = Counter()
        seen: set[tuple[int, int]] = set()
        waiting = [Path(top)]
        announced = False
        while waiting:
            folder = waiting.pop()
            try:
                status = folder.stat()
                if (status.st_dev, status.st_ino) in seen:
                    continue
                seen.add((status.st_dev, status.st_ino))
                what = self._guard.why_status(status)
                if what is not None and not self._whole_disk:
                    self._tell(f"{uri(folder)} is not searched, because it leads to {what}; --yes searches it")
                    continue
                names = os.listdir(folder)  # noqa: PTH208 (iterdir lists no fewer, and makes a Path of each)
            except OSError as error:
                if folder == Path(top):
                    raise UsageError(
                        f"folder {uri(folder)}: {error.strerror}; give a folder that can be read"
                    ) from error
                paths.append(os.fsencode(folder))
                continue
            folders = []
            before = os.fsencode(folder / "_")[:-1]
            for name in names:
                entry = before + os.fsencode(name)
                target = _status(entry)
                if target is not None and stat.S_ISDIR(target.st_mode):
                    folders.append(folder / name)
                elif is_named_like_input(name) or (suffix := skipped_as(folder / name, target)) is None:
                    paths.append(entry)
                else:
                    others[suffix] += 1
            waiting += sorted(folders, key=os.fsencode, reverse=True)
            if not announced and len(paths) + others.total() > MANY:
                announced = self._told = True
                self._tell(f"{uri(top)} holds more than {MANY:,} files; still counting")
        if announced:
            self._tell(f"{uri(top)} holds {_count(len(paths), others.total())}")
        self._images += len(paths)
        self.others += others
        paths.sort()
        return paths


def _status(path: bytes) -> os.stat_result | None:
    """Return what the system says about a file, with links followed, or None if it says nothing."""
    try:
        return os.stat(path)  # noqa: PTH116 (tells a folder that cannot be searched from one without the file)
    except OSError:
        return None


def _standard_input() -> Iterable[str]:
    if sys.stdin is None:
        raise UsageError("- asks for a list on standard input, which is closed; pipe one in, or give @FILE")
    try:
        return read_list(sys.stdin.buffer, "standard input")
    except OSError as error:
        raise UsageError(f"standard input: {error.strerror}; pipe in a list of paths, or give @FILE") from error


def _file(argument: str) -> Iterable[str]:
    if argument == "@":
        raise UsageError("@ names no list; give the name of a file after it, or - for a list on standard input")
    source = Path(argument[1:])
    try:
        with source.open("rb") as file:
            return read_list(file, f"the list {uri(source)}")
    except OSError as error:
        refused = refuse_url(source)
        if refused is not None:
            raise UsageError(f"list {refused}") from error
        raise UsageError(
            f"list {uri(source)}: {error.strerror}; give a readable file after @, or ./{uri(argument)} for an image"
        ) from error


def _unquoted(name: str) -> str | None:
    """Return a name without its pair of quotes if only the name without them exists, else None."""
    if len(name) < 3 or name[0] != name[-1] or name[0] not in "'\"" or os.path.lexists(name):
        return None
    return name[1:-1] if os.path.lexists(name[1:-1]) else None


def _count(images: int, others: int) -> str:
    return f"{images:,} images and {others:,} other files"
