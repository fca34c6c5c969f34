"""Mutate groups of modules and say which mutants no test noticed."""

import argparse
import importlib
import json
import signal
import sys
import tempfile
import time
from pathlib import Path

from mutation.groups import EQUIVALENT, GROUPS, read_equivalent, read_groups
from mutation.report import GOAL, lines, to_dict
from mutation.trying import try_group

# What the tests import of other people's, once for all processes that are forked.
_PRELOADED = (
    "torch",
    "scipy.stats",
    "safetensors.torch",
    "onnx",
    "onnxruntime",
    "torchvision",
    "pydantic",
    "cryptography.hazmat.primitives.serialization",
)


def main() -> int:
    """0 where of each group the share of mutants was killed that is the goal, else 1."""
    options = _parser().parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what was forked ends, too
    root = Path.cwd()
    sys.path.insert(0, str(root))  # as `python -m pytest` does
    groups, equivalent = read_groups(options.groups), read_equivalent(options.equivalent)
    for name in _PRELOADED if options.groups == GROUPS else ():
        importlib.import_module(name)
    trials, seconds = {}, {}
    for name in options.names or groups:
        start = time.monotonic()
        with tempfile.TemporaryDirectory() as scratch:
            trials[name] = try_group(
                groups[name],
                equivalent,
                root,
                Path(scratch),
                options.sample,
                options.seed,
                options.jobs,
            )
        seconds[name] = time.monotonic() - start
    content = to_dict(trials, seconds)
    if options.out:
        options.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    sys.stdout.write("\n".join(lines(content)) + "\n")
    return int(any(group["share"] < GOAL for group in content.values()))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="mutation", description=__doc__)
    parser.add_argument("names", nargs="*", help="groups; all if none is named")
    parser.add_argument("--sample", type=int, help="of each module so many mutants (all)")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time")
    parser.add_argument("--out", type=Path, help="JSON with the counts and each survivor")
    parser.add_argument("--groups", type=Path, default=GROUPS)
    parser.add_argument("--equivalent", type=Path, default=EQUIVALENT)
    return parser


if __name__ == "__main__":
    sys.exit(main())
