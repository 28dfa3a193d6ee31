"""The split: exact counts, the same for the same patches, duplicates on one side, written and read back."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pcam_lightning.messages import UserError
from pcam_lightning.split import read_split, stratified_split, write_split


def _table(negative: int, positive: int, seed: int = 0) -> pd.DataFrame:
    ids = [f"{n:08x}" for n in np.random.default_rng(seed).permutation(negative + positive)]
    labels = np.repeat([0, 1], [negative, positive]).astype(np.int8)
    return pd.DataFrame({"id": ids, "label": labels, "pixel_sha1": ids})


def test_counts_at_kaggles_size() -> None:
    table = _table(130_908, 89_117)
    mask = stratified_split(table, 0.2, 42)
    assert (mask.sum(), (~mask).sum()) == (44_004, 176_021)
    assert mask[table["label"] == 0].sum() == int(0.2 * 130_908)


def test_order_of_rows_does_not_matter_and_the_seed_does() -> None:
    table = _table(300, 200)
    mask = stratified_split(table, 0.2, 42)
    shuffled = table.sample(frac=1, random_state=1)
    assert set(table["id"][mask]) == set(shuffled["id"][stratified_split(shuffled, 0.2, 42)])
    assert set(table["id"][mask]) != set(table["id"][stratified_split(table, 0.2, 43)])


@pytest.mark.parametrize("seed", range(5))
def test_duplicates_stay_on_one_side_and_singles_fill_up(seed: int) -> None:
    table = _table(300, 200)
    table.loc[table.index % 5 == 0, "pixel_sha1"] = (table.index[table.index % 5 == 0] // 15).astype(str)
    mask = stratified_split(table, 0.2, seed)
    sides = table.assign(val=mask).groupby("pixel_sha1")["val"].agg(["min", "max"])
    assert (sides["min"] == sides["max"]).all()
    assert mask[table["label"] == 0].sum() == 60
    assert mask[table["label"] == 1].sum() == 40


def test_says_by_how_much_duplicates_move_the_count(capsys: pytest.CaptureFixture[str]) -> None:
    table = _table(30, 20)
    groups = (table.index // 5).astype(str)  # of five negatives, and 6 is no multiple of that
    table["pixel_sha1"] = table["pixel_sha1"].where(table["label"] == 1, groups)
    mask = stratified_split(table, 0.2, 0)
    assert mask.sum() == 5 + 4
    assert re.search(r"warning: exact duplicates .*size: 1 short of 6 in label 0\.", capsys.readouterr().err)


def test_duplicates_that_leave_a_class_without_validation() -> None:
    table = _table(30, 20)
    table["pixel_sha1"] = (table.index // 5).astype(str)
    with pytest.raises(UserError, match="too many exact duplicates"):
        stratified_split(table, 0.2, 0)


def test_fraction_zero_trains_on_everything() -> None:
    assert not stratified_split(_table(30, 20), 0, 42).any()


@pytest.mark.parametrize("fraction", [-0.1, 1.0, float("nan")])
def test_fraction_out_of_range(fraction: float) -> None:
    with pytest.raises(UserError, match=r"--data.val_fraction"):
        stratified_split(_table(30, 20), fraction, 42)


def test_class_without_a_validation_patch() -> None:
    with pytest.raises(UserError, match="4 patches of label 1 leave none for validation"):
        stratified_split(_table(30, 4), 0.2, 42)


def test_file_goes_round(tmp_path: Path) -> None:
    table = _table(30, 20)
    mask = stratified_split(table, 0.2, 42)
    write_split(tmp_path / "split.csv", table, mask)
    shuffled = table.sample(frac=1, random_state=1)
    again = read_split(tmp_path / "split.csv", shuffled)
    assert set(shuffled["id"][again]) == set(table["id"][mask])


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "no such file"),
        ("", "not a split.csv"),
        ("name,split\na,val\n", "not a split.csv"),
        ("id,split\na,val\na,train\n", "not a split.csv"),
        ("id,split\na,test\n", "split 'test' is neither train nor val"),
        ("id,split\na,val\nb,train\n", "50 of 50 patches are not in it, and 2 of its ids are not among"),
    ],
)
def test_complaints_about_a_split_file(content: str | None, expected: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "split.csv").write_text(content)
    with pytest.raises(UserError, match=expected):
        read_split(tmp_path / "split.csv", _table(30, 20))
