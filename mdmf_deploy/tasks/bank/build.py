"""Build a reference bank from real images."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np
from numpy.typing import NDArray

from mdmf_deploy.bundle.bank import Bank, BankSource
from mdmf_deploy.bundle.bundle import Bundle, check_bank, write_bundle
from mdmf_deploy.bundle.manifest import BANK, CALIBRATION, Manifest
from mdmf_deploy.errors import BankError, UsageError
from mdmf_deploy.mmd.compress.stream import PER_BLOCK, Gathering
from mdmf_deploy.mmd.cpu import CpuReduction
from mdmf_deploy.mmd.reference import uniform_bank
from mdmf_deploy.tasks.bank.compress import METHOD
from mdmf_deploy.tasks.verify import Scale, scale_of

if TYPE_CHECKING:
    from mdmf_deploy.detection.feed import Extraction
    from mdmf_deploy.detection.sources import Source
    from mdmf_deploy.runtime import Engine


# The M^2 / 2 pairs of more signatures take two cores more than an hour.
MAX_EXACT = 1_000_000
# The scores of this many images set the scale that a compressed bank keeps.
SCALE_IMAGES = 256


@dataclass(frozen=True, slots=True)
class Duplicate:
    """An image left out because another one, `kept`, has the same bytes."""

    uri: str
    kept: str


@dataclass(frozen=True, slots=True)
class Unreadable:
    """An image that could not be decoded. Its code and text are those of the ImageError."""

    uri: str
    code: str
    text: str

    @classmethod
    def of(cls, image: Extraction) -> Unreadable:
        error = image.error
        return cls(image.uri, error.code, str(error)) if error else cls(image.uri, "unreadable", "no signatures")


@dataclass(frozen=True, slots=True)
class BankReport:
    """A new bank, and the images that are not in it.

    images: the number of distinct readable images.
    signatures: the number extracted from them, before thinning.
    """

    bank: Bank
    images: int
    signatures: int
    duplicates: tuple[Duplicate, ...]
    errors: tuple[Unreadable, ...]


def build_bank(
    manifest: Manifest,
    engine: Engine,
    sources: Iterable[Source],
    max_signatures: int = 0,
    *,
    points: int | None = None,
    crops: int = 1,
) -> BankReport:
    """Build the bank of these real images for this model.

    max_signatures: a larger bank is thinned to this many. 0 keeps all. Memory is that of the signatures kept, and the
        bank has the same bytes whatever the order of the sources.
    points: every signature counts, and the bank is compressed to this many points while it is gathered (see Gathering
        in mmd/compress/stream.py). Beyond one block of signatures it depends on the order of the sources.
    crops: the most crops taken of an image, whatever the bundle's plan. With one, the central crop, a bank of the same
        size holds more images.
    Raises UsageError if both are given, and BankError if no image could be read, or if so many signatures are left that
    their self term takes hours.
    """
    from mdmf_deploy.detection.pipeline import extract

    extracted = extract(sources, engine, manifest.preprocessing, crops=crops)
    return gather_bank(manifest, extracted, max_signatures, points=points)


def gather_bank(
    manifest: Manifest, extracted: Iterable[Extraction], max_signatures: int = 0, *, points: int | None = None
) -> BankReport:
    """Build a bank, as build_bank does, from signatures that are already extracted."""
    if max_signatures < 0:
        raise BankError(f"max_signatures: expected 0 (all) or more, got {max_signatures}")
    if points is not None and max_signatures:
        raise UsageError("bank build: give either --points or --max-signatures")
    inputs = _Inputs()
    images = inputs.distinct(extracted)
    if points is None:
        return inputs.report(*_thinned(images, max_signatures, manifest, inputs))
    return inputs.report(*_compressed(images, Gathering(manifest.model.sigma, points), manifest, inputs))


class _Inputs:
    """A record of every image given: its names by content hash, or why it could not be read."""

    def __init__(self) -> None:
        self.uris: dict[str, list[str]] = {}
        self.errors: list[Unreadable] = []

    def distinct(self, extracted: Iterable[Extraction]) -> Iterator[tuple[str, NDArray[np.float32]]]:
        """Yield (sha256, signatures) of every distinct readable image, (n N, d) for n crops.

        Raises BankError at the end if there was none.
        """
        for image in extracted:
            if image.error is not None or image.signatures is None:
                self.errors.append(Unreadable.of(image))
                continue
            uris = self.uris.setdefault(image.sha256, [])
            uris.append(image.uri)
            if len(uris) == 1:
                yield image.sha256, image.signatures.reshape(-1, image.signatures.shape[-1])
        if not self.uris:
            raise BankError(
                f"bank: none of the {len(self.errors)} inputs is a readable image; give a folder of photographs"
            )

    def sources(self, hashes: Iterable[str]) -> tuple[BankSource, ...]:
        """Return the image of each hash under its name. Among copies, the first name in sorted order wins."""
        shown = _shorten({min(uris) for uris in self.uris.values()})
        return tuple(BankSource(shown[min(self.uris[sha256])], sha256) for sha256 in hashes)

    def report(self, bank: Bank, signatures: int) -> BankReport:
        names = sorted((sha256, sorted(uris)) for sha256, uris in self.uris.items())
        return BankReport(
            bank,
            images=len(self.uris),
            signatures=signatures,
            duplicates=tuple(Duplicate(uri, uris[0]) for _, uris in names for uri in uris[1:]),
            errors=tuple(self.errors),
        )


def _thinned(
    images: Iterable[tuple[str, NDArray[np.float32]]], max_signatures: int, manifest: Manifest, inputs: _Inputs
) -> tuple[Bank, int]:
    """Return the exact bank, thinned to max_signatures, and the number of signatures before."""
    kept: dict[str, NDArray[np.float32]] = {}
    total = held = 0
    for sha256, signatures in images:
        total += len(signatures)
        kept[sha256] = _in_drawing_order(signatures, sha256) if max_signatures else signatures
        held += len(kept[sha256])
        # With n images seen, none can end up with more rows than this. Dropping the others now bounds the memory.
        if max_signatures and held > 2 * max_signatures + total // len(kept):
            quota = math.ceil(max_signatures / len(kept))
            kept = {sha256: signatures[:quota].copy() for sha256, signatures in kept.items()}
            held = sum(map(len, kept.values()))
    chosen = _thin(kept, max_signatures)
    size = sum(map(len, chosen.values()))
    if size > MAX_EXACT:
        raise BankError(
            f"bank: the self term of {size} signatures takes hours, since all of their pairs count; "
            f"let `mdmf bank build --points {PER_BLOCK}` compress the bank while it is gathered"
        )
    source = np.repeat(np.arange(len(chosen), dtype=np.int32), [len(rows) for rows in chosen.values()])
    bank = uniform_bank(
        np.concatenate(list(chosen.values())).astype(np.float32, copy=False),
        manifest.model.sigma,
        source=source,
        sources=inputs.sources(chosen),
        model_sha256=manifest.model_sha256,
    )
    return bank, total


def _compressed(
    images: Iterable[tuple[str, NDArray[np.float32]]], gathering: Gathering, manifest: Manifest, inputs: _Inputs
) -> tuple[Bank, int]:
    """Return a bank of few points that stand for all signatures, and the number of these."""
    some: dict[str, NDArray[np.float32]] = {}
    for sha256, signatures in images:
        gathering.add(sha256, signatures)
        some[sha256] = signatures
        if len(some) > 2 * SCALE_IMAGES:
            some = _smallest(some)
    gathered = gathering.result()
    part = gathered.coreset
    bank = Bank(
        part.signatures,
        part.weights,
        manifest.model.sigma,
        gathered.self_term,
        part.source,
        inputs.sources(gathered.hashes),
        manifest.model_sha256,
    )
    if len(part.weights) < part.of:
        compression = {
            "method": METHOD,
            "of": part.of,
            "max_mmd_change": part.max_mmd_change,
            "spread": None,
            "scale": list(_scale(bank, _smallest(some).values())),
        }
        bank = replace(bank, compression=compression)
    return bank, part.of


def _smallest(some: dict[str, NDArray[np.float32]]) -> dict[str, NDArray[np.float32]]:
    """Return the images with the smallest hashes. They are the same in whatever order the images came."""
    return {sha256: some[sha256] for sha256 in sorted(some)[:SCALE_IMAGES]}


def _scale(bank: Bank, images: Iterable[NDArray[np.float32]]) -> Scale:
    """Return the scale by which `mdmf verify` judges changes of score. A compressed bank cannot give it.

    The images are in the bank themselves, so their scores are a little low: by one image's share of its signatures.
    """
    reduction = CpuReduction()
    return scale_of(np.concatenate([reduction(signatures[None], bank).mmd2 for signatures in images]))


def swap_bank(bundle: Bundle, bank: Bank, destination: Path) -> Bundle:
    """Write the bundle with this bank in place of its own. The model is not touched.

    The bundle_id changes. The calibration holds only for the old one and is dropped. So are the verification records,
    whose score changes and flipped verdicts were measured against the old bank.
    Raises BundleError if the bank was made with another model, or the destination cannot be written.
    """
    check_bank(bank, bundle.manifest, BANK)
    files = {name: data for name, data in bundle.files().items() if name != CALIBRATION}
    manifest = msgspec.structs.replace(bundle.manifest, verification=())
    return write_bundle(destination, manifest, {**files, BANK: bank.to_bytes()})


def _in_drawing_order(signatures: NDArray[np.float32], sha256: str) -> NDArray[np.float32]:
    """Return the rows in a random order that the image's content fixes, on every machine and NumPy version."""
    order = sorted(range(len(signatures)), key=lambda row: hashlib.sha256(f"{sha256}:{row}".encode()).digest())
    return signatures[order]


def _thin(kept: dict[str, NDArray[np.float32]], max_signatures: int) -> dict[str, NDArray[np.float32]]:
    """Return the images in order of hash, each with its first q or q + 1 rows. The lower hashes get the extra row."""
    by_hash = dict(sorted(kept.items()))
    if not max_signatures:
        return by_hash
    quota, extra = divmod(max_signatures, len(by_hash))
    thinned = {
        sha256: signatures[: quota + (place < extra)] for place, (sha256, signatures) in enumerate(by_hash.items())
    }
    return {sha256: signatures for sha256, signatures in thinned.items() if len(signatures)}


def _shorten(uris: set[str]) -> dict[str, str]:
    """Map each uri to its part from the last common folder on, so that a bank does not reveal its maker's folders."""
    paths = {uri: Path(uri) for uri in uris}
    try:
        root = os.path.commonpath([path.parent for path in paths.values()])
    except ValueError:  # no common folder, or nothing at all
        return {uri: uri for uri in uris}
    above = Path(root).parent
    return {uri: path.relative_to(above).as_posix() for uri, path in paths.items()}
