"""Inputs in an object store are those of the same folder on a disk, and nobody's credentials are told."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pyarrow.fs
import pytest
from helpers.mdmf import mdmf
from moto.server import ThreadedMotoServer

from mdmf_deploy.errors import ImageError, MdmfError
from mdmf_deploy.images.inputs import in_folder, uri
from mdmf_deploy.images.limits import ReadLimits
from mdmf_deploy.tasks.scale.listing import list_inputs
from mdmf_deploy.tasks.scale.locations import Location

KEY, SECRET = "AKIDENTITY", "hush+hush"


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The options that name an S3 server on loopback."""
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        host, port = server.get_host_and_port()
        yield f"?endpoint_override={host}:{port}&scheme=http&region=us-east-1&allow_bucket_creation=true"
    server.stop()


class Denying(BaseHTTPRequestHandler):
    """Denies every request. A client tries again for seconds where nobody answers, but not here."""

    def do_HEAD(self) -> None:
        self.send_error(403)

    do_GET = do_HEAD  # noqa: N815

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@pytest.fixture(scope="module")
def denying() -> Iterator[str]:
    """The options that name an S3 server on loopback which knows nobody."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Denying) as server:
        Thread(target=server.serve_forever, args=(0.01,)).start()
        yield f"?endpoint_override=127.0.0.1:{server.server_port}&scheme=http&region=us-east-1"
        server.shutdown()


@pytest.fixture(scope="module")
def folder(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs") / "my set 100%"
    shutil.copytree(photos, folder / "b" / "photos")
    (folder / "a.jpg").write_text("no image, but it is named like one")
    (folder / "b" / "._photo00.jpg").write_bytes(b"\0\x05\x16\x07\0\2\0\0" + bytes(64))
    (folder / "notes.txt").write_text("no image")
    (folder / "suffixless").write_bytes((photos / "photo00.jpg").read_bytes())
    (folder / "empty.png").touch()
    return folder


@pytest.fixture(scope="module")
def bucket(server: str, folder: Path) -> str:
    """URL of the folder's copy, without options."""
    root = f"s3://{KEY}:{SECRET.replace('+', '%2B')}@bucket"
    store = Location.of(root + server).filesystem
    store.create_dir("bucket")
    pyarrow.fs.copy_files(
        str(folder),
        f"bucket/{folder.name}",
        source_filesystem=pyarrow.fs.LocalFileSystem(),
        destination_filesystem=store,
        use_threads=False,
    )
    return f"{root}/{folder.name}"


def test_a_bucket_has_the_inputs_of_the_folder_in_its_order(folder: Path, bucket: str, server: str) -> None:
    local, remote = in_folder(folder), list_inputs([bucket + server])
    assert remote.table["uri"].to_pylist() == [
        f"s3://bucket/{path.relative_to(folder.parent).as_posix()}" for path in local.paths
    ]
    assert remote.table["size"].to_pylist() == [path.stat().st_size for path in local.paths]
    assert None not in remote.table["mtime_ns"].to_pylist()
    assert dict(remote.others) == dict(local.others) == {".txt": 1, "._*": 1}


def test_arguments_keep_their_order_and_count_their_copies(folder: Path, bucket: str, server: str) -> None:
    names = folder.parent / "list"
    names.write_text(f"{folder / 'a.jpg'}\n{bucket}/a.jpg{server}\n")
    given = [f"{bucket}/a.jpg{server}", str(folder / "empty.png"), f"@{names}", f"file://{folder}/a.jpg"]
    table = list_inputs(given).table
    remote, local = f"s3://bucket/{folder.name}/a.jpg", uri(folder / "a.jpg")
    assert table["uri"].to_pylist() == [remote, uri(folder / "empty.png"), local, remote, local]
    assert table["copy"].to_pylist() == [0, 0, 0, 1, 1]


def test_files_are_read_or_give_the_codes_of_rows(folder: Path, bucket: str, server: str) -> None:
    location = Location.of(bucket + server)
    data = (folder / "a.jpg").read_bytes()
    assert location.read(f"{location.path}/a.jpg", ReadLimits()) == data
    assert location.read(f"{location.path}/empty.png", ReadLimits()) == b""
    cases = {"gone.jpg": ("missing", ReadLimits()), "a.jpg": ("too_many_bytes", ReadLimits(max_bytes=len(data) - 1))}
    for name, (code, limits) in cases.items():
        with pytest.raises(ImageError) as caught:
            location.read(f"{location.path}/{name}", limits)
        assert caught.value.code == code
        assert str(caught.value).startswith(f"s3://bucket/{folder.name}/{name} ")


def test_a_file_system_that_fails_costs_rows(
    bucket: str, server: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Failing:
        def open_input_file(self, path: str) -> None:
            raise OSError(errno.EIO, f"the disk of {KEY} is broken")

    monkeypatch.setattr(Location, "filesystem", Failing())
    location = Location.of(bucket + server)
    with pytest.raises(ImageError, match=r"cannot be read: the disk of \.\.\. is broken$") as caught:
        location.read(f"{location.path}/a.jpg", ReadLimits())
    assert caught.value.code == "unreadable"


@pytest.mark.parametrize(
    ("key", "options", "message"),
    [
        ("/*.jpg", None, "globs are for local paths"),
        ("/x", "?bogus=1", "Unexpected query parameter"),
        ("/x", "denying", "check the address"),
    ],
)
def test_errors_and_texts_hold_no_credentials(
    bucket: str, server: str, denying: str, key: str, options: str | None, message: str
) -> None:
    given = f"{bucket}{key}{ {None: server, 'denying': denying}.get(options, options) }"
    with pytest.raises(MdmfError, match=message) as caught:
        list_inputs([given])
    shown = [str(caught.value), repr(Location.of(bucket + server)), str(Location.of(bucket + server))]
    for text in shown:
        assert "\n" not in text
        for secret in (KEY, SECRET, SECRET.replace("+", "%2B"), "bogus=1"):
            assert secret not in text


def test_inputs_are_listed_without_credentials(folder: Path, bucket: str, server: str) -> None:
    done = mdmf("detect", "--engine", "ray", "--list-inputs", bucket + server)
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines()[0] == f"s3://bucket/{folder.name}/a.jpg"
    assert "2 skipped in folders: ._* 1, .txt 1" in done.stderr
    assert KEY not in done.output


def test_a_local_run_says_how_to_read_a_bucket(bucket: str) -> None:
    done = mdmf("detect", "s3://bucket/a.jpg", "--json", "--bundle", "starter")
    assert done.exit_code == 3
    assert "or add --engine ray" in done.stdout
    assert mdmf("detect", "x.jpg", "--address", "auto").exit_code == 2
