"""Camelyon17-WILDS: metadata.csv and patches/, with its own split by center."""

from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from pcam_lightning.data.csv_tables import read_text
from pcam_lightning.data.image_files import ImageFolder
from pcam_lightning.data.table_file import TableFile
from pcam_lightning.utils.errors import UserError, rank_zero_info

_COLUMNS = ("patient", "node", "x_coord", "y_coord", "tumor", "slide", "center", "split")
_VAL_CENTER, _TEST_CENTER = 1, 2  # of WILDS (Koh et al. 2021): other hospitals than those of training
_HELD_OUT = 1  # its `split` of patches of the training hospitals: in-distribution validation


class Wilds(TableFile):
    """The unpacked archive of Camelyon17-WILDS: metadata.csv, from which the paths of the patches follow.

    Hospitals 0, 3 and 4 train, 1 validates and 2 is the test part, as WILDS defines it. Its in-distribution validation
    patches, of the training hospitals, are left out.

    Args:
        root: the folder of metadata.csv.
    """

    def __init__(self, root: Path) -> None:
        ImageFolder.__init__(self, root)
        self.file = root / "metadata.csv"
        self.own_split = "WILDS's split: center 1 validates"
        self._knows_slides, self._labeled, self._parts = True, True, ["train", "test"]

    @classmethod
    def detect(cls, root: Path) -> bool:
        """Return whether a folder has this layout."""
        return (root / "metadata.csv").is_file() and (root / "patches").is_dir()

    @cached_property
    def _rows(self) -> pd.DataFrame:
        """The patches that train, validate or test."""
        table = self.read_all()
        if left_out := int((table["part"] == "id_val").sum()):
            rank_zero_info(f"{self.root}: {left_out:,} patches of in-distribution validation are left out.")
        return table[table["part"] != "id_val"].rename(columns={"part": "split"})

    def read_all(self) -> pd.DataFrame:
        """Read metadata.csv, whether the files are there or not.

        Returns:
            One row a patch in the order of the file: id, label, path, slide, patient, node, center, and part, which is
            train, id_val, val or test as WILDS calls them.

        Raises:
            UserError: it is malformed; the message names the row.
        """
        path = self.file
        frame = read_text(path)
        if missing := [name for name in _COLUMNS if name not in frame]:
            raise UserError(f"{path}: no column {' nor '.join(missing)}, which that of Camelyon17-WILDS has.")
        if frame.empty:
            raise UserError(f"{path}: no rows below the header; no patches at all.")
        for name, allowed in (
            ("tumor", r"[01]"), ("split", r"\d+"), ("center", r"\d+"), ("patient", r"\d+"), ("node", r"\d+"),
            ("x_coord", r"\d+"), ("y_coord", r"\d+"), ("slide", r".+"),
        ):  # fmt: skip
            wrong = np.flatnonzero(~frame[name].str.fullmatch(allowed))
            if len(wrong):
                raise UserError(
                    f"{path}, row {frame.index[wrong[0]]}: {name} {frame[name].iloc[wrong[0]]!r} is not valid."
                )
        patient = frame["patient"].str.zfill(3)
        folder = "patient_" + patient + "_node_" + frame["node"]
        patch_id = folder + "_x_" + frame["x_coord"] + "_y_" + frame["y_coord"]
        if patch_id.duplicated().any():
            raise UserError(f"{path}, row {frame.index[patch_id.duplicated()][0]}: a patch that is listed twice.")
        center = frame["center"].astype(int)
        part = np.where(frame["split"].astype(int) == _HELD_OUT, "id_val", "train")
        part = np.select([center == _VAL_CENTER, center == _TEST_CENTER], ["val", "test"], part)
        return pd.DataFrame(
            {
                "id": patch_id,
                "label": frame["tumor"].astype("int8"),
                "path": "patches/" + folder + "/patch_" + patch_id + ".png",
                "slide": frame["slide"],
                "patient": patient,
                "node": patient + "_" + frame["node"],
                "center": frame["center"],
                "part": part,
            }
        )
