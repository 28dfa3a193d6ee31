"""The server of the page: predictions, refusals, and requests that are none of the page's."""

import base64
import io
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from local_server import error, export_once, running, send
from patch_files import bad_files, draw, encode, good_files
from PIL import Image
from scipy.special import expit

from pcam_lightning.evaluation.interpret import cam_layer, center_heat_fraction, grad_cam
from pcam_lightning.serve.patch_images import heat_overlay
from pcam_lightning.serve.security import HEADERS, is_loopback
from pcam_lightning.serve.server import serve
from pcam_lightning.training.feature_distance import FeatureDistance
from pcam_lightning.training.loaded_run import load_pretrained
from pcam_lightning.utils.errors import UserError

PATCHES = draw(10)
BAD = bad_files(PATCHES[0])
GOOD = good_files(PATCHES[1])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_once(tmp_path_factory)


@pytest.fixture(scope="module")
def port(folder: Path) -> Iterator[int]:
    with running(folder, max_mb=1) as number:
        yield number


def pixels(uri: str) -> np.ndarray:
    """Return the pixels of a PNG in a data URI."""
    kind, _, content = uri.partition(",")
    assert kind == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(content))))


def test_probabilities_are_those_of_the_network(port: int) -> None:
    logit = load_pretrained("pcam-small").predict_logits(torch.from_numpy(PATCHES)).detach().numpy()
    for patch, expected in zip(PATCHES, logit, strict=True):
        answer = send(port, "POST", "/predict", encode(patch))
        assert answer.status == 200
        assert answer.json["logit"] == pytest.approx(expected, abs=1e-3)
        assert answer.json["prob"] == pytest.approx(expit(expected), abs=1e-3)
        assert (pixels(answer.json["image"]) == patch).all()


@pytest.mark.parametrize("kind", GOOD)
def test_lossless_files_give_the_same_probability(port: int, kind: str) -> None:
    expected = send(port, "POST", "/predict", encode(PATCHES[1])).json
    assert send(port, "POST", "/predict", GOOD[kind]).json == expected


def test_jpeg_and_palette_are_predicted_as_they_are_decoded(port: int) -> None:
    for content in (encode(PATCHES[1], "jpeg", quality=90), encode(Image.fromarray(PATCHES[1]).convert("P"))):
        decoded = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
        answer = send(port, "POST", "/predict", content).json
        assert (pixels(answer["image"]) == decoded).all()
        assert answer["prob"] == send(port, "POST", "/predict", encode(decoded)).json["prob"]


def test_grad_cam_is_that_of_the_network(port: int) -> None:
    network = load_pretrained("pcam-small")
    layer = cam_layer(network, torch.zeros(1, 96, 96, 3, dtype=torch.uint8))
    heat = grad_cam(network, torch.from_numpy(PATCHES[3:4]), layer)
    answer = send(port, "POST", "/grad_cam", encode(PATCHES[3])).json
    difference = pixels(answer["heat"]).astype(int) - heat_overlay(heat[0])
    assert np.abs(difference).max() <= 3
    assert answer["center"] == pytest.approx(center_heat_fraction(heat)[0], abs=0.01)


def test_the_page_is_its_own(port: int) -> None:
    page = send(port, "GET", "/").body.decode()
    assert "For research; not for diagnosis." in page
    assert "Try 10 synthetic patches" in page
    for path, kind in (("/", "text/html"), ("/page.css", "text/css"), ("/page.js", "text/javascript")):
        answer = send(port, "GET", path)
        assert answer.headers["content-type"].startswith(kind)
        assert HEADERS.items() <= {name: answer.headers.get(name.lower()) for name in HEADERS}.items()
        assert not re.search(rb"https?://", answer.body)
    assert send(port, "POST", "/predict", send(port, "GET", "/examples/3.png").body).json["prob"] > 0.5


def test_twenty_at_once(port: int) -> None:
    contents = [encode(patch) for patch in PATCHES] + [one.content for one in list(BAD.values())[:10]]
    expected = [send(port, "POST", "/predict", content).body for content in contents]
    barrier = threading.Barrier(20)

    def upload(content: bytes) -> bytes:
        barrier.wait()
        return send(port, "POST", "/predict", content).body

    with ThreadPoolExecutor(20) as pool:
        assert list(pool.map(upload, contents)) == expected


def test_a_patch_out_of_distribution_has_a_warning(folder: Path) -> None:
    distance = FeatureDistance.read(folder / "training_features.safetensors")
    noise = np.random.default_rng(0).integers(0, 256, (96, 96, 3), dtype=np.uint8)
    with running(folder) as port:
        assert "no features of training patches" not in send(port, "GET", "/").body.decode()
        warning = send(port, "POST", "/predict", encode(noise)).json["warning"]
    found = re.fullmatch(
        r"Texture and color are out of distribution: the distance from the training patches is (\S+); "
        r"for 99 % of held-out patches, it is at most (\S+)\.",
        warning,
    )
    assert found, warning
    assert float(found[1]) > float(found[2]) == round(distance.threshold, 2)


