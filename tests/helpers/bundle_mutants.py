"""Bundles with one wrong value each, whose hashes a careful sender has made to match again."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import os
import random
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

BANK, CALIBRATION, MANIFEST = "bank.safetensors", "calibration.json", "manifest.json"
MODEL, PROBES = "model.onnx", "probes.safetensors"
_MARK = "@raw%d@"
# Written as they stand in place of a value.
RAW = (
    "null", "true", "[]", "{}", '""', "0", "-1", "-0.0", "1", "0.5", "1e-320", "1e300", "-1e300", "1e308", "1e999",
    "-1e999", "NaN", "Infinity", "3.5", "2147483648", "9223372036854775808", "1" + "0" * 400, "1" + "0" * 5000,
    '"\\u202e\\u0000\\n"', '"\\ud800"', '"' + "x" * 100_000 + '"', '"../../etc/passwd"', '"/dev/zero"',
    '"' + "f" * 64 + '"', "[" * 10_000 + "]" * 10_000, '{"a":' * 10_000 + "1" + "}" * 10_000,
    "[" + "1," * 50_000 + "1]", '{"a":1,"a":2}', "1e9", "1000000000",
)  # fmt: skip
FLOATS = (3.4e38, -3.4e38, np.nan, np.inf, -np.inf, 1e20, 1e300, -1e300, 0.0, -1.0, 5.0)


def mutant(seed: int, bundle: Path, other: Path, out: Path) -> str:
    """Write a mutant of a bundle to a new folder `out`, and return what was done to it.

    other: another bundle, whose files take the place of this one's in some mutants.
    """
    draw = random.Random(seed)
    out.mkdir()
    for path in bundle.iterdir():
        try:
            if path.name != MODEL:
                raise OSError
            os.link(path, out / MODEL)
        except OSError:  # other files change, and a file system may have no links
            shutil.copyfile(path, out / path.name)
    kind = draw.choice(_KINDS)
    done = kind(draw, out, other)
    return f"mutant {seed}: {done}"


def rehash(folder: Path) -> None:
    """Make every hash and id of a bundle match again, as far as its files can still be read."""
    path = folder / MANIFEST
    manifest = json.loads(path.read_bytes())
    _relist(folder, manifest)
    model = hashlib.sha256(manifest["files"][MODEL]["sha256"].encode()).hexdigest()
    _edit_bank(folder, lambda metadata, _: metadata.update(model_sha256=model))
    _relist(folder, manifest)
    _belong(folder, manifest)
    _relist(folder, manifest)
    path.write_text(json.dumps(manifest))


def _relist(folder: Path, manifest: dict[str, Any]) -> None:
    for name in manifest["files"]:
        data = (folder / name).read_bytes()
        manifest["files"][name] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}


def _belong(folder: Path, manifest: dict[str, Any]) -> None:
    """Give the calibration the id of this bundle."""
    if not (folder / CALIBRATION).exists():
        return
    preprocessing = dict(manifest["preprocessing"])
    if preprocessing.get("crops") == 1:
        del preprocessing["crops"]
    identity = {
        "model": manifest["model"],
        "preprocessing": preprocessing,
        "files": {name: manifest["files"][name]["sha256"] for name in (MODEL, BANK)},
    }
    text = json.dumps(identity, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "replace")
    path = folder / CALIBRATION
    try:
        calibration = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return
    if isinstance(calibration, dict) and isinstance(calibration.get("bundle_id"), str):
        calibration["bundle_id"] = hashlib.sha256(text).hexdigest()
        path.write_text(json.dumps(calibration))


def _places(tree: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of every value in a JSON tree, but few of a long list."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree[:3]) if isinstance(tree, list) else ()
    for key, value in items:
        yield (*above, key)
        yield from _places(value, (*above, key))


def _change(draw: random.Random, tree: Any) -> tuple[str, str]:
    """Return the text of a JSON tree with one value replaced, removed or written twice, and what was done."""
    place = draw.choice(list(_places(tree)))
    tree = copy.deepcopy(tree)
    holder = tree
    for key in place[:-1]:
        holder = holder[key]
    where = ".".join(map(str, place))
    action = draw.choice(("replace",) * 8 + ("remove", "twice", "scale"))
    value = holder[place[-1]]
    if action == "remove" or (action == "twice" and isinstance(holder, list)):
        del holder[place[-1]]
        return json.dumps(tree), f"{where} removed"
    if action == "twice":
        text = json.dumps(tree)
        pair = f"{json.dumps(place[-1])}: {json.dumps(value)}"
        return text.replace(pair, f"{json.dumps(place[-1])}: 7, {pair}", 1), f"{where} twice"
    if action == "scale" and isinstance(value, (int, float)) and not isinstance(value, bool):
        factor = draw.choice((-1, 0, 10, 1e6, 1e-6))
        holder[place[-1]] = type(value)(value * factor)
        return json.dumps(tree), f"{where} times {factor}"
    raw = draw.choice(RAW)
    holder[place[-1]] = "@raw@"
    return json.dumps(tree).replace('"@raw@"', raw), f"{where} = {raw[:40]}"


def _change_manifest(draw: random.Random, folder: Path, other: Path) -> str:
    path = folder / MANIFEST
    manifest = json.loads(path.read_bytes())
    text, done = _change(draw, manifest)
    try:
        changed = json.loads(text)
        _belong(folder, changed)
        if not done.startswith("files"):
            data = (folder / CALIBRATION).read_bytes()
            entry = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
            text = text.replace(json.dumps(manifest["files"][CALIBRATION]), json.dumps(entry))
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
        pass
    path.write_text(text)
    return f"manifest {done}"


def _change_calibration(draw: random.Random, folder: Path, other: Path) -> str:
    path = folder / CALIBRATION
    text, done = _change(draw, json.loads(path.read_bytes()))
    path.write_text(text)
    manifest = json.loads((folder / MANIFEST).read_bytes())
    _relist(folder, manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest))
    return f"calibration {done}"


def _shift_scores(draw: random.Random, folder: Path, other: Path) -> str:
    """Change all scores of the calibration alike, with thresholds that fit them."""
    path = folder / CALIBRATION
    calibration = json.loads(path.read_bytes())
    factor, shift = draw.choice(((1, -1.0), (-1, 0.0), (1e300, 0.0), (1, 10.0), (100, 0.0)))

    def change(score: float | None) -> float | None:
        return None if score is None else score * factor + shift

    for group in calibration["groups"]:
        group["scores"] = sorted(map(change, group["scores"]))
        for threshold in group["thresholds"]:
            rank = int(threshold["fpr"] * (len(group["scores"]) + 1))
            threshold["score"] = group["scores"][-rank] if rank else None
    path.write_text(json.dumps(calibration))
    rehash(folder)
    return f"calibration scores times {factor} plus {shift}"


def _edit_bank(folder: Path, edit: Callable[[dict[str, Any], dict[str, np.ndarray]], object]) -> None:
    tensors, header = read_tensors((folder / BANK).read_bytes())
    metadata = json.loads(header["__metadata__"]["mdmf"])
    edit(metadata, tensors)
    (folder / BANK).write_bytes(write_tensors(tensors, {"mdmf": json.dumps(metadata)}))


def read_tensors(data: bytes) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Return a safetensors file's arrays and its header."""
    kinds = {"F32": np.float32, "F64": np.float64, "I32": np.int32}
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    tensors = {}
    for name, entry in header.items():
        if name != "__metadata__":
            start, stop = entry["data_offsets"]
            part = data[8 + length + start : 8 + length + stop]
            tensors[name] = np.frombuffer(part, kinds[entry["dtype"]]).reshape(entry["shape"]).copy()
    return tensors, header


