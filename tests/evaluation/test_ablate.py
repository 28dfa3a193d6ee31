"""ablate: one delta a row, paired by seed; interrupted and resumed, the same table."""

import re
from pathlib import Path

import lightning as L
import pandas as pd
import pytest
import yaml
from conftest import CONFIGS, FAST, TRAINER, stopping

from pcam_lightning.cli.main import main
from pcam_lightning.evaluation import ablate as module

FOLDER = Path("lightning_logs/base/ablate_0")
ROWS = {"No rotation": {"model": {"augment": {"degrees": 0}}, "data": {"batch_size": 16}}}


@pytest.fixture(autouse=True)
def _rows(tmp_path: Path) -> None:
    Path("rows.yaml").write_text(yaml.safe_dump(ROWS, sort_keys=False))


def _args(drawn: Path, *more: str) -> list[str]:
    base = ["ablate", "-c", str(CONFIGS / "base.yaml"), "--data.root", str(drawn), *FAST]
    return [*base, "--ablations=rows.yaml", "--seeds=2", "--trainer.max_epochs=1", *more]


class Stop(L.Callback):
    """Ctrl-C in the first step."""

    def on_train_batch_end(self, *args: object) -> None:
        raise KeyboardInterrupt


def test_a_table_of_paired_differences_and_resuming(
    drawn: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(TRAINER, stopping(Stop(), [4]))  # in the third run; each row has been tried before
        assert main(_args(drawn)) == 130
    assert "Resume with: ablate with the same options" in capsys.readouterr().err
    assert main(_args(drawn)) == 0
    message = capsys.readouterr().err
    assert "seed 42" not in message
    assert "base, seed 43: run 3 of 4, about" in message
    cells = pd.read_csv(FOLDER / "ablate.csv").set_index(["row", "seed"])
    assert len(cells) == 4
    assert cells["seconds"].isna().sum() == 1  # of the run that was interrupted
    for row, degrees, batch in (("base", 90, 32), ("No rotation", 0, 16)):
        for seed in (42, 43):
            (run,) = (FOLDER / "rows").glob(f"{row.replace(' ', '-').lower()}*/seed_{seed}")
            config = yaml.safe_load((run / "config.yaml").read_text())
            assert (config["seed_everything"], config["data"]["split_seed"]) == (seed, seed)
            assert (config["model"]["augment"]["degrees"], config["data"]["batch_size"]) == (degrees, batch)
            assert pd.read_csv(run / "metrics.csv")["val/auroc"].iloc[-1] == cells.loc[(row, seed), "val/auroc"]
    scores = {row: cells["val/auroc"].loc[row] for row in ("base", "No rotation")}
    delta = scores["No rotation"] - scores["base"]
    line = next(line for line in (FOLDER / "table.md").read_text().splitlines() if line.startswith("| No rotation"))
    assert f"| {delta.mean():+.4f} ({delta.std():.4f}) |" in line
    # One more seed goes on with the same folder, and so do one more row and another row of the same name.
    assert main(_args(drawn, "--seeds=3")) == 0
    assert "3 seeds" in capsys.readouterr().err
    edited = {"No rotation": {"model": {"augment": {"degrees": 0, "stain": 0.1}}}, "more": {"model": {"lr": 0.01}}}
    Path("rows.yaml").write_text(yaml.safe_dump(edited, sort_keys=False))
    assert main(_args(drawn, "--seeds=1")) == 0
    message = capsys.readouterr().err
    assert "base, seed" not in message
    assert "No rotation, seed 42: run 2 of 3" in message
    assert set(pd.read_csv(FOLDER / "ablate.csv")["row"]) == {"base", *edited}
    assert [path.name for path in FOLDER.parent.iterdir()] == ["ablate_0"]


@pytest.mark.parametrize(
    ("rows", "flags", "expected"),
    [
        ("a: {model: {depth: 3}}", [], r"rows.yaml: row a: .*depth"),
        ("a: {model: {lr: -1}}", [], "rows.yaml: row a: --model.lr -1"),
        ("a/b: {}", [], "rows.yaml: row 'a/b': a name can contain"),
        ("BASE: {}", [], "two rows have the same name, base"),
        ("[1, 2]", [], "should map each row"),
        ("a: {", [], "not a YAML file"),
        ("a: {}", ["--ablations=nowhere.yaml"], "nowhere.yaml: cannot be read"),
        ("a: {}", ["--ckpt_path=last"], "unrecognized arguments: --ckpt_path"),
        ("a: {}", ["--data.val_fraction=0"], "row base: --data.val_fraction 0"),
        ("a: {data: {val_fraction: 0.1}}", [], "row a: val_fraction cannot differ from the base"),
        ("a: {data.val_fraction: 0.1}", [], "row a: val_fraction cannot differ from the base"),
        ("a: {seed_everything: 1}", [], "row a: seed_everything cannot differ"),
        ("a: {trainer: {limit_val_batches: 2}}", [], "row a: ablate validates on all"),
        ("a: {trainer: {devices: 2}}", [], "row a: ablate trains on one device"),
        ("a: {trainer: {check_val_every_n_epoch: 5}}", [], "row a: .*larger than .*trainer.max_epochs"),
        ("a: {trainer: {max_epochs: 3, check_val_every_n_epoch: 2}}", [], "row a: runs are scored by their last epoch"),
        ("a: {trainer: {max_steps: 3}}", [], "row a: runs are scored by their last epoch"),
        ("a: {model: {weights: nowhere.pth}}", [], "row a: --model.weights nowhere.pth: no such file"),
        ("a: {data: {extra_train: nowhere}}", [], "row a: --data.extra_train nowhere: no such folder or CSV"),
    ],
)
def test_complaints_leave_no_folder(
    rows: str, flags: list[str], expected: str, drawn: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("rows.yaml").write_text(rows)
    assert main(_args(drawn, *flags)) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert re.search(expected, error), error
    assert not Path("lightning_logs/base").exists()


@pytest.mark.parametrize("name", ["ablations", "ablations_best"])
def test_the_shipped_rows_are_right(drawn: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    class Tried(Exception):
        pass

    def stop(*args: object) -> None:
        raise Tried

    monkeypatch.setattr(module, "_fit", stop)
    with pytest.raises(Tried):  # all rows were parsed and built before the first run
        main(_args(drawn, f"--ablations={CONFIGS / f'{name}.yaml'}"))


def test_a_row_that_diverges_has_no_score(drawn: Path) -> None:
    rows = {"wild": {"model": {"optimizer": "sgd", "lr": 1.0e30}}}
    Path("rows.yaml").write_text(yaml.safe_dump(rows))
    assert main(_args(drawn, "--seeds=1")) == 0
    assert "| wild | diverged | diverged |" in (FOLDER / "table.md").read_text()
    assert pd.read_csv(FOLDER / "ablate.csv").set_index("row")["val/auroc"].isna()["wild"]
