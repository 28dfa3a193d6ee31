"""The split: exact counts, the same for the same patches, duplicates on one side, written and read back."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.neighbors import KNeighborsClassifier

from pcam_lightning.messages import UserError
from pcam_lightning.scores import auroc, draw_scores, interval
from pcam_lightning.split import hold_out, join_groups, read_split, split_groups, write_split
from pcam_lightning.store import open_store
from pcam_lightning.synthetic import synthesize
from pcam_lightning.table import read_test, read_train


def _table(negative: int, positive: int, seed: int = 0) -> pd.DataFrame:
    ids = [f"{n:08x}" for n in np.random.default_rng(seed).permutation(negative + positive)]
    labels = np.repeat([0, 1], [negative, positive]).astype(np.int8)
    return pd.DataFrame({"id": ids, "label": labels, "pixel_sha1": ids})


def _random(table: pd.DataFrame, fraction: float, seed: int) -> np.ndarray:
    return hold_out(table, table["pixel_sha1"].to_numpy(), fraction, seed)


def test_counts_at_kaggles_size() -> None:
    table = _table(130_908, 89_117)
    mask = _random(table, 0.2, 42)
    assert (mask.sum(), (~mask).sum()) == (44_004, 176_021)
    assert mask[table["label"] == 0].sum() == int(0.2 * 130_908)


def test_order_of_rows_does_not_matter_and_the_seed_does() -> None:
    table = _table(300, 200)
    table["pixel_sha1"] = np.arange(500) // 3
    mask = _random(table, 0.2, 42)
    shuffled = table.sample(frac=1, random_state=1)
    assert set(table["id"][mask]) == set(shuffled["id"][_random(shuffled, 0.2, 42)])
    assert set(table["id"][mask]) != set(table["id"][_random(table, 0.2, 43)])


@pytest.mark.parametrize("seed", range(5))
def test_duplicates_stay_on_one_side_and_singles_fill_up(seed: int) -> None:
    table = _table(300, 200)
    table.loc[table.index % 5 == 0, "pixel_sha1"] = (table.index[table.index % 5 == 0] // 15).astype(str)
    mask = _random(table, 0.2, seed)
    sides = table.assign(val=mask).groupby("pixel_sha1")["val"].agg(["min", "max"])
    assert (sides["min"] == sides["max"]).all()
    assert mask[table["label"] == 0].sum() == 60
    assert mask[table["label"] == 1].sum() == 40


def _slides(count: int, seed: int) -> pd.DataFrame:
    """Return patches of slides as unequal as CAMELYON16's: half of them without tumour."""
    rng = np.random.default_rng(seed)
    rows = []
    for slide in range(count):
        size = int(rng.lognormal(4, 0.8)) + 5
        label = (rng.random(size) < 0.7).astype(np.int8) if slide % 2 else np.zeros(size, dtype=np.int8)
        rows.append(pd.DataFrame({"slide": f"slide_{slide:03d}", "label": label}))
    table = pd.concat(rows, ignore_index=True)
    table["id"] = [f"{n:08x}" for n in rng.permutation(len(table))]
    return table


@pytest.mark.parametrize("seed", range(5))
def test_slides_stay_whole_and_both_classes_get_their_share(seed: int) -> None:
    table = _slides(200, 0)
    mask = hold_out(table, table["slide"].to_numpy(), 0.2, seed)
    assert not set(table["slide"][mask]) & set(table["slide"][~mask])
    for label in (0, 1):
        assert mask[table["label"] == label].mean() == pytest.approx(0.2, abs=0.01)
    assert 20 <= table["slide"][mask].nunique() <= 60
    assert not np.array_equal(mask, hold_out(table, table["slide"].to_numpy(), 0.2, seed + 1))


@pytest.mark.parametrize("grouped", [True, False])
def test_folds_share_no_patch_and_hold_all(grouped: bool) -> None:
    table = _slides(100, 1)
    group = table["slide" if grouped else "id"].to_numpy()
    masks = [hold_out(table, group, 0.2, 7, folds=5, fold=fold) for fold in range(5)]
    assert (np.sum(masks, axis=0) == 1).all()
    for mask in masks:
        assert mask.mean() == pytest.approx(0.2, abs=0.02)
        assert table["label"][mask].mean() == pytest.approx(table["label"].mean(), abs=0.05)
        assert not grouped or not set(group[mask]) & set(group[~mask])


