"""Flags of patches, found in patches that were made so."""

import hashlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.ndimage import gaussian_filter

from pcam_lightning.data.packed_store import PackedStore, open_store
from pcam_lightning.data.quality import KINDS, find_flagged, measure_quality
from pcam_lightning.data.sources import open_source, read_train


@pytest.fixture(scope="module")
def tissue(drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    """Return drawn patches, the sharpest first."""
    store = open_store(read_train(drawn), open_source(drawn), "train", tmp_path_factory.mktemp("cache"))
    return store.images[np.argsort(-measure_quality(store)["sharpness"].to_numpy())]


def _store(images: list[np.ndarray], ids: dict[int, str] | None = None) -> PackedStore:
    packed = np.stack(images).astype(np.uint8)
    sha1 = np.array([hashlib.sha1(image.tobytes()).hexdigest() for image in packed])
    names = np.array([(ids or {}).get(number, f"p{number}") for number in range(len(packed))])
    return PackedStore(Path("images.npy"), packed, names, sha1, "")


def _odd(store: PackedStore, label: list[float] | None = None) -> dict[str, list[tuple[str, str]]]:
    found = find_flagged(measure_quality(store).assign(part="train", label=label or np.nan))
    return {str(kind): list(zip(rows["id"], rows["of"], strict=True)) for kind, rows in found.groupby("kind")}


def test_black_blank_and_out_of_focus_patches_are_found_and_others_left_alone(tissue: np.ndarray) -> None:
    rng = np.random.default_rng(0)
    sharp, other = tissue[0], tissue[1]
    dark = rng.integers(0, 12, sharp.shape)
    glass = 235 + rng.integers(0, 6, sharp.shape)
    blurred = gaussian_filter(sharp.astype(float), (4, 4, 0))
    found = _odd(_store([sharp, other, dark, np.zeros_like(sharp), glass, np.full_like(sharp, 255), blurred]))
    assert found == {"black": [("p2", ""), ("p3", "")], "blank": [("p4", ""), ("p5", "")], "out of focus": [("p6", "")]}


def test_copies_name_the_first_and_contradictions_are_told_apart(tissue: np.ndarray) -> None:
    store = _store([tissue[0], tissue[1], tissue[0], tissue[1], tissue[1], tissue[2]])
    found = _odd(store, label=[0, 0, 1, 0, np.nan, 1])
    assert found["copies"] == [("p2", "p0"), ("p3", "p1"), ("p4", "p1")]
    assert found["copies with another label"] == [("p0", "p0"), ("p2", "p0")]  # a missing label contradicts nothing


def test_an_id_that_looks_like_a_hash_should_be_that_of_the_pixels(tissue: np.ndarray) -> None:
    right = hashlib.sha1(tissue[0].tobytes()).hexdigest()
    found = _odd(_store(list(tissue[:3]), {0: right, 1: "0" * 40}))
    assert found == {"ids that do not match": [("0" * 40, "")]}


def test_sharpness_falls_with_blur_and_not_with_contrast(tissue: np.ndarray) -> None:
    sharp = tissue[0].astype(float)
    blurs = [np.clip(gaussian_filter(sharp, (sigma, sigma, 0)), 0, 255) for sigma in (0, 0.5, 1, 2, 4)]
    sharpness = measure_quality(_store(blurs))["sharpness"].to_numpy()
    assert (np.diff(sharpness) < 0).all()
    flat = measure_quality(_store([sharp, 128 + (sharp - 128) / 2]))["sharpness"]
    assert flat[1] == pytest.approx(flat[0], rel=0.05)


def test_measured_by_hand(tissue: np.ndarray) -> None:
    measured = measure_quality(_store([tissue[3]])).iloc[0]
    green = tissue[3][..., 1].astype(float)
    edges = green[:-2, 1:-1] + green[2:, 1:-1] + green[1:-1, :-2] + green[1:-1, 2:] - 4 * green[1:-1, 1:-1]
    assert measured["brightness"] == pytest.approx(tissue[3].mean(), rel=1e-5)
    assert measured["spread"] == pytest.approx(green.std(ddof=1), rel=1e-5)
    assert measured["sharpness"] == pytest.approx(edges.var(ddof=1) / green.var(ddof=1), rel=1e-4)


def test_every_kind_is_explained_and_no_patch_is_no_list() -> None:
    numbers = ["brightness", "spread", "sharpness"]
    none = pd.DataFrame(columns=["part", "id", "pixel_sha1", *numbers], dtype=str).astype(dict.fromkeys(numbers, float))
    flagged = find_flagged(none)
    assert flagged.empty
    assert list(flagged.columns) == ["part", "id", "kind", "of"]
    assert all(KINDS.values())
