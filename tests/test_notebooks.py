"""The notebooks run from top to bottom on drawn tissue, and are committed without outputs."""

import shutil
from pathlib import Path
from typing import Any

import nbformat
import pytest
from conftest import CONFIGS
from nbclient import NotebookClient

read: Any = nbformat.read  # it ships no types of its own
NOTEBOOKS = sorted((CONFIGS.parent / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_is_committed_without_outputs(path: Path) -> None:
    cells = [cell for cell in read(path, as_version=4).cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in cells)


def test_they_tell_the_story_from_the_data_to_the_submission(drawn: Path, tmp_path: Path) -> None:
    shutil.copytree(CONFIGS.parent / "notebooks", tmp_path / "notebooks")
    shutil.copytree(CONFIGS, tmp_path / "configs")
    shutil.copytree(drawn, tmp_path / "data")
    for path in NOTEBOOKS:
        notebook = read(path, as_version=4)
        NotebookClient(notebook, resources={"metadata": {"path": str(tmp_path / "notebooks")}}).execute()
        pictures = [
            output
            for cell in notebook.cells
            if cell.cell_type == "code"
            for output in cell.outputs
            if "image/png" in output.get("data", {})
        ]
        assert len(pictures) >= 5
    assert len(list(tmp_path.glob("lightning_logs/debug/version_0/submission.csv"))) == 1
