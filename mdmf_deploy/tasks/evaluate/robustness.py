"""The robustness sweep: the same images under JPEG, blur, noise, resizing and WebP, each in growing strength."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from mdmf_deploy.detection.outputs.done import InputKey
from mdmf_deploy.detection.outputs.resumable import Resumable, journal_of, open_resumable
from mdmf_deploy.detection.rows import Row
from mdmf_deploy.detection.settings import RunSettings
from mdmf_deploy.errors import UsageError
from mdmf_deploy.files import failure, url_in
from mdmf_deploy.images.inputs import uri
from mdmf_deploy.tasks.evaluate.conditions import AS_IS, Condition
from mdmf_deploy.tasks.evaluate.datasets import KnownImage
from mdmf_deploy.tasks.evaluate.evaluate import Table, judge, tabulate, unscored
from mdmf_deploy.tasks.evaluate.metrics import RESAMPLES, Estimate

if TYPE_CHECKING:
    from mdmf_deploy.detection.detector import Detector

# Called as progress(items, description, total). The block gets the items and draws a bar.
Progress = Callable[[Iterable[Any], str, int], AbstractContextManager[Iterator[Any]]]

# What messages of `mdmf detect` advise -> what holds here.
_OPTIONS = {
    "another -o": "another folder",
    "another output": "another folder",
    "leave out --resume to replace it": "remove it",
}


class Step(msgspec.Struct, frozen=True):
    """One step of an axis.

    label: how tables and pictures call it, such as "0.25".
    condition: as `Condition.parse` reads it.
    paper: the AUROC that the paper reports there, with ViT-L/14 on its ImageNet benchmark, or None.
    """

    label: str
    condition: str
    paper: float | None = None


class Axis(msgspec.Struct, frozen=True):
    """One kind of change in growing strength.  in_paper: whether the paper (Zhang et al., 2026) measures it, too."""

    name: str
    title: str
    steps: tuple[Step, ...]
    in_paper: bool = False


def _axis(
    title: str, step: str, amounts: Sequence[float], paper: dict[float, float] | None = None, unchanged: float = 0
) -> Axis:
    """Return an axis whose steps are `step` with each amount in place of {}. At `unchanged` it is the file as it is."""
    measured = paper or {}
    steps = tuple(
        Step(AS_IS, AS_IS, measured.get(amount))
        if amount == unchanged
        else Step(f"{amount:g}", step.format(f"{amount:g}"), measured.get(amount))
        for amount in amounts
    )
    return Axis(step.partition(":")[0], title, steps, bool(paper))


_CLEAN = 0.9565
"""The paper's AUROC of unchanged images: the mean of nine generators."""

AXES = (
    _axis("JPEG quality", "jpeg:{}", (0, 100, 90, 80, 70, 60, 50), {0: _CLEAN, 50: 0.915}),
    _axis("Gaussian blur, sigma in pixels", "blur:{}", (0, 1, 2, 3, 4, 5), {0: _CLEAN, 5: 0.81}),
    _axis("Gaussian noise, std", "noise:{}", (0, 0.05, 0.1, 0.15, 0.2, 0.25), {0: _CLEAN, 0.25: 0.82}),
    _axis("Resize, factor", "resize:{}", (0.5, 0.75, 1, 1.5, 2), unchanged=1),
    _axis("WebP quality", "webp:{}", (0, 95, 80, 65, 50)),
    msgspec.structs.replace(
        _axis("JPEG quality, then JPEG 90", "jpeg:{},jpeg:90", (0, 90, 70, 50)), name="double jpeg"
    ),
)


class SweepResult(msgspec.Struct, frozen=True, kw_only=True):
    """The result of a sweep.

    settings: of the detector.
    tables: condition -> its figures, in the order in which they were judged.
    unscored: generators without a scored image under at least one condition.
    """

    settings: RunSettings
    images: int
    axes: tuple[Axis, ...]
    tables: dict[str, Table]
    unscored: tuple[str, ...]


