"""Image sequences: the cover or the first picture counts, HEVC and AV1 alike."""

from __future__ import annotations

import importlib.util
import io

import numpy as np
import pytest
from PIL import Image

from mdmf_deploy.errors import ImageError
from mdmf_deploy.images.containers.boxes import boxes, made
from mdmf_deploy.images.containers.heif_items import Item, Items
from mdmf_deploy.images.decode import decode

PHOTO = np.random.default_rng(0).integers(0, 256, (96, 160, 3)).astype(np.uint8)
FLAT = np.zeros((96, 160, 3), np.uint8)
FLAT[:48, :80], FLAT[:48, 80:], FLAT[48:, :80], FLAT[48:, 80:] = (
    (200, 30, 40),
    (20, 180, 60),
    (30, 60, 190),
    (90, 90, 90),
)


@pytest.mark.skipif(importlib.util.find_spec("PIL._avif") is None, reason="this Pillow cannot read AVIF")
@pytest.mark.parametrize("cover", [True, False])
def test_of_an_avif_sequence_the_first_picture_counts(cover: bool) -> None:
    file = io.BytesIO()
    frames = [Image.fromarray(pixels) for pixels in (FLAT, FLAT[::-1], 255 - FLAT)]
    frames[0].save(file, "AVIF", save_all=True, append_images=frames[1:], quality=100, subsampling="4:4:4", speed=10)
    data = file.getvalue()
    if not cover:  # only the track
        meta = next(box for box in boxes(data, 0, len(data), "heif") if box.kind == b"meta")
        data = data[: meta.start - 4] + b"free" + data[meta.start :]
    image = decode(data)
    assert image.format == "avif"
    np.testing.assert_allclose(image.pixels.astype(int), FLAT, atol=3)


def coded(pixels: np.ndarray) -> Item:
    """Return a picture that x265 has coded without loss."""
    pillow_heif = pytest.importorskip("pillow_heif")
    file = io.BytesIO()
    pillow_heif.from_pillow(Image.fromarray(pixels)).save(file, quality=-1, chroma=444, matrix_coefficients=0)
    data = file.getvalue()
    items = Items(data, next(box for box in boxes(data, 0, len(data), "heif") if box.kind == b"meta"))
    return items.item(items.primary or 0)


def sequence(samples: list[Item], handler: bytes = b"pict", wide: bool = False) -> bytes:
    """Return a file with one track of pictures and no items."""
    first = samples[0]
    kept = [made(found.kind, found.body) for found in first.properties if found.kind in (b"hvcC", b"colr")]
    sides = (160).to_bytes(2, "big") + (96).to_bytes(2, "big")
    entry = made(first.kind, bytes(6), b"\0\1", bytes(16), sides, bytes(50), *kept)
    sizes = b"".join(len(sample.data).to_bytes(4, "big") for sample in samples)
    count = len(samples).to_bytes(4, "big")
    head = made(b"ftyp", b"msf1", bytes(4), b"msf1hevc")

    def moov(start: int) -> bytes:
        offset = made(b"co64" if wide else b"stco", bytes(7), b"\1", start.to_bytes(8 if wide else 4, "big"))
        table = made(
            b"stbl",
            made(b"stsd", bytes(7), b"\1", entry),
            made(b"stsz", bytes(8), count, sizes),
            made(b"stsc", bytes(7), b"\1", bytes(3), b"\1", count, bytes(3), b"\1"),
            offset,
        )
        media = made(b"mdia", made(b"hdlr", bytes(8), handler, bytes(13)), made(b"minf", table))
        return made(b"moov", made(b"mvhd", bytes(100)), made(b"trak", made(b"tkhd", bytes(84)), media))

    return head + moov(len(head) + len(moov(0)) + 8) + made(b"mdat", *(sample.data for sample in samples))


@pytest.mark.parametrize("wide", [True, False])
def test_of_a_heic_sequence_the_first_sample_counts(wide: bool) -> None:
    data = sequence([coded(PHOTO), coded(PHOTO[::-1])], wide=wide)
    image = decode(data)
    assert image.format == "heif"
    np.testing.assert_array_equal(image.pixels, PHOTO)
    # Later samples do not matter, and the first one must be whole.
    first = len(data) - len(coded(PHOTO[::-1]).data)
    np.testing.assert_array_equal(decode(data[:first]).pixels, PHOTO)
    for end in (first - 1, data.index(b"mdat") + 50, data.index(b"stsz")):
        with pytest.raises(ImageError) as caught:
            decode(data[:end])
        assert caught.value.code == "truncated"


def test_a_sequence_without_pictures_is_corrupt() -> None:
    with pytest.raises(ImageError, match="no pictures") as caught:
        decode(sequence([coded(PHOTO)], handler=b"soun"))
    assert caught.value.code == "corrupt"
