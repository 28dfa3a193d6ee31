"""A folder of patches alone, which can be predicted."""

from pathlib import Path

import pandas as pd

from pcam_lightning.data.csv_tables import HOW_TO_GET
from pcam_lightning.data.image_files import ImageFolder
from pcam_lightning.data.kaggle import read_test_part
from pcam_lightning.utils.errors import UserError


class PatchFolder(ImageFolder):
    """Images anywhere below a folder, all of them to be predicted.

    Args:
        root: the folder.
    """

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
        return read_test_part(self.root, ".", self.find_images("."), answers=answers)
