"""C2PA manifests: valid, broken, and not read, each said as such, and never by way of a network."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from helpers.bad_inputs import photo
from helpers.labelled import (
    AI,
    CAPTURE,
    MEDIA_TYPES,
    NOWHERE,
    VOCABULARY,
    action,
    exif_block,
    identity,
    packet,
    picture,
    signed,
    signed_picture,
    with_text,
    with_xmp,
)
from helpers.without_sockets import supported

from mdmf_deploy.errors import ImageError, install
from mdmf_deploy.images.provenance import Provenance, manifest, read_provenance
from mdmf_deploy.images.provenance.claims import Finding
from mdmf_deploy.images.provenance.report import judged

pytest.importorskip("c2pa")

HELPERS = Path(__file__).parents[2] / "helpers"
HOLDS = 'signed by "Test Org", signature and hashes valid, signer not checked'


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


@pytest.fixture(scope="module")
def signed_jpeg() -> bytes:
    return signed_picture("JPEG", AI)


@pytest.mark.parametrize("format", MEDIA_TYPES)
def test_a_valid_manifest_gives_its_source_type_and_a_changed_file_is_invalid(format: str) -> None:
    if format == "HEIF":
        pytest.importorskip("pillow_heif")
    data = signed_picture(format, AI)
    assert read_provenance(data) == Provenance("claims_ai", f"C2PA: trainedAlgorithmicMedia, {HOLDS}")
    changed = read_provenance(flipped(data, len(data) - 5))
    assert changed.claim == "invalid"
    assert changed.source is not None
    assert changed.source.startswith("C2PA: ")


@pytest.mark.parametrize(
    ("name", "codec", "media_type"),
    [("clip.mp4", "mp4v", "video/mp4"), ("clip.mov", "mp4v", "video/quicktime"), ("clip.avi", "MJPG", "video/avi")],
)
def test_a_video_is_read_as_well(name: str, codec: str, media_type: str, tmp_path: Path) -> None:
    cv2 = pytest.importorskip("cv2")
    path = tmp_path / name
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*codec), 10, (48, 32))
    for seed in range(3):
        writer.write(photo(seed=seed))
    writer.release()
    plain = path.read_bytes()
    assert read_provenance(plain) == Provenance()
    data = signed(plain, media_type, AI)
    assert read_provenance(data) == Provenance("claims_ai", f"C2PA: trainedAlgorithmicMedia, {HOLDS}")
    assert read_provenance(flipped(data, len(data) - 20)).claim == "invalid"


def test_a_jpeg_xl_is_read_without_its_codec() -> None:
    def box(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I4s", len(body) + 8, kind) + body

    head = box(b"JXL ", b"\r\n\x87\n") + box(b"ftyp", b"jxl \0\0\0\0jxl ")
    data = signed(head + box(b"jxlc", b"\xff\x0a" + bytes(99)), "image/jxl", AI)
    assert read_provenance(data) == Provenance("claims_ai", f"C2PA: trainedAlgorithmicMedia, {HOLDS}")
    assert read_provenance(flipped(data, len(data) - 5)).claim == "invalid"
    assert read_provenance(head + box(b"xml ", packet(Software="Midjourney"))).claim == "claims_ai"
    assert read_provenance(head + box(b"Exif", bytes(4) + exif_block({305: "Midjourney"}))).claim == "claims_ai"


def test_changed_pixels_and_a_changed_signature_are_told_apart(signed_jpeg: bytes) -> None:
    pixels = read_provenance(flipped(signed_jpeg, len(signed_jpeg) - 5))
    assert pixels == Provenance("invalid", "C2PA: assertion.dataHash.mismatch")
    label = signed_jpeg.index(b"trainedAlgorithmicMedia")
    assertion = read_provenance(flipped(signed_jpeg, label))
    assert assertion == Provenance("invalid", "C2PA: assertion.hashedURI.mismatch")


@pytest.mark.parametrize(
    ("actions", "wanted"),
    [
        ([CAPTURE], ("claims_capture", "digitalCapture")),
        ([CAPTURE, action("c2pa.transcoded"), action("c2pa.published")], ("claims_capture", "digitalCapture")),
        ([CAPTURE, action("c2pa.cropped")], ("claims_edited", 'digitalCapture, "c2pa.cropped"')),
        ([action("c2pa.created", "humanEdits")], ("claims_edited", "humanEdits")),
        ([CAPTURE, action("c2pa.edited", "compositeWithTrainedAlgorithmicMedia")],
         ("claims_ai", "compositeWithTrainedAlgorithmicMedia")),
        ([action("c2pa.created", "algorithmicMedia")], ("claims_ai", "algorithmicMedia")),
        ([action("c2pa.created", "digitalCreation"), action("c2pa.cropped")], ("none", "digitalCreation")),
        ([action("c2pa.created", "empty")], ("none", "no source type")),
        ([action("c2pa.created", "empty"), action("c2pa.edited")], ("claims_edited", '"c2pa.edited"')),
        ([action("c2pa.created", "empty", softwareAgent={"name": "Bing Image Creator"})],
         ("claims_ai", "made by Microsoft Designer")),
        ([action("c2pa.created", "empty", softwareAgent={"name": "Adobe Photoshop"})], ("none", "no source type")),
    ],
)  # fmt: skip
def test_actions_and_their_claims(actions: list[dict[str, object]], wanted: tuple[str, str]) -> None:
    found = read_provenance(signed_picture("JPEG", *actions))
    assert (found.claim, found.source) == (wanted[0], f"C2PA: {wanted[1]}, {HOLDS}")


@pytest.mark.parametrize(
    ("relationship", "part", "own", "wanted"),
    [
        ("parentOf", AI, [], ("claims_ai", "trainedAlgorithmicMedia")),
        ("parentOf", CAPTURE, [], ("claims_capture", "digitalCapture")),
        ("componentOf", AI, [CAPTURE], ("claims_ai", "trainedAlgorithmicMedia")),
        ("componentOf", CAPTURE, [action("c2pa.created", "digitalCreation")], ("none", "digitalCreation")),
        ("inputTo", AI, [CAPTURE], ("claims_capture", "digitalCapture")),
    ],
)
def test_what_went_into_a_picture_counts_if_it_is_still_in_it(
    relationship: str, part: dict[str, object], own: list[dict[str, object]], wanted: tuple[str, str]
) -> None:
    before = signed_picture("JPEG", part)
    found = read_provenance(signed(before, "image/jpeg", *own, ingredient=(relationship, before)))
    assert (found.claim, found.source) == (wanted[0], f"C2PA: {wanted[1]}, {HOLDS}")


def report(*failures: str, state: str = "Invalid") -> dict[str, Any]:
    """Return a report of the library with these failures."""
    data = {"actions": [{"action": "c2pa.created", "digitalSourceType": VOCABULARY + "digitalCapture"}]}
    return {
        "active_manifest": "a",
        "manifests": {
            "a": {"assertions": [{"label": "c2pa.actions.v2", "data": data}], "signature_info": {"issuer": "Test Org"}}
        },
        "validation_state": state,
        "validation_results": {
            "activeManifest": {
                "success": [{"code": "claimSignature.validated"}],
                "failure": [{"code": code} for code in failures],
            }
        },
    }


def test_a_certificate_that_expires_or_is_not_trusted_changes_nothing() -> None:
    wanted = judged(report(state="Valid"))
    assert wanted == Finding("claims_capture", f"C2PA: digitalCapture, {HOLDS}")
    assert judged(report(state="Trusted")) == wanted
    assert judged(report("signingCredential.expired")) == wanted
    assert judged(report("signingCredential.untrusted", "signingCredential.expired")) == wanted
    broken = judged(report("signingCredential.expired", "assertion.dataHash.mismatch"))
    assert broken == Finding("invalid", "C2PA: assertion.dataHash.mismatch")


def test_a_report_without_a_validated_signature_is_invalid() -> None:
    unsure = report("signingCredential.expired")
    unsure["validation_results"]["activeManifest"]["success"] = []
    assert judged(unsure).claim == "invalid"
    assert judged(report() | {"validation_results": {}}).claim == "invalid"


def test_a_manifest_chain_that_leads_in_a_circle_ends() -> None:
    circle = report(state="Valid")
    circle["manifests"]["a"]["ingredients"] = [{"relationship": "parentOf", "active_manifest": "a"}] * 50
    assert judged(circle).claim == "claims_capture"


@pytest.mark.parametrize("name", ['OpenAI", signer trusted', "a\nb\x1b[31mc", "\u202egnorts\u2066", "x" * 64])
def test_a_signers_name_cannot_break_out_of_its_line(name: str) -> None:
    source = read_provenance(signed_picture("JPEG", AI, signer=identity(name))).source
    assert source is not None
    assert source.isprintable()
    assert source.count('"') == 2
    assert source.endswith('", signature and hashes valid, signer not checked')


def test_a_signed_capture_whose_text_says_ai_claims_ai() -> None:
    """The hash covers the text, so that whoever signed the capture also signed the text."""
    text = with_text("parameters", "a cat\nSteps: 20, Sampler: Euler, Seed: 1")
    found = read_provenance(signed(text, "image/png", CAPTURE))
    assert found == Provenance("claims_ai", f"PNG text: parameters (Stable Diffusion); C2PA: digitalCapture, {HOLDS}")


def test_a_broken_manifest_outranks_every_other_claim() -> None:
    data = signed(with_xmp("JPEG", packet(CreatorTool="Midjourney")), "image/jpeg", CAPTURE)
    found = read_provenance(flipped(data, len(data) - 5))
    assert found.claim == "invalid"
    assert found.source == "C2PA: assertion.dataHash.mismatch; XMP: CreatorTool (Midjourney)"


def test_without_the_library_the_row_says_how_to_read_the_manifest(
    signed_jpeg: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "c2pa", None)
    wanted = f"C2PA manifest not read; {install('provenance')}"
    assert read_provenance(signed_jpeg) == Provenance("none", wanted)


def test_a_large_file_is_not_read(signed_jpeg: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest, "MOST_BYTES", len(signed_jpeg) - 1)
    found = read_provenance(signed_jpeg)
    assert found.claim == "none"
    assert str(found.source).startswith("C2PA manifest not read; the file is larger than")


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (ImageError("too_slow", "x"), "it takes too long"),
        (ImageError("too_much_memory", "x"), "it takes too much memory"),
        (ImageError("corrupt", "the decoder crashed"), "the library that reads it failed"),
        (BlockingIOError("no more processes"), "no process could be started for it"),
    ],
)
def test_a_library_that_fails_costs_its_claim_alone(
    signed_jpeg: bytes, monkeypatch: pytest.MonkeyPatch, error: Exception, why: str
) -> None:
    @contextmanager
    def failing(*_: object) -> Iterator[None]:
        raise error
        yield

    monkeypatch.setattr("mdmf_deploy.images.isolation.conversation.conversation", failing)
    assert read_provenance(signed_jpeg) == Provenance("none", f"C2PA manifest not read; {why}")


def test_a_manifest_cut_anywhere_is_invalid_or_not_there(signed_jpeg: bytes) -> None:
    for end in range(0, len(signed_jpeg), 211):
        found = read_provenance(signed_jpeg[:end])
        assert found.claim in ("invalid", "none")


def read_without_sockets(files: dict[str, bytes], change: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Read manifests in a process that is killed at its first socket, after a change to the library's settings."""
    for name, data in files.items():
        (folder / name).write_bytes(data)
    code = (
        f"import sys; sys.path.insert(0, {str(HELPERS)!r})\n"
        "import json, pathlib, without_sockets\n"
        "from mdmf_deploy.images.provenance import read_provenance\n"
        "from mdmf_deploy.images.provenance.manifest_task import SETTINGS, read_manifest\n"
        "without_sockets.forbid_sockets()\n"
        f"{change}\n"
        "files = {path.name: path.read_bytes() for path in pathlib.Path(sys.argv[1]).iterdir()}\n"
        "found = {name: read_manifest(data, 'image/jpeg').source for name, data in files.items()}\n"
        "found |= {f'{name}, in a child': read_provenance(data).source for name, data in files.items()}\n"
        "print(json.dumps(found))\n"
    )
    return subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True, check=False)


