"""Time files to rows on a GPU, stage by stage, for ViT-S, B and L with random weights.

Speed does not depend on the weights. Engines: PyTorch in fp16 if it is installed, and every GPU runtime of this
package. A runtime that does not open here is listed with the reason.
"""

from __future__ import annotations

import io
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from inputs import bank_of
from numpy.typing import NDArray

from mdmf_deploy.bundle.bank import Bank
from mdmf_deploy.bundle.recipe import Recipe, load_recipe
from mdmf_deploy.detection.feed import prepare
from mdmf_deploy.detection.on_gpu import Fused
from mdmf_deploy.detection.pipeline import extract_batches
from mdmf_deploy.errors import MdmfError
from mdmf_deploy.images.decode import ReadLimits
from mdmf_deploy.mmd.cuda.reduction import CudaReduction
from mdmf_deploy.runtime import installed, open_engine, stays_on_device

RECIPES = ("dinov2_vits14", "dinov2_vitb14", "dinov2_vitl14")
RUNTIMES = ("tensorrt", "rtx", "ort-tensorrt", "cuda")
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


class TorchEngine:
    """PyTorch in fp16. Signatures stay on the GPU."""

    name, precision = "pytorch", "fp16"

    def __init__(self, detector: Any) -> None:
        import torch

        self._torch = torch
        self._detector = detector.cuda().half().eval()

    def __call__(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        result: NDArray[np.float32] = self.on_device(images).cpu().numpy()
        return result

    def on_device(self, images: NDArray[np.float32]) -> Any:
        torch = self._torch
        with torch.inference_mode():
            pinned = torch.from_numpy(images).pin_memory()
            return self._detector(pinned.to("cuda", non_blocking=True).half()).float().contiguous()

    def close(self) -> None:
        del self._detector


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
    folder = tempfile.TemporaryDirectory(prefix="mdmf-gpu-")
    exported: dict[str, Any] = {}

    def bundle(precision: str) -> Any:
        if precision not in exported:
            from mdmf_deploy.tasks.export.export import export_detector

            paths = [Path(folder.name) / f"{n}.png" for n in range(8)]
            for n, path in enumerate(paths):
                path.write_bytes(photographs(1, seed=n, kind="PNG")[0])
            out = Path(folder.name) / f"{recipe.name}-{precision}.mdmf"
            exported[precision] = export_detector(model, recipe, paths, out, precision).bundle
        return exported[precision]

    here = installed()
    for runtime in RUNTIMES:
        if runtime in here:
            yield f"{runtime}, fp16", lambda runtime=runtime: open_engine(runtime, bundle("fp16"))
        else:
            yield f"{runtime}, fp16", lambda runtime=runtime: _refuse(f"{runtime} is not installed")
    yield "PyTorch, fp16", lambda: TorchEngine(model)
    folder.cleanup()


def stages(name: str, engine: Any, recipe: Recipe, bank: Bank, files: list[bytes], batch: int) -> Stages:
    """Time one engine on encoded images."""
    ready = [prepare(n, data, recipe.preprocessing, 1, ReadLimits()) for n, data in enumerate(files[:batch])]
    tensors = np.concatenate([prepared.tensor for prepared in ready if prepared.tensor is not None])
    decode = _seconds(lambda: prepare(0, files[0], recipe.preprocessing, 1, ReadLimits()))
    reduction = CudaReduction()
    try:
        if not stays_on_device(engine):
            return Stages(name, engine.name, missing="it does not leave signatures on the GPU")
        fused = Fused(engine, reduction, bank)
        batches = [fused(tensors).score(0) for _ in range(8)][3:]
        timed = Stages(
            name,
            f"{engine.name}, {engine.precision}",
            1e3 * decode,
            float(np.median([one.ms_engine for one in batches])),
            float(np.median([one.ms_mmd for one in batches])),
        )

        def everything() -> None:
            extracting = extract_batches(files, engine, recipe.preprocessing, batch_size=batch, fused=fused)
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


def photographs(count: int, seed: int = 0, kind: str = "JPEG") -> list[bytes]:
    """Encode noise with a photograph's spectrum, SIDE pixels a side. Eight distinct images are repeated."""
    from PIL import Image

    generator = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(SIDE)[:, None], np.fft.fftfreq(SIDE)[None])
    made = []
    for _ in range(min(count, 8)):
        spectrum = np.fft.fft2(generator.standard_normal((3, SIDE, SIDE))) / np.maximum(frequency, 1 / SIDE) ** 1.2
        levels = np.fft.ifft2(spectrum).real
        levels = 128 + 40 * levels / levels.std()
        buffer = io.BytesIO()
        Image.fromarray(np.clip(levels, 0, 255).astype(np.uint8).transpose(1, 2, 0)).save(buffer, kind)
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
