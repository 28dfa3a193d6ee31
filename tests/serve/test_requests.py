"""Requests that the page does not make: bad files, other methods, hosts and sites, bodies that are too large."""

from collections.abc import Iterator

import pytest
from local_server import LEAKS, error, export_once, running, send, send_raw
from patch_files import bad_files, draw, good_files

PATCHES = draw(2)
BAD = bad_files(PATCHES[0])
GOOD = good_files(PATCHES[1])


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    with running(export_once(tmp_path_factory), max_mb=1) as number:
        yield number


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize("path", ["/predict", "/grad_cam"])
def test_a_bad_file_is_refused_in_one_sentence(port: int, path: str, kind: str) -> None:
    content, status, phrase = BAD[kind]
    answer = send(port, "POST", path, content)
    if path == "/grad_cam" and answer.status == 200:
        assert kind in ("black", "blank", "out_of_focus", "gray_and_blank", "tiff_strip_of_2_gigabytes")
        return
    assert phrase in error(answer)
    assert answer.status == status
    assert ("image" in answer.json) == (phrase in ("black", "blank", "out of focus") or not phrase)


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "<script>alert(1)</script>", "%ff%fe", "a" * 3000, "%00", "C:\\x", "Lymphknoten%C3%A4"]
)
def test_names_are_ignored(port: int, name: str) -> None:
    expected = send(port, "POST", "/predict", GOOD["png"])
    header = name.encode().decode("latin-1")
    path = f"/predict?name={name.replace(' ', '')}"
    assert send(port, "POST", path, GOOD["png"], **{"X-File-Name": header}).json == expected.json
    answer = send(port, "POST", path, b"text", **{"X-File-Name": header})
    assert answer.status == 415
    assert name not in error(answer)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/predict", 405),
        ("PUT", "/predict", 405),
        ("DELETE", "/", 405),
        ("POST", "/", 405),
        ("OPTIONS", "/predict", 405),
        ("GET", "/nothing", 404),
        ("GET", "/model.onnx", 404),
        ("GET", "/../model.onnx", 404),
        ("GET", "/examples/..%2f..%2fmodel.onnx", 404),
        ("GET", "/examples/100.png", 404),
        ("GET", "/examples/-1.png", 404),
        ("GET", "/templates/page.html", 404),
        ("POST", "/predict/", 404),
    ],
)
def test_other_paths_and_methods(port: int, method: str, path: str, status: int) -> None:
    answer = send(port, method, path)
    if answer.status == 307:  # a slash too many
        answer = send(port, method, "/nothing")
    assert answer.status == status
    error(answer)


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "10.0.0.1", "", "[", "@"]
)
def test_other_hosts_are_refused(port: int, host: str) -> None:
    for method, path in (("GET", "/"), ("POST", "/predict")):
        answer = send(port, method, path, GOOD["png"] if method == "POST" else None, Host=host)
        assert answer.status == 403
        assert "another host" in error(answer)


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:9000", "127.0.0.1:1", "127.1.2.3", "[::1]:8000"])
def test_names_of_this_computer_are_answered(port: int, host: str) -> None:
    assert send(port, "GET", "/", Host=host).status == 200


def test_pages_of_other_sites_are_refused(port: int) -> None:
    for origin in ("https://evil.example", "null", f"http://localhost:{port}", "http://["):
        answer = send(port, "POST", "/predict", GOOD["png"], Origin=origin)
        assert (answer.status, "other sites" in error(answer)) == (403, True)
    assert send(port, "POST", "/predict", GOOD["png"], Origin=f"http://127.0.0.1:{port}").status == 200


def test_a_large_file_is_refused_before_it_is_read(port: int) -> None:
    head = (
        b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999" + b"\r\nConnection: close\r\n\r\n"
    )
    found = send_raw(port, head)
    assert found.startswith(b"HTTP/1.1 413 ")
    assert b"at most 1 MB" in found


def test_a_large_file_is_refused_whatever_its_header_says(port: int) -> None:
    for body in (bytes(3_000_000), iter([bytes(100_000)] * 30)):  # with Content-Length, and in chunks without
        answer = send(port, "POST", "/predict", body)
        assert answer.status == 413
        assert "too large: at most 1 MB" in error(answer)


@pytest.mark.parametrize(
    ("head", "body", "status"),
    [
        (b"", b"", 422),  # no body
        (b"Content-Length: 100000", GOOD["png"], None),  # less than it says: nobody is there to be answered
        (b"Content-Length: 100", GOOD["png"], 422),  # more than it says
        (b"Content-Length: -5", b"", 400),
        (b"Content-Length: many", b"", 400),
        (b"Content-Length: 5\r\nContent-Length: 6", b"hello!", 400),
        (b"Transfer-Encoding: chunked", b"zz\r\nhello\r\n0\r\n\r\n", 400),
        (b"Transfer-Encoding: gzip", b"hello", 400),
        (b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13", b"", 422),
    ],
)
def test_requests_that_are_not_well_formed(port: int, head: bytes, body: bytes, status: int | None) -> None:
    lines = b"POST /predict HTTP/1.1\r\nHost: localhost\r\n" + (head + b"\r\n" if head else b"")
    found = send_raw(port, lines + b"Connection: close\r\n\r\n" + body, ends=status is None)
    assert not LEAKS.search(found.decode("latin-1").partition("\r\n\r\n")[2])
    if status is not None:
        assert found.startswith(f"HTTP/1.1 {status} ".encode())
    assert send(port, "POST", "/predict", GOOD["png"]).status == 200
