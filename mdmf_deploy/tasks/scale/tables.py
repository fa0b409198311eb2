"""Arrow tables that travel between the stages: sources that are read and cropped, and the rows of a block.

Neither holds a Python object. Crops are raw bytes, one after the other. Floats, texts and crops come back unchanged.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow
import pyarrow.ipc

from mdmf_deploy.detection.feed import Extraction, Prepared
from mdmf_deploy.detection.outputs.parquet import table_of
from mdmf_deploy.detection.outputs.parts import INPUT_COLUMNS, with_keys
from mdmf_deploy.detection.rows import Row
from mdmf_deploy.detection.videos import VideoFrames
from mdmf_deploy.errors import ImageError, ShapeMismatch
from mdmf_deploy.images.provenance import Provenance

KEYS = ("uri", "copy", "size", "mtime_ns")
"""The columns of a listing that make an InputKey."""

_FACTS = {
    "name": pyarrow.string(),
    "sha256": pyarrow.string(),
    "error_code": pyarrow.string(),
    "error": pyarrow.string(),
    "width": pyarrow.int64(),
    "height": pyarrow.int64(),
    "format": pyarrow.string(),
    "crop": pyarrow.string(),
    "evidence": pyarrow.float64(),
    "notes": pyarrow.list_(pyarrow.string()),
    "claim": pyarrow.string(),
    "claim_source": pyarrow.string(),
    "frame_times": pyarrow.list_(pyarrow.float64()),
    "frame_evidence": pyarrow.list_(pyarrow.float64()),
    "ms_read": pyarrow.float64(),
    "ms_decode": pyarrow.float64(),
    "ms_crop": pyarrow.float64(),
}
# crops: (n, side, side, 3) uint8 of each source, and side. Both are null without crops.
_CROPS = {"side": pyarrow.int32(), "pixels": pyarrow.large_binary()}
PREPARED = pyarrow.schema({**INPUT_COLUMNS, **_FACTS, **_CROPS})

PACKED = pyarrow.schema(
    {"inputs": pyarrow.int32(), "table": pyarrow.large_binary(), "signatures": pyarrow.large_binary()}
)
"""A whole table as a single row, which nobody divides.

inputs: how many it is of.
table: an Arrow stream of it.
signatures: an Arrow stream of the same inputs' signatures, or null if nobody keeps them.

