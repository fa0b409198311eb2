"""Signatures as Parquet, with every fact of their inputs, so that rows can be made again without the backbone.

Each input has one row. Its last column holds the signatures of its n crops, each a fixed-size list of N * d numbers.
An input with an error has none. `mdmf rescore` reads these parts. Needs pyarrow.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Any, Literal, NamedTuple, cast

import msgspec
import numpy as np
import pyarrow
import pyarrow.parquet
from numpy.typing import NDArray

from mdmf_deploy.bundle.bundle import Bundle
from mdmf_deploy.bundle.manifest import Manifest, ModelCard
from mdmf_deploy.bundle.recipe import Preprocessing
from mdmf_deploy.detection.feed import Extraction
from mdmf_deploy.detection.outputs.done import Done, InputKey
from mdmf_deploy.detection.outputs.parts import PartFolder, key_columns, with_keys
from mdmf_deploy.detection.settings import RunSettings
from mdmf_deploy.detection.videos import VideoFrames
from mdmf_deploy.errors import ImageError, UsageError
from mdmf_deploy.images.limits import Note
from mdmf_deploy.images.provenance import Claim, Provenance
from mdmf_deploy.interrupts import held_back
from mdmf_deploy.runtime import ON_GPU
from mdmf_deploy.text import one_line

KIND = "signatures"
"""The kind of a PartFolder that holds these."""

SignatureType = Literal["fp32", "fp16"]
PART_BYTES = 32 * 2**20
"""Bytes of signatures, in fp32, that wait until they are written as a part."""
PART_SECONDS = 60.0
"""Seconds after which a part is written, even if it is small. A run that is killed does so much again, at most."""

_METADATA = b"mdmf_extractor"
_COLUMN = "signatures"
_NUMBERS = {"fp32": pyarrow.float32(), "fp16": pyarrow.float16()}
_FACTS = {
    "uri": pyarrow.string(),
    "sha256": pyarrow.string(),
    "error_code": pyarrow.string(),
    "error": pyarrow.string(),
    "width": pyarrow.int32(),
    "height": pyarrow.int32(),
    "format": pyarrow.string(),
    "crop": pyarrow.string(),
    "evidence": pyarrow.float64(),
    "notes": pyarrow.list_(pyarrow.string()),
    "provenance": pyarrow.string(),
    "provenance_source": pyarrow.string(),
    "frame_times": pyarrow.list_(pyarrow.float64()),
    "frame_evidence": pyarrow.list_(pyarrow.float64()),
    "ms_read": pyarrow.float64(),
    "ms_decode": pyarrow.float64(),
    "ms_crop": pyarrow.float64(),
    "ms_engine": pyarrow.float64(),
}


class Extractor(msgspec.Struct, frozen=True, kw_only=True):
    """What signatures depend on besides an input: the part of a bundle without its bank, and the GPU.

    gpu: the name of the GPU that ran the model, or None. Verification on a GPU counts for this model of GPU alone.
    type: of the numbers that are stored.
    """

    model_sha256: str
    model: ModelCard
    preprocessing: Preprocessing
    type: SignatureType
    gpu: str | None = None

    @classmethod
    def of(cls, bundle: Bundle, runtime: str, type: SignatureType) -> Extractor:
        """Describe a bundle that extracts on a runtime of this machine."""
        gpu = None
        if runtime in ON_GPU:
            # Imported late, because most machines have no GPU.
            from mdmf_deploy.hardware.gpu import this_gpu

            gpu = this_gpu()
        manifest = bundle.manifest
        return cls(
            model_sha256=manifest.model_sha256,
            model=manifest.model,
            preprocessing=manifest.preprocessing,
            type=type,
            gpu=gpu,
        )

    @property
    def shape(self) -> tuple[int, int]:
        """(N, d): the patches of a crop, and the width of a signature."""
        return self.model.pool**2, self.model.signature

    @property
    def schema(self) -> pyarrow.Schema:
        """The columns of a part after INPUT_COLUMNS, with this value as their metadata."""
        numbers = pyarrow.list_(_NUMBERS[self.type], int(np.prod(self.shape)))
        fields = [pyarrow.field(name, type) for name, type in _FACTS.items()]
        fields.append(pyarrow.field(_COLUMN, pyarrow.list_(numbers)))
        return pyarrow.schema(fields, {_METADATA: msgspec.json.encode(self)})

    def differences(self, manifest: Manifest) -> list[str]:
        """Return a clause for each way in which a bundle would extract others, such as "crop 56 there, 224 here"."""
        there = {"model": self.model_sha256[:12], **_facts(self.model, self.preprocessing)}
        here = {"model": manifest.model_sha256[:12], **_facts(manifest.model, manifest.preprocessing)}
        return [f"{name} {there[name]} there, {here[name]} here" for name in there if there[name] != here[name]]

    @classmethod
    def read(cls, schema: pyarrow.Schema, name: str) -> Extractor:
        """Return what made a part.  name: of the part. Raises UsageError if it holds no signatures."""
        try:
            found = msgspec.json.decode((schema.metadata or {})[_METADATA], type=cls)
        except (KeyError, msgspec.MsgspecError) as error:
            raise UsageError(f"{name} holds no signatures ({error}); detect again into a new folder") from error
        for field in found.schema:
            if field.name not in schema.names or schema.field(field.name).type != field.type:
                raise UsageError(f"{name}: expected a column {field.name} of {field.type}; detect again")
        return found


class SignatureKeeper:
    """Collect signatures, and write them in parts. Leaving its block writes the last part, after an error as well.

    Give `extracted` to Detector.stream_by_source, and call `add` for every source whose rows are written:

        for key, rows in zip(keys, detector.stream_by_source(paths, on_extraction=keeper.extracted)):
            write(rows)
            keeper.add(key)

    So an input whose signatures are kept has its rows, too, unless the process is killed between the two.
    """

    def __init__(self, location: str, settings: RunSettings, extractor: Extractor, *, resume: bool) -> None:
        """Open or make the folder. Raises UsageError as PartFolder.open does."""
        self._folder = PartFolder.open(location, settings, KIND, extractor.schema, resume=resume)
        self._extractor = extractor
        self._last: Extraction | None = None
        self._waiting: list[tuple[InputKey, Extraction]] = []
        self._bytes, self._since = 0, time.monotonic()

    @property
    def done(self) -> Done:
        """The inputs in all parts that were there when the folder was opened, less those dropped since."""
        return self._folder.done

    def drop(self, inputs: Iterable[tuple[str, int]]) -> None:
        """Remove the signatures of these (uri, copy), which will be added anew."""
        self._folder.drop(inputs)

    def extracted(self, extraction: Extraction) -> None:
        """Remember the extraction of the source whose rows come next."""
        self._last = extraction

    def add(self, key: InputKey) -> None:
        """Keep the last extraction as that of this input."""
        assert self._last is not None
        self._waiting.append((key, self._last))
        self._bytes += 0 if self._last.signatures is None else self._last.signatures.nbytes
        self._last = None
        if self._bytes >= PART_BYTES or time.monotonic() - self._since >= PART_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write what waits as one part."""
        waiting, self._waiting = self._waiting, []
        self._bytes, self._since = 0, time.monotonic()
        if not waiting:
            return
        table = table_of([extraction for _, extraction in waiting], self._extractor)
        self._folder.write(with_keys(table, key_columns(key for key, _ in waiting)))

    def __enter__(self) -> SignatureKeeper:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            with held_back():
                self.flush()
        finally:
            self._folder.close()


