"""Another data folder that is added to the training part."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import FAST, MakeFolder, read_metrics
from PIL import Image

from pcam_lightning import PCamDataModule
from pcam_lightning.cli.main import main
from pcam_lightning.data.leakage import keep_apart
from pcam_lightning.utils.errors import UserError

CONFIG = str(Path(__file__).parents[2] / "configs" / "base.yaml")


def make_extra(kaggle: MakeFolder, root: Path, count: int) -> Path:
    """Make a folder of one class, as mined patches are, none of which another folder has."""
    kaggle(train=count, root=root)
    shutil.rmtree(root / "test")
    (root / "sample_submission.csv").unlink()
    rows = pd.read_csv(root / "train_labels.csv")
    for path in (root / "train").iterdir():
        Image.fromarray(255 - np.asarray(Image.open(path))).save(path.with_name(f"x{path.name}"))
        path.unlink()
    rows.assign(id="x" + rows["id"], label=0).to_csv(root / "train_labels.csv", index=False)
    return root


def test_each_patch_of_both_folders_once(kaggle: MakeFolder, tmp_path: Path) -> None:
    root, extra = kaggle(train=40), make_extra(kaggle, tmp_path / "extra", 14)
    alone = PCamDataModule(root, batch_size=8)
    alone.setup("fit")
    data = PCamDataModule(str(root), batch_size=8, extra_train=str(extra))
    data.setup("fit")
    assert np.array_equal(alone.val_mask, data.val_mask)
    own = {*data.table["id"][data.val_mask]}
    batches = list(data.train_dataloader())
    row = torch.cat([batch["row"] for batch in batches]).numpy()
    ids = data.ids[row]
    train = data.train_table.set_index("id")
    assert set(ids) == set(train.index)
    assert not set(ids) & own
    assert torch.cat([batch["label"] for batch in batches]).tolist() == train.loc[ids, "label"].tolist()
    assert data.extra_store is not None
    stores = {True: data.extra_store, False: data.train_store}
    image = torch.cat([batch["image"] for batch in batches]).numpy()
    for patch_id, pixels in zip(ids, image, strict=True):
        store = stores[patch_id.startswith("x")]
        assert np.array_equal(pixels, store.images[store.rows(pd.Series([patch_id]))[0]])
    dataset = data.train_dataloader().dataset
    assert dataset.ids(np.array([len(train) - 1, 0])).tolist() == [train.index[-1], train.index[0]]  # type: ignore[attr-defined]
    assert len(data.sample(100)) == len(train)


def test_patches_that_validate_or_whose_slides_do_are_left_out() -> None:
    table = pd.DataFrame(
        {
            "pixel_sha1": ["a", "b", "c", "d"],
            "slide": ["camelyon16_train_tumor_001", "normal_002", "camelyon16_train_normal_003", "both"],
        }
    )
    val = np.array([True, False, True, True])
    table = pd.concat([table, pd.DataFrame({"pixel_sha1": ["e"], "slide": ["both"]})], ignore_index=True)
    val = np.append(val, False)
    extra = pd.DataFrame(
        {
            "pixel_sha1": ["x1", "x2", "x3", "x4", "c", "b"],
            "slide": ["tumor_001", "normal_001", "normal_002", "both", "normal_002", "normal_002"],
        }
    )
    assert keep_apart(extra, table, val).tolist() == [False, True, True, True, False, True]
    assert keep_apart(extra.drop(columns="slide"), table, val).tolist() == [True] * 4 + [False, True]


def test_folders_that_cannot_be_added(drawn: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is `data.root` itself"):
        PCamDataModule(drawn, extra_train=drawn).setup("fit")
    with pytest.raises(UserError, match=r"nowhere: no such folder"):
        PCamDataModule(drawn, extra_train="nowhere").setup("fit")
    shutil.copytree(drawn, tmp_path / "copy")
    with pytest.raises(UserError, match=r"or their groups, validate"):
        PCamDataModule(drawn, val_fraction=1, extra_train=tmp_path / "copy").setup("fit")
    assert main(["probe", "-c", CONFIG, "--data.root", str(drawn), "--data.extra_train", str(tmp_path / "copy")]) == 2


def test_a_run_records_them_and_resumes_with_the_same(
    drawn: Path, kaggle: MakeFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    extra = make_extra(kaggle, tmp_path / "extra", 30)
    args = ["fit", "-c", CONFIG, "--data.root", str(drawn), *FAST]
    assert main([*args, "--trainer.max_epochs=1", f"--data.extra_train={extra}"]) == 0
    assert "extra training data" in capsys.readouterr().err
    run = Path("lightning_logs/base/version_0")
    checkpoint = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    split = pd.read_csv(run / "split.csv")
    assert len(split) == 120
    assert len(checkpoint["trained"]["pixels"]) == (split["split"] == "train").sum() + 30
    assert checkpoint["positive_fraction"] < 0.35
    again = ["--ckpt_path=last", "--trainer.max_epochs=2"]
    other = make_extra(kaggle, tmp_path / "other", 31)
    assert main([*args, *again, f"--data.extra_train={other}"]) == 2
    assert "the patches differ from this run's" in capsys.readouterr().err
    assert main([*args, *again]) == 0  # with the run's own options
    assert len(read_metrics(run)) == 2
    shutil.rmtree(extra)  # neither scores nor predictions need it
    best = str(run / "checkpoints" / "best.ckpt")
    assert main(["validate", "--ckpt_path", best]) == 0
    assert main(["predict", "--ckpt_path", best]) == 0
    assert main(["evaluate", str(run), "--bootstrap_samples=100"]) == 0
