"""Signatures over a manifest, which holds the digest of everything else.

Ed25519, or ECDSA on P-256 with SHA-256. The signature is kept raw, so that openssl checks it too:

    openssl pkeyutl -verify -pubin -inkey KEY -rawin -in manifest.json -sigfile manifest.json.sig
    openssl dgst -sha256 -verify KEY -signature manifest.json.sig manifest.json

Needs `cryptography`: whoever imports this without it gets DeployError 69.
"""

import hashlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

from deploy.errors import DeployError

try:
    from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519
except ImportError as error:
    raise DeployError(
        f"signatures need the package cryptography ({error}); type: pip install cryptography", 69
    ) from error

PrivateKey = ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey
PublicKey = ed25519.Ed25519PublicKey | ec.EllipticCurvePublicKey
_LARGEST_KEY = 10_000  # bytes
_HOW = ec.ECDSA(hashes.SHA256())


def read_private(path: Path) -> PrivateKey:
    """A private key from a PEM file without a password.

    Raises:
        DeployError: 65, it is no such key; 66, it cannot be read.
    """
    key = _parsed(path, "private", partial(serialization.load_pem_private_key, password=None))
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return key
    if isinstance(key, ec.EllipticCurvePrivateKey) and isinstance(key.curve, ec.SECP256R1):
        return key
    raise _refusal(path, "private", type(key).__name__)


def read_public(path: Path) -> PublicKey:
    """A public key from a PEM file.

    Raises:
        DeployError: 65, it is no such key; 66, it cannot be read.
    """
    key = _parsed(path, "public", serialization.load_pem_public_key)
    if isinstance(key, ed25519.Ed25519PublicKey):
        return key
    if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1):
        return key
    raise _refusal(path, "public", type(key).__name__)


def sign(content: bytes, key: PrivateKey) -> bytes:
    """The signature of some bytes."""
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return key.sign(content)
    return key.sign(content, _HOW)


def check(content: bytes, signature: bytes, key: PublicKey, where: Path) -> None:
    """Hold a signature against the bytes it should be of.

    Args:
        where: the signature is, for messages.

    Raises:
        DeployError: 65, it is of other bytes or by another key.
    """
    try:
        if isinstance(key, ed25519.Ed25519PublicKey):
            key.verify(signature, content)
        else:
            key.verify(signature, content, _HOW)
    except InvalidSignature as error:
        raise DeployError(
            f"{where}: no signature of this bundle by the key {fingerprint(key)}; nothing of "
            "it was parsed: fetch the bundle again, or give the key of whoever signed it",
            65,
        ) from error


def fingerprint(key: PublicKey) -> str:
    """The first 16 digits of the SHA-256 of a public key in DER."""
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return hashlib.sha256(key.public_bytes(serialization.Encoding.DER, form)).hexdigest()[:16]


def _parsed(path: Path, kind: str, parse: Callable[[bytes], object]) -> object:
    try:
        with path.open("rb") as file:
            pem = file.read(_LARGEST_KEY)
    except OSError as error:
        raise DeployError(f"{path}: cannot be read ({error.strerror}); give a key", 66) from error
    try:
        return parse(pem)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise _refusal(path, kind, error) from error


def _refusal(path: Path, kind: str, reason: object) -> DeployError:
    first = str(reason).split("\n")[0].rstrip(". ")
    return DeployError(
        f"{path}: no {kind} key in PEM without a password ({first}); give one of Ed25519, or of "
        "ECDSA on P-256",
        65,
    )
