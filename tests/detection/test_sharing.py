"""One detector for many threads and processes: rows as from one thread, and a line where it cannot be used."""

from __future__ import annotations

import asyncio
import copy
import gc
import os
import pickle
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat
from pathlib import Path

import numpy as np
import pytest
from helpers.rows import timeless
from helpers.synthetic_photos import synthetic_photo
from PIL import Image

from mdmf_deploy import DetectorSpec
from mdmf_deploy.detection import detector as detector_module
from mdmf_deploy.detection.detector import Detector
from mdmf_deploy.detection.rows import Row
from mdmf_deploy.detection.sources import Source
from mdmf_deploy.errors import BundleError, UsageError
from mdmf_deploy.images.decode import ReadLimits

PIXELS = synthetic_photo(7, 90, 70)


def mixed(photos: Path) -> list[Source]:
    """Return sources of every kind, with unreadable ones between them."""
    paths = sorted(photos.iterdir())
    image = Image.fromarray(PIXELS).convert("L")
    return [paths[0], b"no image", PIXELS, "nowhere.png", image, paths[1].read_bytes(), PIXELS[..., :2], *paths[2:6]]


def ours() -> list[str]:
    """Return the names of the package's threads that run at present."""
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("mdmf")]


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_eight_threads_get_the_rows_of_one(tiny_bundle: Path, photos: Path, runtime: str) -> None:
    with Detector(tiny_bundle, runtime, threads=2, batch_size=3) as detector:
        sources = mixed(photos)
        alone = timeless(detector.detect(sources))
        assert {row.status for row in alone} == {"ok", "error"}
        begin = threading.Barrier(8)

        def run(n: int) -> list[Row]:
            begin.wait(30)
            rows = detector.detect(sources) if n % 2 else list(detector.stream(iter(sources)))
            return timeless(rows)

        with ThreadPoolExecutor(8) as pool:
            for rows in pool.map(run, range(8)):
                assert rows == alone
    assert ours() == []


def test_coroutines_share_a_detector_through_threads(tiny_bundle: Path, photos: Path) -> None:
    async def together(detector: Detector) -> list[list[Row]]:
        return await asyncio.gather(*(asyncio.to_thread(detector.detect, mixed(photos)) for _ in range(3)))

    with Detector(tiny_bundle, "onnxruntime") as detector:
        alone = timeless(detector.detect(mixed(photos)))
        for rows in asyncio.run(together(detector)):
            assert timeless(rows) == alone


