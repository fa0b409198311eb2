"""Kinds of file by their first bytes: images and videos, and other files that people hand in under an image's name."""

from __future__ import annotations

import codecs
import re
from typing import Literal

from mdmf_deploy.errors import install

HEAD = 4096
"""Bytes from the beginning of a file that decide every kind."""

_Family = Literal["image", "raw", "drawing", "video", "sound", "archive", "document", "other"]

_IMAGES: dict[str, tuple[int, tuple[bytes, ...]]] = {
    "jpeg": (0, (b"\xff\xd8\xff",)),
    "png": (0, (b"\x89PNG\r\n\x1a\n",)),
    "webp": (8, (b"WEBP",)),
    "tiff": (0, (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")),
    "bmp": (0, (b"BM",)),
    "gif": (0, (b"GIF87a", b"GIF89a")),
    "jpeg2000": (0, (b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51")),
    "jpeg_xl": (0, (b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n")),
}
_HEVC_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx"}
_HEIF_BRANDS = _HEVC_BRANDS | {b"mif1", b"mif2", b"msf1"}
_NAMES = {
    "jpeg": "a JPEG",
    "png": "a PNG",
    "webp": "a WebP",
    "tiff": "a TIFF",
    "bmp": "a BMP",
    "gif": "a GIF",
    "avif": "an AVIF image",
    "heif": "a HEIF image",
    "jpeg2000": "a JPEG 2000",
    "jpeg_xl": "a JPEG XL",
    "mp4": "an MP4 video",
    "mov": "a QuickTime video",
    "webm": "a WebM video",
    "mkv": "a Matroska video",
    "avi": "an AVI video",
}
# Formats that this installation may lack -> the command that brings them.
_READERS = {
    "avif": "pip install --upgrade 'pillow>=11.3'",
    "heif": install("heif"),
    "jpeg2000": "pip install --upgrade pillow",
    "jpeg_xl": install("jxl"),
}

# A byte that no text has. Patterns without one of their own end in it, so that none matches the beginning of a text.
_BINARY = rb"(?=.{0,250}?[\0-\x08\x0e-\x1f])"
_KINDS: tuple[tuple[str, _Family, bytes], ...] = (
    ("a Canon CR2 camera raw", "raw", rb"II\*\0.{4}CR\x02\0"),
    ("a Canon CR3 camera raw", "raw", rb"\0\0.{2}ftypcrx "),
    ("a Canon CRW camera raw", "raw", rb"II\x1a\0\0\0HEAPCCDR"),
    ("a Fujifilm RAF camera raw", "raw", rb"FUJIFILMCCD-RAW " + _BINARY),
    ("an Olympus ORF camera raw", "raw", rb"IIR[OS]\x08\0|MMOR\0\0"),
    ("a Panasonic RW2 camera raw", "raw", rb"IIU\0"),
    ("a Minolta MRW camera raw", "raw", rb"\0MRM"),
    ("a Sigma X3F camera raw", "raw", rb"FOVb" + _BINARY),
    ("a Photoshop file", "image", rb"8BPS\0[\x01\x02]"),
    ("an icon", "image", rb"\0\0[\x01\x02]\0[^\0]\0.{3}\0|icns\0"),
    ("a PNM image", "image", rb"P(?:[14-7]|[Ff])\s[#\sA-Z\d]" + _BINARY),
    ("an OpenEXR image", "image", rb"v/1\x01"),
    ("a DDS texture", "image", rb"DDS \x7c\0\0\0"),
    ("a KTX texture", "image", rb"\xabKTX "),
    ("an SGI image", "image", rb"\x01\xda[\0\x01][\x01\x02]"),
    ("a Sun raster image", "image", rb"\x59\xa6\x6a\x95"),
    ("a PCX image", "image", rb"\n[\0\x02-\x05][\0\x01][\x01\x02\x04\x08].{60}\0[\x01\x03\x04]"),
    ("a GIMP image", "image", rb"gimp xcf (?:file|v\d{3})\0"),
    ("a Krita or OpenRaster image", "image", rb"PK\x03\x04.{26}mimetype(?:image/openraster|application/x-krita)"),
    ("a JPEG XR", "image", rb"II\xbc[\0\x01]"),
    ("a BPG image", "image", rb"BPG\xfb"),
    ("a QOI image", "image", rb"qoif" + _BINARY),
    ("a DjVu document", "image", rb"AT&TFORM" + _BINARY),
    ("a DICOM image", "image", rb"(?=.{128}DICM)" + _BINARY),
    ("a Photo CD image", "image", rb"(?=.{2048}PCD_IPI)" + _BINARY),
    ("an MNG animation", "image", rb"[\x8a\x8b][MJ]NG\r\n"),
    ("an Amiga image", "image", rb"FORM\0.{3}(?:ILBM|PBM )"),
    ("a Windows metafile", "drawing", rb"\xd7\xcd\xc6\x9a|\x01\0\0\0.{36} EMF"),
    ("an EPS drawing", "drawing", rb"\xc5\xd0\xd3\xc6"),
    ("an M4A sound file", "sound", rb"\0\0.{2}ftypM4[ABP] "),
    ("an MPEG transport stream", "video", rb"(?=(?:.{4})?G.{187}(?:.{4})?G.{187}(?:.{4})?G)" + _BINARY),
    ("an MPEG video", "video", rb"\0\0\x01[\xba\xb3]"),
    ("a Windows Media video", "video", rb"\x30\x26\xb2\x75\x8e\x66\xcf\x11.*?\xc0\xef\x19\xbc\x4d\x5b\xcf\x11"),
    ("a Windows Media file", "sound", rb"\x30\x26\xb2\x75\x8e\x66\xcf\x11"),
    ("a Flash video", "video", rb"FLV\x01"),
    ("a RealMedia video", "video", rb"\.RMF\0"),
    ("an Ogg video", "video", rb"OggS\0.{0,2000}?\x80theora"),
    ("an MXF video", "video", rb"\x06\x0e\x2b\x34\x02\x05\x01\x01\x0d\x01\x02"),
    ("an IVF video", "video", rb"DKIF\0"),
    ("a sound file", "sound", rb"RIFF(?=.{4}WAVE)" + _BINARY + rb"|OggS\0|fLaC\0|ID3[\x02-\x04]\0"),
    ("a PDF", "document", rb"%PDF-\d\.\d\s"),
    ("a ZIP archive", "archive", rb"PK(?:\x03\x04|\x05\x06)"),
    ("a gzip file", "archive", rb"\x1f\x8b"),
    ("a bzip2 file", "archive", rb"BZh\d1AY&SY"),
    ("an xz file", "archive", rb"\xfd7zXZ\0"),
    ("a Zstandard file", "archive", rb"\x28\xb5\x2f\xfd"),
    ("a 7z archive", "archive", rb"7z\xbc\xaf"),
    ("a RAR archive", "archive", rb"Rar!\x1a\x07"),
    ("a tar archive", "archive", rb"(?=.{257}ustar[\0 ])" + _BINARY),
    ("a program", "other", rb"\x7fELF|MZ.?\0|[\xcf\xce]\xfa\xed\xfe|\xca\xfe\xba\xbe"),
    ("a side file of macOS", "other", rb"\0\x05\x16[\0\x07]"),
    ("a shortcut of Windows", "other", rb"\x4c\0\0\0\x01\x14\x02\0"),
    ("an Office file or a database of thumbnails", "other", rb"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"),
    ("a SQLite database", "other", rb"SQLite format 3\0"),
    ("a Parquet file", "other", rb"PAR1[\x15-\x19]"),
    ("a NumPy array", "other", rb"\x93NUMPY"),
    ("an HDF5 file", "other", rb"\x89HDF\r\n"),
)

_SPACE = rb"(?>\s+|#[^\r\n]*[\r\n])++"
_PROLOG = rb"(?>\s+|<!--.*?-->|<\?.*?\?>)*+"
# Images and drawings that begin like a text.
_IMAGE_TEXTS: tuple[tuple[str, _Family, bytes], ...] = (
    ("a PNM image", "image", rb"P[2356](?:" + _SPACE + rb"\d{1,6}){3}\s"),
    ("a PNM image", "image", rb"P[14](?:" + _SPACE + rb"\d{1,6}){2}\s+(?:[01\s]|[^ -~])"),
    ("a PNM image", "image", rb"P7\s+(?:#[^\n]*\n)*+(?:WIDTH|HEIGHT|DEPTH) \d|P[Ff]\s+\d+\s+\d+\s+[-\d]"),
    ("a Radiance HDR image", "image", rb"#\?(?:RADIANCE|RGBE)\s"),
    ("a FITS image", "image", rb"SIMPLE  = "),
    ("an XPM image", "image", rb"/\* XPM \*/"),
    ("an XBM image", "image", rb"#define \w+_width \d"),
    ("a YUV4MPEG video", "video", rb"YUV4MPEG2 "),
    ("an SVG drawing", "drawing", rb"(?i:" + _PROLOG + rb"<(?:!DOCTYPE svg|(?:\w+:)?svg)\b)"),
    ("an EPS drawing", "drawing", rb"%!PS-Adobe-\d\.\d EPSF"),
)
# What stands where an image was expected -> the whole line about it.
_TEXTS: tuple[tuple[bytes, str], ...] = (
    (
        rb"(?i:" + _PROLOG + rb"<(?:!DOCTYPE html|html|head|body|title|script|meta)\b)",
        "this is a web page, not an image: the download failed or needs a login; download the image itself",
    ),
    (
        rb"version https://(?:git-lfs|hawser)\.github\.com/spec/",
        "this is a Git LFS pointer, not the image itself; run `git lfs pull`",
    ),
    (rb"(?:\.\./|\./|/)*\.?(?:git/)?annex/objects/", "this is a git-annex pointer, not the image; run `git annex get`"),
    (
        rb"\s*+[{\[]\s*+[\"{}\[\]\d]",
        "this is JSON, such as a server's message about an error, not an image; download the image again",
    ),
    (
        _PROLOG + rb"<[A-Za-z!?]",
        "this is XML, such as a server's message about an error or a side file, not an image; name the image itself",
    ),
    (rb"data:image/|/9j/[\w+/]{8}|iVBORw0KGgo", "this is an image written as text (base64); decode it to a file first"),
    (rb"%!PS", "this is a PostScript document, not an image; export its pages as PNG"),
)


def _any_of(kinds: tuple[tuple[str, _Family, bytes], ...]) -> re.Pattern[bytes]:
    """Return one pattern whose group n is that of kind n, because folders may hold many other files."""
    return re.compile(b"|".join(b"(" + pattern + b")" for _, _, pattern in kinds), re.DOTALL)


_ANY_KIND, _ANY_IMAGE_TEXT = _any_of(_KINDS), _any_of(_IMAGE_TEXTS)
_CONTROL = re.compile(rb"[\0-\x08\x0e-\x1a\x1c-\x1f\x7f]")
_READ_HERE = "JPEG, PNG, WebP, AVIF, HEIC, JPEG 2000, JPEG XL, TIFF, BMP and GIF are read"


def image_format(data: bytes) -> str | None:
    """Return the name of an image format, as in containers.PARSERS, for the first bytes of such a file, else None."""
    if data.startswith(b"II*\0") and data.startswith(b"CR\x02\0", 8):  # a camera raw that begins like a TIFF
        return None
    for format, (offset, magics) in _IMAGES.items():
        if data.startswith(magics, offset) and (format != "webp" or data.startswith(b"RIFF")):
            return format if format != "bmp" or _is_binary(data) else None
    brands = _brands(data)
    if brands & {b"avif", b"avis"}:
        return "avif"
    return "heif" if brands & _HEIF_BRANDS else None


def video_format(data: bytes) -> str | None:
    """Return "mp4", "mov", "webm", "mkv" or "avi" for the first bytes of such a file, else None."""
    if data.startswith(b"RIFF") and data[8:12] == b"AVI " and _is_binary(data):
        return "avi"
    if data.startswith(b"\x1a\x45\xdf\xa3"):
        return "webm" if b"webm" in data[:64] else "mkv"
    if not data.startswith(b"\0") and data[4:8] != b"mdat":  # a text may hold any of these words
        return None
    if data[4:8] == b"ftyp":
        still = image_format(data) is not None or data[8:12] == b"crx "
        return None if still else "mov" if data[8:12] == b"qt  " else "mp4"
    # Older QuickTime files declare no brand (QuickTime File Format, "Movie Files").
    return "mov" if data[4:8] in (b"moov", b"mdat", b"wide", b"pnot", b"free", b"skip") and _is_binary(data) else None


def kind_of_file(data: bytes) -> str | None:
    """Return a name for the kind of file that begins like this, such as "a JPEG", or None.

    A text is no kind of file, even if it begins with "GIF89a" or "BM".
    """
    found = _kind(data)
    return None if found is None else found[0]


def holds_pictures(data: bytes) -> bool:
    """Return whether a file that begins like this is an image, a camera raw, a drawing or a video."""
    family = (_kind(data) or _image_text(data) or ("", "other"))[1]
    if family == "video" and data.startswith(b"\x1a\x45\xdf\xa3"):
        return b"V_" in data[:HEAD] or b"A_" not in data[:HEAD]  # Matroska may hold sound alone
    return family in ("image", "raw", "drawing", "video")


def is_side_file(data: bytes) -> bool:
    """Return whether this is what macOS writes beside each file, as "._NAME", on disks of other systems (RFC 1740)."""
    return data.startswith(b"\0\x05\x16\x07")


def unsupported(data: bytes) -> str:
    """Return the line for a row whose file is in no format that can be decoded here.

    It names the real format, and what reads it.
    """
    format = image_format(data)
    if format in _READERS:
        return f"this is {_named(format, data)}; to read it, run: {_READERS[format]}"
    if video_format(data) is not None and not _is_sound(data):
        return f"this is {(_kind(data) or ('a video', ''))[0]}; to score videos, run: {install('video')}"
    found = _kind(data) or _image_text(data)
    if found is not None:
        name, family = found
        return f"this is {name}{_ADVICE[family]}"
    if data and not data[:HEAD].strip(b"\0"):
        return "its bytes are zero, as after a copy that failed; copy it again from where it came"
    text = _text(data)
    if text is None:
        return f"these bytes are in no image format that is known here; {_READ_HERE}"
    line = next((line for pattern, line in _TEXTS if re.match(pattern, text, re.DOTALL)), None)
    return line or f"this is plain text, not an image; {_READ_HERE}"


_ADVICE: dict[_Family, str] = {
    "image": ", which is not read here; convert it to PNG or JPEG, for example with ImageMagick",
    "raw": "; develop it to JPEG or TIFF, for example with darktable, because its preview is not the picture",
    "drawing": ", which has no pixels; export it as PNG",
    "video": ", which is not read here; convert it to MP4, for example with ffmpeg",
    "sound": ", not an image",
    "archive": ", not an image; unpack it and give the images in it",
    "document": ", not an image; export its pages or pictures as PNG or JPEG",
    "other": ", not an image; give the image itself",
}


def _kind(data: bytes) -> tuple[str, _Family] | None:
    """Return the name and family of a file that no text begins like, or None."""
    found = _ANY_KIND.match(data[:HEAD])
    if found is not None:
        return _KINDS[(found.lastindex or 1) - 1][:2]
    if data.endswith(b"TRUEVISION-XFILE.\0"):
        return "a TGA image", "image"
    format = image_format(data)
    if format is not None:
        return (_named(format, data), "image") if _is_binary(data) else None
    format = video_format(data)
    return None if format is None else (_named(format, data), "video")


def _named(format: str, data: bytes) -> str:
    if format == "heif" and _brands(data) & _HEVC_BRANDS:
        return "a HEIC image"
    return "a 3GP video" if format == "mp4" and data[8:10] == b"3g" else _NAMES[format]


def _is_sound(data: bytes) -> bool:
    return (_kind(data) or ("", ""))[1] == "sound"


def _image_text(data: bytes) -> tuple[str, _Family] | None:
    text = data[:HEAD].removeprefix(codecs.BOM_UTF8)
    found = _ANY_IMAGE_TEXT.match(text)
    return None if found is None else _IMAGE_TEXTS[(found.lastindex or 1) - 1][:2]


def _is_binary(data: bytes) -> bool:
    return any(byte < 9 or 13 < byte < 32 for byte in data[:32])


def _text(data: bytes) -> bytes | None:
    """Return the beginning of a text in UTF-8, or None for anything else. Old pages in Latin-1 pass as they are."""
    head = data[:HEAD]
    for mark, encoding in ((codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be")):
        if head.startswith(mark):
            head = head[2:].decode(encoding, "ignore").encode("utf-8", "ignore")
    head = head.removeprefix(codecs.BOM_UTF8)
    if _CONTROL.search(head):
        return None
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        return head if re.match(_PROLOG + rb"<", head, re.DOTALL) else None
    return head


def _brands(data: bytes) -> set[bytes]:
    """Return the brands that an ISO base media file declares (ISO/IEC 14496-12, section 4.3)."""
    if data[4:8] != b"ftyp":
        return set()
    end = min(int.from_bytes(data[:4], "big"), 256)
    return {data[8:12], *(data[at : at + 4] for at in range(16, end, 4))}
