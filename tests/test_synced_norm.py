"""Promise: batch norm over ranks is batch norm over all their rows, in one message each way."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from advprune import synced_norm
from advprune.synced_norm import batch_norm


def tensor(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("shape", [(6, 3), (6, 3, 5), (6, 3, 2, 2), (3, 3, 2, 2, 2)])
def test_of_one_rank_it_is_that_of_torch(shape: tuple[int, ...], affine: bool) -> None:
    """Values, running statistics and every gradient, which torch derives by itself."""
    x, outer = tensor(*shape), tensor(*shape, seed=1)
    results = []
    formulas: list[Callable[..., Tensor]] = [F.batch_norm, batch_norm]
    for norm in formulas:
        moving = [torch.zeros(3).double(), torch.ones(3).double()]
        learned = [tensor(3, seed=2).requires_grad_(), tensor(3, seed=3).requires_grad_()]
        shown = x.clone().requires_grad_()
        out = norm(shown, *moving, *(learned if affine else (None, None)), True, 0.3, 1e-3)
        (out * outer).square().sum().backward()
        gradients = [shown.grad, *(p.grad for p in learned if affine)]
        results.append([out.detach(), *moving, *gradients])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_statistics_need_not_be_kept_and_halves_stay_halves() -> None:
    x, weight, bias = tensor(6, 3, 2, 2), tensor(3, seed=2).float(), tensor(3, seed=3).float()
    shown = x.bfloat16().requires_grad_()
    weight.requires_grad_()
    out = batch_norm(shown, None, None, weight, bias)
    out.float().square().sum().backward()
    wanted = F.batch_norm(shown.detach().float(), None, None, weight, bias, True)
    assert (out.dtype, shown.grad.dtype, weight.grad.dtype) == (  # pyright: ignore[reportOptionalMemberAccess]
        torch.bfloat16,
        torch.bfloat16,
        torch.float32,
    )
    torch.testing.assert_close(out.float(), wanted, rtol=1e-2, atol=1e-2)
    assert bias.grad is None


def test_parts_far_from_zero_have_the_variance_of_the_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where sums of squares in float32 would hold no digit of it."""
    whole = 1000.0 + 0.01 * tensor(40, 2, 3, 3)
    whole[:13] += 0.02
    parts = [part.float() for part in whole.split([13, 20, 7])]
    sent: list[Tensor] = []

    def note(mine: Tensor) -> Tensor:
        sent.append(mine)
        return mine

    monkeypatch.setattr(synced_norm, "total", note)
    for part in parts:
        synced_norm._statistics(part)
    assert [len(message) for message in sent] == [2 * 2 + 1] * 3  # all that a rank says
    together = torch.stack(sent).sum(0)
    monkeypatch.setattr(synced_norm, "total", lambda _: together)
    exact = torch.cat(parts).double()
    variance, mean = torch.var_mean(exact, (0, 2, 3), correction=0)
    found = synced_norm._statistics(parts[0])
    torch.testing.assert_close(found[0], mean, rtol=1e-7, atol=0.0)
    torch.testing.assert_close(found[1], variance, rtol=2e-3, atol=0.0)
    assert found[2].item() == 40 * 9
