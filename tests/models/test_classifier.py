"""The model: one number for a whole epoch, a body that keeps still while frozen, half precision that agrees."""

import re
import traceback
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from conftest import NETWORK
from sklearn.metrics import roc_auc_score
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision import models

from pcam_lightning.data.datamodule import PCamDataModule
from pcam_lightning.models.classifier import PCamClassifier
from pcam_lightning.models.optim import build_optimizer, build_schedule
from pcam_lightning.transforms.augment import Augmentation
from pcam_lightning.utils.errors import UserError


def _trainer(**options: object) -> L.Trainer:
    plain = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return L.Trainer(**{**plain, "max_epochs": 1, "num_sanity_val_steps": 0, **options})  # type: ignore[arg-type]


def _scores(model: PCamClassifier, data: PCamDataModule) -> tuple[np.ndarray, np.ndarray]:
    model.eval()
    with torch.no_grad():
        batches: list[Any] = list(data.val_dataloader())
        border = (96 - model.hparams["crop"]) // 2
        seen = slice(border, 96 - border)
        pairs = [
            (model(batch["image"].permute(0, 3, 1, 2)[..., seen, seen] / 255), batch["label"]) for batch in batches
        ]
    return torch.cat([logit for logit, _ in pairs]).numpy(), torch.cat([label for _, label in pairs]).numpy()


def test_auroc_is_of_the_whole_epoch(drawn: Path, trained: Path) -> None:
    model = PCamClassifier.load_from_checkpoint(trained / "checkpoints" / "best.ckpt", weights_only=True)
    data = PCamDataModule(drawn, batch_size=5)  # batches of five: an average over batches would differ
    scores = _trainer().validate(model, datamodule=data, verbose=False)[0]
    logit, label = _scores(model.cpu(), data)
    assert scores["val/auroc"] == pytest.approx(roc_auc_score(label, logit), abs=1e-6)
    loss = np.logaddexp(0, logit) - logit * label
    assert scores["val/loss"] == pytest.approx(loss.mean(), rel=1e-4)
    assert scores["val/accuracy"] == pytest.approx(((logit > 0) == label).mean())


def test_half_precision_agrees_with_float32(drawn: Path, trained: Path) -> None:
    aurocs = []
    for precision in ("32-true", "bf16-mixed"):
        model = PCamClassifier.load_from_checkpoint(trained / "checkpoints" / "best.ckpt", weights_only=True)
        data = PCamDataModule(drawn, val_fraction=0.5)
        aurocs.append(_trainer(precision=precision).validate(model, datamodule=data, verbose=False)[0]["val/auroc"])
    assert aurocs[0] == pytest.approx(aurocs[1], abs=0.01)


def _changed(before: dict[str, torch.Tensor], model: PCamClassifier) -> set[str]:
    return {key for key, value in model.net.state_dict().items() if not torch.equal(before[key], value)}


@pytest.mark.parametrize("start", ["weights", "none"])
def test_body_keeps_still_in_the_first_epoch_and_learns_in_the_second(start: str, drawn: Path) -> None:
    weights = "none"
    if start == "weights":
        weights = "weights.pt"
        torch.save(PCamClassifier(weights="none").net.state_dict(), weights)
    model = PCamClassifier(weights=weights, freeze_epochs=1, crop=48)
    model.load_pretrained()
    before = {key: value.clone() for key, value in model.net.state_dict().items()}
    _trainer(max_epochs=1).fit(model, datamodule=PCamDataModule(drawn, batch_size=48))
    frozen = _changed(before, model)
    assert frozen == {"fc.weight", "fc.bias"} if start == "weights" else len(frozen) > 100
    _trainer(max_epochs=2).fit(model, datamodule=PCamDataModule(drawn, batch_size=48))
    assert "conv1.weight" in _changed(before, model)
    assert "bn1.running_mean" in _changed(before, model)  # statistics too


