"""Processes of their own that start at once: forked from a server that has imported the package and has no threads."""

import multiprocessing
import os
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SERVER = multiprocessing.get_context("forkserver")
# What takes seconds to import. None of it may start a thread.
SERVER.set_forkserver_preload(["pcam_lightning.cli.parser", "pcam_lightning.evaluation.evaluate", "timm"])
MAIN = "import sys; from pcam_lightning.cli.main import main; sys.exit(main(sys.argv[1:]))"
_started = 0


@dataclass(frozen=True)
class Done:
    """What a process has left: its exit status, negative of a signal, and what it printed."""

    returncode: int
    stdout: str
    stderr: str


class Forked:
    """Python code in a process of its own, in the current folder and in a session of its own.

    Args:
        code: runs as the module `__main__`.
        args: `sys.argv[1:]`.
        environment: variables besides those of this process.
    """

    def __init__(self, code: str, *args: object, environment: Mapping[str, str] | None = None) -> None:
        global _started
        _started += 1
        self._printed = [Path(f".{name}_{os.getpid()}_{_started}").absolute() for name in ("stdout", "stderr")]
        variables = {**os.environ, **(environment or {})}
        names = [str(path) for path in self._printed]
        self.process = SERVER.Process(target=_run, args=(code, [*map(str, args)], Path.cwd(), variables, names))
        self.process.start()

    def wait(self, timeout: float = 180) -> Done:
        """Wait for its end; a process that has none is killed, which fails the test."""
        self.process.join(timeout)
        if hangs := self.process.is_alive():
            self.process.kill()
            self.process.join()
        stdout, stderr = (path.read_text() for path in self._printed)
        for path in self._printed:
            path.unlink()
        assert not hangs, f"no end after {timeout} s: {stderr}"
        assert self.process.exitcode is not None
        return Done(self.process.exitcode, stdout, stderr)


def run_code(code: str, *args: object) -> Done:
    """Run code in a process of its own, see `Forked`, and wait for its end."""
    return Forked(code, *args).wait()


def run_two(code: str, *args: object) -> Done:
    """Run code in two processes that train or predict together, as torchrun starts them; return what the first left."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    same = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    same |= {"GROUP_RANK": "0", "TORCHELASTIC_RUN_ID": "none", "TORCHELASTIC_USE_AGENT_STORE": "False"}
    both = [Forked(code, *args, environment={**same, "RANK": rank, "LOCAL_RANK": rank}) for rank in ("0", "1")]
    first, second = (process.wait() for process in both)
    assert second.returncode == first.returncode, second.stderr
    return first


def _run(code: str, args: list[str], folder: Path, variables: dict[str, str], printed: list[str]) -> None:
    os.setsid()
    for number, name in enumerate(printed, 1):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(variables)
    sys.argv = ["-c", *args]
    scope: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(code, "<code>", "exec"), scope)
