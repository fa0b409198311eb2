"""Readers of the formats that few files have: HEIF, AVIF, JPEG 2000 and JPEG XL. Their libraries are imported late.

Each reader takes the bytes of a Container. No reader registers anything with Pillow. Images are decoded in parallel,
so no library may start a thread per core. Only libde265 starts one, and waits for it.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from PIL import Image

from mdmf_deploy.errors import ImageError


def avif(source: io.BytesIO) -> Image.Image:
    """Return an AVIF's picture as stored, cut to its clean aperture. libavif ignores all transforms.

    Samples of 10 and 12 bits are scaled to 8 by libavif, to the nearest, while it makes RGB of them.
    """
    from PIL import AvifImagePlugin

    from mdmf_deploy.images.containers.heif import clean_aperture

    window = clean_aperture(source.getvalue())
    with _set(AvifImagePlugin, "DEFAULT_MAX_THREADS", 1):
        image = AvifImagePlugin.AvifImageFile(source)
    if window is None:
        return image
    image.load()
    return image.crop(window)


def heif(source: io.BytesIO) -> Image.Image:
    """Return a HEIC's picture, upright. libheif applies its transforms, and EXIF orientation is not there any more.

    Samples of 10 and 12 bits lose their lowest bits in libheif.
    """
    import pillow_heif

    with _set(pillow_heif.options, "DECODE_THREADS", 0):
        picture = pillow_heif.open_heif(source)[0]
        data = picture.data  # the size may change now
    return Image.frombytes(picture.mode, picture.size, data, "raw", picture.mode, picture.stride)


@contextmanager
def _set(module: Any, name: str, value: int) -> Iterator[None]:
    """Set an option that the library has for the whole process, for a moment."""
    before = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)


def jpeg2000(source: io.BytesIO) -> Image.Image:
    """Return a JPEG 2000's picture. It has no orientation."""
    from PIL import Jpeg2KImagePlugin

    return Jpeg2KImagePlugin.Jpeg2KImageFile(source)


def jpeg_xl(source: io.BytesIO) -> Image.Image:
    """Return a JPEG XL's picture, upright. libjxl applies the orientation and makes 8 bits of 16 in colour.

    Raises ImageError corrupt, also for a file that is cut short: libjxl does not say which.
    """
    decoder = _jpeg_xl_decoder()
    try:
        _, info, data, _, _ = decoder(num_threads=0)(source.getvalue())
    except RuntimeError as error:
        raise ImageError("corrupt", "jpeg_xl: it is damaged or ends early (libjxl does not say which)") from error
    return Image.frombytes(info.mode, (info.width, info.height), data)


def _jpeg_xl_decoder() -> Any:
    """Import the decoder, and take back what the package registers with Pillow unless it had been there before."""
    if "pillow_jxl" in sys.modules or "JXL" in Image.OPEN:
        import pillow_jxl

        return pillow_jxl.Decoder
    tables: list[Any] = [Image.ID, Image.OPEN, Image.SAVE, Image.EXTENSION, Image.MIME]
    copies = [table.copy() for table in tables]
    import pillow_jxl

    for table, copy in zip(tables, copies, strict=True):
        table.clear()
        (table.extend if isinstance(table, list) else table.update)(copy)
    return pillow_jxl.Decoder
