"""A signed bundle that was touched in any way is refused, and nothing of it is parsed before."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from bundles import LABELS, WEIGHTS, linear, make_bundle, reseal
from signing_keys import Keys, make_keys

from deploy.bundle import check
from deploy.bundle.check import check_bundle, check_integrity
from deploy.errors import DeployError


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    return make_keys(tmp_path)


@pytest.fixture
def signed(tmp_path: Path, keys: Keys) -> Path:
    return make_bundle(tmp_path, keys.private)


def refused(folder: Path, key: Path, release: int = 0, code: int = 65) -> str:
    with pytest.raises(DeployError) as refusal:
        check_bundle(folder, key, release)
    assert refusal.value.exit_code == code
    assert len(str(refusal.value).splitlines()) == 1
    return str(refusal.value)


@pytest.mark.parametrize("kind", ["ed25519", "ecdsa"])
def test_openssl_agrees(tmp_path: Path, kind: str) -> None:
    keys = make_keys(tmp_path, kind)
    bundle = make_bundle(tmp_path, keys.private)
    assert check_bundle(bundle, keys.public)["name"] == "linear"
    told = ["-in", "manifest.json", "-sigfile", "manifest.json.sig"]
    words = ["pkeyutl", "-verify", "-pubin", "-inkey", str(keys.public), "-rawin", *told]
    if kind == "ecdsa":
        words = ["dgst", "-sha256", "-verify", str(keys.public)]
        words += ["-signature", "manifest.json.sig", "manifest.json"]
    subprocess.run(["openssl", *words], cwd=bundle, check=True, capture_output=True)
    (bundle / "manifest.json").write_bytes((bundle / "manifest.json").read_bytes() + b"\n")
    assert subprocess.run(["openssl", *words], cwd=bundle, capture_output=True).returncode


def test_a_signature_of_openssl_is_taken(tmp_path: Path, keys: Keys) -> None:
    bundle = make_bundle(tmp_path)
    told = ["-rawin", "-in", "manifest.json", "-out", "manifest.json.sig"]
    words = ["openssl", "pkeyutl", "-sign", "-inkey", str(keys.private), *told]
    subprocess.run(words, cwd=bundle, check=True)
    check_integrity(bundle, keys.public)


def _other_key(bundle: Path) -> None:
    (bundle.parent / "other").mkdir()
    forged = make_bundle(bundle.parent / "forged", make_keys(bundle.parent / "other").private)
    shutil.rmtree(bundle)
    forged.rename(bundle)


def _of_another_bundle(bundle: Path) -> None:
    """The right key's signature of an older release, beside a newer one."""
    older = make_bundle(bundle.parent / "older", bundle.parent / "ed25519.pem", release=2)
    shutil.copy(older / "manifest.json.sig", bundle)


def _executable(bundle: Path) -> None:
    (bundle / "labels.txt").chmod(0o755)


def _set_user_id(bundle: Path) -> None:
    (bundle / "edge_verify.py").chmod(0o4755)


def _git(bundle: Path) -> None:
    (bundle / ".git").mkdir()
    (bundle / ".git" / "config").write_text("[core]\n")


def _link(bundle: Path) -> None:
    (bundle / "labels.txt").rename(bundle.parent / "labels.txt")
    (bundle / "labels.txt").symlink_to(bundle.parent / "labels.txt")


def _hard_link(bundle: Path) -> None:
    os.link(bundle / "labels.txt", bundle.parent / "labels.txt")


def _linked_folder(bundle: Path) -> None:
    (bundle / "triton").rename(bundle.parent / "triton")
    (bundle / "triton").symlink_to(bundle.parent / "triton")


def _swapped(bundle: Path) -> None:
    (bundle / "model.onnx").rename(bundle / "x")
    (bundle / "golden.npz").rename(bundle / "model.onnx")
    (bundle / "x").rename(bundle / "golden.npz")


def _cased(bundle: Path) -> None:
    shutil.copy(bundle / "labels.txt", bundle / "LABELS.txt")


