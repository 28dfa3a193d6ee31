"""pack_folder: the parts of a data folder, packed."""

from conftest import MakeFolder

from pcam_lightning.data.pack_folder import pack_folder


def test_the_parts_of_a_folder_are_packed(kaggle: MakeFolder) -> None:
    root = kaggle(train=6, test=3)
    packs = pack_folder(str(root))
    assert {part: len(store.ids) for part, store in packs.items()} == {"train": 6, "test": 3}
    assert list(pack_folder(root / "test")) == ["test"]
