import pytest
import torch
from torch.nn import functional as F

from llamarl.models.linear import linear


@pytest.mark.parametrize("rows", [1, 15, 16, 40, 300])
@pytest.mark.parametrize("has_bias", [False, True])
def test_value_and_gradients_equal_torch(rows, has_bias):
    generator = torch.Generator().manual_seed(rows)
    x, weight, bias, weights_of_sum = (
        torch.randn(*shape, generator=generator) for shape in ((rows, 24), (40, 24), (40,), (rows, 40))
    )
    results = []
    for function in (linear, F.linear):
        inputs = [t.clone().requires_grad_() for t in ((x, weight, bias) if has_bias else (x, weight))]
        output = function(*inputs)
        (output * weights_of_sum).sum().backward()
        results.append([output.detach(), *(t.grad for t in inputs)])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_large_product_takes_the_same_values():
    x, weight = torch.randn(600, 320), torch.randn(400, 320, requires_grad=True)
    torch.testing.assert_close(linear(x, weight), F.linear(x, weight), rtol=1e-4, atol=1e-3)


def test_other_dtypes_and_shapes_go_through():
    x, weight = torch.randn(2, 20, 8), torch.randn(5, 8)
    assert torch.equal(linear(x, weight), F.linear(x, weight))
    assert torch.equal(linear(x.double(), weight.double()), F.linear(x.double(), weight.double()))
