"""Children: each way in which one ends costs one request, and nothing that one sends is trusted."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest
from helpers.bad_inputs import encoded, photo
from helpers.child_processes import busy_child, decoding, gone, needs_proc
from helpers.tiffs import slow_tiff
from PIL import Image

from mdmf_deploy.errors import ImageError
from mdmf_deploy.images import isolation
from mdmf_deploy.images.containers import Container
from mdmf_deploy.images.crops import Box
from mdmf_deploy.images.isolation.children import children
from mdmf_deploy.images.isolation.image_task import Found, Size
from mdmf_deploy.images.isolation.owners import Ended, Owner
from mdmf_deploy.images.isolation.wire import Done, Failure, Kind
from mdmf_deploy.images.limits import DEFAULT_LIMITS, ReadLimits

pytestmark = needs_proc

TIFF = encoded(photo(), "TIFF")
# Longer than any test would wait.
PATIENT = ReadLimits(max_seconds=60)


def contained(data: bytes, side: tuple[int, int] = (48, 32), memory: int = 0) -> Container:
    return Container(
        format="tiff", data=data, width=side[0], height=side[1], orientation=None, memory=memory, isolated=True
    )


def corner(height: int, width: int) -> list[Box]:
    return [(0, 0, 8, 8)]


def decodes() -> bool:
    return (isolation.boxes(contained(TIFF), corner, DEFAULT_LIMITS).boxes[0] == photo()[:8, :8]).all()


@pytest.mark.parametrize(
    ("number", "code", "words"),
    [
        (signal.SIGSEGV, "corrupt", "the decoder crashed: SIGSEGV"),
        (signal.SIGABRT, "corrupt", "the decoder crashed: SIGABRT"),
        (signal.SIGKILL, "too_much_memory", "--max-memory"),  # by the system, when its memory runs out
        (signal.SIGXCPU, "too_slow", "--max-seconds"),
    ],
)
def test_a_child_that_ends_costs_one_request(number: int, code: str, words: str) -> None:
    children().end()

    def kill(height: int, width: int) -> list[Box]:
        (pid,) = decoding()
        os.kill(pid, number)
        assert gone(pid)
        return corner(height, width)

    with pytest.raises(ImageError, match=words) as caught:
        isolation.boxes(contained(TIFF), kill, DEFAULT_LIMITS)
    assert caught.value.code == code
    assert str(caught.value).startswith("tiff: ")
    assert decodes()


def test_a_child_that_dies_idle_costs_nothing() -> None:
    assert decodes()
    for pid in decoding():
        os.kill(pid, signal.SIGKILL)
        assert gone(pid)
    assert decodes()


def test_a_child_is_used_again_after_an_error_in_a_file() -> None:
    children().end()
    assert decodes()
    before = decoding()
    with pytest.raises(ImageError):
        isolation.boxes(contained(TIFF[:3000]), corner, DEFAULT_LIMITS)
    assert decodes()
    assert decoding() == before


def test_a_child_is_not_used_again_after_an_error_of_the_caller() -> None:
    def place(height: int, width: int) -> list[Box]:
        raise ZeroDivisionError

    assert decodes()
    with pytest.raises(ZeroDivisionError):
        isolation.boxes(contained(TIFF), place, DEFAULT_LIMITS)
    assert decodes()


def test_decoding_too_long_is_too_slow() -> None:
    with pytest.raises(ImageError, match=r"tiff: decoding it takes more than 0\.2 s; raise --max-seconds") as caught:
        isolation.boxes(contained(slow_tiff(), (8000, 8000), 2**30), corner, ReadLimits(max_seconds=0.2))
    assert caught.value.code == "too_slow"
    assert decodes()


def test_the_system_bounds_each_request_anew() -> None:
    """The parent may be stopped, or its watching thread late. Then the system ends the child."""
    children().end()
    most: list[tuple[int, int]] = []

    def look(height: int, width: int) -> list[Box]:
        (pid,) = decoding()
        lines = Path(f"/proc/{pid}/limits").read_text().splitlines()
        soft = {line[:26].strip(): line[26:].split()[0] for line in lines}
        most.append((int(soft["Max cpu time"]), int(soft["Max data size"]) >> 20))
        return corner(height, width)

    for seconds, memory in ((20, 1), (4000, 300), (20, 1)):
        container = contained(TIFF, memory=memory << 20)
        isolation.boxes(container, look, ReadLimits(max_seconds=seconds))
    (cpu, data), (longer, larger), again = most
    assert 20 <= cpu < 40
    assert 4000 <= longer < 4020
    assert 96 <= data < 200  # with the child's own
    assert 200 < larger - data < 300
    assert abs(again[0] - cpu) <= 1
    assert abs(again[1] - data) < 30


def test_memory_beyond_the_allowance_is_refused() -> None:
    """The container says that it takes nothing. So it gets the least that every image may take."""
    width = height = 5300
    data = encoded(Image.new("RGB", (width, height)), "TIFF", compression="tiff_lzw")
    with pytest.raises(ImageError, match="tiff: decoding it takes more than 96 MiB; raise --max-memory") as caught:
        isolation.boxes(contained(data, (width, height)), corner, DEFAULT_LIMITS)
    assert caught.value.code == "too_much_memory"
    assert decodes()


def test_an_owner_that_ends_takes_its_requests_along_and_no_others() -> None:
    owner, other = Owner(), Owner()
    at_work = threading.Event()

    def slow() -> None:
        at_work.set()
        isolation.boxes(contained(slow_tiff(), (8000, 8000), 2**30), corner, PATIENT)

    with ThreadPoolExecutor(4, initializer=owner.adopt) as pool, ThreadPoolExecutor(1, initializer=other.adopt) as more:
        requests = [pool.submit(slow) for _ in range(4)]  # more than there may be children, so that some wait
        at_work.wait()
        owner.end()
        for request in requests:
            with pytest.raises(Ended):
                request.result()
        with pytest.raises(Ended):
            pool.submit(decodes).result()
        assert more.submit(decodes).result()


def test_an_interrupt_of_the_main_thread_ends_the_child() -> None:
    children().end()
    main = threading.main_thread().ident
    threading.Timer(0.3, signal.pthread_kill, [main, signal.SIGINT]).start()
    with pytest.raises(KeyboardInterrupt):
        isolation.boxes(contained(slow_tiff(), (8000, 8000), 2**30), corner, PATIENT)
    assert not decoding()
    assert decodes()


def script(code: str, folder: Path) -> subprocess.Popen[str]:
    """Start a parent of its own. It has `container` of a slow TIFF, and `slow()`, which decodes it."""
    (folder / "slow.tif").write_bytes(slow_tiff())
    begin = (
        "import sys\n"
        "from pathlib import Path\n"
        "from mdmf_deploy.errors import ImageError\n"
        "from mdmf_deploy.images.decode import ReadLimits, decode\n"
        "def slow(seconds):\n"
        "    try:\n"
        f"        decode(Path({str(folder / 'slow.tif')!r}).read_bytes(), ReadLimits(max_seconds=seconds))\n"
        "    except ImageError as error:\n"
        "        print(error.code, flush=True)\n"
    )
    return subprocess.Popen(
        [sys.executable, "-c", begin + code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_child_ends_with_its_parent(tmp_path: Path, number: int) -> None:
    with script("slow(60)", tmp_path) as parent:
        try:
            child = busy_child(parent.pid)
            assert os.getsid(child) != os.getsid(parent.pid)  # so a terminal's Ctrl-C does not reach it
            parent.send_signal(number)
            assert gone(child)
        finally:
            parent.kill()


def test_a_forked_process_has_children_of_its_own(tmp_path: Path) -> None:
    """On the pipes of its parent's children, it would take the answers to its parent's requests."""
    (tmp_path / "a.tif").write_bytes(TIFF)
    code = (
        "import os\n"
        "def small():\n"
        f"    return decode(Path({str(tmp_path / 'a.tif')!r}).read_bytes()).width\n"
        "assert small() == 48\n"
        "child = os.fork()\n"
        "print(sum(small() for _ in range(20)), flush=True)\n"
        "if child:\n"
        "    os.waitpid(child, 0)\n"
        "    print(small())\n"
    )
    with script(code, tmp_path) as parent:
        try:
            printed, errors = parent.communicate(timeout=60)
        finally:
            parent.kill()
    assert (printed, errors, parent.returncode) == ("960\n960\n48\n", "", 0)


def test_a_forked_process_does_not_keep_children_alive(tmp_path: Path) -> None:
    (tmp_path / "a.tif").write_bytes(TIFF)
    code = (
        "import os, time\n"
        f"decode(Path({str(tmp_path / 'a.tif')!r}).read_bytes())\n"
        "child = os.fork()\n"
        "if child:\n"
        "    print(child, flush=True)\n"
        "time.sleep(60)\n"
    )
    with script(code, tmp_path) as parent:
        assert parent.stdout is not None
        forked = int(parent.stdout.readline())
        try:
            (child,) = decoding(parent.pid)
            parent.kill()
            assert gone(child)
        finally:
            parent.kill()
            os.kill(forked, signal.SIGKILL)


def frame(kind: Kind, message: msgspec.Struct | None = None, length: int | None = None) -> bytes:
    body = b"" if message is None else msgspec.msgpack.encode(message)
    return kind.value + (len(body) if length is None else length).to_bytes(8, "little") + body


READY = frame(Kind.ready)
BEGUN = READY + frame(Kind.message, Size(32, 48))
REST = bytes(192) + frame(Kind.done, Done(False))  # right if the frame before them were
HOSTILE = {
    "nothing": (b"", "unreadable"),
    "noise": (bytes(range(256)) * 50, "corrupt"),
    "another protocol": (frame(Kind.done, Done(False)), "corrupt"),
    "an endless message": (READY + frame(Kind.message, length=2**63), "corrupt"),
    "no size": (READY + frame(Kind.message, Size(0, 48)), "corrupt"),
    "a huge size": (READY + frame(Kind.message, Size(2**62, 2**62)), "too_many_pixels"),
    "another message": (READY + frame(Kind.message, Done(False)), "corrupt"),
    "another kind of frame": (
        READY + frame(Kind.array, Size(32, 48)) + frame(Kind.message, Found(())) + frame(Kind.array, length=192) + REST,
        "corrupt",
    ),
    "no message": (READY + frame(Kind.message) + bytes(50), "corrupt"),
    "an unknown code": (READY + frame(Kind.failure, Failure("fancy", "", False)), "corrupt"),
    "a long text": (READY + frame(Kind.failure, Failure("corrupt", 9000 * "a\n", False)), "corrupt"),
    "an endless failure": (READY + frame(Kind.failure, length=2**40), "corrupt"),
    "too few pixels": (BEGUN + frame(Kind.message, Found(())) + frame(Kind.array, length=191) + REST, "corrupt"),
    "too many pixels": (BEGUN + frame(Kind.message, Found(())) + frame(Kind.array, length=2**50) + REST, "corrupt"),
    "half of the pixels": (BEGUN + frame(Kind.message, Found(())) + frame(Kind.array, length=192) + b"a", "corrupt"),
    "no end": (BEGUN + frame(Kind.message, Found(())) + frame(Kind.array, length=192) + bytes(192), "corrupt"),
}


@pytest.fixture
def hostile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A file whose bytes a child answers, whatever it is asked."""
    answer, program = tmp_path / "answer", tmp_path / "program"
    program.write_text(f"#!/bin/sh\nexec cat '{answer}'\n")
    program.chmod(0o755)
    children().end()
    monkeypatch.setattr(sys, "executable", str(program))
    yield answer
    children().end()


