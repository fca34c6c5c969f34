"""Promise: a recipe's numbers are float32 numbers, added in an order that it decides."""

from collections.abc import Iterator

import pytest
import torch

from pipeline.devices import fix_arithmetic


@pytest.fixture
def untouched() -> Iterator[None]:
    """torch as it comes: with TF32 in convolutions, and any algorithm."""
    cudnn = torch.backends.cudnn
    threads, before = torch.get_num_threads(), (cudnn.allow_tf32, cudnn.deterministic)
    cudnn.allow_tf32, cudnn.deterministic = True, False
    yield
    cudnn.allow_tf32, cudnn.deterministic = before
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("untouched")
def test_no_product_is_cut_to_fewer_digits() -> None:
    fix_arithmetic(None)
    assert not torch.backends.cudnn.allow_tf32
    assert torch.get_float32_matmul_precision() == "highest"
    assert torch.backends.cudnn.deterministic


@pytest.mark.usefixtures("untouched")
def test_threads_are_those_of_the_recipe_or_as_they_were() -> None:
    torch.set_num_threads(2)
    fix_arithmetic(None)
    assert torch.get_num_threads() == 2
    fix_arithmetic(3)
    assert torch.get_num_threads() == 3


@pytest.mark.gpu
@pytest.mark.usefixtures("untouched")
def test_a_convolution_on_a_gpu_has_all_the_digits_of_float32() -> None:
    fix_arithmetic(None)
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(8, 64, 16, 16, generator=generator)
    weight = torch.rand(64, 64, 3, 3, generator=generator)
    exact = torch.nn.functional.conv2d(x.double(), weight.double())
    there = torch.nn.functional.conv2d(x.cuda(), weight.cuda()).cpu().double()
    # TF32 errs by about 3e-4 here.
    assert ((there - exact).abs() / exact).max() < 1e-5
