"""The tables of a model card. Each function returns a section in Markdown and the aims it speaks to."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from textwrap import fill
from typing import NamedTuple, TypeVar

import numpy as np
from card_images import ART, FULLSIZE, GENERATED, PHOTOGRAPHS, SCREENSHOTS, Scored
from common import table
from numpy.typing import NDArray

from mdmf_deploy.bundle.bank import Bank, BankSource
from mdmf_deploy.mmd import Reduction, score_images
from mdmf_deploy.mmd.reference import gaussian_kernel, uniform_bank
from mdmf_deploy.tasks.evaluate.metrics import RESAMPLES, Estimate, Figures, Sample, draws, figures, roc_figures, wilson
from mdmf_deploy.tasks.verify import rank_correlation

K = TypeVar("K")
NONE = "-"
WIDTH = 120
# How many matched photographs each image of a photorealistic generator gets, and how far their sides may differ.
MATCHES, FARTHEST = 3, 0.25


class Aim(NamedTuple):
    """A figure that was asked for: what, the figure found, the aim, and whether it is met."""

    what: str
    found: str
    aim: str
    met: bool


class Section(NamedTuple):
    """One section of the card."""

    title: str
    text: str
    tables: tuple[str, ...]
    aims: tuple[Aim, ...] = ()

    def __str__(self) -> str:
        return "\n".join([f"### {self.title}\n{fill(self.text, WIDTH)}\n", *self.tables])


def aims(sections: Iterable[Section]) -> str:
    """Return the table of all aims. Those that are missed come first."""
    rows = [aim for section in sections for aim in section.aims]
    lines = [
        (aim.what, aim.found, aim.aim, "yes" if aim.met else "**no**") for aim in sorted(rows, key=lambda a: a.met)
    ]
    return table(lines, ("aim", "found", "aimed at", "met"))


def generators(images: Sequence[Scored], real: Sequence[Scored]) -> Section:
    """Compare each generator with the real images, all of them and photographs alone, worst AUROC first."""
    photographs = [image for image in real if image.kind == PHOTOGRAPHS]
    lines, means = [], []
    for kept in ("held out", "unseen files"):
        rows = []
        for name, own in by_folder(image for image in images if image.kind == GENERATED and image.kept == kept).items():
            against = compare(real, own)
            photos = compare(photographs, own) if photographs else None
            rows.append(
                (against, photos, (_plain(name), kept, len(own), *_cells(against), *_short(photos), verdicts(own)))
            )
        rows.sort(key=lambda row: row[0].auroc.value)
        lines += [line for _, _, line in rows]
        if rows:
            auroc, ap, acc, tpr = (_mean([row[0] for row in rows], key) for key in ("auroc", "ap", "acc", "tpr"))
            photo = [_mean([row[1] for row in rows if row[1]], key) for key in ("auroc", "ap", "acc")]
            cells = (*map(_three, (auroc, ap, acc)), _percent(tpr), *map(_three, photo), "")
            lines.append((f"**mean, {kept}**", kept, sum(found.images for found, _, _ in rows), *cells))
            means.append((kept, auroc))
    figures_of = ("AUROC", "AP", "ACC", "TPR", "AUROC p.", "AP p.", "ACC p.")
    headings = ("generator", "kept out", "images", *figures_of, "verdicts")
    text = (
        f"Against {_counts(real)}. The columns with p. are against the photographs alone. AUROC, AP and ACC weigh "
        "both classes equally. Brackets are 95% intervals. TPR and ACC are at the shipped threshold, by score alone. "
        "Verdicts are generated / uncertain / real."
    )
    found = [
        Aim("mean AUROC of held-out generators", _three(area), "at least 0.9", (area or 0.0) >= 0.9)
        for kept, area in means
        if kept == "held out"
    ]
    return Section("Each generator", text, (table(lines, headings),), tuple(found))


def false_positives(images: Sequence[Scored], featureless: Sequence[Scored]) -> Section:
    """Count false positives by kind and by source, most first."""
    real = [image for image in images if image.kind != GENERATED]
    kinds = by(real, lambda image: (image.kind, image.kept))
    limits = {PHOTOGRAPHS: 0.08, FULLSIZE: 0.10, ART: 0.15, SCREENSHOTS: None}
    found = []
    for (kind, kept), own in kinds.items():
        limit = limits[kind]
        if limit is not None and kept == "held out" and own[0].flagged is not None:
            rate = _called(own).value
            found.append(Aim(f"{kind} called generated", f"{rate:.1%}", f"at most {limit:.0%}", rate <= limit))
    rows = [_false_positive_row(f"**{kind}**", kept, own) for (kind, kept), own in kinds.items()]
    if featureless:
        if featureless[0].flagged is not None:
            called = sum(image.verdict == "generated" for image in featureless)
            found.append(Aim("featureless images called generated", str(called), "0", called == 0))
        rows.append(_false_positive_row("**featureless**, drawn", "held out", featureless))
    sources = [
        _false_positive_row(name, kept, own)
        for (name, kept), own in by(real, lambda image: (image.folder, image.kept)).items()
    ]
    headings = ("real images", "kept out", "images", "score above threshold", "called generated", "uncertain")
    text = (
        "By score alone, an image counts if its score is above the shipped threshold of its size, or, where its size\n"
        "has too few calibration images for one, above that of all calibration images. The verdict also asks for "
        "texture and for a calibrated size. Brackets are 95% intervals."
    )
    own_calibration = sum(image.calibrates for image in real)
    if own_calibration:
        text += (
            f"The {own_calibration} images that are in the calibration are judged by the calibration without them.\n"
        )
    tables = (table(_worst(rows), headings), table(_worst(sources), headings))
    return Section("False positives", text, tables, tuple(found))


def photorealistic(images: Sequence[Scored], names: Sequence[str]) -> Section:
    """Compare photorealistic generators with photographs of the same size and format."""
    photographs = [image for image in images if image.kind == PHOTOGRAPHS]
    rows = []
    wanted = {f"generated/{name}" for name in names}
    for name, own in by_folder(image for image in images if image.folder in wanted).items():
        matched, used = match(own, photographs)
        if matched:
            against = compare(matched, used)
            cells = (_estimate(against.auroc), _three(against.ap.value), _cells(against)[3])
            fpr = _percent(None if matched[0].flagged is None else _flagged(matched).value)
            sizes = f"{_side(used):.0f} / {_side(matched):.0f}"
            rows.append((against.auroc.value, (_plain(name), own[0].kept, len(used), len(matched), sizes, *cells, fpr)))
        else:
            rows.append((np.inf, (_plain(name), own[0].kept, 0, 0, NONE, NONE, NONE, NONE, NONE)))
    headings = ("generator", "kept out", "images", "photographs", "mean side", "AUROC", "AP", "TPR", "FPR")
    text = (
        f"Each image is matched with up to {MATCHES} photographs of the same format whose sides are nearest, none "
        f"more than {FARTHEST:.0%} away. A photograph is used once. Mean sides are in pixels, generated / photographs."
    )
    return Section("Photorealistic generators and matched photographs", text, (table(_first(rows), headings),))


def match(generated: Sequence[Scored], photographs: Sequence[Scored]) -> tuple[list[Scored], list[Scored]]:
    """Return the photographs matched with generated images, and the images that have at least one."""
    free, matched, used = list(photographs), [], []
    for _ in range(MATCHES):
        for image in generated:
            near = [(_apart(image, photo), n) for n, photo in enumerate(free) if photo.format == image.format]
            distance, n = min(near, default=(np.inf, 0))
            if distance <= np.log1p(FARTHEST):
                matched.append(free.pop(n))
                if image not in used:
                    used.append(image)
    return matched, used


def conditions(judged: Mapping[str, Sequence[Scored]]) -> Section:
    """Compare held-out sources under each condition."""
    rows = []
    for name, images in judged.items():
        real = [image for image in images if image.kind != GENERATED]
        generated = by_folder(image for image in images if image.kind == GENERATED)
        # No interval is shown here, so nothing is resampled.
        each = [compare(real, own, resamples=1) for own in generated.values()]
        known = real[0].flagged is not None
        photographs = [image for image in real if image.kind == PHOTOGRAPHS]
        fprs = [_percent(_flagged(own).value) if known and own else NONE for own in (real, photographs)]
        auroc = _mean(each, "auroc") or 0.0
        rows.append((auroc, (name, len(images), _three(auroc), _percent(_mean(each, "tpr")), *fprs)))
    headings = ("condition", "images", "mean AUROC", "mean TPR", "FPR", "FPR, photographs")
    text = "Means are over generators. TPR and FPR are at the shipped threshold, by score alone."
    return Section("Conditions, on held-out sources", text, (table(_first(rows), headings),))


def bank(
    real: Sequence[Scored], generated: Sequence[Scored], shipped: Bank, others: Mapping[str, Bank], reduction: Reduction
) -> Section:
    """Swap the bank, on the same signatures, and ask how far the score is its self term."""
    images = [*real, *generated]
    signatures = [image.signatures for image in images if image.signatures is not None]
    own = np.array([self_term(x, shipped.sigma) for x in signatures])
    scores = np.array([image.score for image in images])
    # MMD^2 = own - 2 cross + the bank's term.
    cross = (own + shipped.self_term - scores) / 2
    mean_kernel, rank = float(cross[: len(real)].mean()), rank_correlation(scores, own)
    names = [image.folder for image in generated]

    def auroc(values: NDArray[np.float64]) -> float:
        negative, positive = values[: len(real)], values[len(real) :]
        each = [positive[[n == name for n in names]] for name in dict.fromkeys(names)]
        return float(np.mean([roc_figures(negative, one).auroc for one in each]))

    base = auroc(scores)
    rows = [("the bundle's", len(shipped.signatures), _three(base))]
    found = [
        Aim("mean k(real, bank)", _three(mean_kernel), "at least 0.3", mean_kernel >= 0.3),
        Aim("rank correlation of score and self term", _three(rank), "at most 0.8 in size", abs(rank) <= 0.8),
    ]
    for name, other in others.items():
        area = auroc(np.array([score for score, _ in score_images(reduction, signatures, other)]))
        rows.append((name, len(other.signatures), _three(area)))
        if "generated" in name:
            found.append(Aim(f"mean AUROC with a bank of {name}", _three(area), "at most 0.45", area <= 0.45))
        else:
            found.append(Aim(f"mean AUROC lost with {name}", _three(base - area), "at most 0.02", base - area <= 0.02))
    text = (
        f"The mean of k(real, bank) is {_three(mean_kernel)} over {len(real)} real images. The rank correlation of "
        f"score and self term is {_three(rank)} over all {len(images)} images. AUROC is the mean over generators."
    )
    return Section("The bank", text, (table(rows, ("bank", "signatures", "mean AUROC")),), tuple(found))


def self_term(signatures: NDArray[np.float32], sigma: float) -> float:
    """Return the mean of k(x, x') within each crop, averaged over crops, (n, N, d)."""
    return float(np.mean([gaussian_kernel(x, x, sigma).mean() for x in signatures]))


def swapped(images: Sequence[Scored], like: Bank) -> Bank:
    """Return a bank of one crop of each image. Crops take turns, so that no place in an image is favoured."""
    kept = [image.signatures for image in images if image.signatures is not None]
    parts = [signatures[n % len(signatures)] for n, signatures in enumerate(kept)]
    source = np.repeat(np.arange(len(parts), dtype=np.int32), [len(part) for part in parts])
    named = tuple(BankSource(image.folder, "0" * 64) for image in images)
    signatures = np.concatenate(parts)
    return uniform_bank(signatures, like.sigma, source=source, sources=named, model_sha256=like.model_sha256)


def pairs(judged: Mapping[str, Sequence[tuple[Scored, Scored]]]) -> Section:
    """Compare photographs with their reconstructions by an autoencoder."""
    rows = []
    for name, both in judged.items():
        measured = compare([original for original, _ in both], [rebuilt for _, rebuilt in both])
        above = wilson(sum(rebuilt.score > original.score for original, rebuilt in both), len(both))
        rows.append((measured.auroc.value, (name, len(both), _estimate(measured.auroc), _rate(above))))
    text = "The share counts pairs in which the reconstruction scores higher than its own original."
    lines = table(_first(rows), ("decoder", "pairs", "AUROC", "share"))
    return Section("Photographs and their reconstructions", text, (lines,))


def compare(real: Sequence[Scored], generated: Sequence[Scored], resamples: int = RESAMPLES) -> Figures:
    """Return the figures of two sets of images, with flags by score alone."""
    judged = all(image.flagged is not None for image in (*real, *generated))
    samples = [
        Sample(
            np.array([image.score for image in images]),
            np.array([image.flagged for image in images], np.bool_) if judged else None,
            stream=name,
        )
        for name, images in (("real", real), ("generated", generated))
    ]
    return figures(samples[1], draws(samples[0], samples[1], resamples))


def by(images: Iterable[Scored], key: Callable[[Scored], K]) -> dict[K, list[Scored]]:
    """Group images, in the order of their first ones."""
    groups: dict[K, list[Scored]] = {}
    for image in images:
        groups.setdefault(key(image), []).append(image)
    return groups


def by_folder(images: Iterable[Scored]) -> dict[str, list[Scored]]:
    """Group images by their source, such as "generated/sdxl"."""
    return by(images, lambda image: image.folder)


def verdicts(images: Sequence[Scored]) -> str:
    """Return the shares of generated, uncertain and real."""
    if images[0].verdict == "uncalibrated":
        return NONE
    shares = [sum(image.verdict == verdict for image in images) for verdict in ("generated", "uncertain", "real")]
    return " / ".join(f"{share / len(images):.0%}" for share in shares)


def _false_positive_row(name: str, kept: str, images: Sequence[Scored]) -> tuple[float, tuple[object, ...]]:
    if images[0].flagged is None:
        return 0.0, (name, kept, len(images), NONE, NONE, NONE)
    called, flagged = _called(images), _flagged(images)
    why = by((image for image in images if image.verdict == "uncertain"), lambda image: image.reason or "")
    reasons = ", ".join(f"{len(own)} {reason}" for reason, own in sorted(why.items()))
    return flagged.value, (name, kept, len(images), _rate(flagged), _rate(called), reasons or "0")


def _plain(folder: str) -> str:
    return folder.rpartition("/")[2]


def _flagged(images: Sequence[Scored]) -> Estimate:
    return wilson(sum(bool(image.flagged) for image in images), len(images))


def _called(images: Sequence[Scored]) -> Estimate:
    return wilson(sum(image.verdict == "generated" for image in images), len(images))


def _cells(found: Figures) -> tuple[str, ...]:
    acc, tpr = (None if one is None else one.value for one in (found.acc, found.tpr))
    return _estimate(found.auroc), _three(found.ap.value), _three(acc), _percent(tpr)


def _short(found: Figures | None) -> tuple[str, ...]:
    return (NONE,) * 3 if found is None else _cells(found)[:3]


def _mean(rows: Sequence[Figures], name: str) -> float | None:
    values = [getattr(row, name) for row in rows]
    return None if not values or None in values else float(np.mean([value.value for value in values]))


def _counts(images: Sequence[Scored]) -> str:
    kinds = by(images, lambda image: image.kind)
    kept = " and ".join(dict.fromkeys(image.kept for image in images))
    return f"{len(images)} real images ({kept}): " + ", ".join(f"{len(own)} {kind}" for kind, own in kinds.items())


def _apart(one: Scored, other: Scored) -> float:
    return float(max(abs(np.log(one.width / other.width)), abs(np.log(one.height / other.height))))


def _side(images: Sequence[Scored]) -> float:
    return float(np.mean([(image.width * image.height) ** 0.5 for image in images]))


def _worst(rows: Sequence[tuple[float, tuple[object, ...]]]) -> list[tuple[object, ...]]:
    return [row for _, row in sorted(rows, key=lambda pair: -pair[0])]


def _first(rows: Sequence[tuple[float, tuple[object, ...]]]) -> list[tuple[object, ...]]:
    return [row for _, row in sorted(rows, key=lambda pair: pair[0])]


def _three(value: float | None) -> str:
    return NONE if value is None else f"{value:.3f}"


def _percent(value: float | None) -> str:
    return NONE if value is None else f"{value:.1%}"


def _estimate(value: Estimate) -> str:
    return f"{value.value:.3f} [{value.low:.3f}, {value.high:.3f}]"


def _rate(value: Estimate) -> str:
    return f"{value.value:.1%} [{value.low:.1%}, {value.high:.1%}]"
