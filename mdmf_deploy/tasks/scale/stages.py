"""What Ray's workers run: read and crop a block of inputs, score a block of crops, write blocks of rows as one part.

The result of each depends on its block alone, so a task that Ray runs again gives the same. A part is named by the keys
of its inputs, so one that is written again takes its own place.
"""

from __future__ import annotations

import os
import socket
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import msgspec
import pyarrow

from mdmf_deploy import __version__
from mdmf_deploy.bundle.recipe import Preprocessing
from mdmf_deploy.detection.detector import Detector
from mdmf_deploy.detection.feed import Extraction, prepare
from mdmf_deploy.detection.outputs.parts import INPUT_COLUMNS
from mdmf_deploy.detection.outputs.signatures import Extractor, SignatureType, table_of
from mdmf_deploy.detection.settings import RunSettings
from mdmf_deploy.detection.sources import Taken
from mdmf_deploy.errors import ImageError, MdmfError, RuntimeUnavailable, UsageError
from mdmf_deploy.images.limits import ReadLimits
from mdmf_deploy.runtime import ON_GPU
from mdmf_deploy.tasks.scale.cluster import load_ray
from mdmf_deploy.tasks.scale.listing import LOCAL
from mdmf_deploy.tasks.scale.locations import Location
from mdmf_deploy.tasks.scale.outputs import Outputs
from mdmf_deploy.tasks.scale.shipment import Shipment
from mdmf_deploy.tasks.scale.tables import packed_rows, prepared_of, table_of_prepared, unpacked
from mdmf_deploy.tasks.scale.tally import Tally

# Requests at once for the files of one block, and the bytes of those that wait to be decoded.
_AHEAD, _AHEAD_BYTES = 8, 64 * 2**20
_PAUSES = 1.0, 4.0  # seconds before a part is written again
SUMMARY = pyarrow.schema(
    {"parts": pyarrow.list_(pyarrow.string()), "tally": pyarrow.binary(), "error": pyarrow.string()}
)


@dataclass(frozen=True, slots=True)
class Reading:
    """How inputs become crops.

    places: of the listing.
    home: the driver's working folder, from which local paths start, and the folder of one of them. None without any.
    version: of mdmf-deploy on the driver.
    """

    places: tuple[Location, ...]
    preprocessing: Preprocessing
    crops: int
    limits: ReadLimits
    frames: int | None
    home: tuple[str, str] | None
    version: str


class Opened(NamedTuple):
    """What a machine opens: `settings` and `extractor` must be the same on all of them.

    caveat: why verdicts are withheld, or None.
    extractor: of the signatures that are kept, or None if none are.
    """

    settings: RunSettings
    caveat: str | None
    extractor: Extractor | None


@dataclass(frozen=True, slots=True)
class Scoring:
    """How crops become rows.

    each_frame: an argument of rows_of.
    signature_type: of the signatures that are kept, or None to keep none.
    The other fields are arguments of Detector.
    """

    shipment: Shipment
    runtime: str
    batch_size: int
    crops: int | None
    limits: ReadLimits
    frames: int | None
    each_frame: bool
    signature_type: SignatureType | None

    @property
    def on_gpu(self) -> bool:
        return on_gpu(self.runtime)

    def open(self, threads: int | None) -> tuple[Detector, Opened]:
        """Open the detector on this machine."""
        with self.shipment.unpacked() as folder:
            detector = Detector(
                folder,
                self.runtime,
                threads,
                batch_size=self.batch_size,
                crops=self.crops,
                limits=self.limits,
                frames=self.frames,
            )
        # The caveat names a bundle of the driver's machine.
        caveat = detector.caveat and detector.caveat.replace(str(folder), self.shipment.path)
        return detector, opened_by(detector, self.each_frame, self.signature_type, caveat)


def opened_by(detector: Detector, each_frame: bool, signature_type: SignatureType | None, caveat: str | None) -> Opened:
    """Return what a detector opened."""
    kept = None if signature_type is None else Extractor.of(detector.bundle, detector.runtime, signature_type)
    return Opened(detector.settings(each_frame), caveat, kept)


def on_gpu(runtime: str) -> bool:
    """Return whether a runtime, perhaps with a build profile, needs a GPU."""
    return runtime.partition(":")[0] in ON_GPU


def read_block(block: pyarrow.Table, reading: Reading) -> pyarrow.Table:
    """Read, decode and crop a block of a listing, which is packed, on this thread. No input raises."""
    block = unpacked(block)
    _settle(reading.home, reading.version)
    sources = [
        prepare(
            0,
            source,
            reading.preprocessing,
            reading.crops,
            reading.limits,
            reading.frames,
            keep_pixels=True,
        )
        for source in _sources(block, reading)
    ]
    return table_of_prepared(sources, block)


