"""PyTorch on the CPU: the source that every exported model is measured against (extra: export)."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from mdmf_deploy.model.pfs import MdmfModel


class TorchEngine:
    """A detector as an engine, float32, in eval mode, one image at a time.

    One at a time because PyTorch picks other kernels for other batch sizes, and a reference must not depend on them.
    """

    name = "pytorch"
    precision = "fp32"

    def __init__(self, detector: MdmfModel) -> None:
        self._detector = detector.float().eval()

    def __call__(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        with torch.inference_mode():
            extracted = [self._detector(torch.tensor(image[None])).numpy() for image in images]
        return np.concatenate(extracted)

    def close(self) -> None:
        del self._detector
