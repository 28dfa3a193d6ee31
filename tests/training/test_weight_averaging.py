"""Averaging of weights: what is kept, validated and gone on with."""

import json
from pathlib import Path
from typing import Any

import lightning as L
import pandas as pd
import pytest
import torch
from conftest import CONFIGS, FAST, NETWORK, TRAINER, stopping, with_callback

from pcam_lightning.cli.main import main
from pcam_lightning.data.datamodule import PCamDataModule
from pcam_lightning.models.classifier import PCamClassifier
from pcam_lightning.training.weight_averaging import ExponentialMovingAverage
from pcam_lightning.utils.errors import UserError

RUN = Path("lightning_logs/base/version_0")
AVERAGED = [
    "--trainer.callbacks=pcam_lightning.training.weight_averaging.ExponentialMovingAverage",
    "--trainer.callbacks.decay=0.6",
]


def _fit(drawn: Path, *more: str) -> int:
    args = ["fit", "-c", str(CONFIGS / "base.yaml"), "--data.root", str(drawn), "--trainer.max_epochs=2", *FAST]
    args += ["--model.backbone=resnet18"]
    return main([*args, *AVERAGED, *more])


class Follow(L.Callback):
    """Averages a weight by hand."""

    def __init__(self) -> None:
        self.means: list[torch.Tensor] = []

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: object) -> None:
        net = pl_module.net
        values = [net.fc.weight, net.conv1.weight]  # type: ignore[union-attr]
        count = trainer.global_step
        for number, value in enumerate(values):
            value = value.detach().clone()  # type: ignore[operator]
            if count == 1:
                self.means.append(value)
            else:
                share = max(1 - 0.6, 1 / count)  # a plain mean at first
                self.means[number] = self.means[number] + share * (value - self.means[number])


def test_the_average_is_kept_and_is_what_was_validated(drawn: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    follow = Follow()
    with monkeypatch.context() as patch:
        patch.setattr(TRAINER, stopping(follow, [0]))
        assert _fit(drawn) == 0
    state = torch.load(RUN / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    for name, mean in zip(("net.fc.weight", "net.conv1.weight"), follow.means, strict=True):
        assert torch.allclose(state[name], mean, atol=1e-6), name
    scores = pd.read_csv(RUN / "metrics.csv")["val/auroc"]
    assert main(["validate", "--ckpt_path", str(RUN / "checkpoints" / "last.ckpt"), "--trainer.accelerator=cpu"]) == 0
    assert json.loads((RUN / "validate.json").read_text())["val/auroc"] == pytest.approx(scores.iloc[-1])


@pytest.mark.parametrize("backbone", [NETWORK, "p4m_resnet16"])
@pytest.mark.parametrize("validates", [True, False])
def test_statistics_are_measured_with_the_averaged_weights(backbone: str, validates: bool, drawn: Path) -> None:
    """Those that are kept are the network's own on training patches."""
    more = [f"--model.backbone={backbone}", "--model.crop=64"] + ([] if validates else ["--data.val_fraction=0"])
    assert _fit(drawn, *more) == 0
    path = RUN / "checkpoints" / "last.ckpt"
    model = PCamClassifier.load_from_checkpoint(path, weights_only=True)
    data = PCamDataModule(drawn, batch_size=32, val_fraction=0.2 if validates else 0)
    data.setup("fit")
    first: Any = next(module for module in model.net.modules() if hasattr(module, "running_mean"))
    kept = [first.running_mean.clone(), first.running_var.clone()]
    means, variances = [], []
    given: list[torch.Tensor] = []
    first.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
    with torch.no_grad():
        for _ in range(4):  # other draws of the augmentation, so that statistics differ a little
            for batch in data.train_dataloader():
                model.net(model.augmented(batch)[0])
    for image in given:
        feature = image.view(len(image), 8 if backbone == "p4m_resnet16" else 1, -1, *image.shape[2:])
        means.append(feature.mean(dim=(0, 1, 3, 4)))
        variances.append(feature.var(dim=(0, 3, 4)).mean(dim=0))
    for value, measured in zip(kept, (means, variances), strict=True):
        torch.testing.assert_close(value, torch.stack(measured).mean(dim=0), rtol=0.1, atol=0.02)


class Stop(L.Callback):
    """Ctrl-C in the second epoch."""

    def on_train_batch_start(self, trainer: L.Trainer, *args: object) -> None:
        if trainer.current_epoch == 1:
            raise KeyboardInterrupt


def test_stopped_and_resumed_it_is_the_same_average(drawn: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert _fit(drawn) == 0
    with monkeypatch.context() as patch:
        patch.setattr(TRAINER, stopping(Stop(), [0]))
        assert _fit(drawn) == 130
    assert main(["fit", "-c", str(CONFIGS / "base.yaml"), "--ckpt_path=last"]) == 0
    straight, resumed = (
        torch.load(RUN.with_name(f"version_{n}") / "checkpoints" / "last.ckpt", weights_only=True) for n in (0, 1)
    )
    for part in ("state_dict", "current_model_state"):
        assert all(torch.equal(straight[part][name], value) for name, value in resumed[part].items())
    assert not all(
        torch.equal(value, resumed["state_dict"][name]) for name, value in resumed["current_model_state"].items()
    )


def test_a_share_is_less_than_one() -> None:
    with pytest.raises(UserError, match=r"decay` 1: should be"):
        ExponentialMovingAverage(1)


def test_a_decay_out_of_range_is_one_line(drawn: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = ["fit", "-c", str(CONFIGS / "base.yaml"), "--data.root", str(drawn), *FAST]
    callback = "pcam_lightning.training.weight_averaging.ExponentialMovingAverage"
    assert main([*args, with_callback(callback, decay=2)]) == 2
    assert "error: --trainer.callbacks.decay 2.0: should be at least 0 and less than 1" in capsys.readouterr().err
