"""Paths: a tuple of paths in a tenth of its memory."""

from __future__ import annotations

import os
import pickle
import tracemalloc
from pathlib import Path

import pytest

from mdmf_deploy.images.paths import Paths

NAMES = [Path("b/a.jpg"), Path(), Path("/c"), Path(os.fsdecode(b"caf\xe9 \n.png")), Path("b/a.jpg"), Path("é/ü.jpg")]


def test_paths_are_a_sequence_like_a_tuple_of_them() -> None:
    paths = Paths.of(NAMES)
    assert tuple(paths) == tuple(NAMES)
    assert [paths[n] for n in range(-6, 6)] == NAMES * 2
    assert len(paths) == 6
    for part in (slice(1, 4), slice(None, None, -2), slice(9, 2)):
        assert tuple(paths[part]) == tuple(NAMES[part])
    for place in (6, -7):
        with pytest.raises(IndexError):
            paths[place]
    assert Path("/c") in paths
    assert paths.index(Path("/c")) == 2
    assert list(reversed(paths)) == NAMES[::-1]
    assert not Paths()
    assert pickle.loads(pickle.dumps(paths)) == paths == Paths.of(map(str, NAMES))
    assert hash(paths) == hash(Paths.of(NAMES))
    # The same bytes, divided in another way.
    assert Paths.of(["ab", "c"]) != Paths.of(["a", "bc"])


def test_a_path_takes_its_bytes_and_little_more() -> None:
    names = [b"folder/of/photographs/%06d.jpg" % n for n in range(20_000)]
    tracemalloc.start()
    paths = Paths(iter(names))
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < len(names) * (len(names[0]) + 20)
    assert paths[-1].name == "019999.jpg"
