"""The program: standard streams that are closed, full or gone, and signals before its command line is imported."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs a POSIX shell")
MDMF = (sys.executable, "-m", "mdmf_deploy")


def shell(redirection: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run `mdmf ARGUMENTS REDIRECTION` in a shell."""
    words = [*MDMF, *map(str, arguments)]
    return subprocess.run(
        ["sh", "-c", f'"$@" {redirection}', "sh", *words], capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(
    ("redirection", "code", "errors"),
    [
        (">&-", 2, "mdmf: standard output: Bad file descriptor\n"),
        (">/dev/full", 2, "mdmf: standard output: No space left on device\n"),
        (">&- 2>&-", 2, ""),
        ("<&- >/dev/null", 0, ""),
    ],
)
def test_a_stream_that_is_closed_or_full_is_one_line(redirection: str, code: int, errors: str) -> None:
    if "full" in redirection and not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    result = shell(redirection, "-V")
    assert (result.returncode, result.stderr) == (code, errors)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_message_that_cannot_be_written_changes_no_exit_code() -> None:
    assert shell("2>/dev/full", "no-such-command").returncode == 2


def test_messages_that_nobody_can_read_stop_no_work(photos: Path, tmp_path: Path) -> None:
    output, logged = tmp_path / "rows.csv", tmp_path / "log"
    arguments = ("--runtime", "onnxruntime", "-o", output, "--log-file", logged)
    result = shell("2>&-", "detect", min(photos.iterdir()), *arguments)
    assert (result.returncode, result.stdout) == (0, "")
    assert len(output.read_text().splitlines()) == 2
    assert "1 image:" not in output.read_text()
    assert "1 image: " in logged.read_text()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_before_the_command_line_is_imported_ends_the_process_in_one_line(number: int) -> None:
    # Interrupted by the first import of ours.
    code = (
        "import os, sys\n"
        "class Finder:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        name == 'mdmf_deploy.cli' and os.kill(os.getpid(), {int(number)})\n"
        "sys.meta_path.insert(0, Finder())\n"
        "from mdmf_deploy.__main__ import main\n"
        "main()\n"
    )
    result = subprocess.run([sys.executable, "-c", code, "doctor"], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (128 + number, "", "mdmf: interrupted\n")


def test_a_signal_at_any_moment_leaves_no_traceback() -> None:
    """The moments lie after the start of Python itself, whose own imports nobody can guard."""
    code = "from mdmf_deploy.__main__ import main\nprint(flush=True)\nmain()"
    for moment in range(6):
        process = subprocess.Popen(
            [sys.executable, "-c", code, "doctor"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(0.02 + 0.06 * moment)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
        assert (process.returncode, errors) == (130, "mdmf: interrupted\n")
