"""Report what this machine is and which parts of the package it can run. Nothing is changed."""

from __future__ import annotations

import importlib.metadata
import re
import shutil
import sys

import msgspec

from mdmf_deploy.bundle import SHIPPED_BUNDLES
from mdmf_deploy.errors import MdmfError, install, installed, version
from mdmf_deploy.hardware.host import Machine, look_at_machine

# The module of each runtime whose library has another name.
_LIBRARIES = {"rtx": "tensorrt_rtx", "cuda": "onnxruntime", "ort-tensorrt": "onnxruntime", "torch-cuda": "torch"}


class Runtime(msgspec.Struct, frozen=True, kw_only=True):
    """One entry of mdmf_deploy.runtime.ENGINES.

    version: the library's, None if the runtime cannot be used.
    missing: why it cannot be used, None if it can.
    enable: a command that would make it usable, None if there is none.
    """

    name: str
    version: str | None
    missing: str | None
    enable: str | None


class Extra(msgspec.Struct, frozen=True, kw_only=True):
    """One optional part of the package.

    packages: distribution -> installed version, None if it is not installed.
    enable: the command that installs the extra, None if every package is there.
    """

    name: str
    packages: dict[str, str | None]
    enable: str | None


class ShippedBundle(msgspec.Struct, frozen=True, kw_only=True):
    """A bundle that ships with the package.

    runtimes: name -> why, of those verified for it that work here, in the order in which --runtime auto tries them.
    refused: name -> why, of those verified for it that would work here, but not with its precision.
    problem: why it cannot be used, None if every file is intact.
    """

    name: str
    bundle_id: str | None = None
    calibration_id: str | None = None
    calibrated: bool
    runtimes: dict[str, str]
    refused: dict[str, str]
    problem: str | None


class Diagnosis(msgspec.Struct, frozen=True, kw_only=True):
    """The report of `mdmf doctor`.

    summary: what this machine can do, in a few sentences.
    notes: warnings, for example about a package that cannot do its work.
    """

    summary: tuple[str, ...]
    version: str
    decoder: str
    machine: Machine
    runtimes: tuple[Runtime, ...]
    extras: tuple[Extra, ...]
    bundles: tuple[ShippedBundle, ...]
    notes: tuple[str, ...]

    @property
    def can_run(self) -> bool:
        """Whether any runtime is usable."""
        return any(runtime.missing is None for runtime in self.runtimes)


def diagnose() -> Diagnosis:
    """Examine the whole machine without using the network or writing a file."""
    from mdmf_deploy import __version__
    from mdmf_deploy.images.decode import decoder_version

    machine, runtimes = look_at_machine(), _runtimes()
    ready = {runtime.name for runtime in runtimes if runtime.missing is None}
    bundles = tuple(_look_at_bundle(name, ready) for name in SHIPPED_BUNDLES)
    return Diagnosis(
        summary=(*_abilities(runtimes, bundles[0]), _gpu(machine, ready)),
        version=__version__,
        decoder=decoder_version(),
        machine=machine,
        runtimes=runtimes,
        extras=_extras(),
        bundles=bundles,
        notes=_notes(machine),
    )


def _runtimes() -> tuple[Runtime, ...]:
    from mdmf_deploy.runtime import ENGINES, why_not

    found = []
    for name in ENGINES:
        lack = why_not(name)
        if lack is None:
            found.append(Runtime(name=name, version=_library_version(name), missing=None, enable=None))
        else:
            found.append(Runtime(name=name, version=None, missing=lack.missing, enable=lack.enable))
    return tuple(found)


def _library_version(runtime: str) -> str | None:
    library = sys.modules.get(_LIBRARIES.get(runtime, runtime))
    # OpenVINO appends a build number and a branch to its version.
    return str(getattr(library, "__version__", "")).partition("-")[0] or None


def _extras() -> tuple[Extra, ...]:
    packages: dict[str, dict[str, str | None]] = {}
    for requirement in _requirements():
        match = re.match(r"([\w.-]+).*;.*extra == ['\"]([\w-]+)['\"]", requirement)
        if match and match[2] != "dev":
            packages.setdefault(match[2], {})[match[1]] = version(match[1])
    return tuple(
        Extra(name=name, packages=found, enable=install(name) if None in found.values() else None)
        for name, found in packages.items()
    )


