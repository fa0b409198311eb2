"""Claims that anyone can write: found wherever generators put them, and nowhere else."""

from __future__ import annotations

import json

import pytest
from helpers.labelled import VOCABULARY, exif_block, packet, picture, with_exif, with_segment, with_text, with_xmp

from mdmf_deploy.images.provenance import Claim, Provenance, read_provenance
from mdmf_deploy.images.provenance.source_types import SOURCE_TYPES

FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "AVIF", "HEIF")
A1111 = (
    "a cat, (masterpiece)\nNegative prompt: blurry\nSteps: 20, Sampler: Euler a, CFG scale: 7, Seed: 1, Size: 512x512"
)
COMFY_PROMPT = json.dumps({"3": {"inputs": {"seed": 1, "steps": 20}, "class_type": "KSampler"}})
COMFY_WORKFLOW = json.dumps({"last_node_id": 9, "last_link_id": 9, "nodes": [{"id": 7}], "links": []})
NOVELAI = json.dumps({"prompt": "1girl", "steps": 28, "sampler": "k_euler", "seed": 1, "uc": "lowres"})
SOFTWARE, MAKE, MODEL, DESCRIPTION, COMMENT = 305, 271, 272, 270, 37510
JOB = "a cat --v 6 Job ID: 01234567-89ab-cdef-0123-456789abcdef"
NONE = Provenance("none", None)


def given(format: str) -> None:
    """Skip if this format cannot be written here."""
    if format == "HEIF":
        pytest.importorskip("pillow_heif")


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(
    "form",
    [
        'a n:DigitalSourceType="{}"',
        "<n:DigitalSourceType>{}</n:DigitalSourceType>",
        '<Iptc4xmpExt:DigitalSourceType rdf:resource="{}"/>',
    ],
)
def test_a_source_type_is_found_in_every_format_and_form(format: str, form: str) -> None:
    given(format)
    data = with_xmp(format, packet(form.format(VOCABULARY + "compositeWithTrainedAlgorithmicMedia")))
    assert read_provenance(data) == Provenance("claims_ai", "XMP: compositeWithTrainedAlgorithmicMedia")


@pytest.mark.parametrize("name", SOURCE_TYPES)
def test_every_source_type_is_named_with_its_claim(name: str) -> None:
    for value in (
        VOCABULARY + name,
        f"digsrctype:{name}",
        name,
        f"https://cv.iptc.org/newscodes/digitalsourcetype/{name}/",
    ):
        found = read_provenance(with_xmp("JPEG", packet(DigitalSourceType=value)))
        assert found == Provenance(SOURCE_TYPES[name], f"XMP: {name}")


def test_the_vocabulary_is_the_c2pa_librarys() -> None:
    types = pytest.importorskip("c2pa").C2paDigitalSourceType
    theirs = {"".join(part.title() for part in kind.name.split("_")) for kind in types} - {"Empty"}
    retired = {"MinorHumanEdits", "DigitalArt", "SoftwareImage"}
    assert {name[0].upper() + name[1:] for name in SOURCE_TYPES} == theirs | retired


@pytest.mark.parametrize(
    ("name", "claim"),
    [
        ("trainedAlgorithmicMedia", "claims_ai"),
        ("algorithmicMedia", "claims_ai"),
        ("computationalCapture", "claims_capture"),
        ("negativeFilm", "claims_capture"),
        ("humanEdits", "claims_edited"),
        ("compositeCapture", "claims_edited"),
        ("digitalCreation", "none"),
    ],
)
def test_what_a_source_type_claims(name: str, claim: Claim) -> None:
    assert SOURCE_TYPES[name] == claim


