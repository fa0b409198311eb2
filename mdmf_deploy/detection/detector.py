"""The detector: a bundle, an engine that runs it, and the rows they give."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Generator, Iterable
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np

from mdmf_deploy.bundle.bundle import Bundle, hint
from mdmf_deploy.bundle.calibration import Judgement
from mdmf_deploy.detection.pipeline import Extraction, Source, extract_batches
from mdmf_deploy.detection.prepare import Scored
from mdmf_deploy.detection.rows import Row
from mdmf_deploy.errors import ImageError, MdmfError, UsageError
from mdmf_deploy.images.decode import ReadLimits
from mdmf_deploy.mmd import Reduction
from mdmf_deploy.mmd.cpu import CpuReduction
from mdmf_deploy.runtime import Engine, open_engine, stays_on_device

if TYPE_CHECKING:
    from mdmf_deploy.detection.on_gpu import Fused

_WITHHELD = Judgement(None, None, "uncalibrated")


class Detector:
    """Scores images with one bundle on one runtime.

    >>> from mdmf_deploy import Detector
    >>> with Detector("starter") as detector:
    ...     [row] = detector.detect("photo.jpg")
    >>> row.uri, row.status, row.format, row.crop
    ('photo.jpg', 'ok', 'jpeg', 'center')

    bundle: the name of one shipped in the package, or a .mdmf folder.  runtime: a name in
    mdmf_deploy.runtime.ENGINES, or "auto".  threads: for decoding, for the engine and for the reduction, each; None for
    every core.  batch_size: most crops given to the engine at once; rows depend on neither.  crops: most crops taken of
    one image, whose patches are pooled into one score.  limits: what an image may cost.  reduction: "cpu", "cuda", or
    "auto", which is cuda where the runtime leaves signatures of one crop an image on a GPU.
    Raises BundleError if the bundle is missing or damaged, RuntimeUnavailable if the runtime or the reduction is.

    Importing it forwards the warnings of Pillow's readers, in the whole process, through mdmf_deploy.images, which logs
    those that come while it decodes and passes on all others as they were.
    """

    def __init__(
        self,
        bundle: str | Path = "starter",
        runtime: str = "auto",
        threads: int | None = None,
        *,
        batch_size: int = 8,
        crops: int = 1,
        limits: ReadLimits | None = None,
        reduction: str = "auto",
    ) -> None:
        self.bundle = Bundle.open(bundle)
        self._bundle_id = self.bundle.bundle_id
        self._calibration = self.bundle.calibration
        self._bank = self.bundle.bank
        self._threads, self._batch_size, self._crops, self._limits = threads, batch_size, crops, limits
        self._held = ExitStack()
        self._engine = open_engine(runtime, self.bundle, threads)
        self._held.callback(self._engine.close)
        try:
            self._reduction, self._fused = self._reduce_by(reduction)
        except BaseException:
            self.close()
            raise

    def detect(self, sources: Source | Iterable[Source]) -> list[Row]:
        """One row for every source, in order; one source alone gives a list of one.

        sources: paths of image files, the bytes of such files, or RGB pixels, (H, W, 3) uint8, in any mixture.
        What cannot be read gets a row with status "error" and an error_code (README.md lists them).

        >>> import numpy as np
        >>> from pathlib import Path
        >>> detector = Detector("starter")
        >>> rows = detector.detect(["photo.jpg", Path("photo.jpg").read_bytes(), np.zeros((300, 400, 3), np.uint8)])
        >>> [row.uri for row in rows]
        ['photo.jpg', 'bytes:1', 'array:2']
        >>> rows[0].score == rows[1].score
        True
        >>> detector.detect("nowhere.jpg")[0].error_code
        'missing'
        >>> detector.close()
        """
        if isinstance(sources, str | Path | bytes | np.ndarray):
            return list(self.stream([sources]))
        return list(self.stream(sources))

    def stream(self, sources: Iterable[Source]) -> Generator[Row, None, None]:
        """As detect, row by row: sources are taken as they are needed, so there may be any number of them.

        They are iterated in another thread; a row waits for later sources no longer than 0.2 s. Close the generator
        if you stop early, before the detector is closed.

        >>> with Detector("starter") as detector:
        ...     for row in detector.stream(["photo.jpg", "nowhere.jpg"]):
        ...         print(row.uri, row.status)
        photo.jpg ok
        nowhere.jpg error
        """
        batches = extract_batches(
            sources,
            self._engine,
            self.bundle.manifest.preprocessing,
            batch_size=self._batch_size,
            crops=self._crops,
            workers=self._threads,
            limits=self._limits,
            fused=self._fused,
        )
        return self._rows(batches)

    @property
    def runtime(self) -> str:
        """The name of the runtime that was opened."""
        return self._engine.name

    @property
    def engine(self) -> Engine:
        """What signs crops; the detector closes it."""
        return self._engine

    @property
    def reduction(self) -> Reduction:
        """What scores signatures against the bundle's bank."""
        return self._reduction

    @property
    def caveat(self) -> str | None:
        """Why verdicts are withheld here, or cannot be "generated", and what to run; None if neither is so."""
        name, precision = self._engine.name, self._engine.precision
        if not self.bundle.covers(name, precision):
            return (
                f"verdicts are withheld (uncalibrated): {name} {precision} is not verified for this bundle; "
                f"run {hint('verify', self.bundle.path, '--runtime', name)}"
            )
        if self._calibration is None:
            return (
                "verdicts are withheld (uncalibrated): this bundle has no thresholds; "
                f"run {hint('calibrate', self.bundle.path, 'REAL_PHOTOS')}"
            )
        if self._crops > 1:
            return "verdicts on images with several crops are withheld (uncalibrated): thresholds hold for one crop"
        if self._calibration.thresholds[0].score is None:
            return (
                f"no image can be called generated: {len(self._calibration.scores)} calibration images are too few "
                f"for a false positive rate of {self._calibration.fpr:g}; run `mdmf calibrate` on more"
            )
        return None

    def close(self) -> None:
        """Free the engine and what the reduction holds; the detector cannot be used afterwards."""
        self._held.close()

    def _reduce_by(self, name: str) -> tuple[Reduction, Fused | None]:
        """The reduction of that name; with the engine in one, where signatures can stay on the GPU."""
        if name not in ("auto", "cpu", "cuda"):
            raise UsageError(f"reduction {name!r} is not known; choose auto, cpu or cuda")
        engine = self._engine if stays_on_device(self._engine) and self._crops == 1 else None
        if name == "cpu" or (name == "auto" and engine is None):
            return CpuReduction(self._threads), None
        # Here, since what only a GPU needs is not to slow the start of everything else.
        from mdmf_deploy.detection.on_gpu import Fused
        from mdmf_deploy.mmd.cuda.reduction import CudaReduction

        try:
            reduction = CudaReduction()
            self._held.callback(reduction.close)
            reduction.prepare(self._bank)
        except MdmfError as error:
            if name == "cuda":
                raise
            print(f"mdmf: reduction cpu ({error})", file=sys.stderr)
            return CpuReduction(self._threads), None
        if name == "auto":
            print("mdmf: reduction cuda (signatures stay on the GPU)", file=sys.stderr)
        return reduction, None if engine is None else Fused(engine, reduction, self._bank)

    def __enter__(self) -> Detector:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _rows(self, batches: Generator[list[Extraction], None, None]) -> Generator[Row, None, None]:
        with closing(batches):
            for batch in batches:
                scored = self._scored(batch)
                for n, extracted in enumerate(batch):
                    yield self._row(extracted, scored[n]) if n in scored else self._unscored(extracted, extracted.error)

    def _scored(self, batch: list[Extraction]) -> dict[int, Scored]:
        """Place in the batch -> what it scored; images with as many patches share one reduction."""
        scored = {n: extracted.scored() for n, extracted in enumerate(batch) if extracted.scored is not None}
        alike: dict[int, list[int]] = {}
        for n, extracted in enumerate(batch):
            if extracted.signatures is not None:
                alike.setdefault(len(extracted.signatures), []).append(n)
        for places in alike.values():
            start = time.perf_counter()
            scores = self._reduction(np.stack([batch[n].signatures for n in places]), self._bank)  # type: ignore[misc]
            ms_mmd = 1e3 * (time.perf_counter() - start) / len(places)
            for n, score, contributions in zip(places, scores.mmd2, scores.contributions, strict=True):
                scored[n] = Scored(float(score), contributions.tolist(), batch[n].ms_engine, ms_mmd)
        return scored

    def _row(self, extracted: Extraction, scored: Scored) -> Row:
        engine, score = self._engine, scored.score
        extracted = replace(extracted, ms_engine=scored.ms_engine)
        if not math.isfinite(score):
            text = f"its score on {engine.name} is {score}; run `mdmf verify`, which says whether that may be used"
            return self._unscored(extracted, ImageError("not_finite", text))
        judgement = self._judge(score, extracted.crop or "")
        return Row(
            uri=extracted.uri,
            sha256=extracted.sha256,
            score=score,
            p_value=judgement.p_value,
            verdict=judgement.verdict,
            threshold=judgement.threshold,
            bundle_id=self._bundle_id,
            runtime=engine.name,
            precision=engine.precision,
            width=extracted.width,
            height=extracted.height,
            format=extracted.format,
            crop=extracted.crop,
            ms_decode=_ms_prepared(extracted),
            ms_engine=extracted.ms_engine,
            ms_mmd=scored.ms_mmd,
            contributions=tuple(scored.contributions),
        )

    def _unscored(self, extracted: Extraction, error: ImageError | None) -> Row:
        return Row(
            uri=extracted.uri,
            sha256=extracted.sha256 or None,
            status="error",
            error_code=error.code if error else None,
            error=str(error) if error else None,
            bundle_id=self._bundle_id,
            runtime=self._engine.name,
            precision=self._engine.precision,
            width=extracted.width,
            height=extracted.height,
            format=extracted.format,
            crop=extracted.crop,
            ms_decode=_ms_prepared(extracted),
            ms_engine=extracted.ms_engine,
        )

    def _judge(self, score: float, crop: str) -> Judgement:
        # More patches lower a biased MMD's diagonal, 1/N: thresholds were found with one crop and hold for one.
        if self._calibration is None or crop.startswith("center+"):
            return _WITHHELD
        return self._calibration.judge(score, self._engine.name, self._engine.precision)


def _ms_prepared(extracted: Extraction) -> float:
    return sum(ms for ms in (extracted.ms_read, extracted.ms_decode, extracted.ms_crop) if ms is not None)
