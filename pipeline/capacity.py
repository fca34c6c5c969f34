"""What ranks and images cost: from one step that was measured to a whole training on many GPUs.

Seconds of computing are the measured step's, for the rows that a rank has of a batch. Communication
is computed, as nothing hides it (`advprune.ranks`): what ranks sum in a step, sent around a ring at
the rate of a link, and a delay for every message. Bytes: Patarasu & Yuan 2009, theorem 1; delays:
NCCL's own model of its trees, `src/graph/tuning.cc`.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from advprune.errors import Refused

_NUMBER = 4  # bytes; gradients and batch statistics are float32
_SUMS = (16, 8)  # bytes of a step's loss and right answers, and of whether somebody wants to save
_BASE = 6.8e-6  # seconds of any message, however near (NCCL: Tree, LL)


@dataclass(frozen=True)
class Link:
    """What ranks send over; of several kinds, the slowest.

    Attributes:
        rate: bytes per second that a rank can send while it receives as many.
        hop: seconds from one rank to the next.
        base: seconds that any message takes besides.
    """

    name: str
    rate: float
    hop: float
    base: float = _BASE


_NEAR, _BUS, _NET = 0.6e-6, 1.0e-6, 5.0e-6  # seconds a hop (NCCL: Tree, LL)
# One direction of what data sheets promise; nccl-tests calls what is reached the bus bandwidth.
LINKS = {
    link.name: link
    for link in (
        Link("nvlink", 450e9, _NEAR),  # 4th generation: 18 links of 25 GB/s
        Link("pcie", 32e9, _BUS),  # 4.0, 16 lanes
        Link("infiniband", 50e9, _NET),  # NDR, 400 Gbit/s
        Link("100gbe", 12.5e9, _NET),
        Link("25gbe", 3.125e9, _NET),
    )
}
ASSUMED = "pcie"


def link_of(word: str) -> Link:
    """A link by its name, or a network of so many GB/s.

    Raises:
        Refused: neither of them.
    """
    if word in LINKS:
        return LINKS[word]
    try:
        rate = float(word)
    except ValueError:
        rate = math.nan
    if not 0.0 < rate < math.inf:
        raise Refused(f"--link {word}: use {', '.join(LINKS)}, or GB/s as a number above 0")
    return Link(f"{rate:g} GB/s", rate * 1e9, _NET)


@dataclass(frozen=True)
class Traffic:
    """What the ranks sum in one step: so many messages, and bytes in all of them."""

    messages: int
    payload: int

    def sent(self, ranks: int) -> float:
        """Bytes that each rank sends: of every message all parts but one, there and back."""
        return 2 * (ranks - 1) / ranks * self.payload

    def seconds(self, ranks: int, link: Link) -> float:
        """Until all have the sums of a step; 0 for one rank, which sums nothing."""
        if ranks == 1:
            return 0.0
        delay = link.base + 2 * math.ceil(math.log2(ranks)) * link.hop
        return self.sent(ranks) / link.rate + self.messages * delay


def step_traffic(gradients: int, synced: Sequence[int], averaged: Sequence[int] = ()) -> Traffic:
    """Of one step of training, see `advprune.train.descend` and `advprune.whole_batch`.

    Args:
        gradients: how many numbers.
        synced: channels of each batch norm, as often as it is asked in training mode: sums,
            squares and a count in float64, then two sums on the way back.
        averaged: channels of each batch norm that looks at a rank's own rows: all means and
            variances are averaged at once.
    """
    numbers = gradients + 2 * sum(synced) + 2 * sum(averaged)
    statistics = sum(2 * wide + 1 for wide in synced)
    messages = bool(gradients) + 2 * len(synced) + bool(averaged) + len(_SUMS)
    return Traffic(messages, _NUMBER * (numbers + 2 * statistics) + sum(_SUMS))


@dataclass(frozen=True)
class Cost:
    """Seconds of a step by the images in it: some for any, and some for each."""

    fixed: float
    per_image: float

    def of(self, rows: int, pieces: int = 1) -> float:
        """Of a step on so many images, taken in so many pieces."""
        return pieces * self.fixed + rows * self.per_image


def through(few: tuple[int, float], many: tuple[int, float]) -> Cost:
    """The line through two measured steps of (images, seconds); neither part is below zero.

    Where noise would put one there, the line goes through `many` alone.
    """
    (less, soon), (more, late) = few, many
    fixed = (more * soon - less * late) / (more - less) if more > less else 0.0
    fixed = min(max(fixed, 0.0), late)
    return Cost(fixed, (late - fixed) / more)


@dataclass(frozen=True)
class Work:
    """One stage that trains.

    Attributes:
        images: of an epoch, in batches of nearly `batch_size`.
        pieces: in which a rank takes its rows of a batch, one after the other.
        beside: extra images that join every batch for each of its images.
        replays: steps in succession on every batch.
    """

    name: str
    epochs: int
    images: int
    batch_size: int
    cost: Cost
    traffic: Traffic
    pieces: int = 1
    beside: int = 0
    replays: int = 1


@dataclass(frozen=True)
class Estimate:
    """Of one stage or of all.

    Attributes:
        steps: in all epochs.
        computing, communicating: seconds of the slowest rank.
        alone: seconds of one rank for the same.
        sent: bytes by each rank in all steps.
    """

    name: str
    ranks: int
    steps: int
    computing: float
    communicating: float
    alone: float
    sent: float

    @property
    def seconds(self) -> float:
        return self.computing + self.communicating

    @property
    def efficiency(self) -> float:
        """How much of what so many ranks could do at best is done; 1 where nothing is."""
        return self.alone / (self.ranks * self.seconds) if self.seconds else 1.0

    @property
    def sent_per_step(self) -> float:
        return self.sent / self.steps if self.steps else 0.0


def estimate(work: Work, ranks: int, link: Link) -> Estimate:
    """A stage on so many ranks, which share every batch.

    Raises:
        Refused: some batch has too few images for that.
    """
    batches = math.ceil(work.images / work.batch_size)
    if work.images // batches < ranks * work.pieces:
        raise Refused(
            f"{work.name}: batches of {work.images // batches} images cannot be shared by {ranks} "
            f"ranks in {work.pieces} pieces each; give --set {work.name}.batch_size="
            f"{ranks * work.pieces} or more, or fewer ranks"
        )
    steps = work.epochs * batches * work.replays
    largest = math.ceil(work.images / batches)

    def computing(rows: int) -> float:
        return steps * work.cost.of((1 + work.beside) * rows, work.pieces)

    return Estimate(
        work.name,
        ranks,
        steps,
        computing(math.ceil(largest / ranks)),
        steps * work.traffic.seconds(ranks, link),
        computing(largest),
        steps * work.traffic.sent(ranks),
    )


def total(estimates: Iterable[Estimate], ranks: int) -> Estimate:
    """One after the other."""
    each = list(estimates)
    return Estimate(
        "total",
        ranks,
        sum(one.steps for one in each),
        sum(one.computing for one in each),
        sum(one.communicating for one in each),
        sum(one.alone for one in each),
        sum(one.sent for one in each),
    )
