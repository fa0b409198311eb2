"""The reference bank: signatures of real images, and the term they add to every score."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mdmf_deploy.errors import BankError


@dataclass(frozen=True, slots=True)
class BankSource:
    """One real image in a bank: its URI and the SHA-256 of its bytes (hex)."""

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
        """Return bank.safetensors. The same bank always gives the same bytes."""
        from safetensors.numpy import save

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
        return save(tensors, metadata={"mdmf": json.dumps(metadata, sort_keys=True)})

    @classmethod
    def from_bytes(cls, data: bytes, name: str = "bank.safetensors") -> Bank:
        """Read the bytes of to_bytes. Raises BankError naming the file if they are not a bank."""
        from safetensors import SafetensorError
        from safetensors.numpy import load

        try:
            tensors = load(data)
            header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
            metadata = json.loads(header["__metadata__"]["mdmf"])
            return cls(
                tensors["signatures"],
                tensors["weights"],
                float(metadata["sigma"]),
                float(tensors["self_term"][0]),
                tensors["source"],
                tuple(BankSource(uri, sha256) for uri, sha256 in metadata["sources"]),
                metadata["model_sha256"],
                metadata["compression"],
            )
        except (SafetensorError, KeyError, ValueError, TypeError, IndexError) as error:
            raise BankError(f"{name} is not a reference bank ({error}); build one with `mdmf bank build`") from error
