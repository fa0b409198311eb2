"""Trying the rungs of the precision ladder on one traced model, each with a bank of its own and a gate."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from mdmf_deploy.bundle.bank import Bank
from mdmf_deploy.bundle.bundle import Bundle
from mdmf_deploy.bundle.manifest import MODEL, MODEL_DATA, FileEntry, Manifest, Verification
from mdmf_deploy.bundle.recipe import Precision, Preprocessing
from mdmf_deploy.errors import ImageError, QuantisationError
from mdmf_deploy.images import decode as images
from mdmf_deploy.mmd.cpu import CpuReduction
from mdmf_deploy.runtime import Engine, images_per_second, open_engine
from mdmf_deploy.runtime.ort import OrtEngine
from mdmf_deploy.tasks.bank.build import BankReport, build_bank
from mdmf_deploy.tasks.export.fp16 import to_fp16
from mdmf_deploy.tasks.export.int8 import quantise
from mdmf_deploy.tasks.export.restore import Restorable
from mdmf_deploy.tasks.verify import compare, signatures_by_hash

_FATAL = OrtEngine.name
# Real images to take activation ranges from: with 64 of them, unlike images exceeded the ranges.
# And as many of them to rank layers with.
_RANGE_IMAGES = 256
_RANK_IMAGES = 16
_SHOWN = 6


@dataclass(frozen=True, slots=True)
class Trial:
    """One graph, its manifest without records, the bank it made, and the gate's answer on ONNX Runtime."""

    graph: Path
    manifest: Manifest
    bank: BankReport
    verification: Verification


