"""Files that were judged wrongly once get their code for good, with whatever decoders are installed."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from helpers.bad_inputs import jpeg
from helpers.failed_once import FAILED_ONCE, OK, motion_photo, small_first_frame, wrong_comment_length

from mdmf_deploy.errors import ImageError
from mdmf_deploy.images.crops import boxes
from mdmf_deploy.images.decode import decode, decode_boxes


@pytest.mark.parametrize("name", FAILED_ONCE)
def test_a_file_that_failed_once_gets_its_code(name: str) -> None:
    make, code = FAILED_ONCE[name]
    data = make()
    assert len(data) < 20_000
    for work in (decode, partial(decode_boxes, place=partial(boxes, size=28))):
        try:
            work(data)
        except ImageError as error:
            found = error.code

        else:
            found = OK
        assert found == code


def test_what_no_picture_of_a_gif_covers_is_white() -> None:
    pixels = decode(small_first_frame()).pixels
    assert (pixels[1:, 1:] == 255).all()


def test_what_stands_around_a_jpeg_s_picture_leaves_its_pixels() -> None:
    for data in (motion_photo(), wrong_comment_length()):
        np.testing.assert_array_equal(decode(data).pixels, decode(jpeg()).pixels)
