"""Loaders: every patch once, its own pixels and label, in an order that follows from the seed and the epoch."""

import multiprocessing
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import MakeFolder
from forked import SERVER
from PIL import Image
from torch.utils.data import DataLoader

from pcam_lightning.data.batches import Batch, BatchSampler
from pcam_lightning.data.datamodule import PCamDataModule
from pcam_lightning.utils.errors import UserError


def _epoch(loader: DataLoader[Batch], epoch: int = 0) -> dict[str, torch.Tensor]:
    loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
    batches = list(loader)
    return {key: torch.cat([batch[key] for batch in batches]) for key in batches[0]}


@pytest.fixture
def data(drawn: Path) -> PCamDataModule:
    torch.manual_seed(0)
    module = PCamDataModule(drawn, batch_size=32)
    module.setup("fit")
    return module


def test_each_patch_once_with_its_pixels_and_label(data: PCamDataModule, drawn: Path) -> None:
    labels = data.table.set_index("id")["label"]
    paths = data.table.set_index("id")["path"]
    val_loader = data.val_dataloader()
    assert isinstance(val_loader, DataLoader)
    train, val = _epoch(data.train_dataloader()), _epoch(val_loader)
    assert len(train["row"]) == 4 * 32  # 97 patches in whole batches
    assert len(val["row"]) == 23
    assert sorted([*train["row"][:97].tolist(), *val["row"].tolist()]) == list(range(120))
    assert set(train["row"][97:].tolist()) < set(train["row"][:97].tolist())
    for part in (train, val):
        assert part["image"].dtype == torch.uint8
        for image, row, label in zip(part["image"], part["row"], part["label"], strict=True):
            patch_id = data.ids[row]
            assert label == labels[patch_id]
            assert (image.numpy() == np.asarray(Image.open(drawn / paths[patch_id]))).all()


def test_order_follows_from_seed_and_epoch(data: PCamDataModule) -> None:
    loader = data.train_dataloader()
    first, second = _epoch(loader, 0)["row"], _epoch(loader, 1)["row"]
    assert not torch.equal(first, second)
    assert torch.equal(first[:97].sort().values, second[:97].sort().values)
    assert torch.equal(first, _epoch(data.train_dataloader(), 0)["row"])


def test_folds_are_of_whole_slides(drawn: Path) -> None:
    held_out = []
    for fold in range(2):
        module = PCamDataModule(drawn, slides=drawn / "patch_id_wsi_full.csv", folds=2, fold=fold)
        module.setup("fit")
        slides = [set(module.table.loc[side, "slide"]) for side in (module.val_mask, ~module.val_mask)]
        assert not slides[0] & slides[1]
        held_out.append(module.val_mask)
    assert (np.sum(held_out, axis=0) == 1).all()


def test_threads_yield_the_same_batches(data: PCamDataModule) -> None:
    expected = _epoch(data.train_dataloader(), 3)
    data.num_workers = 2
    found = _epoch(data.train_dataloader(), 3)
    assert all(torch.equal(expected[key], found[key]) for key in expected)


def test_more_processes_than_patches(data: PCamDataModule) -> None:
    data.trainer = SimpleNamespace(world_size=24, global_rank=0)  # type: ignore[assignment]
    with pytest.raises(UserError, match=r"23 patches for 24 processes; use fewer `trainer\.devices`"):
        data.val_dataloader()


def test_predict_follows_the_submission_and_has_no_labels(kaggle: MakeFolder) -> None:
    data = PCamDataModule(kaggle())
    data.setup("predict")
    batch = next(iter(data.predict_dataloader()))
    assert [str(data.ids[row]) for row in batch["row"]] == ["test003", "test002", "test001", "test000"]
    assert "label" not in batch


