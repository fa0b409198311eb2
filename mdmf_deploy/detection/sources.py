"""Sources of every kind, and what of each is kept until a thread decodes it."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast, get_args, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mdmf_deploy.errors import ImageError, UsageError
from mdmf_deploy.images import decode
from mdmf_deploy.images.decode import ReadLimits
from mdmf_deploy.images.inputs import uri
from mdmf_deploy.images.magic import HEAD, video_format
from mdmf_deploy.images.pixels import Colour, Snapshot, own, rgb_of_array, snapshot


@runtime_checkable
class Readable(Protocol):
    """A file object, open for reading bytes. It is read from where it stands to its end."""

    def read(self, size: int = -1, /) -> bytes | None: ...


@dataclass(frozen=True, slots=True)
class Named:
    """A source with a name, which its row gives as `uri`.

    Raises UsageError if the name is empty or not printable, because rows are lines.
    """

    source: Source
    name: str

    def __post_init__(self) -> None:
        if not self.name or not self.name.isprintable():
            raise UsageError(f"name {self.name!r} must be one line of printable characters")


Source = str | Path | bytes | NDArray[np.uint8] | Image.Image | Readable | Named
"""The path of an image file, the bytes of one, a file object, pixels in an array, a Pillow image, or a named source.

An array is uint8: grey (H, W), colour (H, W, 3), or colour and alpha (H, W, 4).
"""


@dataclass(frozen=True, slots=True)
class Taken:
    """A source that no longer depends on its caller: file objects are read, arrays and Pillow images are copied.

    source: a path, bytes, an array, an image, or the error that reading gave.
    kind: the source's uri is "<kind>:<n>" if it has no name.
    """

    source: str | Path | bytes | NDArray[Any] | Snapshot | ImageError
    kind: str
    name: str | None = None
    colour: Colour = "rgb"

    def uri(self, n: int) -> str:
        """Return the source's name, or else its path, or else its kind and number."""
        if self.name is None and isinstance(self.source, str | Path):
            return uri(self.source)
        return self.name or f"{self.kind}:{n}"

    def data(self, limits: ReadLimits) -> bytes | None:
        """Return the bytes of the image file, or None for pixels. Raises ImageError if they cannot be read."""
        if isinstance(self.source, ImageError):
            raise self.source
        if isinstance(self.source, str | Path):
            return decode.read(self.source, limits)
        return self.source if isinstance(self.source, bytes) else None

    def data_unless_video(self, limits: ReadLimits) -> tuple[bytes, bytes | None]:
        """Return the first bytes of the file, and all of them or, for a video, None. For pixels there are none.

        Raises ImageError if they cannot be read.
        """
        if isinstance(self.source, str | Path):
            return decode.read_unless_video(self.source, limits)
        data = self.data(limits)
        return (b"", None) if data is None else (data[:HEAD], None if video_format(data) else data)

    def pixels(self, name: str) -> NDArray[np.uint8]:
        """Return the pixels of an array or image, (H, W, 3) RGB. Raises ImageError if they have no such form."""
        if isinstance(self.source, Snapshot):
            return self.source.rgb(name)
        assert isinstance(self.source, np.ndarray)
        return rgb_of_array(self.source, name, self.colour)


def is_one(sources: object) -> bool:
    """Return whether this is a single source, not an iterable of them. Iterating a file object would give its lines."""
    return isinstance(
        sources, str | Path | bytes | bytearray | memoryview | np.ndarray | Image.Image | Named | Readable
    )


def take(n: int, source: Source, limits: ReadLimits, colour: Colour = "rgb") -> Taken:
    """Take source number n. Afterwards the caller may close a file object, and change an array or an image.

    colour: the order of an array's channels.
    Raises UsageError for a source of another type.
    """
    name = None
    while isinstance(source, Named):
        name, source = name or source.name, source.source
    if isinstance(source, str | Path):
        return Taken(source, "path", name)
    if isinstance(source, bytes | bytearray | memoryview):
        return Taken(bytes(source), "bytes", name)
    if isinstance(source, np.ndarray):
        # An array of another type is refused, whatever its values.
        return Taken(own(source) if source.dtype == np.uint8 else source, "array", name, colour)
    if isinstance(source, Image.Image):
        return Taken(_copied(source, name or f"image:{n}", limits), "image", name)
    if isinstance(source, Readable):
        path = getattr(source, "name", None)
        name = name or (uri(path) if isinstance(path, str) and path else None)
        return Taken(_read(source, name or f"file:{n}", limits), "file", name)
    raise UsageError(
        f"source {n} is a {type(source).__name__}; give a path, bytes, a file object, a Pillow image, or a uint8 array"
    )


def take_each(
    sources: Source | Iterable[Source], limits: ReadLimits, name: str | None, colour: Colour
) -> Iterator[Taken]:
    """Take the sources one by one, as they are asked for.  name: of a single source.

    Raises UsageError at once if this is neither a source nor an iterable, for another colour, or for a name of several.
    """
    if colour not in get_args(Colour):
        raise UsageError(f"colour {colour!r} is not known; choose rgb, or bgr for arrays of OpenCV")
    if is_one(sources):
        one = cast(Source, sources)
        sources = [one if name is None else Named(one, name)]
    elif not isinstance(sources, Iterable):
        raise UsageError(f"sources is a {type(sources).__name__}; give one source, or an iterable of them")
    elif name is not None:
        raise UsageError("name= is for a single source; among several, write Named(source, name)")
    return (take(n, source, limits, colour) for n, source in enumerate(cast(Iterable[Source], sources)))


def _copied(image: Image.Image, name: str, limits: ReadLimits) -> Snapshot | ImageError:
    try:
        return snapshot(image, name, limits)
    except ImageError as error:
        return error


def _read(file: Readable, name: str, limits: ReadLimits) -> bytes | ImageError:
    """Read a file object to its end, but never more than allowed. A read may return less than it is asked for."""
    if isinstance(file, io.TextIOBase):
        return ImageError("unreadable", f"{name} is open as text; open it with mode 'rb'")
    parts: list[bytes] = []
    left = limits.max_bytes + 1
    try:
        while left > 0 and (part := file.read(left)):
            if not isinstance(part, bytes):
                return ImageError(
                    "unreadable", f"{name} reads {type(part).__name__}, not bytes; open it with mode 'rb'"
                )
            parts.append(part)
            left -= len(part)
    except (OSError, ValueError) as error:
        reason = (isinstance(error, OSError) and error.errno and os.strerror(error.errno)) or str(error)
        return ImageError("unreadable", f"{name} cannot be read: {reason}")
    if left <= 0:
        return ImageError("too_many_bytes", f"{name} is larger than the {limits.max_bytes} bytes allowed")
    return b"".join(parts)
