"""Verify the runtimes that a command needs, on this machine and on the bundle's own probe images."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING

import msgspec

from mdmf_deploy.bundle.bundle import Bundle, hint
from mdmf_deploy.errors import GateFailed, RuntimeUnavailable
from mdmf_deploy.runtime import LAST, ON_GPU, images_per_second, open_engine, preference
from mdmf_deploy.tasks.verify import record, verify_probes

if TYPE_CHECKING:
    from mdmf_deploy.bundle.manifest import Verification
    from mdmf_deploy.runtime import Engine

Log = Callable[[str], None]


def open_verified(runtime: str, bundle: Bundle, log: Log) -> tuple[Engine, Bundle]:
    """Open a runtime for a bundle, and verify it first if verification does not cover it.

    "auto" opens a verified runtime if one works here. If none does, it verifies every runtime on the CPU that works,
    PyTorch only if there is no other, compares their speeds, and opens the one that "auto" takes from then on. A
    runtime on a GPU is verified only if it is asked for by name, because building its engine takes minutes.

    Returns the engine, and the bundle with the new records in its manifest. Nothing is written.
    Raises GateFailed, naming the figures, if no runtime passes. A recorded failure counts and is not measured again,
    because it may have been found on more than the probe images.
    """
    first = open_engine(runtime, bundle)
    if bundle.covers(first.name, first.precision):
        return first, bundle
    with ExitStack() as stack:
        stack.callback(first.close)
        engines, records = {first.name: first}, [_judged(first, bundle, log)]
        others = [name for name in preference(bundle) if name not in {first.name} | ON_GPU | LAST]
        for name in others if runtime == "auto" else ():
            if (other := _opened(name, bundle, log)) is not None:
                engines[name], judged = other
                stack.callback(engines[name].close)
                records.append(judged)
        passed = [one.runtime for one in records if one.passed]
        if not passed:
            failed = "; on ".join(f"{one.runtime} {one.precision}: {', '.join(one.reasons)}" for one in records)
            raise GateFailed(f"{bundle.path} on {failed}; nothing is written; give another --runtime")
        verified = _with_records(bundle, [engines[name] for name in passed], records)
        chosen = next(name for name in preference(verified) if name in passed) if runtime == "auto" else first.name
        stack.pop_all()
    for name, engine in engines.items():
        if name != chosen:
            engine.close()
    return engines[chosen], verified


def verify_again(old: Bundle, new: Bundle, log: Log) -> Bundle:
    """Verify the runtimes that a change of bank has cost their verification, and record the results in the new bundle.

    Runtimes on a GPU, and those that do not work here, are only named.
    """
    lost = [pair for pair in old.covered if pair not in new.covered]
    records = []
    for name, _ in lost:
        if name not in ON_GPU and (opened := _opened(name, new, log)) is not None:
            engine, judged = opened
            engine.close()
            records.append(judged)
    if records:
        new = record(new, *records)
    for name, precision in lost:
        if not new.covers(name, precision):
            log(f"{name} {precision} is no longer verified; run {hint('verify', new.path, '--runtime', name)}")
    return new


def _opened(name: str, bundle: Bundle, log: Log) -> tuple[Engine, Verification] | None:
    """Open and verify a runtime that nobody asked for by name. None if it does not work here."""
    try:
        engine = open_engine(name, bundle)
    except RuntimeUnavailable:
        return None
    try:
        return engine, _judged(engine, bundle, log)
    # The errors of runtimes share no base class.
    except Exception as error:
        engine.close()
        log(f"{name}: not verified, {' '.join(str(error).split())}")
        return None


def _judged(engine: Engine, bundle: Bundle, log: Log) -> Verification:
    """Return the record of an engine that is not covered: the failure known already, or a new one."""
    known = bundle.newest_record(engine.name, engine.precision)
    if known is not None:
        return known
    log(f"verifying {engine.name} {engine.precision}, which this bundle has no record of")
    judged = verify_probes(bundle, engine)
    result = "passed" if judged.passed else f"failed: {'; '.join(judged.reasons)}"
    log(f"{engine.name} {engine.precision} {result} ({judged.images} probes)")
    return judged


def _with_records(bundle: Bundle, engines: list[Engine], records: list[Verification]) -> Bundle:
    """Return the bundle with the records that are new. If there are several engines, theirs get speeds."""
    rates: dict[str, float] = {}
    if len(engines) > 1:
        speeds = images_per_second(engines, bundle.manifest.preprocessing.crop)
        rates = {engine.name: speed for engine, speed in zip(engines, speeds, strict=True)}
    before = bundle.manifest.verification
    new = [msgspec.structs.replace(one, images_per_second=rates.get(one.runtime)) for one in records]
    new = [after for one, after in zip(records, new, strict=True) if one not in before]
    manifest = msgspec.structs.replace(bundle.manifest, verification=(*before, *new))
    return Bundle(bundle.path, manifest, bundle.identities)
