"""Nothing is forked from a process with threads, and no script runs twice: whatever starts worker processes ends."""

import multiprocessing
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import MakeFolder

from pcam_lightning.data import packing
from pcam_lightning.data.datamodule import PCamDataModule

pytestmark = pytest.mark.process

# A script without a `__main__` guard.
_SCRIPT = """
import faulthandler, multiprocessing, os, sys, traceback
from pathlib import Path
faulthandler.dump_traceback_later(240, exit=True)
with open("ran", "a") as file:
    file.write("once ")
multiprocessing.set_start_method(sys.argv[1])
from pcam_lightning.data import packing
from pcam_lightning.data.packed_store import open_store
from pcam_lightning.data.sources import open_source, read_train
from pcam_lightning.synthetic import kaggle_folder

os.register_at_fork(before=lambda: (traceback.print_stack(), os._exit(3)))
kaggle_folder.PER_PROCESS = packing.PER_PROCESS = 1
root = Path("drawn")
kaggle_folder.synthesize(root, train=12, test=0, slides=4)
print(len(open_store(read_train(root), open_source(root), "train").ids))
"""

# A session that is garbage: a forked process, which has none of its threads, waits forever when it collects it.
_SESSION = """
import onnx, onnxruntime, torch
from onnx.helper import make_graph, make_model, make_node, make_opsetid, make_tensor_value_info
from pcam_lightning.data.datamodule import PCamDataModule

inputs, outputs = (make_tensor_value_info(name, onnx.TensorProto.FLOAT, [4]) for name in "xy")
graph = make_graph([make_node("Neg", ["x"], ["y"])], "graph", [inputs], [outputs])
model = make_model(graph, opset_imports=[make_opsetid("", 17)], ir_version=8)
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 2
cycle = [onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])]
cycle.append(cycle)
del cycle
torch.ones(512, 512) @ torch.ones(512, 512)
"""

_LOADER = """
data = PCamDataModule(root, batch_size=4, num_workers=2)
data.setup("fit")
print(sum(len(batch["image"]) for batch in data.train_dataloader()))
"""


def _run(script: str, method: str) -> list[str]:
    Path("script.py").write_text(script)
    command = [sys.executable, "script.py", method]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert Path("ran").read_text() == "once "
    return done.stdout.split()


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_a_script_without_a_guard_draws_and_packs(method: str) -> None:
    assert _run(_SCRIPT, method) == ["12"]


def test_a_process_with_threads_draws_packs_and_loads() -> None:
    assert _run(_SESSION + _SCRIPT + _LOADER, "fork") == ["12", "12"]  # 10 patches train, in batches of 4


def _load(root: Path) -> int:
    pytest.MonkeyPatch().setattr(packing, "PER_PROCESS", 1)
    data = PCamDataModule(root, batch_size=4, num_workers=2)
    data.setup("predict")
    return sum(len(batch["image"]) for batch in data.predict_dataloader())


def test_packing_and_loading_within_a_pool(kaggle: MakeFolder) -> None:
    with multiprocessing.get_context("spawn").Pool(1) as pool:  # its processes are daemons, which may start none
        assert pool.apply(_load, [kaggle()]) == 4