@pytest.mark.parametrize("kind", ["tEXt", "zTXt", "iTXt", "iTXt compressed"])
@pytest.mark.parametrize(
    ("keyword", "text", "program"),
    [
        ("parameters", A1111, "Stable Diffusion"),
        ("parameters", json.dumps({"sui_image_params": {"prompt": "a cat"}}), "SwarmUI"),
        ("parameters", json.dumps({"base_model": "x", "negative_prompt": "", "prompt": "a"}), "Fooocus"),
        ("prompt", COMFY_PROMPT, "ComfyUI"),
        ("workflow", COMFY_WORKFLOW, "ComfyUI"),
        ("workflow", '{"nodes":' + '"x"' * 100_000, "ComfyUI"),
        ("invokeai_metadata", '{"generation_mode": "txt2img"}', "InvokeAI"),
        ("sd-metadata", '{"model": "stable diffusion"}', "InvokeAI"),
        ("Dream", '"a cat" -s 50 -S 42 -W 512 -H 512', "InvokeAI"),
        ("fooocus_scheme", "fooocus", "Fooocus"),
        ("Software", "NovelAI", "NovelAI"),
        ("Source", "Stable Diffusion 1D44365E", "Stable Diffusion"),
        ("Title", "AI generated image", "NovelAI"),
        ("Comment", NOVELAI, "NovelAI"),
        ("Description", JOB, "Midjourney"),
    ],
)
def test_a_generators_text_in_a_png(keyword: str, text: str, program: str, kind: str) -> None:
    assert read_provenance(with_text(keyword, text, kind)) == Provenance(
        "claims_ai", f"PNG text: {keyword} ({program})"
    )


@pytest.mark.parametrize("format", ["JPEG", "WEBP", "PNG", "AVIF", "HEIF"])
@pytest.mark.parametrize(
    ("comment", "program"),
    [
        (b"UNICODE\0" + A1111.encode("utf-16-be"), "Stable Diffusion"),
        (b"UNICODE\0" + A1111.encode("utf-16-le"), "Stable Diffusion"),
        (b"ASCII\0\0\0" + A1111.encode(), "Stable Diffusion"),
        (bytes(8) + COMFY_PROMPT.encode(), "ComfyUI"),
        (A1111.encode(), "Stable Diffusion"),
    ],
)
def test_settings_in_a_user_comment(format: str, comment: bytes, program: str) -> None:
    given(format)
    found = read_provenance(with_exif(format, {}, {COMMENT: comment}))
    assert found == Provenance("claims_ai", f"EXIF: UserComment ({program})")


@pytest.mark.parametrize(
    ("tag", "text", "source"),
    [
        (SOFTWARE, "Midjourney", "EXIF: Software (Midjourney)"),
        (SOFTWARE, "Adobe Firefly 3", "EXIF: Software (Adobe Firefly)"),
        (SOFTWARE, "FLUX.1-schnell", "EXIF: Software (FLUX)"),
        (SOFTWARE, "DALL·E 3".encode(), "EXIF: Software (DALL-E)"),
        (SOFTWARE, "DALL·E 3".encode("latin-1"), "EXIF: Software (DALL-E)"),
        (MAKE, "OpenAI", "EXIF: Make (OpenAI)"),
        (MAKE, f"Workflow:{COMFY_WORKFLOW}", "EXIF: Make (ComfyUI)"),
        (MODEL, f"Prompt:{COMFY_PROMPT}", "EXIF: Model (ComfyUI)"),
        (DESCRIPTION, A1111, "EXIF: ImageDescription (Stable Diffusion)"),
        (DESCRIPTION, JOB, "EXIF: ImageDescription (Midjourney)"),
    ],
)
@pytest.mark.parametrize("format", ["JPEG", "WEBP", "TIFF"])
def test_a_generators_name_or_settings_in_exif(format: str, tag: int, text: str | bytes, source: str) -> None:
    assert read_provenance(with_exif(format, {tag: text})) == Provenance("claims_ai", source)


