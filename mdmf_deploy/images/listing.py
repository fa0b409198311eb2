"""The files of a folder that are inputs: those whose name or first bytes say image or video."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path, PurePath

from mdmf_deploy.images.magic import HEAD, holds_pictures, is_side_file

_VIDEOS = (
    "3g2 3gp amv asf avi divx dv f4v flv hevc insv lrv m1v m2ts m2v m4v mjpeg mjpg mk3d mkv mov mp4 mpe mpeg mpg mpv "
    "mts mxf ogm ogv qt rm rmvb vob webm wmv y4m"
)
VIDEO_SUFFIXES = frozenset(f".{name}" for name in _VIDEOS.split())
"""Lower-case suffixes of videos."""

SUFFIXES = VIDEO_SUFFIXES | frozenset(
    f".{name}"
    for names in (
        # images
        "apng avci avcs avif avifs bmp bpg bw cur dcm dcx dds dib djv djvu exr fits flif gif hdr heic heics heif heifs "
        "hif hdp icns ico iff ilbm insp j2c j2k jfi jfif jif jng jp2 jpc jpe jpeg jpf jpg jpg2 jph jps jpx jxl jxr mng "
        "mpo pam pbm pcx pfm pgm pict png pnm pns ppm psb psd qoi ras sgi tga tif tiff wbmp wdp webp xbm xcf xpm",
        # drawings
        "emf eps svg svgz wmf",
        # camera raws
        "3fr ari arw bay cr2 cr3 crw dcr dng erf fff gpr iiq k25 kdc mef mos mrw nef nrw orf ori pef r3d raf rw2 rwl "
        "rwz sr2 srf srw x3f",
    )
    for name in names.split()
)
"""Lower-case suffixes that make a folder's files inputs, so that they need not be opened. Any other file may be one by
its content. That is why suffixes with more frequent other meanings are not here: .ts, .raw, .img, .pcd."""

SIDE_FILES = "._*"
"""The name under which the side files of macOS are counted."""


def is_named_like_input(name: str) -> bool:
    """Return whether the name alone makes a folder's file an input, as most do. For a hidden one, ask `skipped_as`."""
    return name[name.rfind(".") :].lower() in SUFFIXES and name[0] != "."


def skipped_as(path: Path, status: os.stat_result | None) -> str | None:
    """Return what to count a folder's file as if it is no input: its lower-case suffix, or SIDE_FILES. None for inputs.

    A file named like an image is not opened, whatever it holds, unless it is named like a side file.
    status: of the file, with links followed. None if the system does not tell, so that only the name can decide.
    """
    return skipped_by_head(path, lambda: _head(path, status))


def skipped_by_head(path: PurePath, head: Callable[[], bytes]) -> str | None:
    """Return the same for a file of any file system.  head: reads its first bytes, if its name does not decide."""
    suffix = path.suffix.lower()
    if path.name.startswith("._"):
        start = head()
        if is_side_file(start):
            return SIDE_FILES
        return None if suffix in SUFFIXES or holds_pictures(start) else suffix
    return None if suffix in SUFFIXES or holds_pictures(head()) else suffix


def _head(path: Path, status: os.stat_result | None) -> bytes:
    """Return the first bytes of a regular file, and none of anything else or of a file that cannot be read."""
    if status is None or not stat.S_ISREG(status.st_mode) or status.st_size == 0:
        return b""
    try:
        # O_NONBLOCK, because a pipe may have taken the file's place.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except OSError:
        return b""
    try:
        return os.read(descriptor, HEAD) if stat.S_ISREG(os.fstat(descriptor).st_mode) else b""
    except OSError:
        return b""
    finally:
        os.close(descriptor)
