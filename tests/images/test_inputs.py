"""Arguments expand to all inputs, in a stable order, under printable names that give the paths back."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mdmf_deploy.errors import UsageError
from mdmf_deploy.images.inputs import Inputs, expand, from_uri, in_folder, uri, why_missing
from mdmf_deploy.images.paths import Paths


def made(folder: Path, *names: str | bytes) -> None:
    for name in names:
        path = Path(os.fsdecode(os.path.join(os.fsencode(folder), os.fsencode(name))))  # noqa: PTH118
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def names(inputs: Inputs, folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in inputs.paths]


def stdin(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))


def test_a_folder_gives_its_images_sorted_by_bytes_and_counts_the_rest(tmp_path: Path) -> None:
    made(tmp_path, "b.jpg", "B.PNG", "a/z.webp", "a/notes.txt", "a-1.tiff", "é.gif", "README", "deep/er/x.JPEG", "x.ts")
    found = expand([str(tmp_path)])
    assert names(found, tmp_path) == ["B.PNG", "a-1.tiff", "a/z.webp", "b.jpg", "deep/er/x.JPEG", "é.gif"]
    assert found.skipped == 3


def test_hidden_images_are_images(tmp_path: Path) -> None:
    made(tmp_path, "a.jpg", "._a.jpg", ".thumbnails/a.jpg", ".hidden/b.txt", ".DS_Store", ".jpg")
    assert names(expand([str(tmp_path)]), tmp_path) == ["._a.jpg", ".thumbnails/a.jpg", "a.jpg"]
    assert expand([str(tmp_path)]).skipped == 3


def test_links_are_followed_but_never_in_circles(tmp_path: Path) -> None:
    made(tmp_path, "in/a.jpg", "in/sub/b.jpg", "elsewhere/c.jpg")
    (tmp_path / "in/sub/loop").symlink_to(tmp_path / "in")
    (tmp_path / "in/twice").symlink_to(tmp_path / "in/sub")
    (tmp_path / "in/self").symlink_to(tmp_path / "in/self")
    (tmp_path / "in/out").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "in/link.jpg").symlink_to(tmp_path / "elsewhere/c.jpg")
    (tmp_path / "in/gone.jpg").symlink_to(tmp_path / "nothing")
    found = expand([str(tmp_path / "in")])
    assert names(found, tmp_path / "in") == ["a.jpg", "gone.jpg", "link.jpg", "out/c.jpg", "sub/b.jpg"]
    assert found.skipped == 1


def test_files_are_inputs_whatever_their_name_and_even_if_missing(tmp_path: Path) -> None:
    made(tmp_path, "data.bin", "[1].jpg", "1.jpg")
    given = [str(tmp_path / name) for name in ("none.jpg", "data.bin", "data.bin", "[1].jpg")]
    assert [str(path) for path in expand(given).paths] == given
    assert expand([str(tmp_path / "data.bin")]).skipped == 0


def test_arguments_keep_their_order(tmp_path: Path) -> None:
    made(tmp_path, "b/2.jpg", "b/1.jpg", "a/3.jpg")
    found = expand([str(tmp_path / "b"), str(tmp_path / "a"), str(tmp_path / "b/2.jpg")])
    assert names(found, tmp_path) == ["b/1.jpg", "b/2.jpg", "a/3.jpg", "b/2.jpg"]


def test_each_match_of_a_glob_counts_as_named_once(tmp_path: Path) -> None:
    made(tmp_path, "b.jpg", "a.jpg", "c.dat", "sub/d.jpg", "sub/e.txt", ".f.jpg")
    assert names(expand([str(tmp_path / "*.jpg")]), tmp_path) == ["a.jpg", "b.jpg"]
    assert names(expand([str(tmp_path / "*.dat")]), tmp_path) == ["c.dat"]
    everything = expand([str(tmp_path / "*")])
    assert names(everything, tmp_path) == ["a.jpg", "b.jpg", "c.dat", "sub/d.jpg"]
    assert everything.skipped == 1
    assert names(expand([str(tmp_path / "**/*.jpg")]), tmp_path) == ["a.jpg", "b.jpg", "sub/d.jpg"]


def test_lists_contain_literal_paths_one_per_line_or_between_nuls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made(tmp_path, "a.jpg", "in/b.jpg", "in/c.txt")
    lines = f"{tmp_path}/a.jpg\r\n\n{tmp_path}/*.jpg\n{tmp_path}/in\n-\n@x\n".encode()
    expected = [f"{tmp_path}/a.jpg", f"{tmp_path}/*.jpg", f"{tmp_path}/in/b.jpg", "-", "@x"]
    stdin(monkeypatch, lines)
    found = expand(["-"])
    assert [str(path) for path in found.paths] == expected
    assert found.skipped == 1
    (tmp_path / "list").write_bytes(lines)
    assert expand([f"@{tmp_path}/list"]) == found
    stdin(monkeypatch, b"new\nline.jpg\0caf\xe9.jpg\0")
    assert [os.fsencode(path) for path in expand(["-"]).paths] == [b"new\nline.jpg", b"caf\xe9.jpg"]


def test_arguments_without_inputs_are_usage_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made(tmp_path, "empty/a.txt", "empty/.b", "list")
    (tmp_path / "list").write_bytes(b"\n \n")
    stdin(monkeypatch, b"")
    for arguments, words in (
        ([], "no input was given"),
        ([""], "empty path"),
        ([f"{tmp_path}/empty"], r"no images in .*/empty \(2 other files skipped\)"),
        ([f"{tmp_path}/*.png"], "matches nothing"),
        ([f"{tmp_path}/empt*"], "without images"),
        (["-"], "standard input holds no path"),
        ([f"@{tmp_path}/list"], "list holds no path"),
        (["@"], "@ names no list"),
        ([f"@{tmp_path}/none"], "No such file"),
        (["-", "-"], "more than once"),
    ):
        with pytest.raises(UsageError, match=words) as caught:
            expand(arguments)
        assert caught.value.exit_code == 2
        assert "\n" not in str(caught.value)


def test_a_folder_that_cannot_be_listed_costs_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made(tmp_path, "a.jpg", "locked/b.jpg")
    listed = os.listdir

    def refusing(folder: Path) -> list[str]:
        if folder.name == "locked":
            raise PermissionError(13, "Permission denied")
        return listed(folder)

    monkeypatch.setattr(os, "listdir", refusing)
    assert names(expand([str(tmp_path)]), tmp_path) == ["a.jpg", "locked"]
    with pytest.raises(UsageError, match="Permission denied"):
        expand([str(tmp_path / "locked")])


def test_a_folder_that_cannot_be_searched_costs_rows_not_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made(tmp_path, "a.jpg", "locked/b.jpg", "locked/c.txt", "locked/deeper/d.jpg", "z.jpg")
    looked = os.stat

    def refusing(path: str | bytes | Path, *rest: object, **named: object) -> os.stat_result:
        if "locked" in Path(os.fsdecode(path)).parent.parts:
            raise PermissionError(13, "Permission denied", os.fsdecode(path))
        return looked(path, *rest, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "stat", refusing)
    found = expand([str(tmp_path)])
    assert names(found, tmp_path) == ["a.jpg", "locked/b.jpg", "z.jpg"]
    assert found.skipped == 2


def test_a_folder_s_name_is_no_pattern_and_no_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made(tmp_path, "@x/a.jpg", "[1]/b.jpg", "-/c.jpg", "-/d.txt", "empty/e.txt")
    monkeypatch.chdir(tmp_path)
    for folder, image in (("@x", "@x/a.jpg"), ("[1]", "[1]/b.jpg")):
        assert in_folder(Path(folder)) == Inputs(Paths.of([image]))
    assert in_folder("-") == Inputs(Paths.of(["-/c.jpg"]), {".txt": 1})
    with pytest.raises(UsageError, match="no images in empty"):
        in_folder("empty")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home with one image in it, and one beside it."""
    made(tmp_path, "users/me/a.jpg", "users/b.jpg", "users/you/c.jpg")
    for variable in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(variable, str(tmp_path / "users/me"))
    return tmp_path / "users/me"


