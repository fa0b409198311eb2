"""The exported preprocessing is ours, bit by bit."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest

from mdmf_deploy.bundle.recipe import Preprocessing
from mdmf_deploy.images.crops import normalise
from mdmf_deploy.tasks.triton.graphs import CROPS, preprocessing_graph


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(
    "preprocessing", [Preprocessing(crop=28), Preprocessing(crop=28, mean=(0.1, 0.2, 0.3), std=(0.9, 0.7, 0.3))]
)
def test_the_same_bits_for_every_value_of_every_channel(preprocessing: Preprocessing, batch: int) -> None:
    crops = np.random.default_rng(0).integers(0, 256, (batch, 28, 28, 3), dtype=np.uint8)
    crops[0, :16, :16] = np.arange(256, dtype=np.uint8).reshape(16, 16, 1)
    graph = preprocessing_graph(preprocessing, {})
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    (images,) = session.run(None, {CROPS: crops})
    assert np.array_equal(images, normalise(crops, preprocessing))