def _rates(steps: int, **options: Any) -> list[float]:
    """Return the rate of each step, of epochs of four."""
    hparams = {**PCamClassifier(weights="none").hparams, "optimizer": "sgd", "lr": 0.1, **options}
    optimizer = build_optimizer(torch.nn.Linear(1, 1), hparams, fused=False)
    schedule = build_schedule(optimizer, hparams, steps, 4)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert isinstance(optimizer, torch.optim.SGD)
    return rates


def test_rate_warms_up_and_falls_to_zero_along_a_cosine() -> None:
    rates = _rates(12, warmup_epochs=1)
    assert rates[:4] == pytest.approx([0.02, 0.04, 0.06, 0.08])
    assert rates[4:] == pytest.approx([0.05 * (1 + np.cos(np.pi * n / 8)) for n in range(8)])
    assert _rates(500)[-1] == pytest.approx(0, abs=1e-5)


def _steps(gradients: list[float], **options: Any) -> float:
    """Return a weight of 1 after one step a gradient, at a rate of 0.1."""
    linear = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.ones_(linear.weight)
    hparams = {**PCamClassifier(weights="none").hparams, "lr": 0.1, "weight_decay": 0.0, **options}
    optimizer = build_optimizer(linear, hparams, fused=False)
    for gradient in gradients:
        linear.weight.grad = torch.full_like(linear.weight, gradient)
        optimizer.step()
    return linear.weight.item()


def test_optimizers_decay_weights_and_sgd_has_momentum() -> None:
    for optimizer in ("adamw", "sgd"):
        assert _steps([0.0], optimizer=optimizer) == 1
        assert _steps([0.0], optimizer=optimizer, weight_decay=0.5) == pytest.approx(1 - 0.1 * 0.5)
    assert _steps([1.0, 0.0], optimizer="sgd", momentum=0.0) == pytest.approx(0.9)
    assert _steps([1.0, 0.0], optimizer="sgd", momentum=0.8) == pytest.approx(0.9 - 0.1 * 0.8)
    assert _steps([1.0], optimizer="adamw") == pytest.approx(0.9)


def test_label_smoothing_counts_in_training_alone() -> None:
    model = PCamClassifier(weights="none", label_smoothing=0.2)
    batch = {"image": torch.zeros(2, 96, 96, 3, dtype=torch.uint8), "label": torch.tensor([1.0, 1.0])}
    model.log = model.log_dict = lambda *args, **kwargs: None  # type: ignore[method-assign,assignment]
    model.eval()
    logit = model(torch.zeros(2, 3, 96, 96)).detach()
    cross_entropy = torch.nn.functional.binary_cross_entropy_with_logits
    smooth = cross_entropy(logit, torch.tensor([0.9, 0.9]))
    plain = cross_entropy(logit, batch["label"])
    assert smooth.item() != pytest.approx(plain.item())  # of as many zeros as ones with one logit it would be the same
    assert model._step(batch, "train")[0].item() == pytest.approx(smooth.item())  # type: ignore[arg-type]
    assert model._step(batch, "val")[0].item() == pytest.approx(plain.item())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("label_smoothing", 1.0),
        ("lr", -1.0),
        ("lr", float("nan")),
        ("weight_decay", float("inf")),
        ("crop", 31),
        ("size", 1000),
    ],
)
def test_numbers_out_of_range(option: str, value: float) -> None:
    with pytest.raises(UserError, match=rf"`model.{option}` {value}"):
        PCamClassifier(**{option: value})  # type: ignore[arg-type]


