"""The model: one number for a whole epoch, a body that keeps still while frozen, half precision that agrees."""

import traceback
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch.utils._python_dispatch import TorchDispatchMode

from pcam_lightning.classifier import PCamClassifier
from pcam_lightning.datamodule import PCamDataModule
from pcam_lightning.messages import UserError


def _trainer(**options: object) -> L.Trainer:
    plain = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return L.Trainer(**{**plain, "max_epochs": 1, "num_sanity_val_steps": 0, **options})  # type: ignore[arg-type]


def _scores(model: PCamClassifier, data: PCamDataModule) -> tuple[np.ndarray, np.ndarray]:
    model.eval()
    with torch.no_grad():
        batches: list[Any] = list(data.val_dataloader())
        pairs = [(model(batch["image"].permute(0, 3, 1, 2) / 255), batch["label"]) for batch in batches]
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
    model = PCamClassifier(weights="none", freeze_epochs=1)
    model.started_from = start
    before = {key: value.clone() for key, value in model.net.state_dict().items()}
    _trainer(max_epochs=1).fit(model, datamodule=PCamDataModule(drawn, batch_size=48))
    frozen = _changed(before, model)
    assert frozen == {"fc.weight", "fc.bias"} if start == "weights" else len(frozen) > 100
    _trainer(max_epochs=2).fit(model, datamodule=PCamDataModule(drawn, batch_size=48))
    assert "conv1.weight" in _changed(before, model)
    assert "bn1.running_mean" in _changed(before, model)  # statistics too


def test_rate_warms_up_and_falls_to_zero_along_a_cosine(drawn: Path) -> None:
    rates: list[float] = []

    class Watch(L.Callback):
        def on_train_batch_start(self, trainer: L.Trainer, *args: object) -> None:
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    model = PCamClassifier(weights="none", lr=0.1, warmup_epochs=1, optimizer="sgd")
    data = PCamDataModule(drawn, batch_size=25)
    _trainer(max_epochs=3, callbacks=[Watch()]).fit(model, datamodule=data)
    assert rates[:4] == pytest.approx([0.02, 0.04, 0.06, 0.08])
    assert rates[4:] == pytest.approx([0.05 * (1 + np.cos(np.pi * n / 8)) for n in range(8)])
    assert isinstance(model.trainer.optimizers[0], torch.optim.SGD)


def test_label_smoothing_counts_in_training_alone() -> None:
    model = PCamClassifier(weights="none", label_smoothing=0.2)
    batch = {"image": torch.zeros(2, 96, 96, 3, dtype=torch.uint8), "label": torch.tensor([0.0, 1.0])}
    model.log = model.log_dict = lambda *args, **kwargs: None  # type: ignore[method-assign,assignment]
    model.eval()
    logit = model(torch.zeros(2, 3, 96, 96)).detach()
    cross_entropy = torch.nn.functional.binary_cross_entropy_with_logits
    smooth = cross_entropy(logit, torch.tensor([0.1, 0.9]))
    plain = cross_entropy(logit, batch["label"])
    assert model._step(batch, "train")[0].item() == pytest.approx(smooth.item())  # type: ignore[arg-type]
    assert model._step(batch, "val")[0].item() == pytest.approx(plain.item())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("label_smoothing", 1.0),
        ("lr", -1.0),
        ("lr", float("nan")),
        ("weight_decay", float("inf")),
        ("quarter_turns", True),
    ],
)
def test_numbers_out_of_range(option: str, value: float) -> None:
    with pytest.raises(UserError, match=rf"--model.{option} {value}"):
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


@pytest.mark.parametrize("options", [{}, {"degrees": 0.0, "quarter_turns": True}])
def test_a_training_step_never_waits_for_the_device(options: dict[str, Any], drawn: Path) -> None:
    waits = _Waits()

    class Watch(L.Callback):
        def on_train_batch_start(self, *args: object) -> None:
            waits.__enter__()  # type: ignore[no-untyped-call]

        def on_train_batch_end(self, *args: object) -> None:
            waits.__exit__(None, None, None)  # type: ignore[no-untyped-call]

    model = PCamClassifier(weights="none", **options)
    _trainer(callbacks=[Watch()], precision="bf16-mixed").fit(model, datamodule=PCamDataModule(drawn, batch_size=32))
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
    model = PCamClassifier(weights="none", warmup_epochs=0.5)
    rates = []

    class Watch(L.Callback):
        def on_train_batch_start(self, trainer: L.Trainer, *args: object) -> None:
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    data = PCamDataModule(drawn, batch_size=8)  # 13 steps an epoch
    _trainer(callbacks=[Watch()], max_epochs=-1, max_steps=10).fit(model, datamodule=data)
    assert rates.index(max(rates)) == 6
    assert max(rates) == pytest.approx(1e-3)


def test_gradients_are_clipped_in_any_precision(drawn: Path) -> None:
    for precision in ("32-true", "bf16-mixed"):
        model = PCamClassifier(weights="none")
        data = PCamDataModule(drawn, batch_size=48)
        _trainer(precision=precision, gradient_clip_val=1.0, limit_train_batches=1).fit(model, datamodule=data)
        assert model.trainer.optimizers[0].param_groups[0]["fused"] == (precision == "32-true")
