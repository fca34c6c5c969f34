"""Key pairs in PEM files, made for one test."""

from pathlib import Path
from typing import NamedTuple

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed25519, rsa

ED25519 = ed25519.Ed25519PrivateKey.generate
MAKERS = {
    "ed25519": ED25519,
    "ecdsa": lambda: ec.generate_private_key(ec.SECP256R1()),
    "p-384": lambda: ec.generate_private_key(ec.SECP384R1()),
    "rsa": lambda: rsa.generate_private_key(65537, 2048),
    "dsa": lambda: dsa.generate_private_key(1024),
}


class Keys(NamedTuple):
    private: Path
    public: Path


def make_keys(folder: Path, kind: str = "ed25519", password: bytes | None = None) -> Keys:
    """Write a private and a public key; the private one is PKCS #8."""
    key = MAKERS[kind]()
    keys = Keys(folder / f"{kind}.pem", folder / f"{kind}.pub")
    encryption = (
        serialization.BestAvailableEncryption(password)
        if password
        else serialization.NoEncryption()
    )
    form = serialization.PrivateFormat.PKCS8
    pem = serialization.Encoding.PEM
    keys.private.write_bytes(key.private_bytes(pem, form, encryption))
    info = serialization.PublicFormat.SubjectPublicKeyInfo
    keys.public.write_bytes(key.public_key().public_bytes(pem, info))
    return keys
