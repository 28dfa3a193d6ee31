"""Kaggle's folder: train/, train_labels.csv, test/ and sample_submission.csv."""

from pathlib import Path

import pandas as pd

from pcam_lightning.data.csv_tables import check_none_missing, read_csv, read_labels, read_text, without_suffix
from pcam_lightning.data.image_files import ImageFolder
from pcam_lightning.data.slide_map import UNKNOWN_SLIDE, find_slides, read_slides
from pcam_lightning.utils.errors import UserError, rank_zero_info, rank_zero_warn, shorten

MARKS = "train_labels.csv", "train", "test"  # one of these makes a folder one of Kaggle's


class KaggleFolder(ImageFolder):
    """A folder as Kaggle's zip file makes it, with images anywhere below train/ and test/.

    Args:
        root: the folder.
    """

    @classmethod
    def detect(cls, root: Path) -> bool:
        """Return whether a folder has this layout."""
        return (root / MARKS[0]).is_file() or any((root / name).is_dir() for name in MARKS[1:])

    def parts(self) -> list[str]:
        """Return which of train and test there are."""
        if (self.root / "train_labels.csv").is_file() and not (self.root / "train").is_dir():
            rank_zero_warn(f"{self.root}: has a train_labels.csv and no train/; only its test part is used.")
        return [part for part in ("train", "test") if (self.root / part).is_dir()] or ["test"]

    def knows_slides(self) -> bool:
        """Return whether a map of slides lies in the folder."""
        return find_slides(self.root) is not None

    def read_train(self, slides: Path | None = None, unknown_slides: str = "error") -> pd.DataFrame:
        """Read the labeled patches.

        Args:
            slides: CSV with columns id and wsi, merged on id; where it is None, what `find_slides` finds.
            unknown_slides: what to do with ids that `slides` does not name: "error", or "as_one_slide", which takes
                them for patches of one more slide.

        Returns:
            One row a patch, sorted by id, with columns `id`, `label` (int8, 0 or 1), `path` (below `root`) and, where
            slides are known, `slide` (missing for ids that a file found in `root` does not name).

        Raises:
            UserError: something is missing or malformed; the message names the file and the row.
        """
        csv, folder = self.root / "train_labels.csv", self.root / "train"
        files = self.find_images("train")
        table = _join_files(read_labels(csv), files, csv, folder)
        if unused := [name for name in read_text(csv, rows=0) if name not in ("id", "label")]:
            rank_zero_info(
                f"{csv}: not used: {shorten(', '.join(map(str, unused)))}. A CSV of patches, as `data.root`, may name "
                "slide, patient, center, split and sample_weight."
            )
        if unlabeled := len(files) - len(table):
            rank_zero_warn(f"{folder}: {unlabeled:,} image files have no label in train_labels.csv; not used.")
        table = table.sort_values("id", ignore_index=True)
        if (named := slides or find_slides(self.root)) is not None:
            table["slide"] = _map_slides(table["id"], named, unknown_slides, required=slides is not None)
        return table

    def read_test(self, *, answers: bool = False) -> pd.DataFrame:
        """Read the patches to predict, see `read_test_part`."""
        return read_test_part(self.root, "test", self.find_images("test"), answers=answers)


def read_test_part(root: Path, part: str, files: dict[str, str], *, answers: bool) -> pd.DataFrame:
    """Read the patches to predict.

    Args:
        root: the data folder. Its `sample_submission.csv` gives ids and order where it is there; else the ids are
            sorted.
        part: folder of the images, "." for `root` itself.
        files: path by id of the images.
        answers: read labels from `answers.csv` too.

    Returns:
        One row a patch in the order of the submission, with columns `id`, `path` (below `root`) and, with
        `answers`, `label` (int8).

    Raises:
        UserError: something is missing or malformed; the message names the file and the row.
    """
    sample = root / "sample_submission.csv"
    if sample.is_file():
        # Kaggle wants its own ids back, with a suffix or without.
        table = _join_files(read_csv(sample, ("id",), keep_suffix=True)[["id"]], files, sample, root / part)
        if len(files) > len(table):
            rank_zero_warn(
                f"{root / part}: {len(files) - len(table):,} image files are not in {sample}; not predicted."
            )
    else:
        table = pd.DataFrame({"id": sorted(files)})
        table["path"] = table["id"].map(files)
    if answers:
        path = root / "answers.csv"
        if not path.is_file():
            raise UserError(f"{path}: no such file. Scoring test/ needs its labels there, as id,label.")
        truth = read_labels(path).set_index("id")["label"]
        label = without_suffix(table["id"]).map(truth)
        check_none_missing(table.loc[label.isna(), "id"], path, "have no label there")
        table["label"] = label.astype("int8")
        if table["label"].nunique() < 2:
            raise UserError(f"{path}: all labels are the same; AUROC needs patches of both classes.")
    return table


def _map_slides(ids: "pd.Series[str]", path: Path, unknown_slides: str, *, required: bool) -> "pd.Series[str]":
    """Return the slide of each id, as a file names it."""
    slide = ids.map(read_slides(path))
    unknown = ids[slide.isna()]
    if unknown.empty:
        return slide
    message = f"{path}: {len(unknown):,} of {len(ids):,} training ids have no slide there, {unknown.iloc[0]} first"
    if required and unknown_slides == "error":
        raise UserError(
            f"{message}; complete the file, or let `data.unknown_slides` as_one_slide take them for one slide."
        )
    rank_zero_warn(f"{message}.")
    return slide.fillna(UNKNOWN_SLIDE) if required else slide


def _join_files(rows: pd.DataFrame, files: dict[str, str], csv: Path, folder: Path) -> pd.DataFrame:
    path = rows["id"].map(files)
    if path.isna().any():
        path = path.where(path.notna(), without_suffix(rows["id"]).map(files))
    table = rows.assign(path=path)
    check_none_missing(table.loc[table["path"].isna(), "id"], csv, f"have no image file in {folder}")
    return table.reset_index(drop=True)
