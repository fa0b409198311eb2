"""Crops as clients have them -> the model's input, as an ONNX graph."""

from __future__ import annotations

import numpy as np
from onnx import ModelProto, TensorProto

from mdmf_deploy.bundle.recipe import Preprocessing
from mdmf_deploy.images.crops import normalise
from mdmf_deploy.triton_repository.graphs import Graph, Value

CROPS, IMAGES = "crops", "images"


def preprocessing_graph(preprocessing: Preprocessing, metadata: dict[str, str]) -> ModelProto:
    """crops (B, S, S, 3) uint8 -> images (B, 3, S, S) float32, with the very bits of mdmf_deploy.images.crops.normalise.

    A client sends what its decoder gave it, a quarter of the bytes of normalised planes, and has no mean and deviation
    to get wrong.  The graph looks every value up in a table of 3 x 256, since arithmetic would round another way on
    another processor.
    """
    size = preprocessing.crop
    levels = np.repeat(np.arange(256, dtype=np.uint8), 3).reshape(1, 16, 16, 3)
    graph = Graph()
    table = graph.constant(normalise(levels, preprocessing).ravel(), "levels")
    first = graph.constant(256 * np.arange(3, dtype=np.int32), "first_of_channel")
    place = graph.op("Add", graph.cast(CROPS, TensorProto.INT32), first)
    graph.op("Transpose", graph.op("Gather", table, place), perm=[0, 3, 1, 2], to=IMAGES)
    return graph.model(
        "preprocessing",
        [Value(CROPS, TensorProto.UINT8, ("batch", size, size, 3))],
        [Value(IMAGES, TensorProto.FLOAT, ("batch", 3, size, size))],
        metadata,
    )
