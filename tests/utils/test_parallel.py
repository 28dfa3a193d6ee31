"""The map on all cores: order, bounded memory, and processes that end."""

import os
import signal
import sys
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest
from conftest import MakeFolder
from forked import run_code
from joblib import cpu_count

from pcam_lightning.cli.main import main
from pcam_lightning.data import packing
from pcam_lightning.utils.errors import UserError
from pcam_lightning.utils.parallel import map_ahead, process_map

pytestmark = pytest.mark.process

several_cores = pytest.mark.skipif(cpu_count() < 2, reason="one core needs no worker processes")


@several_cores
def test_results_are_in_order_and_workers_import_neither_main_nor_torch() -> None:
    def look(first: int, second: int) -> tuple[int, int, bool]:
        main = sys.modules["__main__"]
        return first + second, os.getpid(), "torch" in sys.modules or "pytest" in str(getattr(main, "__file__", ""))

    with process_map(2, chunksize=3) as map_on_cores:
        found = list(map_on_cores(look, range(20), range(20)))
    assert [one[0] for one in found] == list(range(0, 40, 2))
    assert os.getpid() not in {one[1] for one in found}
    assert not any(one[2] for one in found)
    assert not any(map(psutil.pid_exists, {one[1] for one in found}))  # none is left


def test_one_task_runs_here() -> None:
    with process_map(1) as map_on_cores:
        assert list(map_on_cores(lambda task: os.getpid(), [0])) == [os.getpid()]


def test_no_more_tasks_are_begun_than_results_are_asked_for() -> None:
    begun: list[int] = []
    with ThreadPoolExecutor(1) as pool:
        results = map_ahead(pool, begun.append, range(100), 4)
        next(results)
        assert len(begun) <= 5


@several_cores
def test_a_process_that_is_killed_is_one_error(kaggle: MakeFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    with process_map(2) as map_on_cores, pytest.raises(UserError, match="a worker process was killed"):
        list(map_on_cores(os._exit, [9, 9]))
    root = kaggle()
    monkeypatch.setattr(packing, "PER_PROCESS", 1)
    monkeypatch.setattr(packing, "pack_chunk", lambda task: os.kill(os.getpid(), signal.SIGKILL))
    assert main(["pack", "--data.root", str(root)]) == 2
    assert not list((root / ".pcam_cache").glob("train-*"))


# What packs gets a signal for the whole process group, as from a terminal or `timeout`, or is killed.
_STOPPED = """
import os, signal, sys
from pathlib import Path
from pcam_lightning.data import packing
from pcam_lightning.data.packed_store import open_store
from pcam_lightning.data.sources import open_source, read_train
from pcam_lightning.utils.signals import catch_signals

packing.PER_PROCESS, number = 1, int(sys.argv[2])
parent = os.getpid()

def stop(task):
    print(os.getpid(), flush=True)
    os.kill(parent, number) if number == signal.SIGKILL else os.killpg(os.getpgid(0), number)
    return [], []

packing.pack_chunk = stop
root = Path(sys.argv[1])
with catch_signals() as received:
    try:
        open_store(read_train(root), open_source(root), "train")
    except KeyboardInterrupt:
        sys.exit(128 + received[0])
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_workers_end_with_their_parent(number: signal.Signals, kaggle: MakeFolder) -> None:
    root = kaggle()
    done = run_code(_STOPPED, root, int(number))
    workers = [psutil.Process(int(pid)) for pid in done.stdout.split() if psutil.pid_exists(int(pid))]
    assert not psutil.wait_procs(workers, timeout=60)[1]
    if number == signal.SIGKILL:
        assert done.returncode == -number
        return
    assert done.returncode == 128 + number, done.stderr
    assert "Traceback" not in done.stderr
    assert not list((root / ".pcam_cache").glob("train-*"))
