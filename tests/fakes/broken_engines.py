"""Engines that do not work."""

from __future__ import annotations

from mdmf_deploy.bundle.bundle import Bundle
from mdmf_deploy.errors import RuntimeUnavailable


class Broken:
    """An engine that opens and cannot run."""

    name, precision = "broken", "fp32"

    def __init__(self, bundle: Bundle, threads: int | None = None) -> None:
        pass

    def __call__(self, images: object) -> None:
        raise RuntimeError("Unsupported operator:\n Foo")

    def close(self) -> None:
        pass


class Closed(Broken):
    """An engine that does not even open."""

    def __init__(self, bundle: Bundle, threads: int | None = None) -> None:
        raise RuntimeUnavailable("runtime 'closed': no such device")
