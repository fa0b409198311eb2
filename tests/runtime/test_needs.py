"""The requirements of GPU runtimes, on pretended machines."""

from __future__ import annotations

from importlib import util
from pathlib import Path
from types import SimpleNamespace

import onnxruntime
import pytest

from mdmf_deploy.errors import RuntimeUnavailable
from mdmf_deploy.hardware.device import Gpu
from mdmf_deploy.runtime import ENGINES, ON_GPU, installed, needs, why_not
from mdmf_deploy.runtime.building.flavours import RTX

ADA = Gpu("NVIDIA GeForce RTX 4090", (8, 9), 1 << 34, (13, 0), 128)
DRIVER = "libcuda.so.1 is absent; install one"


class Machine:
    """A machine.

    distributions: the installed packages.
    modules: the modules that `import` finds.
    gpu: the driver's GPU, or its error message.
    """

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.gpu: Gpu | str = ADA
        self.distributions: dict[str, str] = {}
        self.modules: dict[str, object] = {"cuda.core": object()}
        self.asked: list[tuple[int, int]] = []
        patch.setattr(needs, "probe", self._probe)
        for module in ("errors", "hardware.device"):
            patch.setattr(f"mdmf_deploy.{module}.version", self.distributions.get)
        patch.setattr(util, "find_spec", self.modules.get)
        patch.setattr("importlib.import_module", self._import)

    def _probe(self, cuda: tuple[int, int]) -> Gpu:
        self.asked.append(cuda)
        if isinstance(self.gpu, str):
            raise RuntimeUnavailable(f"no GPU: {self.gpu}")
        if self.gpu.driver < cuda:
            raise RuntimeUnavailable(f"no GPU: the driver serves CUDA {self.gpu.driver}, {cuda} is needed; update it")
        return self.gpu

    def _import(self, name: str) -> object:
        found = self.modules[name]
        if isinstance(found, Exception):
            raise found
        return found


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


def tensorrt(version: str) -> SimpleNamespace:
    return SimpleNamespace(__version__=version)


def rtx(*names: str) -> SimpleNamespace:
    return SimpleNamespace(__version__="1.7.1.116", ComputeCapability=SimpleNamespace(__members__=dict.fromkeys(names)))


def ort(package: str, cuda: str | None = None) -> SimpleNamespace:
    return SimpleNamespace(package_name=package, **({"cuda_version": cuda} if cuda else {}))


def torch(cuda: str | None) -> SimpleNamespace:
    return SimpleNamespace(__version__="2.11.0", version=SimpleNamespace(cuda=cuda))


def with_ort(machine: Machine, about: SimpleNamespace) -> None:
    machine.modules |= {"onnxruntime": object(), "onnxruntime.capi.build_and_package_info": about}


def test_nothing_is_missing_on_a_complete_machine(machine: Machine) -> None:
    machine.modules |= {"tensorrt": tensorrt("10.16.1.11"), "tensorrt_rtx": rtx("CURRENT", "SM89")}
    machine.modules |= {"torch": torch("13.0"), "onnx": object()}
    with_ort(machine, ort("onnxruntime-gpu", "13.0"))
    assert {name: needs.find_missing(name) for name in ON_GPU} == dict.fromkeys(ON_GPU)
    for name in ON_GPU:
        needs.require(name)


@pytest.mark.parametrize("name", sorted(ON_GPU))
def test_a_missing_driver_and_a_missing_library_are_both_reported(name: str, machine: Machine) -> None:
    machine.gpu = DRIVER
    found = needs.find_missing(name)
    assert found is not None
    assert found.missing.startswith("libcuda.so.1 is absent, and ")
    assert found.missing.count(" is not installed") == (2 if name in ("ort-tensorrt", "torch-cuda") else 1)
    extra = name if name in ("rtx", "torch-cuda") else "gpu"
    assert found.enable == f"install one, then pip install 'mdmf-deploy[{extra}]'"
    with pytest.raises(RuntimeUnavailable) as failure:
        needs.require(name)
    assert str(failure.value) == f"runtime {name!r}: {found.missing}; {found.enable}"