@pytest.mark.parametrize("name", HOSTILE)
def test_nothing_that_a_child_sends_is_trusted(hostile: Path, name: str) -> None:
    answer, code = HOSTILE[name]
    hostile.write_bytes(answer)
    with pytest.raises(ImageError) as caught:
        isolation.boxes(contained(TIFF), corner, DEFAULT_LIMITS)
    assert caught.value.code == code
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_a_child_that_says_what_is_right_is_believed(hostile: Path) -> None:
    """The frames above fail for what is wrong with them, not because they could never be right."""
    found = frame(Kind.message, Found(())) + frame(Kind.array, length=192) + bytes([7] * 192)
    hostile.write_bytes(BEGUN + found + frame(Kind.done, Done(False)))
    pixels = isolation.boxes(contained(TIFF), corner, DEFAULT_LIMITS).boxes[0]
    assert pixels.shape == (8, 8, 3)
    assert (pixels == 7).all()


def test_a_child_that_stays_after_it_has_closed_its_pipe_is_killed(hostile: Path) -> None:
    (hostile.parent / "program").write_text("#!/bin/sh\nexec sleep 600 >&-\n")
    with pytest.raises(ImageError):
        isolation.boxes(contained(TIFF), corner, DEFAULT_LIMITS)


def test_a_child_that_has_closed_its_pipe_since_its_last_request_is_replaced(hostile: Path) -> None:
    found = frame(Kind.message, Found(())) + frame(Kind.array, length=192)
    hostile.write_bytes(BEGUN + found + REST)
    (hostile.parent / "program").write_text(f"#!/bin/sh\ncat '{hostile}'\nexec sleep 600 >&-\n")
    for _ in range(3):
        assert not isolation.boxes(contained(TIFF), corner, DEFAULT_LIMITS).boxes[0].any()


def test_a_system_that_starts_no_process_costs_the_row(monkeypatch: pytest.MonkeyPatch) -> None:
    children().end()
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(ImageError, match="no process can be started to decode it: No such file") as caught:
        isolation.boxes(contained(TIFF), corner, DEFAULT_LIMITS)
    assert caught.value.code == "unreadable"