FORKS = """
import gc, os, sys, threading
from pathlib import Path
import numpy as np
from mdmf_deploy import Detector
from mdmf_deploy.detection.outputs.heatmaps import HeatmapFolder, HeatmapOptions, HeatmapPool
from mdmf_deploy.detection.pipeline import extract
from mdmf_deploy.mmd.threads import one_blas_thread

bundle, runtime, folder = sys.argv[1:]
pixels = np.random.default_rng(0).integers(0, 256, (90, 90, 3), np.uint8)
detector = Detector(bundle, runtime, threads=2)
[row] = detector.detect(pixels)
begun, unbegun = detector.stream(pixels for _ in range(50)), detector.stream([pixels])
next(begun)
preprocessing = detector.bundle.manifest.preprocessing
extracted = extract((pixels for _ in range(50)), detector.engine, preprocessing, batch_size=1)
next(extracted)
pool = HeatmapPool(HeatmapFolder(Path(folder), HeatmapOptions.of(detector.bundle)), print)
# Another thread holds what a new detector needs as well.
entered = threading.Event()

def reduce():
    with one_blas_thread():
        entered.set()
        threading.Event().wait()

threading.Thread(target=reduce, daemon=True).start()
entered.wait()

def forget():
    global detector, begun, unbegun, extracted
    del detector, begun, unbegun, extracted
    gc.collect()

def anew():
    with detector.spec().open() as other:
        assert other.detect(pixels)[0].score == row.score

def refused():
    for use in (
        lambda: detector.detect(pixels),
        lambda: detector.stream([]),
        lambda: detector.engine,
        lambda: next(begun),
        lambda: next(unbegun),
        lambda: next(extracted),
        lambda: pool.add(row, Path("a.png")),
    ):
        try:
            use()
        except Exception as error:
            print(f"{type(error).__name__}: {error}")

def close():
    for one in (begun, unbegun, extracted, pool, detector, detector):
        one.close()

for action in (refused, close, forget, anew):
    child = os.fork()
    if not child:
        action()
        print("done", action.__name__, flush=True)
        sys.exit()  # as a program ends
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code == 0, code
assert next(begun).score == row.score  # the parent's goes on
print("done parent", flush=True)
os._exit(0)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork there")
@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_a_forked_process_gets_one_line_and_neither_hangs_nor_crashes(
    tiny_bundle: Path, tmp_path: Path, runtime: str
) -> None:
    # Python 3.12 warns of every fork beside threads.
    command = [sys.executable, "-W", "ignore", "-c", FORKS, str(tiny_bundle), runtime, str(tmp_path / "maps")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    there = "was made in another process; open one after the fork, or use spawn"
    assert done.stdout.splitlines() == [
        *[f"UsageError: this detector {there}"] * 5,
        f"UsageError: this stream {there}",
        f"UsageError: this pool of heat maps {there}",
        *[f"done {action}" for action in ("refused", "close", "forget", "anew", "parent")],
    ]
    assert (done.stderr, done.returncode) == ("", 0)


def test_a_detector_is_not_closed_under_a_thread_that_scores(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever closes it is told, and neither that stream nor a paused one is cut short."""
    scoring, go_on = threading.Event(), threading.Event()
    score_images = detector_module.score_images

    with Detector(tiny_bundle, batch_size=1) as detector:
        paused = detector.stream([PIXELS] * 3)
        first = next(paused)

        def score(*arguments: object) -> object:
            scoring.set()
            assert go_on.wait(30)
            return score_images(*arguments)  # type: ignore[arg-type]

        monkeypatch.setattr(detector_module, "score_images", score)
        with ThreadPoolExecutor(1) as pool:
            future = pool.submit(detector.detect, [PIXELS] * 2)
            assert scoring.wait(30)
            with pytest.raises(UsageError, match="another thread is waiting for a row of this detector"):
                detector.close()
            go_on.set()
            assert [row.score for row in future.result()] == [first.score] * 2
        assert [row.score for row in paused] == [first.score] * 2
    assert ours() == []


def test_closing_within_a_stream_ends_it_with_a_line(tiny_bundle: Path) -> None:
    detector = Detector(tiny_bundle, batch_size=1)
    with pytest.raises(UsageError, match="this detector is closed"):
        [detector.close() for _ in detector.stream(repeat(PIXELS))]
    other = Detector(tiny_bundle, batch_size=1)
    rows = other.stream(repeat(PIXELS))
    next(rows)
    closer = threading.Thread(target=other.close)
    closer.start()
    closer.join()
    with pytest.raises(UsageError, match="this detector is closed"):
        next(rows)
    assert ours() == []


def test_a_closed_detector_says_so_wherever_it_would_work(tiny_bundle: Path) -> None:
    with Detector(tiny_bundle) as detector:
        pass
    for use in (
        lambda: detector.detect(PIXELS),
        lambda: detector.stream(PIXELS),
        lambda: detector.stream_by_source(PIXELS),
        lambda: detector.engine,
        lambda: detector.reduction,
    ):
        with pytest.raises(UsageError, match="this detector is closed; open another one"):
            use()
    with detector.spec().open() as other:
        assert other.runtime == detector.runtime


