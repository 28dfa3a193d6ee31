"""Out-of-distribution patches are marked by their features."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import CONFIGS, FAST, MakeFolder
from PIL import Image
from scipy.spatial.distance import mahalanobis

from pcam_lightning import PCamDataModule
from pcam_lightning.cli.main import main
from pcam_lightning.models.backbones import build_backbone
from pcam_lightning.models.stage_statistics import StageStatistics
from pcam_lightning.synthetic.kaggle_folder import synthesize
from pcam_lightning.training.feature_distance import FeatureDistance, _fit, features_file, find_feature_distance
from pcam_lightning.training.loaded_run import LoadedRun, load_pretrained
from pcam_lightning.utils.errors import UserError

CPU = "--trainer.accelerator=cpu"


def test_distances_are_those_of_mahalanobis() -> None:
    rng = np.random.default_rng(0)
    train = rng.normal(size=(5000, 4)) @ rng.normal(size=(4, 4)) + 3
    others = rng.normal(size=(6, 4))
    inverse = np.linalg.inv(np.cov(train.T))
    expected = [mahalanobis(one, train.mean(axis=0), inverse) / 2 for one in others]
    distance = FeatureDistance(*_fit(torch.from_numpy(train).float()), 1.0, 0)
    assert distance(torch.from_numpy(others).float()).numpy() == pytest.approx(expected, rel=0.05)
    with torch.autocast("cpu", torch.bfloat16):  # where the network predicts in half precision
        assert distance(torch.from_numpy(others).float()).numpy() == pytest.approx(expected, rel=0.05)
    constant = torch.cat([torch.randn(30, 3), torch.ones(30, 1)], dim=1)  # a channel that is always 0
    assert FeatureDistance(*_fit(constant), 1.0, 0)(constant).isfinite().all()


def test_written_and_read_again(tmp_path: Path) -> None:
    written = FeatureDistance(torch.randn(8), torch.randn(8, 8), 1.25, 3)
    written.write(tmp_path / "file.safetensors")
    again = FeatureDistance.read(tmp_path / "file.safetensors")
    assert torch.equal(again.mean, written.mean)
    assert torch.equal(again.whiten, written.whiten)
    assert (again.threshold, again.step) == (1.25, 3)


@pytest.mark.parametrize(
    "backbone",
    ["resnet18", "convnext_tiny", "efficientnet_lite0_s16", "p4m_resnet16", "timm/vit_tiny_patch16_224",
     "timm/swin_tiny_patch4_window7_224", "timm/resnet18d", "timm/vgg11"],
)  # fmt: skip
def test_every_network_has_early_stages(backbone: str) -> None:
    network = build_backbone(backbone, 96).eval()
    statistics = StageStatistics(network, backbone)
    image = torch.randn(3, 3, 96, 96) * torch.tensor([0.3, 1.0, 3.0])[:, None, None, None]
    with torch.no_grad():
        network(image)
        features = statistics.take()
        network(image.flip(0))
        network(image)
    assert features.shape[0] == 3
    assert features.isfinite().all()
    assert not torch.allclose(features, features.flip(0), atol=1e-2)
    assert torch.allclose(statistics.take(), features.flip(0), atol=1e-3)  # of several views the first
    statistics.close()
    assert not any(layer._forward_hooks for layer in network.modules())


def test_networks_whose_stages_cannot_be_looked_at_are_named() -> None:
    network = build_backbone("timm/pit_ti_224", 224).eval()
    with pytest.raises(UserError, match="the early stages of timm/pit_ti_224 cannot be read"):  # noqa: PT012
        statistics = StageStatistics(network, "timm/pit_ti_224")
        with torch.no_grad():
            network(torch.randn(1, 3, 224, 224))
        statistics.take()


def test_noise_is_unlike_tissue(run_copy: Path, drawn: Path, tmp_path: Path) -> None:
    assert main(["evaluate", str(run_copy), "--bootstrap_samples=100", "--abstain=0.2"]) == 0
    folder = tmp_path / "patches"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for index in range(10):
        Image.fromarray(rng.integers(0, 256, (96, 96, 3), dtype=np.uint8)).save(folder / f"noise{index}.png")
    for index, path in enumerate(sorted((drawn / "test").rglob("*.tif"))[:10]):
        Image.open(path).save(folder / f"tissue{index}.png")
    predict = ["predict", "--ckpt_path", str(run_copy / "checkpoints/best.ckpt"), CPU, "--abstain", "--overwrite"]
    assert main([*predict, "--data.root", str(folder)]) == 0
    rows = pd.read_csv(run_copy / "predictions.csv")
    noise = rows["id"].str.startswith("noise")
    assert rows["ood"][noise].all()
    assert rows["ood"][~noise].mean() < 0.5
    assert rows["ood_distance"][noise].min() > rows["ood_distance"][~noise].median()
    labels = tmp_path / "labels.csv"
    pd.DataFrame({"id": rows["id"], "label": np.arange(len(rows)) % 2}).to_csv(labels, index=False)
    assert (
        main(["evaluate", str(run_copy / "predictions.csv"), "--labels", str(labels), "--bootstrap_samples=100"]) == 0
    )
    page = (run_copy / "predictions_report.html").read_text()
    assert f"{int(rows['ood'].sum())} patches" in page
    assert "similarity to training patches" in page


def test_only_the_training_patches_of_the_run_are_measured(
    run_copy: Path, drawn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    best = run_copy / "checkpoints" / "best.ckpt"
    evaluate = ["evaluate", str(run_copy), "--bootstrap_samples=100", "--abstain=0.2"]
    other, moved = tmp_path / "other", tmp_path / "moved"
    synthesize(other, train=60, test=1, slides=4, seed=9)
    assert main([*evaluate, f"--root={other}"]) == 0
    message = capsys.readouterr().err
    assert f"out-of-distribution patches: {other}: not the patches and the split that trained {best}" in message
    assert find_feature_distance(LoadedRun.open(best)) is None
    shutil.copytree(drawn, moved)
    assert main([*evaluate, f"--root={moved}"]) == 0
    measured = find_feature_distance(LoadedRun.open(best))
    assert measured is not None
    replace(measured, pixels=None).write(features_file(LoadedRun.open(best)))  # measured on patches that are not known
    assert find_feature_distance(LoadedRun.open(best)) is None
    assert "was measured on another checkpoint or on other patches" in capsys.readouterr().err
    assert main(evaluate) == 0
    again = find_feature_distance(LoadedRun.open(best))
    assert again is not None
    assert again.threshold == pytest.approx(measured.threshold)


def test_training_patches_that_are_all_the_same_have_no_distance(
    kaggle: MakeFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    root = kaggle(train=20, test=1)
    for number in range(4, 20):  # a patch of each class on either side of the split
        shutil.copy(root / f"train/train{number % 4:03d}.tif", root / f"train/train{number:03d}.tif")
    args = ["fit", "-c", str(CONFIGS / "base.yaml"), f"--data.root={root}", "--data.val_fraction=0.5", *FAST]
    assert main([*args, "--trainer.max_epochs=1"]) == 0
    run = "lightning_logs/base/version_0"
    assert main(["evaluate", run, "--bootstrap_samples=100", "--abstain=0.2"]) == 0
    message = capsys.readouterr().err
    assert "will not mark out-of-distribution patches" in message
    assert f"{root}: its 10 training patches that were measured are copies of one or two" in message
    for count in (1, 2, 3):
        features = torch.randn(count, 40, generator=torch.Generator().manual_seed(0)).repeat(12, 1)
        if count < 3:
            with pytest.raises(np.linalg.LinAlgError):
                _fit(features)
        else:
            assert FeatureDistance(*_fit(features), 1.0, 0)(features).isfinite().all()


def _validation_quantile(distance: FeatureDistance, best: Path, root: Path) -> float:
    data = PCamDataModule(root, split_file=best.parents[1] / "split.csv")
    data.setup("validate")
    rows = data.train_store.rows(data.table["id"][data.val_mask])
    model = load_pretrained(best, "none").eval()
    statistics = StageStatistics(model.net, model.hparams["backbone"])
    with torch.no_grad():
        model.net(model.preprocess(torch.from_numpy(data.train_store.images[rows])))
    return float(distance(statistics.take()).quantile(0.99))


def test_distances_are_of_the_checkpoint_and_do_not_depend_on_the_batch(run_copy: Path, drawn: Path) -> None:
    assert main(["evaluate", str(run_copy), "--bootstrap_samples=100", "--abstain=0.2"]) == 0
    found = []
    for size in (7, 40):
        options = [f"--data.batch_size={size}", f"--output={size}", "--abstain", CPU]
        assert main(["predict", "--ckpt_path", str(run_copy / "checkpoints/best.ckpt"), *options]) == 0
        found.append(pd.read_csv(f"{size}/predictions.csv")["ood_distance"])
    assert list(found[0]) == pytest.approx(list(found[1]), abs=2e-3)
    best = run_copy / "checkpoints/best.ckpt"
    measured = find_feature_distance(LoadedRun.open(best))
    assert measured is not None
    assert measured.threshold == pytest.approx(_validation_quantile(measured, best, drawn), rel=0.05)
    replace(measured, step=measured.step + 1).write(features_file(LoadedRun.open(best)))
    assert find_feature_distance(LoadedRun.open(best)) is None  # distances that another step of training has
