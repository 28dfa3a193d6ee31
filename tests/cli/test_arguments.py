"""Messages name options in backticks, and the command line shows them as flags."""

import re
from pathlib import Path

import pytest

import pcam_lightning
from pcam_lightning.cli.arguments import configs_first, options_as_flags, without_option

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
