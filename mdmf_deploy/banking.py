"""Building a reference bank from real images."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np
from numpy.typing import NDArray

from mdmf_deploy.bank import Bank, BankSource
from mdmf_deploy.bundle import BANK, CALIBRATION, Bundle, Manifest, check_bank, write_bundle
from mdmf_deploy.errors import BankError

if TYPE_CHECKING:
    from mdmf_deploy.pipeline import Signed, Source
    from mdmf_deploy.runtime import Engine


@dataclass(frozen=True, slots=True)
class Duplicate:
    """An image left out because its bytes are those of another one, `kept`."""

    uri: str
    kept: str


@dataclass(frozen=True, slots=True)
class Unreadable:
    """An image that could not be decoded; code and text are its ImageError's."""

    uri: str
    code: str
    text: str


@dataclass(frozen=True, slots=True)
class BankReport:
    """A new bank, and what happened to every image that is not in it.

    images: distinct readable ones.  signatures: how many those gave, before thinning.
    """

    bank: Bank
    images: int
    signatures: int
    duplicates: tuple[Duplicate, ...]
    errors: tuple[Unreadable, ...]


def build_bank(manifest: Manifest, engine: Engine, sources: Iterable[Source], max_signatures: int = 0) -> BankReport:
    """The bank of these real images for this model: the same bytes whatever the order of the sources.

    max_signatures: a larger bank is thinned to this many; 0 keeps all.  Memory is that of the signatures kept.
    Raises BankError if no image could be read.
    """
    from mdmf_deploy.pipeline import sign

    return gather_bank(manifest, sign(sources, engine, manifest.preprocessing), max_signatures)


def gather_bank(manifest: Manifest, signed: Iterable[Signed], max_signatures: int = 0) -> BankReport:
    """As build_bank, from images already signed."""
    if max_signatures < 0:
        raise BankError(f"max_signatures: expected 0 (all) or more, got {max_signatures}")
    kept: dict[str, NDArray[np.float32]] = {}
    uris: dict[str, list[str]] = {}
    errors: list[Unreadable] = []
    total = held = 0
    for image in signed:
        if image.error is not None or image.signatures is None:
            code, text = (image.error.code, str(image.error)) if image.error else ("unreadable", "no signatures")
            errors.append(Unreadable(image.uri, code, text))
            continue
        uris.setdefault(image.sha256, []).append(image.uri)
        if image.sha256 in kept:
            continue
        total += len(image.signatures)
        kept[image.sha256] = _in_drawing_order(image.signatures, image.sha256) if max_signatures else image.signatures
        held += len(kept[image.sha256])
        # With n images seen, none can end up with more than this many; letting go now bounds the memory.
        if max_signatures and held > 2 * max_signatures + total // len(kept):
            quota = math.ceil(max_signatures / len(kept))
            kept = {sha256: signatures[:quota].copy() for sha256, signatures in kept.items()}
            held = sum(map(len, kept.values()))
    if not kept:
        raise BankError(f"bank: none of the {len(errors)} inputs is a readable image; give a folder of photographs")
    # Of copies the first by name stays, whichever was met first.
    names = {sha256: sorted(group) for sha256, group in uris.items()}
    shown = _shorten({group[0] for group in names.values()})
    chosen = _thin(kept, max_signatures)
    source = np.repeat(np.arange(len(chosen), dtype=np.int32), [len(rows) for rows in chosen.values()])
    bank = Bank.from_signatures(
        np.concatenate(list(chosen.values())).astype(np.float32, copy=False),
        manifest.model.sigma,
        source=source,
        sources=tuple(BankSource(shown[names[sha256][0]], sha256) for sha256 in chosen),
        model_sha256=manifest.model_sha256,
    )
    return BankReport(
        bank,
        images=len(kept),
        signatures=total,
        duplicates=tuple(Duplicate(uri, group[0]) for _, group in sorted(names.items()) for uri in group[1:]),
        errors=tuple(errors),
    )


def swap_bank(bundle: Bundle, bank: Bank, destination: Path) -> Bundle:
    """Write the bundle with this bank in place of its own; the model is not touched.

    The bundle_id changes, and thresholds and verification hold for a bundle_id: the calibration goes, and so do the
    verification records, whose score changes and flipped verdicts were measured against the old bank.
    Raises BundleError if the bank was made with another model, or the destination cannot be written.
    """
    check_bank(bank, bundle.manifest, BANK)
    files = {name: data for name, data in bundle.files().items() if name != CALIBRATION}
    manifest = msgspec.structs.replace(bundle.manifest, verification=())
    return write_bundle(destination, manifest, {**files, BANK: bank.to_bytes()})


def _in_drawing_order(signatures: NDArray[np.float32], sha256: str) -> NDArray[np.float32]:
    """The rows in a random order that the image's content fixes, on every machine and NumPy version."""
    order = sorted(range(len(signatures)), key=lambda row: hashlib.sha256(f"{sha256}:{row}".encode()).digest())
    return signatures[order]


def _thin(kept: dict[str, NDArray[np.float32]], max_signatures: int) -> dict[str, NDArray[np.float32]]:
    """Images by content hash; each has its first q or q + 1 rows, the lower hashes the extra one."""
    by_hash = dict(sorted(kept.items()))
    if not max_signatures:
        return by_hash
    quota, extra = divmod(max_signatures, len(by_hash))
    thinned = {
        sha256: signatures[: quota + (place < extra)] for place, (sha256, signatures) in enumerate(by_hash.items())
    }
    return {sha256: signatures for sha256, signatures in thinned.items() if len(signatures)}


def _shorten(uris: set[str]) -> dict[str, str]:
    """Each uri from its last common folder on, so that a bank does not carry its maker's directories."""
    paths = {uri: Path(uri) for uri in uris}
    try:
        root = os.path.commonpath([path.parent for path in paths.values()])
    except ValueError:  # no common folder, or nothing at all
        return {uri: uri for uri in uris}
    above = Path(root).parent
    return {uri: path.relative_to(above).as_posix() for uri, path in paths.items()}