class Scorer:
    """An actor's detector."""

    def __init__(self, scoring: Scoring, expected: Opened) -> None:
        self._each_frame = scoring.each_frame
        self._detector, opened = scoring.open(granted_threads())
        self._extractor = opened.extractor
        differ = expected.settings.differences(opened.settings)
        if differ:
            self._detector.close()
            raise RuntimeUnavailable(
                f"{socket.gethostname()} would give other rows than the driver ({'; '.join(differ)}); use machines on "
                "which the bundle is verified alike"
            )

    def __call__(self, block: pyarrow.Table) -> pyarrow.Table:
        sources, keys = prepared_of(block), block.select(list(INPUT_COLUMNS)).combine_chunks()
        if self._extractor is None:
            return packed_rows(list(self._detector.rows_of(sources, each_frame=self._each_frame)), keys)
        kept: list[Extraction] = []
        rows = list(self._detector.rows_of(sources, each_frame=self._each_frame, on_extraction=kept.append))
        return packed_rows(rows, keys, table_of(kept, self._extractor))


def write_part(blocks: pyarrow.Table, outputs: Outputs) -> pyarrow.Table:
    """Write blocks of rows as one part, and their signatures as another one if they are kept.

    Returns one row of SUMMARY. An error of the file system is in it.
    """
    rows = unpacked(blocks)
    signatures = None if outputs.signatures is None else unpacked(blocks, "signatures")
    tally = Tally.of(rows, sum(blocks["inputs"].to_pylist()))
    for pause in (*_PAUSES, None):
        try:
            return _summary(outputs.write(rows, signatures), tally, None)
        except OSError as error:
            # The same bytes under the same name, so that a try which had written them after all does no harm.
            if pause is None:
                where = f"{os.fsdecode(error.filename)}: " if error.filename else ""
                return _summary([], Tally(), f"{where}{error.strerror or error}")
            time.sleep(pause)
    raise AssertionError


def granted_threads() -> int:
    """Return the number of threads for the processors that Ray has granted to this worker, at least one."""
    granted: float = load_ray().get_runtime_context().get_assigned_resources().get("CPU", 1.0)
    return max(1, int(granted))


def opened_remotely(scoring: Scoring) -> Opened | MdmfError:
    """Return what a worker opens, or its error."""
    try:
        detector, opened = scoring.open(granted_threads())
    except MdmfError as error:
        return error
    detector.close()
    return opened


def _summary(parts: list[str], tally: Tally, error: str | None) -> pyarrow.Table:
    return pyarrow.table([[parts], [msgspec.json.encode(tally)], [error]], schema=SUMMARY)


@lru_cache(maxsize=1)
def _settle(home: tuple[str, str] | None, version: str) -> None:
    """Prepare this worker for a run: once, because all its blocks are of one run.

    Raises UsageError if it has another version of this package, or does not see the driver's files.
    """
    if version != __version__:
        raise UsageError(
            f"{socket.gethostname()} has mdmf-deploy {__version__}, the driver has {version}; install the same one"
        )
    if home is None:
        return
    working, inputs = home
    try:
        # Relative paths then mean the same, and their messages read the same, as in the driver.
        os.chdir(working)
        os.stat(inputs)  # noqa: PTH116 (the bytes of a name may be any)
    except OSError as error:
        name = os.fsdecode(error.filename or working)
        raise UsageError(
            f"{socket.gethostname()} does not see {name} ({error.strerror}); local paths need a file system that all "
            "machines share, so give a URL such as s3://bucket/prefix"
        ) from error


def _sources(block: pyarrow.Table, reading: Reading) -> Iterator[Taken]:
    """Yield the inputs of a block in order. Remote files are read ahead by other threads."""
    columns = zip(*(block[name].to_pylist() for name in ("uri", "place", "path", "size")), strict=True)
    with ThreadPoolExecutor(_AHEAD, thread_name_prefix="mdmf-read") as pool:
        waiting: deque[tuple[str, Future[bytes] | str, int]] = deque()
        for name, place, path, size in columns:
            while waiting and (len(waiting) >= _AHEAD or sum(held for *_, held in waiting) > _AHEAD_BYTES):
                yield _taken(*waiting.popleft()[:2])
            if place == LOCAL:
                waiting.append((name, os.fsdecode(path), 0))
            else:
                read = pool.submit(reading.places[place].read, path.decode(), reading.limits)
                waiting.append((name, read, size or 0))
        while waiting:
            yield _taken(*waiting.popleft()[:2])


def _taken(name: str, source: Future[bytes] | str) -> Taken:
    if isinstance(source, str):
        return Taken(source, "path")
    try:
        return Taken(source.result(), "bytes", name)
    except ImageError as error:
        return Taken(error, "bytes", name)
