"""The reference bank: signatures of real images, and the term they add to every score."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from mdmf_deploy.bundle.documents import (
    MOST_JSON,
    PSEUDONYM,
    Bandwidth,
    Count,
    ImageHash,
    Name,
    Sha256,
    converted,
    read_json,
)
from mdmf_deploy.bundle.self_term import self_term_is_off
from mdmf_deploy.bundle.tensors import Tensor, TensorHeader
from mdmf_deploy.errors import BankError

# Largest value of a signature in bandwidths, so that float64 can tell kernel values from rounding, and largest
# sum |w|. Optimal weights have 0.9 to 1.3.
MOST_BANDWIDTHS = 1e4
MOST_MASS = 1e3
# Rounding in a self term and in sums of weights.
_ROUNDING = 1e-6


@dataclass(frozen=True, slots=True)
class BankSource:
    """One real image in a bank: its URI and the SHA-256 of its bytes (hex).

    In an anonymous bank, a number and an HMAC of the hash under a key that nobody has (mdmf_deploy.bundle.anonymous).
    """

    uri: str
    sha256: str


@dataclass(frozen=True, slots=True)
class Bank:
    """Signatures of M real patches with their weights. Checks itself at birth.

    signatures: (M, d).
    weights: (M,), 1/M each, or positive and negative weights in a compressed bank.
    sigma: kernel bandwidth, in signature units.
    self_term: sum_jj' w_j w_j' k(r_j, r_j'), computed once in float64.
    source: (M,) index into sources.
    model_sha256: hash of the model that extracted the signatures.
    Raises BankError if a value is not finite, a shape is wrong, or the bank is empty.
    """

    signatures: NDArray[np.float32]
    weights: NDArray[np.float64]
    sigma: float
    self_term: float
    source: NDArray[np.int32]
    sources: tuple[BankSource, ...]
    model_sha256: str
    compression: Mapping[str, object] = field(default_factory=lambda: {"method": "none"})

    def __post_init__(self) -> None:
        m = len(self.signatures)
        if self.signatures.ndim != 2 or m == 0:
            raise BankError(f"bank: expected signatures of shape (M >= 1, d), got {self.signatures.shape}")
        if self.weights.shape != (m,) or self.source.shape != (m,):
            raise BankError(f"bank: expected {m} weights and sources, got {self.weights.shape}, {self.source.shape}")
        if not (np.isfinite(self.signatures).all() and np.isfinite(self.weights).all()):
            raise BankError("bank: signatures or weights are not finite; build it again with `mdmf bank build`")
        if not (np.isfinite(self.sigma) and self.sigma > 0 and np.isfinite(self.self_term)):
            raise BankError(f"bank: bandwidth {self.sigma} and self term {self.self_term} must be finite, sigma > 0")
        if int(self.source.min()) < 0 or int(self.source.max()) >= len(self.sources):
            raise BankError("bank: source indices point outside the list of source images")

    @property
    def hashes(self) -> frozenset[str]:
        """The SHA-256 of every image in the bank."""
        return frozenset(source.sha256 for source in self.sources)

    def to_bytes(self) -> bytes:
        """Return bank.safetensors. The same bank always gives the same bytes.

        Raises BankError if `from_bytes` would refuse its values or the length of its header.
        """
        from safetensors.numpy import save

        try:
            check_signatures(self.signatures, self.sigma)
            check_weights(self.weights, self.self_term)
        except ValueError as error:
            raise BankError(f"bank: {error}") from error
        tensors: dict[str, NDArray[Any]] = {
            "signatures": np.ascontiguousarray(self.signatures, dtype=np.float32),
            "weights": np.ascontiguousarray(self.weights, dtype=np.float64),
            "self_term": np.array([self.self_term], dtype=np.float64),
            "source": np.ascontiguousarray(self.source, dtype=np.int32),
        }
        # Only one metadata entry, because safetensors does not promise an order among several.
        metadata = {
            "sigma": self.sigma,
            "model_sha256": self.model_sha256,
            "compression": dict(self.compression),
            "sources": [[source.uri, source.sha256] for source in self.sources],
        }
        text = json.dumps(metadata, sort_keys=True)
        # The header holds it as a JSON string, in which each quote takes two bytes.
        if len(text) + text.count('"') + text.count("\\") + 4096 > MOST_JSON:
            raise BankError(
                f"bank: the names of {len(self.sources)} images do not fit into {MOST_JSON} bytes; give fewer"
            )
        return save(tensors, metadata={"mdmf": text})

    @property
    def anonymous(self) -> bool:
        """Whether nobody can tell by a photograph's hash that it is in this bank."""
        return any(source.sha256.startswith(PSEUDONYM) for source in self.sources)

    @property
    def score_range(self) -> tuple[float, float]:
        """The least and the largest score that any signatures can have against this bank, with rounding.

        A biased squared MMD is |mu_X - mu_R|^2. It is at least 0, and at most (1 + sqrt(C))^2, because |mu_X| <= 1 and
        |mu_R|^2 = C. So is that of a compressed bank, whose self term is of its own weights.

        Rounding: a product of d + 2 terms rounds by (d + 2) u of their absolute values. An exponent has terms of up to
        g (|x| + |r|)^2 <= (4 + t)^2, where t^2 = g |x - r|^2 and g |r|^2 <= 4 (operands.py takes float64 beyond). A
        kernel value then rounds by at most (d + 4) u (4 + t)^2 exp(-t^2) <= 17 (d + 4) u. A sum of 64 values in a row
        adds 64 u. The within-image term has a mass of 1, the cross term twice sum |w|. u is 2^-22, that of the GPU's
        pairs of fp16. float32 has 2^-24.
        """
        u = 2.0**-22
        rounding = (17.0 * (self.signatures.shape[1] + 4) + 64.0) * u * (1.0 + 2.0 * float(np.abs(self.weights).sum()))
        return -rounding, (1.0 + math.sqrt(max(self.self_term, 0.0))) ** 2 + rounding

    @classmethod
    def from_bytes(cls, data: bytes, name: str = "bank.safetensors") -> Bank:
        """Read the bytes of to_bytes. Raises BankError naming the file if they are not a bank, or one that cannot be.

        The self term is computed again, of a sample of pairs if the bank is large (mdmf_deploy.bundle.self_term).
        """
        try:
            header = BankHeader.read(data, len(data))
            tensors = {name: tensor.of(data) for name, tensor in header.tensors.items()}
            signatures, weights = tensors["signatures"], tensors["weights"]
            self_term = float(tensors["self_term"][0])
            header.check_signatures(signatures)
            header.check_weights(weights, self_term, lambda places: signatures[places])
            return cls(
                signatures,
                weights,
                header.sigma,
                self_term,
                tensors["source"],
                header.sources,
                header.model_sha256,
                header.compression,
            )
        except (BankError, ValueError) as error:
            text = str(error).removeprefix("bank: ")
            raise BankError(f"{name} is not a reference bank ({text}); build one with `mdmf bank build`") from error


class _Compression(msgspec.Struct, frozen=True):
    """The compression of a bank's header, beside what later versions may add.

    of: signatures before.  max_mmd_change: the error bound.  spread, scale: of real scores, where they were known.
    """

    method: Name
    of: Count | None = None
    max_mmd_change: Annotated[float, Meta(ge=0.0, le=100.0)] | None = None
    spread: Annotated[float, Meta(ge=0.0, le=100.0)] | None = None
    scale: tuple[Annotated[float, Meta(ge=0.0, le=100.0)], Annotated[float, Meta(ge=-100.0, le=100.0)]] | None = None


class _Metadata(msgspec.Struct, frozen=True):
    """A bank's header, beside what later versions may add.  sources: (URI, hash) of each image."""

    sigma: Bandwidth
    model_sha256: Sha256
    compression: dict[str, Any]
    sources: Annotated[
        tuple[tuple[Annotated[str, Meta(max_length=10_000)], ImageHash], ...], Meta(min_length=1, max_length=2**31 - 1)
    ]


@dataclass(frozen=True, slots=True)
class BankHeader:
    """What a bank.safetensors says before its tensors, checked. The other fields are those of Bank.

    tensors: name -> its place in the file.
    rows, width: M and d.
    """

    tensors: Mapping[str, Tensor]
    rows: int
    width: int
    sigma: float
    model_sha256: str
    compression: dict[str, Any]
    sources: tuple[BankSource, ...]

    @classmethod
    def read(cls, head: bytes, size: int) -> BankHeader:
        """Read the header of a file of `size` bytes, given its first ones (see documents.header_bytes).

        Raises ValueError if it is not that of a bank.
        """
        header = TensorHeader.read(
            head, size, {"signatures": ("F32", 2), "weights": ("F64", 1), "self_term": ("F64", 1), "source": ("I32", 1)}
        )
        rows, width = header.tensors["signatures"].shape
        if rows < 1 or width < 1:
            raise ValueError(f"expected signatures of shape (M >= 1, d), got ({rows}, {width})")
        for name, length in (("weights", rows), ("source", rows), ("self_term", 1)):
            if header.tensors[name].shape != (length,):
                raise ValueError(f"{name}: expected {length} values, got {header.tensors[name].shape[0]}")
        metadata = read_json(header.metadata.get("mdmf", "").encode(), _Metadata)
        compression = converted(metadata.compression, _Compression)
        if compression.method != "none" and (
            compression.of is None or compression.of < rows or compression.max_mmd_change is None
        ):
            raise ValueError(f"compression: expected max_mmd_change, and the former length, at least {rows}, in `of`")
        return cls(
            header.tensors,
            rows,
            width,
            metadata.sigma,
            metadata.model_sha256,
            metadata.compression,
            tuple(BankSource(*source) for source in metadata.sources),
        )

    def check_signatures(self, signatures: NDArray[np.float32]) -> None:
        """Raise ValueError if a value of these rows is not finite, or too far out for this bandwidth."""
        check_signatures(signatures, self.sigma)

    def check_weights(
        self,
        weights: NDArray[np.float64],
        self_term: float,
        signatures_at: Callable[[NDArray[np.intp]], NDArray[np.float32]],
    ) -> None:
        """Raise ValueError if no bank has these weights or this self term.

        signatures_at: places (n,) -> the signatures there, which must have passed check_signatures.
        """
        check_weights(weights, self_term)
        if self.compression["method"] == "none" and np.ptp(weights) > _ROUNDING / len(weights):
            raise ValueError("the weights of a bank that is not compressed must be the same")
        off = self_term_is_off(signatures_at, weights, self.sigma, self_term)
        if off is not None:
            raise ValueError(off)


def check_signatures(signatures: NDArray[np.float32], sigma: float) -> None:
    """Raise ValueError if a value is not finite, or too far out for this bandwidth."""
    largest = max(float(signatures.max()), -float(signatures.min()))
    if not math.isfinite(largest):
        raise ValueError("its signatures are not finite")
    if largest > MOST_BANDWIDTHS * sigma:
        raise ValueError(
            f"its signatures have values of {largest:.3g}; expected at most 10,000 bandwidths of {sigma:g}"
        )


def check_weights(weights: NDArray[np.float64], self_term: float) -> None:
    """Raise ValueError if no bank has these weights, or no bank has this self term.

    |mu_R|^2 is at most 1 for equal weights, and least squares only shorten it.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        total, mass = float(weights.sum()), float(np.abs(weights).sum())
    if not math.isfinite(mass):
        raise ValueError("its weights are not finite, or their sum is not")
    if not (0.0 < mass <= MOST_MASS and total > 0.0):
        raise ValueError(f"its weights have a sum of {total:.3g}, {mass:.3g} without signs; expected about 1")
    if not 0.0 <= self_term <= 1.0 + _ROUNDING:
        raise ValueError(f"its self term is {self_term:.6g}; expected 0 to 1")