def write_tensors(
    tensors: dict[str, np.ndarray], metadata: dict[str, str], change: Callable[[Any], str] = json.dumps
) -> bytes:
    """Return a safetensors file.  change: gives the text of its header."""
    kinds = {"f4": "F32", "f8": "F64", "i4": "I32", "i8": "I64", "f2": "F16", "u1": "U8"}
    header: dict[str, Any] = {"__metadata__": metadata}
    at = 0
    for name, array in tensors.items():
        header[name] = {
            "dtype": kinds[array.dtype.str[1:]],
            "shape": list(array.shape),
            "data_offsets": [at, at + array.nbytes],
        }
        at += array.nbytes
    text = change(header).encode("utf-8", "surrogatepass")
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + b"".join(array.tobytes() for array in tensors.values())


def _self_term(tensors: dict[str, np.ndarray], sigma: float) -> np.ndarray:
    """Return the term that these points really have, for a sender who computes it."""
    r, w = tensors["signatures"].astype(np.float64), tensors["weights"]
    with np.errstate(all="ignore"):
        squared = ((r[:, None] - r[None]) ** 2).sum(-1)
        return np.array([w @ np.exp(-squared / (2 * np.float64(sigma) ** 2)) @ w])


def _change_bank_metadata(draw: random.Random, folder: Path, other: Path) -> str:
    tensors, header = read_tensors((folder / BANK).read_bytes())
    text, done = _change(draw, json.loads(header["__metadata__"]["mdmf"]))
    (folder / BANK).write_bytes(write_tensors(tensors, {"mdmf": text}))
    if "sigma" in done and draw.random() < 0.7:
        _same_sigma(folder)
    _relist_all(folder)
    return f"bank metadata {done}"


