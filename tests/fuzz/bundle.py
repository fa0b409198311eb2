"""Fuzz everything that reads a file of a bundle: `python tests/fuzz/bundle.py [seconds] [seed]`.

With atheris (pip install atheris) it is guided by coverage, and the arguments are libFuzzer's. Otherwise the seconds
(60 unless told) go into random changes of valid files. A reader may return a value or raise MdmfError in one line.
Anything else ends the run, with the input in crash.bin.
"""

from __future__ import annotations

import random
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from mdmf_deploy.bundle.bank import Bank
from mdmf_deploy.bundle.bundle import shipped
from mdmf_deploy.bundle.calibration import Calibration
from mdmf_deploy.bundle.graph import check_graph
from mdmf_deploy.bundle.manifest import BANK, CALIBRATION, MANIFEST, MODEL, PROBES, Manifest
from mdmf_deploy.bundle.probe_images import probe_crops, probes_from_bytes
from mdmf_deploy.errors import MdmfError

_CROPS = probe_crops(28)
_STARTER = Manifest.from_bytes((shipped("starter") / MANIFEST).read_bytes())
_TOKENS = (b"[", b"{", b'"', b"-", b"9" * 400, b"e999", b"null", b"NaN", b"\xff", b"\\u0000")

# What an input is given to: its first byte chooses. A new reader is one line here, and a valid file for it below.
READERS: Mapping[str, Callable[[bytes], object]] = {
    MANIFEST: Manifest.from_bytes,
    CALIBRATION: Calibration.from_bytes,
    BANK: Bank.from_bytes,
    PROBES: lambda data: probes_from_bytes(data, _CROPS, PROBES),
    MODEL: lambda data: check_graph(data, _STARTER, MODEL),
}


def read(data: bytes) -> None:
    """Give the input to the reader that its first byte chooses."""
    name = list(READERS)[data[0] % len(READERS)] if data else MANIFEST
    try:
        READERS[name](data[1:])
    except MdmfError as error:
        if "\n" in str(error) or len(str(error)) > 2000:
            raise RuntimeError(f"{name}: not one short line: {error}") from error


def valid() -> list[bytes]:
    """Return one valid input of each reader."""
    folder = shipped("starter")
    return [bytes([n]) + (folder / name).read_bytes() for n, name in enumerate(READERS) if (folder / name).exists()]


def changed(draw: random.Random, data: bytes) -> bytes:
    """Return an input with some bytes replaced, cut out, repeated or put in, most of them near its beginning."""
    new = bytearray(data)
    for _ in range(draw.choice((1, 1, 2, 8))):
        # A tensor's header and the structure of a JSON document come first.
        at = 1 + int(draw.random() ** 3 * len(new))
        length = draw.choice((1, 1, 2, 8, 100))
        kind = draw.randrange(5)
        if kind == 0:
            new[at : at + length] = draw.randbytes(length)
        elif kind == 1:
            del new[at : at + length]
        elif kind == 2:
            new[at:at] = new[at : at + length] * draw.choice((1, 2, 1000))
        elif kind == 3:
            new[at:at] = draw.choice(
                (b"[", b"{", b'"', b"-", b"9" * 400, b"e999", b"null", b"NaN", b"\xff", b"\\u0000")
            )
        else:
            new[at : at + 1] = bytes([draw.choice(b'0123456789-.,:[]{}"eE')])
    return bytes(new)


def loop(seconds: float, seed: int) -> int:
    """Change valid inputs at random until the time is over, and return how many were read."""
    draw, inputs, done = random.Random(seed), valid(), 0
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        data = changed(draw, draw.choice(inputs))
        try:
            read(data)
        except BaseException:
            Path("crash.bin").write_bytes(data)
            raise
        done += 1
    return done


def main(arguments: list[str]) -> None:
    warnings.simplefilter("error")
    with suppress(ImportError):
        import atheris

        atheris.Setup([sys.argv[0], *arguments], read)
        atheris.Fuzz()
        return
    seconds = float(arguments[0]) if arguments else 60.0
    seed = int(arguments[1]) if len(arguments) > 1 else random.randrange(2**32)
    print(f"seed {seed}: {loop(seconds, seed)} inputs, each read or refused in one line")


if __name__ == "__main__":
    main(sys.argv[1:])
