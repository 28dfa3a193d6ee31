"""The split: exact counts, the same for the same patches, duplicates on one side, written and read back."""

import hashlib
import itertools
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import CONFIGS, FAST
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from sklearn.neighbors import KNeighborsClassifier

from pcam_lightning.cli.main import main
from pcam_lightning.data.datamodule import PCamDataModule
from pcam_lightning.data.splits import (
    join_groups,
    read_split,
    split_groups,
    validation_mask,
    write_split,
)
from pcam_lightning.metrics.bootstrap import Interval, bootstrap_scores, percentile_interval
from pcam_lightning.metrics.classification import auroc
from pcam_lightning.utils.errors import UserError


def _table(negative: int, positive: int, seed: int = 0) -> pd.DataFrame:
    ids = [f"{n:08x}" for n in np.random.default_rng(seed).permutation(negative + positive)]
    labels = np.repeat([0, 1], [negative, positive]).astype(np.int8)
    return pd.DataFrame({"id": ids, "label": labels, "pixel_sha1": ids})


def _random(table: pd.DataFrame, fraction: float, seed: int) -> np.ndarray:
    return validation_mask(table, table["pixel_sha1"].to_numpy(), fraction, seed)


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
    """Return patches of slides as unequal as CAMELYON16's: half of them without tumor."""
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
    mask = validation_mask(table, table["slide"].to_numpy(), 0.2, seed)
    assert not set(table["slide"][mask]) & set(table["slide"][~mask])
    for label in (0, 1):
        assert mask[table["label"] == label].mean() == pytest.approx(0.2, abs=0.01)
    assert 20 <= table["slide"][mask].nunique() <= 60
    assert not np.array_equal(mask, validation_mask(table, table["slide"].to_numpy(), 0.2, seed + 1))


@pytest.mark.parametrize("grouped", [True, False])
def test_folds_share_no_patch_and_hold_all(grouped: bool) -> None:
    table = _slides(100, 1)
    group = table["slide" if grouped else "id"].to_numpy()
    masks = [validation_mask(table, group, 0.2, 7, folds=5, fold=fold) for fold in range(5)]
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
        (30, 1, None, "31 patches in 31 groups .* leave none of label 1 for part 1 of 2; use more of them.$"),
        (30, 3, 5, "`data.folds` 5: 33 patches in 33 groups .* leave none of label 1 .* of them, or fewer folds.$"),
    ],
)
def test_class_without_a_validation_patch(negative: int, positive: int, folds: int | None, expected: str) -> None:
    table = _table(negative, positive)
    for fold in range(folds or 1):  # whichever is trained first: it is not found out after hours of the others
        with pytest.raises(UserError, match=expected):
            validation_mask(table, table["id"].to_numpy(), 0.2, 42, folds, fold)


def _random_groups(rng: np.random.Generator) -> tuple[pd.DataFrame, np.ndarray]:
    """Return patches of a few groups, pure and mixed ones, in which a class may be rare."""
    sizes = rng.integers(1, rng.integers(2, 12), rng.integers(2, 7))
    share = np.where(rng.random(len(sizes)) < 0.7, rng.random(len(sizes)) < rng.random(), rng.random(len(sizes)))
    group = np.repeat(np.arange(len(sizes)), sizes)
    label = (rng.random(len(group)) < share[group]).astype(int)
    return pd.DataFrame({"id": [f"{n:03d}" for n in range(len(group))], "label": label}), group


def _can_split(label: np.ndarray, group: np.ndarray, parts: int) -> bool:
    """Try all ways to deal groups to parts for one that gives each part both classes."""
    has = np.stack([np.bincount(group[label == value], minlength=group[-1] + 1) > 0 for value in (0, 1)], axis=1)
    ways = np.array(list(itertools.product(range(parts), repeat=len(has))))
    return bool(np.all([(ways == part) @ has for part in range(parts)], axis=(0, 2)).any())


def test_splits_of_earlier_versions_are_the_same() -> None:
    digest = hashlib.sha256()
    for seed in range(20):
        table = _slides(10 + seed, seed)
        for shares in ([0.2, 0.8], [1 / 3] * 3, [1 / 5] * 5):
            digest.update(split_groups(table, table["slide"].to_numpy(), shares, seed).astype(np.uint8).tobytes())
    for seed in (1302, 3286, 3373, 3501):  # a part is due a whole patch of one class alone, and gets a mixed group
        part = split_groups(*_random_groups(np.random.default_rng(seed)), [0.2, 0.8], seed)
        digest.update(part.astype(np.uint8).tobytes())
    assert digest.hexdigest()[:16] == "a5fc93dbc372c5d7"


def test_a_split_of_both_classes_is_found_wherever_there_is_one() -> None:
    possible = 0
    for seed in range(400):
        rng = np.random.default_rng(seed)
        table, group = _random_groups(rng)
        parts, label = 2 + seed % 4 // 3, table["label"].to_numpy()  # every fourth in three parts
        shares = [0.2, 0.8] if parts == 2 else [1 / 3] * 3
        part = split_groups(table, group, shares, seed)
        found = all(set(label[part == number]) == {0, 1} for number in range(parts))
        assert found == _can_split(label, group, parts), seed
        possible += found
    assert 100 < possible < 300


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


def _draw_slides(rng: np.random.Generator, slides: int) -> tuple[pd.DataFrame, np.ndarray]:
    """Draw 25 patches of each slide: features are of the label a little, of the slide a lot; tumor shares differ."""
    slide = np.repeat(np.arange(slides), 25)
    label = (rng.random(len(slide)) < rng.beta(0.7, 0.7, slides)[slide]).astype(int)
    features = rng.normal(0, 3, (slides, 6))[slide] + rng.normal(0, 1, (len(slide), 6))
    features[:, :2] += np.outer(label, [3, 2])
    table = pd.DataFrame({"id": [f"{n:05d}" for n in range(len(slide))], "label": label, "slide": slide})
    return table, features


