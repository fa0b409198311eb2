"""A program can exit with an unfinished stream, and a thread that still reads it gets an error."""

from __future__ import annotations

import subprocess
import sys

import pytest

BEGIN = """
import sys, threading, time
from concurrent.futures import thread as pools
import numpy as np
from mdmf_deploy.detection.pipeline import extract
from mdmf_deploy.bundle.recipe import Preprocessing

def engine(crops):
    return np.zeros((len(crops), 4, 3), np.float32)

def late():
    yield pixels
    threading.Event().wait()

def ending():
    yield from [pixels] * 4
    while not pools._shutdown:
        time.sleep(0.001)
    yield from [pixels] * 50

pixels = np.zeros((20, 20, 3), np.uint8)
sources = {"unread": [pixels] * 50, "late": late(), "ending": ending()}[sys.argv[1]]
extracted = extract(sources, engine, Preprocessing(crop=16), batch_size=2)
next(extracted)
"""
READ_ON = """
def read():
    threading.main_thread().join()
    while any(thread.name == "mdmf-engine" for thread in threading.enumerate()):
        time.sleep(0.01)
    try:
        list(extracted)
    except Exception as error:
        print(error)

threading.Thread(target=read).start()
"""


def run(script: str, sources: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", script, sources]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)


@pytest.mark.parametrize("sources", ["unread", "late"])
def test_an_unfinished_stream_does_not_keep_a_program_alive(sources: str) -> None:
    ended = run(BEGIN, sources)
    assert (ended.returncode, ended.stderr) == (0, "")


def test_a_stream_held_by_an_error_does_not_keep_a_program_alive() -> None:
    ended = run(f"{BEGIN}\ndef fail(rows):\n    raise ValueError('mine')\n\nfail(extracted)", "late")
    assert ended.returncode == 1
    assert ended.stderr.endswith("ValueError: mine\n")


@pytest.mark.parametrize("sources", ["unread", "ending"])
def test_reading_on_after_the_main_thread_is_an_error_and_no_early_end(sources: str) -> None:
    ended = run(BEGIN + READ_ON, sources)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.startswith("the main thread has ended before this stream")
