"""A second name for a file: whole, and a copy where there are no links."""

from pathlib import Path

import pytest

from pcam_lightning.utils.atomic_io import atomic_link


@pytest.mark.parametrize("links", [True, False])
def test_second_name_replaces_what_stood_there(links: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError("no links here")

    if not links:
        monkeypatch.setattr(Path, "hardlink_to", refuse)
    folder = tmp_path / "work"
    source, second = folder / "best", folder / "last"
    source.write_text("new")
    second.write_text("old")
    atomic_link(source, second)
    assert second.read_text() == "new"
    assert second.samefile(source) == links
    assert sorted(path.name for path in folder.iterdir()) == ["best", "last"]


def test_without_a_source_the_old_file_stays(tmp_path: Path) -> None:
    folder = tmp_path / "work"
    (folder / "last").write_text("old")
    with pytest.raises(FileNotFoundError):
        atomic_link(folder / "best", folder / "last")
    assert [path.read_text() for path in folder.iterdir()] == ["old"]
