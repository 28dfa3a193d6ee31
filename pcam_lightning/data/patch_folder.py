"""A folder of patches alone, which can be predicted."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

import pandas as pd

from pcam_lightning.data.csv_tables import HOW_TO_GET
from pcam_lightning.data.image_files import FileChunk, cut_files
from pcam_lightning.data.kaggle import read_test_part
from pcam_lightning.utils.errors import UserError


class PatchFolder:
    """Images anywhere below a folder, all of them to be predicted.

    Args:
        root: the folder.
    """

    own_split: ClassVar[str | None] = None

    def __init__(self, root: Path) -> None:
        self.root = root

    @classmethod
    def detect(cls, root: Path) -> bool:
        """Return true: any folder that has no other layout is one of patches."""
        return True

    def parts(self) -> list[str]:
        """Return test."""
        return ["test"]

    def knows_slides(self) -> bool:
        """Return false: nothing is known of them."""
        return False

    def read_train(self, slides: Path | None = None, unknown_slides: str = "error") -> pd.DataFrame:
        """Raise an error: there are no labels."""
        raise UserError(f"{self.root / 'train'}: no such folder; {HOW_TO_GET}.")

    def read_test(self, *, answers: bool = False) -> pd.DataFrame:
        """Read the patches to predict, see `read_test_part`."""
        return read_test_part(self.root, ".", answers=answers)

    def scratch_patches(self, table: pd.DataFrame) -> int:
        """Return the number of patches that are unpacked to disk while the table is packed: none."""
        return 0

    @contextmanager
    def open(self, table: pd.DataFrame, scratch: Path) -> Iterator[list[FileChunk]]:
        """Cut the table into chunks to read."""
        yield list(cut_files(self.root, table))
