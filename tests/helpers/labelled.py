"""Small pictures that carry claims in their metadata: XMP, EXIF, texts of PNG, IPTC-IIM, and signed C2PA manifests."""

from __future__ import annotations

import datetime
import io
import json
import struct
from dataclasses import dataclass
from functools import cache
from typing import Any

from helpers.bad_inputs import encoded, photo
from PIL import Image
from PIL.PngImagePlugin import PngInfo

VOCABULARY = "http://cv.iptc.org/newscodes/digitalsourcetype/"
MEDIA_TYPES = {
    "JPEG": "image/jpeg",
    "PNG": "image/png",
    "WEBP": "image/webp",
    "TIFF": "image/tiff",
    "AVIF": "image/avif",
    "HEIF": "image/heic",
}
NOWHERE = "http://127.0.0.1:9/"
SETTINGS = {"verify": {"verify_after_sign": False, "verify_trust": False}, "builder": {"thumbnail": {"enabled": False}}}


def picture(format: str, **options: Any) -> bytes:
    """Return a photo of 48 x 32 pixels, with options of Pillow such as exif."""
    if format == "HEIF":
        import pillow_heif

        pillow_heif.register_heif_opener()
    return encoded(photo(), format, **options)


def packet(inside: str = "", **attributes: str) -> bytes:
    """Return an XMP packet with attributes such as CreatorTool and with elements, whose namespaces are left out."""
    written = "".join(f' n:{name}="{value}"' for name, value in attributes.items())
    return (
        '<?xpacket begin="" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/">'
        '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        f'<rdf:Description rdf:about=""{written}>{inside}</rdf:Description></rdf:RDF></x:xmpmeta><?xpacket end="w"?>'
    ).encode()


def with_xmp(format: str, xmp: bytes) -> bytes:
    if format == "PNG":
        info = PngInfo()
        info.add_itxt("XML:com.adobe.xmp", xmp.decode())
        return picture("PNG", pnginfo=info)
    return picture(format, tiffinfo={700: xmp}) if format == "TIFF" else picture(format, xmp=xmp)


def with_exif(format: str, tags: dict[int, Any], exif_tags: dict[int, Any] | None = None) -> bytes:
    return picture(format, exif=_exif(tags, exif_tags or {}))


def exif_block(tags: dict[int, Any]) -> bytes:
    """Return a TIFF structure with these tags."""
    return _exif(tags, {}).tobytes().removeprefix(b"Exif\0\0")


def _exif(tags: dict[int, Any], exif_tags: dict[int, Any]) -> Image.Exif:
    exif = Image.Exif()
    exif.update({315: "somebody"} | tags)  # Pillow leaves out a block without a tag of its own
    if exif_tags:
        exif.get_ifd(0x8769).update(exif_tags)
    return exif


def with_text(keyword: str, text: str, kind: str = "tEXt") -> bytes:
    """Return a PNG with a text of a kind: tEXt, zTXt, iTXt, or "iTXt compressed"."""
    info = PngInfo()
    if kind.startswith("iTXt"):
        info.add_itxt(keyword, text, "en", "translated", zip=kind != "iTXt")
    else:
        info.add_text(keyword, text, zip=kind == "zTXt")
    return picture("PNG", pnginfo=info)


def with_segment(marker: int, body: bytes) -> bytes:
    """Return a JPEG with a segment of one's own before all others."""
    data = picture("JPEG")
    return data[:2] + b"\xff" + bytes([marker]) + struct.pack(">H", len(body) + 2) + body + data[2:]


@dataclass(frozen=True)
class Identity:
    """A key and the certificates of a signer whom nobody has reason to trust."""

    key: Any
    chain: str


@cache
def identity(organisation: str = "Test Org", seconds: float = 86400.0) -> Identity:
    """Return a signer whose certificate is valid from yesterday until some seconds from now (RFC 5280).

    It names a server that would tell whether it was revoked.
    """
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import AuthorityInformationAccessOID, ExtendedKeyUsageOID, NameOID

    root, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    now = datetime.datetime.now(datetime.UTC)
    status = x509.AccessDescription(AuthorityInformationAccessOID.OCSP, x509.UniformResourceIdentifier(NOWHERE))

    def certificate(name: str, public: Any, authority: bool) -> x509.CertificateBuilder:
        names = [
            x509.Name(
                [x509.NameAttribute(NameOID.ORGANIZATION_NAME, text), x509.NameAttribute(NameOID.COMMON_NAME, "x")]
            )
            for text in (name, "Test Root")
        ]
        usage = dict.fromkeys(
            ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "encipher_only",
             "decipher_only"), False,
        )  # fmt: skip
        builder = x509.CertificateBuilder(names[1], names[0], public, x509.random_serial_number())
        return (
            builder.not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(seconds=seconds))
            .add_extension(x509.BasicConstraints(authority, None), True)
            .add_extension(
                x509.KeyUsage(digital_signature=not authority, key_cert_sign=authority, crl_sign=authority, **usage),
                True,
            )
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(root.public_key()), False)
            .add_extension(x509.AuthorityInformationAccess([status]), False)
        )

    leaf = certificate(organisation, key.public_key(), False)
    leaf = leaf.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION]), False)
    both = (leaf, certificate("Test Root", root.public_key(), True))
    pem = (one.sign(root, hashes.SHA256()).public_bytes(serialization.Encoding.PEM) for one in both)
    return Identity(key, b"".join(pem).decode())


def action(name: str, source_type: str | None = None, **more: object) -> dict[str, object]:
    kind = {} if source_type is None else {"digitalSourceType": VOCABULARY + source_type}
    return {"action": name, **kind, **more}


AI = action("c2pa.created", "trainedAlgorithmicMedia")
CAPTURE = action("c2pa.created", "digitalCapture")


def signed(
    data: bytes,
    media_type: str,
    *actions: dict[str, object],
    signer: Identity | None = None,
    ingredient: tuple[str, bytes] | None = None,
    url: str | None = None,
    embedded: bool = True,
) -> bytes:
    """Return a file with a C2PA manifest.

    ingredient: the relationship of a JPEG that went into the picture, and its bytes.
    url: where the manifest is said to lie.  embedded: whether it lies in the file, too.
    """
    import c2pa
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

    who = signer or identity()

    def sign(message: bytes) -> bytes:
        halves = decode_dss_signature(who.key.sign(message, ec.ECDSA(hashes.SHA256())))
        return b"".join(half.to_bytes(32, "big") for half in halves)

    manifest = {
        "claim_generator_info": [{"name": "tests", "version": "1"}],
        "assertions": [{"label": "c2pa.actions", "data": {"actions": list(actions)}}] if actions else [],
    }
    out = io.BytesIO()
    with (
        c2pa.Context.from_dict(SETTINGS) as context,
        c2pa.Builder(json.dumps(manifest), context=context) as builder,
        c2pa.Signer.from_callback(sign, c2pa.C2paSigningAlg.ES256, who.chain, None) as pen,
    ):
        if ingredient is not None:
            part = json.dumps({"title": "part", "relationship": ingredient[0]})
            builder.add_ingredient(part, "image/jpeg", io.BytesIO(ingredient[1]))
            if ingredient[0] == "parentOf":
                builder.set_intent(c2pa.C2paBuilderIntent.EDIT)
        if url is not None:
            builder.set_remote_url(url)
        if not embedded:
            builder.set_no_embed()
        builder.sign(pen, media_type, io.BytesIO(data), out)
    return out.getvalue()


def signed_picture(format: str, *actions: dict[str, object], **options: Any) -> bytes:
    return signed(picture(format), MEDIA_TYPES[format], *actions, **options)