@pytest.mark.parametrize(
    ("name", "distributions", "cuda"),
    [
        ("tensorrt", {"tensorrt_cu12": "10.16"}, (12, 0)),
        ("tensorrt", {"tensorrt_cu13": "11.4"}, (13, 0)),
        ("rtx", {"tensorrt_rtx_cu13": "1.7.1"}, (13, 0)),
    ],
)
def test_the_driver_must_serve_what_the_library_was_built_for(
    name: str, distributions: dict[str, str], cuda: tuple[int, int], machine: Machine
) -> None:
    machine.distributions.update(distributions)
    machine.modules |= {"tensorrt": tensorrt("11.4"), "tensorrt_rtx": rtx("SM89")}
    assert needs.find_missing(name) is None
    assert set(machine.asked) == {cuda}
    machine.gpu = Gpu(ADA.name, ADA.compute_capability, ADA.memory, (cuda[0] - 1, 8), 1)
    found = needs.find_missing(name)
    assert found is not None
    assert f"{cuda} is needed" in found.missing
    assert found.enable == "update it"


@pytest.mark.parametrize("cuda", ["12.8", "13.0"])
def test_torch_reports_the_cuda_it_was_built_for(cuda: str, machine: Machine) -> None:
    machine.modules |= {"torch": torch(cuda), "onnx": object()}
    assert needs.find_missing("torch-cuda") is None
    assert machine.asked == [(int(cuda[:2]), 0)]


def test_the_cpu_build_of_torch_is_recognised(machine: Machine) -> None:
    machine.modules |= {"torch": torch(None), "onnx": object()}
    found = needs.find_missing("torch-cuda")
    assert found is not None
    assert found.missing == "the installed torch 2.11.0 has no CUDA"
    assert "pytorch.org" in found.enable


@pytest.mark.parametrize(("cuda", "asked"), [("12.8", (12, 0)), ("13.0", (13, 0)), (None, needs.ANY_CUDA)])
def test_onnxruntime_reports_the_cuda_it_was_built_for(
    cuda: str | None, asked: tuple[int, int], machine: Machine
) -> None:
    with_ort(machine, ort("onnxruntime-gpu", cuda))
    assert needs.find_missing("cuda") is None
    assert machine.asked == [asked]


def test_the_cpu_build_of_onnxruntime_is_recognised(machine: Machine) -> None:
    machine.distributions["onnxruntime"] = "1.32.0"
    with_ort(machine, ort("onnxruntime"))
    found = needs.find_missing("cuda")
    assert found is not None
    assert "supports the CPU alone" in found.missing
    assert found.enable == "pip uninstall onnxruntime && pip install 'mdmf-deploy[gpu]'"


def test_an_onnxruntime_that_reads_any_file_as_weights_is_too_old(machine: Machine) -> None:
    for version, old in (("1.23.2", True), ("1.24.0", True), ("1.24.1", False), ("1.32.0", False), ("2.0.0", False)):
        with_ort(machine, ort("onnxruntime-gpu", "13.0"))
        machine.modules["onnxruntime"] = SimpleNamespace(__version__=version)
        found = needs.find_missing("cuda")
        assert (found is not None) is old
        if found is not None:
            assert found.missing == f"onnxruntime {version} is too old, expected 1.24.1 or newer"
            assert "pip install 'mdmf-deploy[gpu]'" in found.enable


def test_the_build_of_onnxruntime_here_is_recognised() -> None:
    found = needs.find_missing("cuda")
    cpu_only = found is not None and "supports the CPU alone" in found.missing
    assert cpu_only is ("CUDAExecutionProvider" not in onnxruntime.get_available_providers())


def test_an_old_tensorrt_is_reported(machine: Machine) -> None:
    machine.modules["tensorrt"] = tensorrt("10.9.0.34")
    found = needs.find_missing("tensorrt")
    assert found is not None
    assert found.missing == "tensorrt 10.9.0.34 is too old, 10.13 is needed"


@pytest.mark.parametrize("error", [ImportError("libnvinfer.so.11: cannot\nopen"), OSError("no"), RuntimeError("bad")])
def test_a_library_that_does_not_load_is_reported_with_the_reason(error: Exception, machine: Machine) -> None:
    machine.modules["tensorrt"] = error
    found = needs.find_missing("tensorrt")
    assert found is not None
    assert f"tensorrt is installed and does not load ({' '.join(str(error).split())})" in found.missing


