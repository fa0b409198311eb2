"""Banks and signatures drawn at random, as learnt ones are: off centre, with equal or with signed weights."""

from __future__ import annotations

import dataclasses

import numpy as np

from mdmf_deploy.bundle.bank import Bank, BankSource
from mdmf_deploy.mmd.reference import bank_self_term, uniform_bank


def drawn(
    seed: int, images: int, patches: int, points: int, width: int, sigma: float, weights: str = "equal"
) -> tuple[np.ndarray, Bank]:
    """Signatures (images, patches, width) and a bank of so many points.

    weights: "equal"; "signed", summing to about 1 as a compressed bank's do; or "wild", of any size.
    """
    generator = np.random.default_rng(seed)
    centre = generator.uniform(-3, 3, width)
    x = 1.2 * generator.standard_normal((images, patches, width)) + centre + 0.2
    r = (generator.standard_normal((points, width)) + centre).astype(np.float32)
    sources = (BankSource("a.png", "0" * 64),)
    bank = uniform_bank(r, sigma, source=np.zeros(points, np.int32), sources=sources, model_sha256="1" * 64)
    if weights != "equal":
        spread = 0.5 / points if weights == "signed" else 1.0
        extracted = bank.weights * (weights == "signed") + spread * generator.standard_normal(points)
        bank = dataclasses.replace(bank, weights=extracted, self_term=bank_self_term(r, extracted, sigma))
    return x.astype(np.float32), bank