def test_groups_that_share_a_patch_are_one() -> None:
    slide = np.array(["a", "a", "b", "b", "c", "d"])
    sha1 = np.array(["1", "2", "2", "3", "4", "5"])
    joined = join_groups(slide, sha1)
    assert len(set(joined[:4])) == 1
    assert len(set(joined)) == 3


def test_fraction_zero_trains_on_everything() -> None:
    assert not _random(_table(30, 20), 0, 42).any()


@pytest.mark.parametrize(
    ("negative", "positive", "folds", "expected"),
    [
        (30, 4, None, "34 patches in 34 groups leave none of label 1 for part 1 of 2"),
        (30, 3, 5, "--data.folds 5: 33 patches in 33 groups leave none of label 1"),
    ],
)
def test_class_without_a_validation_patch(negative: int, positive: int, folds: int | None, expected: str) -> None:
    table = _table(negative, positive)
    with pytest.raises(UserError, match=expected):
        hold_out(table, table["id"].to_numpy(), 0.2, 42, folds, 2 if folds else 0)


@given(st.lists(st.tuples(st.integers(0, 12), st.booleans()), min_size=1, max_size=60), st.integers(0, 3))
def test_any_groups_are_dealt_whole_whatever_their_order(rows: list[tuple[int, bool]], seed: int) -> None:
    table = pd.DataFrame({"id": [f"{n:03d}" for n in range(len(rows))], "label": [int(label) for _, label in rows]})
    group = np.array([number for number, _ in rows])
    part = split_groups(table, group, [0.3, 0.3, 0.4], seed)
    assert set(part) <= {0, 1, 2}
    assert all(len(set(part[group == one])) == 1 for one in set(group))
    order = np.random.default_rng(0).permutation(len(rows))
    assert np.array_equal(split_groups(table.iloc[order], group[order], [0.3, 0.3, 0.4], seed), part[order])


def test_file_goes_round(tmp_path: Path) -> None:
    table = _table(30, 20)
    mask = _random(table, 0.2, 42)
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


def test_a_random_split_flatters_and_whole_slides_do_not(tmp_path: Path) -> None:
    """Neighbours in stain, a model that knows slides and nothing else: what is it worth on slides it has never seen?"""
    root = tmp_path / "drawn"
    synthesize(root, train=480, test=240, slides=32, seed=5, slide_effect=2)
    train, test = read_train(root), read_test(root, answers=True)
    stores = [open_store(table, root, part) for part, table in (("train", train), ("test", test))]
    images = np.concatenate(
        [store.images[store.rows(table["id"])] for store, table in zip(stores, (train, test), strict=True)]
    )
    pixels = images.reshape(len(images), -1, 3)
    features = np.hstack([pixels.mean(axis=1), pixels.std(axis=1), *np.percentile(pixels, [10, 90], axis=1)])
    features, label = (features - features.mean(axis=0)) / features.std(axis=0), train["label"].to_numpy()
    seen = features[: len(train)]

    def score(group: np.ndarray) -> tuple[float, float, float]:
        prob = np.empty(len(train))
        for fold in range(4):
            val = hold_out(train, group, 0.2, 0, folds=4, fold=fold)
            model = KNeighborsClassifier(10, weights="distance").fit(seen[~val], label[~val])
            prob[val] = model.predict_proba(seen[val])[:, 1]
        return interval(auroc(label, prob), draw_scores(label, prob, train["slide"].to_numpy(), 300)[0])

    model = KNeighborsClassifier(10, weights="distance").fit(seen, label)
    unseen = auroc(test["label"].to_numpy(), model.predict_proba(features[len(train) :])[:, 1])
    flattering, (_, low, high) = score(train["id"].to_numpy())[0], score(train["slide"].to_numpy())
    assert flattering > unseen + 0.05
    assert low <= unseen <= high
