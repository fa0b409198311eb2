"""Heat maps to files: threads read each scored image or frame again, draw its map (drawing.py) and write it."""

from __future__ import annotations

import hashlib
import io
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

from PIL import Image

from mdmf_deploy.bundle.bundle import Bundle
from mdmf_deploy.detection.outputs.drawing import PANEL, ColourScale, Picture, crops_of, draw
from mdmf_deploy.detection.rows import Row
from mdmf_deploy.detection.videos import decode_frame
from mdmf_deploy.errors import ImageError, UsageError
from mdmf_deploy.files import atomic_file, failure
from mdmf_deploy.hardware.forks import Origin
from mdmf_deploy.hardware.host import cores
from mdmf_deploy.images.crops import boxes
from mdmf_deploy.images.decode import ReadLimits, decode, decode_boxes, read, sha256_of_video
from mdmf_deploy.scratch import remove_strays, scratch_file

# name -> ending, options of Pillow's save.
FORMATS: dict[str, tuple[str, dict[str, Any]]] = {
    "jpeg": (".jpg", {"format": "JPEG", "quality": 90}),
    "png": (".png", {"format": "PNG", "compress_level": 1}),
}


@dataclass(frozen=True, slots=True)
class HeatmapOptions:
    """How the heat maps of a run look.

    pool, crop: patches and pixels along one side of a crop.
    scale: the colours of all maps, around each row's own threshold. None means that each map gets a scale as wide as
        its own contributions.
    format: a name in FORMATS.
    Raises UsageError for another format.
    """

    pool: int
    crop: int
    scale: ColourScale | None = None
    format: str = "jpeg"
    limits: ReadLimits = field(default_factory=ReadLimits)

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise UsageError(f"heat maps as {self.format!r} are not known; choose one of {', '.join(FORMATS)}")

    @classmethod
    def of(
        cls, bundle: Bundle, format: str = "jpeg", *, comparable: bool = True, limits: ReadLimits | None = None
    ) -> HeatmapOptions:
        """Return the options for a bundle's rows.  comparable: whether all maps share one scale."""
        manifest = bundle.manifest
        scale = ColourScale.of_bundle(bundle) if comparable else None
        return cls(manifest.model.pool, manifest.preprocessing.crop, scale, format, limits or ReadLimits())


class HeatmapFolder:
    """A folder that gets one heat map per scored image.

    keep: leave the files that are there already alone, and give new ones other names.
    Raises UsageError at birth if the folder cannot be made or written to.
    """

    def __init__(self, folder: Path, options: HeatmapOptions, *, keep: bool = False) -> None:
        self._folder, self._options = folder, options
        self._taken: set[str] = set()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with scratch_file(folder / "heatmap"):
                remove_strays(folder)
        except OSError as error:
            raise UsageError(failure(f"--heatmaps {folder}", error, "choose a folder you can write to")) from error
        if keep:
            self._taken.update(path.name.casefold() for path in folder.iterdir())

    def write(self, row: Row, source: Path) -> Path | None:
        """Read the image again, draw the row's heat map over it and return its path, or None for a row without a score.

        The file is called <stem>.heatmap.jpg (or .png), or <stem>-2.heatmap.jpg and so on if another image took that
        name. It has that name only once it is complete.
        Raises ImageError if the image has changed since it was scored, and OSError if the folder takes no more.
        """
        work = self.reserve(row, source)
        return None if work is None else work()

    def reserve(self, row: Row, source: Path) -> Callable[[], Path] | None:
        """Choose the name of a row's heat map now, and return a function that does the rest of `write` on any thread.

        Returns None for a row without a score.
        """
        if row.contributions is None:
            return None
        path = self._folder / self._name(source)
        return partial(_write, path, row, source, self._options)

    def _name(self, source: Path) -> str:
        ending = FORMATS[self._options.format][0]
        stem = source.stem[:60]  # at most 240 of the 255 bytes that file systems allow in a name
        name, n = f"{stem}.heatmap{ending}", 1
        while name.casefold() in self._taken:
            n += 1
            name = f"{stem}-{n}.heatmap{ending}"
        self._taken.add(name.casefold())
        return name


