"""No damaged, foreign or half-written folder passes for a bundle, and the id covers exactly the parts that decide."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import os
from pathlib import Path

import msgspec
import pytest
from helpers.handmade import GRAPH, bank, calibration_of, make_bundle, manifest, record, schema_1

from mdmf_deploy.bundle.bundle import Bundle, check_destination, hint, write_bundle
from mdmf_deploy.bundle.calibration import Calibration, Pair
from mdmf_deploy.bundle.manifest import BANK, CALIBRATION, MANIFEST, MODEL, Verification
from mdmf_deploy.bundle.recipe import Preprocessing
from mdmf_deploy.errors import BundleError, CalibrationError, MdmfError
from mdmf_deploy.tasks.verify import record as add_record


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return make_bundle(tmp_path / "b.mdmf")


def calibration_for(bundle_id: str) -> Calibration:
    return calibration_of([i / 16 for i in range(20)], bundle_id=bundle_id)


def calibrated(bundle: Bundle, bundle_id: str | None = None) -> Bundle:
    data = calibration_for(bundle_id or bundle.bundle_id).to_bytes()
    return write_bundle(bundle.path, bundle.manifest, {**bundle.files(), CALIBRATION: data})


def edit_manifest(bundle: Bundle, change: dict[str, object]) -> None:
    path = bundle.path / MANIFEST
    path.write_text(json.dumps({**json.loads(path.read_bytes()), **change}))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_written_bundle_opens_with_the_same_contents(bundle: Bundle) -> None:
    opened = Bundle.open(bundle.path)
    assert opened.manifest == bundle.manifest
    assert opened.model_path.read_bytes() == GRAPH
    assert opened.bank.to_bytes() == bank().to_bytes()
    assert opened.calibration is None


@pytest.mark.parametrize("name", [MODEL, BANK, CALIBRATION])
def test_a_flipped_bit_names_its_file(bundle: Bundle, name: str) -> None:
    path = calibrated(bundle).path / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(BundleError, match=name):
        Bundle.open(bundle.path)


def test_a_flipped_bit_in_the_manifest_is_an_error_or_changes_the_id(bundle: Bundle) -> None:
    path = bundle.path / MANIFEST
    whole = path.read_bytes()
    for place in range(0, len(whole), 7):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        try:
            opened = Bundle.open(bundle.path)
            opened.bank  # noqa: B018
        except MdmfError:
            continue
        decides = (opened.manifest.model, opened.manifest.preprocessing, opened.manifest.files)
        unchanged = decides == (bundle.manifest.model, bundle.manifest.preprocessing, bundle.manifest.files)
        assert unchanged or opened.bundle_id != bundle.bundle_id


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 4}, "schema 4 is newer"),
        ({"schema_version": 4, "model": 7}, "schema 4 is newer"),
        ({"schema_version": 0}, "schema 0 is not known"),
        ({"model": {}}, "missing required field"),
        ({"preprocessing": {"crop": 1}}, "crop"),
        ({"files": {}}, "does not list model.onnx"),
        ({"files": {"../secret": {"sha256": "0", "size": 1}}}, "leaves the bundle"),
        ({"files": {"/etc/hostname": {"sha256": "0", "size": 1}}}, "leaves the bundle"),
    ],
)
def test_a_manifest_that_cannot_be_trusted_is_refused(bundle: Bundle, change: dict[str, object], message: str) -> None:
    edit_manifest(bundle, change)
    with pytest.raises(BundleError, match=message) as caught:
        Bundle.open(bundle.path)
    assert MANIFEST in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("data", [b"", b"{", b"\xff\xfe", b"[]"])
def test_a_manifest_that_is_not_json_is_refused(bundle: Bundle, data: bytes) -> None:
    (bundle.path / MANIFEST).write_bytes(data)
    with pytest.raises(BundleError, match=MANIFEST):
        Bundle.open(bundle.path)


@pytest.mark.parametrize("name", [MODEL, BANK, MANIFEST])
def test_a_missing_file_is_named(bundle: Bundle, name: str) -> None:
    (bundle.path / name).unlink()
    with pytest.raises(BundleError, match=name):
        Bundle.open(bundle.path)


def test_a_folder_that_is_no_bundle_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="is this folder a bundle"):
        Bundle.open(tmp_path)
    with pytest.raises(BundleError, match=r"'nowhere' is not a folder; give a .mdmf folder, or 'dinov2s' or 'starter'"):
        Bundle.open("nowhere")


@pytest.mark.parametrize("foreign", [bank(model_sha256="1" * 64), bank(sigma=2.0)])
def test_a_bank_of_another_model_is_refused(bundle: Bundle, foreign: object) -> None:
    other = write_bundle(bundle.path, bundle.manifest, {**bundle.files(), BANK: foreign.to_bytes()})
    with pytest.raises(BundleError, match="bank build"):
        Bundle.open(other.path).bank  # noqa: B018


def test_a_calibration_of_another_bank_is_refused(bundle: Bundle) -> None:
    with pytest.raises(BundleError, match="mdmf calibrate"):
        calibrated(bundle, bundle_id="2" * 64).calibration  # noqa: B018


def test_a_file_that_is_no_calibration_is_refused(bundle: Bundle) -> None:
    other = write_bundle(bundle.path, bundle.manifest, {**bundle.files(), CALIBRATION: b"{}"})
    with pytest.raises(CalibrationError, match=CALIBRATION):
        other.calibration  # noqa: B018


def test_thresholds_hold_where_verification_covers_now(bundle: Bundle) -> None:
    assert calibrated(bundle).calibration.holds_for == (Pair("onnxruntime", "fp32"),)
    records = (record(), record(runtime="openvino"), record(passed=False))
    later = msgspec.structs.replace(bundle.manifest, verification=records)
    rewritten = calibrated(Bundle(bundle.path, later))
    assert rewritten.calibration.holds_for == (Pair("openvino", "fp32"),)
    assert not rewritten.covers("onnxruntime", "fp32")


def test_a_gpus_record_counts_on_that_model_of_gpu_alone(bundle: Bundle) -> None:
    def on(gpu: str, passed: bool = True) -> Verification:
        return msgspec.structs.replace(record(passed, "tensorrt"), environment={"gpu": gpu})

    def covers(*records: Verification) -> bool:
        manifest = msgspec.structs.replace(bundle.manifest, verification=records)
        return ("tensorrt", "fp32") in manifest.covered(here)

    for here in ("NVIDIA H100 PCIe", None):
        assert covers(on("NVIDIA H100 PCIe")) is (here is not None)
        assert not covers(on("NVIDIA H100 SXM"))
        assert covers(on("NVIDIA H100 PCIe"), on("NVIDIA A100", passed=False)) is (here is not None)
        assert not covers(on("NVIDIA H100 PCIe"), on("NVIDIA H100 PCIe", passed=False))
        later = msgspec.structs.replace(bundle.manifest, verification=(record(), on("NVIDIA A100")))
        assert later.covered(here) == (("onnxruntime", "fp32"),)


def test_the_driver_is_not_asked_without_records_from_a_gpu(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mdmf_deploy.hardware.gpu.this_gpu", lambda: pytest.fail("asked"))
    assert bundle.covered == (("onnxruntime", "fp32"),)


def test_the_id_covers_exactly_the_parts_that_decide(bundle: Bundle, tmp_path: Path) -> None:
    before = bundle.bundle_id
    assert calibrated(bundle).bundle_id == before
    assert make_bundle(tmp_path / "c", verification=(), name="other").bundle_id == before
    assert make_bundle(tmp_path / "d", preprocessing=Preprocessing(crop=70)).bundle_id != before
    plans = {make_bundle(tmp_path / "d", preprocessing=Preprocessing(crop=56, crops=n)).bundle_id for n in (1, 2, 4)}
    assert len(plans) == 3
    assert before in plans
    sharper = msgspec.structs.replace(bundle.manifest.model, pool=3)
    assert make_bundle(tmp_path / "e", model=sharper).bundle_id != before
    for name, data in ((MODEL, b"other"), (BANK, bank(7).to_bytes())):
        changed = write_bundle(tmp_path / name, bundle.manifest, {**bundle.files(), name: data})
        assert changed.bundle_id != before


def test_the_calibration_has_an_id_of_its_own(bundle: Bundle) -> None:
    """Other thresholds from the same scores change it. Another verification record does not."""
    assert bundle.calibration_id is None
    scores = [i / 16 for i in range(20)]
    ids = []
    for fprs in ([0.1], [0.2], [0.1, 0.2]):
        data = calibration_of(scores, fprs, bundle_id=bundle.bundle_id).to_bytes()
        written = write_bundle(bundle.path, bundle.manifest, {**bundle.files(), CALIBRATION: data})
        assert written.bundle_id == bundle.bundle_id
        assert written.calibration_id == hashlib.sha256(data).hexdigest()
        ids.append(written.calibration_id)
    assert len(set(ids)) == 3
    verified = add_record(written, record(runtime="openvino"))
    assert (len(verified.covered), verified.calibration_id) == (2, ids[-1])
    assert Bundle.open(bundle.path).calibration_id == ids[-1]


def test_the_format_is_pinned(tmp_path: Path) -> None:
    """A change of this id orphans every calibration in the world. If it must change, raise SCHEMA_VERSION."""
    # The last bit of a computed self term differs between machines.
    pinned = dataclasses.replace(bank(), self_term=0.125)
    written = write_bundle(tmp_path / "b", manifest(), {MODEL: GRAPH, BANK: pinned.to_bytes()})
    assert manifest().model_sha256 == "48e4e8cc166df0e97b80f8ffc6e55448bb92e17488bc6dd138f3e58152443f7b"
    assert written.manifest.files[BANK].sha256 == "7c00a4bd516453a3e88e66b66041f85e9f46daadac0b2ec0f9d45d613d4c0b46"
    assert written.bundle_id == "37802874b721da4e23eed5975e3d902193880dafafbd926d7523d49a6cb6e406"


def test_the_same_bundle_has_the_same_bytes(bundle: Bundle, tmp_path: Path) -> None:
    assert contents(make_bundle(tmp_path / "again").path) == contents(bundle.path)


@pytest.mark.parametrize("calls", range(1, 12))
def test_an_interrupted_write_leaves_the_old_bundle_whole(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, calls: int
) -> None:
    """Interrupt each step of the write in turn."""
    before = bundle.bundle_id
    left = calls

    def dying(original: object) -> object:
        def step(*arguments: object, **options: object) -> object:
            nonlocal left
            left -= 1
            if left == 0:
                raise KeyboardInterrupt
            return original(*arguments, **options)

        return step

    for owner, name in ((os, "fsync"), (Path, "rename"), (Path, "write_bytes")):
        monkeypatch.setattr(owner, name, dying(getattr(owner, name)))
    died = False
    try:
        write_bundle(bundle.path, bundle.manifest, {**bundle.files(), BANK: bank(7).to_bytes()})
    except KeyboardInterrupt:
        died = True
    monkeypatch.undo()
    now = Bundle.open(bundle.path)
    assert now.bank.to_bytes() in (bank().to_bytes(), bank(7).to_bytes())
    assert died or now.bundle_id != before
    assert [path.name for path in bundle.path.parent.iterdir()] == [bundle.path.name]


def test_a_copy_of_a_bundle_shares_no_file_with_it(bundle: Bundle, tmp_path: Path) -> None:
    copy = write_bundle(tmp_path / "copy.mdmf", bundle.manifest, bundle.files())
    for name in bundle.files():
        assert not (copy.path / name).samefile(bundle.path / name)
        # A program that changes a file in place, as no command of ours does.
        with (copy.path / name).open("r+b") as file:
            file.write(b"changed")
    assert Bundle.open(bundle.path).bundle_id == bundle.bundle_id


@pytest.mark.skipif(os.name != "posix", reason="not every file system has hard links")
def test_a_bundle_replaced_by_itself_keeps_its_files(bundle: Bundle) -> None:
    """Weights take gigabytes, and a new record does not change them."""
    before = (bundle.path / MODEL).stat().st_ino
    write_bundle(bundle.path, bundle.manifest, bundle.files())
    assert (bundle.path / MODEL).stat().st_ino == before


@pytest.mark.skipif(os.name != "posix", reason="not every file system has hard links")
def test_a_file_that_has_other_names_is_copied_even_in_place(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "other name").hardlink_to(bundle.path / MODEL)
    write_bundle(bundle.path, bundle.manifest, bundle.files())
    assert not (bundle.path / MODEL).samefile(tmp_path / "other name")


def test_a_link_to_a_bundle_stays_a_link(bundle: Bundle, tmp_path: Path) -> None:
    link = tmp_path / "link.mdmf"
    link.symlink_to(bundle.path)
    write_bundle(link, bundle.manifest, {**bundle.files(), BANK: bank(7).to_bytes()})
    assert link.is_symlink()
    assert Bundle.open(bundle.path).bundle_id != bundle.bundle_id


def test_writing_over_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "holiday.jpg").write_bytes(b"precious")
    with pytest.raises(BundleError, match="is not a bundle"):
        make_bundle(tmp_path)
    with pytest.raises(BundleError, match="is not a bundle"):
        make_bundle(tmp_path / "holiday.jpg")
    assert (tmp_path / "holiday.jpg").read_bytes() == b"precious"


def test_a_destination_that_cannot_be_written_is_an_error_with_a_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_only(*_: object, **__: object) -> None:
        raise PermissionError(30, "Read-only file system")

    # chmod would not do, because tests may run as root.
    monkeypatch.setattr(Path, "mkdir", read_only)
    with pytest.raises(BundleError, match="Read-only file system; choose a folder"):
        make_bundle(tmp_path / "b.mdmf")


def test_a_full_disk_is_no_reason_to_choose_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(BundleError, match=r"b\.mdmf: No space left on device; free some space$"):
        make_bundle(tmp_path / "b.mdmf")
    assert not list(tmp_path.iterdir())


def test_weights_that_the_manifest_does_not_list_are_refused(bundle: Bundle) -> None:
    (bundle.path / "model.onnx.data").write_bytes(b"weights that the graph may read")
    with pytest.raises(BundleError, match=r"model\.onnx\.data.*not in the manifest"):
        Bundle.open(bundle.path)


def test_a_folder_does_not_replace_the_shipped_bundle_of_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shipped = make_bundle(tmp_path / "package" / "starter.mdmf")
    monkeypatch.setattr("mdmf_deploy.bundle.bundle.shipped", lambda name: tmp_path / "package" / f"{name}.mdmf")
    monkeypatch.chdir(tmp_path)
    other = make_bundle(tmp_path / "starter", name="planted")
    assert Bundle.open("starter").path == shipped.path
    assert Bundle.open("./starter").manifest.name == Bundle.open(other.path).manifest.name == "planted"
    with pytest.raises(BundleError, match="'elsewhere'"):
        Bundle.open("elsewhere")


def test_a_bundle_of_schema_1_keeps_its_id_and_its_thresholds_for_all_sizes(bundle: Bundle) -> None:
    schema_1(bundle, [0.1] * 8 + [0.4], 0.1, 0.4)
    opened = Bundle.open(bundle.path)
    assert (opened.manifest.schema_version, opened.bundle_id) == (1, bundle.bundle_id)
    assert opened.calibration is not None
    for pixels in (1, 10**6, 10**8):
        judged = opened.calibration.judge(0.5, 0.25, pixels, "onnxruntime", "fp32")
        assert (judged.verdict, judged.threshold, judged.size_group) == ("generated", 0.4, "all sizes")
        assert opened.calibration.judge(0.5, 0.2, pixels, "onnxruntime", "fp32").reason == "featureless"


def test_a_calibration_of_the_other_schema_is_refused(bundle: Bundle) -> None:
    old = schema_1(bundle, [0.1] * 8 + [0.4], 0.1, 0.4)
    write_bundle(old.path, bundle.manifest, old.files())
    with pytest.raises(CalibrationError, match=r"calibration\.json is not a calibration"):
        Bundle.open(bundle.path).calibration  # noqa: B018


def test_a_hint_can_be_run_as_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`mdmf calibrate` replaces no bundle, so the name after -o is new in the working folder."""
    monkeypatch.chdir(tmp_path)
    for expected in ("mine.mdmf", "new.mdmf", "mine2.mdmf", "mine3.mdmf"):
        assert hint("calibrate", Path("a b.mdmf"), "REALS") == f"`mdmf calibrate 'a b.mdmf' REALS -o {expected}`"
        Path(expected).mkdir()


def test_a_place_that_takes_no_bundle_is_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_destination(tmp_path / "new" / "a.mdmf")
    (tmp_path / "file").touch()
    with pytest.raises(BundleError, match="file is a file; choose another -o"):
        check_destination(tmp_path / "file" / "a.mdmf")
    monkeypatch.setattr("os.access", lambda path, mode: path != tmp_path)  # root may write anywhere
    with pytest.raises(BundleError, match="cannot be written to; choose another -o"):
        check_destination(tmp_path / "new" / "a.mdmf")
