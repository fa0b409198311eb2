"""Claims stand beside the score: they change neither it nor the verdict, and the table shows them only if there are."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.clips import write_clip
from helpers.labelled import AI, packet, picture, signed, with_segment, with_text, with_xmp
from hypothesis import given
from hypothesis import strategies as st

from mdmf_deploy.detection.detector import Detector
from mdmf_deploy.detection.rows import Row, table_line
from mdmf_deploy.images.provenance.claims import Finding, merged

SETTINGS = "a cat\nSteps: 20, Sampler: Euler a, Seed: 1"
JUDGED = (
    "status",
    "score",
    "evidence",
    "p_value",
    "verdict",
    "reason",
    "threshold",
    "width",
    "height",
    "contributions",
)


def test_metadata_change_neither_score_nor_verdict(tiny_bundle: Path) -> None:
    claiming = [
        with_text("parameters", SETTINGS),
        with_xmp("JPEG", packet(DigitalSourceType="digitalCapture")),
        with_segment(0xFE, SETTINGS.encode()),
    ]
    plain = [picture("PNG"), picture("JPEG"), picture("JPEG")]
    with Detector(tiny_bundle) as detector:
        rows, bare = detector.detect(claiming), detector.detect(plain)
    assert [row.provenance for row in rows] == ["claims_ai", "claims_capture", "claims_ai"]
    assert {row.provenance for row in bare} == {"none"}
    for row, other in zip(rows, bare, strict=True):
        assert row.score is not None
        assert [getattr(row, name) for name in JUDGED] == [getattr(other, name) for name in JUDGED]


def test_neither_does_a_manifest_and_many_threads_read_the_same(tiny_bundle: Path) -> None:
    pytest.importorskip("c2pa")
    plain = picture("JPEG")
    data = signed(plain, "image/jpeg", AI)
    broken = data[:-5] + bytes([data[-5] ^ 1]) + data[-4:]
    with Detector(tiny_bundle, threads=4) as detector:
        bare, *rows = detector.detect([plain, *8 * [data], broken])
    assert [row.provenance for row in rows] == [*8 * ["claims_ai"], "invalid"]
    assert {row.provenance_source for row in rows[:-1]} == {
        'C2PA: trainedAlgorithmicMedia, signed by "Test Org", signature and hashes valid, signer not checked'
    }
    for row in rows[:-1]:
        assert [getattr(row, name) for name in JUDGED] == [getattr(bare, name) for name in JUDGED]


def test_a_file_that_cannot_be_scored_keeps_its_claim(tiny_bundle: Path) -> None:
    data = with_text("parameters", SETTINGS)
    with Detector(tiny_bundle) as detector:
        (row,) = detector.detect([data[: data.index(b"IDAT") + 40]])
    assert (row.status, row.provenance) == ("error", "claims_ai")
    assert table_line(row).endswith("  [claims_ai: PNG text: parameters (Stable Diffusion)]")


def test_the_table_shows_a_claim_last_and_only_if_there_is_one() -> None:
    claim = Row(
        uri="a.png", provenance="claims_ai", provenance_source="PNG text: prompt (ComfyUI)", reason="featureless"
    )
    assert table_line(claim).endswith("a.png  (featureless)  [claims_ai: PNG text: prompt (ComfyUI)]")
    for row in (Row(uri="a.png"), Row(uri="a.png", provenance="none", provenance_source="C2PA manifest not read; x")):
        assert table_line(row).endswith("  a.png")


@given(st.text())
def test_no_control_character_gets_into_the_table(text: str) -> None:
    found = merged([Finding("claims_ai", text)])
    assert table_line(Row(uri="a.png", provenance=found.claim, provenance_source=found.source)).isprintable()


def test_a_video_has_claims_as_well(tiny_bundle: Path, tmp_path: Path) -> None:
    pytest.importorskip("cv2")
    plain = tmp_path / "plain.mp4"
    write_clip(plain)
    claiming = tmp_path / "claiming.mp4"
    claiming.write_bytes(signed(plain.read_bytes(), "video/mp4", AI))
    with Detector(tiny_bundle, frames=2) as detector:
        bare, row, again = detector.detect([plain, claiming, claiming.read_bytes()])
    assert bare.provenance == "none"
    assert row.provenance == again.provenance == "claims_ai"
    assert (row.score, row.verdict) == (bare.score, bare.verdict)
