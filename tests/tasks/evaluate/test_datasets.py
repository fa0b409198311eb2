"""Layouts of data sets."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import pytest

from mdmf_deploy.errors import UsageError
from mdmf_deploy.tasks.evaluate.datasets import find_images


def test_finds_classes_by_folder(dataset: Path) -> None:
    images = find_images(dataset)
    assert [image.generator for image in images] == [None] * 6 + ["a"] * 4 + ["b"] * 2
    assert all(s.sha256 == hashlib.sha256(s.path.read_bytes()).hexdigest() for s in images)


def test_folder_names_are_literal_and_hidden_folders_are_no_generators(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (dataset / "generated/a").rename(dataset / "generated/[a]*")
    (dataset / "generated/.cache").mkdir()
    shutil.copytree(dataset, tmp_path / "@set")
    monkeypatch.chdir(tmp_path)
    for folder in (dataset, Path("@set")):
        assert [image.generator for image in find_images(folder)] == [None] * 6 + ["[a]*"] * 4 + ["b"] * 2


@pytest.mark.parametrize("folders", [[], ["real"], ["generated/a"], ["real", "generated"]])
def test_another_layout_is_an_error(folders: list[str], tmp_path: Path) -> None:
    for folder in folders:
        (tmp_path / folder).mkdir(parents=True)
    with pytest.raises(UsageError, match="expected"):
        find_images(tmp_path)
