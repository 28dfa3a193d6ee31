"""Convert a synthetic folder in Kaggle's layout to class folders, or to one CSV of patches."""

from pathlib import Path

import pandas as pd

_CSVS = ("train_labels.csv", "answers.csv", "sample_submission.csv", "patch_id_wsi_full.csv")


def as_class_folders(folder: Path) -> None:
    """Move images into one folder per class, and remove the CSVs."""
    for part, labels in _labels(folder):
        for patch_id, label in zip(labels["id"], labels["label"], strict=True):
            target = folder / part / str(label)
            target.mkdir(exist_ok=True)
            (folder / part / f"{patch_id}.tif").rename(target / f"{patch_id}.tif")
    _remove_csvs(folder)


def as_table(folder: Path) -> None:
    """Move images into images/, and replace the CSVs by patches.csv: path, label, slide and split."""
    slides = pd.read_csv(folder / "patch_id_wsi_full.csv", dtype=str).set_index("id")["wsi"]
    tables = []
    (folder / "images").mkdir()
    for part, labels in _labels(folder):
        for patch_id in labels["id"]:
            (folder / part / f"{patch_id}.tif").rename(folder / "images" / f"{patch_id}.tif")
        (folder / part).rmdir()
        # Kaggle's files do not name the slides of test.
        slide = labels["id"].map(slides).fillna(f"{part}_slides")
        tables.append(labels.assign(path="images/" + labels["id"] + ".tif", slide=slide, split=part))
    table = pd.concat(tables)[["path", "label", "slide", "split"]]
    _remove_csvs(folder)
    table.to_csv(folder / "patches.csv", index=False, lineterminator="\n")


def _labels(folder: Path) -> list[tuple[str, pd.DataFrame]]:
    """Return the ids and labels of each existing split."""
    files = (("train", folder / "train_labels.csv"), ("test", folder / "answers.csv"))
    return [(part, pd.read_csv(file, dtype={"id": str})) for part, file in files if file.is_file()]


def _remove_csvs(folder: Path) -> None:
    for name in _CSVS:
        (folder / name).unlink(missing_ok=True)