class _Waits(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes where a value is asked of the device."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.places: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            stack = "".join(traceback.format_stack())
            if "normalize_logits_if_needed" not in stack:  # torchmetrics does so on a CPU alone
                self.places.append(stack)
        return func(*args, **(kwargs or {}))


EVERYTHING = {
    "d4": True, "stain": 0.1, "brightness": 0.1, "contrast": 0.1, "saturation": 0.1, "hue": 0.02,
    "random_erasing": 0.3, "cutmix": 0.3, "mixup": 0.2,
}  # fmt: skip


@pytest.mark.parametrize("options", [{}, {"augment": EVERYTHING, "normalize": "imagenet"}])
def test_a_training_step_never_waits_for_the_device(options: dict[str, Any], drawn: Path) -> None:
    waits = _Waits()

    class NanGuard(L.Callback):
        def on_train_batch_start(self, *args: object) -> None:
            waits.__enter__()  # type: ignore[no-untyped-call]

        def on_train_batch_end(self, *args: object) -> None:
            waits.__exit__(None, None, None)  # type: ignore[no-untyped-call]

    model = PCamClassifier(NETWORK, weights="none", crop=48, **options)
    _trainer(callbacks=[NanGuard()], precision="bf16-mixed").fit(model, datamodule=PCamDataModule(drawn, batch_size=32))
    assert not waits.places, waits.places[0]


def test_compiled_network_keeps_its_names_and_its_shapes(drawn: Path) -> None:
    plain, compiled = PCamClassifier(weights="none"), PCamClassifier(weights="none", compile=True)
    assert list(compiled.state_dict()) == list(plain.state_dict())
    compiled.load_state_dict(plain.state_dict())
    seen = []
    compiled.net.register_forward_pre_hook(lambda net, inputs: seen.append(len(inputs[0])))
    scores = []
    for model in (plain, compiled):
        with torch.compiler.set_stance("force_eager"):  # what a compiler makes of it is measured, not tested
            data = PCamDataModule(drawn, batch_size=10)
            scores.append(_trainer().validate(model, datamodule=data, verbose=False)[0])
    assert seen == [10, 10, 10]  # of 23 patches
    assert scores[1] == pytest.approx(scores[0])


def test_warm_up_lasts_its_epochs_wherever_training_ends(drawn: Path) -> None:
    model = PCamClassifier(NETWORK, weights="none", warmup_epochs=0.5, crop=48)
    rates = []

    class NanGuard(L.Callback):
        def on_train_batch_start(self, trainer: L.Trainer, *args: object) -> None:
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    data = PCamDataModule(drawn, batch_size=8)  # 13 steps an epoch
    _trainer(callbacks=[NanGuard()], max_epochs=-1, max_steps=10).fit(model, datamodule=data)
    assert rates.index(max(rates)) == 6
    assert max(rates) == pytest.approx(1e-3)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_gradients_are_clipped_in_any_precision(precision: str, drawn: Path) -> None:
    model = PCamClassifier(weights="none", optimizer="sgd", lr=1.0, momentum=0.0, weight_decay=0.0)
    before = [value.detach().clone() for value in model.parameters()]
    trainer = _trainer(precision=precision, gradient_clip_val=0.01, limit_train_batches=1)
    trainer.fit(model, datamodule=PCamDataModule(drawn, batch_size=48))
    steps = [value.detach() - old for value, old in zip(model.parameters(), before, strict=True)]
    # One step of SGD at a rate of 1 is the gradient.
    assert torch.nn.utils.get_total_norm(steps).item() == pytest.approx(0.01, rel=0.01)
    assert trainer.optimizers[0].param_groups[0]["fused"] == (precision == "32-true")


def _batch(data: PCamDataModule) -> torch.Tensor:
    data.setup("fit")
    batches: Any = data.val_dataloader()
    image: torch.Tensor = next(iter(batches))["image"]
    return image


@pytest.mark.parametrize("backbone", ["resnet18", "timm/vit_tiny_patch16_224"])
def test_tta_is_invariant_to_rotation(backbone: str, drawn: Path) -> None:
    image = _batch(PCamDataModule(drawn))
    model = PCamClassifier(backbone, weights="none", tta="d4").eval()
    with torch.no_grad():
        logit = model.predict_logits(image)
        for turned in (image.rot90(1, (1, 2)), image.flip(1), image.transpose(1, 2)):
            assert torch.equal(model.predict_logits(turned.contiguous()), logit)
        plain = PCamClassifier(backbone, weights="none").eval()
        plain.load_state_dict(model.state_dict())
        one = torch.stack([plain.predict_logits(image.rot90(n, (1, 2)).contiguous()) for n in range(4)])
        mirrored = torch.stack([plain.predict_logits(image.flip(1).rot90(n, (1, 2)).contiguous()) for n in range(4)])
    assert torch.allclose(torch.cat([one, mirrored]).mean(dim=0), logit, atol=1e-5)


def test_own_mean_and_deviation_are_of_the_training_part_and_travel_with_the_weights(drawn: Path) -> None:
    data = PCamDataModule(drawn)
    data.setup("fit")
    sample = data.sample(60)
    model = PCamClassifier(weights="none", normalize="own", stain="macenko")
    assert model.preprocess.needs_fit
    model.preprocess.fit(sample)
    standard = model.preprocess(sample)
    assert torch.allclose(standard.mean(dim=(0, 2, 3)), torch.zeros(3), atol=1e-4)
    assert torch.allclose(standard.transpose(0, 1).flatten(1).std(dim=1), torch.ones(3), atol=1e-3)
    other = PCamClassifier(weights="none", normalize="own", stain="macenko")
    other.load_state_dict(model.state_dict())
    assert torch.equal(other.preprocess(sample), standard)
    assert not PCamClassifier(weights="none", normalize="imagenet").preprocess.needs_fit


def test_the_network_sees_the_center_scaled(drawn: Path) -> None:
    image = _batch(PCamDataModule(drawn))
    for options, side in (({"crop": 48}, 48), ({"crop": 48, "size": 96}, 96), ({"size": 64}, 64)):
        model = PCamClassifier("timm/vit_tiny_patch16_224", weights="none", **options).eval()  # type: ignore[arg-type]
        seen = model.preprocess(image)
        assert seen.shape[2:] == (side, side)
        assert model(seen).shape == (len(image),)
    model = PCamClassifier(weights="none", crop=48)
    assert torch.equal(model.preprocess(image), image[:, 24:72, 24:72].permute(0, 3, 1, 2) / 255)


def _imagenet(value: float) -> None:
    """Put weights of ImageNet's shape into torch's cache, all of one value."""
    state = {key: torch.full_like(tensor, value) for key, tensor in models.resnet18().state_dict().items()}
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    folder.mkdir(parents=True)
    name = models.ResNet18_Weights.IMAGENET1K_V1.url.rsplit("/", 1)[1]
    torch.save(state, folder / name)


def test_a_plain_trainer_loads_the_weights_that_the_module_names(drawn: Path) -> None:
    _imagenet(0.25)
    model = PCamClassifier(weights="imagenet", lr=0.0, weight_decay=0.0)
    trainer = _trainer(limit_train_batches=1, limit_val_batches=1)
    trainer.fit(model, datamodule=PCamDataModule(str(drawn), batch_size=32))
    assert model.init_weights == "imagenet"
    assert set(model.net.get_parameter("conv1.weight").flatten().tolist()) == {0.25}
    assert model.freezes


def test_a_plain_trainer_raises_where_weights_cannot_be_loaded(drawn: Path) -> None:
    model = PCamClassifier(weights="/nowhere/x.pt")
    with pytest.raises(UserError, match=r"/nowhere/x\.pt: no such file"):
        _trainer(limit_train_batches=1).fit(model, datamodule=PCamDataModule(drawn, batch_size=32))


def test_weights_of_a_checkpoint_are_not_replaced_by_those_it_started_from(drawn: Path, trained: Path) -> None:
    """Neither where it is loaded, nor where it is resumed: weights defaults to imagenet, which is not there."""
    path = trained / "checkpoints" / "last.ckpt"
    loaded = PCamClassifier.load_from_checkpoint(path, weights_only=True, lr=0.0, weight_decay=0.0)
    before = next(loaded.net.parameters()).clone()
    _trainer(limit_train_batches=1, limit_val_batches=0).fit(loaded, datamodule=PCamDataModule(drawn, batch_size=32))
    assert torch.equal(next(loaded.net.parameters()), before)
    resumed = PCamClassifier(NETWORK, crop=48)
    trainer = _trainer(max_epochs=3, limit_val_batches=0)
    trainer.fit(resumed, datamodule=PCamDataModule(drawn, batch_size=32), ckpt_path=path, weights_only=True)
    assert trainer.current_epoch == 3


def test_a_plain_trainer_measures_what_preprocessing_needs(drawn: Path) -> None:
    model = PCamClassifier("p4m_resnet16", "none", normalize="own", crop=32)
    _trainer(limit_train_batches=1, limit_val_batches=0).fit(model, datamodule=PCamDataModule(drawn, batch_size=32))
    assert model.preprocess.fitted


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": "1e-3"}, "`model.lr` '1e-3': should be a number, not str"),
        ({"size": 96.5}, "`model.size` 96.5: should be an integer, not float"),
        ({"freeze_epochs": "1"}, "`model.freeze_epochs` '1': should be an integer, not str"),
        ({"augment": None}, "`model.augment` None: should be an Augmentation or a mapping of its options"),
        ({"augment": {"degres": 90}}, "`model.augment`: unknown option degres; the options are d4, degrees, "),
        ({"augment": {"degrees": "90"}}, "`model.augment.degrees` '90': should be a number, not str"),
    ],
)
def test_arguments_of_the_wrong_type_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        PCamClassifier(weights="none", **options)


