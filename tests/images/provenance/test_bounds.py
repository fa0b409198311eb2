"""Whatever the bytes are, reading claims raises nothing and takes little memory, and damage hides nothing else."""

from __future__ import annotations

import struct
import tracemalloc
import zlib
from collections.abc import Callable
from functools import cache

import pytest
from helpers.labelled import packet, picture, with_exif, with_segment, with_text, with_xmp
from hypothesis import given, settings
from hypothesis import strategies as st

from mdmf_deploy.images.provenance import Provenance, read_provenance
from mdmf_deploy.images.provenance.findings import unsigned_findings
from mdmf_deploy.images.provenance.metadata import metadata

XMP = packet(DigitalSourceType="trainedAlgorithmicMedia")
A1111 = "a cat\nSteps: 20, Sampler: Euler a, Seed: 1"
PNG = b"\x89PNG\r\n\x1a\n"
FTYP = struct.pack(">I4s4sI", 16, b"ftyp", b"avif", 0)
MAGICS = [b"\xff\xd8\xff", PNG, b"RIFF\0\0\0\0WEBP", b"II*\0", b"MM\0*", b"II+\0\x08\0\0\0", b"MM\0+\0\x08\0\0", FTYP]
NAMES = [
    *(b"tEXtparameters\0", b"zTXtprompt\0\0", b"iTXtXML:com.adobe.xmp\0\1\0\0\0", b"eXIfII*\0", b"EXIF", b"XMP "),
    *(b"meta", b"iinf", b"iloc", b"infe", b"uuid", b":DigitalSourceType="),
    *(b"\xff\xe1\0\x20Exif\0\0MM\0*", b"\xff\xed\0\x20"),
    *(struct.pack(">HHII", 305, 2, 40, 8), struct.pack(">HHII", 34665, 4, 1, 8)),
]


@cache
def whole() -> dict[str, bytes]:
    """Return a file with claims in each format, by name."""
    return {
        "jpeg": with_xmp("JPEG", XMP),
        "png": with_text("parameters", A1111, "zTXt"),
        "png xmp": with_xmp("PNG", XMP),
        "webp": with_exif("WEBP", {305: "Midjourney"}, {37510: b"UNICODE\0" + A1111.encode("utf-16-be")}),
        "tiff": with_xmp("TIFF", XMP),
        "avif": with_xmp("AVIF", XMP),
    }


def findings(data: bytes) -> int:
    """Read the claims without the net that read_provenance is. Returns their number."""
    return len(unsigned_findings(metadata(data)))


@pytest.mark.parametrize("name", ["jpeg", "png", "png xmp", "webp", "tiff", "avif"])
def test_a_file_cut_at_any_place_is_read(name: str) -> None:
    data = whole()[name]
    assert findings(data) > 0
    assert findings(b"") == 0
    for end in range(min(len(data), 4000)):
        findings(data[:end])


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(sorted(whole())),
    st.lists(st.tuples(st.integers(0, 1200), st.binary(min_size=1, max_size=4)), min_size=1, max_size=8),
)
def test_a_damaged_file_is_read(name: str, changes: list[tuple[int, bytes]]) -> None:
    data = bytearray(whole()[name])
    for at, new in changes:
        data[at : at + len(new)] = new
    findings(bytes(data))


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(MAGICS),
    st.lists(st.one_of(st.binary(max_size=24), st.sampled_from(NAMES), st.sampled_from([b"\xff" * 8, bytes(7)]))),
)
def test_any_bytes_after_a_formats_first_ones_are_read(magic: bytes, parts: list[bytes]) -> None:
    data = magic + b"".join(parts)
    findings(data)
    read_provenance(data)


def test_an_error_in_the_walk_costs_no_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mdmf_deploy.images.provenance.findings.metadata", None)
    assert read_provenance(picture("JPEG")) == Provenance()


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I4s", len(body), kind) + body + bytes(4)


