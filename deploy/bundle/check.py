"""Trust a bundle, in this order: signature, names and kinds of files, digests, manifest, release.

Only then is a model opened, in a process that may not take much, and must still give the logits
that were measured. Without a key, whoever replaces a bundle as a whole goes unnoticed.
"""

from pathlib import Path
from typing import Any

from deploy.bundle.manifest import MANIFEST, SIGNATURE, check_files, read_outside
from deploy.errors import DeployError
from deploy.process import ask

_SECONDS = 600.0


def check_bundle(folder: Path, key: Path | None = None, release: int = 0) -> dict[str, Any]:
    """Trust a bundle as a whole.

    Args:
        key: the public key in PEM that it must be signed with; None asks for no signature.
        release: the smallest that is taken; one below what a device has would undo its updates.

    Returns:
        The manifest, with each of its files as an `Entry`.

    Raises:
        DeployError: 65, anything is off; 66, there is no bundle; 69, something to check it with is
            missing; 78, it is older than `release`.
    """
    manifest = check_integrity(folder, key, release)
    check_models(folder)
    return manifest


def check_models(folder: Path) -> None:
    """The part of `check_bundle` that opens the models, once nothing else is in doubt.

    Raises:
        DeployError: 65 or 69, as `check_bundle`.
    """
    ask("deploy.bundle.probe", [str(folder)], folder, _SECONDS)


def check_integrity(folder: Path, key: Path | None = None, release: int = 0) -> dict[str, Any]:
    """The part of `check_bundle` that opens no model; arguments and refusals as there."""
    content = read_outside(folder, MANIFEST)
    if key is not None:
        check_signature(folder, content, key)
    manifest = check_files(folder, content)
    check_release(manifest, release, folder)
    return manifest


def check_signature(folder: Path, content: bytes, key: Path) -> None:
    """Hold the bytes of a manifest against the signature beside it.

    Raises:
        DeployError: 65, there is none, or it is of something else; 66, 69, see `signature`.
    """
    from deploy.bundle import signature  # a package that only those who check signatures need

    public = signature.read_public(key)
    if not (folder / SIGNATURE).exists():
        raise DeployError(
            f"{folder}: not signed, and the key {signature.fingerprint(public)} is required; get a "
            "signed bundle, or make one with `advprune bundle RUN --sign KEY`",
            65,
        )
    signature.check(content, read_outside(folder, SIGNATURE), public, folder / SIGNATURE)


def check_release(manifest: dict[str, Any], release: int, where: Path) -> None:
    """Raises DeployError 78 where a bundle is older than it may be."""
    if manifest["release"] < release:
        raise DeployError(
            f"{where}: release {manifest['release']} of {manifest['name']}, and at least {release} "
            "is wanted; get a later one",
            78,
        )
