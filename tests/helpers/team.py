"""Run one `mdmf` command in two processes, as `accelerate launch` does: python team.py PORT FOLDER ARGUMENTS.

The processes are forked after PyTorch, its optimisers, Accelerate and whatever else a run needs are imported, which
takes seconds. The model is a small one, and its history is not plotted.
What process N prints goes to FOLDER/stdoutN and FOLDER/stderrN. The exit code is 1 if any process fails.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
from pathlib import Path

import accelerate  # noqa: F401
import numpy.ma  # noqa: F401
import rich.progress  # noqa: F401
import torch._dynamo  # noqa: F401
from helpers.backbones import PLAIN

from mdmf_deploy.cli import main
from mdmf_deploy.model.architectures import ARCHITECTURES
from mdmf_deploy.tasks.train import train


def launch(port: str, folder: Path, arguments: list[str]) -> int:
    ARCHITECTURES["starter_vit14"] = PLAIN
    train.write_plot = lambda *_: None
    gc.freeze()  # A collection would copy every page that the processes share.
    running = set()
    for rank in ("0", "1"):
        pid = os.fork()
        if pid == 0:
            # The variables that the launcher sets.
            os.environ |= {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            os.environ |= {"RANK": rank, "LOCAL_RANK": rank}
            for descriptor, name in ((1, "stdout"), (2, "stderr")):
                os.dup2(os.open(folder / f"{name}{rank}", os.O_WRONLY | os.O_CREAT), descriptor)
            sys.argv = ["mdmf", *arguments]
            main()
        running.add(pid)
    failed = False
    while running:
        pid, status = os.wait()
        running.discard(pid)
        if status:
            failed = True
            for other in running:  # It would wait for the one that failed.
                os.kill(other, signal.SIGKILL)
    return int(failed)


if __name__ == "__main__":
    sys.exit(launch(sys.argv[1], Path(sys.argv[2]), sys.argv[3:]))
