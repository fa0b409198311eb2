"""Which rows of one run stay "generated" at a false discovery rate: Benjamini-Hochberg over the run's p-values.

A threshold at 5% calls 50 of 1,000 real photographs "generated". A false discovery rate of 5% asks for another promise:
of the rows that are called so, 5% are real, on average over draws of the photographs and the calibration.

Conformal p-values that share their calibration images depend on each other, but positively (PRDS), and then the
procedure holds: Benjamini, Yekutieli 2001, "The Control of the False Discovery Rate in Multiple Testing under
Dependency", Annals of Statistics 29, theorem 1.2; Bates, Candes, Lei, Romano, Sesia 2023, "Testing for Outliers with
Conformal p-Values", Annals of Statistics 51, theorem 2. The images themselves must be independent: a burst of one scene
is not.

The procedure only takes verdicts away. So a row that is not "generated" by its own p-value, or whose second look was
unstable, counts with a p-value of 1. A larger p-value keeps what is promised. Rows that have no threshold, and so could
not be "generated", don't count at all.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import accumulate

import msgspec

from mdmf_deploy.detection.rows import Row
from mdmf_deploy.errors import UsageError

# A q-value that equals the rate may lie above it by rounding.
_ROUNDING = 1e-9


class Discoveries:
    """The p-values of one run's rows. `add` every row, and then `judge` every row.

    Memory grows with the number of different p-values, of which a calibration has few, not with that of rows.
    rate: the false discovery rate, in (0, 1). Raises UsageError if it is not.
    judged: the number of rows that have a threshold, by size group.
    """

    def __init__(self, rate: float) -> None:
        if not 0.0 < rate < 1.0:
            raise UsageError(f"false discovery rate {rate}: must be between 0 and 1, such as 0.05")
        self.rate = rate
        self.judged: Counter[str | None] = Counter()
        self._alarms: Counter[float] = Counter()
        self._q_values: dict[float, float] | None = None

    def add(self, row: Row) -> None:
        """Count a row's p-value, if it has a threshold."""
        if row.threshold is not None:
            self.judged[row.size_group] += 1
        if (p := _alarm(row)) is not None:
            self._alarms[p] += 1
            self._q_values = None

    def judge(self, row: Row) -> Row:
        """Return the row with its q-value, if it is "generated".

        Its verdict is "uncertain", for the reason "expected_by_chance", if that is above the rate. Other rows stay.
        """
        p = _alarm(row)
        if p is None:
            return row
        if self._q_values is None:
            self._q_values = _adjusted(self._alarms, self.judged.total())
        q = self._q_values[p]
        if self._within(q):
            return msgspec.structs.replace(row, q_value=min(q, self.rate))
        return msgspec.structs.replace(row, q_value=q, verdict="uncertain", reason="expected_by_chance")

    @property
    def alarms(self) -> int:
        """The number of rows that are "generated" by their own p-values."""
        return self._alarms.total()

    @property
    def discovered(self) -> int:
        """The number of rows that stay "generated"."""
        found = _adjusted(self._alarms, self.judged.total())
        return sum(count for p, count in self._alarms.items() if self._within(found[p]))

    def alarms_needed(self, images: int) -> int:
        """Return how many rows have to be "generated" for any of them to stay so.

        images: of the calibration, n. The smallest p-value is 1 / (n + 1).
        """
        return max(1, math.ceil(self.judged.total() / (images + 1) / self.rate * (1 - _ROUNDING)))

    @property
    def images_needed(self) -> int:
        """The number of calibration images with which one row alone could stay "generated"."""
        return max(0, math.ceil(self.judged.total() / self.rate) - 1)

    def _within(self, q: float) -> bool:
        return q <= self.rate * (1 + _ROUNDING)


def judged_together(rows: Sequence[Row], rate: float) -> list[Row]:
    """Return the rows of one run, in order, as `mdmf detect --fdr RATE` gives them. Raises UsageError as Discoveries.

    >>> rows = [Row(uri=f"{n}.jpg", p_value=p, threshold=0.5, verdict="generated") for n, p in enumerate((0.01, 0.04))]
    >>> [(row.verdict, row.q_value) for row in judged_together(rows, 0.03)]
    [('generated', 0.02), ('uncertain', 0.04)]
    """
    found = Discoveries(rate)
    for row in rows:
        found.add(row)
    return [found.judge(row) for row in rows]


def _alarm(row: Row) -> float | None:
    """Return the p-value of a row that is "generated" by it. None for all others."""
    return row.p_value if row.verdict == "generated" else None


def _adjusted(alarms: Counter[float], judged: int) -> dict[float, float]:
    """Return the q-value of each p-value: the smallest m p' / (rows with at most p') of all p' >= p, at most 1.

    judged: m.
    """
    ascending = sorted(alarms)
    ranks = accumulate(alarms[p] for p in ascending)
    steps = [judged * p / rank for p, rank in zip(ascending, ranks, strict=True)]
    return dict(zip(ascending, _lowest_from_here(steps), strict=True))


def _lowest_from_here(values: Sequence[float]) -> Iterable[float]:
    return reversed(list(accumulate(reversed(values), min, initial=1.0))[1:])
