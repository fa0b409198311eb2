"""Time files to rows on a GPU, stage by stage, for ViT-S, B and L with random weights.

Speed does not depend on the weights. Engines: every GPU runtime of this package, in fp16. A runtime that does not open
here is listed with the reason.
"""

from __future__ import annotations

import io
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from inputs import bank_of

from mdmf_deploy.bundle.bank import Bank
from mdmf_deploy.bundle.bundle import Bundle, write_bundle
from mdmf_deploy.bundle.manifest import BANK, MODEL, Manifest, ModelCard, Provenance
from mdmf_deploy.bundle.recipe import Recipe, load_recipe
from mdmf_deploy.detection.feed import prepare
from mdmf_deploy.detection.on_gpu import Fused
from mdmf_deploy.detection.pipeline import extract_batches
from mdmf_deploy.errors import MdmfError
from mdmf_deploy.images.decode import ReadLimits
from mdmf_deploy.mmd.cuda.reduction import CudaReduction
from mdmf_deploy.mmd.reference import bank_self_term
from mdmf_deploy.runtime import installed, open_engine, stays_on_device

RECIPES = ("dinov2_vits14", "dinov2_vitb14", "dinov2_vitl14")
RUNTIMES = ("torch-cuda", "tensorrt", "rtx", "ort-tensorrt", "cuda")
# Its batches are as large as those measured.
PROFILE = "throughput"
SIDE = 640  # of the photographs, in pixels


@dataclass(frozen=True, slots=True)
class Stages:
    """One model on one engine.

    decode, signatures, reduction: milliseconds an image, each stage alone.
    images_per_second: all stages together.
    missing: the reason why there are no figures.
    """

    model: str
    engine: str
    decode: float = 0.0
    signatures: float = 0.0
    reduction: float = 0.0
    images_per_second: float = 0.0
    missing: str | None = None


def measure(points: int, batch: int, images: int) -> Iterator[Stages]:
    """Yield the figures of every model on every engine."""
    try:
        import torch

        from mdmf_deploy.model.pfs import MdmfModel as Model
    except ImportError as error:
        yield from (Stages(name, "all", missing=f"{error.name} is not installed") for name in RECIPES)
        return
    files = photographs(images)
    for name in RECIPES:
        recipe = load_recipe(name)
        torch.manual_seed(0)
        model = Model(recipe)
        bank = bank_of(
            np.random.default_rng(0).standard_normal((points, recipe.head.signature), np.float32),
            (2.0 * recipe.head.signature) ** 0.5,
        )
        for engine, make in engines(model, recipe):
            try:
                opened = make()
            # The table gives the reason, whatever it is.
            except Exception as error:
                yield Stages(name, engine, missing=_first_line(error))
                continue
            with closing(opened):
                yield stages(name, opened, recipe, bank, files, batch)