def test_grad_cam_of_several_networks_is_their_mean(folder: Path, tmp_path: Path) -> None:
    shutil.copy(folder / "model.onnx", tmp_path)
    with running(tmp_path) as port:
        page = send(port, "GET", "/").body.decode()
        assert "Grad-CAM is not available" in page
        assert "the export has no features of training patches" in page
        assert 'id="show-heat"' not in page
        assert "synthetic patches" not in page
        assert "Grad-CAM is not available" in error(send(port, "POST", "/grad_cam", GOOD["png"]))
    for number in (1, 2):
        shutil.copy(folder / "pcam_lightning.safetensors", tmp_path / f"pcam_lightning_{number}.safetensors")
    with running(tmp_path) as port, running(folder) as other:
        assert send(port, "POST", "/grad_cam", GOOD["png"]).json == send(other, "POST", "/grad_cam", GOOD["png"]).json


def test_an_error_of_the_server_is_told_in_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = """<ir_version: 10, opset_import: ["" : 20]>
    broken (uint8[N, 96, 96, 3] image) => (float[N] prob, float[N] logit) {
        value = Cast<to = 1>(image)
        axes = Constant<value_ints = [1, 2, 3]>()
        mean = ReduceMean<keepdims = 0>(value, axes)
        zero = Sub(mean, mean)
        logit = Div(zero, zero)
        prob = Sigmoid(logit)
    }"""
    onnx.save(onnx.parser.parse_model(model), str(tmp_path / "model.onnx"))
    with running(tmp_path) as port:
        answer = send(port, "POST", "/predict", GOOD["png"])
        assert answer.status == 500
        assert answer.json == {"error": "The server could not process this request; see its terminal for the reason."}
        assert answer.headers["x-content-type-options"] == "nosniff"
    assert "the logit is NaN" in capsys.readouterr().err


PROCESS = """
import os, sys
from pcam_lightning.serve.server import serve
from pcam_lightning.utils.signals import catch_signals
written = []
def note(event, args):
    if event == "open" and not isinstance(args[0], int) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
        written.extend({args[0]} - {os.devnull})
    elif event in ("os.mkdir", "tempfile.mkstemp", "tempfile.mkdtemp"):
        written.append(event)
sys.addaudithook(note)
with catch_signals() as received:
    try:
        serve(sys.argv[1], sys.argv[2], 0, 1)
    except KeyboardInterrupt:
        print(f"written: {written}")
        sys.exit(128 + received[0])
"""


@pytest.mark.process
@pytest.mark.parametrize(("host", "number"), [("127.0.0.1", signal.SIGINT), ("0.0.0.0", signal.SIGTERM)])
def test_a_process_writes_nothing_and_ends_cleanly(
    folder: Path, tmp_path: Path, host: str, number: signal.Signals
) -> None:
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    (tmp_path / "temporary").mkdir()
    env = {**os.environ, "TMPDIR": str(tmp_path / "temporary"), "HOME": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-c", PROCESS, str(folder), host]
    with subprocess.Popen(
        command, env=env, cwd=tmp_path / "work", stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        lines: list[str] = []
        while not (found := re.search(r"http://[\d.]+:(\d+): open in", lines[-1] if lines else "")):
            lines.append(process.stderr.readline())
            assert lines[-1], lines
        assert any("everyone on the network" in line for line in lines) == (host == "0.0.0.0")
        port = int(found[1])
        for kind in BAD:
            send(port, "POST", "/predict", BAD[kind].content)
        send(port, "POST", "/predict", bytes(2_000_000))
        for path in ("/predict", "/grad_cam"):
            assert send(port, "POST", path, GOOD["tiff_lzw"]).status == 200
        process.send_signal(number)
        output, messages = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert "written: []" in output
    assert messages == ""
    assert list((tmp_path / "temporary").iterdir()) == list((tmp_path / "work").iterdir()) == []
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_what_the_user_can_correct_is_one_line(folder: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=rf"`port` {port} is in use; choose another"):
            serve(folder, port=port)
    for options, message in (
        ({"folder": tmp_path}, "contains no model.onnx; name a folder written by export"),
        ({"folder": tmp_path / "nothing"}, "contains no model.onnx"),
        ({"port": 70000}, "`port` 70000: should be an integer of at most 65535"),
        ({"port": -1}, "`port` -1"),
        ({"max_mb": 0}, "`max_mb` 0"),
        ({"host": "no such host"}, "`host` no such host: no such name or address"),
        ({"host": "192.0.2.1"}, "`host` 192.0.2.1: not an address of this computer"),
    ):
        with pytest.raises(UserError, match=re.escape(message)):
            serve(**{"folder": folder, "port": 0, **options})  # type: ignore[arg-type]


def test_loopback_addresses_are_told_from_others() -> None:
    assert all(map(is_loopback, ("127.0.0.1", "localhost", "127.3.2.1")))
    assert not any(map(is_loopback, ("", "0.0.0.0", "::", "192.0.2.1", "no such host")))
