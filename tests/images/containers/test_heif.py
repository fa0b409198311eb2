"""HEIF and AVIF: known pixels, turned once by their own properties, and no cut or lying file passes for a whole one."""

from __future__ import annotations

import importlib.util
import io
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mdmf_deploy.errors import ImageError
from mdmf_deploy.images import raster
from mdmf_deploy.images.containers import boxes, heif, heif_items, parse
from mdmf_deploy.images.decode import decode, decode_boxes
from mdmf_deploy.images.limits import DEFAULT_LIMITS, ReadLimits

pillow_heif = pytest.importorskip("pillow_heif")
AVIF = pytest.mark.skipif(importlib.util.find_spec("PIL._avif") is None, reason="this Pillow cannot read AVIF")
FORMATS = ["heif", pytest.param("avif", marks=AVIF)]
TURNED = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a.transpose(1, 0, 2)[::-1, ::-1],
    8: lambda a: np.rot90(a),
}
LOSSLESS = {"quality": -1, "chroma": 444, "matrix_coefficients": 0}
PHOTO = np.random.default_rng(0).integers(0, 256, (96, 160, 3)).astype(np.uint8)
# Four flat quarters survive a lossy codec within a level or two.
FLAT = np.zeros((96, 160, 3), np.uint8)
FLAT[:48, :80], FLAT[:48, 80:], FLAT[48:, :80], FLAT[48:, 80:] = (
    (200, 30, 40),
    (20, 180, 60),
    (30, 60, 190),
    (90, 90, 90),
)


def written(pixels: np.ndarray, format: str = "heif", **options: object) -> bytes:
    file = io.BytesIO()
    image = Image.fromarray(pixels)
    if format == "avif":
        image.save(file, "AVIF", quality=100, subsampling="4:4:4", speed=10, **options)
    else:
        pillow_heif.from_pillow(image).save(file, **{**LOSSLESS, **options})
    return file.getvalue()


def tags(**values: int) -> bytes:
    exif = Image.Exif()
    for tag, value in values.items():
        exif[int(tag[1:], 16)] = value
    return exif.tobytes()


def items_of(data: bytes) -> tuple[heif_items.Items, heif_items.Item]:
    meta = next(box for box in boxes.boxes(data, 0, len(data), "heif") if box.kind == b"meta")
    items = heif_items.Items(data, meta)
    return items, items.item(items.primary or 0)


def with_properties(data: bytes, *added: tuple[bytes, bytes]) -> bytes:
    """Return a file of the primary item alone, which must be one coded picture, with more properties."""
    _, item = items_of(data)
    item.properties += [heif_items.Property(kind, body, True) for kind, body in added]
    item.masks = []
    return heif_items.written([item], data[8:12])


def code_of(data: bytes) -> str:
    with pytest.raises(ImageError) as caught:
        decode(data)
    assert "\n" not in str(caught.value)
    return caught.value.code


