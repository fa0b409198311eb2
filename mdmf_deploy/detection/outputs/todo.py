"""What a run has to do: the inputs that its outputs do not hold as they are now."""

from __future__ import annotations

from array import array
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from mdmf_deploy.detection.outputs.done import Done, InputKey, State
from mdmf_deploy.files import file_sha256
from mdmf_deploy.images.inputs import uri


class Todo:
    """The inputs of a run that are new or have changed. Takes a few bytes for each input.

    paths: all inputs of the run. The same path given twice is two inputs.
    outputs: what each output of the run holds. An input is done if all of them hold it.
    verify: compare hashes of files, not only size and time.
    watch: the same paths, from an iterator that draws a bar meanwhile.
    already, new: how many inputs are done, and how many no output holds.
    changed: uri and copy of those that are done again. They must be dropped from the outputs before.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        outputs: Sequence[Done],
        *,
        verify: bool = False,
        watch: Iterable[Path] | None = None,
    ) -> None:
        self._paths, self._outputs, self._verify = paths, outputs, verify
        self._copies = _copies(paths)
        self._places = array("L")
        self._taken: deque[tuple[Path, InputKey]] = deque()
        self.already = self.new = 0
        self.changed: list[tuple[str, int]] = []
        for n, path in enumerate(paths if watch is None else watch):
            key = InputKey.of(path, self._copies.get(n, 0))
            state = self._state(path, key)
            if state == "done":
                self.already += 1
                continue
            self._places.append(n)
            if state == "new":
                self.new += 1
            else:
                self.changed.append((key.uri, key.copy))

    def __len__(self) -> int:
        return len(self._places)

    def paths(self) -> Iterator[Path]:
        """Yield the inputs to do.

        Each one's key is taken just before it is read. So a file that changes while it is read is done again next time.
        """
        for n in self._places:
            path = self._paths[n]
            self._taken.append((path, InputKey.of(path, self._copies.get(n, 0))))
            yield path

    def taken(self) -> Iterator[tuple[Path, InputKey]]:
        """Yield what `paths` has yielded, with keys, forever. Another thread may iterate `paths`, and must be ahead."""
        while True:
            yield self._taken.popleft()

    def _state(self, path: Path, key: InputKey) -> State:
        sha256 = None
        if self._verify and any(done.place(key.digest) is not None for done in self._outputs):
            try:
                sha256 = file_sha256(path)
            except (OSError, ValueError):  # then it cannot be read, or has no size and time either
                key = key._replace(size=None, mtime_ns=None)
        states = {done.state(key, sha256) for done in self._outputs}
        return states.pop() if len(states) == 1 else "changed"


def _copies(paths: Sequence[Path]) -> dict[int, int]:
    """Return which inputs were given before, by their place: how many times."""
    hashes = np.fromiter((hash(uri(path)) for path in paths), np.int64, len(paths))
    found, counts = np.unique(hashes, return_counts=True)
    repeated = set(found[counts > 1].tolist())
    seen: Counter[str] = Counter()
    copies = {}
    for n in np.flatnonzero(np.isin(hashes, list(repeated))).tolist() if repeated else ():
        name = uri(paths[n])
        if seen[name]:
            copies[n] = seen[name]
        seen[name] += 1
    return copies
