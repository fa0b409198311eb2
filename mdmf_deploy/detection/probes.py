"""Let an engine extract the signatures of a bundle's own probe images before it judges anything.

The gate (mdmf_deploy.tasks.verify) measures how far decisions drift. This asks less, and at every start: are these the
signatures of this model at all? A graph that another one has replaced, a NaN, or a runtime that computes something else
gives a score to every image, and the scores look like any others.
"""

from __future__ import annotations

import logging
import time
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from mdmf_deploy.bundle.bundle import Bundle
from mdmf_deploy.bundle.manifest import PROBES
from mdmf_deploy.bundle.probe_images import probe_crops, stored_probes
from mdmf_deploy.errors import BundleError, MdmfError, shortage
from mdmf_deploy.images.crops import normalise
from mdmf_deploy.runtime import Engine

COUNT = 2
"""How many of the probe images are extracted, in one batch."""

# The largest drift that passes, in units of the spread of the bundle's probe signatures. Signatures of another model,
# or all the same, are about 1 away. The int8 bundles of the package are 0.1 away, and float16 ones 0.01.
_MOST_DRIFT = 0.5
# Some heads give signatures with hardly any spread. Rounding is then relative to their length.
_ROUNDING = 0.01
# How far from 1 a length may be, of a head that divides signatures by their lengths.
_UNIT = 1e-3
_NEARLY_UNIT = 0.02

_LOG = logging.getLogger(__name__)


def check_probes(bundle: Bundle, engine: Engine) -> None:
    """Extract the first COUNT probe images, and compare with the signatures that the bundle holds of them.

    A bundle without probes is not checked. A drift that costs a runtime its verification passes here.
    Raises BundleError, naming model and runtime, if the shape is another one, a value is not finite, a signature of a
    unit-sphere head has another length, or all differ from those of the bundle as another model's would.
    """
    if PROBES not in bundle.manifest.files:
        return
    start = time.perf_counter()
    card = bundle.manifest.model
    stored = _stored(bundle, (card.pool**2, card.signature))
    crops = _drawn(bundle.manifest.preprocessing.crop)
    reason = _unlike(stored, _extracted(bundle, engine, crops))
    if reason is not None:
        raise _refused(bundle, engine, reason)
    _LOG.debug("extracted %d probe images in %.2f s", COUNT, time.perf_counter() - start)


@lru_cache(maxsize=2)
def _drawn(size: int) -> NDArray[np.uint8]:
    return probe_crops(size, COUNT)


def _stored(bundle: Bundle, shape: tuple[int, int]) -> NDArray[np.float64]:
    path = bundle.path / PROBES
    signatures = stored_probes(bundle.read(PROBES), shape, str(path))
    if len(signatures) < COUNT:
        raise BundleError(f"{path}: holds {len(signatures)} probes, expected at least {COUNT}; export the bundle again")
    return signatures.astype(np.float64)


def _extracted(bundle: Bundle, engine: Engine, crops: NDArray[np.uint8]) -> NDArray[np.float32]:
    try:
        return engine(normalise(crops, bundle.manifest.preprocessing))
    except (MdmfError, MemoryError):
        raise
    # Runtimes share no exceptions. A graph may ask for a shape that fits nothing, or for more memory than there is.
    except Exception as error:
        if (lacking := shortage(error)) is not None:
            raise lacking from error
        raise _refused(bundle, engine, f"it fails ({' '.join(str(error).split())[:200]})") from error


def _unlike(stored: NDArray[np.float64], extracted: NDArray[np.float32]) -> str | None:
    """Return why these cannot be the signatures of the first probes, or None."""
    expected = stored[:COUNT]
    if extracted.shape != expected.shape:
        return f"expected signatures {expected.shape}, got {extracted.shape}"
    if not np.isfinite(extracted).all():
        return "its signatures are not finite"
    lengths = np.linalg.norm(stored, axis=2)
    found = np.linalg.norm(extracted.astype(np.float64), axis=2)
    if np.abs(lengths - 1).max() <= _UNIT and np.abs(found - 1).max() > _NEARLY_UNIT:
        return f"its signatures have lengths {found.min():.3g} to {found.max():.3g}, expected 1"
    spread = _rms(stored - stored.mean(axis=(0, 1)))
    drift, most = _rms(extracted - expected), _MOST_DRIFT * spread + _ROUNDING * _rms(stored)
    if not drift <= most:
        return f"its signatures are {drift:.3g} away from those in {PROBES}, expected at most {most:.3g}"
    return None


def _rms(signatures: NDArray[np.float64]) -> float:
    """Return the root of the mean squared length of signatures (B, N, d)."""
    return float(np.sqrt((signatures**2).sum(axis=2).mean()))


def _refused(bundle: Bundle, engine: Engine, reason: str) -> BundleError:
    return BundleError(
        f"{bundle.model_path} on {engine.name}: of the bundle's own probe images, {reason}; copy or export the bundle "
        "again, or take another --runtime"
    )