def _neighbors(features: np.ndarray, label: np.ndarray, others: np.ndarray) -> np.ndarray:
    prob: np.ndarray = KNeighborsClassifier(10, weights="distance").fit(features, label).predict_proba(others)[:, 1]
    return prob


def _study(table: pd.DataFrame, features: np.ndarray, group: np.ndarray) -> Interval:
    """Score four folds of whole groups, with an interval over slides."""
    label, prob = table["label"].to_numpy(), np.empty(len(table))
    for fold in range(4):
        val = validation_mask(table, group, 0.2, 0, folds=4, fold=fold)
        prob[val] = _neighbors(features[~val], label[~val], features[val])
    return percentile_interval(auroc(label, prob), bootstrap_scores(label, prob, table["slide"].to_numpy(), 200)[0])


def test_a_random_split_flatters_and_the_interval_over_whole_slides_holds_what_others_give() -> None:
    """Twelve studies of 60 slides, each with the truth from 200 slides that it has not seen."""
    holds, flatters = [], []
    for seed in range(12):
        rng = np.random.default_rng(seed)
        (table, features), (unseen, of_unseen) = _draw_slides(rng, 60), _draw_slides(rng, 200)
        prob = _neighbors(features, table["label"].to_numpy(), of_unseen)
        truth = auroc(unseen["label"].to_numpy(), prob)
        at_random, by_slides = (_study(table, features, table[group].to_numpy()) for group in ("id", "slide"))
        assert by_slides.low is not None
        assert by_slides.high is not None
        assert at_random.low is not None
        holds.append(by_slides.low <= truth <= by_slides.high)
        flatters.append(at_random.low > truth + 0.15)
    assert all(flatters)
    assert sum(holds) >= 9  # of twelve 95 % intervals; the truth is of 200 slides, and has an error too


def test_a_part_without_a_class_gets_a_slide_that_another_can_spare() -> None:
    # Two slides of eight have tumor: one each way is the only split there is.
    label = np.repeat([0, 0, 0, 0, 0, 0, 1, 1], 15)
    table = pd.DataFrame({"id": [f"{n:03d}" for n in range(120)], "label": label})
    group = np.repeat(np.arange(8), 15)
    for seed in range(20):
        mask = validation_mask(table, group, 0.2, seed)
        assert set(table["label"][mask]) == set(table["label"][~mask]) == {0, 1}
    with pytest.raises(UserError, match=r"120 patches in 8 groups that stay whole .* leave none of label 1"):
        validation_mask(table, group, 0.2, 0, folds=3)


@pytest.fixture
def glass(drawn: Path, tmp_path: Path) -> Path:
    """Return a data folder in which a white patch lies in each of the slides, and a stained one in two of them."""
    root = tmp_path / "glass"
    shutil.copytree(drawn, root, ignore=shutil.ignore_patterns(".pcam_cache"))
    slides = pd.read_csv(root / "patch_id_wsi_full.csv")
    labels = pd.read_csv(root / "train_labels.csv")
    names = sorted(slides["wsi"].unique())
    white = Image.fromarray(np.full((96, 96, 3), 243, dtype=np.uint8))
    added = []
    for number, name in enumerate(names):
        white.save(root / "train" / f"white{number}.tif")
        added.append((f"white{number}", 0, name))
    for number, name in enumerate(names[:2]):
        shutil.copy(root / "train" / f"{labels['id'][0]}.tif", root / "train" / f"stained{number}.tif")
        added.append((f"stained{number}", int(labels["label"][0]), name))
    more = pd.DataFrame(added, columns=["id", "label", "wsi"])
    pd.concat([labels, more[["id", "label"]]]).to_csv(root / "train_labels.csv", index=False)
    pd.concat([slides, more[["id", "wsi"]]]).to_csv(root / "patch_id_wsi_full.csv", index=False)
    return root


def test_blank_patches_that_slides_share_do_not_join_them_and_train(
    glass: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    held_out = []
    for fold in range(2):
        data = PCamDataModule(glass, slides=glass / "patch_id_wsi_full.csv", folds=2, fold=fold)
        data.setup("fit")
        table = data.table.assign(val=data.val_mask)
        white = table["id"].str.startswith("white")
        assert not table.loc[white, "val"].any()
        assert table[~white].groupby("slide")["val"].mean().isin([0, 1]).all()  # whole slides, and not all of one group
        stained = table["id"].str.startswith("stained") | (table["id"] == table.loc[~white, "id"].iloc[0])
        assert table.loc[stained].groupby("pixel_sha1")["val"].nunique().max() == 1  # those do join
        held_out.append(data.val_mask)
    assert (np.sum(held_out, axis=0) == ~white).all()
    count = int(white.sum())
    printed = f"{count} blank patches have exact copies in several slides; none of them validates."
    assert printed in capsys.readouterr().err


def test_crossval_leaves_blank_patches_that_slides_share_out(glass: Path) -> None:
    args = ["crossval", "-c", str(CONFIGS / "base.yaml"), "--folds=2", "--data.root", str(glass), *FAST]
    assert main([*args, "--trainer.max_epochs=1"]) == 0
    ids = pd.read_csv("lightning_logs/base/crossval_0/oof.csv")["id"]
    assert len(ids) == 122
    assert not ids.str.startswith("white").any()
