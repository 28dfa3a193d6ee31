"""Makes what `test_upgrade.py` reads: a checkpoint, packed images and predictions of this version, 1.6 MB.

    python tests/faults/make_old.py

Run once, at a tagged version; what it writes is committed and never made anew.
"""

import os
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd
import torch

from pcam_lightning import __version__
from pcam_lightning.cli.main import main
from pcam_lightning.synthetic.kaggle_folder import synthesize

OLD = Path(__file__).parent / "old"
TIME = 1_700_000_000_000_000_000  # ns: when all image files were last changed
CPU = "--trainer.accelerator=cpu"


def make(place: Path, folder: Path) -> None:
    """Train a small network on drawn tissue, pack six patches, and predict them."""
    os.chdir(place)
    synthesize(Path("data"), train=120, test=6, slides=8, seed=1)
    (place / "data" / "sample_submission.csv").unlink()
    files = sorted(Path("data/test").iterdir())
    for path in files:
        os.utime(path, ns=(TIME, TIME))
    # Without momentum the optimizer keeps nothing, and the checkpoint is small.
    flags = ["--model.backbone=p4m_resnet16", "--model.weights=none", "--data.batch_size=32", "--trainer.max_epochs=2"]
    flags += ["--model.optimizer=sgd", "--model.momentum=0", "--model.lr=0.05", "--trainer.logger=false", CPU]
    assert main(["fit", *flags]) == 0
    state = torch.load("lightning_logs/default/version_0/checkpoints/last.ckpt", weights_only=True)
    # Where it was made is nobody's business.
    state["pcam"]["config"]["data"]["root"] = state["pcam"]["data"]["root"] = "/data"
    torch.save(state, "last.ckpt")
    predict = ["predict", "--ckpt_path=last.ckpt", "--data.root=data", "--output=told", "--trainer.precision=32-true"]
    assert main([*predict, CPU]) == 0
    folder.mkdir(parents=True)
    shutil.copy("last.ckpt", folder)
    shutil.copy("told/predictions.csv", folder)
    for packed in Path("data/.pcam_cache").glob("test-*"):
        shutil.copytree(packed, folder / "cache" / packed.name)
    # The images themselves are not kept: a pack goes by their names, sizes and times.
    sizes = pd.DataFrame({"name": [path.name for path in files], "size": [path.stat().st_size for path in files]})
    sizes.to_csv(folder / "files.csv", index=False)


if __name__ == "__main__":
    with TemporaryDirectory() as scratch:
        make(Path(scratch), OLD / __version__)