def test_rtx_does_not_support_every_gpu(machine: Machine) -> None:
    machine.gpu = Gpu("NVIDIA H100 PCIe", (9, 0), 1 << 36, (13, 0), 114)
    machine.modules["tensorrt_rtx"] = rtx("SM89", "SM120")
    found = needs.find_missing("rtx")
    assert found is not None
    assert found.missing == "TensorRT-RTX does not support NVIDIA H100 PCIe, of compute capability 9.0"
    assert found.enable == "use --runtime tensorrt"


@pytest.mark.parametrize(("version", "fits"), [("10.16.1.11", True), ("11.4.0.106", False)])
def test_onnxruntime_needs_the_tensorrt_that_it_links(
    version: str, fits: bool, machine: Machine, tmp_path: Path
) -> None:
    (tmp_path / "libonnxruntime_providers_tensorrt.so").write_bytes(b"\x7fELF..\0libnvinfer.so.10\0..")
    machine.modules["onnxruntime.capi"] = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    machine.modules["tensorrt"] = tensorrt(version)
    with_ort(machine, ort("onnxruntime-gpu", "13.0"))
    found = needs.find_missing("ort-tensorrt")
    assert (found is None) is fits
    if found is not None:
        assert found.missing == "onnxruntime links TensorRT 10, and 11 is installed"
        assert found.enable == "pip install 'tensorrt>=10,<11'"


def test_only_tensorrt_needs_cuda_core(machine: Machine) -> None:
    del machine.modules["cuda.core"]
    machine.modules["tensorrt"] = tensorrt("11.4")
    with_ort(machine, ort("onnxruntime-gpu"))
    found = needs.find_missing("tensorrt")
    assert found is not None
    assert found.missing == "cuda-core is not installed"
    assert "mdmf-deploy[gpu]" in found.enable
    assert needs.find_missing("cuda") is None
    del machine.modules["tensorrt"]
    found = needs.find_missing("tensorrt")
    assert found is not None
    assert found.missing == "tensorrt is not installed, and cuda-core is not installed"
    assert found.enable.count("pip install") == 1


def test_an_old_cuda_core_is_reported(machine: Machine) -> None:
    machine.modules["tensorrt"] = tensorrt("11.4")
    machine.distributions["cuda-core"] = "0.3.1"
    found = needs.find_missing("tensorrt")
    assert found is not None
    assert found.missing == "cuda-core 0.3.1 is too old, expected 1.0 or newer"
    assert "mdmf-deploy[gpu]" in found.enable


def test_every_runtime_on_a_gpu_has_requirements() -> None:
    assert set(needs.REQUIREMENTS) == ON_GPU
    assert set(ENGINES) > ON_GPU


def test_installed_runtimes_work() -> None:
    assert "onnxruntime" in installed()
    assert installed() == [name for name in ENGINES if why_not(name) is None]


def test_a_runtime_without_its_library_is_reported_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ENGINES, "absent", ("no_such_module", "Engine", "openvino"))
    assert why_not("absent") == needs.Missing("No module named 'no_such_module'", "pip install 'mdmf-deploy[openvino]'")


def test_rtx_builds_without_a_driver_but_not_without_its_library(machine: Machine) -> None:
    machine.gpu = DRIVER
    with pytest.raises(RuntimeUnavailable, match=r"'rtx': tensorrt_rtx is not installed; run: pip install '.*\[rtx\]'"):
        needs.require_library(RTX)
    machine.modules["tensorrt_rtx"] = rtx("SM89")
    needs.require_library(RTX)


def test_a_library_that_the_provider_cannot_load_is_named(
    machine: Machine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    machine.modules["onnxruntime.capi"] = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    loaded = []
    machine.modules["onnxruntime"] = SimpleNamespace(preload_dlls=lambda: print("not here") or loaded.append(True))
    provider = tmp_path / "libonnxruntime_providers_cuda.so"
    provider.write_bytes(b"\x7fELF..\0libcublas.so.99\0libc.so.6\0libcudnn.so.98\0..")
    found = needs.find_unloadable("cuda")
    assert found is not None
    assert found.missing.startswith("onnxruntime's provider needs libcublas.so.99, which does not load (")
    assert found.enable == "pip install 'onnxruntime-gpu[cuda,cudnn]'"
    provider.write_bytes(b"\x7fELF..\0libc.so.6\0..")
    assert needs.find_unloadable("cuda") is None
    assert needs.find_unloadable("ort-tensorrt") is None
    assert needs.find_unloadable("tensorrt") is None
    assert loaded == [True]
    assert capsys.readouterr().out == ""
