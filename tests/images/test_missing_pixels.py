"""A file whose structure is whole but whose pixels are not is never scored, in any format."""

from __future__ import annotations

from functools import partial

import pytest
from helpers.missing_pixels import KINDS, SIZE, can_make

from mdmf_deploy.errors import ImageError
from mdmf_deploy.images.crops import boxes
from mdmf_deploy.images.decode import decode, decode_boxes


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.9])
@pytest.mark.parametrize("name", KINDS)
def test_a_file_that_lacks_pixels_is_truncated_or_corrupt(name: str, share: float) -> None:
    if not can_make(name):
        pytest.skip("the libraries here do not write this format")
    data = KINDS[name](share)
    for work in (decode, partial(decode_boxes, place=partial(boxes, size=28))):
        with pytest.raises(ImageError) as caught:
            work(data)
        assert caught.value.code in ("truncated", "corrupt")


@pytest.mark.parametrize("name", KINDS)
def test_the_same_file_with_all_its_pixels_is_whole(name: str) -> None:
    """Or the files above would fail for another reason."""
    if not can_make(name) or name == "tiff strips":
        pytest.skip("no such file can be made")
    image = decode(KINDS[name](1.0))
    assert (image.width, image.height) == SIZE
