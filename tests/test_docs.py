"""The commands and the Python of README and docs, as they stand.

What is feasible on a tiny data folder is run, in the order of the page and in a folder that has whatever the page
names, configs/ with a small network and one epoch among it. The rest is parsed, by the parsers that would run it.
"""

import argparse
import pydoc
import re
import runpy
import shlex
import shutil
import sys
import tomllib
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import CONFIGS, NETWORK
from PIL import Image

from pcam_lightning.cli.arguments import run_arguments
from pcam_lightning.cli.commands import FUNCTION_COMMANDS
from pcam_lightning.cli.function_parser import parse_function
from pcam_lightning.cli.main import main
from pcam_lightning.cli.parser import PCamCLI
from pcam_lightning.cli.run_commands import RUN_COMMANDS
from pcam_lightning.synthetic.kaggle_folder import synthesize
from pcam_lightning.synthetic.whole_slide import write_whole_slide

ROOT = CONFIGS.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
# Pages whose commands are run, since some need what others wrote. Those of hospitals.md and weights.md stand alone, and
# other tests run them; those of the others take hours, or several machines.
RUN = ("README.md", "export.md", "slides.md")
# Commands of these pages that are parsed alone, by a word of them.
PARSED = {
    "serve": "it waits for requests",
    "synthesize": "it generates slides for a minute; they exist already",
}
# Programs that are not the project's: they need a network, an account or a browser.
OTHERS = {
    *("tensorboard", "kaggle", "unzip", "curl", "hf", "wsinfer", "jupyter", "git", "cd", "pre-commit", "pytest"),
}
TINY: dict[str, dict[str, Any]] = {
    "data": {"batch_size": 8},
    "model": {"backbone": NETWORK, "weights": "none"},
    "trainer": {"max_epochs": 1, "accelerator": "cpu", "enable_progress_bar": False, "logger": False},
}
Block = tuple[str, str, str]


def blocks(page: Path) -> Iterator[Block]:
    """Yield place, kind and text of each command, continued lines joined, and of each block of code."""
    kind, text = "", ""
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), start=1):
        if line.startswith("```"):
            if kind in ("python", "yaml"):
                yield f"{page.name}:{number}", kind, text
            kind, text = "" if kind else line.strip("`"), ""
        elif kind:
            text += f"{line}\n"
        elif line.startswith("    ") or text:
            text += line.strip()
            if text.endswith("\\"):
                text = text[:-1]
                continue
            yield f"{page.name}:{number}", "shell", text
            text = ""
    for found in re.findall(r"`(python -m pcam_lightning [^`]+)`", page.read_text(encoding="utf-8")):
        if not re.search(r"\b[A-Z]{5,}\b", found):  # COMMAND
            yield page.name, "inline", " ".join(found.split())


def commands(text: str) -> Iterator[list[str]]:
    """Yield the words of each command of a line."""
    words: list[str] = []
    for word in [*shlex.split(text, comments=True), "&&"]:
        if word == "&&" and words:
            yield words
            words = []
        elif word != "&&":
            words.append(word)