def _signature_bit(bundle: Path) -> None:
    content = bytearray((bundle / "manifest.json.sig").read_bytes())
    content[5] ^= 1
    (bundle / "manifest.json.sig").write_bytes(content)


def _long_signature(bundle: Path) -> None:
    (bundle / "manifest.json.sig").write_bytes(bytes(2000))


def _resealed(bundle: Path) -> None:
    reseal(bundle, "model.int8.x86.onnx", linear(-WEIGHTS))


def _respelled(bundle: Path) -> None:
    """The same manifest in other bytes."""
    content = json.loads((bundle / "manifest.json").read_text())
    reseal(bundle, "manifest.json", json.dumps(content).encode())


def _file_and_sum(bundle: Path) -> None:
    """What `sha256sum --check` finds nothing wrong with; nor is the signed manifest touched."""
    manifest = (bundle / "manifest.json").read_bytes()
    reseal(bundle, "labels.txt", b"".join(b"other\n" for _ in LABELS))
    new = hashlib.sha256((bundle / "manifest.json").read_bytes()).hexdigest()
    (bundle / "manifest.json").write_bytes(manifest)
    sums = (bundle / "SHA256SUMS").read_text()
    (bundle / "SHA256SUMS").write_text(sums.replace(new, hashlib.sha256(manifest).hexdigest()))
    words = ["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"]
    subprocess.run(words, cwd=bundle, check=True)


def _renumbered(bundle: Path) -> None:
    """An old release under a new number."""
    manifest = json.loads((bundle / "manifest.json").read_text())
    reseal(bundle, "manifest.json", json.dumps(manifest | {"release": 9}).encode())


def _cut(bundle: Path) -> None:
    os.truncate(bundle / "golden.npz", (bundle / "golden.npz").stat().st_size - 1)


def _longer(bundle: Path) -> None:
    with (bundle / "model.onnx").open("ab") as file:
        file.write(b"\0")


def _folder_for_a_file(bundle: Path) -> None:
    (bundle / "labels.txt").rename(bundle.parent / "labels.txt")
    (bundle / "labels.txt").mkdir()
    (bundle.parent / "labels.txt").rename(bundle / "labels.txt" / "labels.txt")


TAMPERED: dict[str, Callable[[Path], object]] = {
    "a bit of a model": lambda b: (b / "model.onnx").write_bytes(linear(np.roll(WEIGHTS, 1))),
    "a model and everything that vouches for it": _resealed,
    "a file and its sum, which agree": _file_and_sum,
    "the manifest in other bytes": _respelled,
    "a number that makes it newer": _renumbered,
    "a byte less": _cut,
    "a byte more": _longer,
    "a file without content": lambda b: (b / "golden.npz").write_bytes(b""),
    "a bit of the signature": _signature_bit,
    "a signature that is too long": _long_signature,
    "no signature": lambda b: (b / "manifest.json.sig").unlink(),
    "another's signature": _other_key,
    "the signature of another release": _of_another_bundle,
    "a file more": lambda b: (b / "notes.txt").write_text("x"),
    "a hidden file more": lambda b: (b / ".gitattributes").write_text("x"),
    "a repository": _git,
    "an empty repository": lambda b: (b / ".git").mkdir(),
    "a repository elsewhere": lambda b: (b / ".git").write_text("gitdir: /tmp/other\n"),
    "an empty folder": lambda b: (b / "empty").mkdir(),
    "an empty folder further down": lambda b: (b / "triton" / "linear" / "2").mkdir(),
    "a file moved": lambda b: (b / "labels.txt").rename(b / "triton" / "labels.txt"),
    "a folder in place of a file": _folder_for_a_file,
    "a file less": lambda b: (b / "labels.txt").unlink(),
    "a file renamed": lambda b: (b / "labels.txt").rename(b / "label.txt"),
    "two files swapped": _swapped,
    "a name in another case": _cased,
    "a link": _link,
    "a hard link": _hard_link,
    "a folder that is a link": _linked_folder,
    "a pipe": lambda b: os.mkfifo(b / "pipe"),
    "a file that can be run": _executable,
    "a file that its owner can run": lambda b: (b / "model.onnx").chmod(0o744),
    "a script that runs as its owner": _set_user_id,
    "a script that cannot be run": lambda b: (b / "edge_verify.py").chmod(0o644),
}


