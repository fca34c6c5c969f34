"""What a step hands on: the best weights so far, and all that the next one depends on."""

import hashlib
from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from advprune.method import State


class Kept(Protocol):
    """Something beside the network that the next step depends on."""

    def pack(self) -> dict[str, Tensor]: ...

    def unpack(self, tensors: dict[str, Tensor], device: torch.device) -> None: ...


class Best:
    """The weights of the epoch with the highest score so far.

    Attributes:
        score: float64 scalar; below zero before the first offer.
        tensors: the state of the network at that score; empty before the first offer.
    """

    def __init__(self) -> None:
        self.score = torch.tensor(-1.0, dtype=torch.float64)
        self.tensors: dict[str, Tensor] = {}

    def offer(self, net: nn.Module, score: float) -> None:
        # Equal scores go to the later epoch: it has seen more of the schedule.
        if score >= float(self.score):
            self.score.fill_(score)
            self.tensors = {key: value.clone() for key, value in net.state_dict().items()}

    def load(self, net: nn.Module) -> None:
        net.load_state_dict(self.tensors, strict=True)

    def pack(self) -> dict[str, Tensor]:
        return {"score": self.score} | {f"net/{key}": v for key, v in self.tensors.items()}

    def unpack(self, tensors: dict[str, Tensor], device: torch.device) -> None:
        self.score.copy_(tensors["score"])
        self.tensors = {key: v.to(device) for key, v in part(tensors, "net/").items()}


def pack(
    net: nn.Module, optimiser: torch.optim.Optimizer, state: State, kept: Mapping[str, Kept]
) -> dict[str, Tensor]:
    """All that the next step depends on, as one flat dict of tensors on the CPU."""
    tensors = {f"net/{key}": value for key, value in net.state_dict().items()}
    tensors |= {f"method/{key}": value for key, value in state.items()}
    for index, slots in optimiser.state_dict()["state"].items():
        tensors |= {f"optimiser/{index}/{key}": value for key, value in slots.items()}
    for name, thing in kept.items():
        tensors |= {f"{name}/{key}": value for key, value in thing.pack().items()}
    return {key: value.detach().cpu().clone() for key, value in tensors.items()}


def unpack(
    tensors: dict[str, Tensor],
    net: nn.Module,
    optimiser: torch.optim.Optimizer,
    state: State,
    kept: Mapping[str, Kept],
) -> None:
    """Put everything back where `pack` found it."""
    net.load_state_dict(part(tensors, "net/"), strict=True)
    for key, value in part(tensors, "method/").items():
        state[key].copy_(value)
    slots: dict[int, dict[str, Any]] = {}
    for key, value in part(tensors, "optimiser/").items():
        index, name = key.split("/", 1)
        slots.setdefault(int(index), {})[name] = value
    groups = optimiser.state_dict()["param_groups"]
    optimiser.load_state_dict({"state": slots, "param_groups": groups})
    device = next(net.parameters()).device
    for name, thing in kept.items():
        thing.unpack(part(tensors, f"{name}/"), device)


def digest(tensors: Mapping[str, Tensor]) -> bytes:
    """SHA-256 over names and contents of tensors on the CPU."""
    hasher = hashlib.sha256()
    for name in sorted(tensors):
        hasher.update(name.encode())
        # Not all types are known to numpy, all are bytes.
        hasher.update(tensors[name].contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return hasher.digest()


def part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors below a prefix, without it."""
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
