"""A D4-equivariant ResNet: rotated and mirrored patches get the same logit.

Uses p4m group convolutions (Cohen and Welling 2016), applied to PCam by Veeling et al. 2018. A layer with C features
has 8 C channels, ordered by symmetry. It has one eighth of the weights of a plain convolution with as many channels.
"""

import torch
from torch import nn
from torch.nn import functional

ORDER = 8  # four rotations of the image and of its mirror image


def act(element: int, image: torch.Tensor) -> torch.Tensor:
    """Apply a symmetry to (..., H, W) with H = W: element % 4 quarter turns, after a flip if element >= 4."""
    mirrored = image.flip(-1) if element >= 4 else image
    return torch.rot90(mirrored, element % 4, (-2, -1))


def _differences() -> list[list[int]]:
    """Return the table of g^-1 h for all pairs of symmetries g and h, 8 x 8."""
    probe = torch.arange(9).view(3, 3)
    seen = {tuple(act(element, probe).flatten().tolist()): element for element in range(ORDER)}

    def product(first: int, second: int) -> int:
        return seen[tuple(act(first, act(second, probe)).flatten().tolist())]

    inverse = [next(other for other in range(ORDER) if product(one, other) == 0) for one in range(ORDER)]
    return [[product(inverse[one], other) for other in range(ORDER)] for one in range(ORDER)]


_DIFFERENCES = _differences()


class GroupConv(nn.Module):
    """A group convolution: rotating the input rotates the output and permutes its symmetry channels.

    Args:
        features: number of input features with eight channels each; with `lifts`, number of image channels.
        made: number of output features with eight channels each.
        kernel: side of the filters; odd sides keep the image size, with zero padding.
        lifts: whether the input is an image.
    """

    def __init__(self, features: int, made: int, kernel: int, *, lifts: bool = False) -> None:
        super().__init__()
        self.lifts = lifts
        self.weight = nn.Parameter(torch.empty(made, features if lifts else ORDER * features, kernel, kernel))
        nn.init.normal_(self.weight, std=(2 / (ORDER * made * kernel**2)) ** 0.5)  # He et al. 2015, fan-out

    def filters(self) -> torch.Tensor:
        """Return the weights in all eight symmetries, (8 made, channels, kernel, kernel)."""
        if self.lifts:
            return torch.cat([act(element, self.weight) for element in range(ORDER)])
        weight = self.weight.unflatten(1, (ORDER, -1))  # type: ignore[no-untyped-call]
        return torch.cat([act(one, weight[:, _DIFFERENCES[one]]).flatten(1, 2) for one in range(ORDER)])

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Map (B, channels, H, W) to (B, 8 made, H, W)."""
        filters = self.filters().contiguous(memory_format=torch.channels_last)
        return functional.conv2d(image, filters, padding=(filters.shape[-1] - 1) // 2)


class GroupBatchNorm(nn.Module):
    """BatchNorm with one scale, shift, mean and variance for the eight channels of a feature.

    In training, each channel is normalized by its own batch statistics. The running statistics are their mean over the
    eight channels, so evaluation is equivariant. Batch statistics over all eight channels would take more time than the
    convolutions.

    Args:
        features: number of features with eight channels each.
        momentum: weight of a new batch in the running statistics, as in `torch.nn.BatchNorm2d`.
    """

    running_mean: torch.Tensor
    running_var: torch.Tensor

    def __init__(self, features: int, momentum: float = 0.1) -> None:
        super().__init__()
        self.momentum = momentum
        self.weight, self.bias = nn.Parameter(torch.ones(features)), nn.Parameter(torch.zeros(features))
        self.register_buffer("running_mean", torch.zeros(features))
        self.register_buffer("running_var", torch.ones(features))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Normalize (B, 8 features, H, W)."""
        mean, var = self.running_mean.repeat(ORDER), self.running_var.repeat(ORDER)
        weight, bias = self.weight.repeat(ORDER), self.bias.repeat(ORDER)
        normed = functional.batch_norm(image, mean, var, weight, bias, self.training, self.momentum)
        if self.training:
            self.running_mean.copy_(mean.view(ORDER, -1).mean(dim=0))
            self.running_var.copy_(var.view(ORDER, -1).mean(dim=0))
        return normed


def as_plain_layers(network: nn.Module) -> None:
    """Replace the group layers of a network in evaluation mode by plain layers with equal outputs, in place.

    Their filters are then computed once instead of for each batch, and can be folded and exported.
    """
    for name, layer in list(network.named_modules()):
        if isinstance(layer, GroupConv):
            filters = layer.filters().detach().contiguous(memory_format=torch.channels_last)
            made, channels, kernel, _ = filters.shape
            convolution = nn.Conv2d(channels, made, kernel, padding=(kernel - 1) // 2, bias=False, device="meta")
            convolution.weight = nn.Parameter(filters)
            network.set_submodule(name, convolution.eval())
        elif isinstance(layer, GroupBatchNorm):
            norm = nn.BatchNorm2d(ORDER * len(layer.weight), momentum=layer.momentum, device=layer.weight.device)
            state = {key: value.repeat(ORDER) for key, value in layer.state_dict().items()}
            norm.load_state_dict(state, strict=False)  # the state has no num_batches_tracked
            network.set_submodule(name, norm.eval())


class GroupBlock(nn.Module):
    """A residual block of two group convolutions (He et al. 2016).

    Args:
        features: number of input features.
        made: number of output features.
        halves: average 2 x 2 pixels first; a stride would not be equivariant.
    """

    def __init__(self, features: int, made: int, *, halves: bool) -> None:
        super().__init__()
        self.halves = halves
        self.conv1, self.bn1 = GroupConv(features, made, 3), GroupBatchNorm(made)
        self.conv2, self.bn2 = GroupConv(made, made, 3), GroupBatchNorm(made)
        self.around = (
            nn.Identity() if features == made else nn.Sequential(GroupConv(features, made, 1), GroupBatchNorm(made))
        )

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Map (B, 8 features, H, W) to (B, 8 made, H, W), or half of H and W."""
        if self.halves:
            image = functional.avg_pool2d(image, 2)
        inside = functional.relu(self.bn1(self.conv1(image)), inplace=True)
        return functional.relu(self.bn2(self.conv2(inside)) + self.around(image), inplace=True)


class P4MResNet(nn.Module):
    """Lifting convolution, residual blocks, mean over positions and symmetries, and one logit.

    Args:
        stem: number of features of the lifting convolution, at full image size.
        made: number of features of each stage; its first block halves the image.
        blocks: number of blocks of each stage.
    """

    def __init__(self, stem: int, made: tuple[int, ...], blocks: tuple[int, ...]) -> None:
        super().__init__()
        self.conv1, self.bn1 = GroupConv(3, stem, 5, lifts=True), GroupBatchNorm(stem)
        found, before = list[nn.Module](), stem
        for features, count in zip(made, blocks, strict=True):
            for number in range(count):
                found.append(GroupBlock(before, features, halves=number == 0))
                before = features
        self.blocks = nn.Sequential(*found)
        self.fc = nn.Linear(before, 1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Map (B, 3, H, W) to logits (B, 1); each stage must halve H and W without a remainder."""
        made = self.blocks(functional.relu(self.bn1(self.conv1(image)), inplace=True))
        pooled = made.float().mean(dim=(2, 3)).unflatten(1, (ORDER, -1)).mean(dim=1)
        logit: torch.Tensor = self.fc(pooled)
        return logit
