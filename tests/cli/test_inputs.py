"""Inputs on the command line: what no command reads by accident, and what `detect` would read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.mdmf import mdmf


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home without images. A command that searches it says so, and one that refuses it says that."""
    folder = tmp_path / "me"
    folder.mkdir()
    for variable in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(variable, str(folder))
    return folder


def labelled(home: Path) -> Path:
    """A data set whose real images are the home."""
    (home.parent / "data/generated/g").mkdir(parents=True)
    (home.parent / "data/real").symlink_to(home)
    return home.parent / "data"


COMMANDS: dict[str, Callable[[Path, Path, Path], list[object]]] = {
    "detect": lambda home, bundle, _: [home, "--bundle", bundle],
    "calibrate": lambda home, bundle, _: [bundle, home, "-o", home / "new.mdmf"],
    "bank build": lambda home, bundle, _: [bundle, home, "-o", home / "new.mdmf"],
    "benchmark": lambda home, bundle, _: [bundle, "--images", home],
    "evaluate": lambda home, bundle, _: [labelled(home), "--bundle", bundle],
    "export": lambda home, _, file: [file, "--recipe", "starter", "--reals", home, "-o", home / "new.mdmf"],
    "train": lambda home, _, file: [home, home.parent, "-o", home / "run"],
    "verify": lambda home, bundle, file: [bundle, home, "--checkpoint", file, "--no-record"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_no_command_searches_a_home_unless_told_to(command: str, home: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.touch()
    arguments = COMMANDS[command](home, tiny_bundle, file)
    refused = mdmf(*command.split(), *arguments)
    assert (refused.exit_code, refused.stdout) == (2, "")
    last = refused.stderr.splitlines()[-1]
    assert "is your home folder; name a folder of images, or give --yes to search all of it" in last
    searched = mdmf(*command.split(), *arguments, "--yes")
    assert searched.exit_code == 2
    assert "no images in " in searched.stderr.splitlines()[-1]
    assert list(home.iterdir()) == []


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ("/\r\n".encode("utf-16"), "standard input: / is the root of a file system; "),
        (b"a.jpg\n/\n", "standard input: / is the root of a file system; "),
        (b"/\0", "standard input: / is the root of a file system; "),
        (b"\xff\xd8\xff\xe0\0\x10JFIF\0/\0", "standard input is a JPEG, not a list of paths; "),
        ("C:\\a.jpg\r\n/\r\n".encode("utf-16-le"), "standard input looks like UTF-16 without its byte order mark; "),
        (b"\x1b[0ma.jpg\x1b[0m\n", "line 1 holds the control byte 0x1b; "),
    ],
)
def test_a_list_never_becomes_the_whole_disk(data: bytes, text: str, tmp_path: Path) -> None:
    (tmp_path / "list").write_bytes(data)
    for result in (mdmf("detect", "-", stdin=data), mdmf("detect", f"@{tmp_path}/list")):
        assert (result.exit_code, result.stdout) == (2, "")
        assert len(result.stderr.splitlines()) == 1
        assert text.replace("standard input", "") in result.stderr


def test_a_utf_16_list_is_read(photos: Path, tiny_bundle: Path) -> None:
    names = [str(path) for path in sorted(photos.iterdir())[:2]]
    data = ("\r\n".join(names) + "\r\n").encode("utf-16")
    result = mdmf("detect", "-", "--bundle", tiny_bundle, "--json", stdin=data)
    assert result.exit_code == 0
    assert [json.loads(line)["uri"] for line in result.stdout.splitlines()] == names


def test_a_url_costs_its_own_row(photos: Path, tiny_bundle: Path) -> None:
    photo = min(photos.iterdir())
    urls = ["https://host/a.jpg?w=1", "data:image/jpeg;base64," + "A" * 5000, "file:///a.jpg"]
    stdin = "".join(f"{url}\n" for url in urls[1:])
    result = mdmf("detect", urls[0], photo, "-", "--bundle", tiny_bundle, "--json", stdin=stdin)
    assert result.exit_code == 3
    first, good, *others = [json.loads(line) for line in result.stdout.splitlines()]
    assert (first["uri"], good["status"]) == (urls[0], "ok")
    for row, url in zip((first, *others), urls, strict=True):
        assert row["error_code"] == "missing"
        assert row["error"].startswith(f"{url[:200]} is a URL; ")
    assert "never the network" in first["error"]


@pytest.mark.parametrize(
    "arguments", [["detect", "x.jpg", "--bundle", "URL"], ["detect", "@URL"], ["inspect", "URL"], ["evaluate", "URL"]]
)
def test_a_url_elsewhere_is_one_line(arguments: list[str]) -> None:
    result = mdmf(*(word.replace("URL", "https://host/x") for word in arguments))
    assert result.exit_code == 2
    assert "https://host/x is a URL; mdmf reads files only and never the network" in result.stderr.splitlines()[-1]


def test_quotes_are_dropped_with_a_hint(photos: Path, tiny_bundle: Path) -> None:
    photo = min(photos.iterdir())
    result = mdmf("detect", "-", "--bundle", tiny_bundle, "--json", stdin=f'"{photo}"\n"{photo}x"\n')
    read, missing = [json.loads(line) for line in result.stdout.splitlines()]
    assert (read["uri"], read["status"]) == (str(photo), "ok")
    assert missing["error"].endswith("does not exist; its quotes count as part of the name")
    assert f'standard input: 1 path is read without the quotes, such as "{photo}"' in result.stderr


def test_listing_inputs_shows_what_is_read_and_what_is_skipped(photos: Path, tmp_path: Path) -> None:
    for name in ("b.JPG", "a.jpg", "c.png", "x.xmp", "y.XMP", "notes.txt", "README"):
        (tmp_path / name).touch()
    result = mdmf("detect", "--list-inputs", tmp_path, tmp_path / "none.jpg")
    assert result.exit_code == 0
    read = [f"{tmp_path}/{name}" for name in ("a.jpg", "b.JPG", "c.png", "none.jpg")]
    assert result.stdout.splitlines() == read
    assert result.stderr.splitlines() == [
        "mdmf: 4 to read: .jpg 3, .png 1",
        "mdmf: 4 skipped in folders: .xmp 2, (none) 1, .txt 1",
    ]
    result = mdmf("detect", "--list-inputs", "--json", tmp_path, tmp_path / "none.jpg")
    assert json.loads(result.stdout) == {
        "inputs": read,
        "by_suffix": {".jpg": 3, ".png": 1},
        "skipped": 4,
        "skipped_by_suffix": {".xmp": 2, "(none)": 1, ".txt": 1},
    }
    assert mdmf("detect", "--list-inputs", tmp_path / "a.jpg").stderr.endswith("mdmf: nothing skipped\n")


def test_a_list_of_many_suffixes_is_cut(tmp_path: Path) -> None:
    for name in ("a.jpg", *(f"x.{n:02}" for n in range(25))):
        (tmp_path / name).touch()
    assert mdmf("detect", "--list-inputs", tmp_path).stderr.endswith(".18 1, .19 1, 5 more 5\n")
