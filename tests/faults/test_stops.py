"""Killed processes, full disks, and folders that change: nothing half-written is taken for whole, nothing good is lost.

`benchmarks/faults.py` does the same at random moments, many times, and on a disk that is full in truth.
"""

import hashlib
import re
import shutil
import signal
from pathlib import Path

import lightning as L
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import CONFIGS, FAST, MakeFolder, read_metrics, with_callback
from forked import MAIN, Forked, run_code
from PIL import Image

from pcam_lightning.cli.main import main
from pcam_lightning.data.packed_store import open_store
from pcam_lightning.data.sources import open_source, read_train

BASE = str(CONFIGS / "base.yaml")
RUN = Path("lightning_logs") / "base" / "version_0"
CPU = "--trainer.accelerator=cpu"

# A process that is killed at the n-th time that a file of a name is about to get it.
_KILLED = """
import os, signal, sys
from pathlib import Path
from pcam_lightning.cli.main import main

name, left = sys.argv[1], [int(sys.argv[2])]
replace = Path.replace

def dies(path, target):
    if Path(target).name == name:
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
    return replace(path, target)

Path.replace = dies
sys.exit(main(sys.argv[3:]))
"""

# A process that may write no more than so many bytes into a file: a quota.
_BOUNDED = """
import resource, sys
from pcam_lightning.cli.main import main

resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2)
sys.exit(main(sys.argv[2:]))
"""


def _fit(root: Path, *more: str) -> list[str]:
    return ["fit", "-c", BASE, "--data.root", str(root), "--trainer.max_epochs=3", *FAST, *more]


