"""Installed packages against what this one asks for in its metadata."""

from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version

from pipeline.doctor.finding import Finding

PACKAGE = "advprune"
# Extra -> what it is for, of those that this package declares.
EXTRAS = {
    "openvino": "another engine for processors, which `bench` can time",
    "tensorrt": "engines for NVIDIA GPUs",
    "timm": "its networks as models",
    "sign": "signed bundles, `bundle --sign`",
    "track": "curves in TensorBoard",
    "mlflow": "runs in MLflow",
    "ray": "sweeps over several machines, `sweep --backend ray`",
    "slurm": "sweeps as jobs of SLURM, `sweep --backend slurm`",
    "storage": "stages in object storage, `--storage URL`",
}


def core() -> Iterator[Finding]:
    """Every package that a run needs."""
    try:
        needed = _requirements("")
    except PackageNotFoundError:
        yield Finding(PACKAGE, "missing", "not installed", "make setup")
        return
    for requirement in needed:
        name, found, fits = _state(requirement)
        if fits:
            yield Finding(name, "ok", found)
        else:
            asked = f"{found}, must be {requirement}" if found else "not installed"
            yield Finding(name, "missing", asked, f"make setup, or pip install '{requirement}'")


def extras() -> Iterator[Finding]:
    """What is there for single purposes."""
    for extra, purpose in EXTRAS.items():
        states = {requirement: _state(requirement) for requirement in _requirements(extra)}
        lacking = [requirement for requirement, (_, _, fits) in states.items() if not fits]
        old = [f"{name} {found}" for name, found, fits in states.values() if found and not fits]
        if not lacking:
            found = ", ".join(f"{name} {found}" for name, found, _ in states.values())
            yield Finding(extra, "ok", f"{found}: {purpose}")
        else:
            words = " ".join(f"'{requirement}'" for requirement in lacking)
            found = f"{', '.join(old)} is too old" if old else "not installed"
            yield Finding(extra, "absent", f"{found}; it is for {purpose}", f"pip install {words}")


def _requirements(extra: str) -> list[str]:
    """Those of an extra, or of the package itself where it is "", without their markers.

    Raises:
        PackageNotFoundError: this package is not installed.
    """
    from packaging.requirements import Requirement

    def applies(requirement: Requirement, to: str) -> bool:
        return requirement.marker is None or requirement.marker.evaluate({"extra": to})

    found = [Requirement(text) for text in requires(PACKAGE) or ()]
    chosen = [r for r in found if applies(r, extra) and not (extra and applies(r, ""))]
    return [f"{r.name}{r.specifier}" for r in chosen]


def _state(requirement: str) -> tuple[str, str, bool]:
    """Name, installed version or "", and whether that is in the range."""
    from packaging.requirements import Requirement

    asked = Requirement(requirement)
    try:
        found = version(asked.name)
    except PackageNotFoundError:
        return asked.name, "", False
    return asked.name, found, asked.specifier.contains(found, prereleases=True)
