"""A bundle of lower precision, made for the benchmark alone from another bundle's fp32 graph (extra: export)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np

from mdmf_deploy.bundle.bundle import Bundle, write_bundle
from mdmf_deploy.bundle.manifest import BANK, MODEL, MODEL_DATA, FileEntry
from mdmf_deploy.bundle.recipe import Precision
from mdmf_deploy.errors import UsageError
from mdmf_deploy.images import decode as images

LADDER: tuple[Precision, ...] = ("fp32", "fp16", "int8")
HOW = "lowered here from the bundle's fp32 graph; int8 took its ranges from these images; the bank stays fp32's"
_RANGES = 64


def lowered(bundle: Bundle, precision: str, paths: Sequence[Path], folder: Path) -> Bundle:
    """The bundle itself where it has this precision, else one written below the folder, which exists.

    Its bank keeps the fp32 graph's signatures, so that a drift common to images and bank counts in full, as it does for
    mdmf_deploy.verifying. It has no calibration: nothing has verified this graph.
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
        from mdmf_deploy.quantising.fp16 import to_fp16

        to_fp16(bundle.model_path, graph)
        return
    from mdmf_deploy.quantising.int8 import quantise
    from mdmf_deploy.quantising.saving import save

    preprocessing = bundle.manifest.preprocessing
    crops = [
        images.center_crop(images.decode(images.read(path)).pixels, preprocessing.crop).pixels
        for path in paths[:_RANGES]
    ]
    save(quantise(bundle.model_path, images.normalise(np.concatenate(crops), preprocessing)), graph, precision)
