"""The precision ladder: build a candidate for each rung from one traced model, and judge it by its own bank.

The int8 rung may keep some layers in fp32. A search finds as few as pass the gate.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from mdmf_deploy.bundle.bank import Bank
from mdmf_deploy.bundle.bundle import Bundle
from mdmf_deploy.bundle.graph import check_graph
from mdmf_deploy.bundle.manifest import MODEL, MODEL_DATA, FileEntry, Manifest, Refusal, Verification
from mdmf_deploy.bundle.recipe import Precision, Preprocessing
from mdmf_deploy.errors import ImageError, QuantisationError
from mdmf_deploy.images.crops import center_crop, normalise
from mdmf_deploy.images.decode import decode, read
from mdmf_deploy.mmd.cpu import CpuReduction
from mdmf_deploy.runtime import Engine
from mdmf_deploy.runtime.ort import OrtEngine
from mdmf_deploy.tasks.bank.build import BankReport, build_bank
from mdmf_deploy.tasks.export.int8 import Restorable, quantise
from mdmf_deploy.tasks.export.precision import to_fp16
from mdmf_deploy.tasks.verify import Gate, SourceSignatures

# Real images that give int8 its activation ranges. With 64 of them, unusual images exceeded the ranges.
_RANGE_IMAGES = 256
# Real images that layers are ranked by.
_RANK_IMAGES = 16
# Layer names shown in one log line.
_SHOWN = 6
# An int8 graph with more of its layers in fp32 is hardly faster than fp32, and still less exact.
MAX_KEPT_SHARE = 0.5

Log = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A graph for the bundle, its manifest without records, its bank, and the gate's verdict on ONNX Runtime."""

    graph: Path
    manifest: Manifest
    bank: BankReport
    verification: Verification


@dataclass
class Ladder:
    """The rungs of one traced model.

    graph: the fp32 graph, in a folder of its own. The other graphs are written beside that folder.
    draft: the fp32 graph's manifest, without files.
    banked: real images for the bank. They also give int8 its ranges.
    held: real images held back from the bank, with the signatures that PyTorch extracted.
    max_signatures: a larger bank is thinned to this many. 0 keeps all.
    quantise: makes the int8 graph of an fp32 graph and normalised crops.
    """

    graph: Path
    draft: Manifest
    banked: Sequence[Path]
    held: SourceSignatures
    max_signatures: int = 0
    log: Log = lambda text: None
    quantise: Callable[[Path, NDArray[np.float32]], ModelProto] = quantise

    def climb(self, rungs: Sequence[Precision]) -> tuple[Candidate | None, tuple[Refusal, ...]]:
        """Return the first candidate that passes the gate, or None, and the refusals before it."""
        refused: list[Refusal] = []
        for rung in rungs:
            try:
                candidate = self.candidate(rung)
            except QuantisationError as error:
                reason = str(error)
            else:
                if candidate.verification.passed:
                    self.log(f"{rung}: passed")
                    return candidate, tuple(refused)
                reason = "; ".join(candidate.verification.reasons)
            refused.append(Refusal(precision=rung, reason=reason))
            self.log(f"{rung}: refused, {reason}")
        return None, tuple(refused)

    def candidate(self, rung: Precision) -> Candidate:
        """Lower the graph to a rung, extract its bank, and judge it.

        Raises QuantisationError for int8 if fp32 itself misses the limits, or if so many layers would have to stay in
        fp32 that int8 is not worth having.
        """
        if rung == "int8":
            return self._int8()
        if rung == "fp16":
            return self._judged(to_fp16(self.graph, self._folder("fp16") / MODEL), self._manifest("fp16"))
        return self._fp32

    @cached_property
    def _fp32(self) -> Candidate:
        return self._judged(self.graph, self.draft)

    def _int8(self) -> Candidate:
        if not self._fp32.verification.passed:
            raise QuantisationError("the fp32 graph that it is made from misses the limits")
        crops = center_crops(self.banked[:_RANGE_IMAGES], self.draft.preprocessing)
        self.log(f"int8: quantising by NNCF, on {len(crops)} images")
        graphs = Restorable(self.graph, self.quantise(self.graph, crops), self._folder("int8-variants"))
        # The search judges against fp32's bank, which is at hand. The bundle's bank is made by the graph itself.
        bank = self._fp32.bank.bank
        search = LayerSearch(graphs, self._manifest("int8"), bank, crops[:_RANK_IMAGES], self.judge, self.log)
        kept = search.first_to_pass()
        while True:
            graph = graphs.save(kept, self._folder("int8") / MODEL)
            candidate = self._judged(graph, self._manifest("int8", tuple(kept)))
            if candidate.verification.passed or len(kept) >= search.most:
                return candidate
            self.log(f"int8: {len(kept)} layers in fp32 are too few against its own bank")
            kept = search.more_than(kept)

    def _judged(self, graph: Path, manifest: Manifest) -> Candidate:
        """Complete the manifest, build the graph's bank, and judge the graph on ONNX Runtime."""
        files = {name: graph.with_name(name) for name in (MODEL, MODEL_DATA) if graph.with_name(name).exists()}
        manifest = msgspec.structs.replace(manifest, files={name: FileEntry.of(path) for name, path in files.items()})
        # Other versions of PyTorch may write operators that no bundle may hold.
        check_graph(graph.read_bytes(), manifest, str(graph))
        self.log(
            f"{manifest.model.precision}: extracting signatures of {len(self.banked)} bank images and "
            f"{len(self.held.paths)} held-back ones"
        )
        with closing(OrtEngine(Bundle(graph.parent, manifest))) as engine:
            report = build_bank(manifest, engine, self.banked, self.max_signatures)
            return Candidate(graph, manifest, report, self.judge(engine, manifest, report.bank))

    def judge(self, engine: Engine, manifest: Manifest, bank: Bank) -> Verification:
        """Hold an engine against PyTorch on the images held back."""
        chosen = "; the layers in fp32 were chosen on them" if manifest.model.kept else ""
        reference = f"PyTorch, {len(self.held.by_hash)} real images held back from the bank{chosen}"
        return self.held.judge(engine, manifest.preprocessing, Gate(bank, manifest.limits, reference))

    def _manifest(self, precision: Precision, kept: tuple[str, ...] = ()) -> Manifest:
        model = msgspec.structs.replace(self.draft.model, precision=precision, kept=kept)
        return msgspec.structs.replace(self.draft, model=model)

    def _folder(self, name: str) -> Path:
        path = self.graph.parent.parent / name
        path.mkdir(exist_ok=True)
        return path