def engines(model: Any, recipe: Recipe) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Yield the name of every engine and a function that opens it."""
    with tempfile.TemporaryDirectory(prefix="mdmf-gpu-") as folder:
        exported: list[Bundle] = []

        def opened(runtime: str) -> Any:
            if not exported:
                exported.append(random_bundle(model, recipe, Path(folder) / f"{recipe.name}.mdmf"))
            return open_engine(f"{runtime}:{PROFILE}", exported[0])

        here = installed()
        for runtime in RUNTIMES:
            if runtime in here:
                yield f"{runtime}, fp16", partial(opened, runtime)
            else:
                yield f"{runtime}, fp16", partial(_refuse, f"{runtime} is not installed")


def random_bundle(model: Any, recipe: Recipe, destination: Path, points: int = 4096) -> Bundle:
    """Write an fp16 bundle of a model with random weights, which cannot be used afterwards.

    The bank is drawn around the signatures of a few photographs. Nothing is verified.
    """
    import torch

    from mdmf_deploy.tasks.export.precision import to_fp16
    from mdmf_deploy.tasks.export.trace import trace

    prepared = [prepare(n, data, recipe.preprocessing, 1, ReadLimits()) for n, data in enumerate(photographs(4))]
    with torch.inference_mode():
        tensors = np.concatenate([one.tensor for one in prepared if one.tensor is not None])
        few = model.eval()(torch.from_numpy(tensors)).flatten(0, 1)
    sigma = float(torch.pdist(few).median())
    draw = np.random.default_rng(0).standard_normal((points, few.shape[1]), np.float32)
    card = ModelCard(
        backbone=recipe.backbone.architecture,
        pool=recipe.head.pool,
        signature=recipe.head.signature,
        sigma=sigma,
        precision="fp16",
        opset=recipe.export.opset,
    )
    origin = Provenance(recipe=recipe.name, checkpoint_sha256="", tool="benchmark", decoder="", libraries={})
    manifest = Manifest(
        name=recipe.name,
        model=card,
        preprocessing=recipe.preprocessing,
        provenance=origin,
        limits=recipe.verification,
    )
    graph = destination.with_suffix(".fp32") / MODEL
    graph.parent.mkdir()
    half = destination.with_suffix(".fp16") / MODEL
    half.parent.mkdir()
    to_fp16(trace(model, recipe, graph, {}), half)
    files: dict[str, bytes | Path] = {path.name: path for path in half.parent.iterdir()}
    hashed = write_bundle(destination, manifest, files).manifest
    bank = bank_of(draw * few.std(0).numpy() + few.mean(0).numpy(), sigma)
    few = bank.signatures[:4096]
    term = bank_self_term(few, np.full(len(few), 1 / len(few)), sigma)  # near enough, and opening a bundle checks it
    files[BANK] = replace(bank, self_term=term, model_sha256=hashed.model_sha256).to_bytes()
    return write_bundle(destination, manifest, files)


def stages(name: str, engine: Any, recipe: Recipe, bank: Bank, files: list[bytes], batch: int) -> Stages:
    """Time one engine on encoded images."""
    ready = [prepare(n, data, recipe.preprocessing, 1, ReadLimits()) for n, data in enumerate(files[:batch])]
    tensors = [prepared.tensor for prepared in ready if prepared.tensor is not None]
    decode = _seconds(lambda: prepare(0, files[0], recipe.preprocessing, 1, ReadLimits()))
    reduction = CudaReduction()
    try:
        if not stays_on_device(engine):
            return Stages(name, engine.name, missing="it does not leave signatures on the GPU")
        fused = Fused(engine, reduction, bank)
        together = [np.concatenate(tensors)]
        batches = [fused(together, [len(tensor) for tensor in tensors]).score(0) for _ in range(8)][3:]
        timed = Stages(
            name,
            f"{engine.name}, {engine.precision}",
            1e3 * decode,
            float(np.median([one.ms_engine for one in batches])),
            float(np.median([one.ms_mmd for one in batches])),
        )

        def everything() -> None:
            extracting = extract_batches(files, engine, recipe.preprocessing, batch_size=batch, crops=1, fused=fused)
            with closing(extracting):
                for extracted in extracting:
                    for one in extracted:
                        assert one.gpu_score is not None
                        one.gpu_score()

        return replace(timed, images_per_second=len(files) / _seconds(everything, 3))
    except MdmfError as error:
        return Stages(name, engine.name, missing=_first_line(error))
    finally:
        reduction.close()


def photographs(count: int, distinct: int = 8) -> list[bytes]:
    """Encode noise with a photograph's spectrum as JPEG, SIDE pixels a side. A few distinct images are repeated."""
    from PIL import Image

    generator = np.random.default_rng(0)
    frequency = np.hypot(np.fft.fftfreq(SIDE)[:, None], np.fft.fftfreq(SIDE)[None])
    made = []
    for _ in range(min(count, distinct)):
        spectrum = np.fft.fft2(generator.standard_normal((3, SIDE, SIDE))) / np.maximum(frequency, 1 / SIDE) ** 1.2
        levels = np.fft.ifft2(spectrum).real
        levels = 128 + 40 * levels / levels.std()
        buffer = io.BytesIO()
        Image.fromarray(np.clip(levels, 0, 255).astype(np.uint8).transpose(1, 2, 0)).save(buffer, "JPEG", quality=90)
        made.append(buffer.getvalue())
    return [made[n % len(made)] for n in range(count)]


def _seconds(work: Callable[[], object], rounds: int = 5) -> float:
    times = []
    for n in range(-1, rounds):
        start = time.perf_counter()
        work()
        if n >= 0:
            times.append(time.perf_counter() - start)
    return float(np.median(times))


def _refuse(reason: str) -> None:
    raise MdmfError(reason)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
