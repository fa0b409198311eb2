"""The reduction that a detector scores with: on a GPU where signatures can stay there, otherwise on the CPU."""

from __future__ import annotations

import logging
from contextlib import ExitStack
from typing import TYPE_CHECKING

from mdmf_deploy.bundle.bank import Bank
from mdmf_deploy.errors import MdmfError, UsageError
from mdmf_deploy.hardware.forks import keep_in_forks
from mdmf_deploy.mmd import Reduction
from mdmf_deploy.mmd.cpu import CpuReduction
from mdmf_deploy.runtime import Engine, stays_on_device

if TYPE_CHECKING:
    from mdmf_deploy.detection.on_gpu import Fused

_LOG = logging.getLogger(__name__)


def choose_reduction(
    name: str, engine: Engine, bank: Bank, threads: int | None, held: ExitStack
) -> tuple[Reduction, Fused | None]:
    """Return the reduction, and the engine fused with it if signatures can stay on the GPU.

    name: "cpu", "cuda" or "auto".  held: closes the reduction.
    Raises UsageError for another name, and the errors of the GPU's reduction if it was asked for.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise UsageError(f"reduction {name!r} is not known; choose auto, cpu or cuda")
    on_gpu = engine if stays_on_device(engine) else None
    if name == "cpu" or (name == "auto" and on_gpu is None):
        return CpuReduction(threads), None
    # Imported late: modules that only a GPU needs must not slow down every other start.
    from mdmf_deploy.detection.on_gpu import Fused
    from mdmf_deploy.mmd.cuda.reduction import CudaReduction

    try:
        reduction = CudaReduction()
        held.callback(reduction.close)
        keep_in_forks(reduction)
        reduction.prepare(bank)
    except MdmfError as error:
        if name == "cuda":
            raise
        _LOG.info("reduction cpu (%s)", error)
        return CpuReduction(threads), None
    if name == "auto":
        _LOG.info("reduction cuda (signatures stay on the GPU)")
    return reduction, None if on_gpu is None else Fused(on_gpu, reduction, bank)
