"""How to open a detector like another one, in another process."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mdmf_deploy.errors import BundleError
from mdmf_deploy.images.decode import ReadLimits

if TYPE_CHECKING:
    from mdmf_deploy.detection.detector import Detector


@dataclass(frozen=True, slots=True, kw_only=True)
class DetectorSpec:
    """How to open a detector like another one. It can be pickled, so that a worker process can open its own.

    bundle: an absolute path, or the name of a bundle shipped in the package.
    bundle_id, calibration_id: of the bundle when the first detector opened it.
    The other fields are arguments of Detector, with "auto" and defaults resolved. threads stays None for one per core,
    so that it is one per core of the worker's machine.
    """

    bundle: str
    bundle_id: str
    calibration_id: str | None
    runtime: str
    threads: int | None
    batch_size: int
    crops: int
    limits: ReadLimits
    reduction: str
    frames: int | None

    def open(self) -> Detector:
        """Open a detector that gives the same rows.

        Raises BundleError if the bundle or its calibration has changed, and otherwise as Detector does.
        """
        from mdmf_deploy.detection.detector import Detector

        detector = Detector(
            self.bundle,
            self.runtime,
            self.threads,
            batch_size=self.batch_size,
            crops=self.crops,
            limits=self.limits,
            reduction=self.reduction,
            frames=self.frames,
        )
        for name in ("bundle_id", "calibration_id"):
            found, wanted = getattr(detector.bundle, name), getattr(self, name)
            if found != wanted:
                detector.close()
                raise BundleError(
                    f"{detector.bundle.path}: {name} is {_short(found)}, and {_short(wanted)} in the spec; give every "
                    "worker the same bundle"
                )
        return detector


def _short(identity: str | None) -> str:
    return "none" if identity is None else identity[:12]
