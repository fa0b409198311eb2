"""What an output holds: an input is new, done or changed, in little memory."""

from __future__ import annotations

import os
import pickle
import tracemalloc
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from mdmf_deploy.detection.outputs.done import AGAIN, Done, Held, InputKey

keys = st.builds(
    InputKey,
    uri=st.sampled_from(["", "a", "\n é"]),
    copy=st.integers(0, 2),
    size=st.none() | st.integers(0, 2),
    mtime_ns=st.none() | st.integers(0, 2),
)
hashes = st.none() | st.sampled_from(["ab" * 32, "cd" * 32])
held = st.builds(Held, keys, hashes, st.none() | st.sampled_from(["truncated", *sorted(AGAIN)]), st.integers(0, 9))


@settings(deadline=None)
@given(st.lists(held, max_size=12), keys, hashes)
def test_the_last_word_on_an_input_counts(written: list[Held], key: InputKey, sha256: str | None) -> None:
    last = {one.key[:2]: one for one in written}
    done = pickle.loads(pickle.dumps(Done(written)))
    assert len(done) == len(last)
    assert len(done.older) == len(written) - len(last)
    one = last.get(key[:2])
    assert done.place(key.digest) == (None if one is None else one.place)
    if one is None:
        wanted = "new"
    elif one.error_code in AGAIN:
        wanted = "changed"
    elif sha256 and one.sha256:
        wanted = "done" if sha256 == one.sha256 else "changed"
    else:
        wanted = "done" if key == one.key else "changed"
    assert done.state(key, sha256) == wanted


def test_a_key_is_the_state_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "a\nb.jpg"
    missing = InputKey.of(path)
    assert missing == (f"{tmp_path.as_posix()}/a\\x0ab.jpg", 0, None, None)
    assert InputKey.of("\0").size is None
    path.write_bytes(b"1234")
    os.utime(path, ns=(1, 10**18 + 1))
    assert InputKey.of(path, 2) == (missing.uri, 2, 4, 10**18 + 1)
    # The number of the copy is no part of the name.
    assert InputKey("1 a", 0, None, None).digest != InputKey("a", 1, None, None).digest


def test_an_input_takes_about_forty_bytes() -> None:
    count = 5000
    tracemalloc.start()
    done = Done(Held(InputKey(f"photos/{n}.jpg", 0, n, n), "ab" * 32, None, n) for n in range(count))
    kept, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(done) == count
    assert kept < 50 * count
    assert most < 250 * count