class HeatmapPool:
    """Write heat maps on threads of their own, while the caller goes on. Close it, or use it in a `with` block.

    report: gets a row and the error for each map that failed, in the order of `add`, on the caller's thread.
    workers: threads. Each holds one picture. None means one per core, at most 8.
    """

    def __init__(
        self, folder: HeatmapFolder, report: Callable[[Row, Exception], None], workers: int | None = None
    ) -> None:
        workers = min(8, cores()) if workers is None else workers
        self._folder, self._report = folder, report
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="mdmf-heatmaps")
        self._waiting: deque[tuple[Row, Future[Path]]] = deque()
        self._most = 4 * workers
        self._origin = Origin("pool of heat maps")

    def add(self, row: Row, source: Path) -> None:
        """Draw the row's heat map soon. Names are given in the order of the calls.

        Waits while four maps a thread are unfinished, so that maps cannot pile up. Raises UsageError in a forked
        process.
        """
        self._origin.check()
        work = self._folder.reserve(row, source)
        if work is None:
            return
        self._waiting.append((row, self._pool.submit(work)))
        while self._waiting and (len(self._waiting) > self._most or self._waiting[0][1].done()):
            self._settle()

    def close(self) -> None:
        """Finish every map that was added, so that each row has its own, also after Ctrl-C.

        Does nothing in a forked process, whose parent finishes them.
        """
        if not self._origin.is_here:
            return
        try:
            while self._waiting:
                self._settle()
        finally:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> HeatmapPool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _settle(self) -> None:
        """Wait for the oldest map. Reports an error that concerns its image or the folder, and raises all others."""
        row, future = self._waiting[0]
        error = future.exception()
        self._waiting.popleft()
        if isinstance(error, ImageError | OSError):
            self._report(row, error)
        elif error is not None:
            raise error


def _write(path: Path, row: Row, source: Path, options: HeatmapOptions) -> Path:
    scale = ColourScale.of(row) if options.scale is None else options.scale.around(row)
    page = draw(scored_picture(row, source, options), row, options.pool, options.crop, scale)
    buffer = io.BytesIO()
    page.save(buffer, **FORMATS[options.format][1])
    # Not flushed to the disk: a map can be drawn again, and a flush takes longer than drawing.
    with atomic_file(path, durable=False) as scratch:
        scratch.write_bytes(buffer.getvalue())
    return path


def scored_picture(row: Row, source: Path, options: HeatmapOptions, fit: tuple[int, int] = PANEL) -> Picture:
    """Read an image again, or the frame of a video whose contributions the row has.

    fit: the width and height into which the caller will scale the picture down. It may come reduced, but no smaller.
    Raises ImageError if the file cannot be read, or has changed since it was scored.
    """
    return _frame(source, row, options) if _seconds(row) is not None else _image(source, row, options, fit)


def _seconds(row: Row) -> float | None:
    """Return the time of the frame whose contributions a row has, or None for an image."""
    return row.highest_time if row.frame_time is None else row.frame_time


def _frame(source: Path, row: Row, options: HeatmapOptions) -> Picture:
    """Decode the frame of a video that the map shows."""
    _check_unchanged(sha256_of_video(source, options.limits), row)
    frame = decode_frame(source, row.format or "", _seconds(row) or 0.0, options.limits)
    return Picture.of(frame.pixels, options.crop, crops_of(row, options.pool))


def _check_unchanged(sha256: str, row: Row) -> None:
    if sha256 != row.sha256:
        raise ImageError("unreadable", f"{row.uri} changed while it was scored; its heat map would be of another")


def _image(source: Path, row: Row, options: HeatmapOptions, fit: tuple[int, int]) -> Picture:
    """Decode no more pixels of an image than are shown."""
    data = read(source, options.limits)
    _check_unchanged(hashlib.sha256(data).hexdigest(), row)
    count = crops_of(row, options.pool)
    whole = decode(data, options.limits, fit=fit)
    if whole.pixels.shape[:2] == (whole.height, whole.width):
        return Picture.of(whole.pixels, options.crop, count)
    exact = decode_boxes(data, partial(boxes, size=options.crop, count=count), options.limits)
    return Picture(Image.fromarray(whole.pixels), exact.boxes, exact.width, exact.height)
