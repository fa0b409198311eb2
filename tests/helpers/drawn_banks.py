"""Random banks and signatures that look like learnt ones: off centre, with equal or with signed weights."""

from __future__ import annotations

import dataclasses

import numpy as np

from mdmf_deploy.bundle.bank import Bank, BankSource
from mdmf_deploy.mmd.reference import bank_self_term, uniform_bank


def drawn(
    seed: int, images: int, patches: int, points: int, width: int, sigma: float, weights: str = "equal"
) -> tuple[np.ndarray, Bank]:
    """Return signatures (images, patches, width) and a bank of this many points.

    weights: "equal"; "signed" with a sum of about 1, like those of a compressed bank; or "wild", of any size.
    """
    generator = np.random.default_rng(seed)
    centre = generator.uniform(-3, 3, width)
    x = 1.2 * generator.standard_normal((images, patches, width)) + centre + 0.2
    r = (generator.standard_normal((points, width)) + centre).astype(np.float32)
    sources = (BankSource("a.png", "0" * 64),)
    bank = uniform_bank(r, sigma, source=np.zeros(points, np.int32), sources=sources, model_sha256="1" * 64)
    if weights != "equal":
        spread = 0.5 / points if weights == "signed" else 1.0
        signed = bank.weights * (weights == "signed") + spread * generator.standard_normal(points)
        bank = dataclasses.replace(bank, weights=signed, self_term=bank_self_term(r, signed, sigma))
    return x.astype(np.float32), bank
