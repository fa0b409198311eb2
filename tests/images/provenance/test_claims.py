"""When claims disagree, one of them counts, and the line that names their places is short and printable."""

from __future__ import annotations

from itertools import permutations
from typing import get_args

import pytest
from helpers.labelled import packet, with_text, with_xmp
from hypothesis import given
from hypothesis import strategies as st

from mdmf_deploy.images.provenance import Claim, Provenance, read_provenance
from mdmf_deploy.images.provenance.claims import MOST_CHARACTERS, PRECEDENCE, Finding, merged, printable, quoted

CLAIMS = get_args(Claim)


def test_every_claim_has_a_rank() -> None:
    assert sorted(PRECEDENCE) == sorted(CLAIMS)


@pytest.mark.parametrize("claims", list(permutations(CLAIMS, 3)))
def test_the_order_of_the_findings_does_not_decide(claims: tuple[Claim, ...]) -> None:
    found = merged([Finding(claim, f"from {claim}") for claim in claims])
    ranked = sorted(claims, key=["invalid", "claims_ai", "claims_edited", "claims_capture", "none"].index)
    assert found == Provenance(ranked[0], "; ".join(f"from {claim}" for claim in ranked))


def test_no_findings_are_no_claim() -> None:
    assert merged([]) == Provenance("none", None)


def test_several_places_are_named_once_each() -> None:
    both = packet("<n:DigitalSourceType>humanEdits</n:DigitalSourceType>", DigitalSourceType="digitalCapture")
    twice = both.replace(b"</rdf:RDF>", b' n:DigitalSourceType="humanEdits"</rdf:RDF>')
    found = read_provenance(with_xmp("JPEG", twice))
    assert found == Provenance("claims_edited", "XMP: humanEdits; XMP: digitalCapture")


@given(st.lists(st.builds(Finding, st.sampled_from(CLAIMS), st.text()), min_size=1, max_size=5))
def test_a_source_is_one_short_printable_line(findings: list[Finding]) -> None:
    source = merged(findings).source
    assert source is not None
    assert source.isprintable()
    assert len(source) <= MOST_CHARACTERS == 200


@given(st.text(st.characters(codec="utf-8")), st.integers(10, 100))
def test_printable_text_keeps_its_words(text: str, most: int) -> None:
    shown = printable(text, most)
    assert shown.isprintable()
    assert len(shown) <= most
    assert printable(shown, most) == shown
    if text.isprintable() and len(text) <= most:
        assert shown == " ".join(text.split())


@pytest.mark.parametrize(
    "hidden", ["\n", "\r\n", "\x1b[31m", "\x07", "\u202e", "\u2066", "\u200b", "\u2028", "\ud800", "\0"]
)
def test_control_and_bidirectional_characters_are_left_out(hidden: str) -> None:
    shown = printable(f"a{hidden}b", 50)
    assert not set(shown) & (set(hidden) - set("[31m"))
    assert shown[0] + shown[-1] == "ab"


@given(st.text())
def test_a_quoted_name_ends_where_its_quotes_do(name: str) -> None:
    shown = quoted(name)
    assert (shown[0], shown[-1], shown.count('"')) == ('"', '"', 2)
    assert shown.isprintable()


def test_a_texts_words_never_reach_the_source() -> None:
    text = "\x1b]0;x\x07\u202e Steps: 20, Sampler: Euler, Seed: 1"
    found = read_provenance(with_text("parameters", text, "iTXt"))
    assert found.source == "PNG text: parameters (Stable Diffusion)"
