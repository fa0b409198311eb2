"""Structures that no writer here makes: directories and boxes in all the forms that their standards allow."""

from __future__ import annotations

import struct

import pytest
from helpers.labelled import packet

from mdmf_deploy.images.provenance import Provenance, read_provenance
from mdmf_deploy.images.provenance.metadata import metadata

XMP = packet(DigitalSourceType="trainedAlgorithmicMedia")
FOUND = Provenance("claims_ai", "XMP: trainedAlgorithmicMedia")
XMP_UUID = bytes.fromhex("be7acfcb97a942e89c71999491e3afac")
FTYP = struct.pack(">I4s4sI", 16, b"ftyp", b"heic", 0)


def box(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I4s", len(body) + 8, kind) + body


def tiff(tag: int, body: bytes, order: str, big: bool, pages: int = 1) -> bytes:
    """Return a TIFF whose last page alone has a tag, of bytes."""
    place = "Q" if big else "I"
    head = struct.pack(order + "HHHQ", 43, 8, 0, 16) if big else struct.pack(order + "HI", 42, 8)
    data = {"<": b"II", ">": b"MM"}[order] + head
    for page in range(1, pages + 1):
        value = (tag, 7, len(body)) if page == pages else (256, 3, 1)
        size = struct.calcsize(order + ("Q" if big else "H") + "HH" + 2 * place) + struct.calcsize(order + place)
        end = len(data) + size
        data += struct.pack(order + ("Q" if big else "H") + "HH" + 2 * place, 1, *value, end)
        data += struct.pack(order + place, 0 if page == pages else end)
    return data + body


@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("order", ["<", ">"])
def test_both_orders_and_sizes_of_tiff(order: str, big: bool) -> None:
    assert read_provenance(tiff(700, XMP, order, big)) == FOUND


def test_a_manifest_is_found_in_any_directory_and_xmp_in_the_first_alone() -> None:
    for pages in (1, 2, 5):
        assert metadata(tiff(52545, bytes(9), "<", False, pages)).manifest == "image/tiff"
        assert read_provenance(tiff(700, XMP, "<", False, pages)) == (FOUND if pages == 1 else Provenance())


@pytest.mark.parametrize("size", ["usual", "64 bits", "to the end"])
def test_sizes_of_boxes(size: str) -> None:
    body = XMP_UUID + XMP
    data = {
        "usual": box(b"uuid", body),
        "64 bits": struct.pack(">I4sQ", 1, b"uuid", len(body) + 16) + body,
        "to the end": struct.pack(">I4s", 0, b"uuid") + body,
    }[size]
    assert read_provenance(FTYP + box(b"free", b"") + data) == FOUND


@pytest.mark.parametrize(("version", "inside"), [(0, False), (1, False), (1, True), (2, False), (2, True)])
def test_items_in_and_outside_of_the_meta_box(version: int, inside: bool) -> None:
    """ISO/IEC 14496-12, section 8.11.3: construction method 1 counts from the beginning of the idat box."""
    number = ">I" if version == 2 else ">H"
    entry = b"\2\0\0\0" + struct.pack(">HH", 7, 0) + b"mime\0application/rdf+xml\0"
    listed = box(b"iinf", bytes(4) + b"\0\1" + box(b"infe", entry))

    def meta(offset: int) -> bytes:
        method = struct.pack(">H", int(inside)) if version else b""
        places = bytes([version, 0, 0, 0, 0x44, 0x00]) + struct.pack(number, 1)
        places += struct.pack(number, 7) + method + struct.pack(">HHII", 0, 1, offset, len(XMP))
        idat = box(b"idat", b"pad" + XMP) if inside else b""
        return box(b"meta", bytes(4) + listed + box(b"iloc", places) + idat)

    offset = 3 if inside else len(FTYP) + len(meta(0)) + 8
    data = FTYP + meta(offset) + (b"" if inside else box(b"mdat", XMP))
    assert read_provenance(data) == FOUND