def test_a_whole_disk_is_searched_only_if_the_caller_says_so(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "link").symlink_to(home)
    monkeypatch.chdir(home)
    (tmp_path / "list").write_text("x.jpg\n..\n")
    for argument, inputs in (
        (str(home), ["a.jpg"]),
        (".", ["a.jpg"]),
        ("..", ["b.jpg", "a.jpg", "c.jpg"]),
        (str(tmp_path / "link"), ["a.jpg"]),
        (f"{home}/*", ["a.jpg"]),
        ("**/*.jpg", ["a.jpg"]),
        (f"{tmp_path}/us*", ["b.jpg", "a.jpg", "c.jpg"]),
        (f"@{tmp_path}/list", ["x.jpg", "b.jpg", "a.jpg", "c.jpg"]),
    ):
        with pytest.raises(UsageError, match=r"is (your home folder|a folder that holds .*); .* --yes") as caught:
            expand([argument])
        assert ("list" in str(caught.value)) == argument.startswith("@")
        assert [path.name for path in expand([argument], whole_disk=True).paths] == inputs
    with pytest.raises(UsageError, match="your home folder"):
        in_folder(home)
    for argument in ("/", "/*", "/**/*.jpg", "//", f"{home}/../../../../../../../../../../.."):
        with pytest.raises(UsageError, match="the root of a file system"):
            expand([argument])


