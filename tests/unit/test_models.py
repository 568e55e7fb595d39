"""Networks: any image size, honest starting point, exact divergence, and they can be stored."""

import pytest
import torch
from drawing import generator
from safetensors.torch import load, save
from torch.nn import functional

from emlab.errors import InputError
from emlab.models import MLP, UNet, build


def woken(network, seed=0):
    """The network with all parameters random, so that no zero hides a mistake."""
    draws = generator(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=draws))
    return network.eval()


def small_unet(**arguments):
    torch.manual_seed(0)
    return UNet(**{"widths": (8, 16, 24), "embedding": 16, "attention": (2,), **arguments})


@pytest.mark.parametrize(
    "size", [(28, 28), (5, 7), (33, 18), (32, 32), (3, 40), (2, 2), (1, 5), (1, 1)]
)
def test_unet_takes_any_size(size):
    x = torch.randn(2, 1, *size, generator=generator())
    y = woken(small_unet())(x, torch.tensor([0.1, 2.0]))
    assert y.shape == x.shape
    assert y.isfinite().all()
    assert y.std() > 0


def test_unet_pads_by_reflection_and_crops():
    network = woken(small_unet())
    x, t = torch.randn(1, 1, 26, 31, generator=generator()), torch.tensor([0.3])
    padded = functional.pad(x, (0, 1, 0, 2), mode="reflect")
    torch.testing.assert_close(network(x, t), network(padded, t)[..., :26, :31])


def test_untrained_unet_returns_zeros():
    x = torch.randn(2, 1, 9, 9, generator=generator())
    assert torch.equal(small_unet()(x, torch.ones(2)), torch.zeros_like(x))


def test_unet_treats_each_image_with_its_own_condition():
    network = woken(small_unet())
    x, t = torch.randn(3, 1, 12, 12, generator=generator()), torch.tensor([-1.0, 0.2, 3.0])
    alone = torch.cat([network(x[i : i + 1], t[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(network(x, t), alone)
    assert not torch.allclose(network(x, t), network(x, t.flip(0)))


@pytest.mark.parametrize(
    "arguments",
    [
        {"widths": [8]},
        {"widths": [48, 104], "attention": [0, 1]},
        {"channels": 3, "blocks": 2},
    ],
)
def test_every_parameter_of_the_unet_is_used(arguments):
    network = woken(small_unet(**{"attention": [], **arguments}))
    x = torch.randn(2, arguments.get("channels", 1), 8, 8, generator=generator())
    network(x, torch.tensor([0.1, 0.7])).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())


def test_dropout_acts_in_training_only():
    network = woken(small_unet(dropout=0.5))
    x, t = torch.randn(1, 1, 8, 8, generator=generator()), torch.ones(1)
    assert torch.equal(network(x, t), network(x, t))
    network.train()
    assert not torch.equal(network(x, t), network(x, t))


@pytest.mark.parametrize(
    "specification",
    [
        {"kind": "unet", "widths": [8, 16], "attention": [1], "embedding": 16},
        {"kind": "mlp", "size": 6, "hidden": 5, "conditions": 1},
    ],
)
def test_stored_network_gives_the_same_answers(specification):
    network, again = woken(build(specification), seed=1), build(specification)
    again.load_state_dict(load(save(network.state_dict())))
    shape = (2, 1, 7, 7) if specification["kind"] == "unet" else (2, 6)
    x, t = torch.randn(shape, generator=generator()), torch.tensor([0.1, 0.9])
    assert torch.equal(again.eval()(x, t), network(x, t))


@pytest.mark.parametrize("size", [1, 4, 9])
def test_divergence_of_the_mlp_equals_autograd(size):
    network = woken(MLP(size, hidden=13).double())
    x = torch.randn(5, size, generator=generator(), dtype=torch.float64)
    output, divergence = network.forward_with_divergence(x)
    jacobians = torch.func.vmap(torch.func.jacrev(lambda one: network(one[None])[0]))(x)
    traces = jacobians.diagonal(dim1=1, dim2=2).sum(-1)
    torch.testing.assert_close(output, network(x), rtol=0, atol=0)
    torch.testing.assert_close(divergence, traces, rtol=1e-12, atol=1e-12)


def test_divergence_of_the_mlp_has_gradients():
    network = woken(MLP(3, hidden=7).double())
    x = torch.randn(2, 3, generator=generator(), dtype=torch.float64)
    network.forward_with_divergence(x)[1].sum().backward()
    weight, step = network.second.weight, 1e-6
    exact = weight.grad[1, 2].item()
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            weight[1, 2] += sign * step
            values.append(network.forward_with_divergence(x)[1].sum().item())
            weight[1, 2] -= sign * step
    assert exact == pytest.approx((values[0] - values[1]) / (2 * step), rel=1e-6)


@pytest.mark.parametrize(
    ("specification", "says"),
    [
        ({}, "unknown network kind"),
        ({"kind": "transformer"}, "transformer"),
        ({"kind": "unet", "depth": 3}, "depth"),
        ({"kind": "mlp"}, "size"),
        ({"kind": "unet", "widths": []}, "multiples of 8"),
        ({"kind": "unet", "widths": [12]}, "multiples of 8"),
        ({"kind": "unet", "widths": [0, 8]}, "multiples of 8"),
        ({"kind": "unet", "attention": [3]}, "attention"),
        ({"kind": "unet", "dropout": 2.0}, "dropout"),
    ],
)
def test_impossible_specification_is_an_input_error(specification, says):
    with pytest.raises(InputError, match=says):
        build(specification)
