"""What travels between the stages comes back unchanged. No Ray is needed."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pyarrow
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mdmf_deploy.detection.feed import Extraction, Prepared
from mdmf_deploy.detection.outputs.done import InputKey
from mdmf_deploy.detection.outputs.parquet import table_of
from mdmf_deploy.detection.outputs.parts import INPUT_COLUMNS, key_columns
from mdmf_deploy.detection.rows import Row
from mdmf_deploy.detection.videos import VideoFrames
from mdmf_deploy.errors import ImageError, ShapeMismatch
from mdmf_deploy.images.limits import Code, Note
from mdmf_deploy.images.provenance import Claim, Provenance
from mdmf_deploy.tasks.scale.tables import KEYS, packed_rows, prepared_of, table_of_prepared, unpacked

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
FLOATS = st.none() | st.floats(allow_nan=False)
COUNTS = st.none() | st.integers(1, 2**31)


@st.composite
def sources(draw: st.DrawFn) -> Prepared:
    frames = draw(st.lists(st.tuples(st.floats(0, 1e4), st.floats(0, 1)), min_size=1, max_size=3))
    error = draw(st.none() | st.builds(ImageError, st.sampled_from(get_args(Code)), TEXTS))
    extraction = Extraction(
        uri=draw(TEXTS),
        sha256=draw(TEXTS),
        error=error,
        width=draw(COUNTS),
        height=draw(COUNTS),
        format=draw(st.none() | TEXTS),
        crop=draw(st.none() | TEXTS),
        evidence=draw(FLOATS),
        notes=tuple(draw(st.lists(st.sampled_from(get_args(Note)), max_size=3))),
        provenance=draw(st.none() | st.builds(Provenance, st.sampled_from(get_args(Claim)), st.none() | TEXTS)),
        frames=draw(st.none() | st.just(VideoFrames(*zip(*frames, strict=True)))),
        ms_read=draw(FLOATS),
        ms_decode=draw(FLOATS),
        ms_crop=draw(FLOATS),
    )
    count, side = draw(st.integers(0, 3)), draw(st.integers(1, 5))
    pixels = np.random.default_rng(draw(st.integers(0, 9))).integers(0, 256, (count, side, side, 3), np.uint8)
    return Prepared(extraction, None, None if error else pixels)


def keys_of(count: int) -> pyarrow.Table:
    keys = [InputKey(f"{n}.jpg", n % 2, None if n % 3 else n, n * 10**18) for n in range(count)]
    return pyarrow.table(key_columns(keys))


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(sources(), max_size=3))
def test_sources_come_back_unchanged(given: list[Prepared]) -> None:
    keys = keys_of(len(given))
    table = table_of_prepared(given, keys.rename_columns(list(KEYS)))
    assert table.select(list(INPUT_COLUMNS)).equals(keys.cast(pyarrow.schema(INPUT_COLUMNS)))
    # In two chunks, as when blocks are joined.
    back = list(prepared_of(pyarrow.concat_tables([table.slice(0, 1), table.slice(1)])))
    for one, other in zip(given, back, strict=True):
        assert one.extraction.error is None or isinstance(other.extraction.error, ImageError)
        assert as_tuple(one) == as_tuple(other)
        assert (one.pixels is None) == (other.pixels is None)
        if one.pixels is not None and other.pixels is not None:
            assert one.pixels.shape == other.pixels.shape
            assert one.pixels.tobytes() == other.pixels.tobytes()


def as_tuple(prepared: Prepared) -> tuple[object, ...]:
    """An error is compared by its code and its text."""
    one = prepared.extraction
    error = one.error and (one.error.code, str(one.error))
    facts = [getattr(one, name) for name in Extraction.__dataclass_fields__ if name != "error"]
    return error, *map(repr, facts)


def test_normalised_crops_are_refused() -> None:
    tensor = np.zeros((1, 3, 2, 2), np.float32)
    with pytest.raises(ShapeMismatch, match="a\\.jpg: crops must be pixels"):
        table_of_prepared([Prepared(Extraction("a.jpg", ""), tensor)], keys_of(1).rename_columns(list(KEYS)))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 3), min_size=1, max_size=4), st.integers(1, 3))
def test_rows_come_back_with_the_key_of_their_input(counts: list[int], blocks: int) -> None:
    rows = [tuple(Row(uri=f"{n}.jpg#{m}", score=m / 3) for m in range(count)) for n, count in enumerate(counts)]
    keys = keys_of(len(rows))
    signatures = pyarrow.table({"n": range(len(rows))})
    packed = [packed_rows(rows, keys, signatures) for _ in range(blocks)]
    assert [len(one) for one in packed] == [1] * blocks
    table = unpacked(pyarrow.concat_tables(packed))
    flat = [row for one in rows for row in one]
    assert table.select(table_of(flat).column_names).equals(table_of(flat * blocks))
    assert table["input"].to_pylist() == [f"{n}.jpg" for n, one in enumerate(rows) for _ in one] * blocks
    kept = unpacked(pyarrow.concat_tables(packed), "signatures")
    assert kept["n"].to_pylist() == [*range(len(rows))] * blocks
    assert kept.select(list(INPUT_COLUMNS)).equals(pyarrow.concat_tables([keys] * blocks).cast(kept.schema.remove(4)))
