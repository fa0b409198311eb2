"""The processes of one training run, as `accelerate launch` or `torchrun` started them; usually just this one."""

from __future__ import annotations

from datetime import timedelta

import torch
from accelerate import PartialState

# How long the others wait for the one that trains the autoencoders or computes the features.
_PREPARING = timedelta(hours=24)


def processes() -> PartialState:
    """Who is who; joins the others on the first call.

    Accelerate takes several processes without a GPU for strangers unless it is told that the CPU is meant.
    """
    return PartialState(cpu=not torch.accelerator.is_available(), timeout=_PREPARING)
