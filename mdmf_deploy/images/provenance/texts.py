"""Claims in the texts of PNG, EXIF, IPTC-IIM and JPEG comments."""

from __future__ import annotations

import re

from mdmf_deploy.images.provenance.claims import Finding
from mdmf_deploy.images.provenance.generators import credited, generator, recipe
from mdmf_deploy.images.provenance.tags import (
    IMAGE_DESCRIPTION,
    MAKE,
    MODEL,
    SOFTWARE,
    USER_COMMENT,
    tags,
)

# Keywords that only one program writes -> the program, and a pattern that its text matches
_OWN_KEYWORDS: dict[str, tuple[str, re.Pattern[str]]] = {
    "workflow": ("ComfyUI", re.compile(r'\s{0,99}\{[^\0]{0,4000}?"nodes"\s{0,9}:')),
    "invokeai_metadata": ("InvokeAI", re.compile(r"\s{0,99}\{")),
    "invokeai_graph": ("InvokeAI", re.compile(r"\s{0,99}\{")),
    "invokeai_workflow": ("InvokeAI", re.compile(r"\s{0,99}\{")),
    "sd-metadata": ("InvokeAI", re.compile(r"\s{0,99}\{")),
    "Dream": ("InvokeAI", re.compile(r"[^\0]{0,4000}? -(?:s|S) ?\d")),
    "fooocus_scheme": ("Fooocus", re.compile(r"\w")),
    "Title": ("NovelAI", re.compile(r"(?:NovelAI|AI) generated image")),
    "num_inference_steps": ("Stable Diffusion", re.compile(r"\d")),
}
_RECIPE_KEYWORDS = {"parameters", "prompt", "workflow", "Comment", "Description", "generation_data"}
_PROGRAM_KEYWORDS = {"Software", "Source"}
KEYWORDS = frozenset(_OWN_KEYWORDS) | _RECIPE_KEYWORDS | _PROGRAM_KEYWORDS
"""Every keyword of a PNG text that is read (PNG specification, third edition, section 11.3.3)."""

_FIELDS = {SOFTWARE: "Software", MAKE: "Make"}
_FREE_TEXTS = {IMAGE_DESCRIPTION: "ImageDescription", USER_COMMENT: "UserComment", MAKE: "Make", MODEL: "Model"}
# IIM 4.2: record 2, datasets 65 (Originating Program) and 110 (Credit), with lengths below 256
_IIM = re.compile(rb"\x1c\x02([\x41\x6e])\0(.)", re.DOTALL)
_IIM_NAMES = {b"\x41": ("OriginatingProgram", generator), b"\x6e": ("Credit", credited)}


def png_findings(keyword: str, text: str) -> list[Finding]:
    """Return the claim of one text of a PNG."""
    program = generator(text) if keyword in _PROGRAM_KEYWORDS else None
    if program is None and keyword in _OWN_KEYWORDS:
        name, pattern = _OWN_KEYWORDS[keyword]
        program = name if pattern.match(text) else None
    if program is None and keyword in _RECIPE_KEYWORDS:
        program = recipe(text)
    return [] if program is None else [Finding("claims_ai", f"PNG text: {keyword} ({program})")]


def exif_findings(block: bytes) -> list[Finding]:
    """Return the claims of an EXIF block: names of generators, and lists of their settings.

    A camera's make and model are no claim of a capture, because anyone can copy them.
    """
    found = tags(block)
    findings = []
    for tag, name in (_FREE_TEXTS | _FIELDS).items():
        text = _exif_text(found.get(tag, b""), tag)
        program = generator(text) if tag in _FIELDS else None
        if program is None and tag in _FREE_TEXTS:
            program = recipe(text)
        if program is not None:
            findings.append(Finding("claims_ai", f"EXIF: {name} ({program})"))
    return findings


def iptc_findings(block: bytes) -> list[Finding]:
    """Return the generators that a block of IPTC-IIM names, as Google's "Made with Google AI" in Credit."""
    findings = []
    for match, _ in zip(_IIM.finditer(block), range(16), strict=False):
        text = block[match.end() : match.end() + match[2][0]].decode("utf-8", "replace")
        name, named = _IIM_NAMES[match[1]]
        program = named(text)
        if program is not None:
            findings.append(Finding("claims_ai", f"IPTC: {name} ({program})"))
    return findings


def comment_findings(comment: bytes) -> list[Finding]:
    """Return the claim of a JPEG's comment."""
    program = recipe(comment.decode("utf-8", "replace"))
    return [] if program is None else [Finding("claims_ai", f"JPEG comment ({program})")]


def _exif_text(value: bytes, tag: int) -> str:
    if tag != USER_COMMENT:
        return _decoded(value)
    code, text = value[:8], value[8:]  # Exif 3.0, section 4.6.6.5.2: 8 bytes say which code the text is in
    if code != b"UNICODE\0":
        return _decoded(text if code in (b"ASCII\0\0\0", bytes(8)) else value)
    # The byte order is that of the block, but writers differ. Latin text has its zeros before or after its letters.
    return text.decode("utf-16-be" if text[:200:2].count(0) >= text[1:200:2].count(0) else "utf-16-le", "replace")


def _decoded(value: bytes) -> str:
    """Return a text that should be ASCII, and is UTF-8 or Latin-1 in practice."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode("latin-1")
