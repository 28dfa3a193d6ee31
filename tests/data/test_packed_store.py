"""Packing: right pixels, whole or not at all, once; and what is said of files that cannot be used."""

import hashlib
import io
import multiprocessing
import os
import re
import shutil
import signal
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.synchronize import Barrier
from pathlib import Path

import filelock
import numpy as np
import pandas as pd
import pytest
from conftest import FAST, MakeFolder
from forked import SERVER, Forked
from PIL import Image

from pcam_lightning.cli.main import main
from pcam_lightning.data import fingerprint
from pcam_lightning.data import packed_store as store_module
from pcam_lightning.data.fingerprint import fingerprint_files
from pcam_lightning.data.image_io import plain_tiff, read_patch
from pcam_lightning.data.packed_store import FORMAT, open_store
from pcam_lightning.data.sources import open_source, read_train
from pcam_lightning.utils.errors import UserError


def _pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


def test_rows_are_the_pixels_of_their_ids(kaggle: MakeFolder) -> None:
    root = kaggle(train=300)  # enough for more than one task
    table = read_train(root).sample(frac=1, random_state=0)
    store = open_store(table, open_source(root), "train")
    assert store.images.shape == (300, 96, 96, 3)
    assert store.images.dtype == np.uint8
    for patch_id, path, row in zip(table["id"], table["path"], store.rows(table["id"]), strict=True):
        assert store.ids[row] == patch_id
        assert (store.images[row] == _pixels(root / path)).all()
        assert store.pixel_sha1[row] == hashlib.sha1(store.images[row].tobytes()).hexdigest()


