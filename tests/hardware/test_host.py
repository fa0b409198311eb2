"""The host: container quotas in both versions of control groups, the cores they leave, and the CPU's features."""

from __future__ import annotations

from pathlib import Path

import pytest

from mdmf_deploy.hardware import host

X86 = "processor\t: 0\nmodel name\t: AMD EPYC 9R14\nflags\t\t: fpu avx2 avx512f avx512_vnni avx512_bf16 sse4_2\n"
ARM = "processor\t: 0\nFeatures\t: fp asimd aes i8mm bf16\n"


def group(root: Path, path: str, **files: str) -> None:
    """Write a control group's files. A double underscore in a name stands for a dot."""
    folder = root / path
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)


def test_the_tightest_limit_of_version_2_counts(tmp_path: Path) -> None:
    group(tmp_path, "", cpu__max="max 100000\n")
    group(tmp_path, "pods", cpu__max="150000 100000\n", memory__max="2000\n")
    group(tmp_path, "pods/mine", cpu__max="400000 100000\n", memory__max="max\n")
    assert host.core_limit(tmp_path, "0::/pods/mine\n") == 1.5
    assert host.memory_limit(tmp_path, "0::/pods/mine\n") == 2000
    assert host.core_limit(tmp_path, "0::/elsewhere\n") is None


def test_limits_of_version_1(tmp_path: Path) -> None:
    group(tmp_path, "cpu", cpu__cfs_quota_us="-1\n", cpu__cfs_period_us="100000\n")
    group(tmp_path, "cpu/box", cpu__cfs_quota_us="50000\n", cpu__cfs_period_us="100000\n")
    group(tmp_path, "memory/box", memory__limit_in_bytes=f"{2**63 - 4096}\n")
    membership = "4:memory:/box\n3:cpu,cpuacct:/box\n0::/\n"
    assert host.core_limit(tmp_path, membership) == 0.5
    assert host.memory_limit(tmp_path, membership) is None


def test_no_limits_are_not_zero(tmp_path: Path) -> None:
    assert host.core_limit(tmp_path, "") is None
    assert host.core_limit(tmp_path / "missing", "0::/\n") is None


@pytest.mark.parametrize(("quota", "expected"), [(None, 8), (0.5, 1), (1.5, 2), (64.0, 8)])
def test_cores_are_those_of_the_mask_within_the_quota(
    quota: float | None, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host, "affinity", lambda: 8)
    monkeypatch.setattr(host, "core_limit", lambda root, membership: quota)
    assert host.cores() == expected


def test_the_cpu_s_model_and_features() -> None:
    assert host.read_cpuinfo(X86) == ("AMD EPYC 9R14", ("avx2", "avx512f", "avx512_vnni", "avx512_bf16"))
    assert host.read_cpuinfo(ARM) == ("", ("asimd", "i8mm", "bf16"))
    assert host.read_cpuinfo("") == ("", ())


@pytest.mark.parametrize(
    ("architecture", "features", "saturates"),
    [
        ("x86_64", ("avx2", "avx512f"), True),
        ("x86_64", ("avx2", "avx_vnni"), False),
        ("x86_64", ("avx2", "avx512f", "avx512_vnni"), False),
        # Windows and macOS have no /proc/cpuinfo.
        ("AMD64", (), True),
        ("aarch64", ("asimd",), False),
        ("arm64", (), False),
    ],
)
def test_where_int8_saturates(
    architecture: str, features: tuple[str, ...], saturates: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("platform.machine", lambda: architecture)
    monkeypatch.setattr(host, "this_cpu", lambda: ("", features))
    assert host.saturates_int8() is saturates