@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
def test_processes_share_an_epoch(world_size: int) -> None:
    shuffled = [np.concatenate(list(BatchSampler(50, 8, 0, rank, world_size))) for rank in range(world_size)]
    assert len({len(share) for share in shuffled}) == 1  # else the processes would wait for each other for ever
    assert set(np.concatenate(shuffled)) == set(range(50))
    assert sum(map(len, shuffled)) < 50 + 8 * world_size
    # Constant shapes: a compiled network would be compiled again for another one.
    assert {len(batch) for batch in BatchSampler(50, 8, 0, 0, world_size)} == {min(8, -(-50 // world_size))}
    in_order = [np.concatenate(list(BatchSampler(50, 8, None, rank, world_size))) for rank in range(world_size)]
    assert sorted(np.concatenate(in_order)) == list(range(50))
    sampler = BatchSampler(50, 8, 0, 0, world_size)
    assert len(list(sampler)) == len(sampler)


def test_older_split_file_is_used(drawn: Path, trained: Path) -> None:
    data = PCamDataModule(drawn, split_file=trained / "split.csv", split_seed=1)
    data.setup("fit")
    expected = {line.split(",")[0] for line in (trained / "split.csv").read_text().split() if line.endswith(",val")}
    assert set(data.table["id"][data.val_mask]) == expected


@pytest.mark.parametrize("option", ["batch_size", "num_workers"])
def test_numbers_out_of_range(option: str) -> None:
    with pytest.raises(UserError, match=rf"`data.{option}` -1"):
        PCamDataModule(**{option: -1})  # type: ignore[arg-type]


def test_rows_name_their_ids_whatever_was_set_up_when(drawn: Path) -> None:
    module = PCamDataModule(drawn, batch_size=32)
    for stage in ("fit", "predict", "validate"):
        module.setup(stage)
    train_ids = set(pd.read_csv(drawn / "train_labels.csv")["id"])
    test_ids = list(pd.read_csv(drawn / "sample_submission.csv")["id"])
    found = _epoch(module.predict_dataloader())["row"]
    assert list(module.ids[found]) == test_ids
    for loader in (module.train_dataloader(), module.val_dataloader()):
        assert isinstance(loader, DataLoader)
        assert set(module.ids[_epoch(loader)["row"]]) <= train_ids
    assert set(module.train_store.ids) == train_ids
    assert set(module.test_store.ids) == set(test_ids)


def test_paths_are_text_or_not(drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "d").symlink_to(drawn)
    module = PCamDataModule("~/d", cache_dir="c", slides=str(drawn / "patch_id_wsi_full.csv"))
    module.setup()
    assert len(module.ids) == 120
    assert list(Path("c").iterdir())
    assert not Path("~").exists()


def test_loaders_before_setup_say_what_to_call() -> None:
    for name, stage in (("train", "fit"), ("val", "fit"), ("test", "test"), ("predict", "predict")):
        with pytest.raises(UserError, match=rf'call setup\("{stage}"\) before its data loader'):
            getattr(PCamDataModule("nowhere"), f"{name}_dataloader")()


def test_arguments_of_the_wrong_type_are_named() -> None:
    for option, value in (("batch_size", "32"), ("val_fraction", "0.2"), ("folds", 2.5)):
        with pytest.raises(
            UserError, match=rf"`data.{option}` {value!r}: should be an? \w+, not {type(value).__name__}"
        ):
            PCamDataModule("nowhere", **{option: value})  # type: ignore[arg-type]


def _sum(loader: DataLoader[Batch], sums: "multiprocessing.Queue[int]") -> None:
    sums.put(int(_epoch(loader)["image"].sum()))


@pytest.mark.process
def test_a_spawned_process_reads_on_after_the_images_were_packed_again(drawn: Path, tmp_path: Path) -> None:
    root = tmp_path / "copy"
    shutil.copytree(drawn, root, ignore=shutil.ignore_patterns(".pcam_cache"))
    module = PCamDataModule(root, batch_size=32, num_workers=2)
    module.setup("fit")
    loader = module.val_dataloader()
    shutil.rmtree(root / ".pcam_cache")
    sums = SERVER.Queue()
    process = SERVER.Process(target=_sum, args=(loader, sums))
    process.start()
    assert sums.get() == int(_epoch(loader)["image"].sum())  # type: ignore[arg-type]
    process.join()


@pytest.mark.parametrize("by_slides", [False, True])
@pytest.mark.parametrize("split_seed", range(3))
def test_exact_duplicates_stay_on_one_side(split_seed: int, by_slides: bool, kaggle: MakeFolder) -> None:
    root = kaggle(train=40)
    for number in range(0, 40, 4):  # ten pairs, each of two slides
        shutil.copy(root / "train" / f"train{number:03d}.tif", root / "train" / f"train{number + 2:03d}.tif")
    slides = pd.DataFrame({"id": [f"train{n:03d}" for n in range(40)], "wsi": [f"slide_{n // 2}" for n in range(40)]})
    slides.to_csv("slides.csv", index=False)
    data = PCamDataModule(root, split_seed=split_seed, slides=Path("slides.csv") if by_slides else None)
    data.setup("fit")
    assert data.table["pixel_sha1"].nunique() == 30
    for group in ["pixel_sha1", *(["slide"] if by_slides else [])]:
        assert data.table.assign(val=data.val_mask).groupby(group)["val"].nunique().max() == 1


def test_a_sample_is_of_the_training_part_alone(data: PCamDataModule) -> None:
    train = {image.numpy().tobytes() for image in _epoch(data.train_dataloader())["image"]}
    sample = [image.numpy().tobytes() for image in data.sample(1000)]
    assert len(sample) == 97
    assert set(sample) == train


@pytest.mark.parametrize("workers", [0, 2])
def test_each_of_two_processes_resumes_with_its_share_of_the_epoch(workers: int, drawn: Path) -> None:
    """Loader workers fetch the first batches before Lightning calls `set_epoch`."""
    torch.manual_seed(0)
    module = PCamDataModule(drawn, batch_size=16, num_workers=workers)
    module.setup("fit")
    device = SimpleNamespace(root_device=torch.device("cpu"))
    found = []
    for rank in range(2):
        trainer = SimpleNamespace(world_size=2, global_rank=rank, current_epoch=0, strategy=device)
        module.trainer = trainer  # type: ignore[assignment]
        loader = module.train_dataloader()
        batches = iter(loader)
        loader.sampler.set_epoch(3)  # type: ignore[attr-defined]
        found.append(torch.cat([batch["row"] for batch in batches]))
        expected = BatchSampler(97, 16, torch.initial_seed(), rank, 2)
        expected.set_epoch(3)
        rows = np.concatenate([module.ids[found[-1]]])
        assert list(rows) == list(loader.dataset.ids(np.concatenate(list(expected))))  # type: ignore[attr-defined]
    assert not torch.equal(found[0], found[1])
