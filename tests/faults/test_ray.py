"""Killed workers and drivers of Ray. Takes minutes, so MDMF_FAULTS asks for it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.faulty import LONG, SEED

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "ray_runs.py"


@pytest.mark.skipif(not LONG, reason="takes minutes; MDMF_FAULTS=N asks for it")
def test_a_killed_worker_or_driver_of_ray_loses_and_doubles_nothing(photos: Path, tiny_bundle: Path) -> None:
    pytest.importorskip("ray")
    options = ("--bundle", str(tiny_bundle), "--times", str(min(LONG, 10)), "--seed", str(SEED))
    command = [sys.executable, str(SCRIPT), "kill", str(photos), *options]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    found = re.findall(r"(\d+) lost, (\d+) twice, (\d+) differ", ended.stdout)
    assert found, ended.stdout
    assert set(found) == {("0", "0", "0")}, ended.stdout
