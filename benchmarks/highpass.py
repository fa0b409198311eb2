"""The plainest forensic baseline: logistic regression on statistics of high-pass residuals, no learnt features.

Residuals are those of the steganalysis "rich models" (Fridrich and Kodovsky, 2012): differences of first and second
order and the 5 x 5 kernel, on luma and the two chroma channels; each is summed up by its logarithmic energy, its
kurtosis, its truncated histogram, and the correlation with its neighbour.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_KV = np.array(
    [[-1, 2, -2, 2, -1], [2, -6, 8, -6, 2], [-2, 8, -12, 8, -2], [2, -6, 8, -6, 2], [-1, 2, -2, 2, -1]], np.float32
)
_TO_YCC = np.array([[0.299, 0.587, 0.114], [-0.169, -0.331, 0.5], [0.5, -0.419, -0.081]], np.float32)


def residuals(channel: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    """(S, S) -> first differences, second differences and the 5 x 5 residual, (S', S'') each."""
    windows = np.lib.stride_tricks.sliding_window_view(channel, (5, 5))
    return [
        np.diff(channel, axis=0),
        np.diff(channel, axis=1),
        np.diff(channel, 2, axis=0),
        np.diff(channel, 2, axis=1),
        np.einsum("ijkl,kl->ij", windows, _KV) / 12,
    ]


def statistics(crop: NDArray[np.uint8]) -> NDArray[np.float32]:
    """(S, S, 3) uint8 -> (k,) statistics."""
    values: list[float] = []
    ycc = crop.astype(np.float32) @ _TO_YCC.T
    for channel in np.moveaxis(ycc, -1, 0):
        for residual in residuals(channel):
            spread = float(residual.std()) + 1e-3
            centred = residual / spread
            histogram = np.histogram(np.abs(centred), bins=[0, 0.125, 0.25, 0.5, 1, 2, 4, np.inf])[0]
            values += [np.log(spread), np.log(float(np.mean(centred**4)) + 1e-3)]
            values += [float(np.mean(centred[:, 1:] * centred[:, :-1])), float(np.mean(centred[1:] * centred[:-1]))]
            values += list(histogram / residual.size)
    return np.array(values, np.float32)
