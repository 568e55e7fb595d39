"""The residual U-Net and the losses that look through it."""

from __future__ import annotations

import pytest
import torch

from emlab.errors import InputError
from emlab.models import build
from emlab.models.residual_unet import ResidualUNet
from emlab.priors.restoration_losses import (
    Weights,
    correlations,
    perceptual_loss,
    reconstruction_loss,
    restoration_loss,
    segmentation_loss,
)


def network(outputs: int = 3, style: bool = True) -> ResidualUNet:
    torch.manual_seed(0)
    return ResidualUNet([4, 8, 12], outputs, style)


def images(n: int = 2, height: int = 16, width: int = 24) -> torch.Tensor:
    return torch.rand(n, height, width, generator=torch.Generator().manual_seed(1))


def test_width_of_the_paper_has_its_parameters() -> None:
    count = sum(p.numel() for p in ResidualUNet([32, 64, 128, 256], 3).parameters())
    assert count == pytest.approx(6.60e6, rel=0.01)


@pytest.mark.parametrize("shape", [(16, 24), (17, 9), (5, 5)])
def test_any_size_comes_back(shape: tuple[int, int]) -> None:
    assert network().eval()(images(1, *shape)).shape == (1, 3, *shape)


def test_features_have_the_size_of_each_level() -> None:
    found = network().features(images())
    assert [tuple(m.shape) for m in found.maps] == [(2, 4, 16, 24), (2, 8, 8, 12), (2, 12, 4, 6)]
    torch.testing.assert_close(found.style.norm(dim=1), torch.ones(2), atol=1e-3, rtol=0)
    with pytest.raises(InputError, match="multiples of 4"):
        network().features(images(1, 15, 16))


def test_style_matters_only_where_it_is_wanted() -> None:
    for style in (True, False):
        net = network(style=style).eval()
        features = net.features(images())
        other = type(features)(features.maps, -features.style)
        assert torch.equal(net.decode(features), net.decode(other)) is not style


def test_every_parameter_gets_a_gradient() -> None:
    net = network()
    net(images()).square().mean().backward()
    assert [name for name, p in net.named_parameters() if p.grad is None] == []


def test_built_from_a_card_and_refused_without_widths() -> None:
    built = build({"kind": "residual_unet", "widths": [4, 8], "outputs": 1})
    assert isinstance(built, ResidualUNet)
    with pytest.raises(InputError, match="two widths"):
        build({"kind": "residual_unet", "widths": [4], "outputs": 1})


def test_segmentation_loss_by_hand() -> None:
    flows = torch.tensor([1.0, 0.0]).view(1, 2, 1, 1).expand(1, 2, 2, 2)
    output = torch.zeros(1, 3, 2, 2)
    inside = torch.ones(1, 2, 2)
    expected = 0.5 * 12.5 + torch.log(torch.tensor(2.0))
    torch.testing.assert_close(segmentation_loss(output, flows, inside), expected)
    perfect = torch.cat([5 * flows, torch.full((1, 1, 2, 2), 30.0)], 1)
    assert segmentation_loss(perfect, flows, inside) < 1e-6


def test_reconstruction_loss_is_80_times_the_squared_error() -> None:
    assert reconstruction_loss(images() + 0.5, images()).item() == pytest.approx(20, rel=1e-5)


def test_correlations_are_those_of_numpy() -> None:
    maps = torch.rand(1, 3, 8, 9, generator=torch.Generator().manual_seed(2))
    expected = torch.corrcoef(maps[0].flatten(1))
    # standardised by the unbiased deviation, averaged over all pixels
    torch.testing.assert_close(correlations([maps])[0][0], expected * 71 / 72, atol=1e-4, rtol=0)


def test_perceptual_loss_divides_by_the_variance_and_ignores_brightness() -> None:
    wanted = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    got = wanted + 0.1
    expected = 0.01 / wanted.var()
    torch.testing.assert_close(perceptual_loss([got], [wanted]), expected, atol=1e-5, rtol=1e-4)
    maps = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    same = perceptual_loss(correlations([3 * maps + 1]), correlations([maps]))
    assert same < 1e-6


def frozen() -> ResidualUNet:
    return network().eval().requires_grad_(False)


def test_gradient_reaches_the_image_and_not_the_segmenter() -> None:
    segmenter, restored = frozen(), images().requires_grad_()
    flows, inside = torch.zeros(2, 2, 16, 24), torch.ones(2, 16, 24)
    loss = restoration_loss(restored, images() + 0.1, flows, inside, segmenter, Weights())
    loss.backward()
    assert restored.grad is not None
    assert restored.grad.abs().sum() > 0
    assert all(p.grad is None for p in segmenter.parameters())


def test_sum_of_losses_is_the_weighted_sum() -> None:
    segmenter, clean, restored = frozen(), images(), images() ** 2
    flows, inside = torch.zeros(2, 2, 16, 24), torch.ones(2, 16, 24)

    def loss(*weights: float) -> float:
        return restoration_loss(restored, clean, flows, inside, segmenter, Weights(*weights)).item()

    parts = loss(1, 0, 0), loss(0, 1, 0), loss(0, 0, 1)
    assert loss(2, 3, 4) == pytest.approx(2 * parts[0] + 3 * parts[1] + 4 * parts[2], rel=1e-5)
    assert min(parts) > 0


def test_segmenter_must_be_frozen_and_weights_sensible() -> None:
    flows, inside = torch.zeros(2, 2, 16, 24), torch.ones(2, 16, 24)
    with pytest.raises(InputError, match="freeze"):
        restoration_loss(images(), images(), flows, inside, network(), Weights())
    with pytest.raises(InputError, match="freeze"):
        restoration_loss(images(), images(), flows, inside, None, Weights())
    with pytest.raises(InputError, match="weights of losses"):
        Weights(0, 0, 0)
