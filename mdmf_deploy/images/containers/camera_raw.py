"""Camera raw files that are built like a TIFF. They are refused, because their first image is only a preview.

Sources: Digital Negative specification 1.7 (tag 50706, photometric interpretations 32803 and 34892), and the files that
cameras write.
"""

from __future__ import annotations

from contextlib import suppress

from mdmf_deploy.errors import ImageError
from mdmf_deploy.images.containers.directories import Entry, Layout, directories, values

_DNG_VERSION, _PHOTOMETRIC, _MAKE = 50706, 262, 271
_SENSOR = {32803, 34892}  # a colour filter array, and its values after demosaicing
_KINDS = {
    b"nikon": "Nikon NEF",
    b"sony": "Sony ARW",
    b"pentax": "Pentax PEF",
    b"ricoh": "Pentax PEF",
    b"samsung": "Samsung SRW",
    b"hasselblad": "Hasselblad 3FR",
    b"canon": "Canon CR2",
    b"seiko epson": "Epson ERF",
    b"eastman kodak": "Kodak DCR",
    b"kodak": "Kodak DCR",
    b"phase one": "Phase One IIQ",
    b"leaf": "Leaf MOS",
    b"mamiya": "Mamiya MEF",
}
# Raw files have fewer than 10 directories, with fewer than 100 fields each.
_DIRECTORIES, _FIELDS = 64, 1000


def kind_of_raw(data: bytes, file: Layout) -> str | None:
    """Return the name of the kind of camera raw, such as "Nikon NEF", or None for a TIFF that is none."""
    if data[8:11] == b"CR\2" and file.first == 16:
        return "Canon CR2"
    make = b""
    sensor = False
    for found in directories(data, file, _DIRECTORIES, _FIELDS):
        if _DNG_VERSION in found.entries:
            return "DNG"
        make = make or _text(data, found.entries.get(_MAKE))
        with suppress(ImageError):
            sensor |= bool(_SENSOR & set(values(data, file, found.entries.get(_PHOTOMETRIC), 1).tolist()))
    if not sensor:
        return None
    return next((kind for start, kind in _KINDS.items() if make.lower().startswith(start)), "unknown camera")


def _text(data: bytes, entry: Entry | None) -> bytes:
    return b"" if entry is None else data[entry.at : entry.at + min(entry.size, 64)].strip(b"\0 ")
