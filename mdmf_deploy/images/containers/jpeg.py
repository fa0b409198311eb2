"""The structure of JPEG files (ITU-T T.81, annex B), of which only the first picture counts.

Motion photos and MPO files hold more behind the first picture's end. It is left out, and so are comments, ICC profiles
and all other metadata. EXIF gives the orientation.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from mdmf_deploy.errors import ImageError
from mdmf_deploy.images.containers import Container
from mdmf_deploy.images.containers.exif import orientation_in
from mdmf_deploy.images.containers.parts import MOST_PARTS, too_many_parts
from mdmf_deploy.images.limits import Note, ReadLimits

MOST_SCANS = 100
"""Each scan costs a pass over all coefficients, and encoders write 1 to about 15. libtiff stops at 100 as well."""

_CHUNK = 2**18  # bytes searched at once
_SMALL = 400_000  # pixels. Decoding all of them takes less time than looking whether the rest is there.
_MOST_VISITS = 1_000_000_000  # scans x pixels that this process decodes itself. It takes seconds.
_HIGHEST = 65_500  # libjpeg refuses more rows or columns (JPEG_MAX_DIMENSION)
_SOI, _EOI, _SOS, _APP1, _APP2, _APP14 = 0xD8, 0xD9, 0xDA, 0xE1, 0xE2, 0xEE
_ALONE = {0x01, *range(0xD0, 0xD8)}  # markers without a segment
_COM, _METADATA = 0xFE, {*range(0xE0, 0xF0)}
_TABLES = {0xC4, 0xCC, 0xDB}  # DHT, DAC, DQT
_DRI = 0xDD
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_BASELINE, _EXTENDED, _PROGRESSIVE = 0xC0, 0xC1, 0xC2
_ARITHMETIC = {0xC9, 0xCA}
_DECODABLE = {_BASELINE, _EXTENDED, _PROGRESSIVE, *_ARITHMETIC}
_MULTI_PASS = {_PROGRESSIVE, 0xCA}

# The next marker (B.1.1.2). libjpeg skips bytes before it and any number of fill bytes.
_NEXT_MARKER = re.compile(rb"\xff([^\x00\xff])", re.DOTALL)
_RESTARTS = re.compile(rb"\xff([\xd0-\xd7])")
_EMPTY_INTERVAL = re.compile(rb"\xff[\xd0-\xd7]\xff+[\xd0-\xd7]")
_TURNS = bytes(range(0xD0, 0xD8))
# The description of the profile of XYB colours, in UTF-16.
_XYB = "XYB".encode("utf-16-be")


@dataclass(frozen=True, slots=True)
class Scan:
    """One pass over some components (B.2.3), and where its entropy-coded data lie in Jpeg.data.

    first, last: the range of its coefficients in zigzag order, 0 to 63.
    low_bits: how many low bits of the coefficients it leaves to later scans.
    intervals: into how many parts restart markers divide it. All of them are there.
    """

    start: int
    end: int
    components: tuple[int, ...]
    first: int
    last: int
    low_bits: int
    intervals: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Jpeg(Container):
    """A JPEG.

    frame: offset in `data` of the frame header, behind its marker.
    kind: the frame's marker.
    sampling: component -> horizontal and vertical sampling factor.
    scans: in the order of the file.
    """

    frame: int
    kind: int
    sampling: dict[int, tuple[int, int]]
    scans: tuple[Scan, ...]

    @property
    def one_pass(self) -> bool:
        """Whether libjpeg returns rows while it reads the data, and not only after the last scan."""
        return self.kind not in _MULTI_PASS and len(self.scans) == 1

    @property
    def progressive(self) -> bool:
        """Whether its scans refine one another (T.81, annex G)."""
        return self.kind in _MULTI_PASS

    @property
    def arithmetic(self) -> bool:
        """Whether its codes are arithmetic (T.81, annex D), not Huffman's."""
        return self.kind in _ARITHMETIC

    @property
    def unit(self) -> int:
        """The height in pixels of a row of coded units."""
        return 8 * max(vertical for _, vertical in self.sampling.values())

    def height_for(self, rows: int) -> int:
        """Return the height to declare so that the first `rows` rows come out unchanged and little is decoded below.

        libjpeg decodes from the top and stops at the declared height. Colours stored at half the height are
        interpolated with the row below, so one more row of coded units is kept. A JPEG of several scans, or with
        arithmetic coding, has to be decoded whole.
        """
        height = (-(-rows // self.unit) + 1) * self.unit
        saves = height < self.height and self.width * self.height > _SMALL
        return height if saves and self.one_pass and not self.arithmetic else self.height

    def memory_for(self, rows: int) -> int:
        """Return an upper bound of the bytes that decoding so many rows takes."""
        return _memory(self.width, rows, self.sampling, self.one_pass, len(self.data))

    def header(self, rows: int) -> bytes:
        """Return the data up to the first scan's, declaring so many rows."""
        at = self.frame + 3
        return b"".join((self.data[:at], rows.to_bytes(2, "big"), self.data[at + 2 : self.scans[0].start]))


def parse(data: bytes, limits: ReadLimits) -> Jpeg:
    """Find the first picture's frame, tables and scans.

    Raises ImageError: truncated, corrupt, unsupported_mode, or too_slow for more than MOST_SCANS scans.
    """
    walk = _Walk(data)
    try:
        walk.run()
    except IndexError as error:
        raise ImageError("truncated", "jpeg: it ends early, within its headers") from error
    return walk.jpeg()


class _Walk:
    """A walk over the segments of a JPEG, which collects those that the pixels depend on."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._kept: list[bytes | memoryview] = [data[:2]]
        self._size = 2
        self._frame: int | None = None
        self._width = self._height = 0
        self._sampling: dict[int, tuple[int, int]] = {}
        self._interval = 0
        self._kind = 0
        self._scans: list[Scan] = []
        self._orientation: int | None = None
        self._profile = False
        self._complete = False
        self._ended = False

    def run(self) -> None:
        at, segments = 2, 0
        while not self._complete:
            found = _NEXT_MARKER.search(self._data, at)
            if found is None:
                return
            at, marker = found.end(), found[1][0]
            if marker in _ALONE:
                continue
            if marker == _EOI:
                self._ended = True
                return
            segments += 1
            if segments > MOST_PARTS:
                raise too_many_parts("jpeg")
            end = at + self._length(at, marker)
            if end > len(self._data):
                # Metadata behind the last scan that are cut hold no pixels.
                if self._scans:
                    return
                raise IndexError
            at = self._segment(marker, at, end)

    def jpeg(self) -> Jpeg:
        if self._frame is None:
            raise ImageError(*(("corrupt", "jpeg: it has no frame") if self._ended else _CUT))
        width, height, sampling = self._width, self._height, self._sampling
        if not self._scans:
            raise ImageError(*_CUT)
        notes: list[Note] = [] if self._ended else ["no_end_marker"]
        lacking = self._lacking()
        if lacking == "components":
            raise ImageError("truncated", "jpeg: it lacks the scan of a colour")
        if lacking == "detail":
            if not self._ended:
                raise ImageError("truncated", "jpeg: it ends before its last scan")
            notes.append("scans_missing")
        one_pass = self._kind not in _MULTI_PASS and len(self._scans) == 1
        self._keep(b"\xff\xd9")
        return Jpeg(
            format="jpeg",
            data=b"".join(self._kept),
            width=width,
            height=height,
            orientation=self._orientation or 1,
            memory=_memory(width, height, sampling, one_pass, len(self._data)),
            isolated=not one_pass and width * height * len(self._scans) > _MOST_VISITS,
            notes=tuple(notes),
            frame=self._frame,
            kind=self._kind,
            sampling=sampling,
            scans=tuple(self._scans),
        )

    def _segment(self, marker: int, at: int, end: int) -> int:
        """Read or keep a segment whose length field is at `at`, and return where to go on."""
        data = self._data
        if marker == _SOI:
            raise ImageError("corrupt", "jpeg: another picture begins inside it")
        if marker == _SOS:
            return self._scan(at, end)
        if marker in _FRAMES:
            if self._frame is not None:
                raise ImageError("corrupt", "jpeg: it has two frames")
            self._kind, self._frame = marker, self._size + 2
            self._read_frame(data[at:end])
        elif marker == _APP1:
            if self._orientation is None and data.startswith(b"Exif\0", at + 2):
                self._orientation = orientation_in(data[at + 2 : end])
            return end
        elif marker == _APP2:
            if not self._profile and data.startswith(b"ICC_PROFILE\0", at + 2):
                self._profile = True
                if data.find(_XYB, at, end) >= 0:
                    raise ImageError(
                        "unsupported_mode",
                        "jpeg of XYB colours, which only its ICC profile explains; save it as sRGB",
                    )
            return end
        elif marker == _APP14:
            # Adobe's says whether the colours are inverted or converted. libjpeg obeys the last one.
            if end - at < 14 or not data.startswith(b"Adobe", at + 2):
                return end
        elif marker == 0xE0:
            # JFIF's says that three components are YCbCr.
            if not data.startswith(b"JFIF\0", at + 2):
                return end
        elif marker == _DRI:
            self._interval = int.from_bytes(data[at + 2 : at + 4], "big")
        elif marker not in _TABLES:
            return end
        self._keep(bytes((0xFF, marker)), memoryview(data)[at:end])
        return end

    def _scan(self, at: int, end: int) -> int:
        data = self._data
        if self._frame is None:
            raise ImageError("corrupt", "jpeg: a scan comes before the frame")
        if len(self._scans) == MOST_SCANS:
            raise ImageError(
                "too_slow", f"jpeg of more than {MOST_SCANS} scans, which no encoder writes; save the image again"
            )
        count = data[at + 2]
        if end - at != 6 + 2 * count:
            raise ImageError("corrupt", "jpeg: the header of a scan has a wrong length")
        first, last, bits = data[end - 3 : end]
        stop = self._end_of_scan(end)
        components = tuple(data[at + 3 : end - 3 : 2])
        intervals = self._intervals(components, data[end:stop]) if self._interval else 1
        self._keep(b"\xff\xda", memoryview(data)[at:end])
        start = self._size
        self._keep(memoryview(data)[end:stop])
        self._scans.append(Scan(start, self._size, components, first, last, bits & 15, intervals))
        if self._lacking() is None:
            # Nothing that follows holds pixels, whatever it is.
            self._complete = True
            self._ended = data.find(b"\xff\xd9", stop) >= 0
        return stop

    def _end_of_scan(self, start: int) -> int:
        """Return where the entropy-coded data end that begin at a byte: before a marker that is not one of theirs.

        Where no restart markers belong, libjpeg takes one for the end of the data.
        """
        for at in range(start, len(self._data), _CHUNK):
            # The last byte may be the first one of a marker.
            chunk = np.frombuffer(self._data, np.uint8, min(_CHUNK + 1, len(self._data) - at), at)
            places = np.flatnonzero(chunk[:-1] == 0xFF)
            following = chunk[places + 1]
            # A stuffed FF and fill bytes belong to the data.
            ends = (following != 0) & (following != 0xFF)
            if self._interval:
                ends &= (following & 0xF8) != 0xD0
            if ends.any():
                return at + int(places[ends.argmax()])
        return len(self._data)

    def _intervals(self, components: tuple[int, ...], coded: bytes) -> int:
        """Return into how many intervals restart markers divide the coded data of a scan (E.1.4).

        libjpeg takes a marker that is out of turn for the end of the data, and goes on in grey.
        """
        turns = b"".join(_RESTARTS.findall(coded))
        units = _units(self._width, self._height, self._sampling, components)
        expected = -(-units // self._interval) - 1
        in_turn = turns == (_TURNS * (len(turns) // 8 + 1))[: len(turns)]
        # Some encoders write one more behind the last interval.
        if not in_turn or len(turns) not in (expected, expected + 1) or _EMPTY_INTERVAL.search(coded):
            raise ImageError("truncated", "jpeg: its restart markers show that pixels are missing; get the whole file")
        return expected + 1

    def _read_frame(self, header: bytes) -> None:
        """Read a frame header (B.2.2)."""
        if self._kind not in _DECODABLE:
            raise ImageError("unsupported_mode", "jpeg that is lossless or hierarchical; save it as an ordinary JPEG")
        if len(header) < 8 or len(header) != 8 + 3 * header[7]:
            raise ImageError("corrupt", "jpeg: the header of its frame has a wrong length")
        precision, count = header[2], header[7]
        height, width = int.from_bytes(header[3:5], "big"), int.from_bytes(header[5:7], "big")
        if precision != 8:
            raise ImageError("unsupported_mode", f"jpeg of {precision} bits a sample; save it with 8")
        if count not in (1, 3, 4):
            raise ImageError("unsupported_mode", f"jpeg of {count} components; save it as grey, colour or CMYK")
        if not (0 < width <= _HIGHEST and 0 < height <= _HIGHEST):
            raise ImageError("corrupt", f"jpeg of {width} x {height} pixels; each side must be 1 to {_HIGHEST}")
        sampling = {header[at]: (header[at + 1] >> 4, header[at + 1] & 15) for at in range(8, len(header), 3)}
        if len(sampling) != count or any(not 1 <= f <= 4 for factors in sampling.values() for f in factors):
            raise ImageError("corrupt", "jpeg: its components or their sampling make no sense")
        self._width, self._height, self._sampling = width, height, sampling

    def _lacking(self) -> str | None:
        """Return "components" if one has no averages, "detail" if finer scans are missing, else None."""
        if self._kind not in _MULTI_PASS:
            return (
                None if self._sampling.keys() <= {c for scan in self._scans for c in scan.components} else "components"
            )
        # The low bits that are still unknown of each coefficient. 16 means all.
        unknown = {component: [16] * 64 for component in self._sampling}
        for scan in self._scans:
            for component in scan.components:
                for k in range(scan.first, min(scan.last, 63) + 1):
                    if component in unknown:
                        unknown[component][k] = scan.low_bits
        if any(bits[0] == 16 for bits in unknown.values()):
            return "components"
        return "detail" if any(any(bits) for bits in unknown.values()) else None

    def _keep(self, *parts: bytes | memoryview) -> None:
        self._kept += parts
        self._size += sum(map(len, parts))

    def _length(self, at: int, marker: int) -> int:
        length = self._data[at] << 8 | self._data[at + 1]
        if length < 2:
            if marker == _COM or marker in _METADATA:
                # libjpeg skips the length alone.
                return 2
            raise ImageError("corrupt", "jpeg: a segment is shorter than its own length field")
        return length


def _units(width: int, height: int, sampling: dict[int, tuple[int, int]], components: tuple[int, ...]) -> int:
    """Return the number of coded units of a scan (A.2)."""
    across, down = max(h for h, _ in sampling.values()), max(v for _, v in sampling.values())
    if len(components) > 1:
        return -(-width // (8 * across)) * -(-height // (8 * down))
    horizontal, vertical = sampling.get(components[0], (1, 1)) if components else (1, 1)
    return -(-width * horizontal // (8 * across)) * -(-height * vertical // (8 * down))


_CUT = ("truncated", "jpeg: it ends before its first scan")


def _memory(width: int, rows: int, sampling: dict[int, tuple[int, int]], one_pass: bool, size: int) -> int:
    """Return how many bytes Pillow and libjpeg take at most: the pixels, the coefficients of all scans, the file."""
    most = [max(factors) for factors in zip(*sampling.values(), strict=True)]
    pixels = (1 if len(sampling) == 1 else 4) * width * rows
    area = (width + 64) * (rows + 64)
    shares = sum(horizontal * vertical for horizontal, vertical in sampling.values()) / (most[0] * most[1])
    coefficients = 0 if one_pass else int(2 * shares * area)
    return pixels + coefficients + 3 * size + 400 * width
