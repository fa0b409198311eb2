"""A heat map apart from its picture gives the colours that `draw` paints, wherever the two are laid together."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from mdmf_deploy.detection.outputs.drawing import ColourScale, Layer, Picture, draw, heat_layers, palette
from mdmf_deploy.detection.rows import Row
from mdmf_deploy.errors import ShapeMismatch

SIDE, LEFT, TOP = 448, 20, 88  # of the picture in what `draw` returns
POOL = 4


def row(count: int) -> Row:
    generator = np.random.default_rng(count)
    # Most of them lie beyond the scale's ends, where colours are strongest.
    contributions = tuple(generator.uniform(-1, 1.2, count * POOL**2).tolist())
    return Row(uri="p.png", score=float(np.mean(contributions)), threshold=0.1, contributions=contributions)


def laid_over(picture: Image.Image, layer: Layer, opacity: float) -> np.ndarray:
    """Return a picture with a layer over it, as a browser shows them."""
    left, top, right, bottom = (round(share * side) for share, side in zip(layer.box, picture.size * 2, strict=True))
    stretched = (
        layer.image.convert("RGBa").resize((right - left, bottom - top), Image.Resampling.BILINEAR).convert("RGBA")
    )
    alpha = stretched.getchannel("A").point(lambda value: round(value * opacity))
    whole = picture.copy()
    whole.paste(stretched.convert("RGB"), (left, top), alpha)
    return np.asarray(whole).astype(int)


@pytest.mark.parametrize(("crop", "count"), [(224, 1), (112, 4), (240, 4), (448, 1), (600, 1)])
def test_at_half_opacity_it_is_the_drawn_map(crop: int, count: int) -> None:
    pixels = np.full((SIDE, SIDE, 3), 128, np.uint8)
    picture, given = Picture.of(pixels, crop, count), row(count)
    scale = ColourScale(0.1, 0.4, "threshold")
    layers = heat_layers(picture, given, POOL, crop, scale)
    drawn = np.asarray(draw(picture, given, POOL, crop, scale))[TOP : TOP + SIDE, LEFT : LEFT + SIDE].astype(int)
    difference = np.abs(laid_over(picture.whole, layers.whole, 0.5) - drawn).max(axis=2)
    # The drawn crops have frames of three pixels. Smoothing differs at the crops' edges.
    assert np.median(difference) <= 2
    assert np.percentile(difference, 90) <= 14
    np.testing.assert_array_equal(laid_over(picture.whole, layers.whole, 0.0), pixels)


def test_the_strongest_colours_are_opaque_and_the_centre_is_clear() -> None:
    pixels = np.full((SIDE, SIDE, 3), 128, np.uint8)
    contributions = (0.5,) * 8 + (0.1,) * 4 + (-0.3,) * 4  # the scale's ends and its centre
    given = Row(uri="p.png", score=1.0, threshold=0.1, contributions=contributions)
    layers = heat_layers(Picture.of(pixels, 224, 1), given, POOL, 224, ColourScale(0.1, 0.4, "threshold"))
    for layer in (layers.whole, layers.zoomed):
        shown = np.asarray(layer.image)
        assert shown[0, 0, 3] == shown[-1, -1, 3] == 255
        assert shown[0, 0, 0] > shown[0, 0, 2]
        assert shown[-1, -1, 2] > shown[-1, -1, 0]
        assert shown[shown.shape[0] * 5 // 8, 3, 3] < 40


def test_the_sheet_holds_the_scored_pixels() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (600, 800, 3), dtype=np.uint8)
    layers = heat_layers(Picture.of(pixels, 224, 1), row(1), POOL, 224, ColourScale(0.1, 0.4, "threshold"))
    np.testing.assert_array_equal(np.asarray(layers.sheet), pixels[188:412, 288:512])
    assert layers.zoomed.box == (0, 0, 1, 1)
    assert layers.crops == ((288 / 800, 188 / 600, 512 / 800, 412 / 600),)
    assert layers.whole.box == pytest.approx((288 / 800, 188 / 600, 512 / 800, 412 / 600), abs=0.01)


def test_a_picture_that_was_not_scored_is_refused() -> None:
    pixels = np.zeros((300, 300, 3), np.uint8)
    with pytest.raises(ShapeMismatch, match="draw the picture that was scored"):
        heat_layers(Picture.of(pixels, 224, 1), row(3), POOL, 224, ColourScale(0.1, 0.4, "threshold"))


def test_the_palette_goes_from_blue_to_red() -> None:
    colours = [[int(colour[at : at + 2], 16) for at in (1, 3, 5)] for colour in palette()]
    assert colours[0][2] > colours[0][0]
    assert colours[-1][0] > colours[-1][2]
    assert max(colours[3]) - min(colours[3]) == 0
