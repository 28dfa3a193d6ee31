"""Image files of many kinds, good and bad, built in code."""

import io
import struct
import zipfile
import zlib
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, PngImagePlugin

from pcam_lightning.synthetic.kaggle_folder import sample_slide
from pcam_lightning.synthetic.tissue import synthesize_patch

PNG = b"\x89PNG\r\n\x1a\n"
DAMAGED = "damaged"
MANY = "The image is too large"


class Refused(NamedTuple):
    """A file that is refused.

    Attributes:
        content: of the file.
        status: of the response.
        phrase: that the reason contains.
    """

    content: bytes
    status: int
    phrase: str


def draw(count: int, seed: int = 0) -> np.ndarray:
    """Return patches of synthetic tissue, uint8 (N, 96, 96, 3), half of them with tumor."""
    rng = np.random.default_rng(seed)
    return np.stack([synthesize_patch(rng, sample_slide(rng, "drawn", 1.0), number % 2)[0] for number in range(count)])


def encode(pixels: np.ndarray | Image.Image, kind: str = "png", **options: Any) -> bytes:
    """Return an image as a file."""
    buffer = io.BytesIO()
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def good_files(patch: np.ndarray) -> dict[str, bytes]:
    """Return a patch, uint8 (96, 96, 3), in all forms that keep its pixels."""
    alpha = np.dstack([patch, np.full((96, 96), 255, dtype=np.uint8)])
    return {
        "png": encode(patch),
        "tiff": encode(patch, "tiff"),
        "tiff_lzw": encode(patch, "tiff", compression="tiff_lzw"),
        "tiff_deflate": encode(patch, "tiff", compression="tiff_adobe_deflate"),
        "bmp": encode(patch, "bmp"),
        "png_opaque": encode(alpha),
        "tiff_opaque": encode(alpha, "tiff"),
        "png_with_text_behind": encode(patch) + b"<script>alert(1)</script>",
    }