def check(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Parse a command, and what it hands on; run nothing."""
    assert [word for word in words if word.startswith("RUN/") and not Path(word).exists()] == []
    if words[:2] == ["pip", "install"]:
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        assert set(re.findall(r"\w+", "".join(re.findall(r"\[(.*?)\]", " ".join(words))))) <= set(extras)
    elif words[:1] == ["python"] and words[1].startswith("benchmarks/"):
        check_benchmark(words[1:], monkeypatch)
    elif "pcam_lightning" in words and words[0] != "cd":
        name, *rest = words[words.index("pcam_lightning") + 1 :]
        if name in RUN_COMMANDS:
            PCamCLI(name, RUN_COMMANDS[name], run_arguments(name, RUN_COMMANDS[name], rest))
        else:
            parse_function(name, FUNCTION_COMMANDS[name], rest)
            assert name != "serve" or Path(rest[0]).is_dir()
    else:
        assert words[0] in OTHERS


def check_benchmark(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Parse the arguments of a benchmark, and those of fit that follow a `--`."""
    before = argparse.ArgumentParser.parse_args

    def parse_alone(self: argparse.ArgumentParser, *args: Any) -> NoReturn:
        before(self, *args)
        raise InterruptedError

    with monkeypatch.context() as patch:
        patch.setattr(sys, "argv", [str(ROOT / words[0]), *words[1:]])
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        patch.setattr(argparse.ArgumentParser, "parse_args", parse_alone)
        with pytest.raises(InterruptedError):
            benchmark(words[0])()
    recipes = " ".join(words).split(" -- ")[1:]
    for recipe in recipes:
        check(["pcam_lightning", *([] if recipe.startswith("probe") else ["fit"]), *recipe.split()], monkeypatch)


@lru_cache
def benchmark(file: str) -> Callable[[], None]:
    """Return the main function of a benchmark."""
    found: Callable[[], None] = runpy.run_path(str(ROOT / file))["main"]
    return found


@pytest.fixture(scope="module")
def names(small: Path, slide: Path, pixels: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with whatever the pages name."""
    folder = tmp_path_factory.mktemp("names")
    synthesize(folder / "data", train=24, test=8, slides=8, seed=1)
    shutil.copytree(folder / "data", folder / "DIR")
    shutil.copytree(small, folder / "RUN")
    (folder / "configs").mkdir()
    for path in CONFIGS.glob("*.yaml"):
        (folder / "configs" / path.name).write_text(yaml.safe_dump(quick(yaml.safe_load(path.read_text()), path.stem)))
    for name in ("a.png", "b.png"):
        Image.fromarray(pixels[:96, :96]).save(folder / name)
    table = pd.read_csv(folder / "data" / "train_labels.csv")
    with_tumor = [
        np.asarray(Image.open(folder / "data" / "train" / f"{one}.tif")) for one in table["id"][table["label"] == 1]
    ]
    tissue = np.vstack([np.hstack(with_tumor[:2]), np.hstack(with_tumor[2:4])])
    write_whole_slide(folder / "slide.svs", tissue, np.zeros(tissue.shape[:2], dtype=bool))
    (folder / "reference.csv").write_text("slide,label\nslide,0\n")  # so that the network is wrong
    (folder / "annotations").mkdir()
    shutil.copytree(slide.parent, folder / "synthetic")
    write_whole_slide(folder / "synthetic" / "normal_002.tif", pixels, np.zeros(pixels.shape[:2], dtype=bool))
    (folder / "synthetic" / "reference.csv").write_text("slide,label\ntumor_001,1\nnormal_002,0\n")
    return folder


def quick(config: dict[str, Any], name: str) -> dict[str, Any]:
    """Return a config with a small network and one epoch."""
    for group, options in TINY.items():
        known = config.get(group, {})
        known |= {option: value for option, value in options.items() if option in known or name == "base"}
    return config


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_can_be_followed(
    page: Path, names: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(names, Path.cwd(), dirs_exist_ok=True)
    for option in ("LOGGER", "ENABLE_CHECKPOINTING", "ENABLE_PROGRESS_BAR"):  # of L.Trainer in a page's Python
        monkeypatch.setenv(f"PL_TRAINER_{option}", "False")
    variables: dict[str, str] = {}
    for where, kind, text in blocks(page):
        print(where, text)
        if kind == "python":
            exec(compile(text, where, "exec"), {})
        elif kind == "yaml":
            Path("page.yaml").write_text(text)
            check(shlex.split("python -m pcam_lightning fit -c configs/base.yaml -c page.yaml"), monkeypatch)
        elif found := re.fullmatch(r'([A-Z]+)="(.*)"', text):
            variables[f"${found[1]}"] = found[2]
        else:
            for name, value in variables.items():
                text = text.replace(name, value)
            for words in commands(text):
                runs = kind == "shell" and page.name in RUN and words[:3] == ["python", "-m", "pcam_lightning"]
                if not runs or set(words) & set(PARSED):
                    check(words, monkeypatch)
                    continue
                status, printed = main(words[3:]), capsys.readouterr().err
                assert status == 0, (where, text, printed)
                for following in re.findall(r"python -m pcam_lightning .*", printed):
                    check(shlex.split(following), monkeypatch)
                    assert all(Path(word).exists() for word in shlex.split(following) if "/" in word), following


def test_the_command_at_the_head_of_a_config_is_accepted(names: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(names)
    for path in CONFIGS.glob("*.yaml"):
        head = re.sub(r"^# ", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE).replace("\\\n", " ")
        found = re.findall(r"^python .*", head, re.MULTILINE)
        assert found, path
        for command in found:
            check(shlex.split(command), monkeypatch)


def test_every_name_of_the_api_page_is_there() -> None:
    names = re.findall(r"^::: (\S+)$", (ROOT / "docs" / "api.md").read_text(), re.MULTILINE)
    assert names
    assert [name for name in names if pydoc.locate(name) is None] == []


def test_the_table_of_the_readme_has_every_command() -> None:
    rows = re.findall(r"^\| `([a-z][a-z-]+) [^|]*\|", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert set(rows) == {*RUN_COMMANDS, *FUNCTION_COMMANDS}
