"""OpenVINO in a process that goes on living: what it leaves behind must not end it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.libraries import needed

INTERRUPTED = """
import gc, os, signal, sys, threading, time
from mdmf_deploy.bundle.bundle import Bundle
from mdmf_deploy.runtime.ov import OpenVinoEngine

signal.signal(signal.SIGINT, signal.default_int_handler)
engines = [OpenVinoEngine(Bundle.open(sys.argv[1]))]

def let_go():
    engines.pop().close()
    gc.collect()

thread = threading.Thread(target=let_go)
thread.start()
thread.join()
try:
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(10)
except KeyboardInterrupt:
    print("interrupted")
"""


@pytest.mark.skipif(os.name != "posix", reason="needs SIGINT")
def test_an_interrupt_after_another_thread_let_the_engine_go_is_only_an_interrupt(tiny_bundle: Path) -> None:
    needed("mdmf_deploy.runtime.ov")
    command = [sys.executable, "-c", INTERRUPTED, str(tiny_bundle)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "interrupted\n", "")