class StoredBatch(NamedTuple):
    """Some rows of a part.

    extractions: one a row, without signatures.
    crops: how many crops each has, 0 if it has an error.
    signatures: (sum of crops, N, d), of all crops in order.
    """

    extractions: list[Extraction]
    crops: list[int]
    signatures: NDArray[np.float32]


def table_of(extractions: Sequence[Extraction], extractor: Extractor) -> pyarrow.Table:
    """Return the rows of these inputs, without INPUT_COLUMNS."""
    facts = [_facts_of(one) for one in extractions]
    columns = [pyarrow.array([fact[name] for fact in facts], type) for name, type in _FACTS.items()]
    kept = [one.signatures for one in extractions if one.signatures is not None]
    ends = np.cumsum([0, *(0 if one.signatures is None else len(one.signatures) for one in extractions)])
    patches, width = extractor.shape
    values: NDArray[Any] = np.concatenate(kept) if kept else np.empty((0, patches, width), np.float32)
    if extractor.type == "fp16":
        with np.errstate(over="ignore"):  # beyond 65504 they become infinite, and the row will say not_finite
            values = values.astype(np.float16)
    lists = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(values.reshape(-1)), patches * width)
    columns.append(pyarrow.ListArray.from_arrays(pyarrow.array(ends, pyarrow.int32()), lists))
    return pyarrow.Table.from_arrays(columns, schema=extractor.schema)


def batch_of(batch: pyarrow.RecordBatch, extractor: Extractor) -> StoredBatch:
    """Return what `table_of` was given. Signatures that are stored as fp32 are not copied."""
    stored = batch.column(_COLUMN)
    crops = np.diff(stored.offsets.to_numpy()).tolist()
    values = stored.flatten().flatten().to_numpy(zero_copy_only=True).reshape(-1, *extractor.shape)
    columns = {name: batch.column(name).to_pylist() for name in _FACTS}
    extractions = [_extraction(dict(zip(columns, row, strict=True))) for row in zip(*columns.values(), strict=True)]
    return StoredBatch(extractions, crops, values.astype(np.float32, copy=False))


def _facts_of(one: Extraction) -> dict[str, Any]:
    return {
        "uri": one.uri,
        "sha256": one.sha256,
        "error_code": one.error.code if one.error else None,
        "error": one_line(str(one.error)) if one.error else None,
        "width": one.width,
        "height": one.height,
        "format": one.format,
        "crop": one.crop,
        "evidence": one.evidence,
        "notes": one.notes,
        "provenance": one.provenance.claim if one.provenance else None,
        "provenance_source": one.provenance.source if one.provenance else None,
        "frame_times": one.frames.times if one.frames else None,
        "frame_evidence": one.frames.evidence if one.frames else None,
        "ms_read": one.ms_read,
        "ms_decode": one.ms_decode,
        "ms_crop": one.ms_crop,
        "ms_engine": one.ms_engine,
    }


def _extraction(facts: dict[str, Any]) -> Extraction:
    code, error = facts.pop("error_code"), facts.pop("error")
    claim, source = facts.pop("provenance"), facts.pop("provenance_source")
    times, evidence = facts.pop("frame_times"), facts.pop("frame_evidence")
    return Extraction(
        **{**facts, "notes": cast(tuple[Note, ...], tuple(facts["notes"]))},
        error=None if code is None else ImageError(code, error),
        provenance=None if claim is None else Provenance(cast(Claim, claim), source),
        frames=None if times is None else VideoFrames(tuple(times), tuple(evidence)),
    )


def _facts(model: ModelCard, preprocessing: Preprocessing) -> dict[str, object]:
    card = {name: getattr(model, name) for name in model.__struct_fields__}
    return card | {name: getattr(preprocessing, name) for name in preprocessing.__struct_fields__}
