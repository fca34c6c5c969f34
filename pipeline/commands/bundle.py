"""`advprune bundle make`, `verify` and `unpack`."""

import json
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deploy.bundle import archive as archives
from deploy.bundle.check import check_bundle, check_models
from deploy.bundle.manifest import SIGNATURE
from deploy.bundle.write import write_bundle
from deploy.files import demand_absent, files_below
from deploy.words import size
from pipeline.commands.results import context_of
from pipeline.shipping import contents_of, demand_passed


def make(
    run: Path, out: Path | None, release: int, sign: Path | None, archive: bool, as_json: bool
) -> int:
    context = context_of(run)
    demand_passed(context)
    folder = out or run / "bundle"
    demand_absent(folder)  # first: the folder "." has no name to add to
    packed_path = folder.with_name(folder.name + archives.SUFFIX)
    if archive:
        demand_absent(packed_path)
    write_bundle(folder, contents_of(context, release), sign)
    packed = archives.pack(folder, packed_path) if archive else {}
    sizes = {name: path.stat().st_size for name, path in files_below(folder).items()}
    document = {
        "folder": str(folder),
        "release": release,
        "signed": sign is not None,
        "files": sizes,
        **({"archive": {"path": str(packed_path), "files": packed}} if archive else {}),
    }
    _say(json.dumps(document) if as_json else _listing(document))
    return 0


def verify(path: Path, key: Path | None, release: int, as_json: bool) -> int:
    if path.is_file():
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch, "bundle")
            manifest = archives.unpack(path, folder, key, release)
            check_models(folder)
            signed = (folder / SIGNATURE).exists()
    else:
        manifest = check_bundle(path, key, release)
        signed = (path / SIGNATURE).exists()
    found = _found(path, manifest, signed, key)
    _say(json.dumps(found) if as_json else _told(found))
    return 0


def unpack(archive: Path, folder: Path, key: Path | None, release: int, as_json: bool) -> int:
    archives.unpack(archive, folder, key, release)
    found = {"folder": str(folder), "next": f"advprune bundle verify {folder}"}
    _say(json.dumps(found) if as_json else f"{folder}: unpacked; next: {found['next']}")
    return 0


def _found(
    path: Path, manifest: Mapping[str, Any], signed: bool, key: Path | None
) -> dict[str, Any]:
    return {
        "bundle": str(path),
        "name": manifest["name"],
        "release": manifest["release"],
        "files": len(manifest["files"]),
        "models": manifest["models"],
        "signature": "checked" if key else "not checked" if signed else "none",
    }


def _told(found: Mapping[str, Any]) -> str:
    signatures = {
        "checked": "signed by the key given",
        "not checked": "signed, but no key was given: who made it was not checked",
        "none": "not signed: whoever replaces it as a whole goes unnoticed",
    }
    models = ", ".join(f"{name} ({file})" for name, file in found["models"].items())
    return "\n".join(
        [
            f"{found['bundle']}: {found['name']}, release {found['release']}",
            f"  {found['files']} files as they were bundled",
            f"  {signatures[found['signature']]}",
            f"  gives the logits that were measured: {models}",
        ]
    )


def _listing(document: Mapping[str, Any]) -> str:
    files, packed = document["files"], document.get("archive", {}).get("files", {})
    width = max(len(size(count)) for count in files.values())
    lines = [f"{document['folder']}: release {document['release']}"]
    for name, count in files.items():
        small = f"  {size(packed[name]):>{width}} packed" if name in packed else ""
        lines.append(f"  {size(count):>{width}}{small}  {name}")
    if packed:
        whole = size(Path(document["archive"]["path"]).stat().st_size)
        lines.append(f"{document['archive']['path']}: {whole}")
    if not document["signed"]:
        lines.append("not signed: add --sign KEY, so that a device can tell who made it")
    lines.append(f"next: advprune bundle verify {document['folder']}")
    return "\n".join(lines)


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