def test_an_iterator_may_use_one_array_for_all_its_sources(tiny_bundle: Path) -> None:
    frames = [synthetic_photo(seed, 60, 60) for seed in range(12)]
    shared = np.empty_like(frames[0])

    def camera() -> Iterator[Source]:
        for frame in frames:
            shared[:] = frame
            yield shared

    with Detector(tiny_bundle) as detector:
        wanted = timeless(detector.detect(frames))
        assert timeless(detector.stream(camera())) == wanted
    assert len({row.score for row in wanted}) == 12


@pytest.mark.parametrize("how", ["forgotten", "closed twice", "closed by another thread", "left by an error", "unread"])
def test_an_abandoned_stream_leaves_no_thread(tiny_bundle: Path, how: str) -> None:
    with Detector(tiny_bundle, batch_size=1) as detector:
        rows = detector.stream(repeat(PIXELS))
        if how != "unread":
            next(rows)
            assert ours()
        if how == "closed twice":
            rows.close()
            rows.close()
        elif how == "closed by another thread":
            closer = threading.Thread(target=rows.close)
            closer.start()
            closer.join()
        elif how == "left by an error":
            with pytest.raises(ZeroDivisionError):
                [1 // 0 for _ in rows]
        del rows
        gc.collect()
        assert ours() == []
        assert [row.status for row in detector.detect([PIXELS] * 2)] == ["ok", "ok"]


def test_streams_that_many_threads_leave_while_it_is_closed_all_end(tiny_bundle: Path) -> None:
    for _ in range(3):
        detector = Detector(tiny_bundle, "onnxruntime", threads=1, batch_size=1)
        begun = threading.Barrier(5)

        def leave(detector: Detector = detector, begun: threading.Barrier = begun) -> int:
            rows = detector.stream(repeat(PIXELS))
            next(rows)
            begun.wait(30)
            rows.close()
            return 1

        with ThreadPoolExecutor(4) as pool:
            futures = [pool.submit(leave) for _ in range(4)]
            begun.wait(30)
            detector.close()
            assert sum(future.result(30) for future in futures) == 4
        assert ours() == []


def test_a_spec_opens_an_equal_detector_wherever_it_is_unpickled(
    bundle_copy: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(bundle_copy.parent)
    with Detector("copy.mdmf", threads=1, batch_size=3, crops=4, limits=ReadLimits(max_pixels=10_000)) as detector:
        monkeypatch.chdir(photos)
        spec = detector.spec()
        rows = timeless(detector.detect(sorted(photos.iterdir())))
    data = pickle.dumps(spec)
    assert len(data) < 1000
    assert (spec.bundle, spec.runtime, spec.reduction) == (str(bundle_copy), "onnxruntime", "cpu")
    assert {row.status for row in rows} == {"ok", "error"}  # the limits hold there, too
    loaded = pickle.loads(data)
    assert isinstance(loaded, DetectorSpec)
    with loaded.open() as same:
        assert same.spec() == spec
        assert timeless(same.detect(sorted(photos.iterdir()))) == rows


def test_a_spec_of_a_shipped_bundle_holds_its_name() -> None:
    with Detector("starter") as detector:
        assert detector.spec().bundle == "starter"


def test_a_spec_does_not_open_another_bundle(bundle_copy: Path, tiny_bundle: Path) -> None:
    with Detector(bundle_copy) as detector:
        spec = detector.spec()
    shutil.rmtree(bundle_copy)
    with pytest.raises(BundleError, match="not a folder"):
        spec.open()
    shutil.copytree(Path(__file__).parents[2] / "mdmf_deploy/bundle/shipped/starter.mdmf", bundle_copy)
    with pytest.raises(BundleError, match=f"copy.mdmf: bundle_id is .*, and {spec.bundle_id[:12]} in the spec; give"):
        spec.open()


def test_a_detector_that_is_pickled_or_copied_names_its_spec(tiny_bundle: Path) -> None:
    with Detector(tiny_bundle) as detector:
        for copied in (pickle.dumps, copy.copy, copy.deepcopy):
            with pytest.raises(UsageError, match=r"cannot be pickled or copied; give the worker Detector\.spec\(\)"):
                copied(detector)
