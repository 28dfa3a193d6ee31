"""What is no number, and what is too few or too blank: stopped, or said, and never kept."""

import json
import re
from itertools import islice
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import CONFIGS, FAST, LOGGED, MakeFolder, with_callback
from PIL import Image

from pcam_lightning.cli.main import main
from pcam_lightning.data.datamodule import PCamDataModule

BASE = str(CONFIGS / "base.yaml")
RUN = Path("lightning_logs") / "base" / "version_0"
CPU = "--trainer.accelerator=cpu"


class Poison(L.Callback):
    """Puts a value into the head's bias in the second epoch: before a batch, or behind the last one."""

    def __init__(self, value: str, batch: int | None = None) -> None:
        self.value, self.batch = float(value), batch

    def _poison(self, pl_module: L.LightningModule) -> None:
        bias: Any = pl_module.get_parameter("net.classifier.bias")
        with torch.no_grad():
            bias.fill_(self.value)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Before a batch."""
        if (trainer.current_epoch, batch_idx) == (1, self.batch):
            self._poison(pl_module)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Behind the last one."""
        if trainer.current_epoch == 1 and self.batch is None and trainer.is_last_batch:
            self._poison(pl_module)


def _fit(root: Path, *more: str) -> list[str]:
    return ["fit", "-c", BASE, "--data.root", str(root), "--trainer.max_epochs=2", *FAST, *more]


def _poisoned(value: str, batch: int | None) -> str:
    return with_callback("test_numbers.Poison", value=value, batch=batch)


def _finite(path: Path) -> bool:
    state = torch.load(path, weights_only=True)["state_dict"]
    return all(value.isfinite().all() for value in state.values())