def test_each_epoch_step_and_process_has_draws_of_its_own() -> None:
    model = PCamClassifier(weights="none")
    model._seed = 42

    def draw(epoch: int, step: int, rank: int) -> float:
        model.trainer = SimpleNamespace(current_epoch=epoch, global_rank=rank)  # type: ignore[assignment]
        model.on_train_batch_start({}, step)  # type: ignore[typeddict-item]
        return torch.rand(1).item()

    places = list(product(range(2), range(3), range(2)))
    draws = [draw(*place) for place in places]
    assert len(set(draws)) == len(places)
    assert draws == [draw(*place) for place in places]  # a resumed run repeats them
    model._seed = 43
    assert not set(draws) & {draw(*place) for place in places}


def test_pixels_are_augmented_in_float32_whatever_the_precision(drawn: Path) -> None:
    seen = []
    for precision in ("32-true", "bf16-mixed"):
        L.seed_everything(0)
        model = PCamClassifier(weights="none", augment=Augmentation(degrees=90.0, stain=0.1))
        model.net.register_forward_pre_hook(lambda net, inputs: seen.append(inputs[0].clone()))
        trainer = _trainer(precision=precision, limit_train_batches=1, limit_val_batches=0)
        trainer.fit(model, datamodule=PCamDataModule(drawn, batch_size=8))
    single, mixed = seen
    assert mixed.dtype == torch.float32
    assert torch.equal(mixed, single)


