"""A folder for each class below train/, val/ and test/, as torchvision's ImageFolder and Keras read them."""

from pathlib import Path

import pandas as pd

from pcam_lightning.data.image_files import JPEGS, PART_NAMES, SUFFIXES, ImageFolder, is_hidden, list_folder, subfolders
from pcam_lightning.utils.errors import UserError, rank_zero_info, rank_zero_warn, shorten

_CLASSES = {
    **dict.fromkeys(("0", "normal", "negative", "no_tumor", "non_tumor", "benign", "healthy", "non_cancer"), 0),
    **dict.fromkeys(("1", "tumor", "tumour", "positive", "metastasis", "malignant", "cancer"), 1),
}


class ClassFolders(ImageFolder):
    """Images below train/0 and train/1, or train/normal and train/tumor, perhaps val/ and test/ of the same form.

    The names of all folders count in any case, and `PART_NAMES` are those of the parts. A flat test/ is to be
    predicted.

    Args:
        root: the folder.
    """

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self._names = _part_folders(root)  # more than one of a part is an error of `_folder`
        self.own_split = f"the patches in {self._names['val'][0]}/" if self._names["val"] else None

    @classmethod
    def detect(cls, root: Path) -> bool:
        """Return whether train/ has a folder for each of two classes."""
        return any(set(class_folders(root / name).values()) == {0, 1} for name in _part_folders(root)["train"])

    def parts(self) -> list[str]:
        """Return train and, where it is there, test."""
        return ["train", *(["test"] if self._names["test"] else [])]

    def knows_slides(self) -> bool:
        """Return false: nothing names them."""
        return False

    def read_train(self, slides: Path | None = None, unknown_slides: str = "error") -> pd.DataFrame:
        """Read train/ and, where it is there, val/, which the column `val` marks.

        Raises:
            UserError: a folder belongs to no class, a part has two folders or no classes, two files have one id,
                or `slides` is given.
        """
        if slides is not None:
            raise UserError(f"`data.slides` {slides}: does not go with class folders, whose files have no ids.")
        others = [name for name in subfolders(self.root) if name.lower() not in PART_NAMES]
        if unused := [f"{name}/" for name in others if class_folders(self.root / name)]:
            rank_zero_warn(
                f"{self.root}: not used: {shorten(', '.join(unused))}; parts are called train, val and test."
            )
        table = self._read("train")
        if self.own_split:
            table = pd.concat([table.assign(val=False), self._read("val").assign(val=True)], ignore_index=True)
        return _with_ids(table)

    def read_test(self, *, answers: bool = False) -> pd.DataFrame:
        """Read test/, sorted by id: all images, or with `answers` those of its class folders and their labels.

        Raises:
            UserError: there is no test/, or it has no class folders and its labels are asked for.
        """
        folder = self._folder("test")
        classes = class_folders(self.root / folder)
        if answers:
            if not classes:
                raise UserError(
                    f"{self.root / folder}: scoring it needs its labels, as folders of the same names as in train/."
                )
            return _with_ids(self._read("test"), below=f"{folder}/")
        table = pd.DataFrame({"path": sorted(self.find_images(folder, unique=False).values())})
        if classes and (loose := self._loose_images(folder)):
            rank_zero_info(
                f"{self.root / folder}: {len(loose):,} images beside its class folders are predicted too; they have no "
                "label to score."
            )
        return _with_ids(table, below=f"{folder}/")

    def _folder(self, part: str) -> str:
        """Return what the folder of a part is called."""
        name, *others = self._names[part] or [part]
        if others:
            raise UserError(f"{self.root}: has {name}/ and {others[0]}/; keep the one that is its {part} part.")
        return name

    def _read(self, part: str) -> pd.DataFrame:
        """Return path and label of the images in the class folders of a part; a warning counts those beside them."""
        name = self._folder(part)
        folder, named = self.root / name, "these are named 0 or normal, and 1 or tumor."
        classes = class_folders(folder)
        if unknown := [one for one in subfolders(folder) if one not in classes]:
            raise UserError(f"{folder / unknown[0]}: not a class folder; {named}")
        if not classes:
            raise UserError(f"{folder}: no class folders in it; {named}")
        if loose := self._loose_images(name):
            rank_zero_warn(
                f"{folder}: {len(loose):,} images beside its class folders have no label and are not used, "
                f"{Path(loose[0]).name} first."
            )
        rows = [
            (path, label)
            for one, label in sorted(classes.items())
            for path in self.find_images(f"{name}/{one}", unique=False).values()
        ]
        return pd.DataFrame(rows, columns=["path", "label"]).astype({"label": "int8"})

    def _loose_images(self, folder: str) -> list[str]:
        """Return the paths of images right in a folder, JPEG ones included."""
        return sorted(
            path
            for path in list_folder(self.root, folder)
            if path.lower().endswith((*SUFFIXES, *JPEGS)) and not is_hidden(Path(path).name)
        )


def _part_folders(root: Path) -> dict[str, list[str]]:
    """Return the names of the folders of each part."""
    found: dict[str, list[str]] = {part: [] for part in PART_NAMES.values()}
    for name in subfolders(root):
        if name.lower() in PART_NAMES:
            found[PART_NAMES[name.lower()]].append(name)
    return found


def class_folders(folder: Path) -> dict[str, int]:
    """Return the label of each folder that is called after a class."""
    return {name: _CLASSES[name.lower()] for name in subfolders(folder) if name.lower() in _CLASSES}


def _with_ids(table: pd.DataFrame, below: str = "") -> pd.DataFrame:
    """Give each image an id, and sort by it: its path, since files in different folders may have one name.

    Args:
        table: with the column `path`.
        below: folder that ids leave out, with a slash at its end.
    """
    names = table["path"].str.removeprefix(below).str.rpartition(".")[0].str.replace("/", "_")
    if names.duplicated().any():
        first, second = table["path"][names == names[names.duplicated()].iloc[0]][:2]
        raise UserError(f"{first} and {second}: the ids of both would be the same; rename one of them.")
    return table.assign(id=names).sort_values("id", ignore_index=True)
