"""The JSON Schema of a row (draft 2020-12), made from the class Row, so that the two cannot differ."""

from __future__ import annotations

from typing import Any, get_args

import msgspec

from mdmf_deploy import __version__
from mdmf_deploy.bundle.calibration import Verdict
from mdmf_deploy.detection.rows import COLUMNS, Row
from mdmf_deploy.images.limits import Code, Note

DESCRIPTIONS: dict[str, str] = {
    "uri": "The input: its path, or the name or number of a source without a path.",
    "sha256": "Hash of the input's bytes, or of the shape and the RGB values of pixels given in Python.",
    "status": "ok, or error for an input that could not be scored.",
    "error_code": "Why the input could not be scored.",
    "error": "One line that explains the error code.",
    "score": "Squared maximum mean discrepancy to the bank of real images. Higher is less like the bank. No unit.",
    "evidence": "Share of the crops' patches that have a texture.",
    "p_value": "(k + 1) / (n + 1), with k of the n calibration photographs of this size scoring at least as high.",
    "q_value": "With --fdr: lowest false discovery rate at which this row still counts as generated.",
    "verdict": "Whether the image is told apart from real photographs.",
    "reason": "Why the verdict is uncertain or uncalibrated.",
    "threshold": "The score above which the verdict is generated.",
    "size_group": "Range of megapixels that the image was judged in.",
    "bundle_id": "Hash of what scored the image. Bundles with the same one give the same scores.",
    "calibration_id": "Hash of the calibration that judged the image.",
    "runtime": "What ran the model, such as onnxruntime.",
    "precision": "Precision of the model, such as fp32.",
    "width": "Pixels of the whole image, after its orientation was applied.",
    "height": "Pixels of the whole image, after its orientation was applied.",
    "format": "Format of the file, by its content.",
    "crop": "center, reflected (smaller than the crop, mirrored at its edges), or grid RxC (R rows of C crops).",
    "notes": "Codes of what a careful reader would say about the file, with spaces between them.",
    "provenance": "What the file's own metadata claims. It never touches the score.",
    "provenance_source": "Where the claim stands, and who signed it.",
    "frames": "Frames of a video that were scored. The score is the mean of theirs.",
    "frame_time": "Seconds from the beginning of a video, in a row that holds one frame.",
    "lowest_score": "Lowest score of a video's frames.",
    "lowest_time": "Seconds from the beginning of a video to the frame with the lowest score.",
    "highest_score": "Highest score of a video's frames.",
    "highest_time": "Seconds from the beginning of a video to the frame with the highest score.",
    "probes": "With --probe: changed copies that were scored in a second look. 0 if it could not be read again.",
    "lowest_probe": "Lowest score of the image and these copies.",
    "highest_probe": "Highest score of the image and these copies.",
    "ms_decode": "Milliseconds of reading and decoding.",
    "ms_engine": "Milliseconds of the model. A batch's time is divided evenly.",
    "ms_mmd": "Milliseconds of the reduction to a score. A batch's time is divided evenly.",
}
"""What each column means, for programs and for `mdmf rows`. docs/rows.md says more."""

# Bounds that no type says: the columns that have them, and what the schema says.
_BOUNDS: tuple[tuple[tuple[str, ...], dict[str, Any]], ...] = (
    (("sha256", "bundle_id", "calibration_id"), {"pattern": "^[0-9a-f]{64}$"}),
    (("evidence", "p_value", "q_value"), {"minimum": 0, "maximum": 1}),
    (("width", "height", "frames"), {"minimum": 1}),
    (("probes",), {"minimum": 0}),
    (("frame_time", "lowest_time", "highest_time", "ms_decode", "ms_engine", "ms_mmd"), {"minimum": 0}),
)
_GIVEN: dict[str, Any] = {"not": {"type": "null"}}
_NULL: dict[str, Any] = {"type": "null"}
_DECIDED: tuple[Verdict, ...] = ("real", "generated", "error")


def row_schema() -> dict[str, Any]:
    """Return the JSON Schema of a row as `--json`, .jsonl and .json hold it: every column, null where it is missing."""
    made = msgspec.json.schema(Row)["$defs"]["Row"]["properties"]
    properties = {name: _column(name, made[name]) for name in COLUMNS}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"urn:mdmf-deploy:{__version__}:row",
        "title": "Row",
        "description": "One verdict on one input of mdmf detect, with its evidence.",
        "type": "object",
        "properties": properties,
        "required": list(COLUMNS),
        "additionalProperties": False,
        "allOf": [
            _either(
                {"status": {"const": "error"}},
                {"error_code": _GIVEN, "error": _GIVEN, "verdict": {"const": "error"}, "score": _NULL},
                {"error_code": _NULL, "error": _NULL, "verdict": {"not": {"const": "error"}}, "score": _GIVEN},
            ),
            _either({"verdict": {"enum": list(_DECIDED)}}, {"reason": _NULL}, {"reason": _GIVEN}),
        ],
    }


def _column(name: str, made: dict[str, Any]) -> dict[str, Any]:
    """Return one column's schema from what msgspec makes of its type."""
    choices = [dict(choice) for choice in made.get("anyOf", [made])]
    first = choices[0]
    first.pop("default", None)
    if name == "error_code":
        first["enum"] = list(get_args(Code))
    if name == "notes":
        code = f"({'|'.join(get_args(Note))})"
        first["pattern"] = f"^{code}( {code})*$"
    for names, bounds in _BOUNDS:
        first |= bounds if name in names else {}
    if "enum" in first and len(choices) > 1:
        return {"description": DESCRIPTIONS[name], "enum": [*first["enum"], None]}
    types = [choice["type"] for choice in choices if "type" in choice]
    kind = {"type": types[0] if len(types) == 1 else types} if types else {}
    return {"description": DESCRIPTIONS[name], **first, **kind}


def _either(given: dict[str, Any], then: dict[str, Any], otherwise: dict[str, Any]) -> dict[str, Any]:
    parts = {"if": given, "then": then, "else": otherwise}
    return {part: {"properties": properties} for part, properties in parts.items()}