def box(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I4s", len(body) + 8, kind) + body


def bomb() -> bytes:
    return chunk(b"zTXt", b"parameters\0\0" + zlib.compress(bytes(2**24)))


def items() -> bytes:
    item = box(b"infe", b"\2\0\0\0\0\1\0\0Exif\0")
    return box(b"meta", bytes(4) + box(b"iinf", bytes(4) + b"\xff\xff" + 2000 * item) + box(b"iloc", b"\1" + bytes(99)))


SEGMENT = b"\xff\xe1\xff\xffhttp://ns.adobe.com/xap/1.0/\0" + bytes(0xFFFF - 31)
SPACES = chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + 1200 * (b":Credit>" + b" " * 200))
FLOODS: dict[str, Callable[[], bytes]] = {
    "text bombs": lambda: PNG + 60 * bomb(),
    "XMP bomb": lambda: PNG + chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(bytes(2**25))),
    "empty chunks": lambda: PNG + 300_000 * chunk(b"abCd", b""),
    "segments": lambda: b"\xff\xd8" + 300 * SEGMENT,
    "fill bytes": lambda: b"\xff\xd8" + 10_000_000 * b"\xff",
    "restart markers": lambda: b"\xff\xd8" + 5_000_000 * b"\xff\xd0",
    "boxes": lambda: FTYP + 300_000 * box(b"free", b""),
    "items": lambda: FTYP + 100 * items(),
    "tags": lambda: b"II*\0\x08\0\0\0\xff\xff" + 65535 * struct.pack("<HHII", 270, 2, 700_000, 8) + bytes(64),
    "directories in a circle": lambda: b"II*\0\x08\0\0\0" + struct.pack("<HHHIII", 1, 270, 2, 2**31, 8, 8),
    "XMP of spaces": lambda: PNG + 20 * SPACES,
    "half a recipe": lambda: PNG + 20 * chunk(b"tEXt", b"parameters\0" + 20_000 * b'Steps: 1 \0{ "'),
}


@pytest.mark.parametrize("name", FLOODS)
def test_floods_take_little_memory_and_claim_nothing(name: str) -> None:
    data = FLOODS[name]()
    tracemalloc.start()
    try:
        found = read_provenance(data)
        assert tracemalloc.get_traced_memory()[1] < 8 * 2**20
    finally:
        tracemalloc.stop()
    assert found == Provenance()


def test_entities_are_not_expanded() -> None:
    entities = b'<!DOCTYPE x [<!ENTITY a "trainedAlgorithmicMedia"><!ENTITY f SYSTEM "file:///etc/passwd">]>'
    assert read_provenance(with_xmp("JPEG", entities + packet(DigitalSourceType="&a;"))) == Provenance()
    assert read_provenance(with_xmp("JPEG", entities + packet(CreatorTool="&f;"))) == Provenance()


def test_damage_to_one_part_hides_no_other() -> None:
    text = chunk(b"tEXt", b"parameters\0" + A1111.encode())
    for before in (chunk(b"zTXt", b"prompt\0\0no zlib"), chunk(b"eXIf", b"II*\0\xff\xff\xff\xff"), chunk(b"tEXt", b"")):
        assert read_provenance(PNG + before + text).claim == "claims_ai"
    exif = with_segment(0xE1, b"Exif\0\0MM\0*\xff\xff\xff\xff" + bytes(8))
    xmp = b"http://ns.adobe.com/xap/1.0/\0" + XMP
    segment = b"\xff\xe1" + struct.pack(">H", len(xmp) + 2) + xmp
    assert read_provenance(exif[:2] + segment + exif[2:]).claim == "claims_ai"
    uuid = box(b"uuid", bytes.fromhex("be7acfcb97a942e89c71999491e3afac") + XMP)
    assert read_provenance(FTYP + box(b"meta", bytes(3)) + uuid).claim == "claims_ai"