def close(found: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(found.astype(int), expected, atol=3)


def test_a_lossless_heic_gives_the_very_pixels() -> None:
    image = decode(written(PHOTO))
    np.testing.assert_array_equal(image.pixels, PHOTO)
    assert (image.format, image.width, image.height) == ("heif", 160, 96)


def test_a_grid_of_tiles_gives_the_very_pixels() -> None:
    data = written(np.tile(PHOTO, (2, 2, 1))[:150, :210], tile_size=64)
    assert data.count(b"hvc1") > 9
    np.testing.assert_array_equal(decode(data).pixels, np.tile(PHOTO, (2, 2, 1))[:150, :210])


@AVIF
def test_an_avif_gives_known_pixels() -> None:
    image = decode(written(FLAT, "avif"))
    close(image.pixels, FLAT)
    assert (image.format, image.width, image.height) == ("avif", 160, 96)


@pytest.mark.parametrize("format", FORMATS)
def test_grey_is_repeated_and_alpha_is_laid_over_white(format: str) -> None:
    close(decode(written(FLAT[..., 0], format)).pixels, np.repeat(FLAT[..., :1], 3, axis=2))
    alpha = np.full((96, 160, 1), 255, np.uint8)
    alpha[:, 40:] = 0
    shown = decode(written(np.dstack([FLAT, alpha]), format)).pixels
    close(shown[:, :36], FLAT[:, :36])
    close(shown[:, 44:], np.full_like(FLAT[:, 44:], 255))


@pytest.mark.parametrize("value", [0, 3, 4, 513, 1019, 1020, 1023])
def test_of_ten_bits_the_highest_eight_count(value: int) -> None:
    file = io.BytesIO()
    ten = np.full((64, 64, 3), value << 6, np.uint16)
    pillow_heif.from_bytes("RGB;16", (64, 64), ten.tobytes()).save(file, **LOSSLESS)
    assert set(decode(file.getvalue()).pixels.flat) == {value >> 2}


@pytest.mark.parametrize("orientation", TURNED)
@pytest.mark.parametrize("format", FORMATS)
def test_own_properties_turn_it_once_and_exif_never_does(format: str, orientation: int) -> None:
    # Both libraries write an orientation in EXIF as irot and imir, and take it out of EXIF. Another tag of the same
    # type stays, and is made an orientation afterwards.
    data = written(FLAT, format, exif=tags(x0112=orientation, x0128=6 if orientation != 6 else 3))
    both = data.replace(b"\x01\x28\0\x03", b"\x01\x12\0\x03")
    assert both != data
    image = decode(both)
    close(image.pixels, TURNED[orientation](FLAT))
    assert (image.width, image.height) == ((160, 96) if orientation < 5 else (96, 160))
    box = decode_boxes(both, lambda height, width: [(width - 40, height - 30, width, height)]).boxes[0]
    np.testing.assert_array_equal(box, image.pixels[-30:, -40:])


def clap(width: int, height: int, across: tuple[int, int], down: tuple[int, int]) -> bytes:
    signed = [number.to_bytes(4, "big", signed=True) for number in (width, 1, height, 1, *across, *down)]
    return b"".join(signed)


@pytest.mark.parametrize(
    "aperture",
    [clap(100, 60, (0, 1), (0, 1)), clap(100, 60, (-30, 1), (18, 1)), clap(99, 61, (5, 2), (-7, 2))],
)
@pytest.mark.parametrize("turn", [(), ((b"irot", b"\1"),), ((b"irot", b"\3"), (b"imir", b"\1"))])
def test_a_clean_aperture_cuts_as_libheif_does(aperture: bytes, turn: tuple[tuple[bytes, bytes], ...]) -> None:
    data = with_properties(written(PHOTO), (b"clap", aperture), *turn)
    expected = np.asarray(pillow_heif.open_heif(io.BytesIO(data)).to_pillow())
    image = decode(data)
    np.testing.assert_array_equal(image.pixels, expected)
    container = parse(data, DEFAULT_LIMITS)
    assert (container.height, container.width) == expected.shape[:2]
    if importlib.util.find_spec("PIL._avif") is not None:
        lossy = decode(with_properties(written(FLAT, "avif"), (b"clap", aperture), *turn)).pixels
        flat = with_properties(written(FLAT), (b"clap", aperture), *turn)
        close(lossy, np.asarray(pillow_heif.open_heif(io.BytesIO(flat)).to_pillow()))


@pytest.mark.parametrize("format", FORMATS)
def test_no_cut_file_passes_for_a_whole_one(format: str) -> None:
    data = written(PHOTO, format)
    start = data.index(b"mdat") + 8
    for end in range(40, start, 23):
        assert code_of(data[:end]) in ("truncated", "corrupt", "unsupported_format")
    for end in (*range(start, len(data), 997), len(data) - 1):
        assert code_of(data[:end]) == "truncated"


@pytest.mark.parametrize("format", FORMATS)
def test_a_file_whose_end_never_came_does_not_pass(format: str) -> None:
    data = written(PHOTO, format)
    for end in range(data.index(b"mdat") + 8, len(data) - 200, 1999):
        assert code_of(data[:end] + bytes(len(data) - end)) in ("truncated", "corrupt")


@pytest.mark.parametrize("format", FORMATS)
def test_a_coded_picture_must_hold_one(format: str) -> None:
    """The table says that the data are there, and the units of the codec say that they are not."""
    data = written(PHOTO, format)
    _, item = items_of(data)
    item.masks = []
    for part in (item.data[: len(item.data) // 2], item.data[:-1], item.data[:20]):
        item.data = part
        assert code_of(heif_items.written([item], data[8:12])) == "truncated"


@AVIF
def test_an_avif_is_never_scaled_to_the_size_it_claims() -> None:
    data = written(FLAT, "avif")
    size = (160).to_bytes(4, "big") + (96).to_bytes(4, "big")
    for claimed in ((80, 48), (320, 192), (160, 97)):
        lie = claimed[0].to_bytes(4, "big") + claimed[1].to_bytes(4, "big")
        assert code_of(data.replace(size, lie)) == "corrupt"


@pytest.mark.parametrize("format", FORMATS)
def test_sizes_are_checked_before_the_codec_sees_anything(format: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(raster.READERS, format, lambda source: pytest.fail("the codec saw a bomb"))
    data = written(PHOTO, format)
    size = (160).to_bytes(4, "big") + (96).to_bytes(4, "big")
    assert code_of(data.replace(size, (17_000).to_bytes(4, "big") * 2)) == "too_many_pixels"
    assert code_of(data.replace(size, bytes(8))) == "corrupt"


def test_a_grid_whose_tiles_do_not_make_up_the_picture_is_corrupt(monkeypatch: pytest.MonkeyPatch) -> None:
    data = written(PHOTO, tile_size=64)
    monkeypatch.setitem(raster.READERS, "heif", lambda source: pytest.fail("the codec saw a bad grid"))
    tile = (64).to_bytes(4, "big") * 2
    assert tile in data
    assert code_of(data.replace(tile, (32).to_bytes(4, "big") * 2)) == "corrupt"
    assert code_of(data.replace(tile, (40_000).to_bytes(4, "big") * 2)) == "corrupt"
    narrow = data.replace((160).to_bytes(2, "big") + (96).to_bytes(2, "big"), (158).to_bytes(2, "big") + b"\0\x60")
    assert narrow != data
    assert code_of(narrow) == "corrupt"
    grid = bytes([0, 0, 1, 2]) + (160).to_bytes(2, "big") + (96).to_bytes(2, "big")
    assert grid in data
    assert code_of(data.replace(grid, bytes([0, 0, 200, 200]) + grid[4:])) == "corrupt"


def sized(width: int, height: int) -> heif_items.Property:
    return heif_items.Property(b"ispe", bytes(4) + width.to_bytes(4, "big") + height.to_bytes(4, "big"))


def gridded(size: tuple[int, int], tile: tuple[int, int], *more: heif_items.Property) -> bytes:
    """Return a file of one tile in a grid of one, with these sizes."""
    _, item = items_of(written(PHOTO))
    hidden = heif_items.Item(2, b"hvc1", [sized(*tile), *(p for p in item.properties if p.kind == b"hvcC")], item.data)
    body = bytes([0, 1, 0, 0]) + size[0].to_bytes(4, "big") + size[1].to_bytes(4, "big")
    return heif_items.written([heif_items.Item(1, b"grid", [sized(*size), *more], body, [2]), hidden], b"heic")


def test_neither_a_tile_nor_a_small_window_hides_a_bomb(monkeypatch: pytest.MonkeyPatch) -> None:
    np.testing.assert_array_equal(decode(gridded((150, 90), (160, 96))).pixels, PHOTO[:90, :150])
    monkeypatch.setitem(raster.READERS, "heif", lambda source: pytest.fail("the codec saw a bomb"))
    assert code_of(gridded((160, 96), (40_000, 40_000))) == "too_many_pixels"
    window = heif_items.Property(b"clap", clap(100, 60, (0, 1), (0, 1)), True)
    assert code_of(gridded((40_000, 40_000), (40_000, 40_000), window)) == "too_many_pixels"


def test_items_that_share_bytes_cost_them_once_and_overlaps_are_corrupt() -> None:
    _, item = items_of(written(PHOTO[:64, :64]))
    tiles = [heif_items.Item(n, b"hvc1", item.properties, item.data) for n in range(2, 102)]
    body = bytes([0, 0, 9, 9]) + (640).to_bytes(2, "big") * 2
    grid = heif_items.Item(1, b"grid", [sized(640, 640)], body, [tile.number for tile in tiles])
    data = heif_items.written([grid, *tiles], b"heic")
    assert len(data) < 2 * len(item.data) + 9999
    np.testing.assert_array_equal(decode(data).pixels, np.tile(PHOTO[:64, :64], (10, 10, 1)))
    grid.properties.append(heif_items.Property(b"clap", clap(100, 60, (0, 1), (0, 1)), True))
    with pytest.raises(ImageError) as caught:
        decode(heif_items.written([grid, *tiles], b"heic"), ReadLimits(max_pixels=100_000))
    assert caught.value.code == "too_many_pixels"
    place = data[data.index(b"iloc") + 4 + 8 + 16 + 8 :][:8]
    assert int.from_bytes(place[4:], "big") == len(item.data)
    overlapping = data
    for n in range(1, 90):
        other = (int.from_bytes(place[:4], "big") + n).to_bytes(4, "big") + (len(item.data) - n).to_bytes(4, "big")
        overlapping = overlapping.replace(place, other, 1)
    with pytest.raises(ImageError, match="overlap"):
        decode(overlapping)


def test_the_matrix_that_the_file_names_makes_rgb() -> None:
    data = written(PHOTO)
    at = data.index(b"colrnclx") + 8
    other = data[: at + 4] + b"\0\x09" + data[at + 6 :]
    expected = np.asarray(pillow_heif.open_heif(io.BytesIO(other)).to_pillow())
    assert (expected != PHOTO).any()
    np.testing.assert_array_equal(decode(other).pixels, expected)


@AVIF
def test_the_codec_decides_what_a_file_is() -> None:
    data = written(FLAT, "avif")
    image = decode(data.replace(b"ftypavif", b"ftypmif1"))
    assert image.format == "avif"
    close(image.pixels, FLAT)
    assert decode(data.replace(b"ftypavif", b"ftypheic").replace(b"avif", b"heic")).format == "avif"


@pytest.mark.parametrize("codec", [b"j2k1", b"vvc1", b"unci", b"jpeg", b"iovl"])
def test_another_codec_is_named(codec: bytes) -> None:
    with pytest.raises(ImageError, match=codec.decode()) as caught:
        decode(written(PHOTO).replace(b"hvc1", codec))
    assert caught.value.code == "unsupported_format"


def test_a_missing_decoder_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heif, "find_spec", lambda name: None)
    with pytest.raises(ImageError, match=r"HEIC image.*mdmf-deploy\[heif\]") as caught:
        decode(written(PHOTO))
    assert caught.value.code == "unsupported_format"


@AVIF
def test_an_old_pillow_is_told_from_a_damaged_avif(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heif, "find_spec", lambda name: None)
    with pytest.raises(ImageError, match=r"AVIF image.*Pillow>=11\.3") as caught:
        decode(written(FLAT, "avif"))
    assert caught.value.code == "unsupported_format"


@AVIF
@pytest.mark.parametrize("cover", [True, False])
def test_of_a_sequence_the_first_picture_counts(cover: bool) -> None:
    file = io.BytesIO()
    frames = [Image.fromarray(pixels) for pixels in (FLAT, FLAT[::-1], 255 - FLAT)]
    frames[0].save(file, "AVIF", save_all=True, append_images=frames[1:], quality=100, subsampling="4:4:4", speed=10)
    data = file.getvalue()
    if not cover:  # only the track
        meta = next(box for box in boxes.boxes(data, 0, len(data), "heif") if box.kind == b"meta")
        data = data[: meta.start - 4] + b"free" + data[meta.start :]
    image = decode(data)
    assert image.format == "avif"
    close(image.pixels, FLAT)


@pytest.mark.parametrize("format", FORMATS)
def test_only_what_pixels_depend_on_is_kept(format: str) -> None:
    plain, exif = written(PHOTO, format), written(PHOTO, format, exif=tags(x0128=1), xmp=b"<x:xmpmeta/>" * 9999)
    first, second = parse(plain, DEFAULT_LIMITS), parse(exif, DEFAULT_LIMITS)
    assert first.data == second.data
    assert first == parse(first.data, DEFAULT_LIMITS)
    assert first.memory >= PHOTO.size


def test_no_option_of_a_library_changes() -> None:
    pillow_heif.options.DECODE_THREADS += 1  # so that a value that was left behind shows
    before = dict(vars(pillow_heif.options)), list(Image.ID), dict(Image.EXTENSION)
    decode(written(PHOTO))
    assert before == (dict(vars(pillow_heif.options)), list(Image.ID), dict(Image.EXTENSION))


def test_a_jpeg_imports_no_decoder_of_another_format() -> None:
    file = io.BytesIO()
    Image.fromarray(PHOTO).save(file, "JPEG")
    code = (
        "import sys; from mdmf_deploy.images.decode import decode, decoder_version\n"
        f"decode(bytes.fromhex('{file.getvalue().hex()}')); decoder_version()\n"
        "print(sorted({'pillow_heif', '_pillow_heif', 'pillow_jxl'} & set(sys.modules)))"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"


SEEDS = [written(PHOTO[:16, :16]), written(PHOTO[:, :130], tile_size=64)]


def only_image_errors(data: bytes) -> None:
    try:
        container = parse(b"\0\0\0\x18ftypheic" + data[12:], DEFAULT_LIMITS)
    except ImageError:
        return
    assert container.memory > 0
    # What was kept is whole, and parsing it again changes nothing.
    assert parse(container.data, DEFAULT_LIMITS).data == container.data


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(SEEDS), st.lists(st.tuples(st.integers(12, 1200), st.binary(min_size=1, max_size=8)), max_size=4)
)
def test_damaged_structure_never_raises_anything_else(data: bytes, damage: list[tuple[int, bytes]]) -> None:
    damaged = bytearray(data)
    for at, found in damage:
        damaged[at : at + len(found)] = found
    only_image_errors(bytes(damaged))


def test_a_cut_at_any_byte_of_the_structure_never_raises_anything_else() -> None:
    data = SEEDS[1]
    for end in range(12, data.index(b"mdat") + 40):
        only_image_errors(data[:end])


def test_floods_of_table_entries_are_refused() -> None:
    start = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"
    extents = (1).to_bytes(2, "big") + bytes(4) + (60_000).to_bytes(2, "big") + bytes(8) * 60_000
    places = boxes.made(b"iloc", b"\1\0\0\0\x44\0", (9).to_bytes(2, "big"), extents * 9)
    assert code_of(start + boxes.made(b"meta", bytes(4), places)) == "corrupt"


def test_boxes_without_end_are_refused() -> None:
    data = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + b"\0\0\0\x08free" * (boxes.MOST_BOXES + 1)
    assert code_of(data) == "corrupt"
    assert code_of(data[:24] + b"\0\0\0\x04meta") == "corrupt"