class Trials:
    """Rungs of one model: fp32 is its traced graph, in a folder of its own beside which the other graphs are written.

    draft: the fp32 graph's manifest, without files.  banked, held: real images for the bank, and to verify on.
    source: what the model's source made of the latter, by content hash.
    """

    def __init__(
        self,
        fp32: Path,
        draft: Manifest,
        banked: Sequence[Path],
        held: Sequence[Path],
        source: Mapping[str, NDArray[np.float32]],
        max_signatures: int,
        log: Callable[[str], None],
    ) -> None:
        self._fp32, self._draft, self._banked, self._held = fp32, draft, banked, held
        self._source, self._max_signatures, self._log = source, max_signatures, log
        self._base: Trial | None = None
        self._missed: tuple[str, ...] = ()

    def attempt(self, rung: Precision) -> Trial:
        """Lower, sign the bank, and hold against the source.

        Raises QuantisationError if int8 is not worth having: too many layers would have to stay in fp32.
        """
        if rung == "int8":
            return self._int8()
        if rung == "fp16":
            return self._try(to_fp16(self._fp32, self._folder("fp16") / MODEL), self._card("fp16"))
        if self._base is None:
            self._base = self._try(self._fp32, self._draft)
        return self._base

    def verify_everywhere(self, trial: Trial, runtimes: Sequence[str]) -> tuple[Verification, ...]:
        """The trial's own record and one for every other runtime that can be opened and run, with their speeds."""
        bundle = Bundle(trial.graph.parent, trial.manifest)
        records = [trial.verification]
        with ExitStack() as stack:
            engines = [stack.enter_context(closing(open_engine(_FATAL, bundle)))]
            for name in runtimes:
                if name == _FATAL:
                    continue
                self._log(f"verifying on {name}")
                try:
                    engine = stack.enter_context(closing(open_engine(name, bundle)))
                    record = self._gate(engine, trial.manifest, trial.bank.bank)
                # Runtimes share no exceptions, and none of them may cost what has passed on the one that must.
                except Exception as error:
                    self._log(f"{name}: not verified, {' '.join(str(error).split())}")
                    continue
                engines.append(engine)
                records.append(record)
                if not record.passed:
                    self._log(f"{name}: refused, {'; '.join(record.reasons)}")
            rates = images_per_second(engines, trial.manifest.preprocessing.crop)
        return tuple(
            msgspec.structs.replace(record, images_per_second=rate) for record, rate in zip(records, rates, strict=True)
        )

    def _try(self, graph: Path, manifest: Manifest) -> Trial:
        rung = manifest.model.precision
        entries = {}
        for name in (MODEL, MODEL_DATA):
            path = graph.parent / name
            if path.exists():
                entries[name] = FileEntry.of(path)
        manifest = msgspec.structs.replace(manifest, files=entries)
        self._log(f"{rung}: signing {len(self._banked)} bank images and {len(self._held)} held-back ones")
        with closing(OrtEngine(Bundle(graph.parent, manifest))) as engine:
            report = build_bank(manifest, engine, self._banked, self._max_signatures)
            verification = self._gate(engine, manifest, report.bank)
        return Trial(graph, manifest, report, verification)

    def _gate(self, engine: Engine, manifest: Manifest, bank: Bank) -> Verification:
        exported = signatures_by_hash(self._held, engine, manifest.preprocessing)
        chosen = "; the layers in fp32 were chosen on them" if manifest.model.kept else ""
        return compare(
            np.stack(list(self._source.values())),
            np.stack([exported[sha256] for sha256 in self._source]),
            bank,
            manifest.limits,
            engine,
            reference=f"PyTorch, {len(self._source)} real images held back from the bank{chosen}",
        )

    def _int8(self) -> Trial:
        base = self.attempt("fp32")
        if not base.verification.passed:
            raise QuantisationError("the fp32 graph that it is made from misses the limits")
        crops = center_crops(self._banked[:_RANGE_IMAGES], self._draft.preprocessing)
        self._log(f"int8: quantising by NNCF, on {len(crops)} images")
        graphs = Restorable(self._fp32, quantise(self._fp32, crops), self._folder("int8-variants"))
        most = most_worth_keeping(len(graphs.layers))
        order: list[str] = []
        kept = 0
        if not self._passes(graphs, (), base.bank.bank):
            order = self._rank(graphs, crops[:_RANK_IMAGES], base.bank.bank)
            found = fewest(order, lambda kept: self._passes(graphs, kept, base.bank.bank), most)
            if found is None:
                raise QuantisationError(
                    f"more than half of its {len(graphs.layers)} layers would have to stay in fp32; with {most} it "
                    f"misses {'; '.join(self._missed)}"
                )
            kept = len(found)
        folder = self._folder("int8")
        while True:
            # The search judged against fp32's bank, which is at hand; the bundle's is made by the graph itself.
            trial = self._try(graphs.save(order[:kept], folder / MODEL), self._card("int8", tuple(order[:kept])))
            if trial.verification.passed or kept >= most:
                return trial
            self._log(f"int8: {kept} layers in fp32 are too few against its own bank")
            order = order or self._rank(graphs, crops[:_RANK_IMAGES], base.bank.bank)
            kept = min(most, max(kept + 1, 3 * kept // 2))

    def _passes(self, graphs: Restorable, kept: Sequence[str], bank: Bank) -> bool:
        gate = self._gate_variant(graphs, kept, bank)
        names = ", ".join([*kept[:_SHOWN], *(["..."] if len(kept) > _SHOWN else [])])
        said, self._missed = ("passes" if gate.passed else "; ".join(gate.reasons)), gate.reasons
        self._log(f"int8: {len(kept)} of {len(graphs.layers)} layers in fp32{f' ({names})' if names else ''}: {said}")
        return gate.passed

    def _gate_variant(self, graphs: Restorable, kept: Sequence[str], bank: Bank) -> Verification:
        with closing(self._open(graphs, kept)) as engine:
            return self._gate(engine, self._draft, bank)

    def _rank(self, graphs: Restorable, crops: NDArray[np.float32], bank: Bank) -> list[str]:
        self._log(f"int8: ranking {len(graphs.layers)} layers by the error that each causes alone")
        reduction = CpuReduction()

        def scores(kept: Sequence[str]) -> NDArray[np.float64]:
            with closing(self._open(graphs, kept)) as engine:
                return reduction(engine(crops), bank).mmd2

        exact = scores(graphs.layers)

        def error(layer: str) -> float:
            change = scores([other for other in graphs.layers if other != layer]) - exact
            return float(np.sqrt(np.mean(change**2)))

        return rank(graphs.layers, error)

    def _open(self, graphs: Restorable, kept: Sequence[str]) -> Engine:
        return OrtEngine(Bundle(graphs.variant(kept, MODEL).parent, self._card("int8")))

    def _card(self, precision: Precision, kept: tuple[str, ...] = ()) -> Manifest:
        model = msgspec.structs.replace(self._draft.model, precision=precision, kept=kept)
        return msgspec.structs.replace(self._draft, model=model)

    def _folder(self, name: str) -> Path:
        path = self._fp32.parent.parent / name
        path.mkdir(exist_ok=True)
        return path


def center_crops(paths: Sequence[Path], preprocessing: Preprocessing) -> NDArray[np.float32]:
    """(n, 3, crop, crop), normalised: the readable ones' centre crops."""
    crops = []
    for path in paths:
        try:
            crops.append(images.center_crop(images.decode(images.read(path)).pixels, preprocessing.crop).pixels)
        except ImageError:
            continue
    return images.normalise(np.concatenate(crops), preprocessing)


# With more of its layers in fp32 than this an int8 graph is hardly faster than fp32, and still less exact.
WORTH = 0.5


def most_worth_keeping(layers: int) -> int:
    """How many of so many layers may stay in fp32 for an int8 graph to be worth having."""
    return int(WORTH * layers)


def rank(layers: Sequence[str], error: Callable[[str], float]) -> list[str]:
    """Layers by the error that quantising each of them alone causes, the worst first.

    error: called once a layer; what is not a number counts as the worst.
    """
    errors = {layer: error(layer) for layer in layers}
    return sorted(layers, key=lambda layer: -errors[layer] if errors[layer] == errors[layer] else -float("inf"))


def fewest(order: Sequence[str], passes: Callable[[Sequence[str]], bool], most: int) -> Sequence[str] | None:
    """The shortest beginning of the order that passes, of at least 1 and at most `most` layers; None if none does.

    passes: tried at 1, 2, 4, ... layers and at most, then by bisection below the first that passes: about
    2 log2(most) calls.  Where a longer beginning fails again (one score beside the threshold), what is found passes,
    but a shorter one might have been overlooked.
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