@contextmanager
def _no_bar(items: Iterable[Any], description: str, total: int) -> Iterator[Iterator[Any]]:
    yield iter(items)


def sweep(
    detector: Detector,
    images: Sequence[KnownImage],
    folder: Path,
    *,
    axes: Sequence[Axis] = AXES,
    report: Callable[[str], None] = lambda line: None,
    progress: Progress = _no_bar,
    resamples: int = RESAMPLES,
) -> SweepResult:
    """Judge the images under every condition of the axes, and keep the rows in the folder.

    The folder holds a file of rows for each condition, with its journal (detection/outputs/journal.py). The next call
    judges only what they lack: images that are new or have changed, after a run that was stopped or a smaller sample.
    report: gets a line at the start, and a second one with the time left, once the speed is known.
    progress: draws a bar while one condition is judged.
    Raises UsageError if the folder cannot be written to or holds something else, if it was begun with other settings,
    or if no real or no generated image is readable.
    """
    conditions = [
        Condition.parse(text) for text in dict.fromkeys(step.condition for axis in axes for step in axis.steps)
    ]
    settings = detector.settings()
    check_folder(folder, axes)
    left = {condition.name: _missing(folder, condition, settings, images) for condition in conditions}
    total = len(images) * len(conditions)
    held = f"; {total - sum(left.values())} of {total} rows are in {uri(folder)}" if sum(left.values()) < total else ""
    report(f"robustness: {len(images)} images under {len(conditions)} conditions{held}")
    tables, estimated = {}, False
    try:
        for condition in conditions:
            start, todo = time.monotonic(), left.pop(condition.name)
            judged = _judged(detector, images, condition, folder, settings, progress)
            rows_left = sum(left.values())
            if todo and rows_left and not estimated:
                seconds = (time.monotonic() - start) * rows_left / todo
                report(f"{condition.name} is done; the other conditions take about {_duration(seconds)}")
                estimated = True
            tables[condition.name] = tabulate(condition.name, judged, resamples)
    except BaseException as error:
        error.add_note(f"finished rows are in {uri(folder)}; the same command goes on there")
        raise
    missing = unscored(images, list(tables.values()))
    return SweepResult(settings=settings, images=len(images), axes=tuple(axes), tables=tables, unscored=tuple(missing))


def rows_file(folder: Path, condition: str) -> Path:
    """Return the file of a condition's rows, such as jpeg-75+jpeg-90.jsonl."""
    name = condition.replace(" ", "").replace(",", "+").replace(":", "-")
    return folder / f"{name}.jsonl"


def check_folder(folder: Path, axes: Sequence[Axis] = AXES) -> None:
    """Make the folder of a sweep.

    Raises UsageError unless it is new, empty or a sweep's, so that no other data get mixed in.
    """
    url = url_in(folder)
    if url is not None:
        raise UsageError(f"--robustness {url} is a URL; give a folder of this machine")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        found = {path for path in folder.iterdir() if not path.name.startswith(".")}
    except FileExistsError as error:
        raise UsageError(f"--robustness {uri(folder)} is a file; give a folder, which may be new") from error
    except OSError as error:
        raise UsageError(failure(f"--robustness {uri(folder)}", error, "choose a folder you can write to")) from error
    ours = {rows_file(folder, step.condition) for axis in axes for step in axis.steps}
    # A sweep over other axes may have begun the folder.
    if found and found.isdisjoint(ours) and not any(journal_of(path) in found for path in found):
        raise UsageError(
            f"--robustness {uri(folder)} holds no rows of a sweep, but other files; give a new or an empty folder"
        )


@contextmanager
def _rows(folder: Path, condition: Condition, settings: RunSettings) -> Iterator[Resumable]:
    path = rows_file(folder, condition.name)
    try:
        opened = open_resumable(path, settings)
    except UsageError as error:
        text = str(error).removeprefix("-o ")
        for theirs, ours in _OPTIONS.items():
            text = text.replace(theirs, ours)
        raise UsageError(f"--robustness {uri(folder)}: {text}") from error
    with opened:
        yield opened