def test_second_opening_decodes_no_image(kaggle: MakeFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    root = kaggle()
    first = open_store(read_train(root), open_source(root), "train")
    pack = first.path.stat()
    again = open_store(read_train(root), open_source(root), "train")
    status = again.path.stat()
    assert (status.st_ino, status.st_mtime_ns) == (pack.st_ino, pack.st_mtime_ns)
    assert again.path == first.path
    assert again.fingerprint == first.fingerprint


def _overwrite(path: Path, content: bytes) -> None:
    """Write into a file, and give it the size and dates that it had, as `unzip -o` and `cp -p` do."""
    status = path.stat()
    assert len(content) == status.st_size
    with path.open("r+b") as file:
        file.write(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.parametrize("samples", [0, 256])  # of their bytes: metadata alone is enough
@pytest.mark.parametrize("change", ["pixels", "another file", "time", "size", "more"])
def test_rebuilt_when_files_change(
    change: str, samples: int, kaggle: MakeFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fingerprint, "SAMPLES", samples)
    root = kaggle()
    first = open_store(read_train(root), open_source(root), "train")
    path = root / "train" / "train000.tif"
    if change == "more":
        Image.fromarray(np.zeros((96, 96, 3), np.uint8)).save(root / "train" / "black.tif")
        with (root / "train_labels.csv").open("a") as file:
            file.write("black,0\n")
    elif change == "size":
        status = path.stat()
        Image.fromarray(_pixels(path)).save(path, compression="tiff_lzw")
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        assert path.stat().st_size != status.st_size
    elif change == "time":
        os.utime(path, ns=(1, 1))
    else:
        status = path.stat()
        buffer = io.BytesIO()
        Image.fromarray(np.full((96, 96, 3), 7, np.uint8)).save(buffer, "TIFF")
        if change == "pixels":
            _overwrite(path, buffer.getvalue())
        else:  # under another name first, then renamed
            (root / "new").write_bytes(buffer.getvalue())
            os.utime(root / "new", ns=(status.st_atime_ns, status.st_mtime_ns))
            (root / "new").replace(path)
        assert (path.stat().st_size, path.stat().st_mtime_ns) == (status.st_size, status.st_mtime_ns)
    table = read_train(root)
    again = open_store(table, open_source(root), "train")
    assert (again.fingerprint == first.fingerprint) == (change in ("time", "size"))  # it is of the pixels alone
    assert not first.path.exists()  # the older pack does not stay behind
    for patch_id, row in zip(table["id"], again.rows(table["id"]), strict=True):
        assert (again.images[row] == _pixels(root / "train" / f"{patch_id}.tif")).all()


def test_a_copied_data_folder_has_the_same_fingerprint(kaggle: MakeFolder, tmp_path: Path) -> None:
    root = kaggle()
    copy = tmp_path / "copy"
    shutil.copytree(root, copy)
    stores = [open_store(read_train(one), open_source(one), "train") for one in (root, copy)]
    assert stores[0].fingerprint == stores[1].fingerprint


def _truncate(folder: Path) -> None:
    os.truncate(folder / "images.npy", 30_000)


def _damage_header(folder: Path) -> None:
    path = folder / "images.npy"
    content = path.read_bytes()
    path.write_bytes(content.replace(b"(20,", b"((((", 1))


def _cut_index(folder: Path) -> None:
    path = folder / "index.csv"
    path.write_bytes(path.read_bytes()[:-30])  # all ids are there, and the last hash is not whole


def _change_a_hash(folder: Path) -> None:
    path = folder / "index.csv"
    content = path.read_bytes()
    path.write_bytes(content[:-2] + (b"1\n" if content.endswith(b"0\n") else b"0\n"))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (_damage_header, "images.npy has a damaged header"),
        (_cut_index, "index.csv is damaged"),
        (_change_a_hash, "index.csv is damaged"),
        (_truncate, "images.npy has 30,000 bytes, not 553,088"),
        (lambda folder: (folder / "images.npy").unlink(), "images.npy: No such file"),
        (lambda folder: (folder / "images.npy").write_bytes(b"no array"), "magic"),
        (lambda folder: (folder / "images.npy").write_bytes(b""), "images.npy is empty|magic|EOF"),
        (lambda folder: (folder / "index.csv").unlink(), "index.csv: No such file"),
        (lambda folder: (folder / "index.csv").write_text("id,pixel_sha1\nx,y\n"), "index.csv is damaged"),
        (lambda folder: (folder / "index.csv").write_text(""), "No columns"),
        (lambda folder: (folder / "index.csv").write_bytes(b"\xff\xfe"), "decode"),
    ],
)
def test_a_damaged_pack_is_packed_again(
    damage: Callable[[Path], object], reason: str, kaggle: MakeFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    root = kaggle()
    first = open_store(read_train(root), open_source(root), "train")
    expected = np.array(first.images)
    damage(first.path.parent)
    capsys.readouterr()
    again = open_store(read_train(root), open_source(root), "train")
    assert (again.images == expected).all()
    assert re.search(rf"train-\w+: .*({reason}).*; packing again\.", capsys.readouterr().err)


def test_verify_hashes_packed_pixels_and_image_files(
    drawn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "copy"
    shutil.copytree(drawn, root, ignore=shutil.ignore_patterns(".pcam_cache"))
    table = read_train(root)
    store = open_store(table, open_source(root), "train", verify=True)
    expected = np.array(store.images)
    with store.path.open("r+b") as file:  # 20,000 bytes of the pack that some other program zeroed
        file.seek(60_000)
        file.write(bytes(20_000))
    assert (open_store(table, open_source(root), "train").images != expected).any()
    capsys.readouterr()
    again = open_store(table, open_source(root), "train", verify=True)
    assert (again.images == expected).all()
    found = r"[12] packed patches and 0 image files are not what was packed; packing again"
    assert re.search(found, capsys.readouterr().err)

    # A file that is damaged though neither its metadata nor a sample of its bytes tells.
    path = root / table.sort_values("id")["path"].iloc[3]
    content = bytearray(path.read_bytes())
    content[9_000:9_100] = bytes(100)
    _overwrite(path, bytes(content))
    key = fingerprint_files(table.sort_values("id", ignore_index=True), root, FORMAT)
    again.path.parent.rename(again.path.parent.with_name(f"train-{key[:16]}"))
    with pytest.raises(UserError, match=r"1 of 120 ids of train are not the SHA-1 of their pixels"):
        open_store(table, open_source(root), "train", verify=True)
    assert "0 packed patches and 1 image files are not what was packed" in capsys.readouterr().err


def test_many_files_that_are_wrong_alike_stop_early_in_a_short_error(
    kaggle: MakeFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    root = kaggle(train=4)
    Image.new("RGB", (224, 224)).save(root / "train" / "large.png")
    names = [f"large{number:04d}" for number in range(1500)]
    for name in names:
        (root / "train" / f"{name}.png").hardlink_to(root / "train" / "large.png")
    pd.DataFrame({"id": names, "label": [0, 1] * 750}).to_csv(root / "train_labels.csv", index=False)
    assert main(["fit", "--data.root", str(root), *FAST]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert len(error) < 800
    named = r"large0000.png \(224 x 224 pixels, not 96 x 96\); .*large0002"
    found = re.search(rf"(\d+) of \1 image files cannot be used: .*{named}", error)
    assert found, error
    assert int(found[1]) < 1000
    stopped = f"and {int(found[1]) - 3} more. The first {found[1]} are all refused, so that the rest was not read."
    assert stopped in error


def test_older_packs_go_after_the_new_one_is_whole(kaggle: MakeFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    root = kaggle()
    first = open_store(read_train(root), open_source(root), "train")
    os.utime(root / "train" / "train000.tif", ns=(1, 1))
    rename, seen = Path.rename, []

    def note(self: Path, target: Path) -> Path:
        if self.exists():
            seen.append((self.suffix, first.path.exists()))
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", note)
    open_store(read_train(root), open_source(root), "train")
    assert seen[0] == (".tmp", True)  # the new one gets its name while the older one is still there
    assert not first.path.exists()


def test_packed_images_of_an_older_format_are_packed_anew(
    kaggle: MakeFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = kaggle()
    before = open_store(read_train(root), open_source(root), "train")
    monkeypatch.setattr(store_module, "FORMAT", FORMAT + 1)
    capsys.readouterr()
    after = open_store(read_train(root), open_source(root), "train")
    assert "what is packed there is of other files, or of another version; packing again" in capsys.readouterr().err
    assert after.path != before.path
    assert not before.path.exists()


def test_an_older_pack_that_cannot_be_removed_is_no_error(kaggle: MakeFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """On Windows another process that has it mapped holds on to it."""
    root = kaggle()
    first = open_store(read_train(root), open_source(root), "train")
    os.utime(root / "train" / "train000.tif", ns=(1, 1))
    rename = Path.rename

    def held(self: Path, target: Path) -> Path:
        if self == first.path.parent:
            raise PermissionError(13, "in use by another process", str(self))
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", held)
        again = open_store(read_train(root), open_source(root), "train")
    assert first.path.exists()
    assert (again.images == first.images).all()
    os.utime(root / "train" / "train001.tif", ns=(1, 1))
    open_store(read_train(root), open_source(root), "train")
    assert not first.path.exists()


def _save(path: Path, image: Image.Image) -> None:
    path.with_suffix(".tif").unlink()
    image.save(path)


def _png_of_16_bits() -> bytes:
    """Write an RGB PNG as Pillow cannot: two bytes a channel."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    rows = zlib.compress((b"\0" + bytes(96 * 6)) * 96)
    head = struct.pack(">IIBBBBB", 96, 96, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def test_bad_files_are_counted_in_one_error(kaggle: MakeFolder, capsys: pytest.CaptureFixture[str]) -> None:
    root = kaggle()
    part = root / "train"
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (96, 96, 4), dtype=np.uint8)
    data = (part / "train000.tif").read_bytes()
    (part / "train000.tif").write_bytes(data[: len(data) // 2])
    (part / "train001.tif").write_bytes(b"not an image")
    (part / "train002.tif").write_bytes(b"")
    _save(part / "train003.png", Image.new("RGB", (64, 96)))
    _save(part / "train004.png", Image.fromarray(noise))
    _save(part / "train005.png", Image.fromarray(noise[..., 0].astype(np.uint16)))
    _save(part / "train006.tiff", Image.new("CMYK", (96, 96)))
    _save(part / "train007.png", Image.new("1", (20_000, 20_000)))
    Image.new("RGB", (96, 96)).save(part / "x.jpg")
    (part / "x.jpg").rename(part / "train008.tif")
    (part / "train009.tif").unlink()
    (part / "train009.png").write_bytes(_png_of_16_bits())
    assert main(["fit", "--data.root", str(root), *FAST]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(errors) == 1
    named = r"train000.tif \(.*train001.tif \(.*train002.tif \(.*\); and 7 more\."
    assert re.search(rf"10 of 20 image files cannot be used: .*{named}", errors[0]), errors[0]
    for number, reason in {
        0: "truncated",
        1: "not a TIFF or PNG|cannot identify",
        2: "not a TIFF or PNG|cannot identify|empty",
        3: "64 x 96 pixels, not 96 x 96",
        4: "transparent",
        5: "no lossless way to",
        6: "mode CMYK",
        7: "20000 x 20000|decompression bomb",
        8: "JPEG|not a TIFF or PNG|cannot identify",
        9: "16 bits a channel",
    }.items():
        (path,) = part.glob(f"train00{number}.*")
        with pytest.raises((OSError, ValueError, Image.DecompressionBombError), match=f"(?i){reason}"):
            read_patch(path)
    assert not list(root.glob(".pcam_cache/train-*"))
    assert not Path("lightning_logs").exists()


def test_a_float_tiff_is_called_one_where_its_directory_follows_the_pixels(tmp_path: Path) -> None:
    more: dict[int, tuple[int, ...]] = {258: (32, 32, 32), 339: (3, 3, 3)}
    (tmp_path / "float.tif").write_bytes(_tiff(np.zeros((96, 96, 3), dtype=np.float32), more=more))
    with pytest.raises(ValueError, match="a TIFF of 32-bit float pixels, 3 a pixel"):
        read_patch(tmp_path / "float.tif")


def test_ids_with_a_suffix_are_checked_against_pixels_too(drawn: Path, tmp_path: Path) -> None:
    table = read_train(drawn)
    table = table.assign(id=["f" * 40 if n == 3 else value for n, value in enumerate(table["id"])])
    with pytest.raises(UserError, match=r"1 of 120 ids of train are not the SHA-1 of their pixels"):
        open_store(table.assign(id=table["id"] + ".tif"), open_source(drawn), "train", tmp_path, verify=True)


def test_gray_palette_and_opaque_rgba_convert_without_loss(tmp_path: Path) -> None:
    rgb = Image.fromarray(np.random.default_rng(0).integers(0, 256, (96, 96, 3), dtype=np.uint8))
    palette = rgb.quantize(256)
    for name, image in {"gray": rgb.convert("L"), "palette": palette, "rgba": rgb.convert("RGBA")}.items():
        image.save(tmp_path / f"{name}.png")
        assert read_patch(tmp_path / f"{name}.png") == image.convert("RGB").tobytes()


def test_ids_are_checked_against_pixels(drawn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = read_train(drawn)
    open_store(table, open_source(drawn), "train", tmp_path / "good", verify=True)
    wrong = table.assign(id=["f" * 40 if n == 3 else value for n, value in enumerate(table["id"])])
    capsys.readouterr()
    open_store(wrong, open_source(drawn), "train", tmp_path / "wrong")
    assert re.search(r"warning: .*1 of 120 ids of train are not the SHA-1 of their pixels", capsys.readouterr().err)
    with pytest.raises(UserError, match=r"1 of 120 ids .*f{40}.*`data.verify`"):
        open_store(wrong, open_source(drawn), "train", tmp_path / "wrong", verify=True)


def test_data_folder_that_cannot_be_written_falls_back_aloud(
    kaggle: MakeFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = kaggle()
    (root / ".pcam_cache").write_text("a file where the folder should be")
    store = open_store(read_train(root), open_source(root), "train")
    assert store.path.is_relative_to(tmp_path / "cache" / "pcam_lightning")
    assert re.search(r"\.pcam_cache cannot be written .* packed images go to .*pcam_lightning", capsys.readouterr().err)


def test_two_folders_share_a_cache_folder(kaggle: MakeFolder, tmp_path: Path) -> None:
    first, second = kaggle(root=tmp_path / "a" / "kaggle"), kaggle(root=tmp_path / "b" / "kaggle")
    os.utime(second / "train" / "train000.tif", ns=(1, 1))
    stores = [
        open_store(read_train(root), open_source(root), "train", tmp_path / "shared") for root in (first, second, first)
    ]
    assert stores[0].path == stores[2].path != stores[1].path
    assert all(store.path.is_file() for store in stores)  # neither takes the other's for an older one of its own


def test_cache_folder_that_cannot_be_made(kaggle: MakeFolder, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    root = kaggle()
    with pytest.raises(UserError, match=r"file/tiny-\w+ cannot be written .*`data.cache_dir`"):
        open_store(read_train(root), open_source(root), "train", tmp_path / "file")


def _pack_and_sum(root: Path, ready: Barrier, sums: "multiprocessing.Queue[int]") -> None:
    ready.wait()  # both begin together
    sums.put(int(open_store(read_train(root), open_source(root), "train").images.sum(dtype=np.int64)))


@pytest.mark.process
def test_processes_that_start_at_once_get_the_same_store(kaggle: MakeFolder) -> None:
    root = kaggle(train=300)
    sums: multiprocessing.Queue[int] = SERVER.Queue()
    ready = SERVER.Barrier(2)
    processes = [SERVER.Process(target=_pack_and_sum, args=(root, ready, sums)) for _ in range(2)]
    for process in processes:
        process.start()
    found = {sums.get() for _ in processes}
    for process in processes:
        process.join()
    expected = sum(int(_pixels(path).sum(dtype=np.int64)) for path in (root / "train").glob("*.tif"))
    assert found == {expected}
    assert len(list((root / ".pcam_cache").glob("train-*"))) == 1


def test_whoever_waits_for_a_pack_does_not_pack_again(kaggle: MakeFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    root = kaggle()
    lock, packed = filelock.FileLock, []

    @contextmanager
    def late(path: Path) -> Iterator[None]:
        """Get the lock after another process that has packed meanwhile."""
        monkeypatch.setattr(filelock, "FileLock", lock)
        packed.append(open_store(read_train(root), open_source(root), "train").path.stat())
        with lock(path):
            yield

    monkeypatch.setattr(filelock, "FileLock", late)
    status = open_store(read_train(root), open_source(root), "train").path.stat()
    assert [(status.st_ino, status.st_mtime_ns)] == [(one.st_ino, one.st_mtime_ns) for one in packed]


@pytest.mark.process
def test_killed_pack_leaves_nothing_that_is_taken_for_whole(kaggle: MakeFolder) -> None:
    root = kaggle(train=600)
    code = (
        "import sys; from pathlib import Path; from pcam_lightning.data.packed_store import open_store; "
        "from pcam_lightning.data.sources import open_source, read_train; root = Path(sys.argv[1]); "
        "open_store(read_train(root), open_source(root), 'train')"
    )
    forked = Forked(code, root)
    while not list(root.glob(".pcam_cache/train-*.tmp")) and forked.process.is_alive():
        pass
    forked.process.kill()
    assert forked.wait().returncode == -signal.SIGKILL
    store = open_store(read_train(root), open_source(root), "train")
    assert (store.images[5] == _pixels(root / "train" / f"{store.ids[5]}.tif")).all()
    assert [path.name for path in (root / ".pcam_cache").glob("train-*")] == [store.path.parent.name]


def _tiff(
    pixels: np.ndarray, order: str = "<", rows_per_strip: int = 96, more: dict[int, tuple[int, ...]] | None = None
) -> bytes:
    """Write a TIFF by hand, in either byte order, in strips."""
    strips = [pixels[row : row + rows_per_strip].tobytes() for row in range(0, len(pixels), rows_per_strip)]
    offsets = np.cumsum([8, *map(len, strips)])
    entries: dict[int, tuple[int, ...]] = {256: (96,), 257: (96,), 258: (8, 8, 8), 259: (1,), 262: (2,), 277: (3,)}
    entries |= {273: tuple(map(int, offsets[:-1])), 278: (rows_per_strip,), 279: tuple(map(len, strips))}
    entries |= more or {}
    directory, extra = int(offsets[-1]), b""
    fields = struct.pack(f"{order}H", len(entries))
    for tag, values in sorted(entries.items()):
        code, kind = ("L", 4) if tag in (273, 279) else ("H", 3)
        packed = struct.pack(f"{order}{len(values)}{code}", *values)
        if len(packed) > 4:
            place = directory + 2 + 12 * len(entries) + 4 + len(extra)
            extra += packed
            packed = struct.pack(f"{order}L", place)
        fields += struct.pack(f"{order}HHL", tag, kind, len(values)) + packed.ljust(4, b"\0")
    magic = b"II*\0" if order == "<" else b"MM\0*"
    return magic + struct.pack(f"{order}L", directory) + b"".join(strips) + fields + bytes(4) + extra


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("rows_per_strip", [96, 10])
def test_plain_tiff_has_the_pixels_that_pillow_reads(order: str, rows_per_strip: int, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (96, 96, 3), dtype=np.uint8)
    content = _tiff(pixels, order, rows_per_strip)
    assert plain_tiff(content) == pixels.tobytes()
    (tmp_path / "plain.tif").write_bytes(content)
    assert np.asarray(Image.open(tmp_path / "plain.tif")).tobytes() == pixels.tobytes()


@pytest.mark.parametrize(
    "more",
    [
        {259: (5,)}, {262: (1,)}, {274: (3,)}, {284: (2,)}, {339: (3, 3, 3)},
        {278: (96,)}, {278: (9,)}, {278: (0,)}, {322: (96,)}, {338: (0,)}, {700: (60, 120)},
    ],
)  # fmt: skip
def test_any_other_tiff_is_left_to_pillow(more: dict[int, tuple[int, ...]]) -> None:
    assert plain_tiff(_tiff(np.zeros((96, 96, 3), dtype=np.uint8), rows_per_strip=10, more=more)) is None


def test_files_as_kaggle_has_them_are_read_without_pillow(drawn: Path) -> None:
    path = next((drawn / "train").iterdir())
    assert plain_tiff(path.read_bytes()) == _pixels(path).tobytes()


def test_cut_and_foreign_files_are_left_to_pillow(tmp_path: Path) -> None:
    content = _tiff(np.zeros((96, 96, 3), dtype=np.uint8))
    rng = np.random.default_rng(0)
    for size in (0, 3, 4, 7, 8, 100, 27_656, len(content) - 5, len(content) - 30):
        assert plain_tiff(content[:size]) is None
    assert plain_tiff(_tiff(np.zeros((95, 96, 3), dtype=np.uint8))) is None
    for _ in range(2000):
        assert plain_tiff(b"II*\0" + rng.bytes(200)) is None
    image = Image.fromarray(rng.integers(0, 256, (96, 96, 3), dtype=np.uint8))
    for compression in ("tiff_lzw", "tiff_adobe_deflate", "packbits"):
        image.save(tmp_path / "small.tif", compression=compression)
        assert plain_tiff((tmp_path / "small.tif").read_bytes()) is None
        assert read_patch(tmp_path / "small.tif") == image.tobytes()