def test_parts_of_a_home_are_folders_like_others(home: Path) -> None:
    made(home, "photos/d.jpg", "photos/e.png")
    assert len(expand([str(home / "photos")]).paths) == 2
    assert len(expand([f"{home}/*.jpg"]).paths) == 1
    assert len(expand([f"{home}/ph*"]).paths) == 2
    assert len(expand([f"{home}/photos/**"]).paths) == 2
    assert len(expand([f"{home}/*/*.png"]).paths) == 1


def test_a_link_to_a_whole_disk_is_not_followed_and_is_reported(home: Path, tmp_path: Path) -> None:
    made(tmp_path, "photos/z.jpg")
    (tmp_path / "photos/h:").symlink_to(home)
    (tmp_path / "photos/z:").symlink_to("/")
    told: list[str] = []
    assert names(expand([str(tmp_path / "photos")], tell=told.append), tmp_path / "photos") == ["z.jpg"]
    assert [line.split(", because it leads to ")[1] for line in told] == [
        "your home folder; --yes searches it",
        "the root of a file system; --yes searches it",
    ]
    (tmp_path / "photos/z:").unlink()
    assert names(expand([str(tmp_path / "photos")], whole_disk=True), tmp_path / "photos") == ["h:/a.jpg", "z.jpg"]


def test_a_large_folder_is_announced_before_anything_is_scored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mdmf_deploy.images.inputs.MANY", 4)
    made(tmp_path, "a/1.jpg", "a/2.jpg", "a/3.txt", "a/b/4.jpg", "a/b/5.md", "c/1.jpg", "c/2.jpg", "c/3.jpg", "d/4.jpg")
    told: list[str] = []
    expand([str(tmp_path / "a"), str(tmp_path / "c")], tell=told.append)
    assert told == [
        f"{tmp_path}/a holds more than 4 files; still counting",
        f"{tmp_path}/a holds 3 images and 2 other files",
    ]
    told.clear()
    expand([str(tmp_path / "c"), str(tmp_path / "d")], tell=told.append)
    assert told == []
    expand([str(tmp_path / "c"), str(tmp_path / "d"), str(tmp_path / "a/b")], tell=told.append)
    assert told == ["the folders hold 5 images and 1 other files"]


