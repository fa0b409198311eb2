"""The detector: a bundle and an engine that runs it, from sources to rows."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, NoReturn

from mdmf_deploy import __version__
from mdmf_deploy.bundle import DEFAULT_BUNDLE
from mdmf_deploy.bundle.bundle import Bundle, shipped_name
from mdmf_deploy.detection.feed import Extraction, ImageScore, Prepared, prepare
from mdmf_deploy.detection.pipeline import extract_batches, extract_prepared, flat
from mdmf_deploy.detection.probes import check_probes
from mdmf_deploy.detection.reductions import choose_reduction
from mdmf_deploy.detection.rows import Row
from mdmf_deploy.detection.second_look import SecondLook
from mdmf_deploy.detection.settings import RunSettings, short
from mdmf_deploy.detection.sources import Source, Taken, take_each
from mdmf_deploy.detection.streams import Stream, Streams
from mdmf_deploy.detection.verdicts import Copy, Verdicts
from mdmf_deploy.errors import BundleError, UsageError
from mdmf_deploy.images.decode import ReadLimits
from mdmf_deploy.images.limits import FRAMES, MOST_FRAMES
from mdmf_deploy.images.pixels import Colour
from mdmf_deploy.mmd import Reduction, score_images
from mdmf_deploy.runtime import Engine, open_engine

if TYPE_CHECKING:
    from mdmf_deploy.detection.on_gpu import Fused

OnExtraction = Callable[[Extraction], None] | None
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class DetectorSpec:
    """How to open a detector like another one. It can be pickled, so that a worker process can open its own.

    bundle: an absolute path, or the name of a bundle shipped in the package.
    bundle_id, calibration_id: of the bundle when the first detector opened it.
    The other fields are arguments of Detector, with "auto" and defaults resolved. threads stays None for one per core,
    so that it is one per core of the worker's machine.
    """

    bundle: str
    bundle_id: str
    calibration_id: str | None
    runtime: str
    threads: int | None
    batch_size: int
    crops: int
    limits: ReadLimits
    reduction: str
    frames: int | None
    probe: bool

    def open(self) -> Detector:
        """Open a detector that gives the same rows.

        Raises BundleError if the bundle or its calibration has changed, and otherwise as Detector does.
        """
        detector = Detector(
            self.bundle,
            self.runtime,
            self.threads,
            batch_size=self.batch_size,
            crops=self.crops,
            limits=self.limits,
            reduction=self.reduction,
            frames=self.frames,
            probe=self.probe,
        )
        for name in ("bundle_id", "calibration_id"):
            found, wanted = getattr(detector.bundle, name), getattr(self, name)
            if found != wanted:
                detector.close()
                raise BundleError(
                    f"{detector.bundle.path}: {name} is {short(found)}, and {short(wanted)} in the spec; give every "
                    "worker the same bundle"
                )
        return detector


class Detector:
    """Score images with one bundle on one runtime.

    >>> from mdmf_deploy import Detector
    >>> with Detector("dinov2s") as detector:
    ...     [row] = detector.detect("photo.jpg")
    >>> row.uri, row.status, row.format
    ('photo.jpg', 'ok', 'jpeg')

    bundle: a .mdmf folder, or the name of a bundle shipped in the package.
    runtime: a name in mdmf_deploy.runtime.ENGINES, or "auto".
    threads: how many threads decoding, the engine and the reduction use, each. None means one per core.
    batch_size: the most crops given to the engine at once. Rows depend on neither threads nor batch_size.
    crops: the most crops taken of one image. Its score is the mean of theirs. None means the bundle's plan, for which
        alone its thresholds hold.
    limits: the most bytes and pixels an image may have.
    reduction: "cpu", "cuda" or "auto". "auto" means cuda if the runtime can leave the signatures on a GPU.
    frames: the most frames taken of a video, 1 to 100. Its score is the mean of theirs. None refuses videos.
    probe: look again at changed copies of images whose score is near the threshold (detection/second_look.py).
    Raises BundleError if the bundle is missing or damaged, or the runtime does not give the signatures that it holds of
    its own probe images. Raises RuntimeUnavailable if the runtime or the reduction is.

    Importing this module routes the warnings of Pillow's readers through mdmf_deploy.images, in the whole process.
    Warnings that come while it decodes are logged. All others pass through unchanged.
    """

    def __init__(
        self,
        bundle: str | Path = DEFAULT_BUNDLE,
        runtime: str = "auto",
        threads: int | None = None,
        *,
        batch_size: int = 8,
        crops: int | None = None,
        limits: ReadLimits | None = None,
        reduction: str = "auto",
        frames: int | None = FRAMES,
        probe: bool = False,
    ) -> None:
        start = time.perf_counter()
        self.bundle = Bundle.open(bundle)
        # Now, because the program may change its folder later.
        self._name = shipped_name(self.bundle.path) or str(self.bundle.path.absolute())
        # Read now, so that a damaged bundle fails before an engine is opened.
        bundle_id, _ = self.bundle.bundle_id, self.bundle.calibration
        self._bank = self.bundle.bank
        self._threads, self._batch_size, self._limits = threads, batch_size, limits or ReadLimits()
        self._frames, self._probe = frames, probe
        self._crops = self.bundle.manifest.preprocessing.crops if crops is None else crops
        if frames is not None and not 1 <= frames <= MOST_FRAMES:
            raise UsageError(f"frames must be 1 to {MOST_FRAMES}, got {frames}")
        _LOG.debug("read bundle %s, id %s, in %.2f s", self.bundle.path, bundle_id, time.perf_counter() - start)
        self._held = ExitStack()
        self._asked, self._streams = runtime, Streams()
        self._engine = open_engine(runtime, self.bundle, threads)
        self._held.callback(self._engine.close)
        self._verdicts = Verdicts(self.bundle, self._engine.name, self._engine.precision, self._crops)
        try:
            check_probes(self.bundle, self._engine)
            self._reduction, fused = choose_reduction(reduction, self._engine, self._bank, threads, self._held)
            # A second look calls the engine beside the stream, which would overwrite signatures that stay on a GPU.
            self._fused = None if probe else fused
        except BaseException:
            self.close()
            raise

    def __repr__(self) -> str:
        state = ", closed" if self._streams.closed else ""
        return f"<Detector {self.bundle.path.name} on {self._engine.name} {self._engine.precision}{state}>"

    def detect(
        self,
        sources: Source | Iterable[Source],
        *,
        name: str | None = None,
        colour: Colour = "rgb",
        each_frame: bool = False,
    ) -> list[Row]:
        """Return one row per source, in order. A single source gives a list of one row.

        sources: in any mixture, paths of image and video files, the bytes of such files, file objects open for reading
            bytes, Pillow images, and uint8 arrays: grey (H, W), colour (H, W, 3), or colour and alpha (H, W, 4).
        name: the uri of a single source's row. Among several, write Named(source, name).
        colour: the order of the arrays' channels, "rgb" or, as OpenCV has it, "bgr".
        each_frame: give a row for each frame of a video instead of one for all of it.
        Pixels are converted as a file's are: alpha is laid over white, and the EXIF orientation that a Pillow image
        still carries is applied. An unreadable source gets a row with status "error" and an error_code (docs/rows.md
        lists the codes).
        Raises UsageError if the detector is closed, a source is of another type, or `name` is given for several.

        >>> import numpy as np
        >>> from pathlib import Path
        >>> detector = Detector("dinov2s")
        >>> rows = detector.detect(["photo.jpg", Path("photo.jpg").read_bytes(), np.zeros((300, 400, 3), np.uint8)])
        >>> [row.uri for row in rows]
        ['photo.jpg', 'bytes:1', 'array:2']
        >>> rows[0].score == rows[1].score
        True
        >>> detector.detect(np.zeros((300, 400), np.uint8), name="frame 12")[0].uri
        'frame 12'
        >>> detector.detect("nowhere.jpg")[0].error_code
        'missing'
        >>> detector.close()
        """
        return list(self.stream(sources, name=name, colour=colour, each_frame=each_frame))

    def stream(
        self,
        sources: Source | Iterable[Source],
        *,
        name: str | None = None,
        colour: Colour = "rgb",
        each_frame: bool = False,
    ) -> Generator[Row, None, None]:
        """Yield the rows of `detect` one by one. Sources are taken as they are needed, so there may be any number.

        They are iterated in another thread, which reads file objects, and copies arrays and Pillow images. So an
        iterator may close each one, or use it again for the next source, as soon as it is asked for that. A row waits
        for later sources at most 0.2 s. One thread at a time may read a stream.

        >>> with Detector("dinov2s") as detector:
        ...     for row in detector.stream(["photo.jpg", "nowhere.jpg"]):
        ...         print(row.uri, row.status)
        photo.jpg ok
        nowhere.jpg error
        """
        return flat(self.stream_by_source(sources, name=name, colour=colour, each_frame=each_frame))

    def stream_by_source(
        self,
        sources: Source | Iterable[Source],
        *,
        name: str | None = None,
        colour: Colour = "rgb",
        each_frame: bool = False,
        on_extraction: Callable[[Extraction], None] | None = None,
    ) -> Generator[tuple[Row, ...], None, None]:
        """Yield the rows of `stream`, together for each source: one, or with each_frame one for each frame of a video.

        on_extraction: is called with the signatures and facts of each source, right before its rows are yielded. So
            signatures are fetched from the GPU where they would have stayed there, which is slower.

        >>> with Detector("dinov2s") as detector:
        ...     print([len(rows) for rows in detector.stream_by_source(["photo.jpg", "nowhere.jpg"])])
        [1, 1]
        """
        self._streams.check()
        preprocessing = self.bundle.manifest.preprocessing
        taken = take_each(sources, self._limits, name, colour)
        again = SecondLook(taken, self._verdicts, preprocessing.crop, self._limits) if self._probe else None
        batches = extract_batches(
            again.sources() if again else taken,
            self._engine,
            preprocessing,
            batch_size=self._batch_size,
            crops=self._crops,
            workers=self._threads,
            limits=self._limits,
            frames=self._frames,
            fused=None if on_extraction is not None else self._fused,
        )
        return self._rows(self._streams.add(batches), each_frame, on_extraction, again)

    def rows_of(
        self,
        prepared: Iterable[Prepared],
        *,
        each_frame: bool = False,
        on_extraction: Callable[[Extraction], None] | None = None,
    ) -> Generator[tuple[Row, ...], None, None]:
        """Yield the rows of sources that another process has read and cropped, as `stream_by_source` would.

        prepared: with this bundle's preprocessing, by mdmf_deploy.detection.feed.prepare.
        on_extraction: as of `stream_by_source`. Scoring runs on the calling thread.
        Raises UsageError if the detector looks again at images, because they are not here.
        """
        self._streams.check()
        if self._probe:
            raise UsageError("rows_of has no images to look at again; open the detector without probe=True")
        batches = self._extracted(prepared, None if on_extraction is not None else self._fused)
        return self._rows(self._streams.add(batches), each_frame, on_extraction)

    @property
    def runtime(self) -> str:
        """The name of the runtime that was opened."""
        return self._engine.name

    @property
    def engine(self) -> Engine:
        """The engine that extracts signatures. The detector closes it. Raises UsageError after that."""
        self._streams.check()
        return self._engine

    @property
    def reduction(self) -> Reduction:
        """The reduction that scores signatures against the bundle's bank. Raises UsageError in a closed detector."""
        self._streams.check()
        return self._reduction

    @property
    def caveat(self) -> str | None:
        """The reason why no image gets a verdict, and the command to run. None if all is well."""
        return self._verdicts.caveat(self._asked)

    def settings(self, each_frame: bool = False) -> RunSettings:
        """Return everything besides an input's bytes that decides its rows.  each_frame: as in `detect`."""
        return RunSettings(
            tool=__version__,
            bundle_id=self.bundle.bundle_id,
            calibration_id=self.bundle.calibration_id,
            runtime=self._engine.name,
            precision=self._engine.precision,
            verdicts=self._verdicts.hold,
            crops=self._crops,
            frames=self._frames,
            each_frame=each_frame,
            probe=self._probe,
            max_pixels=self._limits.max_pixels,
            max_memory=self._limits.max_memory,
            max_seconds=self._limits.max_seconds,
        )

    def spec(self) -> DetectorSpec:
        """Return a small value that can be pickled, and whose `open` gives a worker process a detector like this one.

        >>> with Detector("dinov2s", threads=1) as detector:
        ...     spec = detector.spec()
        >>> with spec.open() as same:
        ...     [row] = same.detect("photo.jpg")
        """
        return DetectorSpec(
            bundle=self._name,
            bundle_id=self.bundle.bundle_id,
            calibration_id=self.bundle.calibration_id,
            # The runtime as it was asked for may name a build profile.
            runtime=self.runtime if self._asked == "auto" else self._asked,
            threads=self._threads,
            batch_size=self._batch_size,
            crops=self._crops,
            limits=self._limits,
            reduction=self._reduction.name,
            frames=self._frames,
            probe=self._probe,
        )

    def __reduce__(self) -> NoReturn:
        raise UsageError(
            "a detector cannot be pickled or copied; give the worker Detector.spec(), and let it call open() there"
        )

    def close(self) -> None:
        """Free the engine and the reduction's memory, and end all streams. Closing twice does nothing more.

        The detector cannot be used afterwards: `detect`, and a stream that has not ended, raise UsageError.
        In a forked process this frees nothing, because all of it belongs to the parent.
        Raises UsageError if another thread is waiting for a row. Then the detector stays open, and so do all streams.
        """
        if self._streams.close():
            self._held.close()

    def __enter__(self) -> Detector:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _rows(
        self, stream: Stream, each_frame: bool, on_extraction: OnExtraction, again: SecondLook | None = None
    ) -> Generator[tuple[Row, ...], None, None]:
        with closing(stream):
            while True:
                with self._streams.inside():
                    batch = stream.next()
                    if batch is None:
                        return
                    scores = self._scores(batch)
                for n, extraction in enumerate(batch):
                    if on_extraction is not None:
                        on_extraction(extraction)
                    rows = self._verdicts.rows(extraction, scores.get(n), each_frame)
                    if again is not None:
                        with self._streams.inside():
                            rows = again.rows(rows, self._copies)
                    yield rows
                    self._streams.check()

    def _extracted(self, prepared: Iterable[Prepared], fused: Fused | None) -> Generator[list[Extraction], None, None]:
        plan = self.bundle.manifest.preprocessing
        return extract_prepared(prepared, self._engine, plan, batch_size=self._batch_size, fused=fused)

    def _copies(self, sources: Iterable[Taken]) -> Iterator[Copy]:
        """Yield the scores of changed copies. One that cannot be prepared is left out."""
        plan = self.bundle.manifest.preprocessing
        prepared = (prepare(0, source, plan, self._crops, self._limits) for source in sources)
        for batch in self._extracted(prepared, None):
            for n, image in self._scores(batch).items():
                yield Copy(image.score, batch[n].evidence or 0.0)

    def _scores(self, batch: list[Extraction]) -> dict[int, ImageScore]:
        """Return the scores by place in the batch. One reduction scores the crops of all images."""
        scores = {n: extraction.gpu_score() for n, extraction in enumerate(batch) if extraction.gpu_score is not None}
        places = {n: one.signatures for n, one in enumerate(batch) if one.signatures is not None}
        start = time.perf_counter()
        reduced = score_images(self._reduction, list(places.values()), self._bank)
        ms_mmd = 1e3 * (time.perf_counter() - start) / max(1, len(places))
        for n, (score, contributions) in zip(places, reduced, strict=True):
            scores[n] = ImageScore(score, contributions.ravel().tolist(), batch[n].ms_engine, ms_mmd)
        return scores
