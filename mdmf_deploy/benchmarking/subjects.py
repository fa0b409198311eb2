"""The configurations that are compared, opened: bundles x runtimes x precisions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from mdmf_deploy.benchmarking.lowering import HOW, lowered
from mdmf_deploy.benchmarking.results import Configuration, Settings
from mdmf_deploy.bundle.bundle import Bundle
from mdmf_deploy.detection.detector import Detector
from mdmf_deploy.errors import UsageError
from mdmf_deploy.runtime import open_engine


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
