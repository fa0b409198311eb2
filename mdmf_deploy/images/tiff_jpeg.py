"""JPEGs inside a TIFF (Technical Note 2 of TIFF 6.0): whether the pixels of all strips and tiles are there.

libtiff fills a strip that ends early with grey, and Pillow hides its warning. So every strip is decoded once more.
"""

from __future__ import annotations

from mdmf_deploy.errors import ImageError
from mdmf_deploy.images import jpeg_pixels
from mdmf_deploy.images.containers import jpeg
from mdmf_deploy.images.containers.directories import directory, layout, values
from mdmf_deploy.images.limits import ReadLimits

_COMPRESSION, _JPEG, _TABLES = 259, 7, 347
_STRIPS, _TILES = (273, 279), (324, 325)  # offsets and byte counts
_MARKER = 2  # bytes of a start or an end marker


def check(data: bytes, limits: ReadLimits) -> None:
    """Raise ImageError truncated if pixels are missing in a JPEG inside a TIFF that libtiff has decoded."""
    file = layout(data)
    entries = directory(data, file, file.first).entries
    if values(data, file, entries.get(_COMPRESSION), 1).tolist() != [_JPEG]:
        return
    starts, sizes = (entries.get(tag) for tag in (_TILES if _TILES[0] in entries else _STRIPS))
    if starts is None or sizes is None:
        return
    tables = b"\xff\xd8"
    shared = entries.get(_TABLES)
    if shared is not None and shared.size > 2 * _MARKER:
        tables = data[shared.at : shared.at + shared.size - _MARKER]
    number = min(starts.count, sizes.count)
    places = zip(values(data, file, starts, number).tolist(), values(data, file, sizes, number).tolist(), strict=True)
    for part, (start, size) in enumerate(places, 1):
        whole = tables + data[start + _MARKER : start + size]
        try:
            jpeg_pixels.load(jpeg.parse(whole, limits))
        except ImageError as error:
            # libtiff has decoded what our own reader refuses for other reasons.
            if error.code == "truncated":
                raise ImageError("truncated", f"tiff: part {part} of {number} lacks some of its pixels") from error
        except OSError:
            continue
