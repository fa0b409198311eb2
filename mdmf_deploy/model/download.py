"""Download the official DINOv2 weights by name, from Meta's server, and check them against pinned hashes."""

from __future__ import annotations

import http.client
import urllib.error
import urllib.request
from pathlib import Path
from shutil import copyfileobj

from mdmf_deploy.errors import CheckpointError
from mdmf_deploy.files import atomic_file, file_sha256
from mdmf_deploy.model.checkpoints import checkpoint_sha256

OFFICIAL_SERVER = "https://dl.fbaipublicfiles.com/dinov2"

# The SHA-256 of each file. Meta publishes none. Independent projects record these values for the official files, among
# them finegrain's refiners (src/refiners/conversion/models/dinov2.py). Each value was found in at least two projects.
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
_TIMEOUT = 30  # seconds


def fetch_backbone(name: str, cache_dir: Path, server: str = OFFICIAL_SERVER) -> Path:
    """Return the path of an architecture's official .pth file in cache_dir. Download it unless it is there intact.

    Raises CheckpointError if the name has no release, the file in cache_dir cannot be read, the server cannot be
    reached, or the hash of its file is not the pinned one. That file is then not kept.
    """
    pinned = PINNED_SHA256.get(name)
    if pinned is None:
        known = ", ".join(PINNED_SHA256)
        raise CheckpointError(f"no official weights for {name!r}; choose one of {known}, or give a file")
    file_name = f"{name.replace('_reg', '_reg4')}_pretrain.pth"
    path = cache_dir / file_name
    if path.is_file() and checkpoint_sha256(path) == pinned:
        return path
    url = f"{server}/{name.removesuffix('_reg')}/{file_name}"
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as scratch:
            with urllib.request.urlopen(url, timeout=_TIMEOUT) as response, scratch.open("wb") as file:
                copyfileobj(response, file, 1 << 20)
            found = file_sha256(scratch)
            if found != pinned:
                raise CheckpointError(
                    f"{url}: sha256 is {found}, not the pinned {pinned}; removed, do not use it from this server"
                )
    except (OSError, http.client.HTTPException) as error:
        if isinstance(error, urllib.error.HTTPError):
            error.close()
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        raise CheckpointError(
            f"cannot download {url} ({reason}); fetch it elsewhere and pass the file to --backbone-weights"
        ) from error
    return path
