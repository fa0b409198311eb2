"""Look for leaks: facts of the files, other than their content, that tell real images from generated ones.

A detector can score well on such a data set without having learned anything about generated images. It may have learned
that they are PNGs of 1024 pixels a side.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from mdmf_deploy.errors import install
from mdmf_deploy.images.inputs import uri
from mdmf_deploy.tasks.evaluate.datasets import KnownImage
from mdmf_deploy.tasks.evaluate.facts import Facts, facts_of
from mdmf_deploy.tasks.evaluate.metrics import Estimate
from mdmf_deploy.tasks.evaluate.separation import LEAST, all_columns, level_for, one_column, thinned

BOUND = 0.6
"""If the lower end of the interval of an AUROC is above this, the facts are called a leak.

Two honest collections always differ a little, so 0.5 would call every large data set a leak. From 0.6 on, the facts put
more than 6 of 10 pairs of a real and a generated image in the right order.
"""

UNDECIDED = 0.75
"""A figure above this whose interval reaches below BOUND is no leak for sure, but nothing to be silent about either."""

Finding = Literal["leak", "undecided", "none found", "too few images"]

_CATEGORIES = (
    "codec",
    "colour",
    "bit_depth",
    "tables",
    "subsampling",
    "progressive",
    "exif",
    "xmp",
    "icc",
    "c2pa",
    "text",
)
_NUMBERS = ("width", "height", "megapixels", "aspect", "quality")
# It depends on how much detail the content has, so it is shown but never called a leak.
_SHOWN_ONLY = ("bytes_per_pixel",)
# A category of fewer images than the commonest ones is "other".
_MOST_VALUES = 8
# Intervals that end above this say little.
_WIDE = 0.7
_SHOWN_FACTS, _SHOWN_VALUES, _SHOWN_GENERATORS = 4, 2, 3


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """One fact of the images of one class.

    known: how many images have it.
    shares: of a category, value -> its share of these images, commonest first.
    quartiles: of a number.
    """

    known: int
    shares: dict[str, float] | None = None
    quartiles: tuple[float, float, float] | None = None


class FactTable(msgspec.Struct, frozen=True, kw_only=True):
    """One fact by class.

    auroc: how well it alone separates the images that have it. None if fewer than separation.LEAST of a class do.
    """

    name: str
    auroc: Estimate | None
    real: Summary
    generated: Summary


class FactComparison(msgspec.Struct, frozen=True, kw_only=True):
    """The real images compared with those of one generator, or with all generated ones.

    generator: None for all.
    real, generated: how many images were compared.
    auroc: how well all facts together separate them, but for bytes per pixel. None for too few images, or without
        scikit-learn.
    facts: the one that separates best first.
    """

    generator: str | None
    real: int
    generated: int
    auroc: Estimate | None
    facts: tuple[FactTable, ...]
    verdict: Finding


class LeakAudit(msgspec.Struct, frozen=True, kw_only=True):
    """What the facts of files tell about the classes of a data set.

    verdict: "leak" if one of the comparisons has that verdict, else that of all generated images together. "undecided"
        means that the facts may tell the classes apart, and that too few images are there to be sure.
    overall: the real images against all generated ones.
    generators: against those of each generator, worst first.
    unreadable: files without facts, as row URIs.
    level: of each comparison's interval. All of them hold together at 95%. The intervals of a comparison's facts hold
        together at this level.
    missing: the command that installs scikit-learn, if it is missing. Facts were then looked at one by one.
    """

    verdict: Finding
    overall: FactComparison
    generators: tuple[FactComparison, ...]
    unreadable: tuple[str, ...]
    level: float
    missing: str | None = None


def audit_leaks(images: Sequence[KnownImage], facts: Sequence[Facts | None] | None = None) -> LeakAudit:
    """Compare the facts of real and generated images. No pixels are decoded, and unreadable files are counted.

    facts: of each image, as facts_of returns them. They are read if left out.
    """
    found = facts_of(image.path for image in images) if facts is None else facts
    known = [(image, fact) for image, fact in zip(images, found, strict=True) if fact is not None]
    names = dict.fromkeys(image.generator for image, _ in known if image.generator is not None)
    real = [(image, fact) for image, fact in known if image.generator is None]
    generated = [(image, fact) for image, fact in known if image.generator is not None]
    # Those with too few images are not compared. One generator is all of them, and needs no comparison of its own.
    counts = Counter(image.generator for image, _ in generated)
    level = level_for(1 if len(names) == 1 else 1 + sum(count >= LEAST for count in counts.values()))
    overall = _compare(None, [fact for _, fact in real], [fact for _, fact in generated], level)
    generators = [
        _compare(
            name,
            [fact for image, fact in real if image.compared_with in (None, name)],
            [fact for image, fact in generated if image.generator == name],
            level,
        )
        for name in names
        if len(names) > 1
    ] or [msgspec.structs.replace(overall, generator=name) for name in names]
    leaking = any(comparison.verdict == "leak" for comparison in [overall, *generators])
    return LeakAudit(
        verdict="leak" if leaking else overall.verdict,
        overall=overall,
        generators=tuple(sorted(generators, key=_badness, reverse=True)),
        unreadable=tuple(uri(image.path) for image, fact in zip(images, found, strict=True) if fact is None),
        level=level,
        missing=None if _can_model() else install("evaluate"),
    )


def lines(audit: LeakAudit) -> list[str]:
    """Return what a terminal shows of an audit: a line or two, and up to ten if there is a leak."""
    overall, estimate = audit.overall, _evidence(audit.overall)
    counts = f"{overall.real} real and {overall.generated} generated images"
    if audit.verdict == "too few images":
        shown = [f"leaks: too few files to look for any ({counts}; at least {LEAST} of each are needed)"]
    elif audit.verdict == "undecided":
        shown = [
            f"leaks: perhaps. Format, size and metadata tell {overall.real} real images from {overall.generated} "
            f"generated ones{_figure(overall)}, but too few are here to be sure. Give more, or add --match.",
            *_facts(overall),
        ]
    elif audit.verdict == "none found":
        wide = "; more images would show smaller leaks" if estimate is not None and estimate.high > _WIDE else ""
        shown = [f"leaks: none found in format, size and metadata of {counts}{_figure(overall)}{wide}"]
    else:
        shown = _warning(audit)
    if audit.unreadable:
        shown.append(f"leaks: {len(audit.unreadable)} files could not be read and were left out")
    if audit.missing is not None:
        shown.append(f"leaks: each fact was looked at alone; to look at all together, run: {audit.missing}")
    return shown


def _warning(audit: LeakAudit) -> list[str]:
    leaking = [comparison for comparison in audit.generators if comparison.verdict == "leak"]
    worst = audit.overall if audit.overall.verdict == "leak" else audit.generators[0]
    name = worst.generator
    found = [
        f"warning: format, size and metadata alone tell {worst.real} real images from {worst.generated} "
        f"{'generated ones' if name is None else f'of {name}'}{_figure(worst)}",
        "A high score here may rest on them. --match scores again with formats and sizes made alike.",
    ]
    found += _facts(worst)
    if leaking and len(audit.generators) > 1:
        names = ", ".join(f"{comparison.generator}{_figure(comparison)}" for comparison in leaking[:_SHOWN_GENERATORS])
        more = ", ..." if len(leaking) > _SHOWN_GENERATORS else ""
        found.append(f"  {len(leaking)} of {len(audit.generators)} generators leak: {names}{more}")
    return found


def _facts(comparison: FactComparison) -> list[str]:
    """Return a line for each fact that separates the classes, the best first."""
    name = comparison.generator
    return [
        f"  {table.name.replace('_', ' ')} {table.auroc.value:.3f}: real {_words(table.real)}; "
        f"{name or 'generated'} {_words(table.generated)}"
        for table in comparison.facts
        if table.name not in _SHOWN_ONLY and table.auroc is not None and table.auroc.value > BOUND
    ][:_SHOWN_FACTS]


def _figure(comparison: FactComparison) -> str:
    estimate = _evidence(comparison)
    return "" if estimate is None else f" (AUROC {estimate.value:.3f} [{estimate.low:.3f}, {estimate.high:.3f}])"


def _words(summary: Summary) -> str:
    if summary.quartiles is not None:
        low, median, high = (f"{value:.4g}" for value in summary.quartiles)
        return median if low == high else f"{median} ({low} to {high})"
    shares = list((summary.shares or {}).items())[:_SHOWN_VALUES]
    return ", ".join(f"{value} {share:.0%}" for value, share in shares) or "none"


def _compare(name: str | None, real: list[Facts], generated: list[Facts], level: float) -> FactComparison:
    labels = np.arange(len(real) + len(generated)) >= len(real)
    rows = [*real, *generated]
    chosen = thinned(labels)
    auroc = None
    if _can_model():
        auroc = all_columns(_columns([rows[n] for n in chosen]), labels[chosen], level)
    names = (*_CATEGORIES, *_NUMBERS, *_SHOWN_ONLY)
    # One fact of many would be found by chance, so their intervals hold together, too.
    each = 1 - (1 - level) / len(names)
    tables = [_table(fact, rows, labels, chosen, each) for fact in names]
    found = FactComparison(
        generator=name,
        real=len(real),
        generated=len(generated),
        auroc=auroc,
        facts=tuple(sorted(tables, key=lambda table: -1.0 if table.auroc is None else table.auroc.low, reverse=True)),
        verdict="none found",
    )
    evidence = _evidence(found)
    if min(len(real), len(generated)) < LEAST:
        return msgspec.structs.replace(found, verdict="too few images")
    if evidence is None or evidence.value <= BOUND:
        return found
    if evidence.low > BOUND:
        return msgspec.structs.replace(found, verdict="leak")
    return msgspec.structs.replace(found, verdict="undecided") if evidence.value > UNDECIDED else found


def _evidence(comparison: FactComparison) -> Estimate | None:
    """Return the figure that the verdict rests on: that of all facts together, else of the one that separates best."""
    if comparison.auroc is not None:
        return comparison.auroc
    return next((table.auroc for table in comparison.facts if table.auroc and table.name not in _SHOWN_ONLY), None)


def _badness(comparison: FactComparison) -> float:
    estimate = _evidence(comparison)
    return -1.0 if estimate is None or comparison.verdict == "too few images" else estimate.low


def _table(
    name: str, rows: list[Facts], labels: NDArray[np.bool_], chosen: NDArray[np.intp], level: float
) -> FactTable:
    category = name in _CATEGORIES
    values = [getattr(row, name) for row in rows]
    known = np.array([value is not None for value in values], np.bool_)
    looked_at = chosen[known[chosen]]
    some = [values[n] for n in looked_at]
    column = _codes(some) if category else np.array(some, np.float64)
    classes = ([values[n] for n in np.flatnonzero(known & (labels == label))] for label in (False, True))
    real, generated = (_summary(of_class, category) for of_class in classes)
    auroc = one_column(column, labels[looked_at], level)
    return FactTable(name=name, auroc=auroc, real=real, generated=generated)


def _summary(values: list[object], category: bool) -> Summary:
    if not values:
        return Summary(known=0)
    if category:
        shares = {_word(value): count / len(values) for value, count in Counter(values).most_common(_MOST_VALUES)}
        return Summary(known=len(values), shares=shares)
    low, median, high = np.quantile(np.array(values, np.float64), [0.25, 0.5, 0.75])
    return Summary(known=len(values), quartiles=(float(low), float(median), float(high)))


def _word(value: object) -> str:
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


def _columns(rows: list[Facts]) -> NDArray[np.float64]:
    """Return (n, k): the numbers, -1 where there is none, and a column of zeros and ones for each category's value."""
    columns = [np.array([-1 if (value := getattr(row, name)) is None else value for row in rows]) for name in _NUMBERS]
    for name in _CATEGORIES:
        codes = _codes([getattr(row, name) for row in rows])
        columns += [codes == code for code in range(int(codes.max(initial=0)) + 1)]
    return np.stack(columns, axis=1).astype(np.float64)


def _codes(values: Sequence[object]) -> NDArray[np.float64]:
    """Return a number for each value, 0 for the commonest. All rare ones share the last."""
    numbers = {value: n for n, (value, _) in enumerate(Counter(values).most_common(_MOST_VALUES - 1))}
    return np.array([numbers.get(value, _MOST_VALUES - 1) for value in values], np.float64)


def _can_model() -> bool:
    try:
        import sklearn.ensemble  # noqa: F401 (it takes a second, so it is imported late)
    except ImportError:
        return False
    return True
