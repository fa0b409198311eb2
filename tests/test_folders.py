"""A folder is replaced whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from mdmf_deploy.files import atomic_folder


def contents(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def write(destination: Path, text: str) -> None:
    with atomic_folder(destination) as scratch:
        (scratch / "a/b").mkdir(parents=True)
        (scratch / "a/b/file").write_text(text)
        (scratch / "top").write_text(text)


def test_the_new_takes_the_place_of_the_old(tmp_path: Path) -> None:
    destination = tmp_path / "deep" / "folder"
    for text in ("old", "new"):
        write(destination, text)
        assert contents(destination) == {"a/b/file": text, "top": text}
        assert list(destination.parent.iterdir()) == [destination]


def test_until_it_is_whole_nothing_changes(tmp_path: Path) -> None:
    write(tmp_path / "folder", "old")

    def write_half() -> None:
        with atomic_folder(tmp_path / "folder") as scratch:
            (scratch / "top").write_text("half")
            assert contents(tmp_path / "folder")["top"] == "old"
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert contents(tmp_path / "folder") == {"a/b/file": "old", "top": "old"}
    assert list(tmp_path.iterdir()) == [tmp_path / "folder"]


def test_the_old_comes_back_where_the_new_cannot_be_put(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "folder", "old")
    rename = Path.rename

    def refuse(self: Path, target: Path) -> Path:
        if target == tmp_path / "folder" and not self.name.endswith(".old"):
            raise PermissionError(13, "Permission denied")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(PermissionError):
        write(tmp_path / "folder", "new")
    assert contents(tmp_path / "folder") == {"a/b/file": "old", "top": "old"}
    assert list(tmp_path.iterdir()) == [tmp_path / "folder"]


def test_a_link_stays_one(tmp_path: Path) -> None:
    write(tmp_path / "real", "old")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    write(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert contents(tmp_path / "real")["top"] == "new"