SWITCHES_ON = "SETTINGS['verify'].update(ocsp_fetch=True, remote_manifest_fetch=True)"
ANY_HOST = "SETTINGS['core'].pop('allowed_network_hosts')"


def test_nothing_is_fetched(tmp_path: Path, signed_jpeg: bytes) -> None:
    if not supported():
        pytest.skip("sockets can be forbidden on Linux alone")
    elsewhere = signed_picture("JPEG", AI, url=NOWHERE + "a.c2pa", embedded=False)
    files = {"elsewhere": elsewhere, "both": signed_picture("JPEG", AI, url=NOWHERE + "a.c2pa"), "inside": signed_jpeg}
    holds = f"C2PA: trainedAlgorithmicMedia, {HOLDS}"
    not_read = "C2PA manifest not read; it is stored elsewhere, and nothing is fetched"
    wanted = {"elsewhere": not_read, "both": holds, "inside": holds}
    for change in ("", SWITCHES_ON, ANY_HOST):
        done = read_without_sockets(files, change, tmp_path)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout) == wanted | {f"{name}, in a child": text for name, text in wanted.items()}


@pytest.mark.parametrize("name", ["elsewhere", "inside"])
def test_the_process_of_that_test_would_notice(name: str, tmp_path: Path, signed_jpeg: bytes) -> None:
    """A manifest that is elsewhere is fetched without the settings, and so is a certificate's status."""
    if not supported():
        pytest.skip("sockets can be forbidden on Linux alone")
    data = signed_jpeg if name == "inside" else signed_picture("JPEG", AI, url=NOWHERE + "a.c2pa", embedded=False)
    assert read_without_sockets({name: data}, f"{SWITCHES_ON}\n{ANY_HOST}", tmp_path).returncode < 0


def test_a_picture_without_a_manifest_never_starts_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mdmf_deploy.images.isolation.conversation.conversation", None)
    for format in ("JPEG", "PNG", "WEBP", "TIFF", "AVIF"):
        assert read_provenance(picture(format)) == Provenance()