def test_predictions_are_of_the_weights_as_they_are(drawn: Path) -> None:
    class Stop(L.Callback):
        def on_predict_batch_end(self, *args: object) -> None:
            raise ValueError("stop")

    def trainer(*callbacks: L.Callback) -> L.Trainer:
        quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        return L.Trainer(accelerator="cpu", max_steps=2, callbacks=list(callbacks), **quiet)  # type: ignore[arg-type]

    data = PCamDataModule(drawn, batch_size=16)
    model = PCamClassifier("efficientnet_lite0_s16", weights="none", crop=32)
    with pytest.raises(ValueError, match="stop"):  # a folded copy of the network is left behind
        trainer(Stop()).predict(model, data)
    before = {name: value.clone() for name, value in model.net.named_parameters()}
    trainer().fit(model, data)
    assert not any(torch.equal(value, before[name]) for name, value in model.net.named_parameters())
    model.eval()
    batches = trainer().predict(model, data)
    assert batches is not None
    with torch.no_grad():
        expected = [model.predict_logits(batch["image"]) for batch in data.predict_dataloader()]
    predicted = torch.cat([batch["logit"] for batch in batches])  # type: ignore[call-overload]
    torch.testing.assert_close(predicted, torch.cat(expected), atol=1e-4, rtol=1e-4)
