"""Depthwise convolutions with fast bfloat16 gradients on a CPU."""

import math
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

Padding = tuple[int, int]  # zeros before and after each row and each column


class DepthwiseConv2d(nn.Conv2d):
    """A depthwise convolution with the parameters, names and outputs of the layer that it replaces.

    In bfloat16 on a CPU, oneDNN has no depthwise kernel for weight gradients larger than 3 x 3 or for input gradients
    with stride 2. It uses kernels of ordinary convolutions, which are far slower. This class computes weight
    gradients in overlapping 3 x 3 squares, and input gradients as a convolution of the upsampled output gradient.
    `benchmarks/layers.py` measures both.

    Args:
        layer: the layer to replace, nn.Conv2d or timm's Conv2dSame.
    """

    def __init__(self, layer: nn.Conv2d) -> None:
        nn.Module.__init__(self)
        self.__dict__.update(layer.__dict__)  # shares parameters and options
        self.pads_as_tensorflow = type(layer) is not nn.Conv2d

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Convolve float (B, C, H, W)."""
        rows = columns = (int(self.padding[0]),) * 2
        if self.pads_as_tensorflow:
            rows, columns = (_same(side, self.kernel_size[0], self.stride[0]) for side in image.shape[2:])
        weight, bias = self.weight, self.bias
        if image.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
            dtype = torch.get_autocast_dtype("cpu")
            image, weight = image.to(dtype), weight.to(dtype)
            bias = None if bias is None else bias.to(dtype)
        if image.device.type == "cpu" and image.dtype == torch.bfloat16:
            output: torch.Tensor = _Depthwise.apply(image, weight, bias, self.stride[0], rows, columns)
            return output
        return _convolve(image, weight, bias, self.stride[0], rows, columns)[0]


def replace_depthwise(network: nn.Module) -> None:
    """Replace the square depthwise convolutions of a network; parameters, names and outputs do not change."""
    for name, layer in list(network.named_modules()):
        if (
            (type(layer) is nn.Conv2d or type(layer).__name__ == "Conv2dSame")
            and layer.groups == layer.in_channels == layer.out_channels > 1
            and layer.kernel_size[0] == layer.kernel_size[1] >= 3
            and layer.kernel_size[0] % 2
            and layer.stride[0] == layer.stride[1]
            and layer.dilation == (1, 1)
            and layer.padding_mode == "zeros"
            and isinstance(layer.padding, tuple)
            and layer.padding[0] == layer.padding[1] < layer.kernel_size[0]
        ):
            network.set_submodule(name, DepthwiseConv2d(layer))


def _same(side: int, kernel: int, stride: int) -> Padding:
    """Return TensorFlow's padding of a side, which gives ceil(side / stride) output pixels."""
    total = max((math.ceil(side / stride) - 1) * stride + kernel - side, 0)
    return total // 2, total - total // 2


def _convolve(
    image: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, stride: int, rows: Padding, columns: Padding
) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Return the output, the padded input, and the padding applied by the convolution itself."""
    padding = rows[0]
    if len({*rows, *columns}) > 1:
        image, padding = functional.pad(image, [*columns, *rows]), 0
    return functional.conv2d(image, weight, bias, stride, padding, groups=len(weight)), image, padding


class _Depthwise(torch.autograd.Function):
    """A depthwise convolution with the gradients below."""

    @staticmethod
    def forward(
        ctx: Any,
        image: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        stride: int,
        rows: Padding,
        columns: Padding,
    ) -> torch.Tensor:
        output, padded, padding = _convolve(image, weight, bias, stride, rows, columns)
        ctx.save_for_backward(padded, weight)
        ctx.options = image.shape[2:], stride, rows, columns, padding
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        padded, weight = ctx.saved_tensors
        sides, stride, rows, columns, padding = ctx.options
        needs_image, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        return (
            input_gradient(gradient, weight, sides, stride, rows, columns) if needs_image else None,
            weight_gradient(gradient, padded, weight, stride, padding) if needs_weight else None,
            gradient.sum((0, 2, 3)) if needs_bias else None,
            None,
            None,
            None,
        )


def input_gradient(
    gradient: torch.Tensor,
    weight: torch.Tensor,
    sides: tuple[int, int],
    stride: int,
    rows: Padding,
    columns: Padding,
) -> torch.Tensor:
    """Return the input gradient of a depthwise convolution.

    Args:
        gradient: output gradient, (B, C, H', W').
        weight: weight, (C, 1, K, K).
        sides: H and W of the input.
        stride: stride of the convolution.
        rows: zero rows added above and below the input, fewer than K.
        columns: zero columns added left and right of the input, fewer than K.

    Returns:
        Input gradient, (B, C, H, W).
    """
    reach = weight.shape[-1] - 1
    padding = [reach - max(added) for added in (rows, columns)]
    if stride > 1 or len({*rows, *columns}) > 1:
        count, channels = gradient.shape[:2]
        shape = [side + reach - 2 * zeros for side, zeros in zip(sides, padding, strict=True)]
        spread = torch.empty(
            (count, channels, *shape),
            dtype=gradient.dtype,
            device=gradient.device,
            memory_format=torch.channels_last,
        ).zero_()
        top, left = (reach - added[0] - zeros for added, zeros in zip((rows, columns), padding, strict=True))
        height, width = gradient.shape[2:]
        spread[:, :, top : top + height * stride : stride, left : left + width * stride : stride] = gradient
        gradient = spread
    return functional.conv2d(gradient, weight.flip(2, 3), None, 1, padding, groups=len(weight))


def weight_gradient(
    gradient: torch.Tensor, image: torch.Tensor, weight: torch.Tensor, stride: int, padding: int
) -> torch.Tensor:
    """Return the weight gradient of a depthwise convolution.

    Args:
        gradient: output gradient, (B, C, H', W').
        image: input, (B, C, H, W).
        weight: weight, (C, 1, K, K), with odd K.
        stride: stride of the convolution.
        padding: zeros added on all four sides of the input.

    Returns:
        Weight gradient, (C, 1, K, K).
    """
    kernel, (height, width) = weight.shape[-1], gradient.shape[2:]
    if kernel == 3:
        return _weight_gradient(gradient, image, weight, stride, padding)
    image = functional.pad(image, [padding] * 4) if padding else image
    # Input rows and columns that overlap three rows or columns of the weight.
    rows, columns = (height - 1) * stride + 3, (width - 1) * stride + 3
    part = weight[:, :, :3, :3].contiguous()  # only its shape is used
    whole = torch.empty_like(weight)
    for top in range(0, kernel - 2, 2):
        for left in range(0, kernel - 2, 2):
            seen = image[:, :, top : top + rows, left : left + columns].contiguous(memory_format=torch.channels_last)
            whole[:, :, top : top + 3, left : left + 3] = _weight_gradient(gradient, seen, part, stride, 0)
    return whole


def _weight_gradient(
    gradient: torch.Tensor, image: torch.Tensor, weight: torch.Tensor, stride: int, padding: int
) -> torch.Tensor:
    strides, zeros, channels = [stride] * 2, [padding] * 2, len(weight)
    found: torch.Tensor = torch.ops.aten.convolution_backward(
        gradient, image, weight, None, strides, zeros, [1, 1], False, [0, 0], channels, [False, True, False]
    )[1]
    return found
