"""Judge stored signatures with another bank, threshold or compression, without the backbone and the images."""

from __future__ import annotations

import time
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from types import TracebackType
from typing import NamedTuple, TypeVar

import msgspec

from mdmf_deploy.bundle.bundle import Bundle
from mdmf_deploy.detection.feed import ImageScore
from mdmf_deploy.detection.outputs.signatures import Extractor, StoredBatch
from mdmf_deploy.detection.outputs.stored import StoredSignatures
from mdmf_deploy.detection.rows import Row
from mdmf_deploy.detection.verdicts import Verdicts
from mdmf_deploy.errors import UsageError
from mdmf_deploy.mmd import Reduction
from mdmf_deploy.mmd.cpu import CpuReduction

T = TypeVar("T")


class _Scored(NamedTuple):
    """scores: of each row, None if it has no signatures."""

    extractor: Extractor
    batch: StoredBatch
    scores: list[ImageScore | None]


class Rescorer:
    """Rows of stored signatures, as `mdmf detect` gives them with this bundle on the runtime that extracted them.

    The rows are equal to those, to the last bit, for signatures in fp32 and the CPU's reduction, but for ms_mmd.
    reduction: "cpu" or "cuda".
    threads: of the CPU's reduction. None means one per core.
    each_frame: give a row for each frame of a video.
    Raises UsageError if the bundle would extract other signatures than these, or for another reduction. Raises
    BundleError and CalibrationError if the bundle is damaged, RuntimeUnavailable without a GPU for "cuda".
    """

    def __init__(
        self,
        stored: StoredSignatures,
        bundle: Bundle,
        *,
        reduction: str = "cpu",
        threads: int | None = None,
        each_frame: bool = False,
    ) -> None:
        if not stored.parts:
            raise UsageError(f"{stored.location}: holds no signatures yet; run `mdmf detect --keep-signatures` first")
        for extractor in dict.fromkeys(part.extractor for part in stored.parts):
            differences = extractor.differences(bundle.manifest)
            if differences:
                raise UsageError(
                    f"{stored.location}: these signatures are not those of {bundle.path}: {', '.join(differences)}; "
                    "give a bundle with the same model, or detect again"
                )
        self._stored, self._bank, self._each_frame = stored, bundle.bank, each_frame
        self._held = ExitStack()
        self._reduction = self._reduce_by(reduction, threads)
        self._verdicts = {gpu: self._on(bundle, gpu) for gpu in {part.extractor.gpu for part in stored.parts}}

    @property
    def caveat(self) -> str | None:
        """The reason why no image gets a verdict, and the command to run. None if some may get one."""
        caveats = [verdicts.caveat(self._stored.settings.runtime) for verdicts in self._verdicts.values()]
        return None if None in caveats else caveats[0]

    def rows(self) -> Generator[tuple[Row, ...], None, None]:
        """Yield the rows of each input, in the order in which they were stored. Raises UsageError for damaged parts."""
        with closing(_ahead(self._scored())) as scored:
            for extractor, batch, scores in scored:
                verdicts = self._verdicts[extractor.gpu]
                for extraction, score in zip(batch.extractions, scores, strict=True):
                    yield verdicts.rows(extraction, score, self._each_frame)

    def _scored(self) -> Generator[_Scored, None, None]:
        """Yield batches with their scores. One reduction scores the crops of all their images."""
        with closing(_ahead(self._stored.batches())) as batches:
            for extractor, batch in batches:
                start = time.perf_counter()
                counts = [count for count in batch.crops if count]
                reduced = iter(self._reduction(batch.signatures, self._bank).of_images(counts) if counts else ())
                ms_mmd = 1e3 * (time.perf_counter() - start) / max(1, len(counts))
                scores: list[ImageScore | None] = []
                for extraction, count in zip(batch.extractions, batch.crops, strict=True):
                    if not count:
                        scores.append(None)
                        continue
                    score, contributions = next(reduced)
                    scores.append(ImageScore(score, contributions.ravel().tolist(), extraction.ms_engine, ms_mmd))
                yield _Scored(extractor, batch, scores)

    def close(self) -> None:
        """Free the reduction's memory."""
        self._held.close()

    def __enter__(self) -> Rescorer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _reduce_by(self, name: str, threads: int | None) -> Reduction:
        if name == "cpu":
            return CpuReduction(threads)
        if name != "cuda":
            raise UsageError(f"reduction {name!r} is not known; choose cpu or cuda")
        # Imported late: modules that only a GPU needs must not slow down every other start.
        from mdmf_deploy.mmd.cuda.reduction import CudaReduction

        reduction = CudaReduction()
        self._held.callback(reduction.close)
        reduction.prepare(self._bank)
        return reduction

    def _on(self, bundle: Bundle, gpu: str | None) -> Verdicts:
        """Return the verdicts of a bundle as on a machine with the GPU that extracted, whatever this machine has."""
        records = tuple(
            msgspec.structs.replace(record, environment={k: v for k, v in record.environment.items() if k != "gpu"})
            for record in bundle.manifest.verification
            if record.environment.get("gpu") in (None, gpu)
        )
        there = Bundle(bundle.path, msgspec.structs.replace(bundle.manifest, verification=records))
        settings = self._stored.settings
        return Verdicts(there, settings.runtime, settings.precision, settings.crops)


def _ahead(items: Generator[T, None, None]) -> Generator[T, None, None]:
    """Yield the items. The next one is made in another thread while the caller is busy with the last."""
    with closing(items), ThreadPoolExecutor(1, "mdmf-rescore") as pool:
        coming = pool.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = pool.submit(next, items, None)
            yield item
