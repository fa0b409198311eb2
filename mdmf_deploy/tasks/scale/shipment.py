"""A bundle on its way to other machines: by its name, by its path where a file system is shared, or as bytes."""

from __future__ import annotations

import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mdmf_deploy.bundle.bundle import Bundle, shipped, shipped_name
from mdmf_deploy.bundle.manifest import MANIFEST
from mdmf_deploy.errors import BundleError
from mdmf_deploy.files import file_sha256
from mdmf_deploy.tasks.scale.cluster import load_ray


@dataclass(frozen=True, slots=True)
class Shipment:
    """A bundle that any machine of a cluster can open.

    path: on the driver's machine.  name: of a bundle in the package, or None.
    manifest: hash of its manifest, which holds the hashes of all other files.
    files: reference to its files in Ray's object store. None if every machine has the path or the package.
    """

    path: str
    name: str | None
    manifest: str
    files: Any = None

    @classmethod
    def of(cls, bundle: Bundle, *, as_bytes: bool) -> Shipment:
        """Return the shipment of a bundle.  as_bytes: put its files into Ray's object store as well."""
        path, name = bundle.path.resolve(), shipped_name(bundle.path)
        files = None
        if as_bytes and name is None:
            names = (MANIFEST, *bundle.manifest.files)
            files = load_ray().put({one: (path / one).read_bytes() for one in names})
        return cls(str(path), name, file_sha256(path / MANIFEST), files)

    @contextmanager
    def unpacked(self) -> Iterator[Path]:
        """Yield the bundle's folder on this machine. A copy that had to be made goes when the block ends.

        Raises BundleError if there is none.
        """
        for folder in (Path(self.path), *([shipped(self.name)] if self.name else [])):
            if self._is_at(folder):
                yield folder
                return
        if self.files is None:
            raise BundleError(
                f"{self.path} is not on {socket.gethostname()}, or is another bundle there; install the same "
                "mdmf-deploy on all machines, or put the bundle where all of them see it"
            )
        with tempfile.TemporaryDirectory(prefix="mdmf-bundle-", ignore_cleanup_errors=True) as made:
            for name, data in load_ray().get(self.files).items():
                Path(made, name).write_bytes(data)
            if not self._is_at(Path(made)):
                raise BundleError(f"{self.path} has changed on its way to {socket.gethostname()}; run again")
            yield Path(made)

    def _is_at(self, folder: Path) -> bool:
        try:
            return file_sha256(folder / MANIFEST) == self.manifest
        except OSError:
            return False
