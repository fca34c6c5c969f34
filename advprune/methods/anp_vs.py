"""ANP-VS: adversarial training that learns which channels to switch off (Madaan et al. 2020).

Every channel has a gate that is on with a learned probability pi (see `gates`), and two parties
train at once, on adversarial images that are constants to both:

    gates     CE(x_adv) + beta KL / N
    weights   (CE(x) + 2 CE(x_adv)) / 3 + lambda VS + weight decay

VS is the vulnerability of the latent tensors (see `vulnerability`), measured with the same random
gates and dropout for x as for x_adv, so that it is zero where the attack moves nothing. At the end
the gates are folded into the weights as E[pi], and the channels of the lowest E[pi] are removed:
as many as asked (`target_sparsity`), or all those whose gate has shut.
"""

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from advprune.batches import Batch
from advprune.card import Card
from advprune.channel_units import ChannelUnits
from advprune.gates import THRESHOLD
from advprune.gating import Gating, gating_of
from advprune.method import Progress, State, Task, register
from advprune.objectives import Loss, cross_entropy_attack
from advprune.optimisation import Optimisation, ParameterGroups
from advprune.structured import StructuredMethod
from advprune.types import Images, Logits, Masks
from advprune.units import Counts
from advprune.vulnerability import distance, latent_layers, watched

# How far, in a_uc, the gates' rate could take one in the whole search: from open to shut is 9, the
# cosine halves the way, and a gate that was misjudged must be able to come back.
REACH = 40.0
FASTEST = 0.2  # faster than this, gates shut before the loss has told which