def _look_at_bundle(name: str, ready: set[str]) -> ShippedBundle:
    from mdmf_deploy.bundle.bundle import Bundle
    from mdmf_deploy.runtime import preference, why_refused

    try:
        bundle = Bundle.open(name)
        _, calibration = bundle.bank, bundle.calibration
    except MdmfError as error:
        return ShippedBundle(name=name, calibrated=False, runtimes={}, refused={}, problem=str(error))
    precision = bundle.manifest.model.precision
    order = {name: why for name, why in preference(bundle).items() if name in ready and bundle.covers(name, precision)}
    refused = {name: why for name in order if (why := why_refused(name, precision)) is not None}
    return ShippedBundle(
        name=name,
        bundle_id=bundle.bundle_id,
        calibration_id=bundle.calibration_id,
        calibrated=calibration is not None,
        runtimes={name: why for name, why in order.items() if name not in refused},
        refused=refused,
        problem=None,
    )


def _abilities(runtimes: tuple[Runtime, ...], bundle: ShippedBundle) -> list[str]:
    """Return whether and on what `mdmf detect` runs here with the default bundle."""
    ready = [runtime.name for runtime in runtimes if runtime.missing is None]
    if not ready:
        return [f"This machine cannot run `mdmf detect` yet, because it has no runtime; run: {install('cpu')}."]
    if bundle.problem is not None:
        return [f"The bundle {bundle.name} in the package is damaged; install mdmf-deploy again."]
    refused = [f"It cannot take {name}: {why}." for name, why in bundle.refused.items()]
    if not bundle.runtimes:
        usable = [name for name in ready if name not in bundle.refused]
        if not usable:
            return [f"This machine cannot run `mdmf detect` with {bundle.name}; run: {install('cpu')}.", *refused]
        return [f"This machine runs {', '.join(usable)}, none verified for {bundle.name}; run `mdmf verify`.", *refused]
    first, *others = bundle.runtimes
    takes = f"This machine can run `mdmf detect`. For {bundle.name} it takes {first} ({bundle.runtimes[first]})."
    return [takes, *([f"Also verified: {', '.join(others)}."] if others else []), *refused]


def _gpu(machine: Machine, ready: set[str]) -> str:
    """Return whether a GPU can be used, and otherwise why not."""
    from mdmf_deploy.hardware.gpu import probe
    from mdmf_deploy.runtime import ON_GPU

    usable = [name for name in ON_GPU if name in ready]
    if usable:
        return f"Its GPU can be used by {', '.join(usable)}."
    try:
        gpu = probe()
    except MdmfError as error:
        return f"No GPU can be used: {str(error).partition('; ')[0].removeprefix('no GPU: ')}."
    return f"Its {gpu.name} is not used, because no runtime for GPUs is installed; see below."


def _notes(machine: Machine) -> tuple[str, ...]:
    notes = []
    if machine.core_limit is not None and machine.core_limit < machine.cores:
        notes.append(f"the container may use {machine.core_limit:g} of the {machine.cores} cores it sees")
    if shutil.which("nvidia-smi") and not machine.gpus:
        notes.append("nvidia-smi is there but names no GPU: the driver is missing or broken")
    if installed("onnxruntime") and installed("onnxruntime-gpu"):
        notes.append(
            "onnxruntime and onnxruntime-gpu are both installed and overwrite each other's files; "
            "run: pip uninstall onnxruntime onnxruntime-gpu, then install one of the extras cpu and gpu"
        )
    if "CUDAExecutionProvider" in _providers() and not machine.gpus:
        notes.append("onnxruntime lists CUDAExecutionProvider, but there is no GPU: it would fall back to the CPU")
    return tuple(notes)


def _providers() -> list[str]:
    try:
        import onnxruntime
    except ImportError:
        return []
    providers: list[str] = onnxruntime.get_available_providers()
    return providers


def _requirements() -> list[str]:
    try:
        return importlib.metadata.requires("mdmf-deploy") or []
    except importlib.metadata.PackageNotFoundError:
        return []
