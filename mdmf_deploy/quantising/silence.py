"""Silence for the tools that rewrite graphs: they log advice, draw bars on stdout and warn of their own internals."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from types import ModuleType

from mdmf_deploy.runtime.telemetry import unreported


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Nothing below an error is logged, nothing is printed, no warning is shown."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


def import_nncf() -> ModuleType:
    """NNCF, which otherwise reports its use over the network, and makes its logger class everybody's.

    Raises ImportError if it is not installed.
    """
    logger_class = logging.getLoggerClass()
    try:
        with silence(), unreported():
            import nncf
            import nncf.onnx.quantization.quantize_model
            import nncf.quantization.range_estimator
    finally:
        logging.setLoggerClass(logger_class)
    module: ModuleType = nncf
    return module