def _same_sigma(folder: Path) -> None:
    """Write the bank's bandwidth into the manifest, too."""
    _, header = read_tensors((folder / BANK).read_bytes())
    try:
        sigma = json.loads(header["__metadata__"]["mdmf"])["sigma"]
    except (ValueError, KeyError, RecursionError):
        return
    manifest = json.loads((folder / MANIFEST).read_bytes())
    manifest["model"]["sigma"] = sigma
    (folder / MANIFEST).write_text(json.dumps(manifest))


def _relist_all(folder: Path) -> None:
    manifest = json.loads((folder / MANIFEST).read_bytes())
    _relist(folder, manifest)
    with contextlib.suppress(TypeError, KeyError):
        _belong(folder, manifest)
    _relist(folder, manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest))


def _change_bandwidth(draw: random.Random, folder: Path, other: Path) -> str:
    """Give bank and manifest another bandwidth, with or without the self term that goes with it."""
    sigma = draw.choice((1e300, 1e-300, 1e-9, 1e12, -1.0, 0.0, 5.0))
    own = draw.random() < 0.5

    def edit(metadata: dict[str, Any], tensors: dict[str, np.ndarray]) -> None:
        metadata["sigma"] = sigma
        if own and sigma:
            tensors["self_term"] = np.nan_to_num(_self_term(tensors, sigma))

    _edit_bank(folder, edit)
    _same_sigma(folder)
    _relist_all(folder)
    return f"bandwidth {sigma:g}{' with its self term' * own}"


def _change_tensor(draw: random.Random, folder: Path, other: Path) -> str:
    name = draw.choice(("signatures", "signatures", "weights", "weights", "self_term", "source"))
    how = draw.choice(("one", "one", "all", "dtype", "shape", "missing", "empty", "longer", "scaled"))
    value = draw.choice(FLOATS)
    own = draw.random() < 0.5

    def edit(metadata: dict[str, Any], tensors: dict[str, np.ndarray]) -> None:
        array = tensors[name]
        with np.errstate(all="ignore"):
            if how == "one":
                array.reshape(-1)[draw.randrange(array.size)] = np.asarray(value).astype(array.dtype)
            elif how == "all":
                array[...] = np.asarray(value).astype(array.dtype)
            elif how == "dtype":
                tensors[name] = array.astype(draw.choice((np.float16, np.float64, np.int64, np.uint8)))
            elif how == "shape":
                tensors[name] = array.reshape(draw.choice(((1, -1), (-1, 1), (1, 1, -1), (-1,))))
            elif how == "missing":
                del tensors[name]
            elif how == "empty":
                tensors[name] = array[:0]
            elif how == "longer":
                tensors[name] = np.concatenate([array, array])
            else:
                tensors[name] = (array * draw.choice((-1, 10, 1e6))).astype(array.dtype)
            if own and name in ("signatures", "weights") and {"signatures", "weights"} <= tensors.keys():
                with contextlib.suppress(ValueError):
                    tensors["self_term"] = _self_term(tensors, metadata["sigma"])

    _edit_bank(folder, edit)
    _relist_all(folder)
    return f"bank {name} {how} {value:g}{' with its self term' * own}"


