"""Bundles with a crop plan."""

from __future__ import annotations

from pathlib import Path

import msgspec

from mdmf_deploy.bundle.bundle import Bundle, write_bundle


def planned(bundle: Path | str, crops: int, destination: Path) -> Bundle:
    """Write a copy of a bundle whose plan is up to `crops` crops an image. It has no calibration."""
    old = Bundle.open(bundle)
    preprocessing = msgspec.structs.replace(old.manifest.preprocessing, crops=crops)
    files = {name: data for name, data in old.files().items() if name != "calibration.json"}
    return write_bundle(destination, msgspec.structs.replace(old.manifest, preprocessing=preprocessing), files)
