"""Each value of a bundle's files has a range, and what lies outside of it is refused, whatever the hashes say."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from helpers.bundle_mutants import read_tensors, write_tensors
from helpers.drawn_banks import drawn
from helpers.handmade import bank, calibration_of, manifest, record
from hypothesis import given, settings
from hypothesis import strategies as st

from mdmf_deploy.bundle.bank import Bank
from mdmf_deploy.bundle.bundle import shipped
from mdmf_deploy.bundle.calibration import Calibration
from mdmf_deploy.bundle.documents import MOST_JSON, read_json
from mdmf_deploy.bundle.manifest import BANK, MOST_BYTES, Manifest
from mdmf_deploy.bundle.self_term import PAIRS
from mdmf_deploy.errors import BankError, BundleError, CalibrationError, RecipeError
from mdmf_deploy.mmd.compress.bank_rows import BankFile, MemoryRows
from mdmf_deploy.mmd.compress.fit import compress
from mdmf_deploy.mmd.cpu import CpuReduction
from mdmf_deploy.mmd.reference import ReferenceReduction

Tensors = dict[str, np.ndarray]
Edit = Callable[[dict[str, Any], Tensors], object]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"[" * 10_000 + b"]" * 10_000, "nested too deeply"),
        (b'{"a":' * 10_000 + b"1" + b"}" * 10_000, "nested too deeply"),
        (b'{"a": 1, "a": 2}', "key 'a' comes twice"),
        (b'{"b": {"a": 1, "c": 0, "a": 1}}', "key 'a' comes twice"),
        (b'{"a": NaN}', "NaN is no JSON number"),
        (b'{"a": -Infinity}', "no JSON number"),
        (b'{"a": ' + b"1" * 5000 + b"}", "too many digits"),
        (b'{"a": 1} {}', "Extra data"),
        (b"\xff{}", "utf-8"),
        ("{}".encode("utf-16"), "utf-8"),
        (b'{"' + b"a" * MOST_JSON + b'": 1}', "expected at most"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_json_is_read_strictly_and_within_bounds(text: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        read_json(text, dict[str, object])
    assert "\n" not in str(caught.value)


def test_an_integer_beyond_all_floats_and_a_long_key_are_told_in_one_short_line() -> None:
    with pytest.raises(ValueError, match=r"too large|out of range"):
        read_json(b"[1" + b"0" * 400 + b"]", list[float])
    data = msgspec.json.encode(manifest()).replace(b'"crop"', b'"' + b"x\\n" * 5000 + b'"')
    with pytest.raises(BundleError) as caught:
        Manifest.from_bytes(data)
    assert len(str(caught.value)) < 500
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("schema_version",), -1),
        (("schema_version",), 0),
        (("name",), "a\nb"),
        (("name",), "a\u202eb"),
        (("name",), "x" * 201),
        (("model", "pool"), 0),
        (("model", "pool"), 65),
        (("model", "signature"), 0),
        (("model", "signature"), 10**6),
        (("model", "sigma"), 0.0),
        (("model", "sigma"), -1.0),
        (("model", "sigma"), 1e300),
        (("model", "opset"), -1),
        (("model", "blocks"), [0]),
        (("model", "later"), 1),
        (("preprocessing", "crop"), 13),
        (("preprocessing", "crop"), 10**9),
        (("preprocessing", "crops"), 257),
        (("preprocessing", "mean"), [0.5, 0.5, 1.5]),
        (("preprocessing", "std"), [0.5, 0.5, 1e9]),
        (("limits", "max_score_change"), -0.1),
        (("limits", "min_rank_correlation"), 2.0),
        (("verification", 0, "images"), 0),
        (("verification", 0, "max_signature_error"), -1.0),
        (("verification", 0, "score_spread"), -0.1),
        (("verification", 0, "rank_correlation"), 1.5),
        (("verification", 0, "flipped_verdicts"), 1.1),
        (("verification", 0, "images_per_second"), -1.0),
        (("provenance", "checkpoint_sha256"), "0" * 63),
        (("files", "model.onnx", "sha256"), "0" * 63 + "\n"),
        (("files", "model.onnx", "sha256"), "F" * 64),
        (("files", "model.onnx", "size"), -1),
        (("files", "model.onnx", "mode"), 7),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_value_of_the_manifest_out_of_its_range_is_refused(place: tuple[Any, ...], value: object) -> None:
    tree = msgspec.to_builtins(manifest(verification=(record(),)))
    assert Manifest.from_bytes(json.dumps(tree).encode()) == manifest(verification=(record(),))
    holder = tree
    for key in place[:-1]:
        holder = holder[key]
    holder[place[-1]] = value
    with pytest.raises(BundleError, match=r"^there/manifest\.json: "):
        Manifest.from_bytes(json.dumps(tree).encode(), "there/manifest.json")


def test_a_manifest_may_hold_more_than_this_version_knows_where_it_does_not_decide() -> None:
    tree = msgspec.to_builtins(manifest())
    for holder in (tree, tree["provenance"], tree["verification"][0]):
        holder["later"] = {"x": [None]}
    assert Manifest.from_bytes(json.dumps(tree).encode()) == manifest()
    with pytest.raises(BundleError, match="expected at most"):
        Manifest.from_bytes(json.dumps(tree | {"later": "x" * MOST_BYTES}).encode())


def put(name: str, value: object) -> Edit:
    """Change all values of a tensor, or one where it begins."""
    return lambda _, tensors: tensors[name].reshape(-1).__setitem__(0, value)


def meta(**changes: object) -> Edit:
    return lambda metadata, _: metadata.update(changes)


def compression(**changes: object) -> Edit:
    return lambda metadata, _: metadata["compression"].update(changes)


def with_tensor(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Edit:
    return lambda _, tensors: tensors.update({name: change(tensors[name])})


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (put("signatures", 3.4e38), "expected at most 10,000 bandwidths"),
        (put("signatures", np.nan), "not finite"),
        (put("weights", 1e300), "its weights have a sum of"),
        (put("weights", np.inf), "not finite"),
        (put("weights", 0.5), "must be the same"),
        (with_tensor("weights", lambda w: -w), "its weights have a sum of"),
        (with_tensor("weights", lambda w: 2 * w), "its self term is"),
        (put("self_term", -0.1), "expected 0 to 1"),
        (put("self_term", 1.1), "expected 0 to 1"),
        (put("self_term", 0.5), "its points give"),
        (put("self_term", np.nan), "expected 0 to 1"),
        (put("source", 99), "outside the list"),
        (with_tensor("signatures", lambda s: s.astype(np.float64)), "signatures: expected F32"),
        (with_tensor("signatures", lambda s: s[:-1]), "expected 23 values"),
        (with_tensor("source", lambda s: s.reshape(-1, 1)), "source: expected I32 of 1"),
        (with_tensor("self_term", lambda s: np.concatenate([s, s])), "self_term: expected 1"),
        (lambda _, tensors: tensors.pop("source"), "expected the tensors"),
        (lambda _, tensors: tensors.update(more=np.zeros(1, np.float32)), "expected the tensors"),
        (meta(sigma=1e300), "sigma"),
        (meta(sigma=1e-300), "sigma"),
        (meta(sigma=5.0), "its points give"),
        (meta(model_sha256="x"), "model_sha256"),
        (meta(sources=[]), "sources"),
        (meta(sources=[["a", "0" * 63]] * 6), "sources"),
        (meta(sources=[["a" * 10_001, "0" * 64]] * 6), "sources"),
        (compression(method="greedy"), "compression"),
        (compression(method="greedy", of=3, max_mmd_change=0.1), "compression"),
        (compression(method="greedy", of=99, max_mmd_change=-0.1), "max_mmd_change"),
        (compression(method="greedy", of=99, max_mmd_change=0.1, spread=1e300), "spread"),
        (compression(method="greedy", of=99, max_mmd_change=0.1, scale=[0.1]), "scale"),
        (compression(method=7), "method"),
    ],
)
def test_a_value_of_the_bank_out_of_its_range_is_refused_by_both_readers(
    edit: Edit, message: str, tmp_path: Path
) -> None:
    tensors, header = read_tensors(bank().to_bytes())
    metadata = json.loads(header["__metadata__"]["mdmf"])
    edit(metadata, tensors)
    path = tmp_path / BANK
    path.write_bytes(write_tensors(tensors, {"mdmf": json.dumps(metadata)}))
    with pytest.raises(BankError, match=message) as caught:
        Bank.from_bytes(path.read_bytes(), str(path))
    assert str(caught.value).startswith(f"{path} is not a reference bank (")

    def by_blocks() -> None:
        file = BankFile(path)
        file.signatures(0, file.rows)
        file.source(0, file.rows)

    with pytest.raises(BankError, match=message) as caught:
        by_blocks()
    assert str(caught.value).startswith(str(path))


@pytest.mark.parametrize("change", [{"data_offsets": [0, 0]}, {"data_offsets": [0, 192]}, {"shape": [2**40, 2**40]}])
def test_tensors_must_fill_their_file(change: dict[str, object]) -> None:
    tensors, header = read_tensors(bank().to_bytes())

    def changed(new: dict[str, Any]) -> str:
        new["weights"].update(change)
        return json.dumps(new)

    for data in (
        write_tensors(tensors, header["__metadata__"], changed),
        bank().to_bytes() + b"more",
        b"\xff" * 8 + bank().to_bytes()[8:],
    ):
        with pytest.raises(BankError, match="is not a reference bank"):
            Bank.from_bytes(data)


@pytest.mark.parametrize(
    "change", [{"signatures": bank().signatures * np.float32(1e5)}, {"weights": bank().weights * -1}]
)
def test_what_cannot_be_read_cannot_be_written(change: dict[str, object]) -> None:
    with pytest.raises(BankError):
        dataclasses.replace(bank(), **change).to_bytes()


@pytest.mark.parametrize("weights", ["equal", "signed"])
@pytest.mark.parametrize("seed", range(5))
def test_the_self_term_of_a_large_bank_is_told_from_others(seed: int, weights: str) -> None:
    """Some pairs are drawn. The right term is never refused, and one that is off by 0.15 never passes."""
    _, large = drawn(seed, 1, 1, 300, 8, 3.0, weights)
    assert len(large.weights) ** 2 > PAIRS
    if weights == "signed":
        large = dataclasses.replace(large, compression={"method": "drawn", "of": 999, "max_mmd_change": 0.1})
    Bank.from_bytes(large.to_bytes())
    tensors, header = read_tensors(large.to_bytes())
    for off in (-0.15, 0.15):
        tensors["self_term"][:] = large.self_term + off
        with pytest.raises(BankError, match="self term"):
            Bank.from_bytes(write_tensors(tensors, header["__metadata__"]))


@settings(deadline=None, max_examples=20)
@given(
    seed=st.integers(0, 2**32 - 1),
    points=st.integers(2, 80),
    width=st.integers(1, 40),
    sigma=st.floats(0.3, 300.0),
    weights=st.sampled_from(["equal", "signed", "compressed"]),
    own=st.booleans(),
)
def test_no_honest_score_is_impossible(
    seed: int, points: int, width: int, sigma: float, weights: str, own: bool
) -> None:
    """The worst case is an image that is the bank itself: its score is 0, and all that is left is rounding."""
    x, made = drawn(seed, 2, 7, points, width, sigma, "signed" if weights == "signed" else "equal")
    if weights == "compressed":
        fitted = compress(MemoryRows(made.signatures, made.weights), sigma, made.self_term, points=max(1, points // 2))
        made = dataclasses.replace(
            made, signatures=fitted.signatures, weights=fitted.weights, self_term=fitted.self_term,
            source=made.source[: len(fitted.weights)],
        )  # fmt: skip
    images = made.signatures[None] if own else x
    low, high = made.score_range
    for reduction in (ReferenceReduction(), CpuReduction(1)):
        scores = reduction(images, made).mmd2
        # Rounding takes up a small part of what the range leaves for it.
        assert (scores >= 0.2 * low).all()
        assert (scores <= high).all()


@pytest.mark.parametrize("name", ["starter", "dinov2s"])
def test_the_range_of_a_shipped_bundle_is_narrow(name: str) -> None:
    made = Bank.from_bytes((shipped(name) / BANK).read_bytes())
    low, high = made.score_range
    assert -0.002 < low < 0.0
    assert (1 + made.self_term**0.5) ** 2 < high < 4.0
    # Images of the bank itself have the lowest scores.
    images = made.signatures[: len(made.signatures) // 49 * 49].reshape(-1, 49, made.signatures.shape[1])[::40]
    assert CpuReduction(1)(images, made).mmd2.min() > 0.0


def test_a_calibration_score_that_cannot_be_is_refused() -> None:
    tree = msgspec.to_builtins(calibration_of([0.1, 0.2, 0.3], (0.4,), 0.5))
    tree["groups"][0]["thresholds"] = [{"fpr": 0.01, "score": None}]

    def read(scores: list[float], carried: float = 0.0) -> Calibration:
        tree["groups"][0]["scores"] = scores
        return Calibration.from_bytes(json.dumps(tree | {"carried": carried}).encode(), "c.json")

    for scores, carried in (([-0.005, 0.1, 4.0], 0.0), ([0.0, 0.1, 6.2], 0.5)):
        assert read(scores, carried).scores == tuple(scores)
    for scores, carried in (
        ([-0.02, 0.1, 0.2], 0.0),
        ([0.0, 0.1, 4.1], 0.0),
        ([0.0, 0.1, 6.4], 0.5),
        ([0, 0, 1e300], 0),
    ):
        with pytest.raises(CalibrationError, match=r"^c\.json is not a calibration"):
            read(scores, carried)


def test_a_recipe_has_no_number_that_is_not_finite(tmp_path: Path) -> None:
    from mdmf_deploy.bundle.recipe import load_recipe, recipe_path

    text = recipe_path("starter").read_text()
    assert "\nsteps" in text
    for value in ("nan", "inf", "-inf"):
        path = tmp_path / "r.toml"
        path.write_text(text.replace("\nsteps", f"\nweight_decay = {value}\nsteps", 1))
        with pytest.raises(RecipeError, match="is not a finite number"):
            load_recipe(path)
