"""Shared by the benchmarks: machine, time and memory of commands, and printed results."""

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from pcam_lightning.utils.atomic_io import atomic_write

QUICK = 0.05  # seconds between two reads of the kernel counters, about 30 microseconds per process
THOROUGH = 0.2  # minimum seconds between two reads of the page tables, whose time grows with memory


def cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def machine() -> dict[str, str]:
    """Return hardware and versions."""
    import torch

    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    message = {
        "processor": names[0] if names else platform.processor() or platform.machine(),
        "cores": str(cores()),
        "memory": f"{psutil.virtual_memory().total / 1e9:.0f} GB",
        "platform": platform.platform(),
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in ("torch", "lightning")},
    }
    return message | ({"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {})


@dataclass(frozen=True)
class Watched:
    """The result of a command.

    Attributes:
        seconds: wall time.
        peak_anonymous: peak bytes of the process tree without files in the page cache; shared memory counts once.
        peak_pss: the same including mapped file pages.
        output: stdout and stderr.
    """

    seconds: float
    peak_anonymous: int
    peak_pss: int
    output: str


def watch(command: Sequence[str], cwd: Path | None = None, env: Mapping[str, str] | None = None) -> Watched:
    """Run a command and record the memory of its process tree.

    Args:
        command: program and arguments.
        cwd: working folder; by default, the current one.
        env: additional environment variables.

    Raises:
        SystemExit: the command failed; the message contains its last lines.
    """
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as message:
        begun = time.perf_counter()
        with subprocess.Popen(
            command, cwd=cwd, env={**os.environ, **(env or {})}, stdout=message, stderr=subprocess.STDOUT
        ) as process:
            memory = _Memory(process.pid)
            memory.start()
            process.wait()
            seconds = time.perf_counter() - begun
            memory.stop()
        message.seek(0)
        text = message.read()
    if process.returncode:
        last = "\n".join(text.splitlines()[-15:])
        raise SystemExit(f"{' '.join(command)}\nended with {process.returncode}:\n{last}")
    return Watched(seconds, memory.peak_anonymous, max(memory.peak_pss, memory.peak_anonymous), text)


class _Memory(threading.Thread):
    """Records the memory of a process tree.

    A thorough read counts each shared page once and finds new children, but walks all page tables. It is limited to 1 %
    of a core. Between two thorough reads, the counters of `status`, minus the last double count, catch fast growth.
    """

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.peak_anonymous = self.peak_pss = 0
        self._root = psutil.Process(pid)
        self._ended = threading.Event()

    def stop(self) -> None:
        self._ended.set()
        self.join()

    def run(self) -> None:
        tree: list[psutil.Process] = []
        twice = due = 0.0
        while not self._ended.wait(QUICK):
            quick = _quick(tree)
            if quick:
                self.peak_anonymous = max(self.peak_anonymous, int(quick - twice))
            if time.monotonic() < due:
                continue
            begun = time.thread_time()
            try:
                tree = [self._root, *self._root.children(recursive=True)]
            except psutil.Error:
                continue
            before = _quick(tree)
            anonymous, pss = map(sum, zip(*map(_thorough, tree), strict=True))
            twice = (before + _quick(tree)) / 2 - anonymous
            self.peak_anonymous = max(self.peak_anonymous, anonymous)
            self.peak_pss = max(self.peak_pss, pss)
            due = time.monotonic() + max(THOROUGH, 200 * (time.thread_time() - begun))


def _quick(tree: Iterable[psutil.Process]) -> int:
    """Return the anonymous bytes of processes, counting shared memory in each; 0 if unknown."""
    kilobytes = 0
    for process in tree:
        try:
            status = Path(f"/proc/{process.pid}/status").read_bytes()
        except OSError:  # it has ended, or this is not Linux
            continue
        for name in (b"RssAnon:", b"RssShmem:"):
            kilobytes += int(status.partition(name)[2].split(None, 1)[0]) if name in status else 0
    return kilobytes * 1024


def _thorough(process: psutil.Process) -> tuple[int, int]:
    """Return the anonymous bytes and the total bytes of a process, including its share of shared memory."""
    try:
        if sys.platform == "linux":
            lines = Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()[1:]
            kilobytes = {name.rstrip(":"): int(value) for name, value, _ in map(str.split, lines)}
            return (kilobytes["Pss_Anon"] + kilobytes["Pss_Shmem"]) * 1024, kilobytes["Pss"] * 1024
        memory = process.memory_full_info()
        return memory.uss, memory.rss
    except (OSError, psutil.Error):  # it has ended
        return 0, 0


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table with all columns except the first right-aligned."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def save(path: Path, results: Any) -> None:
    """Write results as JSON atomically."""
    atomic_write(path, json.dumps(results, indent=2) + "\n")