def test_a_generators_name_in_xmp_and_iptc_and_settings_in_a_comment() -> None:
    tool = with_xmp("JPEG", packet(CreatorTool="Adobe Firefly"))
    assert read_provenance(tool) == Provenance("claims_ai", "XMP: CreatorTool (Adobe Firefly)")
    credit = with_xmp("JPEG", packet(Credit="Made with Google AI"))
    assert read_provenance(credit) == Provenance("claims_ai", "XMP: Credit (Google AI)")
    line = b"Edited with Google AI"
    block = b"Photoshop 3.0\x008BIM\x04\x04\0\0\0\0\0\x1c\x1c\x02\x6e\0" + bytes([len(line)]) + line
    assert read_provenance(with_segment(0xED, block)) == Provenance("claims_ai", "IPTC: Credit (Google AI)")
    comment = with_segment(0xFE, A1111.encode())
    assert read_provenance(comment) == Provenance("claims_ai", "JPEG comment (Stable Diffusion)")


@pytest.mark.parametrize(
    "tags",
    [
        {MAKE: "Canon", MODEL: "Canon EOS 5D Mark IV", SOFTWARE: "Firmware 1.0.4"},
        {MAKE: "Google", MODEL: "Pixel 9 Pro", SOFTWARE: "HDR+ 1.0.585804401zd"},
        {MAKE: "Hawkeye", MODEL: "Firefly 8SE"},
        {MAKE: "Apple", MODEL: "iPhone 15", SOFTWARE: "17.5.1"},
        {SOFTWARE: "Adobe Photoshop 25.0 (Macintosh)"},
        {SOFTWARE: "Adobe Photoshop Lightroom Classic 13.0 (Windows)"},
        {SOFTWARE: "GIMP 2.10", DESCRIPTION: "Next steps: 20 more photographs of the Midjourney exhibition"},
        {SOFTWARE: "f.lux", DESCRIPTION: "OLYMPUS DIGITAL CAMERA"},
        {DESCRIPTION: "La imagen 2 muestra una gata"},
    ],
)
def test_cameras_and_editors_claim_nothing(tags: dict[int, str]) -> None:
    assert read_provenance(with_exif("JPEG", tags)) == NONE


@pytest.mark.parametrize(
    ("keyword", "text"),
    [
        ("parameters", "voltage 5 kV, 300 nm per pixel"),
        ("parameters", "Steps: 20"),
        ("prompt", "write something"),
        ("workflow", "approved by the desk"),
        ("Description", A1111.replace("Steps", "Stages")),
        ("Title", "Midjourney and DALL-E compared"),
        ("Comment", "Created with GIMP"),
        ("Software", "Adobe ImageReady"),
        ("Author", "Stable Diffusion"),
    ],
)
def test_other_texts_claim_nothing(keyword: str, text: str) -> None:
    assert read_provenance(with_text(keyword, text)) == NONE


@pytest.mark.parametrize(
    "xmp",
    [
        packet(CreatorTool="Adobe Photoshop Lightroom Classic 13.0"),
        packet(Credit="OpenAI"),
        packet(DigitalSourceType="http://example.com/unknownMedia"),
        packet(DigitalSourceFileType=VOCABULARY + "trainedAlgorithmicMedia"),
        packet("<n:description>trainedAlgorithmicMedia</n:description>"),
    ],
)
def test_other_xmp_claims_nothing(xmp: bytes) -> None:
    assert read_provenance(with_xmp("JPEG", xmp)) == NONE


@pytest.mark.parametrize("format", [*FORMATS, "BMP", "GIF", "JPEG2000"])
def test_a_plain_picture_claims_nothing(format: str) -> None:
    given(format)
    assert read_provenance(picture(format)) == NONE


def test_a_claim_behind_the_pixels_of_a_png_is_found() -> None:
    data = with_text("parameters", A1111)
    end = data.index(b"IDAT") - 4
    start = data.index(b"tEXt") - 4
    moved = data[:start] + data[end:-12] + data[start:end] + data[-12:]
    assert read_provenance(moved).claim == "claims_ai"


@pytest.mark.parametrize("size", range(40, 44))
def test_a_part_of_any_length_hides_no_later_one(size: int) -> None:
    exif = b"Exif\0\0" + exif_block({}).ljust(size, b"\0")
    for format in ("WEBP", "JPEG"):
        data = picture(format, exif=exif, xmp=packet(DigitalSourceType="digitalCapture"))
        assert read_provenance(data) == Provenance("claims_capture", "XMP: digitalCapture")