def _change_header(draw: random.Random, folder: Path, other: Path) -> str:
    file = draw.choice((BANK, BANK, PROBES))
    tensors, header = read_tensors((folder / file).read_bytes())
    done = ""

    def change(new: dict[str, Any]) -> str:
        nonlocal done
        text, done = _change(draw, new)
        return text

    (folder / file).write_bytes(write_tensors(tensors, header["__metadata__"], change))
    _relist_all(folder)
    return f"{file} header {done}"


def _change_probes(draw: random.Random, folder: Path, other: Path) -> str:
    tensors, header = read_tensors((folder / PROBES).read_bytes())
    array = tensors["signatures"]
    how = draw.choice(("one", "all", "dtype", "shape", "fewer", "narrower"))
    value = draw.choice(FLOATS)
    with np.errstate(all="ignore"):
        if how == "one":
            array.reshape(-1)[draw.randrange(array.size)] = value
        elif how == "all":
            array[...] = value
        elif how == "dtype":
            array = array.astype(np.float64)
        elif how == "shape":
            array = array.reshape(len(array), -1)
        else:
            array = array[:3] if how == "fewer" else array[:, :, :-1]
    tensors["signatures"] = np.ascontiguousarray(array)
    (folder / PROBES).write_bytes(write_tensors(tensors, header["__metadata__"]))
    _relist_all(folder)
    return f"probes {how} {value:g}"


def _swap_file(draw: random.Random, folder: Path, other: Path) -> str:
    name = draw.choice((BANK, BANK, CALIBRATION, PROBES, "self term"))
    if name == "self term":
        foreign, _ = read_tensors((other / BANK).read_bytes())
        _edit_bank(folder, lambda _, tensors: tensors.update(self_term=foreign["self_term"]))
    else:
        shutil.copyfile(other / name, folder / name)
    rehash(folder)
    return f"{name} of another bundle"


def _damage_file(draw: random.Random, folder: Path, other: Path) -> str:
    name = draw.choice((BANK, CALIBRATION, PROBES, MANIFEST))
    data = bytearray((folder / name).read_bytes())
    how = draw.choice(("cut", "flip", "random", "zeros", "twice", "length"))
    if how == "cut":
        data = data[: draw.randrange(len(data))]
    elif how == "flip":
        for _ in range(draw.randrange(1, 6)):
            data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    elif how == "random":
        data = bytearray(draw.randbytes(draw.randrange(200)))
    elif how == "zeros":
        data = bytearray(draw.choice((0, 8, 1 << 20)))
    elif how == "twice":
        data = data * 2
    else:
        data[:8] = struct.pack("<Q", draw.choice((0, 1, 2**31, 2**63, len(data), len(data) - 8)))
    (folder / name).write_bytes(data)
    if name != MANIFEST:
        _relist_all(folder)
    return f"{name} {how}"


def _lie_about_size(draw: random.Random, folder: Path, other: Path) -> str:
    path = folder / MANIFEST
    manifest = json.loads(path.read_bytes())
    name, size = draw.choice(list(manifest["files"])), draw.choice((0, -1, 1, 2**40, 2**70))
    manifest["files"][name]["size"] = size
    path.write_text(json.dumps(manifest))
    return f"size of {name} is {size}"


_KINDS = (
    *(_change_manifest,) * 6,
    *(_change_calibration,) * 4,
    *(_change_bank_metadata,) * 4,
    *(_change_tensor,) * 5,
    *(_change_header,) * 2,
    *(_change_probes,) * 2,
    _shift_scores,
    _change_bandwidth,
    _swap_file,
    _damage_file,
    _damage_file,
    _lie_about_size,
)