def chunk(kind: bytes, content: bytes) -> bytes:
    """Return a chunk of a PNG."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, bits: int, color: int, rows: bytes, *others: bytes) -> bytes:
    """Return a PNG with a header of choice."""
    header = struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, 0)
    return PNG + chunk(b"IHDR", header) + b"".join(others) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def tiff(**changes: int) -> bytes:
    """Return a deflated TIFF of gray pixels with some tags changed: width, height, rows, tile."""
    width, height = changes.get("width", 96), changes.get("height", 96)
    data = zlib.compress(bytes(96 * 96))
    tags = [(256, width), (257, height), (258, 8), (259, 8), (262, 1), (277, 1)]
    start = 8 + len(data)
    if tile := changes.get("tile"):
        tags += [(322, tile), (323, tile), (324, 8), (325, len(data))]
    else:
        tags += [(273, 8), (278, changes.get("rows", 96)), (279, len(data))]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(tags))
    return b"II*\0" + struct.pack("<I", start) + data + struct.pack("<H", len(tags)) + entries + b"\0\0\0\0"


def planar_tiff(channel: np.ndarray) -> bytes:
    """Return a TIFF of RGB pixels whose channels, all alike, lie one after another; uint8 or uint16 (H, W)."""
    (height, width), bits, size = channel.shape, 8 * channel.itemsize, channel.nbytes
    tags = [(256, width), (257, height), (258, [bits] * 3), (259, 1), (262, 2), (273, [8 + n * size for n in range(3)])]
    tags += [(277, 3), (278, height), (279, [size] * 3), (284, 2)]
    entries, more = b"", b""
    for tag, value in tags:
        values = value if isinstance(value, list) else [value]
        place = 8 + 3 * size + len(more) if len(values) > 1 else values[0]
        more += struct.pack(f"<{len(values)}I", *values) if len(values) > 1 else b""
        entries += struct.pack("<HHII", tag, 4, len(values), place)
    start = 8 + 3 * size + len(more)
    directory = struct.pack("<H", len(tags)) + entries + b"\0\0\0\0"
    return b"II*\0" + struct.pack("<I", start) + 3 * channel.tobytes() + more + directory


def turned(patch: np.ndarray, kind: str) -> bytes:
    """Return a patch as a file whose Orientation tag turns it by a quarter."""
    tags = Image.Exif()
    tags[274] = 6
    return encode(patch, kind, exif=tags)


def bad_files(patch: np.ndarray) -> dict[str, Refused]:
    """Return files that are refused, by what is wrong with them."""
    return {**_no_images(), **_damaged(patch), **_other_sizes(), **_other_pixels(patch), **_no_tissue(patch)}


def _no_images() -> dict[str, Refused]:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("patch.png", "nothing")
    drawing = Image.new("RGB", (96, 96), "purple")
    contents = {
        "text": (b"id,label\n1,0\n", "not an image"),
        "html": (b"<html><script>alert(1)</script></html>", "not an image"),
        "noise": (np.random.default_rng(0).bytes(30000), "not an image"),
        "zeros": (bytes(30000), "not an image"),
        "pickle": (b"\x80\x04\x8c\x05posix\x8c\x06system\x93.", "not an image"),
        "eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 96 96\n", "not an image"),
        "zip": (archive.getvalue(), "ZIP"),
        "gif": (encode(drawing, "gif"), "GIF"),
        "webp": (encode(drawing, "webp"), "WebP"),
        "pdf": (encode(drawing, "pdf"), "PDF"),
        "jpeg_2000": (encode(drawing, "jpeg2000"), "JPEG 2000"),
        "hdf5": (b"\x89HDF\r\n\x1a\n" + bytes(100), "HDF5"),
        "svg": (b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>", "SVG"),
        "ico": (encode(drawing, "ico"), "not an image"),
        "ppm": (encode(drawing, "ppm"), "not an image"),
        "multipart": (b'--x\r\nContent-Disposition: form-data; name="file"\r\n\r\nabc\r\n--x--\r\n', "not an image"),
    }
    found = {name: Refused(content, 415, phrase) for name, (content, phrase) in contents.items()}
    return {"empty": Refused(b"", 422, "empty"), **found}


def _damaged(patch: np.ndarray) -> dict[str, Refused]:
    whole = encode(patch)
    jpeg, plain, packed = encode(patch, "jpeg"), encode(patch, "tiff"), encode(patch, "tiff", compression="tiff_lzw")
    return {
        "png_of_eight_bytes": Refused(PNG, 415, DAMAGED),
        "png_header_alone": Refused(whole[:40], 415, DAMAGED),
        "png_truncated": Refused(whole[: len(whole) // 2], 422, DAMAGED),
        "png_wrong_checksum": Refused(whole[:29] + b"\0\0\0\0" + whole[33:], 415, DAMAGED),
        "png_without_pixels": Refused(png(96, 96, 8, 2, b""), 422, DAMAGED),
        "tiff_of_four_bytes": Refused(b"II*\0", 415, DAMAGED),
        "tiff_truncated": Refused(plain[:10000], 422, DAMAGED),
        "tiff_lzw_truncated": Refused(packed[:3000], 415, DAMAGED),
        "jpeg_truncated": Refused(jpeg[: len(jpeg) // 2], 422, DAMAGED),
        "jpeg_header_alone": Refused(jpeg[:20], 415, DAMAGED),
        "bmp_truncated": Refused(encode(patch, "bmp")[:9000], 422, DAMAGED),
    }


def _other_sizes() -> dict[str, Refused]:
    text = chunk(b"zTXt", b"comment\0\0" + zlib.compress(bytes(50_000_000)))
    return {
        "one_pixel": Refused(encode(Image.new("RGB", (1, 1))), 422, "1 x 1 pixels"),
        "95_x_96": Refused(encode(Image.new("RGB", (95, 96))), 422, "95 x 96 pixels"),
        "224_x_224_jpeg": Refused(encode(Image.new("RGB", (224, 224)), "jpeg"), 422, "224 x 224 pixels"),
        "64_x_64_tiff": Refused(encode(Image.new("RGB", (64, 64)), "tiff"), 422, "64 x 64 pixels"),
        "png_of_10_gigabytes": Refused(png(60000, 60000, 8, 2, b""), 422, MANY),
        "png_of_300_megabytes": Refused(png(10000, 10000, 8, 2, b""), 422, "10000 x 10000 pixels"),
        "tiff_of_4_gigabytes": Refused(tiff(width=65535, height=65535), 422, MANY),
        "bmp_of_3_gigabytes": Refused(
            b"BM" + struct.pack("<IHHIIiiHHIIIIII", 54, 0, 0, 54, 40, 32000, 32000, 1, 24, 0, 0, 0, 0, 0, 0), 422, MANY
        ),
        "tiff_tile_of_16_gigabytes": Refused(tiff(tile=131072), 422, "tiles"),
        "tiff_strip_of_2_gigabytes": Refused(tiff(rows=2**31 - 1), 422, ""),
        "png_text_of_50_megabytes": Refused(png(96, 96, 8, 2, b"", text), 422, DAMAGED),
    }


def _other_pixels(patch: np.ndarray) -> dict[str, Refused]:
    image = Image.fromarray(patch)
    red = np.dstack([patch, patch[..., :1]])
    wide = np.zeros((96, 96), dtype=np.uint16)
    palette = image.convert("P")
    frames = [image, image.rotate(90)]
    return {
        "png_16_bit_gray": Refused(encode(Image.fromarray(wide)), 422, "16"),
        "png_16_bit_rgb": Refused(png(96, 96, 16, 2, (b"\0" + bytes(96 * 6)) * 96), 422, "16 bits"),
        "tiff_16_bit": Refused(encode(Image.fromarray(wide), "tiff"), 422, "16"),
        "tiff_16_bit_planes": Refused(planar_tiff(wide), 422, "16 bits"),
        "tiff_float": Refused(encode(Image.fromarray(wide.astype(np.float32)), "tiff"), 422, "type F"),
        "tiff_cmyk": Refused(encode(image.convert("CMYK"), "tiff"), 422, "CMYK"),
        "jpeg_cmyk": Refused(encode(image.convert("CMYK"), "jpeg"), 422, "CMYK"),
        "tiff_lab": Refused(encode(Image.fromarray(patch, "LAB"), "tiff"), 422, "LAB"),
        "png_1_bit": Refused(encode(image.convert("1")), 422, "type 1"),
        "png_transparent": Refused(encode(red), 422, "transparent"),
        "png_palette_transparent": Refused(encode(palette, transparency=0), 422, "transparent"),
        "png_animated": Refused(encode(image, save_all=True, append_images=frames[1:]), 422, "several"),
        "tiff_of_two_pages": Refused(encode(image, "tiff", save_all=True, append_images=frames[1:]), 422, "several"),
        "jpeg_of_two_pictures": Refused(encode(image, "mpo", save_all=True, append_images=frames[1:]), 422, "several"),
    }


def _no_tissue(patch: np.ndarray) -> dict[str, Refused]:
    steps = np.linspace(150, 230, 96).astype(np.uint8)
    smooth = np.repeat(np.repeat(steps[None, :, None], 96, axis=0), 3, axis=2)
    info = PngImagePlugin.PngInfo()
    info.add_text("path", "/etc/passwd")
    return {
        "black": Refused(encode(np.zeros_like(patch), pnginfo=info), 422, "black"),
        "blank": Refused(encode(np.full_like(patch, 245), "tiff"), 422, "blank"),
        "out_of_focus": Refused(encode(smooth), 422, "out of focus"),
        "gray_and_blank": Refused(encode(np.full((96, 96), 200, dtype=np.uint8)), 422, "blank"),
    }
