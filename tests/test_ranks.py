"""Ranks: what they share is what one process would have, and where they differ they stop."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from on_ranks import on_ranks
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from toy import Memory, make_batch, make_images, make_net, make_task, same, snapshot

from advprune import ranks
from advprune.batches import batches
from advprune.errors import Refused
from advprune.rank_rows import blocks, in_order, joined, own_rows
from advprune.rank_sums import total_by_name, total_gradients
from advprune.ranks import RankLost, RanksDisagree
from advprune.repro import seeded
from advprune.train import Schedule, descend, fit
from advprune.whole_batch import Rows, as_whole

IMAGES = make_images(train=40)
SCHEDULE = Schedule(epochs=2, batch_size=20, lr=0.1, validate_every=1)


def tensor(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


# Alone ------------------------------------------------------------------------------------------


def test_one_process_is_one_rank_and_has_all() -> None:
    assert (ranks.count(), ranks.number(), ranks.local_count()) == (1, 0, 1)
    rows = torch.arange(7)
    assert own_rows(rows).tolist() == rows.tolist()
    assert ranks.total(rows) is rows
    assert ranks.exchange(b"word") == [b"word"]
    assert [block.tolist() for block in blocks(5, 2)] == [[0, 1], [2, 3], [4]]
    ranks.demand_same("nothing", b"digest")


def test_a_batch_that_is_too_small_for_its_pieces_is_refused() -> None:
    schedule = replace(SCHEDULE, accumulate=21)
    with pytest.raises(Refused, match="20 images cannot be shared by 1 ranks in 21 pieces"):
        fit(make_net(), IMAGES, make_task(), schedule, Memory())


def test_the_gradient_of_pieces_is_that_of_the_whole_batch() -> None:
    """Where nothing looks over the batch: without batch norm, and dropout draws for the whole."""
    found = []
    for pieces in (1, 3):
        net = nn.Sequential(nn.Flatten(), nn.Dropout(0.3), nn.Linear(36, 3)).double()
        with seeded(1):
            nn.init.normal_(net[2].weight)  # pyright: ignore[reportArgumentType]
            nn.init.zeros_(net[2].bias)  # pyright: ignore[reportArgumentType]
        batch, task = make_batch(20), make_task()
        batch = replace(batch, images=batch.images.double())
        loss = descend(net, batch, task, replace(SCHEDULE, accumulate=pieces), 0, None, {})
        found.append([loss.value, loss.correct, *(p.grad for p in net.parameters())])
    for whole, pieced in zip(*found, strict=True):
        torch.testing.assert_close(whole, pieced, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("layer", [nn.Dropout(0.4), nn.Dropout2d(0.4)])
def test_what_a_layer_drops_of_a_part_is_what_it_drops_of_the_whole(layer: nn.Module) -> None:
    images = tensor(9, 4, 3, 3)
    with seeded(3):
        whole = layer(images)
    rows = Rows(torch.tensor([2, 7, 3]), 9)
    for again in (1, 2):  # a network may be shown its batch twice
        with seeded(3), as_whole(rows, synced=False):
            part = layer(images[rows.positions].repeat(again, 1, 1, 1))
        assert part.count_nonzero() > 0
        if again == 1:
            assert torch.equal(part, whole[rows.positions])


# On three ----------------------------------------------------------------------------------------


def shared_things(folder: Path) -> None:
    rank = ranks.number()
    assert ranks.count() == 3
    sizes = (3, 0, 2)
    parts = tensor(5, 4).split(list(sizes))
    mine = parts[rank].clone().requires_grad_()
    weights = tensor(5, 4, seed=1)
    # As losses are: each rank has its share of one loss, which all compute.
    (joined(mine) * weights).sum().mul(sizes[rank] / 5).backward()
    zeros = torch.tensor([-0.0, 1.0])[None]
    mine_of_five = blocks(5, 2)
    block = torch.cat([torch.zeros(0, 2), *(zeros.expand(len(rows), 2) for rows in mine_of_five)])
    refusal = ""
    try:
        ranks.demand_same("a colour", b"blue" if rank == 2 else b"red")
    except RanksDisagree as error:
        refusal = str(error)
    named = total_by_name({"a": torch.ones(2)} if rank else {}, torch.device("cpu"))
    said = {
        "exchange": [word.decode() for word in ranks.exchange(b"x" * rank)],
        "own": own_rows(torch.arange(8)).tolist(),
        "blocks": [rows.tolist() for rows in mine_of_five],
        "any": [ranks.any_of(rank == 1), ranks.any_of(False)],
        "refusal": refusal,
        "named": {name: total.tolist() for name, total in named.items()},
    }
    (folder / "said.json").write_text(json.dumps(said))
    found = {"gradient": mine.grad, "order": in_order(block, 5, 2), "joined": mine}
    found["flags"] = in_order(torch.ones(len(block), dtype=torch.bool), 5, 2)
    save_file({name: value.detach() for name, value in found.items()}, folder / "found")


def normalised(folder: Path) -> None:
    """Batch norm over all rows, twice, and a loss that is not linear in any of them."""
    x, weights = tensor(7, 2, 3, 3), tensor(7, 2, 3, 3, seed=1)
    norm = nn.BatchNorm2d(2).double()
    nn.init.normal_(norm.weight, generator=torch.Generator().manual_seed(2))
    rows = own_rows(torch.arange(7))
    part = x[rows].clone().requires_grad_()
    with as_whole(Rows(rows, 7), synced=True):
        out = norm(norm(part).tanh())
    (out * weights[rows]).square().sum().backward()
    total_gradients(norm.parameters())
    grads = {"dw": norm.weight.grad, "db": norm.bias.grad, "dx": part.grad, "out": out.detach()}
    save_file({**norm.state_dict(), **grads}, folder / "found")  # pyright: ignore[reportArgumentType]


def strayed(folder: Path) -> None:
    net = make_net()
    if ranks.number() == 1:
        with torch.no_grad():
            net.get_submodule("network.fc").get_parameter("bias")[0] += 1e-3
    memory = Memory()
    with pytest.raises(RanksDisagree, match="rank 1: what epoch 1 has come to is not that of"):
        fit(net, IMAGES, make_task(), SCHEDULE, memory)
    assert not memory.saves


def unsynced(folder: Path) -> None:
    net, memory = make_net(), Memory()
    fit(net, IMAGES, make_task(), replace(SCHEDULE, sync_bn=False), memory)
    save_file(net.state_dict(), folder / "net")
    (folder / "rows.json").write_text(json.dumps(memory.epochs[-1]))


def replaying(folder: Path) -> None:
    (folder / "losses.json").write_text(json.dumps(replays(accumulate=1)))


def replays(accumulate: int, norms: bool = True) -> list[float]:
    """The losses of free adversarial training in float64."""
    net, memory = make_net().double(), Memory()
    if not norms:
        for name in ("bn1", "bn2"):
            net.get_submodule("network").register_module(name, nn.Identity())
    task = make_task()
    objective = replace(task.objective, name="free", replays=3)
    schedule = replace(SCHEDULE, accumulate=accumulate)
    fit(net, IMAGES, replace(task, objective=objective), schedule, memory)
    return [metrics["loss"] for _, metrics in memory.steps]


def test_replays_of_pieces_are_those_of_the_whole_batch() -> None:
    """Each piece carries its own images on to the next replay."""
    whole = replays(accumulate=1, norms=False)
    assert len(whole) == 2 * 2 * 3
    assert replays(accumulate=3, norms=False) == pytest.approx(whole, abs=1e-6)


def lonely(folder: Path) -> None:
    if ranks.number() == 1:
        return
    with pytest.raises(RankLost, match="rank 0: another rank has ended"):
        while True:
            ranks.exchange(b"anybody?")
    os._exit(0)  # as a run ends then: what is left of the group cannot be taken down


def everything(folder: Path) -> None:
    for work in (normalised, strayed, unsynced, replaying):
        mine = folder / work.__name__
        mine.mkdir()
        work(mine)
    lonely(folder)


@pytest.mark.ddp
@pytest.mark.slow
def test_three_ranks_share_rows_sums_and_words(tmp_path: Path) -> None:
    on_ranks(3, shared_things, tmp_path)
    said = [json.loads((tmp_path / str(rank) / "said.json").read_text()) for rank in range(3)]
    found = [load_file(tmp_path / str(rank) / "found") for rank in range(3)]
    assert [one["own"] for one in said] == [[0, 1, 2], [3, 4, 5], [6, 7]]
    assert [one["blocks"] for one in said] == [[[0, 1]], [[2, 3]], [[4]]]
    for one in said:
        assert one["exchange"] == ["", "x", "xx"]
        assert one["any"] == [True, False]
        assert one["refusal"].startswith("rank 2: a colour is not that of rank 0")
        assert one["named"] == {"a": [2.0, 2.0]}
    parts = tensor(5, 4, seed=1).split([3, 0, 2])
    for one, wanted in zip(found, parts, strict=True):
        torch.testing.assert_close(one["gradient"], wanted)
        assert one["order"].shape == (5, 2)
        assert one["order"][:, 0].signbit().all()
        assert one["flags"].all()
        assert one["flags"].dtype == torch.bool


@pytest.mark.ddp
@pytest.mark.slow
def test_two_ranks_train_as_one_and_notice_when_they_do_not(tmp_path: Path) -> None:
    on_ranks(2, everything, tmp_path)
    norm = nn.BatchNorm2d(2).double()
    nn.init.normal_(norm.weight, generator=torch.Generator().manual_seed(2))
    x = tensor(7, 2, 3, 3).requires_grad_()
    out = norm(norm(x).tanh())
    (out * tensor(7, 2, 3, 3, seed=1)).square().sum().backward()
    assert x.grad is not None
    halves = [load_file(tmp_path / str(rank) / "normalised" / "found") for rank in (0, 1)]
    for half, rows in zip(halves, torch.arange(7).tensor_split(2), strict=True):
        wanted = {"dw": norm.weight.grad, "db": norm.bias.grad, "dx": x.grad[rows]}
        wanted |= {"out": out[rows], **norm.state_dict()}
        del half["num_batches_tracked"], wanted["num_batches_tracked"]
        for name, value in half.items():
            torch.testing.assert_close(value, wanted[name], rtol=1e-10, atol=1e-10, msg=name)
    for rank in (0, 1):
        losses = json.loads((tmp_path / str(rank) / "replaying" / "losses.json").read_text())
        assert losses == pytest.approx(replays(accumulate=1), abs=1e-5)
    # Each with statistics of its own rows: another training, and still one network.
    nets = [load_file(tmp_path / str(rank) / "unsynced" / "net") for rank in (0, 1)]
    assert same(nets[0], nets[1])
    alone, memory = make_net(), Memory()
    fit(alone, IMAGES, make_task(), SCHEDULE, memory)
    assert not same(nets[0], snapshot(alone))
    rows = json.loads((tmp_path / "0" / "unsynced" / "rows.json").read_text())
    assert rows[-1]["train"] == pytest.approx(memory.epochs[-1][-1]["train"], abs=0.25)


def test_a_rank_has_its_rows_of_every_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """And they are the images, labels and random streams that the whole batch has there."""
    wholes = list(batches(IMAGES, 0, 0, 3))
    monkeypatch.setattr(ranks, "count", lambda: 2)
    for rank in (0, 1):
        monkeypatch.setattr(ranks, "number", lambda rank=rank: rank)
        for whole, part in zip(wholes, batches(IMAGES, 0, 0, 3, pieces=2), strict=True):
            rows = part.rows.positions
            assert part.rows.of == len(whole.labels)
            assert part.share == len(rows) / len(whole.labels)
            assert torch.equal(part.images, whole.images[rows])
            assert torch.equal(part.labels, whole.labels[rows])
            drawn = whole.random.fork("test").uniform(3)
            assert torch.equal(part.random.fork("test").uniform(3), drawn[rows])
            pieces = list(part.pieces(2))
            assert torch.equal(torch.cat([p.images for p in pieces]), part.images)
            assert sum(p.share for p in pieces) == pytest.approx(part.share)
