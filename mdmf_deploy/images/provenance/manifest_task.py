"""The task "manifest": read the C2PA manifest of one file. Runs in a child process."""

from __future__ import annotations

import io
import json

import c2pa

from mdmf_deploy.images.isolation.child import Channel
from mdmf_deploy.images.provenance.claims import MOST_CHARACTERS, Finding, printable
from mdmf_deploy.images.provenance.manifest import Answer, Asked, not_read
from mdmf_deploy.images.provenance.report import judged

SETTINGS: dict[str, dict[str, object]] = {
    "core": {"allow_redirects": False, "allowed_network_hosts": [], "decode_identity_assertions": False},
    "verify": {
        "ocsp_fetch": False,
        "remote_manifest_fetch": False,
        "verify_after_reading": True,
        "verify_timestamp_trust": False,
        "verify_trust": False,
    },
}
"""For the library: fetch nothing, and ask for no trust.

The list of hosts and the two switches each keep it from the network without the other.
"""


def read(payload: bytes, channel: Channel) -> None:
    """Send the Answer for a file. The library opens no file and no socket."""
    finding = read_manifest(payload, channel.parameters(Asked).media_type)
    channel.send(Answer(finding.claim, printable(finding.source, MOST_CHARACTERS)))


def read_manifest(data: bytes, media_type: str) -> Finding:
    """Return the claim of a file's manifest."""
    try:
        with (
            c2pa.Context.from_dict(SETTINGS) as context,
            c2pa.Reader(media_type, io.BytesIO(data), context=context) as reader,
        ):
            return judged(json.loads(reader.json()))
    except c2pa.C2paError as error:
        return _refused(str(error))


def _refused(message: str) -> Finding:
    kind = message.partition(":")[0].lower()
    if kind.startswith("remote"):
        return not_read("it is stored elsewhere, and nothing is fetched")
    if kind.startswith("notsupported") or "type is unsupported" in message:
        return not_read("c2pa-python does not read this format")
    return Finding("invalid", f"C2PA: manifest cannot be read ({printable(message, 100)})")
