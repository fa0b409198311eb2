"""Downloads of the official weights, from a server on this machine."""

from __future__ import annotations

import errno
import hashlib
import os
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from mdmf_deploy.errors import CheckpointError
from mdmf_deploy.model.architectures import ARCHITECTURES
from mdmf_deploy.model.download import PINNED_SHA256, fetch_backbone

CONTENT = bytes(range(256)) * 10_000


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Serve files with the official layout, all of which hold CONTENT."""
    monkeypatch.setenv("no_proxy", "*")
    for name, file in (("dinov2_vits14", "dinov2_vits14"), ("dinov2_vitg14", "dinov2_vitg14_reg4")):
        folder = tmp_path / "site" / name
        folder.mkdir(parents=True)
        (folder / f"{file}_pretrain.pth").write_bytes(CONTENT)
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path / "site")))
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{httpd.server_address[1]}"
    httpd.shutdown()
    thread.join()
    httpd.server_close()


@pytest.mark.parametrize(
    ("name", "file"),
    [("dinov2_vits14", "dinov2_vits14_pretrain.pth"), ("dinov2_vitg14_reg", "dinov2_vitg14_reg4_pretrain.pth")],
)
def test_a_file_of_the_pinned_hash_is_fetched_once(
    name: str, file: str, server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PINNED_SHA256, name, hashlib.sha256(CONTENT).hexdigest())
    path = fetch_backbone(name, tmp_path / "new" / "cache", server)
    assert path == tmp_path / "new" / "cache" / file
    assert path.read_bytes() == CONTENT
    assert fetch_backbone(name, tmp_path / "new" / "cache", "http://127.0.0.1:9") == path


def test_another_hash_is_an_error_and_leaves_nothing(server: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"sha256 is [0-9a-f]{64}, not the pinned b938bf1b"):
        fetch_backbone("dinov2_vits14", tmp_path / "cache", server)
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_full_disk_is_not_the_server_s_fault(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setitem(PINNED_SHA256, "dinov2_vits14", hashlib.sha256(CONTENT).hexdigest())
    monkeypatch.setattr(os, "fsync", full)
    path = tmp_path / "cache" / "dinov2_vits14_pretrain.pth"
    with pytest.raises(CheckpointError, match=f"^{path}: No space left on device; free some space$"):
        fetch_backbone("dinov2_vits14", path.parent, server)


def test_a_damaged_file_in_the_cache_is_fetched_again(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PINNED_SHA256, "dinov2_vits14", hashlib.sha256(CONTENT).hexdigest())
    (tmp_path / "dinov2_vits14_pretrain.pth").write_bytes(CONTENT[:-1])
    assert fetch_backbone("dinov2_vits14", tmp_path, server).read_bytes() == CONTENT


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="no file here that root cannot read either")
def test_a_file_in_the_cache_that_cannot_be_read_is_an_error_that_names_it(tmp_path: Path) -> None:
    path = tmp_path / "dinov2_vits14_pretrain.pth"
    path.symlink_to("/proc/self/mem")
    with pytest.raises(CheckpointError, match=f"{path}: .*give the path of a readable checkpoint"):
        fetch_backbone("dinov2_vits14", tmp_path, "http://127.0.0.1:9")


@pytest.mark.parametrize("broken", ["missing", "refused"])
def test_a_server_that_does_not_answer_is_an_error_of_one_line(broken: str, server: str, tmp_path: Path) -> None:
    name, address = ("dinov2_vitb14", server) if broken == "missing" else ("dinov2_vits14", "http://127.0.0.1:9")
    with pytest.raises(CheckpointError, match=r"cannot download http.*--backbone-weights") as caught:
        fetch_backbone(name, tmp_path / "cache", address)
    assert "\n" not in str(caught.value)
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_model_without_a_release_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no official weights for 'starter_vit14'; choose one of dinov2_vits14"):
        fetch_backbone("starter_vit14", tmp_path)


def test_every_released_architecture_is_pinned_to_its_own_hash() -> None:
    released = {name for name in ARCHITECTURES if name.startswith("dinov2")}
    assert PINNED_SHA256.keys() == released
    assert len(set(PINNED_SHA256.values())) == len(released)
    assert all(len(bytes.fromhex(digest)) == 32 for digest in PINNED_SHA256.values())
