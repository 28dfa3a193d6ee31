"""explore: one page that shows what is in a data folder, and a list of flagged patches."""

import re
import shutil
from html import escape
from pathlib import Path

import pandas as pd
import pytest
from conftest import CONFIGS, MakeFolder
from PIL import Image

from pcam_lightning.cli.main import main
from pcam_lightning.training.demo_run import demo_folder

FEW = ("--points=40", "--augmented=5")


@pytest.fixture(scope="module")
def explored(drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a page about drawn tissue with one black patch, one copy of another label, slides known."""
    place = tmp_path_factory.mktemp("<b>explored")
    root = place / "kaggle"
    shutil.copytree(drawn, root, ignore=shutil.ignore_patterns(".pcam_cache"))
    labels = pd.read_csv(root / "train_labels.csv").sort_values("label", ignore_index=True)
    normal, tumor = labels["id"].iloc[0], labels["id"].iloc[-1]
    shutil.copyfile(root / "train" / f"{tumor}.tif", root / "train" / f"{normal}.tif")
    Image.new("RGB", (96, 96)).save(root / "test" / f"{pd.read_csv(root / 'sample_submission.csv')['id'].iloc[0]}.tif")
    args = ["explore", "-c", str(CONFIGS / "p4m.yaml"), "--data.root", str(root), *FEW]
    assert main([*args, "--output", str(place / "out")]) == 0
    return place / "out"


def test_the_page_has_every_picture_fetches_nothing_and_escapes(explored: Path) -> None:
    page = (explored / "explore.html").read_text()
    names = {path.stem for path in explored.glob("*.png")}
    assert names >= {"classes", "patches", "patches_normal", "patches_tumor", "augmented", "pixels", "brightness"}
    assert names >= {
        "slides",
        "tsne_class",
        "tsne_slide",
        "flagged_black",
        "flagged_copies",
        "flagged_copies_with_another_label",
    }
    assert page.count("data:image/png;base64,") == len(names)
    assert not re.search(r'(src|href)="(?!data:|#)', page)
    assert escape("<b>explored") in page
    assert "<b>explored" not in page
    assert "p4m_resnet16, random weights" in page
    assert re.search(r"120 patches in train, 40 patches in test\. \d slides\.", page)
    assert "<code>stain 0.1</code>" in page  # the augmentation is the config's


def test_flagged_patches_are_listed_with_their_part(explored: Path) -> None:
    flagged = pd.read_csv(explored / "flagged_patches.csv", keep_default_na=False)
    assert list(flagged.columns) == ["part", "id", "kind", "of"]
    black = flagged[flagged["kind"] == "black"]
    assert list(black["part"]) == ["test"]
    pair = flagged[flagged["kind"] == "copies with another label"]
    assert len(pair) == 2
    assert set(pair["of"]) == {pair["of"].iloc[0]} <= set(pair["id"])
    # Drawn ids are the SHA-1 of their pixels, and these two files were changed.
    assert len(flagged[flagged["kind"] == "ids that do not match"]) == 2


def test_a_folder_of_patches_alone(drawn: Path, tmp_path: Path) -> None:
    root = tmp_path / "only"
    shutil.copytree(drawn / "test", root / "test")
    assert main(["explore", "--data.root", str(root), "--points=5"]) == 0
    page = Path("explore/explore.html").read_text()
    assert "unlabeled" in page
    assert "t-SNE" not in page  # of five patches
    assert not Path("explore/patches_tumor.png").exists()
    assert not Path("lightning_logs").exists()


def test_a_runs_network_data_and_augmentation(run_copy: Path, drawn: Path) -> None:
    checkpoint = run_copy / "checkpoints" / "best.ckpt"
    assert main(["explore", "--ckpt_path", str(checkpoint), *FEW, "--output", "mine"]) == 0
    page = Path("mine/explore.html").read_text()
    assert str(checkpoint) in page
    assert str(drawn) in page
    assert "<code>degrees 90.0</code>" in page


def test_without_data_the_demo_data_is_explored(drawn: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(drawn, demo_folder())  # as if it had been drawn already
    assert main(["explore", "-c", str(CONFIGS / "base.yaml"), *FEW]) == 0
    message = capsys.readouterr().err
    assert "NO DATA" in message
    assert "batch size" not in message  # of a training that is not asked for
    page = Path("explore/explore.html").read_text()
    assert "Synthetic tissue" in page
    assert "fit -c configs/base.yaml</code>" in page  # a demo run again
    assert "resnet18, random weights" in message  # ImageNet's cannot be fetched


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--data.root", "nowhere"], "nowhere: no such folder"),
        (["--data.root", "DRAWN", "--output", "taken/explore"], "--output taken/explore: cannot be created or written"),
        (["--data.root", "DRAWN", "--ckpt_path", "gone.ckpt"], "gone.ckpt: no such checkpoint"),
        (["--data.root", "DRAWN", "--model.weights", "gone.pth"], "gone.pth"),
        (["--data.root", "DRAWN", "--points", "0"], "points"),
    ],
)
def test_what_is_wrong_is_one_line(
    args: list[str], message: str, drawn: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("taken").touch()
    assert main(["explore", *(str(drawn) if one == "DRAWN" else one for one in args)]) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert message in last
    assert not Path("explore/explore.html").exists()


def test_noise_is_a_folder_too(kaggle: MakeFolder) -> None:
    root = kaggle()
    assert main(["explore", "--data.root", str(root), *FEW]) == 0
    assert (Path("explore") / "tsne_class.png").is_file()
