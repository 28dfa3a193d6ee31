"""Groups on both sides of a split are found at every level that is known."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import CONFIGS, FAST
from PIL import Image

from pcam_lightning import PCamDataModule
from pcam_lightning.cli.main import main
from pcam_lightning.data.leakage import find_slide_leakage, keep_apart
from pcam_lightning.evaluation.labeled_predictions import LabeledPredictions, describe_leakage
from pcam_lightning.utils.errors import UserError


def write_patches(root: Path, count: int, seed: int = 0, **columns: list[str]) -> Path:
    """Write patches of noise, labeled 0 and 1 by turns, and a CSV of them with more columns; return the CSV."""
    root.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    for index in range(count):
        Image.fromarray(rng.integers(0, 256, (96, 96, 3), dtype=np.uint8)).save(root / f"{index:02d}.png")
    rows = pd.DataFrame({"path": [f"{index:02d}.png" for index in range(count)], "label": np.arange(count) % 2})
    rows.assign(**columns).to_csv(root / "patches.csv", index=False)
    return root / "patches.csv"


def spread(*names: str, times: int = 4) -> list[str]:
    """Return each name so many times, one after the other."""
    return [name for name in names for _ in range(times)]


def test_a_training_patch_that_several_slides_have_puts_none_of_them_on_both_sides() -> None:
    table = pd.DataFrame(
        {"id": list("abcd"), "slide": ["s", "s", "t", "t"], "pixel_sha1": ["1", "glass", "2", "glass"], "label": 0}
    )
    mask = np.array([True, False, False, False])
    assert find_slide_leakage(table, mask, by_file=False).message == ""
    message = find_slide_leakage(table.assign(pixel_sha1=list("1234")), mask, by_file=False).message
    assert message == "1 of 1 validation patches are of slides that train it too"
    patients = table.rename(columns={"slide": "patient"})  # the same glass in two patients
    assert find_slide_leakage(patients, mask).message == ""


def test_slides_on_both_sides_are_told_and_unknown_ones_may_be() -> None:
    mask = np.array([True, True, False, False])
    rows = pd.DataFrame({"id": list("abcd")})
    assert find_slide_leakage(rows, mask, by_file=False)[:2] == ("patches of one slide are on both sides", True)
    assert find_slide_leakage(rows, mask, by_file=True).verb == "may be optimistic"
    for slides, message in (
        (["s", "t", "u", "v"], ""),
        (["s", "t", "t", "v"], "1 of 2 validation patches are of slides that train it too"),
        (["s", "t", "unknown", "v"], "1 patches are of unknown slides, which may be on both sides"),
        (["s", None, "u", "v"], "1 patches are of unknown slides, which may be on both sides"),
        (["s", None, "s", None], "1 of 2 validation patches are of slides that train it too"),
    ):
        assert find_slide_leakage(rows.assign(slide=pd.Series(slides)), mask, by_file=False).message == message


@pytest.mark.parametrize(
    ("columns", "holdout", "message", "certain"),
    [
        ({"patient": "ppqq", "center": "aabb"}, "center", "", True),
        ({"patient": "pqqr", "center": "aabb"}, "center", "of patients that", False),
        ({"slide": "stuv", "patient": "pqqr", "center": "aabb"}, "center", "of patients that", False),
        ({"slide": "sttv", "patient": "pqrs", "center": "aabb"}, "center", "of slides that", True),
        ({"slide": "sttv", "scanner": "aabb"}, "scanner", "of slides that", True),
        ({"patient": "ppqq", "center": "abab"}, "patient", "", True),  # another patient of a hospital is no leak
        ({"slide": "stuv", "center": "abab"}, "center", "of centers that", True),
        ({"slide": "stuv", "scanner": "abab"}, "scanner", "of groups of scanner that", True),
        ({"slide": "stuv", "scanner": ["a", "", "b", None]}, "scanner", "2 patches are of unknown groups of", False),
        ({"scanner": "aabb"}, "scanner", "patches of one slide may be", False),
        ({"center": ["unknown", "unknown", "b", "b"]}, None, "patches of one slide are", True),
        ({"center": "abab"}, None, "patches of one slide are", True),
    ],
)
def test_every_known_level_is_checked(
    columns: dict[str, str | list[str]], holdout: str | None, message: str, certain: bool
) -> None:
    rows = pd.DataFrame({"id": list("abcd"), **{name: pd.Series(list(cells)) for name, cells in columns.items()}})
    for part in (np.array([True, True, False, False]), np.array([0, 0, 1, 1])):  # a validation part; two folds
        found = find_slide_leakage(rows, part, holdout=holdout)
        assert (message in found.message, bool(found.message), found.certain) == (True, bool(message), certain)
        if part.dtype != bool:
            assert not found.message or found.message.endswith("in several folds")


def test_a_crossval_by_center_with_patients_of_two_centers_may_be_optimistic() -> None:
    rows = pd.DataFrame({"id": list("abcd"), "patient": list("pqqr"), "center": list("aabb"), "fold": [0, 0, 1, 1]})
    crossval = LabeledPredictions(rows, Path("report"), split={"holdout": "center"})
    expected = "This score may be optimistic: 2 of 4 patches are of patients that are in several folds."
    assert describe_leakage(crossval) == expected


def test_fit_names_patients_in_the_held_out_center(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    center, patient = spread("a", "b", times=8), spread("p", "q", "q", "r")
    file = write_patches(tmp_path / "data", 16, center=center, patient=patient)
    args = ["fit", "-c", str(CONFIGS / "base.yaml"), "--data.root", str(file), "--data.holdout=center", *FAST]
    assert main([*args, "--trainer.max_epochs=1"]) == 0
    assert (
        "val/auroc may be optimistic: 4 of 8 validation patches are of patients that train it too. --data.holdout "
        "patient holds out whole patients."
    ) in capsys.readouterr().err


@pytest.mark.parametrize("own", [True, False])
def test_extra_patches_of_the_held_out_column_are_left_out(
    own: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_patches(tmp_path / "data", 12, scanner=spread("x", "y", "z"))
    scanner = {"scanner": [*spread("x", "y", times=3), "", "w"]} if own else {}
    extra = write_patches(tmp_path / "extra", 8, seed=1, **scanner)
    data = PCamDataModule(file, holdout="scanner", folds=3, fold=1, extra_train=extra)
    data.setup("fit")
    assert set(data.table["scanner"][data.val_mask]) == {"y"}
    printed = capsys.readouterr().err
    if own:
        assert data.train_table["scanner"].tolist() == [*spread("x", "z"), "x", "x", "x", "", "w"]
        assert "3 left out, since they or their groups validate" in printed
    assert len(data.train_table) == (13 if own else 16)
    unnamed = "1 of its 5" if own else "8 of its 8"
    assert f"{extra} does not name the scanner of {unnamed} patches, which may be one that validates." in printed


def test_extra_patches_are_kept_apart_by_every_level() -> None:
    table = pd.DataFrame({"pixel_sha1": ["1", "2"], "scanner": ["x", "unknown"], "patient": ["p", "q"]})
    extra = pd.DataFrame({"pixel_sha1": list("abcd"), "scanner": ["x", "y", "unknown", None], "patient": list("rprr")})
    val = np.array([True, False])
    assert keep_apart(extra, table, val, "scanner").tolist() == [False, False, True, True]
    assert keep_apart(extra, table, val).tolist() == [True, False, True, True]


def test_bare_glass_of_a_slide_that_validates_does_not_let_its_extra_patches_train() -> None:
    table = pd.DataFrame({"pixel_sha1": ["1", "glass", "glass", "2"], "slide": list("sstt")})
    extra = pd.DataFrame({"pixel_sha1": ["3", "4"], "slide": list("st")})
    assert keep_apart(extra, table, np.array([True, False, False, False])).tolist() == [False, True]


def test_patches_without_a_group_are_counted_and_split_as_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_patches(tmp_path / "data", 12, scanner=spread("x", "", "z"))
    data = PCamDataModule(file, holdout="scanner", folds=3)
    data.setup("fit")
    printed = capsys.readouterr().err
    assert "4 of 12 patches have no scanner; they are split as one group, unknown, though they may be" in printed
    assert "scanner unknown validates" in printed
    with pytest.raises(UserError, match="there are 3 groups of scanner"):
        PCamDataModule(file, holdout="scanner", folds=4).setup("fit")
