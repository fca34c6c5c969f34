"""Random numbers depend on (seed, purpose, image, draw) and on nothing else."""

import hashlib
import random

import numpy as np
import pytest
import torch
from scipy import stats

from advprune.repro import ImageRandom, _mix, derive, environment, generator, seeded

INDICES = torch.tensor([7, 0, 123456789, 42, 3, 2**40, 5, 6])


def rng(indices: torch.Tensor = INDICES, seed: int = 1) -> ImageRandom:
    return ImageRandom(seed, indices)


def test_the_mixer_is_splitmix64() -> None:
    """Published outputs of splitmix64 for the seed 1234567."""
    golden = 0x9E3779B97F4A7C15
    states = [(1234567 + golden * n) % 2**64 for n in (1, 2, 3)]
    signed = torch.tensor([s - 2**64 if s >= 2**63 else s for s in states])
    mixed = [int(value) % 2**64 for value in _mix(signed)]
    assert mixed == [6457827717110365317, 3203168211198807973, 9817491932198370423]


@pytest.mark.parametrize("seed", [0, 1, 2**62])
def test_uniform_numbers_are_uniform(seed: int) -> None:
    drawn = rng(torch.arange(50), seed).uniform(2, 1000).double().numpy().ravel()
    assert drawn.min() >= 0
    assert drawn.max() < 1
    assert stats.kstest(drawn, "uniform").pvalue > 1e-3
    counts = np.histogram(drawn, bins=64, range=(0, 1))[0]
    assert stats.chisquare(counts).pvalue > 1e-3


def test_normal_numbers_are_normal() -> None:
    drawn = rng(torch.arange(50)).normal(2000).double().numpy().ravel()
    assert np.isfinite(drawn).all()
    assert stats.kstest(drawn, "norm").pvalue > 1e-3


def test_integers_are_uniform_below_each_bound() -> None:
    drawn = rng(torch.arange(3000)).integers(torch.tensor([2, 3, 7]), 3)
    for column, high in zip(drawn.unbind(1), (2, 3, 7), strict=True):
        counts = np.bincount(column.numpy(), minlength=high)
        assert len(counts) == high
        assert stats.chisquare(counts).pvalue > 1e-3


def test_neighbouring_images_draws_and_seeds_are_uncorrelated() -> None:
    stream = rng(torch.arange(200))
    first, second = stream.uniform(500), stream.uniform(500)
    other = rng(torch.arange(200), seed=2).uniform(500)
    pairs = [
        (first[:-1], first[1:]),
        (first[:, :-1], first[:, 1:]),
        (first, second),
        (first, other),
        (first, rng(torch.arange(200)).fork("other").uniform(500)),
    ]
    for a, b in pairs:
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 4 / a.numel() ** 0.5


def test_an_image_draws_the_same_in_any_batch() -> None:
    whole = rng()
    together = [whole.uniform(3, 4), whole.normal(5), whole.integers(10, 2)]
    order = torch.randperm(len(INDICES), generator=generator(0))
    shuffled = rng(INDICES[order])
    again = [shuffled.uniform(3, 4), shuffled.normal(5), shuffled.integers(10, 2)]
    assert all(torch.equal(a[order], b) for a, b in zip(together, again, strict=True))
    for position, index in enumerate(INDICES):
        alone = rng(index[None])
        for expected, drawn in zip(
            together, (alone.uniform(3, 4), alone.normal(5), alone.integers(10, 2)), strict=True
        ):
            assert torch.equal(expected[position], drawn[0])


@pytest.mark.parametrize("keep", [torch.tensor([5, 1]), INDICES > 5])
def test_a_subset_goes_on_where_the_images_stand(keep: torch.Tensor) -> None:
    whole = rng()
    whole.uniform(4)
    part = whole.subset(keep)
    assert torch.equal(part.uniform(3), whole.uniform(3)[keep])


def test_forks_differ_from_each_other_and_leave_the_original_alone() -> None:
    stream, untouched = rng(), rng()
    a, b, again = (stream.fork(name).bits(8) for name in ("a", "b", "a"))
    assert torch.equal(a, again)
    assert not torch.equal(a, b)
    original = stream.bits(8)
    assert torch.equal(original, untouched.bits(8))
    assert not torch.equal(original, a)


def test_seeds_and_draws_differ() -> None:
    stream = rng()
    assert not torch.equal(stream.bits(4), stream.bits(4))
    assert not torch.equal(rng(seed=1).bits(4), rng(seed=2).bits(4))


def test_derive_is_a_hash_of_seed_and_purpose() -> None:
    digest = hashlib.sha256(b"3/order/7").digest()
    assert derive(3, "order", 7) == int.from_bytes(digest[:8], "big") // 2
    assert len({derive(s, p) for s in range(50) for p in ("a", "b")}) == 100
    assert torch.equal(
        torch.rand(3, generator=generator(3, "order")),
        torch.rand(3, generator=generator(3, "order")),
    )


def test_nothing_touches_the_global_generators() -> None:
    torch_state, numpy_state, python_state = (
        torch.get_rng_state(),
        np.random.get_state(legacy=False),  # noqa: NPY002 - the state itself is what is compared
        random.getstate(),
    )
    stream = rng()
    for draw in (stream.uniform, stream.normal, stream.fork("x").bits):
        draw(3)
    stream.integers(4, 3)
    with pytest.raises(RuntimeError, match="inside"), seeded(1, "dropout"):
        torch.rand(5)
        raise RuntimeError("inside")
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert str(np.random.get_state(legacy=False)) == str(numpy_state)  # noqa: NPY002
    assert random.getstate() == python_state


def test_seeded_decides_what_layers_draw() -> None:
    with seeded(1, "dropout"):
        first = torch.rand(4)
    torch.rand(100)
    with seeded(1, "dropout"):
        assert torch.equal(torch.rand(4), first)
    with seeded(2, "dropout"):
        assert not torch.equal(torch.rand(4), first)


def test_the_environment_card_names_what_results_depend_on() -> None:
    card = environment("cpu")
    assert card["torch"] == torch.__version__
    assert card["threads"] == torch.get_num_threads()
    assert card["device"] == "cpu"
