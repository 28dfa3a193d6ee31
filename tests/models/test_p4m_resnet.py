"""The equivariant network keeps its promise: turned and mirrored patches get the same features and logit."""

import pytest
import torch

from pcam_lightning.models.backbones import build_backbone
from pcam_lightning.models.classifier import PCamClassifier
from pcam_lightning.models.p4m_resnet import ORDER, GroupBatchNorm, GroupConv, act
from pcam_lightning.transforms.geometry import d4_views
from pcam_lightning.utils.errors import UserError


def _trained() -> torch.nn.Module:
    """Return a network whose weights and statistics are not those that it starts with."""
    torch.manual_seed(0)
    network = build_backbone("p4m_resnet16")
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    for _ in range(3):
        optimizer.zero_grad()
        network(torch.rand(8, 3, 96, 96)).square().mean().backward()
        optimizer.step()
    return network.eval()


def test_the_eight_symmetries_are_eight_and_a_group() -> None:
    probe = torch.arange(9).view(3, 3)
    seen = {tuple(act(element, probe).flatten().tolist()) for element in range(ORDER)}
    assert len(seen) == ORDER
    assert tuple(probe.flatten().tolist()) in seen
    assert seen == {
        tuple(act(one, act(other, probe)).flatten().tolist()) for one in range(ORDER) for other in range(ORDER)
    }


def test_every_view_of_a_patch_has_the_same_logit() -> None:
    network = _trained()
    image = torch.rand(4, 3, 96, 96)
    with torch.no_grad():
        logits = [network(view) for view in d4_views(image)]
    assert logits[0].std() > 0.001
    for logit in logits:
        torch.testing.assert_close(logit, logits[0], atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("element", range(ORDER))
def test_a_turned_image_turns_features_and_moves_them_on(element: int) -> None:
    torch.manual_seed(1)
    lift, conv, norm = GroupConv(3, 2, 5, lifts=True), GroupConv(2, 3, 3), GroupBatchNorm(3).eval()
    image = torch.rand(1, 3, 12, 12)
    with torch.no_grad():
        made, turned = norm(conv(lift(image))), norm(conv(lift(act(element, image))))
    here, there = made.view(ORDER, 3, 12, 12), turned.view(ORDER, 3, 12, 12)
    for one in range(ORDER):
        # What one symmetry found in the image, another one finds in the turned image, at the turned place.
        matches = [torch.allclose(act(element, here[one]), there[other], atol=1e-5) for other in range(ORDER)]
        assert sum(matches) == 1


def test_statistics_of_a_feature_are_those_of_all_its_channels() -> None:
    torch.manual_seed(2)
    norm = GroupBatchNorm(3)
    image = torch.randn(16, 24, 8, 8) * 3 + 1
    for _ in range(200):
        norm(image)
    feature = image.view(16, ORDER, 3, 8, 8)
    torch.testing.assert_close(norm.running_mean, feature.mean(dim=(0, 1, 3, 4)), atol=1e-4, rtol=1e-4)
    expected = image.var(dim=(0, 2, 3)).view(ORDER, 3).mean(dim=0)
    torch.testing.assert_close(norm.running_var, expected, atol=1e-4, rtol=1e-4)
    before = norm.running_mean.clone()
    norm.eval()(image + 5)
    assert torch.equal(norm.running_mean, before)


def test_an_eighth_of_the_weights() -> None:
    conv = GroupConv(4, 6, 3)
    assert conv.filters().numel() == ORDER * conv.weight.numel()
    assert conv(torch.rand(2, 32, 10, 10)).shape == (2, 48, 10, 10)


@pytest.mark.parametrize(("options", "nearest"), [({"crop": 90}, 96), ({"crop": 40}, 32), ({"size": 100}, 96)])
def test_a_side_that_breaks_the_promise_is_refused_with_the_nearest_that_keeps_it(
    options: dict[str, int], nearest: int
) -> None:
    with pytest.raises(UserError, match=rf"{next(iter(options.values()))} pixels; use `model.size` {nearest}"):
        PCamClassifier("p4m_resnet16", "none", **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("options", [{}, {"crop": 64}, {"crop": 90, "size": 96}, {"size": 48}])
def test_patches_as_they_are_stored_keep_their_logit_when_turned(options: dict[str, int]) -> None:
    torch.manual_seed(2)
    model = PCamClassifier("p4m_resnet16", "none", **options).eval()  # type: ignore[arg-type]
    image = torch.randint(0, 256, (4, 96, 96, 3), dtype=torch.uint8)
    with torch.no_grad():
        logit = model(model.preprocess(image))
        for turned in (image.rot90(1, (1, 2)), image.flip(1)):
            torch.testing.assert_close(model(model.preprocess(turned)), logit, atol=1e-5, rtol=1e-4)