def test_a_loss_that_is_no_number_names_step_patches_and_the_last_good_checkpoint(
    drawn: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(_fit(drawn, _poisoned("nan", 2))) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    # Four batches of 32 an epoch: the second epoch's third is step 7.
    message = re.fullmatch(
        r"error: epoch 2 diverged: the loss of step 7 is NaN or infinite\. Its 32 patches: (.*), \.\.\., all of "
        r"them in (.*diverged\.csv)\. (.*last\.ckpt) is of the last whole epoch\. Try a lower --model\.lr.*",
        error,
    )
    assert message, error
    data = PCamDataModule(drawn, batch_size=32)
    L.seed_everything(42)
    data.setup("fit")
    loader: Any = data.train_dataloader()
    loader.sampler.set_epoch(1)
    expected = loader.dataset.ids(next(islice(loader.sampler, 2, None)))
    assert list(pd.read_csv(message[2])["id"]) == list(expected)
    assert message[1].split(", ") == list(expected[:3])
    assert torch.load(message[3], weights_only=True)["epoch"] == 0
    assert _finite(RUN / "checkpoints" / "last.ckpt")
    assert _finite(RUN / "checkpoints" / "best.ckpt")
    # It goes on from there, and is the run that never had the fault.
    assert main(["fit", "-c", BASE, "--ckpt_path=last", "--trainer.callbacks=[]"]) == 0
    assert not (RUN / "diverged.csv").exists()
    assert main(_fit(drawn)) == 0
    assert _scores(RUN) == _scores(RUN.with_name("version_1"))


def _scores(run: Path) -> list[float]:
    return list(pd.read_csv(run / "metrics.csv")["val/auroc"])


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("nan", r"1 tensors of the network are NaN or infinite, net\.classifier\.bias first"),
        ("3e38", "the validation loss is NaN or infinite"),
    ],
)
def test_weights_that_are_of_no_use_are_not_kept(
    value: str, message: str, drawn: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    head = "--trainer.precision=32-true"
    more = ["--data.val_fraction=0"] if value == "nan" else []
    assert main(_fit(drawn, _poisoned(value, None), head, *more)) == 2
    assert re.search(f"error: epoch 2 diverged: {message}", capsys.readouterr().err)
    assert torch.load(RUN / "checkpoints" / "last.ckpt", weights_only=True)["epoch"] == 0
    assert list(pd.read_csv(RUN / "metrics.csv")["epoch"]) == [1]


def test_a_validation_part_of_one_class_has_no_auroc(drawn: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labels = pd.read_csv(drawn / "train_labels.csv")
    normal = labels.index[labels["label"] == 0][:10]
    labels.assign(split="train")[["id", "split"]].to_csv("split.csv", index=False)
    split = pd.read_csv("split.csv")
    split.loc[normal, "split"] = "val"
    split.to_csv("split.csv", index=False)
    assert main([*_fit(drawn, "--data.split_file=split.csv"), *LOGGED[-1:]]) == 0
    message = capsys.readouterr().err
    assert "warning: split.csv: its validation part has patches of one class only" in message.replace(
        f"{Path.cwd()}/", ""
    )
    assert "no val/auroc to choose an epoch by: last.ckpt counts" in message
    metrics = pd.read_csv(RUN / "metrics.csv")
    assert metrics["val/auroc"].isna().all()
    assert metrics["val/loss"].notna().all()
    assert not (RUN / "checkpoints" / "best.ckpt").exists()
    assert main(["validate", "--ckpt_path", str(RUN / "checkpoints" / "last.ckpt"), CPU]) == 0
    assert json.loads((RUN / "validate.json").read_text())["val/auroc"] is None
    assert main(["curves", str(RUN)]) == 0


def _blank(root: Path) -> Path:
    """Make all patches of a folder white or black."""
    for number, path in enumerate(sorted(root.rglob("*.tif"))):
        Image.new("RGB", (96, 96), (255 * (number % 2),) * 3).save(path)
    (root / "train_labels.csv").write_text("id,label\n" + "".join(f"train{n:03d},{n // 2 % 2}\n" for n in range(20)))
    return root


def test_blank_and_black_patches_alone_are_trained_on(kaggle: MakeFolder, capsys: pytest.CaptureFixture[str]) -> None:
    root = _blank(kaggle())
    assert main(_fit(root, "--model.normalize=own", "--data.val_fraction=0")) == 0
    assert _finite(RUN / "checkpoints" / "last.ckpt")
    assert main(_fit(root, "--model.stain=macenko")) == 2
    assert "--model.stain macenko: cannot fit a target: no patch contains stain" in capsys.readouterr().err


@pytest.mark.parametrize("stain", ["macenko", "reinhard"])
def test_blank_and_black_patches_are_predicted(stain: str, drawn: Path, kaggle: MakeFolder) -> None:
    assert main(_fit(drawn, f"--model.stain={stain}", "--model.normalize=own", "--trainer.max_epochs=1")) == 0
    last = str(RUN / "checkpoints" / "last.ckpt")
    assert main(["predict", "--ckpt_path", last, "--data.root", str(_blank(kaggle())), CPU]) == 0
    assert np.isfinite(pd.read_csv(RUN / "predictions.csv")["logit"]).all()


@pytest.mark.parametrize(("patches", "batch"), [(1, 1), (1, 512), (2, 1), (33, 32), (64, 32)])
def test_batches_of_any_size_predict_the_same(patches: int, batch: int, small: Path, kaggle: MakeFolder) -> None:
    """The last batch may be of one patch; none is empty; a batch may be larger than the data."""
    checkpoint = str(small / "checkpoints" / "best.ckpt")
    predict = ["predict", "--ckpt_path", checkpoint, "--data.root", str(kaggle(test=patches)), CPU]
    predict.append("--trainer.precision=32-true")
    for name, size in (("one", 1), ("many", batch)):
        assert main([*predict, f"--data.batch_size={size}", "--output", name]) == 0
    one, many = (pd.read_csv(Path(name) / "predictions.csv")["logit"] for name in ("one", "many"))
    assert len(one) == patches
    np.testing.assert_allclose(one, many, atol=1e-4)


def test_two_patches_are_enough_to_train_on(kaggle: MakeFolder) -> None:
    assert main(_fit(kaggle(train=2), "--data.val_fraction=0", "--data.batch_size=1000")) == 0
    assert main(_fit(Path(kaggle(train=2, root=Path("other").absolute())))) == 2  # nothing is left to validate on
