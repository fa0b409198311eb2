"""`mdmf export --triton`: a bundle as a model repository. A stock Triton or ONNX Runtime then scores on its own.

serving.py    the device and batches, the plan, and whether thresholds hold there
graphs.py     preprocessing and reduction as ONNX graphs
config.py     config.pbtxt of the models and of the ensemble
write.py      the complete folder, with its README from README.md.in
"""

from mdmf_deploy.tasks.triton.serving import Serving, model_name
from mdmf_deploy.tasks.triton.write import Written, check_repository, write_repository

__all__ = ["Serving", "Written", "check_repository", "model_name", "write_repository"]
