"""What uploads become: an Orientation tag turns them as it turns a patch in a folder."""

from pathlib import Path

import numpy as np
import pytest
from patch_files import draw, encode, planar_tiff, turned
from PIL import Image

from pcam_lightning.data.image_io import read_patch
from pcam_lightning.serve.upload import read_patch_bytes

PATCH = draw(1)[0]


@pytest.mark.parametrize("kind", ["png", "tiff"])
def test_an_orientation_tag_turns_a_patch_whatever_its_format(kind: str, tmp_path: Path) -> None:
    content = turned(PATCH, kind)
    (tmp_path / f"a.{kind}").write_bytes(content)
    upright = np.rot90(PATCH, -1)
    assert np.array_equal(read_patch_bytes(content), upright)
    assert read_patch(tmp_path / f"a.{kind}") == upright.tobytes()


def test_an_orientation_tag_turns_a_jpeg(tmp_path: Path) -> None:
    content, path = turned(PATCH, "jpeg"), tmp_path / "a.jpg"
    path.write_bytes(content)
    upright = np.rot90(read_patch_bytes(encode(PATCH, "jpeg")), -1)
    assert np.array_equal(read_patch_bytes(content), upright)
    assert read_patch(path, lambda image: image) == upright.tobytes()


def test_a_patch_is_one_image_of_8_bits(tmp_path: Path) -> None:
    image = Image.fromarray(PATCH)
    image.save(tmp_path / "two.tif", save_all=True, append_images=[image])
    with pytest.raises(ValueError, match="2 images in one file"):
        read_patch(tmp_path / "two.tif")
    (tmp_path / "wide.tif").write_bytes(planar_tiff(np.full((96, 96), 4000, dtype=np.uint16)))
    with pytest.raises(ValueError, match="16 bits a channel"):
        read_patch(tmp_path / "wide.tif")
    (tmp_path / "planes.tif").write_bytes(planar_tiff(PATCH[..., 0].copy()))
    assert read_patch(tmp_path / "planes.tif") == np.repeat(PATCH[..., :1], 3, axis=2).tobytes()
