"""Settings of a run that nobody started."""

from __future__ import annotations

from mdmf_deploy.detection.settings import RunSettings

SETTINGS = RunSettings(
    tool="1",
    bundle_id="b" * 64,
    calibration_id="c" * 64,
    runtime="onnxruntime",
    precision="fp32",
    verdicts=True,
    crops=1,
    frames=10,
    each_frame=False,
    max_pixels=9,
    max_memory=9,
    max_seconds=9.0,
)
