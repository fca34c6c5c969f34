"""ResNet-50 by Free-AT on ImageNet with 8, 64 and 512 GPUs: computed, nothing of it is measured.

    .venv/bin/python benchmarks/extrapolate.py

The network is built to count what its ranks would sum. A step takes what NVIDIA published for one
A100 in mixed precision, `DeepLearningExamples`, PyTorch, ResNet-50 v1.5: 2,470 images a second
forward and backward, which is one replay of Free-AT (Shafahi et al. 2019). What a step costs that
holds next to nothing is not published, so nothing is what it costs here: small shares of a batch
would be slower than this.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from sections import write_section
from torch import nn

from deploy.words import duration, size
from pipeline.capacity import LINKS, Cost, Traffic, Work, estimate, step_traffic

PAGE = Path(__file__).parents[1] / "docs" / "capacity.md"
IMAGES = 1_281_167
PER_GPU = 256
FIXED = 4096
REPLAYS = 4
EPOCHS = 23  # of four replays: the paper's 90, divided by them
PUBLISHED = 2470.0  # images a second of one A100
# Of eight beside one, of the same page: what scaling came to where somebody measured it.
OTHERS = {"TF32": 7248 / (8 * 938), "mixed precision": 16621 / (8 * PUBLISHED)}


class Case(NamedTuple):
    """So many GPUs over a link; `synced` where batch norm looks at all of them."""

    gpus: int
    link: str
    batch: int
    synced: bool = True


CASES = [
    Case(1, "nvlink", PER_GPU),
    Case(8, "nvlink", 8 * PER_GPU),
    Case(8, "pcie", 8 * PER_GPU),
    Case(64, "infiniband", 64 * PER_GPU),
    Case(64, "25gbe", 64 * PER_GPU),
    Case(512, "infiniband", 512 * PER_GPU),
    Case(512, "infiniband", 512 * PER_GPU, synced=False),
    Case(512, "25gbe", 512 * PER_GPU),
    Case(8, "nvlink", FIXED),
    Case(64, "infiniband", FIXED),
    Case(512, "infiniband", FIXED),
]


def resnet50(synced: bool) -> tuple[int, Traffic]:
    """Its parameters, and what its ranks sum in a step; each batch norm is asked once."""
    import torchvision

    with torch.device("meta"):
        net = torchvision.models.resnet50()
    channels = [m.num_features for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    numbers = sum(p.numel() for p in net.parameters())
    given = (channels, ()) if synced else ((), channels)
    return numbers, step_traffic(numbers, *given)


def row(case: Case) -> str:
    _, traffic = resnet50(case.synced)
    cost = Cost(0.0, 1.0 / PUBLISHED)
    work = Work("free", EPOCHS, IMAGES, case.batch, cost, traffic, replays=REPLAYS)
    found = estimate(work, case.gpus, LINKS[case.link])
    cells = (
        f"{case.gpus}",
        case.link + ("" if case.synced else ", `sync_bn` off"),
        f"{case.batch:,}",
        f"{found.steps:,}",
        duration(found.computing),
        duration(found.communicating),
        duration(found.seconds),
        f"{100 * found.efficiency:.0f} %",
        size(found.sent_per_step),
        f"{found.sent / 1e12:.1f} TB",
        f"{found.sent * case.gpus / 1e12:,.1f} TB",
    )
    return f"| {' | '.join(cells)} |"


def table() -> str:
    head = (
        "| GPUs | link | batch | steps | computing | communicating | together | efficiency "
        "| a GPU sends a step | in all | all of them |"
    )
    numbers, traffic = resnet50(True)
    measured = ", ".join(f"{100 * share:.0f} % in {name}" for name, share in OTHERS.items())
    return "\n".join(
        [
            head,
            "|--:|---|--:|" + "--:|" * 8,
            *map(row, CASES),
            "",
            f"{numbers:,} parameters; {traffic.messages} messages and {size(traffic.payload)} are "
            f"summed in a step. Eight A100 beside one, as published there: {measured}.",
        ]
    )


def main(_: Sequence[str] | None = None) -> None:
    text = table()
    sys.stdout.write(f"{text}\n")
    write_section("extrapolated", text, PAGE)


if __name__ == "__main__":
    main()
