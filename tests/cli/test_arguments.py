"""Messages name options in backticks, and the command line shows them as flags."""

import re
import subprocess
import sys
from importlib import import_module
from inspect import signature
from pathlib import Path

import pytest

import pcam_lightning
from pcam_lightning.cli.arguments import check_flags, configs_first, option_names, options_as_flags, without_option
from pcam_lightning.cli.commands import FUNCTION_COMMANDS
from pcam_lightning.cli.function_parser import function_parser, parse_function
from pcam_lightning.cli.parser import PCamCLI
from pcam_lightning.cli.run_commands import RUN_COMMANDS
from pcam_lightning.slides.slide_options import SlideOptions
from pcam_lightning.training.lightning_internals import RunParser
from pcam_lightning.utils.errors import UserError

ROOT = Path(pcam_lightning.__file__).parent


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("`model.lr` 0: should be more", "--model.lr 0: should be more"),
        ("use `model.augment.d4`, or `ckpt_path`.", "use --model.augment.d4, or --ckpt_path."),
        ("`Trainer.fit` stopped", "`Trainer.fit` stopped"),
        ("`a b`", "`a b`"),
    ],
)
def test_options_in_backticks_are_shown_as_flags(message: str, shown: str) -> None:
    assert options_as_flags(message) == shown


def test_nothing_below_the_command_line_names_a_flag() -> None:
    flag = re.compile(r"(?<![\w-])--[a-z]+[a-z_.]*")
    for path in ROOT.rglob("*.py"):
        if path.parent.name == "cli" or path.parent == ROOT:
            continue
        for number, line in enumerate(path.read_text().splitlines(), 1):
            code = line.split("#")[0]
            # The parser's own options are added by a name with dashes.
            found = [] if "add_argument(" in code else flag.findall(code)
            assert not found, f"{path}, line {number}: {line}"


def test_configs_come_first_and_an_option_can_be_left_out() -> None:
    args, configs = configs_first(["--model.lr=1", "-c", "a.yaml", "--config=b.yaml", "--ckpt_path", "last"])
    assert configs == ["a.yaml", "b.yaml"]
    assert args == ["--config=a.yaml", "--config=b.yaml", "--model.lr=1", "--ckpt_path", "last"]
    assert without_option(args, "--ckpt_path")[-1] == "--model.lr=1"


_AT_ONCE = """
import sys
from pcam_lightning.cli.main import main
for args in (["--help"], ["nonsense"], ["fit", "--wrong_flag", "1"], ["fit", "-c", "nowhere.yaml"],
             ["heatmap", "--wrong"], ["heatmap", "--help"], ["compare", "--help"], ["--wrong", "fit"]):
    print("status", main(args), [name for name in ("torch", "lightning") if name in sys.modules])
"""


@pytest.mark.process
def test_help_and_mistyped_words_are_answered_before_torch_is_imported() -> None:
    done = subprocess.run([sys.executable, "-c", _AT_ONCE], capture_output=True, text=True, check=True, timeout=120)
    found = [line for line in done.stdout.splitlines() if line.startswith("status")]
    assert found == [f"status {status} []" for status in (0, 2, 2, 2, 2, 0, 0, 2)]
    assert [line.partition("(")[0].partition(":")[0] for line in done.stderr.splitlines()] == ["error"] * 5
    assert "unrecognized arguments: --wrong_flag; fit --help lists the options." in done.stderr
    assert "bootstrap_samples BOOTSTRAP_SAMPLES" in done.stdout


@pytest.mark.parametrize("name", RUN_COMMANDS)
def test_flags_read_from_source_are_those_of_the_parser(name: str) -> None:
    cli = PCamCLI.__new__(PCamCLI)
    cli.command = RUN_COMMANDS[name]
    parser = RunParser()
    cli.add_core_arguments_to_parser(parser)
    cli.add_arguments_to_parser(parser)
    # Of what is below an option, such as --model.augment.hue or --trainer.callbacks.help, the option is known.
    known = {".".join(flag.removesuffix("+").split(".")[:2]) for flag in option_names(parser)}
    groups, of_the_cli = {"--data", "--model", "--trainer"}, {"--config", "--print_config"}
    assert known - groups == RUN_COMMANDS[name].flags() - of_the_cli


@pytest.mark.parametrize("name", FUNCTION_COMMANDS)
def test_arguments_read_from_source_are_those_of_the_library(name: str) -> None:
    command = FUNCTION_COMMANDS[name]
    function = getattr(import_module(f"pcam_lightning.{command.module}"), command.function)
    known = set(signature(function).parameters) - ({"options"} if command.more else set())
    known |= set() if command.more is None else set(signature(SlideOptions).parameters)
    parser = function_parser(name, command)
    assert {action.dest for action in parser._actions} - {"help", "print_shtab"} == known | set(command.options)
    missing = [action.dest for action in parser._actions if action.help is None or not action.help.strip()]
    assert missing == []


def test_a_path_text_or_an_open_run_is_a_path_on_the_command_line() -> None:
    heatmap = parse_function("heatmap", FUNCTION_COMMANDS["heatmap"], ["a.svs", "b.svs", "--ckpt_path=RUN"])
    assert (heatmap.slides, heatmap.ckpt_path) == ([Path("a.svs"), Path("b.svs")], Path("RUN"))
    onnx = parse_function("predict-onnx", FUNCTION_COMMANDS["predict-onnx"], ["RUN/export"])
    assert (onnx.model, onnx.root, onnx.cache_dir, onnx.output) == (Path("RUN/export"), Path("data"), None, Path())
    for given in (["a", "b"], []):
        mined = [word for name in given for word in ("--tumor_class", name)]
        assert parse_function("mine-negatives", FUNCTION_COMMANDS["mine-negatives"], ["h", *mined]).tumor_class == given


def test_flags_are_checked_by_name() -> None:
    options = RUN_COMMANDS["fit"].flags()
    check_flags(
        ["--model.lr", "-1", "--trainer.callbacks+=A", "--trainer.callbacks.patience=3", "--model.augment.hue=1",
         "--trainer.max_ep=1", "--print_config", "--data", "--data.columns.label=x", "--ckpt_path=last"], options, "fit"
    )  # fmt: skip
    with pytest.raises(UserError, match=r"arguments: --model\.lrr=1 --x; --model has .*lr, momentum, .*weights\.$"):
        check_flags(["--model.lrr=1", "--x"], options, "fit")
