"""TensorRT plans that no GPU has built, each with the card that `mdmf build` would write beside it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from mdmf_deploy.bundle.bundle import Bundle


def write_plan(path: Path, bundle: Bundle, **changes: Any) -> Path:
    """Write a plan for a bundle. changes: replace fields of the card or of its key."""
    path.write_bytes(b"what TensorRT calls a serialised engine")
    key: dict[str, Any] = {
        "model": bundle.manifest.model_sha256,
        "library": "tensorrt",
        "version": "10.13.2",
        "compute_capability": "8.9",
        "gpu": "NVIDIA L4",
        "profile": {"batch": {"min": 1, "opt": 8, "max": 32}, "workspace_mib": 2048, "level": 3},
        "flags": ["strongly_typed"],
        "platform": "Linux x86_64",
    }
    card = {
        "key": {**key, **{name: value for name, value in changes.items() if name in key}},
        "profile": "default",
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "size": path.stat().st_size,
        "inputs": [{"name": "images", "shape": [-1, 3, 56, 56], "type": "FLOAT"}],
        "outputs": [{"name": "signatures", "shape": [-1, 4, 4], "type": "FLOAT"}],
        "layers": 100,
        "fused_attention": 3,
        "build_seconds": 1.5,
    }
    card |= {name: value for name, value in changes.items() if name not in key}
    path.with_suffix(".json").write_text(json.dumps(card))
    return path
