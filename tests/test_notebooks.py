"""The notebooks run from top to bottom on drawn tissue, and are committed without outputs."""

import shutil
from pathlib import Path
from typing import Any

import nbformat
import pytest
from conftest import CONFIGS, NETWORK
from nbclient import NotebookClient

pytestmark = pytest.mark.process

read: Any = nbformat.read  # it ships no types of its own
NOTEBOOKS = sorted((CONFIGS.parent / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_is_committed_without_outputs(path: Path) -> None:
    cells = [cell for cell in read(path, as_version=4).cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in cells)


def test_they_run_one_after_the_other_in_one_kernel(drawn: Path, tmp_path: Path) -> None:
    """From the data to the submission; a kernel takes seconds to start and to import."""
    shutil.copytree(CONFIGS.parent / "notebooks", tmp_path / "notebooks")
    shutil.copytree(CONFIGS, tmp_path / "configs")
    debug = tmp_path / "configs" / "debug.yaml"
    debug.write_text(debug.read_text().replace("model:", f"model:\n  backbone: {NETWORK}"))  # seconds less
    shutil.copytree(drawn, tmp_path / "data")
    first, *others = [read(path, as_version=4) for path in NOTEBOOKS]
    cells = [len(first.cells), *(len(other.cells) for other in others)]
    for other in others:
        first.cells += other.cells
    NotebookClient(first, resources={"metadata": {"path": str(tmp_path / "notebooks")}}).execute()
    for count in cells:
        done, first.cells = first.cells[:count], first.cells[count:]
        outputs = [output for cell in done if cell.cell_type == "code" for output in cell.outputs]
        assert sum("image/png" in output.get("data", {}) for output in outputs) >= 5
    assert len(list(tmp_path.glob("lightning_logs/debug/version_0/submission.csv"))) == 1