@pytest.mark.parametrize("what", TAMPERED)
def test_tampering_is_refused_before_anything_is_opened(
    signed: Path, keys: Keys, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_integrity(signed, keys.public)
    TAMPERED[what](signed)
    monkeypatch.setattr(check, "ask", lambda *_: pytest.fail("a model was opened"))
    monkeypatch.setattr(np, "load", lambda *_, **__: pytest.fail("arrays were parsed"))
    monkeypatch.setattr(onnx, "load_model_from_string", lambda _: pytest.fail("was parsed"))
    refused(signed, keys.public)


@pytest.mark.parametrize("tamper", [_resealed, _other_key])
def test_without_a_valid_signature_not_even_the_manifest_is_parsed(
    signed: Path, keys: Keys, tamper: Callable[[Path], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    tamper(signed)
    monkeypatch.setattr(json, "loads", lambda *_, **__: pytest.fail("was parsed"))
    assert "no signature of this bundle by the key" in refused(signed, keys.public)


def test_a_rollback_is_refused(tmp_path: Path, signed: Path, keys: Keys) -> None:
    """An older bundle, whole and rightly signed, where a device has a newer one."""
    older = make_bundle(tmp_path / "older", keys.private, release=2)
    check_integrity(older, keys.public)
    assert "release 2 of linear" in refused(older, keys.public, release=3, code=78)
    check_integrity(signed, keys.public, release=3)


def test_an_unsigned_bundle_is_refused_where_a_key_is_required(tmp_path: Path, keys: Keys) -> None:
    bundle = make_bundle(tmp_path)
    check_integrity(bundle)
    assert "not signed, and the key" in refused(bundle, keys.public)


def test_a_signed_bundle_is_also_a_bundle(signed: Path) -> None:
    check_integrity(signed)


@pytest.mark.parametrize("kind", ["p-384", "rsa", "dsa"])
def test_keys_of_other_kinds_are_refused(tmp_path: Path, signed: Path, kind: str) -> None:
    keys = make_keys(tmp_path, kind)
    assert "Ed25519, or of ECDSA on P-256" in refused(signed, keys.public)
    with pytest.raises(DeployError, match="no private key") as refusal:
        make_bundle(tmp_path / "other", keys.private)
    assert refusal.value.exit_code == 65 and not (tmp_path / "other" / "bundle").exists()


def test_what_is_no_key_is_refused(tmp_path: Path, signed: Path, keys: Keys) -> None:
    for content in (b"", b"-----BEGIN PUBLIC KEY-----\n", keys.private.read_bytes()):
        (tmp_path / "key").write_bytes(content)
        assert "no public key" in refused(signed, tmp_path / "key")
    refused(signed, tmp_path / "absent", code=66)
    secret = make_keys(tmp_path, "ecdsa", password=b"secret")
    for private in (keys.public, secret.private):
        with pytest.raises(DeployError, match="no private key in PEM without a password"):
            make_bundle(tmp_path / "x", private)


def test_without_cryptography_the_way_out_is_named(signed: Path, keys: Keys) -> None:
    code = (
        "import sys; sys.modules['cryptography'] = None; sys.modules['onnx'] = None\n"
        "from pathlib import Path; from deploy.bundle.check import check_integrity\n"
        "from deploy.errors import DeployError\n"
        f"check_integrity(Path({str(signed)!r}))\n"
        f"try: check_integrity(Path({str(signed)!r}), Path({str(keys.public)!r}))\n"
        "except DeployError as error: print(error.exit_code, error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("69 ") and "pip install cryptography" in done.stdout