@pytest.fixture(scope="session")
def straight(drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a run that nothing has disturbed."""
    place = tmp_path_factory.mktemp("straight")
    assert main(_fit(drawn, f"--trainer.default_root_dir={place}")) == 0
    return place / RUN


@pytest.mark.process
@pytest.mark.parametrize(
    ("name", "times", "epochs"),
    [("metrics.csv", 2, 1), ("best.ckpt", 1, 0), ("last.ckpt", 1, None), ("config.yaml", 1, None)],
)
def test_killed_while_writing_and_resumed_equals_the_undisturbed_run(
    name: str, times: int, epochs: int | None, drawn: Path, straight: Path
) -> None:
    assert run_code(_KILLED, name, times, *_fit(drawn)).returncode == -signal.SIGKILL
    assert not (RUN / name).exists() or name == "metrics.csv"  # whole as it was, or not there
    last = RUN / "checkpoints" / "last.ckpt"
    if epochs is None:  # killed before there was anything to go on with
        assert not last.exists()
        assert main(["fit", "-c", BASE, "--ckpt_path=last"]) == 2
        assert main(_fit(drawn)) == 0
        assert read_metrics(RUN.with_name("version_1")).equals(read_metrics(straight))
        return
    state = torch.load(last, weights_only=True)
    assert len(state["callbacks"]["MetricsCSV"]["rows"]) == epochs
    assert main(["fit", "-c", BASE, "--ckpt_path=last"]) == 0
    pd.testing.assert_frame_equal(read_metrics(RUN), read_metrics(straight), check_exact=True)
    assert not list(RUN.rglob("*.tmp"))


def _hashes(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.process
def test_no_room_for_a_checkpoint(drawn: Path, straight: Path) -> None:
    shutil.copytree(straight, RUN)
    before = _hashes(RUN / "checkpoints")
    resume = ["fit", "-c", BASE, "--ckpt_path=last", "--trainer.max_epochs=4"]
    done = run_code(_BOUNDED, 500_000, *resume)
    assert done.returncode == 2, done.stderr
    last, error = done.stderr.splitlines()[-2:]
    assert error.startswith("error: ")
    assert error.endswith(".ckpt: File too large")
    command = f"python -m pcam_lightning fit -c {BASE} --trainer.max_epochs=4 --ckpt_path {RUN}/checkpoints/last.ckpt"
    assert last.endswith(f"is of the last whole epoch. Resume with: {command}")
    assert "Traceback" not in done.stderr
    assert _hashes(RUN / "checkpoints") == before
    assert main(resume) == 0  # with room it goes on
    assert list(read_metrics(RUN)["epoch"]) == [1, 2, 3, 4]


@pytest.mark.process
def test_no_room_for_packed_images(kaggle: MakeFolder) -> None:
    root = kaggle()
    done = run_code(_BOUNDED, 200_000, "pack", "--data.root", root)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith(f"error: {root / '.pcam_cache'}: packing failed (File too large)")
    assert not list(root.glob(".pcam_cache/train-*"))
    assert main(["pack", "--data.root", str(root)]) == 0


@pytest.mark.process
def test_no_room_for_a_submission(drawn: Path, small: Path) -> None:
    shutil.copytree(small, RUN)
    predict = ["predict", "--ckpt_path", str(RUN / "checkpoints" / "best.ckpt"), CPU]
    assert main(predict) == 0
    before = {name: (RUN / name).read_bytes() for name in ("submission.csv", "predictions.csv")}
    done = run_code(_BOUNDED, 500, *predict, "--overwrite", "--model.tta=d4", "--trainer.precision=32-true")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].endswith("predictions.csv: File too large")
    assert before == {name: (RUN / name).read_bytes() for name in before}
    assert not list(RUN.rglob("*.tmp"))


class Changes(L.Callback):
    """Changes a data folder when the first epoch begins, as another command may."""

    def __init__(self, root: str, how: str) -> None:
        self.root, self.how = Path(root), how

    def on_train_epoch_start(self, trainer: L.Trainer, *args: object) -> None:
        """Take the packed images away, or change a file and pack anew, as a second fit would."""
        if trainer.current_epoch:
            return
        if self.how == "cache gone":
            shutil.rmtree(self.root / ".pcam_cache")
            return
        path = sorted((self.root / "train").iterdir())[0]
        Image.fromarray(np.zeros((96, 96, 3), dtype=np.uint8)).save(path)
        if self.how == "packed anew":
            open_store(read_train(self.root), open_source(self.root), "train")


@pytest.mark.parametrize("how", ["cache gone", "file changed", "packed anew"])
def test_a_data_folder_that_changes_while_training(
    how: str, drawn: Path, straight: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "kaggle"
    shutil.copytree(drawn, root)
    assert main(_fit(root, with_callback("test_stops.Changes", root=str(root), how=how))) == 0
    assert read_metrics(RUN).equals(read_metrics(straight))
    capsys.readouterr()
    assert main(["fit", "-c", BASE, "--ckpt_path=last", "--trainer.max_epochs=4", "--trainer.callbacks=[]"]) == 0
    message = capsys.readouterr().err
    assert ("the image files have changed since this run began" in message) == (how != "cache gone")
    if how == "file changed":  # the pack that is there is of the older files
        assert "what is packed there is of other files, or of another version; packing again" in message


@pytest.mark.process
def test_two_at_once_on_one_folder(drawn: Path, straight: Path, tmp_path: Path) -> None:
    root = tmp_path / "kaggle"
    shutil.copytree(drawn, root, ignore=shutil.ignore_patterns(".pcam_cache"))
    for process in [Forked(MAIN, *_fit(root)) for _ in range(2)]:
        done = process.wait()
        assert done.returncode == 0, done.stderr
    assert [read_metrics(RUN.with_name(f"version_{n}")).equals(read_metrics(straight)) for n in range(2)] == [
        True,
        True,
    ]
    assert len(list(root.glob(".pcam_cache/train-*"))) == 1


def test_a_mid_epoch_checkpoint_predicts_but_does_not_resume(drawn: Path, capsys: pytest.CaptureFixture[str]) -> None:
    init = {"dirpath": "own", "every_n_train_steps": 2, "save_top_k": -1}
    saves = with_callback("lightning.pytorch.callbacks.ModelCheckpoint", **init)
    assert main(_fit(drawn, saves, "--trainer.max_epochs=1")) == 0
    within = str(min(Path("own").iterdir()))
    assert main(["predict", "--ckpt_path", within, CPU]) == 0
    capsys.readouterr()
    assert main(_fit(drawn, "--ckpt_path", within)) == 2
    assert re.search(r"error: own/.*step=2\.ckpt: .* saved it within an epoch, .*last\.ckpt", capsys.readouterr().err)
