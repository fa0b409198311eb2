"""The configurations that are compared, opened: bundles x runtimes x precisions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import numpy as np

from mdmf_deploy.bundle.bundle import Bundle, write_bundle
from mdmf_deploy.bundle.manifest import BANK, MODEL, MODEL_DATA, FileEntry
from mdmf_deploy.bundle.recipe import Precision
from mdmf_deploy.detection.detector import Detector
from mdmf_deploy.errors import UsageError
from mdmf_deploy.images import decode as images
from mdmf_deploy.runtime import open_engine
from mdmf_deploy.tasks.benchmark.results import Configuration, Settings


@dataclass(frozen=True, slots=True)
class Subject:
    """One configuration, ready to score."""

    about: Configuration
    detector: Detector

    @property
    def bundle(self) -> Bundle:
        return self.detector.bundle


@contextmanager
def opened(
    bundles: Sequence[str],
    runtimes: Sequence[str],
    precisions: Sequence[str],
    settings: Settings,
    paths: Sequence[Path],
    folder: Path,
) -> Iterator[list[Subject]]:
    """Every combination, the first bundle's first, closed at the end.

    precisions: none means each bundle's own.  paths, folder: as lowering.lowered takes them.
    Raises UsageError for a combination given twice, BundleError, RuntimeUnavailable.
    """
    plain: list[tuple[str, Bundle, str | None, list[str]]] = []
    for number, name in enumerate(bundles):
        own, place = Bundle.open(name), folder / f"{number}"
        place.mkdir()
        made = [lowered(own, rung, paths, place) for rung in precisions or [own.manifest.model.precision]]
        chosen = [_resolved(runtime, own, settings.threads) if precisions else runtime for runtime in runtimes]
        plain += [(name, bundle, None if bundle is own else HOW, chosen) for bundle in made]
    with ExitStack() as stack:
        subjects: list[Subject] = []
        for name, bundle, derived, chosen in plain:
            for runtime in chosen:
                detector = Detector(bundle.path, runtime, settings.threads, batch_size=settings.batch_size)
                stack.callback(detector.close)
                # With the build profile, which makes two of one runtime.
                ran = runtime if ":" in runtime else detector.runtime
                subjects.append(Subject(_about(name, bundles, bundle, ran, derived), detector))
        names = [subject.about.name for subject in subjects]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise UsageError(f"{twice} would be measured twice; name each bundle, runtime and precision once")
        yield subjects


def _resolved(runtime: str, bundle: Bundle, threads: int | None) -> str:
    """What "auto" means for the bundle itself: of what is lowered from it nothing has been verified."""
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
        name=label, bundle=name, bundle_id=bundle.bundle_id, runtime=runtime, precision=precision, derived=derived
    )


LADDER: tuple[Precision, ...] = ("fp32", "fp16", "int8")
HOW = "lowered here from the bundle's fp32 graph; int8 took its ranges from these images; the bank stays fp32's"
_RANGES = 64


def lowered(bundle: Bundle, precision: str, paths: Sequence[Path], folder: Path) -> Bundle:
    """The bundle itself where it has this precision, else one written below the folder, which exists.

    Its bank keeps the fp32 graph's signatures, so that a drift common to images and bank counts in full, as it does for
    mdmf_deploy.tasks.verify. It has no calibration: nothing has verified this graph.
    paths: readable images, to take int8's ranges from.
    Raises UsageError for an unknown precision, or one that this bundle cannot be lowered to.
    """
    own = bundle.manifest.model.precision
    if precision == own:
        return bundle
    chosen = next((rung for rung in LADDER if rung == precision), None)
    if chosen is None:
        raise UsageError(f"--precision {precision}: not known; choose from {', '.join(LADDER)}")
    if own != "fp32":
        raise UsageError(
            f"--precision {precision}: {bundle.path} is {own}, and what rounding took does not come back; "
            "only an fp32 graph can be lowered: give the bundle exported with --precision fp32"
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


def _write_graph(bundle: Bundle, precision: Precision, paths: Sequence[Path], graph: Path) -> None:
    if precision == "fp16":
        from mdmf_deploy.tasks.export.precision import to_fp16

        to_fp16(bundle.model_path, graph)
        return
    from mdmf_deploy.tasks.export.int8 import quantise
    from mdmf_deploy.tasks.export.precision import save_graph

    preprocessing = bundle.manifest.preprocessing
    crops = [
        images.center_crop(images.decode(images.read(path)).pixels, preprocessing.crop).pixels
        for path in paths[:_RANGES]
    ]
    save_graph(quantise(bundle.model_path, images.normalise(np.concatenate(crops), preprocessing)), graph, precision)
