"""The configurations that are compared: bundles x runtimes x precisions, opened."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from mdmf_deploy.bundle.bundle import Bundle, write_bundle
from mdmf_deploy.bundle.manifest import BANK, MODEL, MODEL_DATA, FileEntry
from mdmf_deploy.bundle.recipe import Precision
from mdmf_deploy.detection.detector import Detector
from mdmf_deploy.errors import UsageError
from mdmf_deploy.runtime import open_engine
from mdmf_deploy.tasks.benchmark.results import Configuration, Settings

PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "int8")
DERIVED = "lowered here from the bundle's fp32 graph; int8 took its ranges from these images; the bank stays fp32's"
_RANGE_IMAGES = 64  # images from which int8 takes its ranges


@dataclass(frozen=True, slots=True)
class Subject:
    """One configuration, ready to score."""

    about: Configuration
    detector: Detector

    @property
    def bundle(self) -> Bundle:
        """The bundle that the detector has open."""
        return self.detector.bundle

    @property
    def crops(self) -> int:
        """The most crops that the bundle's plan takes of an image."""
        return self.bundle.manifest.preprocessing.crops


@contextmanager
def opened(
    bundles: Sequence[str],
    runtimes: Sequence[str],
    precisions: Sequence[str],
    settings: Settings,
    paths: Sequence[Path],
    folder: Path,
) -> Iterator[list[Subject]]:
    """Yield every combination, those of the first bundle first, and close them at the end.

    precisions: none means each bundle's own.
    paths: readable images, from which int8 takes its ranges.
    folder: an existing folder for bundles of lower precision.
    Raises UsageError for a combination given twice, BundleError, RuntimeUnavailable.
    """
    plain: list[tuple[str, Bundle, str | None, list[str]]] = []
    for number, name in enumerate(bundles):
        own, place = Bundle.open(name), folder / f"{number}"
        place.mkdir()
        made = [lowered(own, precision, paths, place) for precision in precisions or [own.manifest.model.precision]]
        chosen = [_resolved(runtime, own, settings.threads) if precisions else runtime for runtime in runtimes]
        plain += [(name, bundle, None if bundle is own else DERIVED, chosen) for bundle in made]
    with ExitStack() as stack:
        subjects: list[Subject] = []
        for name, bundle, derived, chosen in plain:
            for runtime in chosen:
                detector = Detector(bundle.path, runtime, settings.threads, batch_size=settings.batch_size, frames=None)
                stack.callback(detector.close)
                # Keep the build profile in the name: two profiles make two configurations of one runtime.
                ran = runtime if ":" in runtime else detector.runtime
                subjects.append(Subject(_about(name, bundles, bundle, ran, derived), detector))
        names = [subject.about.name for subject in subjects]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise UsageError(f"{twice} would be measured twice; name each bundle, runtime and precision once")
        yield subjects


def lowered(bundle: Bundle, precision: str, paths: Sequence[Path], folder: Path) -> Bundle:
    """Return the bundle itself if it has this precision, else write a lowered copy into an existing folder.

    Its bank keeps the fp32 graph's signatures, so that a drift common to images and bank counts in full, as in
    tasks/verify.py. It has no calibration, because nothing has verified its graph.

    paths: readable images, from which int8 takes its ranges.
    Raises UsageError for an unknown precision, or if this bundle cannot be lowered to it.
    """
    own = bundle.manifest.model.precision
    if precision == own:
        return bundle
    chosen = next((known for known in PRECISIONS if known == precision), None)
    if chosen is None:
        raise UsageError(f"--precision {precision}: not known; choose from {', '.join(PRECISIONS)}")
    if own != "fp32":
        raise UsageError(
            f"--precision {precision}: {bundle.path} is {own}, and only an fp32 graph can be lowered, because rounding "
            "cannot be undone; give the bundle exported with --precision fp32"
        )
    graph = folder / f"{chosen}-graph" / MODEL
    graph.parent.mkdir()
    _write_graph(bundle, chosen, paths, graph)
    written = {name: graph.with_name(name) for name in (MODEL, MODEL_DATA) if graph.with_name(name).exists()}
    manifest = msgspec.structs.replace(
        bundle.manifest,
        model=msgspec.structs.replace(bundle.manifest.model, precision=chosen),
        verification=(),
        files={name: FileEntry.of(path) for name, path in written.items()},
    )
    bank = replace(bundle.bank, model_sha256=manifest.model_sha256)
    return write_bundle(folder / f"{chosen}.mdmf", manifest, {**written, BANK: bank.to_bytes()})


def _resolved(runtime: str, bundle: Bundle, threads: int | None) -> str:
    """Return the runtime that "auto" means for the bundle itself, since nothing lowered from it has been verified."""
    if runtime != "auto":
        return runtime
    engine = open_engine(runtime, bundle, threads)
    engine.close()
    return engine.name


def _about(name: str, among: Sequence[str], bundle: Bundle, runtime: str, derived: str | None) -> Configuration:
    precision = bundle.manifest.model.precision
    label = f"{runtime} {precision}"
    if len(among) > 1:
        alike = [other for other in among if Path(other).stem == Path(name).stem]
        label = f"{Path(name).stem if len(alike) == 1 else name} {label}"
    return Configuration(
        name=label,
        bundle=name,
        bundle_id=bundle.bundle_id,
        calibration_id=bundle.calibration_id,
        runtime=runtime,
        precision=precision,
        derived=derived,
    )


def _write_graph(bundle: Bundle, precision: Precision, paths: Sequence[Path], graph: Path) -> None:
    if precision == "fp16":
        from mdmf_deploy.tasks.export.precision import to_fp16

        with bundle.unchanged_model() as path:
            to_fp16(path, graph)
        return
    from mdmf_deploy.tasks.export.int8 import quantise
    from mdmf_deploy.tasks.export.ladder import center_crops
    from mdmf_deploy.tasks.export.precision import save_graph

    crops = center_crops(paths[:_RANGE_IMAGES], bundle.manifest.preprocessing)
    with bundle.unchanged_model() as path:
        save_graph(quantise(path, crops), graph, precision)
