"""Depthwise convolutions: outputs and gradients are those of torch's own layer."""

import pytest
import timm
import torch
from timm.layers.conv2d_same import Conv2dSame
from torch import nn

from pcam_lightning.models.backbones import BACKBONES, build_backbone
from pcam_lightning.models.depthwise import DepthwiseConv2d, _Depthwise, replace_depthwise

SHAPES = [
    (kernel, stride, padding, side)
    for kernel in (3, 5, 7)
    for stride in (1, 2)
    for padding in ("same", 0, kernel // 2, kernel - 1)
    for side in (7, 12)
]


def _layers(kernel: int, stride: int, padding: int | str) -> tuple[nn.Conv2d, DepthwiseConv2d]:
    """Return a layer of 16 channels, and what replaces it."""
    torch.manual_seed(0)
    if padding == "same":
        layer: nn.Conv2d = Conv2dSame(16, 16, kernel, stride, groups=16, bias=kernel == 7)
    else:
        layer = nn.Conv2d(16, 16, kernel, stride, int(padding), groups=16, bias=kernel == 7)
    network = nn.Sequential(layer)
    replace_depthwise(network)
    assert isinstance(network[0], DepthwiseConv2d)
    assert list(network.state_dict()) == [f"0.{name}" for name in layer.state_dict()]
    return layer, network[0]


@pytest.mark.parametrize(("kernel", "stride", "padding", "side"), SHAPES)
@pytest.mark.parametrize("width", [0, 3])
def test_outputs_and_gradients_are_those_of_the_layer(
    kernel: int, stride: int, padding: int | str, side: int, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer, ours = _layers(kernel, stride, padding)
    image = torch.rand(3, 16, side, side + width).to(memory_format=torch.channels_last)
    outcomes = []
    for module in (layer, ours):
        seen = image.clone(memory_format=torch.channels_last).requires_grad_()
        module.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            output = module(seen)
        assert output.dtype == torch.bfloat16
        (output.float() * torch.linspace(0, 1, output.numel()).view(output.shape)).sum().backward()
        assert seen.grad is not None
        outcomes.append([output.detach(), seen.grad, *(value.grad for value in module.parameters())])
    assert torch.equal(outcomes[0][0], outcomes[1][0])
    for expected, found in zip(*(outcome[1:] for outcome in outcomes), strict=True):
        assert expected is not None
        assert found is not None
        assert (expected - found).abs().max() <= 0.02 * expected.abs().max()  # bfloat16 has 8 bits


@pytest.mark.parametrize(
    ("kernel", "stride", "rows", "columns"),
    [
        (3, 1, (1, 1), (1, 1)),
        (3, 2, (0, 1), (0, 1)),
        (3, 2, (1, 1), (0, 1)),
        (5, 1, (2, 2), (2, 2)),
        (5, 2, (1, 2), (2, 2)),
        (5, 2, (0, 0), (0, 0)),
        (7, 1, (3, 3), (3, 3)),
        (7, 2, (2, 3), (3, 3)),
    ],
)
def test_gradients_are_exact(kernel: int, stride: int, rows: tuple[int, int], columns: tuple[int, int]) -> None:
    torch.manual_seed(0)
    image = torch.rand(2, 4, 8, 9, dtype=torch.float64, requires_grad=True)
    weight = torch.rand(4, 1, kernel, kernel, dtype=torch.float64, requires_grad=True)
    bias = torch.rand(4, dtype=torch.float64, requires_grad=True)

    def convolve(*tensors: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = _Depthwise.apply(*tensors, stride, rows, columns)
        return output

    assert torch.autograd.gradcheck(convolve, (image, weight, bias))


@pytest.mark.parametrize("name", ["efficientnet_lite0", "efficientnet_b0", "convnext_tiny"])
def test_networks_have_the_same_logits_and_nearly_the_same_gradients(name: str) -> None:
    torch.manual_seed(0)
    ours = build_backbone(name)
    plain = BACKBONES[name].build()
    head = ours.get_submodule(BACKBONES[name].head)
    plain.set_submodule(BACKBONES[name].head, head)
    plain.load_state_dict(ours.state_dict())
    assert sum(isinstance(module, DepthwiseConv2d) for module in ours.modules()) >= 16
    image = torch.rand(8, 3, 64, 64).to(memory_format=torch.channels_last)
    logits, gradients = [], []
    for network in (plain.to(memory_format=torch.channels_last), ours.to(memory_format=torch.channels_last)):
        torch.manual_seed(1)  # of dropout and stochastic depth
        with torch.autocast("cpu", torch.bfloat16):
            logits.append(network.train()(image))
        head.zero_grad()
        gradients.append(torch.autograd.grad(logits[-1].square().sum(), list(network.parameters())))
    assert torch.equal(logits[0], logits[1])
    expected, found = (torch.cat([value.flatten() for value in each]) for each in gradients)
    assert (expected - found).norm() < 0.05 * expected.norm()


def test_timm_builds_what_is_replaced() -> None:
    layers = [
        module for module in timm.create_model("tf_efficientnet_lite0").modules() if isinstance(module, nn.Conv2d)
    ]
    assert {type(layer) for layer in layers if layer.groups > 1} == {nn.Conv2d, Conv2dSame}
