"""A bundle's folder holds what its manifest lists, in regular files, and nothing else is ever opened."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from helpers.handmade import GRAPH, make_bundle, schema_1
from helpers.mdmf import mdmf
from helpers.small_graphs import field, with_note

from mdmf_deploy.bundle.bundle import Bundle, write_bundle
from mdmf_deploy.bundle.folder import NAMES, open_regular
from mdmf_deploy.bundle.manifest import BANK, CALIBRATION, MANIFEST, MODEL, MODEL_DATA, PROBES
from mdmf_deploy.errors import BundleError

posix = pytest.mark.skipif(os.name != "posix", reason="Windows has no FIFOs, sockets and devices among its files")


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return make_bundle(tmp_path / "b.mdmf")


def refused(folder: Path, match: str) -> None:
    with pytest.raises(BundleError, match=match) as caught:
        Bundle.open(folder)
    assert "\n" not in str(caught.value)


def listed(bundle: Bundle, name: str, size: int, data: bytes = b"") -> None:
    """List a file of this size in the manifest, with the hash of these bytes."""
    path = bundle.path / MANIFEST
    document = json.loads(path.read_bytes())
    document["files"][name] = {"sha256": hashlib.sha256(data).hexdigest(), "size": size}
    path.write_text(json.dumps(document))


@pytest.mark.parametrize("name", ["model.onnx.data", "model.onnx_weights", "weights.bin", ".hidden", "a\nb"])
def test_a_file_that_the_manifest_does_not_list_is_refused(bundle: Bundle, name: str) -> None:
    (bundle.path / name).write_bytes(b"weights that a graph may read")
    refused(bundle.path, "is not in the manifest; remove it")


def test_a_folder_in_a_bundle_is_refused(bundle: Bundle) -> None:
    (bundle.path / "._more").mkdir()
    refused(bundle.path, "_more: is not in the manifest")


def test_files_that_systems_leave_are_no_part_of_a_bundle(bundle: Bundle, tmp_path: Path) -> None:
    for name in (".DS_Store", "Thumbs.db", "desktop.ini", "._model.onnx"):
        (bundle.path / name).touch()
    opened = Bundle.open(bundle.path)
    assert opened.bundle_id == bundle.bundle_id
    copy = write_bundle(tmp_path / "copy.mdmf", opened.manifest, opened.files())
    assert {path.name for path in copy.path.iterdir()} == {MANIFEST, MODEL, BANK}


def test_a_manifest_lists_only_what_bundles_hold(bundle: Bundle) -> None:
    assert {MODEL, MODEL_DATA, BANK, CALIBRATION, PROBES} == NAMES
    (bundle.path / "weights.bin").write_bytes(b"")
    listed(bundle, "weights.bin", 0)
    refused(bundle.path, r"manifest\.json: lists 'weights\.bin', which no bundle holds")


def fifo(path: Path) -> None:
    os.mkfifo(path)


def bound_socket(path: Path) -> None:
    with closing(socket.socket(socket.AF_UNIX)) as one:
        # A socket's path may have 107 bytes.
        here = Path.cwd()
        os.chdir(path.parent)
        try:
            one.bind(path.name)
        finally:
            os.chdir(here)


def link_to(target: str) -> Callable[[Path], None]:
    return lambda path: path.symlink_to(target)


@posix
@pytest.mark.parametrize("name", [MODEL, BANK, CALIBRATION, PROBES, MANIFEST])
@pytest.mark.parametrize(
    ("put", "message"),
    [
        (fifo, "is a FIFO, expected a file"),
        (bound_socket, "is a socket, expected a file"),
        (Path.mkdir, "is a folder, expected a file"),
        (link_to("/dev/zero"), "is a link, which a bundle cannot hold"),
        (link_to("/etc/passwd"), "is a link, which a bundle cannot hold"),
        (link_to("bank.safetensors"), "is a link, which a bundle cannot hold"),
        (link_to("nowhere"), "is a link, which a bundle cannot hold"),
    ],
)
def test_what_is_no_regular_file_is_refused_at_once(
    bundle: Bundle, name: str, put: Callable[[Path], None], message: str
) -> None:
    path = bundle.path / name
    if name in (CALIBRATION, PROBES):
        listed(bundle, name, 0)
    path.unlink(missing_ok=True)
    put(path)
    refused(bundle.path, f"{name}: {message}")


@posix
def test_a_device_is_never_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    """Opening some devices acts on them. /dev stands for a bundle's folder, since making a device needs privileges."""
    monkeypatch.setattr("os.open", lambda *_: pytest.fail("opened"))
    with pytest.raises(BundleError, match="zero: is a device, expected a file"), open_regular(Path("/dev/zero")):
        pytest.fail("opened")


