"""What the benchmarks share: the machine, a command's seconds and memory, and how results are printed."""

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

QUICK = 0.05  # seconds between two looks at the kernel's counters, some 30 microseconds a process
THOROUGH = 0.2  # seconds, at least, between two looks at the page tables, which take longer the more there is


def cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def machine() -> dict[str, str]:
    """Tell hardware and versions."""
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
    """A command that has ended.

    Attributes:
        seconds: from its start to its end.
        peak_anonymous: most bytes that it and its children held at a time, files in the page cache aside; what
            processes share counts once.
        peak_pss: the same with the mapped pages of files.
        output: what it wrote on stdout and stderr.
    """

    seconds: float
    peak_anonymous: int
    peak_pss: int
    output: str


def watch(command: Sequence[str], cwd: Path | None = None, env: Mapping[str, str] | None = None) -> Watched:
    """Run a command to its end and watch the memory of its whole process tree.

    Args:
        command: program and arguments.
        cwd: folder to run it in; by default this one.
        env: variables to set beside those of this process.

    Raises:
        SystemExit: it failed; its last lines are shown.
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
    """Follows the memory of a process tree.

    A thorough look counts each shared page once and finds new children, but walks all page tables: it is taken as
    often as 1 % of a core allows. Between two of them the counters of `status`, less what they counted twice at
    the last thorough look, catch what grows quickly.
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
    """Return the anonymous bytes of some processes, what they share counted in each; 0 where that is not known."""
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
    """Return a process's own anonymous bytes and all its bytes, its share of what is shared included."""
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
    """Lay out a Markdown table, all columns but the first to the right."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def save(path: Path, results: Any) -> None:
    """Write results as JSON, whole or not at all."""
    atomic_write(path, json.dumps(results, indent=2) + "\n")
