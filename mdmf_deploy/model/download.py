"""Download the official DINOv2 weights by name, from Meta's server, and check them against pinned hashes."""

from __future__ import annotations

import errno
import http.client
import urllib.error
import urllib.request
from pathlib import Path
from shutil import copyfileobj

from mdmf_deploy.errors import CheckpointError
from mdmf_deploy.files import atomic_file, failure, file_sha256
from mdmf_deploy.model.checkpoints import checkpoint_sha256
from mdmf_deploy.model.known_weights import PINNED_SHA256
from mdmf_deploy.scratch import remove_strays

OFFICIAL_SERVER = "https://dl.fbaipublicfiles.com/dinov2"

_TIMEOUT = 30  # seconds
_OF_THE_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.EACCES, errno.EMFILE}


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
    remove_strays(cache_dir, file_name)
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
        if isinstance(error, OSError) and error.errno in _OF_THE_DISK:
            raise CheckpointError(failure(path, error, "choose another folder")) from error
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        raise CheckpointError(
            f"cannot download {url} ({reason}); fetch it elsewhere and pass the file to --backbone-weights"
        ) from error
    return path
