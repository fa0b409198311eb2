"""The repository's README.md: how to serve it, what to send, what comes back, and what it is worth."""

from __future__ import annotations

import msgspec

import mdmf_deploy
from mdmf_deploy.bundle.calibration import Calibration
from mdmf_deploy.bundle.manifest import Manifest
from mdmf_deploy.runtime.building.plans import PlanCard
from mdmf_deploy.tasks.triton.serving import Serving

_PLAN = (
    "a plan by TensorRT {version} for {gpu}, compute capability {compute_capability}: use a Triton with that version"
)

_TEXT = """# {name}

A Triton model repository of an MDMF detector of AI-generated images, written by mdmf-deploy {version} from the bundle
`{bundle_id}`. In this folder:

```sh
docker run --rm {options}-p 8000:8000 -p 8001:8001 -v "$PWD:/models:ro" \\
    nvcr.io/nvidia/tritonserver:<version>-py3 tritonserver --model-repository=/models
```

`--model-repository` may be given several times, beside models of your own. Clients call `{name}`, which chains
`{name}_preprocessing`, `{name}_signatures`
({engine}), and `{name}_mmd`
(the reduction, with the bank of real photographs inside).

## What to send

`crops`, UINT8, [batch, {crop}, {crop}, 3]: RGB as a decoder gives it, at most {max_batch} a request. A crop is the
central square of {crop} pixels at the image's own scale, after EXIF rotation and **never resized**; a smaller image is
mirrored at its edges.

```python
import numpy as np
import tritonclient.http
from PIL import Image, ImageOps


def central(side, size={crop}):
    period = max(2 * side - 2, 1)
    at = (np.arange(size) + (side - size) // 2) % period
    return np.minimum(at, period - at)


def crop(path):
    pixels = np.asarray(ImageOps.exif_transpose(Image.open(path)).convert("RGB"))
    return pixels[central(pixels.shape[0])][:, central(pixels.shape[1])]


def detect(paths, url="localhost:8000"):
    crops = np.stack([crop(path) for path in paths])
    sent = tritonclient.http.InferInput("crops", crops.shape, "UINT8")
    sent.set_data_from_numpy(crops)
    answer = tritonclient.http.InferenceServerClient(url).infer("{name}", [sent])
    return {{name: answer.as_numpy(name) for name in ({outputs})}}
```

Other decoders, and reduced decoding of JPEGs, give other pixels, which moves scores. The bundle's bank was decoded with
{decoder}.
The lines above do for photographs; transparency (laid over white), CMYK, 16 bits and damaged files are decoded as
`mdmf detect` does it by `mdmf_deploy.images.decode`: `center_crop(decode(read(path)).pixels, {crop}).pixels[0]`.

## What comes back

| output | type | holds |
|---|---|---|
| `score` | FP64 [batch, 1] | squared MMD, how unlike the bank's photographs it is; NaN: no verdict |
| `contributions` | FP32 [batch, {patches}] | each patch's share, by rows of {pool} patches; their mean is the score |
{p_value_row}
{verdicts}

What is said here of the bundle is also in the `parameters` of `/v2/models/{name}/config`.
"""

_P_VALUE_ROW = "| `p_value` | FP64 [batch, 1] | how rarely a real photograph scores as high; NaN where the score is |\n"

_VERDICTS = """An image is `generated` if `p_value` is at most {fpr:g} ({threshold}), `uncertain` up to
{review:g}, else `real`, which means "not told apart from real photographs". These rates come from {count} real
photographs and hold for photographs like those, on {runtime} {precision}, which `mdmf verify` has passed{version}.
They say nothing of other photographs: calibrate with your own, and write this repository again."""

_WITHHELD = """There are no p-values, no threshold, and so no verdicts: {caveat}."""

_INT8 = """

Versions of ONNX Runtime round int8 in different places, so that scores move a little: best serve with the version that
was verified. On x86 the CPU must have VNNI (AVX-512 VNNI or AVX-VNNI): elsewhere ONNX Runtime cuts off int8 sums, and
Triton has no option to tell it not to."""


def readme(
    name: str,
    manifest: Manifest,
    serving: Serving,
    plan: PlanCard | None,
    calibration: Calibration | None,
    caveat: str | None,
) -> str:
    """plan: what signs crops, if not the bundle's graph.

    calibration: one that holds there; if None, caveat says why.
    """
    model = manifest.model
    if calibration is None:
        verdicts = _WITHHELD.format(caveat=caveat)
    else:
        decides = calibration.thresholds[0].score
        verdicts = _VERDICTS.format(
            fpr=calibration.fpr,
            threshold="which too few of them allow"
            if decides is None
            else f"that is, if `score` exceeds {decides:.6g}",
            review=calibration.review,
            count=len(calibration.scores),
            runtime=serving.runtime,
            precision=model.precision,
            version=_version(manifest, serving.runtime),
        )
    if serving.device == "cpu" and model.precision == "int8":
        verdicts += _INT8
    return _TEXT.format(
        name=name,
        bundle_id=manifest.bundle_id,
        version=mdmf_deploy.__version__,
        options="--gpus=all " if serving.device == "gpu" else "",
        engine=_PLAN.format_map(msgspec.structs.asdict(plan.key)) if plan else "the bundle's graph, byte for byte",
        crop=manifest.preprocessing.crop,
        max_batch=serving.max_batch,
        outputs='"score", "contributions"' + (', "p_value"' if calibration else ""),
        decoder=manifest.provenance.decoder,
        patches=model.pool**2,
        pool=model.pool,
        p_value_row=_P_VALUE_ROW if calibration else "",
        verdicts=verdicts,
    )


def _version(manifest: Manifest, runtime: str) -> str:
    for record in reversed(manifest.verification):
        if (record.runtime, record.precision) == (runtime, manifest.model.precision) and runtime in record.environment:
            return f" in version {record.environment[runtime]}"
    return ""
