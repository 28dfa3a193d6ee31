"""Load test of `serve`: memory, written files and tracebacks during many concurrent uploads.

    python benchmarks/serve.py [FOLDER] [--minutes 10]

Serves FOLDER, written by `export` (by default, pcam-small is exported first), in a separate process. Sends rounds of
200 uploads, 20 at once, for the given time. The files have about 75 valid and invalid kinds, taken from the tests.
Every tenth request asks for Grad-CAM. Prints the number of uploads by status; uploads/s; the memory (RSS) of the
process at the start, after the first round, at its peak and at the end; new files in its temporary, home and working
folders and in FOLDER; all files that it opened for writing; and responses that contain a traceback or a path of this
machine. Stops the process with Ctrl-C and prints its exit status. Writes serve.json to the current folder.
"""

import argparse
import http.client
import itertools
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import measure
import psutil

from pcam_lightning.export.export_network import export_network

UPLOADS, AT_ONCE = 200, 20
LARGEST = 2  # MB
# Runs the server, and lists at the end which files were opened for writing.
SERVER = """
import os, sys
from pcam_lightning.serve.server import serve
written = []
def note(event, args):
    if event == "open" and not isinstance(args[0], int) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
        written.extend({args[0]} - {os.devnull})
sys.addaudithook(note)
try:
    serve(sys.argv[1], port=0, max_mb=int(sys.argv[2]))
except KeyboardInterrupt:
    print(f"opened for writing: {len(written)} {written[:5]}")
    sys.exit(130)
"""


def kinds() -> list[tuple[str, bytes]]:
    """Return path and body of all kinds of requests."""
    sys.path.append(str(Path(__file__).parents[1] / "tests" / "serve"))
    from patch_files import bad_files, draw, encode, good_files

    patches = draw(10)
    good = [*good_files(patches[1]).values(), *(encode(patch) for patch in patches)]
    bad = [one.content for one in bad_files(patches[0]).values()] + [bytes((LARGEST + 1) * 10**6)]
    return [("/grad_cam" if number % 10 == 0 else "/predict", body) for number, body in enumerate(good + bad)]


def upload(port: int, path: str, body: bytes) -> tuple[int, bytes]:
    """Send a request; return status and body of the response, with status 0 if there was none."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    try:
        connection.request("POST", path, body)
        response = connection.getresponse()
        return response.status, response.read()
    except OSError as error:
        return 0, str(error).encode()
    finally:
        connection.close()


class Memory(threading.Thread):
    """Records the memory of a process.

    Attributes:
        peak: peak RSS in bytes.
    """

    def __init__(self, process: psutil.Process) -> None:
        super().__init__(daemon=True)
        self._process, self.peak, self.ended = process, 0, threading.Event()

    def run(self) -> None:
        """Read the memory ten times per second."""
        while not self.ended.wait(0.1):
            self.peak = max(self.peak, self._process.memory_info().rss)


def rounds(port: int, minutes: float, process: psutil.Process) -> dict[str, object]:
    """Send uploads for the given time; return the results."""
    requests = itertools.cycle(kinds())
    statuses: Counter[int] = Counter()
    leaks: list[str] = []
    hidden = re.compile(rb"Traceback|\.py\b|/(?:work|tmp|home|root|usr|Users)/")
    begun, memory, first = time.monotonic(), Memory(process), 0
    start = process.memory_info().rss
    memory.start()
    with ThreadPoolExecutor(AT_ONCE) as pool:
        while time.monotonic() < begun + 60 * minutes:
            some = list(itertools.islice(requests, UPLOADS))
            for status, body in pool.map(lambda one: upload(port, *one), some):
                statuses[status] += 1
                # Base64 data of images may contain any text.
                if found := hidden.search(re.sub(rb'"data:image/png;base64,[^"]*"', b"", body)):
                    leaks.append(found[0].decode())
            first = first or process.memory_info().rss
    memory.ended.set()
    return {
        "uploads": statuses.total(),
        "statuses": {str(status): count for status, count in sorted(statuses.items())},
        "uploads/s": round(statuses.total() / (time.monotonic() - begun), 1),
        "MB at the start": start // 10**6,
        "MB after the first round": first // 10**6,
        "MB at the peak": memory.peak // 10**6,
        "MB at the end": process.memory_info().rss // 10**6,
        "responses with a traceback or path": len(leaks),
    }


def listing(*folders: Path) -> set[tuple[Path, int]]:
    """Return the files below folders and their modification times."""
    return {(path, path.stat().st_mtime_ns) for folder in folders for path in folder.rglob("*")}


def run(folder: Path, place: Path, minutes: float) -> dict[str, object]:
    """Serve a folder from a process with empty home, temporary and working folders."""
    root = str(Path(__file__).parents[1])
    env = {**os.environ, "PYTHONPATH": root, "PYTHONDONTWRITEBYTECODE": "1", "HOME": str(place), "TMPDIR": str(place)}
    command = [sys.executable, "-c", SERVER, str(folder.resolve()), str(LARGEST)]
    with (
        tempfile.TemporaryFile("w+") as messages,
        subprocess.Popen(command, env=env, cwd=place, stdout=subprocess.PIPE, stderr=messages, text=True) as process,
    ):
        while not (found := re.search(r":(\d+): open it", (messages.seek(0), messages.read())[1])):
            if process.poll() is not None:
                raise SystemExit("the server has ended")
            time.sleep(0.2)
        before = listing(folder, place)
        results = rounds(int(found[1]), minutes, psutil.Process(process.pid))
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=60)
        messages.seek(0)
        results["lines on its terminal"] = len(messages.read().splitlines())
    results["files that appeared or changed"] = [path.name for path, _ in listing(folder, place) ^ before]
    results["at its end"] = f"exit status {process.returncode}, {output.strip()}"
    return results


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--minutes", type=float, default=10)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        folder = args.folder or export_network(["pcam-small"], Path(work) / "export", sample=2).folder
        place = Path(work) / "place"
        place.mkdir()
        results = run(folder, place, args.minutes)
    print(measure.table(["serve", ""], [[name, str(value)] for name, value in results.items()]))
    measure.save(Path("serve.json"), {"machine": measure.machine(), "minutes": args.minutes, **results})


if __name__ == "__main__":
    main()
