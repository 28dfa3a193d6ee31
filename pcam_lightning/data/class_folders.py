"""A folder for each class below train/, val/ and test/, as torchvision's ImageFolder and Keras read them."""

from pathlib import Path

import pandas as pd

from pcam_lightning.data.image_files import ImageFolder, is_hidden
from pcam_lightning.utils.errors import UserError

_CLASSES = {
    **dict.fromkeys(("0", "normal", "negative", "no_tumor", "non_tumor", "benign", "healthy", "non_cancer"), 0),
    **dict.fromkeys(("1", "tumor", "tumour", "positive", "metastasis", "malignant", "cancer"), 1),
}
_VAL = ("val", "valid", "validation")


class ClassFolders(ImageFolder):
    """Images below train/0 and train/1, or train/normal and train/tumor, perhaps val/ and test/ of the same form.

    Args:
        root: the folder.
    """

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self._vals = [name for name in _VAL if (root / name).is_dir()]  # more than one is an error of `read_train`
        self.own_split = f"the patches in {self._vals[0]}/" if self._vals else None

    @classmethod
    def detect(cls, root: Path) -> bool:
        """Return whether train/ has a folder for each of two classes."""
        return set(class_folders(root / "train").values()) == {0, 1}

    def parts(self) -> list[str]:
        """Return train and, where it is there, test."""
        return ["train", *(["test"] if (self.root / "test").is_dir() else [])]

    def knows_slides(self) -> bool:
        """Return false: nothing names them."""
        return False

    def read_train(self, slides: Path | None = None, unknown_slides: str = "error") -> pd.DataFrame:
        """Read train/ and, where it is there, val/, which the column `val` marks.

        Raises:
            UserError: a folder is of no class, there are two validation parts, two files have one id, or `slides` is
                given.
        """
        if len(self._vals) > 1:
            raise UserError(f"{self.root}: has {self._vals[0]}/ and {self._vals[1]}/; keep the one that validates.")
        if slides is not None:
            raise UserError(f"`data.slides` {slides}: does not go with class folders, whose files have no ids.")
        table = self._read("train")
        if self._vals:
            table = pd.concat([table.assign(val=False), self._read(self._vals[0]).assign(val=True)], ignore_index=True)
        return _with_ids(table)

    def read_test(self, *, answers: bool = False) -> pd.DataFrame:
        """Read test/, sorted by id; its labels are those of its class folders.

        Raises:
            UserError: there is no test/, or it has no class folders and its labels are asked for.
        """
        folder = self.root / "test"
        if class_folders(folder):
            table = _with_ids(self._read("test"))
            return table if answers else table.drop(columns="label")
        if answers:
            raise UserError(f"{folder}: scoring it needs its labels, as folders of the same names as in train/.")
        return _with_ids(pd.DataFrame({"path": sorted(self.find_images("test").values())}))

    def _read(self, part: str) -> pd.DataFrame:
        """Return path and label of the images of a part."""
        classes = class_folders(self.root / part)
        others = sorted(path.name for path in (self.root / part).iterdir() if path.is_dir())
        if unknown := [name for name in others if name not in classes and not is_hidden(name)]:
            raise UserError(
                f"{self.root / part / unknown[0]}: not a class folder; these are named 0 or normal, and 1 or tumor."
            )
        rows = [
            (path, label)
            for name, label in sorted(classes.items())
            for path in self.find_images(f"{part}/{name}", unique=False).values()
        ]
        return pd.DataFrame(rows, columns=["path", "label"]).astype({"label": "int8"})


def class_folders(folder: Path) -> dict[str, int]:
    """Return the label of each folder that is called after a class."""
    if not folder.is_dir():
        return {}
    return {
        path.name: _CLASSES[path.name.lower()]
        for path in folder.iterdir()
        if path.name.lower() in _CLASSES and path.is_dir()
    }


def _with_ids(table: pd.DataFrame) -> pd.DataFrame:
    """Give each image an id, and sort by it: its path, since files in different folders may have one name.

    Those of test/ leave out the part, which the user knows.
    """
    names = table["path"].str.removeprefix("test/").str.rpartition(".")[0].str.replace("/", "_")
    if names.duplicated().any():
        first, second = table["path"][names == names[names.duplicated()].iloc[0]][:2]
        raise UserError(f"{first} and {second}: the ids of both would be the same; rename one of them.")
    return table.assign(id=names).sort_values("id", ignore_index=True)
