"""pack_folder: the images of a data folder, packed ahead of the first fit and the first predict."""

from pathlib import Path
from typing import Literal

from pcam_lightning.data.datamodule import PCamDataModule
from pcam_lightning.data.packed_store import PackedStore
from pcam_lightning.data.sources import parts


def pack_folder(
    root: Path | str = Path("data"),
    cache_dir: Path | str | None = None,
    columns: dict[str, str] | None = None,
    resize: Literal["crop", "scale"] | None = None,
    mpp: float | None = None,
    verify: bool = False,
) -> dict[str, PackedStore]:
    """Pack the images of a data folder ahead of the first fit and the first predict.

    Args:
        root: data folder; one that has only test/ is packed too.
        cache_dir: folder for the packed images; by default .pcam_cache in the data folder.
        columns: of a CSV of patches: what its columns path, label, id, slide, patient, center and split are called,
            where that is none of the usual names.
        resize: take images of another size, or JPEG: crop cuts 96 x 96 pixels at the center, scale resamples the 93 um
            at the center to 96 x 96 pixels. Needs `mpp`.
        mpp: um per pixel of the images that are resized, such as 0.5 of a scan at 20x.
        verify: hash all packed pixels and image files, pack again where they differ, and stop where pixels are not what
            the ids say (Kaggle's ids are the SHA-1 of the pixels).

    Returns:
        The packed images of train and test, those of the two that the folder has.

    Raises:
        UserError: see `PCamDataModule.setup`.
    """
    data = PCamDataModule(
        root, val_fraction=0, cache_dir=cache_dir, columns=columns, resize=resize, mpp=mpp, verify=verify
    )
    stores = {}
    for part in parts(Path(root), columns):
        data.setup({"train": "fit", "test": "predict"}[part])
        stores[part] = data.train_store if part == "train" else data.test_store
    return stores