Blocks of a listing travel so, because Ray Data keeps 50 kB in the driver for each block that it is given. Blocks of
rows do, because no input's rows may be divided between two parts.
"""


def table_of_prepared(sources: Sequence[Prepared], keys: pyarrow.Table) -> pyarrow.Table:
    """Return sources as a table of PREPARED.  keys: the columns KEYS, one row a source.

    Raises ShapeMismatch for a source whose crops are normalised already.
    """
    facts = pyarrow.Table.from_pylist([_facts(source.extraction) for source in sources], pyarrow.schema(_FACTS))
    sides, pixels = [], []
    for source in sources:
        if source.tensor is not None:
            raise ShapeMismatch(f"{source.extraction.uri}: crops must be pixels; prepare it with keep_pixels")
        sides.append(None if source.pixels is None else source.pixels.shape[1])
        pixels.append(None if source.pixels is None else np.ascontiguousarray(source.pixels).reshape(-1).data)
    crops = [pyarrow.array(sides, _CROPS["side"]), _binary(pixels)]
    names = [keys[name].combine_chunks() for name in KEYS]
    return pyarrow.Table.from_arrays([*names, *facts.columns, *crops], schema=PREPARED)


def prepared_of(table: pyarrow.Table) -> Iterator[Prepared]:
    """Yield the sources of a table of PREPARED. Their crops are views of its memory."""
    sides, pixels = table["side"], table["pixels"]
    for n, facts in enumerate(table.select(list(_FACTS)).to_pylist()):
        side = sides[n].as_py()
        crops = None
        if side is not None:
            crops = np.frombuffer(pixels[n].as_buffer(), np.uint8).reshape(-1, side, side, 3)
        yield Prepared(_extraction(facts), None, crops)


def packed_rows(
    rows: Sequence[tuple[Row, ...]], keys: pyarrow.Table, signatures: pyarrow.Table | None = None
) -> pyarrow.Table:
    """Return the rows of each source as a table of PACKED.

    keys: the columns INPUT_COLUMNS, one row a source.
    signatures: of the same sources, without INPUT_COLUMNS.
    """
    sources = np.repeat(np.arange(len(rows)), [len(one) for one in rows])
    flat = table_of(row for one in rows for row in one)
    whole = with_keys(flat, {name: keys[name].take(pyarrow.array(sources)) for name in INPUT_COLUMNS})
    kept = None if signatures is None else with_keys(signatures, {name: keys[name] for name in INPUT_COLUMNS})
    return packed([whole], [len(rows)], [kept])


def packed(
    tables: Sequence[pyarrow.Table], inputs: Sequence[int], signatures: Sequence[pyarrow.Table | None] | None = None
) -> pyarrow.Table:
    """Return tables as one of PACKED.  inputs: how many each is of."""
    texts = _binary([_stream(one, "zstd") for one in tables])
    # Signatures are noise, which nothing packs.
    numbers = _binary([_stream(one, None) for one in signatures or [None] * len(tables)])
    return pyarrow.Table.from_arrays([pyarrow.array(inputs, pyarrow.int32()), texts, numbers], schema=PACKED)


def unpacked(table: pyarrow.Table, column: str = "table") -> pyarrow.Table:
    """Return the tables in a column of one of PACKED, one after the other."""
    return pyarrow.concat_tables(pyarrow.ipc.open_stream(one.as_buffer()).read_all() for one in table[column])


def _stream(table: pyarrow.Table | None, compression: str | None) -> pyarrow.Buffer | None:
    if table is None:
        return None
    sink = pyarrow.BufferOutputStream()
    with pyarrow.ipc.new_stream(
        sink, table.schema, options=pyarrow.ipc.IpcWriteOptions(compression=compression)
    ) as stream:
        stream.write_table(table)
    return sink.getvalue()


def _binary(parts: Sequence[Any]) -> pyarrow.LargeBinaryArray:
    """Return buffers of bytes as an array, copied once. Those that are None are null."""
    ends = np.cumsum([0, *(0 if part is None else memoryview(part).nbytes for part in parts)], dtype=np.int64)
    valid = np.packbits(np.array([part is not None for part in parts], bool), bitorder="little")
    data = b"".join(part for part in parts if part is not None)
    buffers = [pyarrow.py_buffer(one) for one in (valid, ends, data)]
    return pyarrow.Array.from_buffers(pyarrow.large_binary(), len(parts), buffers)


def _facts(extraction: Extraction) -> dict[str, object]:
    error, claims, frames = extraction.error, extraction.provenance, extraction.frames
    return {
        "name": extraction.uri,
        "sha256": extraction.sha256,
        "error_code": error.code if error else None,
        # A library's message may hold anything.
        "error": str(error).encode(errors="backslashreplace").decode() if error else None,
        "width": extraction.width,
        "height": extraction.height,
        "format": extraction.format,
        "crop": extraction.crop,
        "evidence": extraction.evidence,
        "notes": list(extraction.notes),
        "claim": claims.claim if claims else None,
        "claim_source": claims.source if claims else None,
        "frame_times": list(frames.times) if frames else None,
        "frame_evidence": list(frames.evidence) if frames else None,
        "ms_read": extraction.ms_read,
        "ms_decode": extraction.ms_decode,
        "ms_crop": extraction.ms_crop,
    }


def _extraction(facts: dict[str, Any]) -> Extraction:
    values = dict(facts)
    code, text = values.pop("error_code"), values.pop("error")
    claim, source = values.pop("claim"), values.pop("claim_source")
    times, evidence = values.pop("frame_times"), values.pop("frame_evidence")
    return Extraction(
        uri=values.pop("name"),
        error=None if code is None else ImageError(code, text),
        notes=tuple(values.pop("notes")),
        provenance=None if claim is None else Provenance(claim, source),
        frames=None if times is None else VideoFrames(tuple(times), tuple(evidence)),
        **values,
    )