def test_quotes_around_a_path_are_dropped_with_a_hint(tmp_path: Path) -> None:
    made(tmp_path, "a b.jpg", "c.jpg", "'d.jpg'", "d.jpg", "in/e.jpg")
    quoted = [f'"{tmp_path}/a b.jpg"', f"'{tmp_path}/in'", f"{tmp_path}/'d.jpg'", f'"{tmp_path}/none.jpg"', "''", "'\""]
    (tmp_path / "list").write_text("\n".join(quoted))
    told: list[str] = []
    found = expand([f"@{tmp_path}/list"], tell=told.append)
    assert [str(path) for path in found.paths] == [f"{tmp_path}/a b.jpg", f"{tmp_path}/in/e.jpg", *quoted[2:]]
    assert told == [f"the list {tmp_path}/list: 2 paths are read without the quotes, such as {quoted[0]}"]


def test_a_quoted_name_that_exists_is_that_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made(tmp_path, "'d.jpg'", "d.jpg")
    monkeypatch.chdir(tmp_path)
    stdin(monkeypatch, b"'d.jpg'\n")
    assert tuple(expand(["-"], tell=pytest.fail).paths) == (Path("'d.jpg'"),)


def test_a_closed_standard_input_is_a_usage_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(UsageError, match="standard input, which is closed"):
        expand(["-"])


