"""A container's quotas, in both versions of control groups, and what they make of the number of cores."""

from __future__ import annotations

from pathlib import Path

import pytest

from mdmf_deploy.hardware import host as cgroups


def group(root: Path, path: str, **files: str) -> None:
    folder = root / path
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)


def test_the_tightest_limit_of_version_2_counts(tmp_path: Path) -> None:
    group(tmp_path, "", cpu__max="max 100000\n")
    group(tmp_path, "pods", cpu__max="150000 100000\n", memory__max="2000\n")
    group(tmp_path, "pods/mine", cpu__max="400000 100000\n", memory__max="max\n")
    assert cgroups.core_limit(tmp_path, "0::/pods/mine\n") == 1.5
    assert cgroups.memory_limit(tmp_path, "0::/pods/mine\n") == 2000
    assert cgroups.core_limit(tmp_path, "0::/elsewhere\n") is None


def test_limits_of_version_1(tmp_path: Path) -> None:
    group(tmp_path, "cpu", cpu__cfs_quota_us="-1\n", cpu__cfs_period_us="100000\n")
    group(tmp_path, "cpu/box", cpu__cfs_quota_us="50000\n", cpu__cfs_period_us="100000\n")
    group(tmp_path, "memory/box", memory__limit_in_bytes=f"{2**63 - 4096}\n")
    membership = "4:memory:/box\n3:cpu,cpuacct:/box\n0::/\n"
    assert cgroups.core_limit(tmp_path, membership) == 0.5
    assert cgroups.memory_limit(tmp_path, membership) is None


def test_no_limits_are_not_zero(tmp_path: Path) -> None:
    assert cgroups.core_limit(tmp_path, "") is None
    assert cgroups.core_limit(tmp_path / "missing", "0::/\n") is None


@pytest.mark.parametrize(("quota", "expected"), [(None, 8), (0.5, 1), (1.5, 2), (64.0, 8)])
def test_cores_are_those_of_the_mask_within_the_quota(
    quota: float | None, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cgroups, "affinity", lambda: 8)
    monkeypatch.setattr(cgroups, "core_limit", lambda root, membership: quota)
    assert cgroups.cores() == expected