@posix
def test_a_fifo_that_takes_the_files_place_is_not_waited_for(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """It comes between the look and the open."""
    look = Path.lstat

    def then_replace(self: Path) -> os.stat_result:
        found = look(self)
        if self.name == BANK:
            self.unlink()
            os.mkfifo(self)
        return found

    monkeypatch.setattr(Path, "lstat", then_replace)
    refused(bundle.path, f"{BANK}: is a FIFO, expected a file")


@posix
def test_a_link_that_takes_the_files_place_is_not_followed(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = shutil.copy(bundle.path / BANK, tmp_path / "elsewhere")
    look = Path.lstat

    def then_replace(self: Path) -> os.stat_result:
        found = look(self)
        if self.name == BANK:
            self.unlink()
            self.symlink_to(elsewhere)
        return found

    monkeypatch.setattr(Path, "lstat", then_replace)
    refused(bundle.path, f"{BANK}: is a link")


def test_a_size_that_lies_is_refused_before_a_byte_is_read(bundle: Bundle) -> None:
    with (bundle.path / BANK).open("r+b") as file:
        file.truncate(2**40)
    refused(bundle.path, rf"{BANK}: has {2**40} bytes, the manifest says ")
    listed(bundle, BANK, 2**40 + 1)
    refused(bundle.path, rf"has {2**40} bytes, the manifest says {2**40 + 1}")


def test_a_manifest_larger_than_any_is_refused_before_a_byte_is_read(bundle: Bundle) -> None:
    with (bundle.path / MANIFEST).open("r+b") as file:
        file.truncate(2**40)
    refused(bundle.path, rf"{MANIFEST}: has {2**40} bytes, expected at most")


def test_brackets_without_end_are_refused(bundle: Bundle) -> None:
    (bundle.path / MANIFEST).write_bytes(b'{"schema_version":2,"more":' + b"[" * 1_000_000)
    refused(bundle.path, MANIFEST)


def test_the_bundle_itself_may_be_a_link(bundle: Bundle, tmp_path: Path) -> None:
    link = tmp_path / "link.mdmf"
    link.symlink_to(bundle.path)
    assert Bundle.open(link).bundle_id == bundle.bundle_id


def test_a_graph_that_no_export_writes_is_refused(bundle: Bundle) -> None:
    path = bundle.path / MODEL
    data = GRAPH + field(25, b"a function")
    path.write_bytes(data)
    listed(bundle, MODEL, len(data), data)
    refused(bundle.path, r"model\.onnx: is not a graph that `mdmf export` writes: field 25")
    result = mdmf("inspect", bundle.path)
    assert (result.exit_code, len(result.stderr.splitlines())) == (2, 1)


@pytest.mark.parametrize("name", [BANK, CALIBRATION])
def test_what_was_hashed_is_what_is_decoded(bundle: Bundle, name: str) -> None:
    schema_1(bundle, [0.1, 0.2], 0.1, 0.2)
    opened = Bundle.open(bundle.path)
    path = bundle.path / name
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(BundleError, match=f"{name}: hash"):
        opened.bank if name == BANK else opened.calibration  # noqa: B018


def test_a_runtime_reads_the_graph_that_was_checked(bundle: Bundle) -> None:
    opened = Bundle.open(bundle.path)
    with opened.unchanged_model() as path:
        assert path.read_bytes() == GRAPH
    # Another command replaces the bundle by one of the same model, in other files.
    shutil.copytree(bundle.path, bundle.path.with_name("new"))
    shutil.rmtree(bundle.path)
    bundle.path.with_name("new").rename(bundle.path)
    with opened.unchanged_model():
        pass
    with pytest.raises(BundleError, match="was changed while it was read; run"), opened.unchanged_model():
        (bundle.path / MODEL).write_bytes(with_note(GRAPH))
    with pytest.raises(BundleError, match=rf"{MODEL}: has \d+ bytes"), opened.unchanged_model():
        pytest.fail("read")
    with opened.path.joinpath(MODEL).open("r+b") as file:
        file.truncate(len(GRAPH))
        file.seek(100)
        file.write(b"other")
    with pytest.raises(BundleError, match=f"{MODEL}: hash"), opened.unchanged_model():
        pytest.fail("read")


def test_weights_beside_the_graph_are_held_to_the_same(bundle: Bundle) -> None:
    (bundle.path / MODEL_DATA).write_bytes(b"weights")
    listed(bundle, MODEL_DATA, 7, b"weights")
    opened = Bundle.open(bundle.path)
    with pytest.raises(BundleError, match="was changed while it was read"), opened.unchanged_model():
        (bundle.path / MODEL_DATA).write_bytes(b"other weights")


def test_a_copy_does_not_vouch_for_a_file_that_has_changed(bundle: Bundle, tmp_path: Path) -> None:
    opened = Bundle.open(bundle.path)
    (bundle.path / MODEL).write_bytes(with_note(GRAPH))
    with pytest.raises(BundleError, match=f"{MODEL}: was changed since it was read"):
        write_bundle(tmp_path / "copy.mdmf", opened.manifest, opened.files())
    assert not (tmp_path / "copy.mdmf").exists()
