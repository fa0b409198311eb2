"""A Triton model repository of a bundle: a stock server, or ONNX Runtime alone, scores without this package.

preprocessing.py  crops as clients have them -> the model's input, a graph
reduction.py      signatures -> score, patches' shares and p-value, a graph with the bank inside
graphs.py         how those two are written
configs.py        config.pbtxt of the models and of the ensemble, in text_format.py's text
serving.py        on what device, in what batches, and whether thresholds hold there
plans.py          engines by TensorRT, and whether they are this bundle's
checking.py       the reduction held to ours
writing.py        all of it as a folder
"""

from mdmf_deploy.tasks.triton.serving import Device, Serving, model_name
from mdmf_deploy.tasks.triton.write import Written, check_repository, write_repository

__all__ = ["Device", "Serving", "Written", "check_repository", "model_name", "write_repository"]