def _missing(folder: Path, condition: Condition, settings: RunSettings, images: Sequence[KnownImage]) -> int:
    """Return how many images are to be judged. Raises UsageError at once if the rows have other settings."""
    if not rows_file(folder, condition.name).exists():
        return len(images)
    with _rows(folder, condition, settings) as rows:
        return len(_todo(rows, images))


def _todo(rows: Resumable, images: Sequence[KnownImage]) -> list[KnownImage]:
    return [image for image in images if rows.done.state(InputKey.of(image.path), image.sha256) != "done"]


def _judged(
    detector: Detector,
    images: Sequence[KnownImage],
    condition: Condition,
    folder: Path,
    settings: RunSettings,
    progress: Progress,
) -> list[tuple[KnownImage, Row]]:
    """Return each image with its row, in order. Rows that the folder holds are read, and the others are added."""
    with _rows(folder, condition, settings) as rows:
        todo = _todo(rows, images)
        rows.drop((uri(image.path), 0) for image in todo)
        with progress(judge(detector, todo, condition), condition.name, len(todo)) as pairs:
            for image, row in pairs:
                rows.write(InputKey.of(image.path), [row])
    decode = msgspec.json.Decoder(Row).decode
    with rows_file(folder, condition.name).open("rb") as file:
        by_uri = {row.uri: row for row in map(decode, file)}
    return [(image, by_uri[uri(image.path)]) for image in images]


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


def lines(result: SweepResult) -> list[str]:
    """Return the terminal's tables, one for each axis, and the conditions that hurt most."""
    listed = []
    for axis in result.axes:
        listed += [
            f"{axis.title}{' (an axis of the paper)' if axis.in_paper else ''}",
            f"{'':<5}  {'AUROC':<20}  {'paper':<5}  {'FPR':<20}  {'TPR':<5}  uncertain  worst generator",
        ]
        for step in axis.steps:
            table = result.tables[step.condition]
            worst, figures = next(iter(table.generators.items()))
            cells = (
                f"{step.label:<5}",
                f"{_cell(table.mean['auroc']):<20}",
                f"{_number(step.paper):<5}",
                f"{_cell(table.fpr):<20}",
                f"{_number(_value(table.mean['tpr'])):<5}",
                f"{'-' if table.real_uncertain is None else table.real_uncertain:>9}",
                f"{figures.auroc.value:.3f} {worst}",
            )
            listed.append("  ".join(cells))
        listed.append("")
    listed += _hardest(result)
    listed.append("AUROC and TPR are means over generators. uncertain counts real images.")
    if any(axis.in_paper for axis in result.axes):
        listed.append("The paper's figures are of ViT-L/14 on its ImageNet benchmark, so compare falls, not heights.")
    unreadable = {name for table in result.tables.values() for name in table.unreadable}
    if unreadable:
        listed.append(f"{len(unreadable)} unreadable under at least one condition, left out there")
    return listed


def _hardest(result: SweepResult) -> list[str]:
    figures: tuple[tuple[str, Callable[[Table], Estimate | None], bool], ...] = (
        ("lowest AUROC", lambda table: table.mean["auroc"], False),
        ("lowest TPR", lambda table: table.mean["tpr"], False),
        ("highest FPR", lambda table: table.fpr, True),
    )
    listed = []
    for what, figure, highest in figures:
        found = {name: estimate for name, table in result.tables.items() if (estimate := figure(table)) is not None}
        if found:
            name = sorted(found, key=lambda name: found[name].value, reverse=highest)[0]
            before = f"; {found[AS_IS].value:.3f} as is" if AS_IS in found else ""
            listed.append(f"{what}: {_cell(found[name])} under {name}{before}")
    return listed


def _value(estimate: Estimate | None) -> float | None:
    return None if estimate is None else estimate.value


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _cell(estimate: Estimate | None) -> str:
    return "-" if estimate is None else f"{estimate.value:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"
