"""How many bytes ResNet-18 takes on its way, in 8 bits and at 99 % -> docs/results.md.

    .venv/bin/python benchmarks/download.py

The weights are those of initialisation: to train them takes a GPU, and what is counted here are the
places and codes of one weight in a hundred. Each layer keeps its largest weights, as many as the
allocation gives it. The same density everywhere is the dearest: its places are the least alike.
"""

import lzma
import tempfile
from pathlib import Path

import numpy as np
import torch
from sections import write_section
from torch import nn

from advprune.allocate import allocate
from advprune.masking import prunable_weights
from advprune.masks import keep_top
from advprune.models import Architecture, build
from deploy.bundle import sparse
from deploy.words import number, size
from export import graph
from export.encodings import x86_form
from export.quantize import quantize
from export.to_onnx import to_onnx

NETWORK = Architecture("resnet18", 10, (3, 32, 32), (0.49, 0.48, 0.45), (0.25, 0.24, 0.26))
SPARSITY = 0.99
ALLOCATIONS = ("uniform", "erk", "lamp", "global")
CALIBRATION = 128


def main() -> None:
    lines = [
        "| density | sparse int8, packed | dense float over it | the same with xz alone |",
        "|---|--:|--:|--:|",
    ]
    with tempfile.TemporaryDirectory() as scratch:
        dense = export(network(None), Path(scratch, "dense.onnx")).stat().st_size
        for allocation in ALLOCATIONS:
            content = eight_bits(network(allocation), Path(scratch)).read_bytes()
            packed, plain = len(sparse.pack(content)), len(lzma.compress(content, preset=9))
            if sparse.unpack(sparse.pack(content), len(content)) != content:
                raise SystemExit(f"{allocation}: other bytes came back")
            ratios = f"{number(dense / packed)}× | {number(dense / plain)}×"
            lines.append(f"| {allocation} | {size(packed)} | {ratios} |")
    write_section("download", "\n".join([*lines, "", f"Dense float file: {size(dense)}."]))


def network(allocation: str | None) -> nn.Module:
    """ResNet-18, without 99 % of its weights where an allocation says which layers lose them."""
    torch.manual_seed(0)
    net = build(NETWORK).eval()
    if allocation is not None:
        weights = prunable_weights(net)
        counts = allocate(allocation, weights, SPARSITY)
        with torch.no_grad():
            for name, weight in weights.items():
                weight *= keep_top(weight.abs(), counts[name])
    return net


def export(net: nn.Module, path: Path) -> Path:
    to_onnx(net, NETWORK.shape, path)
    return path


def eight_bits(net: nn.Module, folder: Path) -> Path:
    """The form for ONNX Runtime, which is the larger of the two."""
    pixels = np.random.default_rng(0).random((CALIBRATION, *NETWORK.shape), dtype=np.float32)
    quantize(export(net, folder / "model.onnx"), pixels, folder / "model.int8.onnx")
    graph.save(x86_form(graph.load(folder / "model.int8.onnx")), folder / "model.int8.x86.onnx")
    return folder / "model.int8.x86.onnx"


if __name__ == "__main__":
    main()