@dataclass
class LayerSearch:
    """A search for the fewest layers that an int8 graph must keep in fp32.

    manifest: the int8 graph's.
    bank: that of the fp32 graph.
    crops: (n, 3, crop, crop) of real images, to rank layers by.
    judge: the gate, given an engine, its manifest and a bank.
    """

    graphs: Restorable
    manifest: Manifest
    bank: Bank
    crops: NDArray[np.float32]
    judge: Callable[[Engine, Manifest, Bank], Verification]
    log: Log
    _missed: tuple[str, ...] = field(default=(), init=False)

    @property
    def most(self) -> int:
        """The most layers that may stay in fp32."""
        return most_worth_keeping(len(self.graphs.layers))

    def first_to_pass(self) -> Sequence[str]:
        """Return the layers to keep: none if int8 passes without, else the fewest of the worst that pass.

        Raises QuantisationError if more than half of the layers would have to stay.
        """
        if self._passes(()):
            return ()
        kept = fewest(self._order, self._passes, self.most)
        if kept is None:
            raise QuantisationError(
                f"more than half of its {len(self.graphs.layers)} layers would have to stay in fp32; with {self.most} "
                f"it misses {'; '.join(self._missed)}"
            )
        return kept

    def more_than(self, kept: Sequence[str]) -> Sequence[str]:
        """Return half as many layers again, at least one more and at most `most`."""
        return self._order[: min(self.most, max(len(kept) + 1, 3 * len(kept) // 2))]

    @cached_property
    def _order(self) -> list[str]:
        self.log(f"int8: ranking {len(self.graphs.layers)} layers by the error that each causes alone")
        reduction = CpuReduction()

        def scores(kept: Sequence[str]) -> NDArray[np.float64]:
            with closing(self._open(kept)) as engine:
                return reduction(engine(self.crops), self.bank).mmd2

        exact = scores(self.graphs.layers)

        def error(layer: str) -> float:
            change = scores([other for other in self.graphs.layers if other != layer]) - exact
            return float(np.sqrt(np.mean(change**2)))

        return rank(self.graphs.layers, error)

    def _passes(self, kept: Sequence[str]) -> bool:
        with closing(self._open(kept)) as engine:
            verification = self.judge(engine, self.manifest, self.bank)
        self._missed = verification.reasons
        names = ", ".join([*kept[:_SHOWN], *(["..."] if len(kept) > _SHOWN else [])])
        self.log(
            f"int8: {len(kept)} of {len(self.graphs.layers)} layers in fp32{f' ({names})' if names else ''}: "
            f"{'passes' if verification.passed else '; '.join(verification.reasons)}"
        )
        return verification.passed

    def _open(self, kept: Sequence[str]) -> Engine:
        return OrtEngine(Bundle(self.graphs.variant(kept, MODEL).parent, self.manifest))


def most_worth_keeping(layers: int) -> int:
    """Return how many of the layers may stay in fp32 for an int8 graph to be worth having."""
    return int(MAX_KEPT_SHARE * layers)


def rank(layers: Sequence[str], error: Callable[[str], float]) -> list[str]:
    """Return the layers by the error that quantising each of them alone causes, the worst first.

    error: called once per layer. A NaN counts as the worst.
    """
    errors = {layer: error(layer) for layer in layers}
    return sorted(layers, key=lambda layer: -errors[layer] if errors[layer] == errors[layer] else -float("inf"))


def fewest(order: Sequence[str], passes: Callable[[Sequence[str]], bool], most: int) -> Sequence[str] | None:
    """Return the shortest beginning of the order that passes, of 1 to `most` layers, or None if none does.

    passes: tried at 1, 2, 4, ... layers and at `most`, then by bisection below the first that passes. That takes about
    2 log2(most) calls. If a longer beginning fails again (one score beside the threshold), the result still passes, but
    a shorter one may have been overlooked.
    """
    failed, size = 0, 1
    while size <= most and not passes(order[:size]):
        failed, size = size, most if size < most < 2 * size else 2 * size
    if size > most:
        return None
    while size - failed > 1:
        middle = (failed + size) // 2
        if passes(order[:middle]):
            size = middle
        else:
            failed = middle
    return order[:size]


def center_crops(paths: Sequence[Path], preprocessing: Preprocessing) -> NDArray[np.float32]:
    """Return the centre crops (n, 3, crop, crop), normalised, of the readable images among these."""
    crops = []
    for path in paths:
        try:
            crops.append(center_crop(decode(read(path)).pixels, preprocessing.crop).pixels)
        except ImageError:
            continue
    return normalise(np.concatenate(crops), preprocessing)