@register
class AnpVs(StructuredMethod):
    card: ClassVar[Card] = Card(
        title="ANP-VS",
        paper="Madaan et al., Adversarial Neural Pruning with Latent Vulnerability Suppression, "
        "ICML 2020",
        year=2020,
        summary="learns during adversarial training how often each channel is needed",
        equations=(
            "z = sigmoid((logit u + logit pi) / 0.1) gates a channel; pi ~ Kumaraswamy(a, b), "
            "prior Beta(1e-4, 1)",
            "gates: Adam on CE(x_adv) + beta KL / N, beta 4, 2 and 1 on MNIST, CIFAR-10 and -100",
            "weights: Adam on (CE(x) + 2 CE(x_adv)) / 3 + lambda VS, lambda 1e-3, 1e-4 and 0.1",
            "VS = mean |z(x) - z(x_adv)| of each latent tensor, averaged over the tensors",
            "channels with E[pi] below 1e-3 go, the others are scaled by E[pi]",
        ),
        departures=(
            "gates stand behind batch norm, where a shut gate is exactly zero, at the inputs of "
            "the layers that read them: channels that are added share a gate, and a flattened "
            "channel has one, not one for each pixel",
            "latent tensors are what those layers read, gated and pooled; the released code takes "
            "them before, and lets no gradient into the first",
            "clean and adversarial images share gates and dropout: VS does not punish noise; "
            "the released search has dropout off before linear layers",
            "the sparsity can be asked for: the channels of the lowest E[pi] go, in widths that "
            "engines like; target_sparsity=False leaves it to the threshold",
            "beta rises from zero over kl_warmup; learning rates follow the cosine of the search, "
            "and in a short one the gates' is higher, so that they can shut",
            "all gates start at a_uc = 2, where the paper's linear layers and LeNet start at -1",
            "the attack is the recipe's, on images that are really inside the ball",
        ),
        pipeline="during",
        pretraining="NT",
        finetuning="none",
        structure="S",
        locality="G",
        criterion="lowest expected gate",
    )
    moves_weights: ClassVar[bool] = True

    granularity: Literal["channel"] = Field(  # pyright: ignore[reportIncompatibleVariableOverride]
        default="channel", description="what is removed as one"
    )
    target_sparsity: bool = Field(
        default=True, description="remove the share that is asked for, not what has shut by itself"
    )
    kl: float = Field(default=2.0, ge=0, description="beta: weight of KL / N for the gates")
    kl_warmup: float = Field(
        default=0.1, ge=0, le=1, description="share of the steps over which beta rises from zero"
    )
    suppression: float = Field(
        default=1e-4, ge=0, description="lambda: weight of the vulnerability for the weights"
    )
    gate_start: float = Field(
        default=2.0, gt=-10, description="a_uc at the start; 2 opens gates to E[pi] = 0.68"
    )
    weight_lr: float = Field(
        default=0.01,
        gt=0,
        description="Adam's learning rate of the weights, relative to the stage's",
    )
    gate_lr: float | None = Field(
        default=None, gt=0, description="the same of the gates; 0.1, or more in a short search"
    )

    @property
    def lands(self) -> bool:
        return self.target_sparsity

    def start(self, net: nn.Module, task: Task, optimisation: Optimisation) -> State:
        groups = self.channel_units(net, task).groups
        Gating(net, groups, latent_layers(net, groups, task.shape), self.gate_start)
        warm = 0.0 if self.kl_warmup else 1.0
        return {"warmth": torch.tensor(warm), "images": torch.tensor(optimisation.images)}

    def groups(self, net: nn.Module, optimisation: Optimisation) -> ParameterGroups:
        gates, weights = _parties(net)
        hurry = min(FASTEST, REACH / max(1, optimisation.steps))
        default = max(0.1 * optimisation.lr, hurry)
        gate_lr = default if self.gate_lr is None else self.gate_lr * optimisation.lr
        return [
            {"params": weights, "lr": self.weight_lr * optimisation.lr},
            {"params": gates, "lr": gate_lr, "weight_decay": 0.0},
        ]

    def optimiser(
        self, groups: ParameterGroups, optimisation: Optimisation
    ) -> torch.optim.Optimizer:
        return torch.optim.Adam(groups, weight_decay=optimisation.weight_decay)

    def loss(self, net: nn.Module, state: State, batch: Batch, task: Task) -> Loss:
        """The weights' loss; its gradient is that of each party's own loss."""
        gating = gating_of(net)
        adversarial = cross_entropy_attack(task.objective, net, batch)
        with gating.drawn(len(batch.labels)):
            # Both passes see the same numbers, dropout as well.
            with torch.random.fork_rng(range(torch.cuda.device_count())):
                clean_logits, clean = _forward(net, batch.images)
            logits, attacked = _forward(net, adversarial)
        robust = F.cross_entropy(logits, batch.labels)
        beta = self.kl * float(state["warmth"]) / float(state["images"])
        for_gates = robust + beta * gating.divergence()
        natural = F.cross_entropy(clean_logits, batch.labels)
        for_weights = (natural + 2.0 * robust) / 3.0 + self.suppression * distance(clean, attacked)
        value = _joined((for_gates, for_weights), _parties(net))
        return Loss(value, (logits.argmax(dim=1) == batch.labels).sum())

    def update(self, net: nn.Module, state: State, progress: Progress, task: Task) -> None:
        gating_of(net).refresh()
        if self.kl_warmup:
            state["warmth"].fill_(min(1.0, progress.fraction / self.kl_warmup))

    @torch.no_grad()
    def finish(self, net: nn.Module, state: State, task: Task) -> Masks:
        """Fold the gates, then remove channels.

        Raises:
            BadData: the narrowest widths exceed the budget.
        """
        gating = gating_of(net)
        expected = gating.expected()
        gating.fold(net, expected)
        scores = gating.split(expected)
        units = self.channel_units(net, task)
        if self.target_sparsity:
            counts = units.counts("global", scores, self.sparsity)
        else:
            counts = _open(units, scores)
        return units.select(scores, counts)


def _parties(net: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """(gates, weights): all that learns."""
    gates = list(gating_of(net).parameters())
    mine = {id(parameter) for parameter in gates}
    return gates, [p for p in net.parameters() if p.requires_grad and id(p) not in mine]


def _forward(net: nn.Module, images: Images) -> tuple[Logits, list[Tensor]]:
    """Logits and latent tensors."""
    latents: list[Tensor] = []
    with watched(net, gating_of(net).watched, lambda _, z: latents.append(z)):
        return net(images), latents


def _joined(losses: tuple[Tensor, Tensor], parties: tuple[list, list]) -> Tensor:
    """The value of the second loss, with the gradient of each loss for its own parameters."""
    pull = torch.zeros_like(losses[1])
    for loss, parameters in zip(losses, parties, strict=True):
        found = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
        for parameter, gradient in zip(parameters, found, strict=True):
            if gradient is not None:
                pull = pull + (gradient * parameter).sum()
    return losses[1].detach() + (pull - pull.detach())


def _open(units: ChannelUnits, scores: dict[str, Tensor]) -> Counts:
    """The least allowed width of each group that keeps every gate that has not shut."""
    kept = {name: int((score > THRESHOLD).sum()) for name, score in scores.items()}
    return {
        name: next(width for width in units.allowed[name] if width >= kept[name]) for name in kept
    }
