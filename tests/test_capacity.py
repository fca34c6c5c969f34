"""Promise: an estimate for more ranks and images counts what is sent and promises no miracles."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from on_ranks import on_ranks
from toy import make_images, make_net, make_task

from advprune import ranks
from advprune.batches import batches
from advprune.errors import Refused
from advprune.train import Schedule, descend
from pipeline.capacity import (
    LINKS,
    Cost,
    Link,
    Traffic,
    Work,
    estimate,
    link_of,
    step_traffic,
    through,
    total,
)

COSTS = st.builds(Cost, st.floats(0, 1), st.floats(1e-6, 1))
TRAFFICS = st.builds(Traffic, st.integers(1, 500), st.integers(1, 10**9))
WORKS = st.builds(
    Work,
    st.just("prune"),
    epochs=st.integers(1, 100),
    images=st.integers(4096, 10**7),
    batch_size=st.integers(2048, 4096),
    cost=COSTS,
    traffic=TRAFFICS,
    pieces=st.integers(1, 2),
    beside=st.integers(0, 1),
    replays=st.integers(1, 8),
)
RANKS = st.integers(1, 512)
SOME_LINK = st.sampled_from(list(LINKS.values()))


# All-reduce -------------------------------------------------------------------------------------


@given(st.integers(1, 9), st.integers(1, 5))
def test_bytes_are_those_of_a_ring_that_is_walked(count: int, part: int) -> None:
    """A ring as it is described: each rank passes a part on, first sums and then results."""
    held = [[float(rank * 100 + i) for i in range(count)] for rank in range(count)]
    wanted = [sum(column) for column in zip(*held, strict=True)]
    sent = [0] * count
    for turn in range(2 * (count - 1)):
        messages = []
        for rank in range(count):
            place = (rank - turn) % count
            messages.append((rank, place, held[rank][place]))
            sent[rank] += part
        for rank, place, value in messages:
            receiver = (rank + 1) % count
            held[receiver][place] = value + (held[receiver][place] if turn < count - 1 else 0.0)
    assert all(row == wanted for row in held)
    payload = count * part
    assert [Traffic(1, payload).sent(count)] * count == pytest.approx(sent)


def test_seconds_of_a_message_by_hand() -> None:
    link = Link("x", rate=1e9, hop=1e-6, base=5e-6)
    # 4 ranks: 1.5 times the bytes, and 2 hops there and 2 back for each message.
    assert Traffic(10, 2_000_000).seconds(4, link) == pytest.approx(3e-3 + 10 * 9e-6)


@given(TRAFFICS, SOME_LINK)
def test_one_rank_sends_nothing(traffic: Traffic, link: Link) -> None:
    assert traffic.sent(1) == 0.0
    assert traffic.seconds(1, link) == 0.0


@given(TRAFFICS, SOME_LINK, RANKS)
def test_more_ranks_never_communicate_less(traffic: Traffic, link: Link, count: int) -> None:
    assert traffic.sent(count) <= traffic.sent(count + 1) < 2 * traffic.payload
    assert traffic.seconds(count, link) <= traffic.seconds(count + 1, link)


def test_links_have_names_or_a_rate() -> None:
    assert link_of("nvlink").rate > link_of("pcie").rate > link_of("25gbe").rate
    assert link_of("2.5").rate == 2.5e9
    assert link_of("2.5").hop == link_of("25gbe").hop
    for word in ("ethernet", "0", "-1", "nan", "inf", ""):
        with pytest.raises(Refused, match="use nvlink"):
            link_of(word)


# Steps ------------------------------------------------------------------------------------------


@given(COSTS, st.integers(1, 32), st.integers(33, 500))
def test_the_cost_of_a_step_is_found_from_two(cost: Cost, few: int, many: int) -> None:
    found = through((few, cost.of(few)), (many, cost.of(many)))
    assert found.of(200) == pytest.approx(cost.of(200), rel=1e-6, abs=1e-9)


@given(st.integers(1, 64), st.integers(1, 64), st.floats(1e-6, 9), st.floats(1e-6, 9))
def test_noise_makes_no_part_of_a_cost_negative(
    few: int, more: int, soon: float, late: float
) -> None:
    many = few + more - 1
    found = through((few, soon), (many, late))
    assert found.fixed >= 0.0 and found.per_image >= 0.0
    assert found.of(many) == pytest.approx(late)


def record(folder: Path) -> None:
    """What is summed in a step of each kind of training, by the messages themselves."""
    seen: list[int] = []
    send = dist.all_reduce

    def counted(tensor, *args, **given):
        seen.append(tensor.numel() * tensor.element_size())
        return send(tensor, *args, **given)

    dist.all_reduce = counted
    found = {}
    for kind, (name, schedule) in KINDS.items():
        net, task = make_net(), make_task(name=name)
        batch = next(iter(batches(make_images(train=24), 0, 0, 1, pieces=schedule.accumulate)))
        seen.clear()
        descend(net, batch, task, schedule, 0, None, {})
        ranks.any_of(False)  # as the observer of a run asks after every step
        found[kind] = [len(seen), sum(seen)]
    (folder / "found.json").write_text(json.dumps(found))


KINDS = {
    "one pass": ("pgd", Schedule(epochs=1)),
    "two passes": ("trades", Schedule(epochs=1)),
    "pieces": ("pgd", Schedule(epochs=1, accumulate=3)),
    "not synced": ("pgd", Schedule(epochs=1, sync_bn=False)),
}


@pytest.mark.ddp
def test_what_two_ranks_sum_in_a_step_is_what_is_counted(tmp_path: Path) -> None:
    on_ranks(2, record, tmp_path)
    gradients, norms = sum(p.numel() for p in make_net().parameters()), [8, 16]
    expected = {
        "one pass": step_traffic(gradients, norms),
        "two passes": step_traffic(gradients, 2 * norms),
        "pieces": step_traffic(gradients, 3 * norms),
        "not synced": step_traffic(gradients, (), norms),
    }
    for rank in "01":
        found = json.loads((tmp_path / rank / "found.json").read_text())
        assert {kind: Traffic(*counts) for kind, counts in found.items()} == expected


# Stages -----------------------------------------------------------------------------------------


@given(WORKS, RANKS, SOME_LINK)
def test_no_number_of_ranks_does_better_than_its_share(work: Work, count: int, link: Link) -> None:
    found = estimate(work, count, link)
    assert 0.0 < found.efficiency <= 1.0 + 1e-12
    assert found.seconds >= found.alone / count * (1 - 1e-12)


@given(WORKS, SOME_LINK)
def test_one_rank_is_the_measured_steps(work: Work, link: Link) -> None:
    found = estimate(work, 1, link)
    assert (found.communicating, found.sent) == (0.0, 0.0)
    assert found.seconds == found.alone
    assert found.efficiency == 1.0


@given(WORKS, RANKS, SOME_LINK, st.integers(2, 9))
def test_whole_batches_more_cost_in_proportion(
    work: Work, count: int, link: Link, times: int
) -> None:
    work = replace(work, images=3 * work.batch_size)
    one = estimate(work, count, link)
    many = estimate(replace(work, images=times * work.images), count, link)
    assert many.seconds == pytest.approx(times * one.seconds)
    assert many.sent == pytest.approx(times * one.sent)
    again = estimate(replace(work, epochs=times * work.epochs), count, link)
    assert again.seconds == pytest.approx(times * one.seconds)
    replayed = estimate(replace(work, replays=times * work.replays), count, link)
    assert replayed.steps == times * one.steps


@given(WORKS, RANKS, SOME_LINK)
def test_more_ranks_compute_no_longer_and_send_no_less(work: Work, count: int, link: Link) -> None:
    one, more = (estimate(work, n, link) for n in (count, count + 1))
    assert more.computing <= one.computing
    assert more.communicating >= one.communicating
    assert more.sent >= one.sent


@given(st.lists(WORKS, max_size=5), RANKS, SOME_LINK)
def test_totals_add_up(works: list[Work], count: int, link: Link) -> None:
    each = [estimate(work, count, link) for work in works]
    found = total(each, count)
    assert found.seconds == pytest.approx(sum(one.seconds for one in each))
    assert found.sent == pytest.approx(sum(one.sent_per_step * one.steps for one in each))
    assert found.steps == sum(one.steps for one in each)
    assert 0.0 < found.efficiency <= 1.0 + 1e-12


def test_a_batch_that_ranks_cannot_share_is_refused_as_training_would() -> None:
    work = Work("adversarial", 1, 100, 40, Cost(0, 1), Traffic(1, 1), pieces=2)
    # 3 batches of 33 or 34: 16 ranks have 2 pieces of one image each, 17 have not.
    assert estimate(work, 16, LINKS["pcie"]).steps == 3
    with pytest.raises(Refused, match=r"adversarial\.batch_size=34 or more"):
        estimate(work, 17, LINKS["pcie"])
