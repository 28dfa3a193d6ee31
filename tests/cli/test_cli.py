"""The command line itself: help, flags that are wrong, configs that stack, the tools, python -m."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import yaml
from conftest import CONFIGS, FAST, QUICK
from jsonargparse import Namespace

from pcam_lightning.cli.arguments import option_names, run_arguments
from pcam_lightning.cli.commands import FUNCTION_COMMANDS
from pcam_lightning.cli.function_parser import parse_function
from pcam_lightning.cli.main import main
from pcam_lightning.cli.parser import PCamCLI
from pcam_lightning.cli.run_commands import RUN_COMMANDS
from pcam_lightning.training.options import Config
from pcam_lightning.utils.errors import UserError

# ablations*.yaml hold rows of deltas, and are tested with ablate.
RUN_CONFIGS = sorted(path for path in CONFIGS.glob("*.yaml") if not path.stem.startswith("ablations"))
STACKS = [[CONFIGS / "base.yaml"] if path.stem == "base" else [CONFIGS / "base.yaml", path] for path in RUN_CONFIGS]


@pytest.mark.parametrize("stack", STACKS, ids=lambda stack: stack[-1].stem)
def test_every_config_fits(stack: list[Path], drawn: Path) -> None:
    configs = [word for path in stack for word in ("-c", str(path))]
    steps = ["--trainer.max_epochs=1", "--trainer.limit_train_batches=1", "--trainer.limit_val_batches=1"]
    steps.append("--data.batch_size=4")  # small enough for the largest network
    alone = ["--trainer.devices=1", "--trainer.strategy=auto"]  # several processes: test_processes.py
    assert main(["fit", *configs, "--data.root", str(drawn), *QUICK, *steps, *alone]) == 0
    made = {path.name for path in Path("lightning_logs").iterdir()}
    options = yaml.safe_load(stack[-1].read_text()).get("trainer") or {}
    assert made == {stack[-1].stem} or options.get("fast_dev_run")
    for path in Path("lightning_logs").glob("*/version_0/config.yaml"):
        assert isinstance(yaml.safe_load(path.read_text())["trainer"]["limit_val_batches"], int)


@pytest.mark.parametrize("path", RUN_CONFIGS, ids=lambda path: path.stem)
def test_a_config_starts_with_its_command(path: Path) -> None:
    head = path.read_text().splitlines()[0]
    assert re.match(rf"# python -m pcam_lightning fit .*-c configs/{path.name}", head)


def test_a_callback_of_the_users_own_is_added(drawn: Path) -> None:
    averaging = "--trainer.callbacks=lightning.pytorch.callbacks.EMAWeightAveraging"
    args = ["fit", "-c", str(CONFIGS / "base.yaml"), "--data.root", str(drawn), "--trainer.max_epochs=1", *FAST]
    assert main([*args, averaging]) == 0
    checkpoint = Path("lightning_logs/base/version_0/checkpoints/best.ckpt")  # the run's own callbacks were there too
    assert "current_model_state" in torch.load(checkpoint, weights_only=True)
    assert main(["predict", "--ckpt_path", str(checkpoint), "--trainer.accelerator=cpu"]) == 0


def test_configs_stack_and_the_later_wins(drawn: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("model:\n  lr: 0.01\ntrainer:\n  max_epochs: 1\n")
    args = ["fit", *FAST, "-c", str(CONFIGS / "base.yaml"), "-c", str(tmp_path / "mine.yaml"), "--model.lr=0.02"]
    assert main([*args, "--data.root", str(drawn)]) == 0
    config = yaml.safe_load(Path("lightning_logs/mine/version_0/config.yaml").read_text())
    assert (config["model"]["lr"], config["trainer"]["max_epochs"], config["model"]["weight_decay"]) == (0.02, 1, 0.01)


@pytest.mark.parametrize("command", [[], ["fit"], ["validate"], ["test"], ["predict"], ["synthesize"], ["pack"]])
def test_help(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command, "--help"]) == 0
    message = capsys.readouterr().out
    assert message.startswith("usage: python -m pcam_lightning")
    if command in (["fit"], ["predict"]):
        assert message.splitlines()[0].endswith("[options]")
        words = " ".join(message.split())
        assert "share of each class held out for validation" in words
        assert (
            "resumes the newest run" if command == ["fit"] else "version_0/checkpoints/best.ckpt; or pcam or"
        ) in words
        assert '"hpc"' not in words  # Lightning takes more places for checkpoints than a run of ours has
    if not command:
        assert all(name in message for name in ("fit", "validate", "test", "predict", "synthesize", "pack"))


@pytest.mark.parametrize("name", RUN_COMMANDS)
def test_the_help_of_a_run_fits_on_three_screens_and_the_rest_is_shown_by_group(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    assert main([name, "--help"]) == 0
    short = capsys.readouterr().out
    assert len(short.splitlines()) <= 150
    shown = short
    for group in ("data", "model", "trainer"):
        assert f"--help.{group}" in short
        assert main([name, f"--help.{group}"]) == 0
        of_group = capsys.readouterr().out
        listed = re.findall(r"^  --([a-z_]+)", of_group, re.MULTILINE)
        assert set(listed) == {group}
        assert len(listed) > len(re.findall(rf"^  --{group}", short, re.MULTILINE))
        shown += of_group
    listed = re.findall(r"^  (?:-. \S+, |-h, )?(--[\w.]+)", shown, re.MULTILINE)
    hidden = {"--print_shtab"}  # of jsonargparse, by its own choice
    needed = ["--ckpt_path=pcam-small"] if RUN_COMMANDS[name].ckpt_path == "required" else []
    parser = PCamCLI(name, RUN_COMMANDS[name], needed).parser
    assert set(listed) == {flag.removesuffix("+") for flag in option_names(parser)} - hidden


SPELLINGS = {  # commands that read a data folder: one spelling, and the other
    **dict.fromkeys(RUN_COMMANDS, ("--data.root", "--root")),
    **dict.fromkeys(("evaluate", "explain", "export", "predict-onnx", "slides", "pack"), ("--root", "--data.root")),
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_root_and_data_root_mean_the_same_and_each_help_says_so(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first = [] if name in RUN_COMMANDS or name == "pack" else ["RUN"]
    config = ["--print_config"] if name in ("validate", "test", "predict") else []
    found = []
    for flag in SPELLINGS[name]:
        for words in ([flag, "x/d"], [f"{flag}=x/d"]):
            if config:  # without a checkpoint there is nothing but the configuration to print
                assert main([name, *words, *config]) == 0
                found.append(yaml.safe_load(capsys.readouterr().out)["data"]["root"])
            else:
                found += [one for one in _texts(_parse([name, *first, *words]).as_dict()) if one == "x/d"]
    assert found == ["x/d"] * 4
    assert main([name, "--help"]) == 0
    assert f"{SPELLINGS[name][1]} means the same." in " ".join(capsys.readouterr().out.split())


def test_other_options_of_a_data_folder_have_both_spellings_too() -> None:
    options = ("--data.columns.label=y", "--data.verify", "--data.cache_dir", "c", "--data.resize=crop", "--data.mpp=1")
    for args in (options, [word.replace("--data.", "--") for word in options]):
        packed = _parse(["pack", *args])
        assert (packed.columns, packed.verify, str(packed.cache_dir)) == ({"label": "y"}, True, "c")
    assert _parse(["fit", "--columns.label=y", "--batch_size", "8"]).data.batch_size == 8
    crossval = _parse(["crossval", "--folds=3", "--data.folds=4"])  # an option of the command comes first
    assert (crossval.folds, crossval.data.folds) == (3, 4)
    with pytest.raises(UserError, match=r"--data\.seed"):  # the seed of the bootstrap is none of a data folder
        _parse(["evaluate", "RUN", "--data.seed=1"])


@pytest.mark.parametrize("command", ["validate", "test", "predict"])
def test_a_run_or_checkpoint_is_the_first_argument(
    command: str, run_copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    best = str(run_copy / "checkpoints" / "best.ckpt")
    for target in (str(run_copy), best, "pcam-small"):
        by_flag = _printed(capsys, command, "--ckpt_path", target, "--model.tta=d4", "--print_config")
        assert _printed(capsys, command, target, "--model.tta=d4", "--print_config") == by_flag
    assert main([command, str(run_copy), "--ckpt_path", best]) == 2
    assert "--ckpt_path: " in capsys.readouterr().err
    assert main([command, "nowhere"]) == 2
    assert "error: nowhere: no such" in capsys.readouterr().err


def test_predict_takes_a_run(run_copy: Path) -> None:
    assert main(["predict", str(run_copy), "--trainer.accelerator=cpu"]) == 0
    assert len(pd.read_csv(run_copy / "submission.csv")) == 40


def test_synthesize_then_pack(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["synthesize", "out", "--train", "12", "--test", "4", "--slides", "4"]) == 0
    assert len(pd.read_csv("out/train_labels.csv")) == 12
    assert main(["pack", "--data.root", "out", "--data.verify=true"]) == 0
    message = capsys.readouterr().err
    assert "out: 12 synthetic training patches, 4 in test/." in message
    assert re.search(r"train: 12 patches, 12 distinct, in out/.pcam_cache/train-\w+/images.npy", message)
    assert re.search(r"test: 4 patches, 4 distinct", message)
    assert main(["synthesize", "bare", "--train", "12", "--test", "0", "--slides", "4"]) == 0
    assert main(["pack", "--data.root", "bare"]) == 0
    assert main(["pack", "--data.root", "out/test"]) == 0
    assert re.search(r"test: 4 patches, 4 distinct, in out/test/", capsys.readouterr().err)


def _parse(args: list[str]) -> Namespace:
    """Return the options of a command; nothing is built or run."""
    name, rest = args[0], args[1:]
    if name in RUN_COMMANDS:
        return PCamCLI(name, RUN_COMMANDS[name], run_arguments(name, RUN_COMMANDS[name], rest)).options
    return parse_function(name, FUNCTION_COMMANDS[name], rest)


INT_OR_FLOAT = {
    "limit_train_batches": 1.0, "limit_val_batches": 1.0, "limit_test_batches": 1.0, "limit_predict_batches": 1.0,
    "overfit_batches": 1.0, "val_check_interval": 1.0, "gradient_clip_val": 1.0,
}  # fmt: skip


@pytest.mark.parametrize("source", ["flag", "YAML", "recorded"])
@pytest.mark.parametrize("value", [1, 1.0, 0.5])
def test_an_int_stays_an_int_and_a_float_a_float(source: str, value: float) -> None:
    if source == "flag":
        args = ["fit", *(f"--trainer.{name}={value}" for name in INT_OR_FLOAT)]
    else:
        Path("mine.yaml").write_text(yaml.safe_dump({"trainer": dict.fromkeys(INT_OR_FLOAT, value)}))
        args = ["fit", "-c", "mine.yaml"]
    cli = PCamCLI(args[0], RUN_COMMANDS[args[0]], args[1:])
    options = cli.options
    if source == "recorded":  # read from config.yaml
        Path("mine.yaml").write_text(yaml.safe_dump(cli.run_config.plain()))
        options = Config.load("mine.yaml").options
    for name in INT_OR_FLOAT:
        found = options.trainer[name]
        assert (type(found), found) == (type(value), value), name


def test_an_int_stays_an_int_in_the_arguments_of_a_callback() -> None:
    averaging = {"class_path": "StochasticWeightAveraging", "init_args": {"swa_lrs": 0.1, "swa_epoch_start": 1}}
    (found,) = _parse(["fit", f"--trainer.callbacks={json.dumps([averaging])}"]).trainer.callbacks
    assert isinstance(found.init_args.swa_epoch_start, int)


@pytest.mark.parametrize("value", ["1", "1.0"])
def test_one_training_batch_is_one_step_and_all_of_them_are_all(value: str, drawn: Path) -> None:
    args = ["fit", "-c", str(CONFIGS / "base.yaml"), "--data.root", str(drawn), *FAST, "--trainer.max_epochs=1"]
    assert main([*args, f"--trainer.limit_train_batches={value}"]) == 0
    last = torch.load("lightning_logs/base/version_0/checkpoints/last.ckpt", weights_only=True)
    assert last["global_step"] == (1 if value == "1" else 4)
    if value == "1":  # a resumed run keeps it
        assert main(["fit", "-c", str(CONFIGS / "base.yaml"), "--ckpt_path=last", "--trainer.max_epochs=2"]) == 0
        last = torch.load("lightning_logs/base/version_0/checkpoints/last.ckpt", weights_only=True)
        assert last["global_step"] == 2


CSV_LOGGER = f"--trainer.logger={json.dumps([{'class_path': 'CSVLogger', 'init_args': {'save_dir': '~/x/d'}}])}"
PATH_OPTIONS = {
    "root": ["fit", "--data.root=~/x/d"], "cache_dir": ["fit", "--data.cache_dir=~/x/d"],
    "slides": ["fit", "--data.slides=~/x/d"], "split_file": ["fit", "--data.split_file=~/x/d"],
    "weights": ["fit", "--model.weights=~/x/d"], "ckpt_path": ["fit", "-c", "mine.yaml"],
    "default_root_dir": ["fit", "--trainer.default_root_dir=~/x/d"],
    "save_dir": ["fit", CSV_LOGGER],
    "ablations": ["ablate", "--ablations=~/x/d"], "explore": ["explore", "--output=~/x/d"],
    "target": ["evaluate", "~/x/d"],
    "runs": ["curves", "here", "~/x/d"], "dest": ["synthesize", "~/x/d"], "pcam": ["slides", "~/x/d"],
    "labels": ["evaluate", "run", "--labels=~/x/d"], "pack": ["pack", "--data.cache_dir=~/x/d"],
}  # fmt: skip


def _texts(value: Any) -> list[str]:
    """Return all text and paths in nested options."""
    if isinstance(value, dict | list | tuple):
        return [text for one in (value.values() if isinstance(value, dict) else value) for text in _texts(one)]
    return [str(value)]


@pytest.mark.parametrize("name", PATH_OPTIONS)
def test_every_path_option_expands_the_home_folder(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    if name == "ckpt_path":
        Path("mine.yaml").write_text("ckpt_path: ~/x/d\n")
        assert main(PATH_OPTIONS[name]) == 2
        assert f"error: {tmp_path}/home/x/d: no such checkpoint" in capsys.readouterr().err
        return
    found = _texts(_parse(PATH_OPTIONS[name]).as_dict())
    assert str(tmp_path / "home" / "x" / "d") in found
    assert not [text for text in found if text.startswith("~")]


def test_fit_and_predict_write_below_the_home_folder(
    run_copy: Path, drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    shutil.copytree(run_copy, home / "run")
    shutil.copy(CONFIGS / "base.yaml", home / "base.yaml")
    monkeypatch.setenv("HOME", str(home))
    where = ["--data.cache_dir=~/cache", "--trainer.default_root_dir=~/runs", "--trainer.fast_dev_run=false"]
    assert main(["fit", "--config=~/base.yaml", "--data.root", str(drawn), *FAST, "--trainer.max_steps=1", *where]) == 0
    assert (home / "runs" / "lightning_logs" / "base" / "version_0" / "checkpoints" / "last.ckpt").is_file()
    assert list((home / "cache").rglob("images.npy"))
    predict = ["predict", "--ckpt_path=~/run/checkpoints/best.ckpt", "--output=~/out", "--trainer.accelerator=cpu"]
    assert main([*predict, "--ensemble", "~/run/checkpoints/last.ckpt"]) == 0
    assert (home / "out" / "submission.csv").is_file()
    assert not Path("~").exists()


def _printed(capsys: pytest.CaptureFixture[str], *args: str) -> dict[str, Any]:
    capsys.readouterr()
    assert main(list(args)) == 0
    config: dict[str, Any] = yaml.safe_load(capsys.readouterr().out)
    return config


@pytest.mark.parametrize("command", ["predict", "validate", "test", "explore"])
def test_print_config_shows_the_options_of_the_checkpoints_run(
    command: str, run_copy: Path, drawn: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    best = str(run_copy / "checkpoints" / "best.ckpt")
    Path("mine.yaml").write_text("data:\n  num_workers: 1\n")
    for flag in ("--print_config", "--print_config="):
        config = _printed(capsys, command, flag, "-c", "mine.yaml", "--ckpt_path", best, "--model.tta=d4")
        assert config["data"]["root"] == str(drawn)
        assert (config["data"]["batch_size"], config["data"]["num_workers"], config["model"]["tta"]) == (32, 1, "d4")
    config = _printed(capsys, command, "--ckpt_path", best, "--print_config=skip_default")
    assert config["data"]["batch_size"] == 32
    assert "val_fraction" not in config["data"]
    assert sorted(path.name for path in Path().iterdir()) == ["lightning_logs", "mine.yaml"]


def test_print_config_of_a_run_to_resume(run_copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    resume = ["fit", "-c", str(CONFIGS / "base.yaml"), "--ckpt_path=last", "--trainer.max_epochs=7"]
    config = _printed(capsys, *resume, "--print_config")
    assert (config["data"]["batch_size"], config["trainer"]["max_epochs"]) == (32, 7)
    assert Path(config["ckpt_path"]).absolute() == run_copy / "checkpoints" / "last.ckpt"


def test_print_config_needs_no_checkpoint_and_takes_no_unknown_modifier(capsys: pytest.CaptureFixture[str]) -> None:
    assert _printed(capsys, "predict", "--print_config")["ckpt_path"] is None
    assert main(["fit", "--print_config=everything"]) == 2
    assert re.search(r'error: .*"everything"', capsys.readouterr().err)


@pytest.mark.process
def test_as_a_module() -> None:
    command = [sys.executable, "-m", "pcam_lightning", "fit", "--data.root", "nowhere", "--trainer.accelerator=cpu"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error:")
    assert "nowhere: no such folder" in done.stderr
    assert "Traceback" not in done.stderr
