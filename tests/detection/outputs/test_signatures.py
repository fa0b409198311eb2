"""Signatures in Parquet give back every fact of an input, in any order of kinds, to the last bit."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mdmf_deploy.bundle.bundle import Bundle
from mdmf_deploy.detection.feed import Extraction
from mdmf_deploy.detection.outputs.signatures import Extractor, SignatureType, batch_of, table_of
from mdmf_deploy.detection.videos import VideoFrames
from mdmf_deploy.errors import ImageError, UsageError
from mdmf_deploy.images.provenance import Provenance

PATCHES, WIDTH = 4, 8
# Fields that rows do not need again: the signatures come apart from them, and a GPU's score is their alternative.
APART = ("signatures", "gpu_score", "error")

texts = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), min_size=1, max_size=9)
numbers = st.none() | st.floats(0, 1e9)
crops = st.integers(1, 3).map(
    lambda n: np.random.default_rng(n).standard_normal((n, PATCHES, WIDTH)).astype(np.float32)
)
frames = st.lists(st.floats(0, 1), min_size=1, max_size=3).map(lambda found: VideoFrames(tuple(found), tuple(found)))
facts: dict[str, st.SearchStrategy[Any]] = {
    "uri": texts,
    "sha256": st.just("") | st.just("ab" * 32),
    "width": st.none() | st.integers(1, 2**31 - 1),
    "height": st.none() | st.integers(1, 2**31 - 1),
    "format": st.none() | texts,
    "crop": st.none() | texts,
    "evidence": numbers,
    "notes": st.lists(st.sampled_from(["no_end_marker", "scans_missing"]), max_size=2).map(tuple),
    "provenance": st.none() | st.builds(Provenance, st.sampled_from(["none", "claims_ai"]), st.none() | texts),
    "frames": st.none() | frames,
    **dict.fromkeys(("ms_read", "ms_decode", "ms_crop", "ms_engine"), numbers),
}
whole = st.builds(Extraction, **facts, signatures=crops)
failed = st.builds(Extraction, **facts, error=st.builds(ImageError, st.just("truncated"), texts))


@pytest.fixture(scope="module")
def extractor(tiny_bundle: Path) -> Extractor:
    return Extractor.of(Bundle.open(tiny_bundle), "onnxruntime", "fp32")


def test_every_field_is_stored_or_apart(extractor: Extractor) -> None:
    """A new field of Extraction must not be forgotten here."""
    assert {*facts, *APART} == {field.name for field in fields(Extraction)}


@settings(max_examples=15, deadline=None)
@given(extractions=st.lists(whole | failed, min_size=1, max_size=6))
@pytest.mark.parametrize("type", ["fp32", "fp16"])
def test_every_fact_comes_back(extractor: Extractor, type: SignatureType, extractions: list[Extraction]) -> None:
    extractor = msgspec.structs.replace(extractor, type=type)
    file = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(table_of(extractions, extractor), file)
    table = pyarrow.parquet.read_table(pyarrow.BufferReader(file.getvalue()))
    again = Extractor.read(table.schema, "part")
    assert again == extractor
    at = 0
    for batch in table.to_batches(max_chunksize=2):  # also where a batch begins in the middle of its columns
        stored = batch_of(batch, again)
        assert stored.signatures.dtype == np.float32
        kept = [one.signatures for one in extractions[at : at + 2] if one.signatures is not None]
        wanted = np.concatenate([np.empty((0, PATCHES, WIDTH)), *kept])
        error = 0.0 if type == "fp32" else 2.0**-11 * np.abs(wanted)
        assert (np.abs(stored.signatures - wanted) <= error).all()
        for one, count in zip(stored.extractions, stored.crops, strict=True):
            before = extractions[at]
            assert count == (0 if before.signatures is None else len(before.signatures))
            assert {name: getattr(one, name) for name in facts} == {name: getattr(before, name) for name in facts}
            assert (one.error is None) == (before.error is None)
            if one.error is not None and before.error is not None:
                assert (one.error.code, one.signatures) == ("truncated", None)
            at += 1
    assert at == len(extractions)


def test_numbers_beyond_half_precision_become_infinite(extractor: Extractor) -> None:
    values = np.full((1, PATCHES, WIDTH), 7e4, np.float32)
    half = msgspec.structs.replace(extractor, type="fp16")
    [batch] = table_of([Extraction("a", "", signatures=values)], half).to_batches()
    assert np.isinf(batch_of(batch, half).signatures).all()


def test_other_columns_are_refused(extractor: Extractor) -> None:
    with pytest.raises(UsageError, match="part holds no signatures"):
        Extractor.read(pyarrow.schema({"uri": pyarrow.string()}), "part")
    fewer = extractor.schema.remove(extractor.schema.get_field_index("evidence"))
    with pytest.raises(UsageError, match="part: expected a column evidence of double"):
        Extractor.read(fewer, "part")
