"""Again and again in one process: memory and open files stay as they are. `benchmarks/faults.py` does it longer."""

import gc
import shutil
import sys
from pathlib import Path

import psutil
import pytest

from pcam_lightning.cli.main import main
from pcam_lightning.data.packed_store import open_store
from pcam_lightning.data.sources import open_source, read_train
from pcam_lightning.models.classifier import PCamClassifier

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="open files are counted as POSIX has them")
SLACK = 30 << 20  # bytes that may be taken for good by whatever is loaded late


def _taken() -> tuple[int, int]:
    gc.collect()
    process = psutil.Process()
    return process.num_fds(), process.memory_info().rss


def test_stores_that_are_opened_are_closed(drawn: Path) -> None:
    def read() -> None:
        table = read_train(drawn)
        assert open_store(table, open_source(drawn), "train").images.sum() > 0

    read()
    files, memory = _taken()
    for _ in range(30):
        read()
    after = _taken()
    assert after[0] == files
    assert after[1] - memory < SLACK


def test_the_network_of_an_earlier_command_is_given_up(small: Path, tmp_path: Path) -> None:
    shutil.copy(small / "checkpoints" / "best.ckpt", tmp_path)
    command = ["validate", "--ckpt_path", str(tmp_path / "best.ckpt"), "--trainer.accelerator=cpu"]
    gc.collect()
    gc.disable()  # which may look for it only after many commands
    try:
        for _ in range(3):
            assert main(command) == 0
        assert sum(type(one) is PCamClassifier for one in gc.get_objects()) == 1
    finally:
        gc.enable()


@pytest.mark.parametrize("stage", ["predict", "validate"])
def test_stages_leave_nothing_behind(stage: str, small: Path, tmp_path: Path) -> None:
    checkpoint = tmp_path / "best.ckpt"
    checkpoint.write_bytes((small / "checkpoints" / "best.ckpt").read_bytes())
    command = [
        stage,
        "--ckpt_path",
        str(checkpoint),
        "--trainer.accelerator=cpu",
        "--trainer.enable_progress_bar=false",
    ]
    for _ in range(2):
        assert main(command) == 0
    files, memory = _taken()
    for _ in range(4):
        assert main(command) == 0
    after = _taken()
    assert after[0] == files
    assert after[1] - memory < SLACK
