"""The rows of a report as JSON for its script: only what differs from row to row, and each text once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from mdmf_deploy.bundle.bundle import Bundle
from mdmf_deploy.bundle.calibration import Calibration, Group
from mdmf_deploy.bundle.groups import VIDEOS
from mdmf_deploy.detection.rows import COLUMNS, Row
from mdmf_deploy.detection.schema import DESCRIPTIONS
from mdmf_deploy.tasks.report.words import CLAIMS, NOTES, meaning, p_value_in_words

# Columns of the table and their titles, besides the picture and the labels. One that no row has a value for is left
# out.
_COLUMNS = {
    "uri": "Name",
    "verdict": "Verdict",
    "score": "Score",
    "p_value": "p-value",
    "q_value": "q-value",
    "threshold": "Threshold",
    "size_group": "Size group",
    "width": "Pixels",
    "provenance": "Metadata",
}
_ALWAYS = ("uri", "verdict")
_MOST_BINS = 40


class Labelled(NamedTuple):
    """A row and its labels' texts."""

    row: Row
    labels: tuple[str, ...]


def page_data(
    rows: Sequence[Labelled],
    labels: Sequence[str],
    bundle: Bundle,
    pictures: Sequence[bool],
    missing: Mapping[int, str],
) -> dict[str, Any]:
    """Return what the page's script reads.

    names: columns of rows that differ, in order.  common: the values of all others.
    rows: for each, the values of `names`.
    labels, labelled: their names, and each row's texts.
    columns: names and titles of the table's columns.
    texts: sentences.  words: for each row, the places of what its verdict says, what it does not say, and its p-value's
        headline and detail, or -1.
    groups: size group -> its histogram.
    pictures: for each row, 1 if it has one.  missing: a row's place -> why it has none, if it should have.
    """
    calibration = bundle.calibration
    facts = [labelled.row.to_dict() for labelled in rows]
    common = {name: facts[0][name] for name in COLUMNS if facts and all(one[name] == facts[0][name] for one in facts)}
    names = [name for name in COLUMNS if name not in common]
    texts: dict[str, int] = {}
    groups = dict(_groups(calibration))
    fpr, counts = calibration.fpr if calibration else None, {name: len(group.scores) for name, group in groups.items()}
    words = [
        [texts.setdefault(text, len(texts)) if text else -1 for text in _words(one.row, fpr, counts)] for one in rows
    ]
    return {
        "names": names,
        "common": {name: value for name, value in common.items() if value is not None},
        "rows": [[one[name] for name in names] for one in facts],
        "help": {name: DESCRIPTIONS.get(name, "") for name in COLUMNS},
        "labels": list(labels),
        "labelled": [list(one.labels) for one in rows] if labels else [],
        "columns": [
            [name, title]
            for name, title in _COLUMNS.items()
            if name in _ALWAYS or any(one.get(name) is not None for one in facts)
        ],
        "texts": list(texts),
        "words": words,
        "notes": NOTES,
        "claims": CLAIMS,
        "groups": {name: _histogram(group) for name, group in groups.items()},
        "pictures": [int(drawn) for drawn in pictures],
        "missing": {str(n): why for n, why in missing.items()},
    }


def _words(row: Row, fpr: float | None, counts: Mapping[str, int]) -> tuple[str, str, str, str]:
    says = meaning(row, fpr)
    if row.p_value is None:
        return says.says, says.not_says, "", ""
    p_value = p_value_in_words(row.p_value, counts.get(row.size_group or ""), row.size_group)
    return says.says, says.not_says, p_value.headline, p_value.detail


def _groups(calibration: Calibration | None) -> Iterator[tuple[str, Group]]:
    if calibration is None:
        return
    for group in calibration.groups:
        if group.scores:
            yield group.name, group
    if calibration.videos is not None:
        yield VIDEOS, calibration.videos.group


def _histogram(group: Group) -> dict[str, Any]:
    """Return a group's scores in bins of equal width, from the lowest to the highest."""
    counts, edges = np.histogram(group.scores, bins=min(_MOST_BINS, max(8, round(1.5 * len(group.scores) ** 0.5))))
    return {"low": float(edges[0]), "high": float(edges[-1]), "counts": counts.tolist(), "n": len(group.scores)}