@pytest.mark.parametrize(
    "url", ["https://host/a.jpg", "s3://b/k.png?x=1", "data:image/png;base64,iVBOR*", "file:///a.jpg"]
)
def test_a_url_is_an_input_that_names_itself(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (path,) = expand([url]).paths
    stdin(monkeypatch, f"{url}\n".encode())
    assert tuple(expand(["-"]).paths) == (path,)
    assert from_uri(uri(path)) == path
    assert why_missing(path).startswith(f"{url} is a URL; ")
    assert uri(path) == url


def test_other_files_are_counted_by_suffix(tmp_path: Path) -> None:
    made(tmp_path, "a.jpg", "b.XMP", "c.xmp", "in/d.txt", "in/README", ".DS_Store")
    found = expand([str(tmp_path), str(tmp_path / "in/README"), str(tmp_path / "*")])
    assert found.others == {".xmp": 2, ".txt": 2, "": 3}
    assert found.skipped == 7


def test_names_that_are_not_utf_8_survive(tmp_path: Path) -> None:
    made(tmp_path, b"caf\xe9.jpg", b"b\xffd/x.png")
    found = expand([str(tmp_path)])
    assert [os.fsencode(path.relative_to(tmp_path)) for path in found.paths] == [b"b\xffd/x.png", b"caf\xe9.jpg"]
    assert [uri(path.relative_to(tmp_path)) for path in found.paths] == ["b\\xffd/x.png", "caf\\xe9.jpg"]
    assert found.paths[0].read_bytes() == b"x"


def test_ordinary_names_are_their_own_uri() -> None:
    for name in ("a b/ü%20(1).jpg", "/x/日本.png", "🙂.webp"):
        assert uri(name) == name
    assert uri("a\\x41\n\u2028.jpg") == "a\\\\x41\\x0a\\xe2\\x80\\xa8.jpg"


@settings(deadline=None, derandomize=True)
@given(
    st.binary(min_size=1, max_size=30)
    | st.text(min_size=1, max_size=20).map(lambda text: text.encode("utf-8", "replace"))
)
def test_a_uri_is_one_line_of_utf_8_and_gives_the_path_back(name: bytes) -> None:
    path = Path(os.fsdecode(name.replace(b"\0", b"\n")))
    text = uri(path)
    assert text.encode("utf-8").decode("utf-8") == text
    assert len(text.splitlines()) <= 1
    assert from_uri(text) == path


def test_a_folder_as_people_send_it_gives_a_row_for_every_picture(tmp_path: Path) -> None:
    box = b"\0\0\0\x18ftyp"
    for n in range(5):
        (tmp_path / f"{n}.HEIC").write_bytes(box + b"heic\0\0\0\0mif1heic")
        (tmp_path / f"{n}.avif").write_bytes(box + b"avif\0\0\0\0mif1avif")
        (tmp_path / f"{n}.jpg").write_bytes(b"\xff\xd8\xff\xe0\0\x10JFIF\0")
    for n in range(2):
        (tmp_path / f"{n}.dng").write_bytes(b"II*\0\x08\0\0\0")
    (tmp_path / "clip.mp4").write_bytes(box + b"isom\0\0\x02\0isomiso2")
    (tmp_path / "notes.txt").write_text("a text\n")
    found = expand([str(tmp_path)])
    assert len(found.paths) == 18
    assert found.others == {".txt": 1}


def test_content_makes_an_input_whatever_the_name(tmp_path: Path) -> None:
    (tmp_path / "IMG_1").write_bytes(b"\xff\xd8\xff\xe0\0\x10JFIF\0")
    (tmp_path / "photo.jpg~").write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR")
    (tmp_path / "a.txt").write_bytes(b"\0\0\0\x18ftypqt  \0\0\0\0qt  ")
    (tmp_path / "b.ts").write_bytes(b"export const a = 1;\n")
    (tmp_path / "c.ts").write_bytes((b"G\x40\0\x10" + bytes(184)) * 4)
    (tmp_path / "d.xmp").write_bytes(b'<x:xmpmeta xmlns:x="adobe:ns:meta/"/>')
    (tmp_path / "e.dat").touch()
    found = expand([str(tmp_path)])
    assert names(found, tmp_path) == ["IMG_1", "a.txt", "c.ts", "photo.jpg~"]
    assert found.others == {".ts": 1, ".xmp": 1, ".dat": 1}


def test_side_files_of_macos_are_skipped_unless_named(tmp_path: Path) -> None:
    made(tmp_path, "a.jpg", "._c.jpg")
    side = b"\0\x05\x16\x07\0\x02\0\0Mac OS X        "
    for name in ("._a.jpg", "._notes", "b.jpg"):
        (tmp_path / name).write_bytes(side)
    found = expand([str(tmp_path)])
    assert names(found, tmp_path) == ["._c.jpg", "a.jpg", "b.jpg"]
    assert found.others == {"._*": 2}
    assert len(expand([str(tmp_path / "._a.jpg")]).paths) == 1


def test_only_files_of_unknown_names_are_opened_and_no_pipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made(tmp_path, "a.jpg", "b.HEIC", "c.nef", "d.mp4", "e.txt", "f", "locked.bin")
    os.mkfifo(tmp_path / "pipe")
    os.mkfifo(tmp_path / "pipe.jpg")
    opened: list[str] = []
    plain = os.open

    def noting(path: Path, *rest: int) -> int:
        opened.append(Path(path).name)
        if Path(path).name == "locked.bin":
            raise PermissionError(13, "Permission denied")
        return plain(path, *rest)

    monkeypatch.setattr(os, "open", noting)
    found = expand([str(tmp_path)])
    assert sorted(opened) == ["e.txt", "f", "locked.bin"]
    assert names(found, tmp_path) == ["a.jpg", "b.HEIC", "c.nef", "d.mp4", "pipe.jpg"]
    assert found.others == {".txt": 1, "": 2, ".bin": 1}


def test_a_file_that_is_cut_off_while_it_is_read_is_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made(tmp_path, "a.jpg", "b.dat")

    def failing(*_: object) -> bytes:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "read", failing)
    assert names(expand([str(tmp_path)]), tmp_path) == ["a.jpg"]


@pytest.mark.parametrize(
    "character", ["\u202e", "\u200b", "\u200d", "\ufeff", "\u00ad", "\u2066", "\U000e0041", "\x9b", "\x7f"]
)
def test_characters_that_hide_or_turn_text_are_escaped(character: str) -> None:
    name = f"a{character}gpj.exe"
    assert uri(name) == "a" + "".join(f"\\x{byte:02x}" for byte in character.encode()) + "gpj.exe"
    assert from_uri(uri(name)) == Path(name)
