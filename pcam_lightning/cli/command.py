"""What a command takes, as far as it can be read from source: importing what it calls takes seconds."""

import ast
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from pcam_lightning.cli.parser import PCamCLI

_GROUPS = {  # of options, and the classes whose arguments they are
    "data": ("pcam_lightning.data.datamodule", "PCamDataModule"),
    "model": ("pcam_lightning.models.classifier", "PCamClassifier"),
    "trainer": ("lightning.pytorch.trainer.trainer", "Trainer"),
}


@dataclass(frozen=True)
class RunCommand:
    """A command that takes the options of a run.

    Attributes:
        function: takes the parsed command line, calls the library, prints.
        module: of this package, which the function calls: imported once the names of options have been checked, since
            that takes seconds.
        help: one line.
        example: arguments, for the usage line.
        ckpt_path: what a checkpoint is to it: `resume`, where training continues; `required`, whose network is used;
            `optional`; or `none`.
        options: its own options, by name: arguments of `add_argument`.
        defaults: of options of the run, where they are others than those of fit.
    """

    function: Callable[["PCamCLI"], None]
    module: str
    help: str
    example: str
    ckpt_path: Literal["resume", "required", "optional", "none"] = "none"
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)

    def flags(self) -> set[str]:
        """Return the options, read from source; those below them, such as of `--model.augment`, are left out."""
        own = {"help", "config", "print_config", "import", "seed_everything", *self.options}
        own |= {"ckpt_path"} if self.ckpt_path != "none" else set()
        for group, (module, name) in _GROUPS.items():
            own |= {f"{group}.{argument}" for argument in init_arguments(module, name)}
        return {f"--{name}" for name in own}


@dataclass(frozen=True)
class FunctionCommand:
    """A command whose options are the arguments of a function.

    Attributes:
        module: of this package: imported once the options have been checked, since that takes seconds.
        function: calls a function of the module, and prints what it returns; by default the module's function that is
            called as the command is, whose arguments are read from source.
    """

    module: str
    function: Callable[..., None] | None = None

    def declared(self, name: str) -> Callable[..., Any]:
        """Return a function with the arguments and the docstring of the command of a name."""
        return self.function or declaration(f"pcam_lightning.{self.module}", name)


def init_arguments(module: str, name: str) -> list[str]:
    """Return the names of the arguments of a class."""
    methods = (node for node in _definition(module, name).body if isinstance(node, ast.FunctionDef))
    arguments = next(node.args for node in methods if node.name == "__init__")
    return [one.arg for one in (*arguments.args[1:], *arguments.kwonlyargs)]


def declaration(module: str, name: str) -> Callable[..., Any]:
    """Return a function with the arguments and the docstring of another one, that does nothing."""
    node = _definition(module, name)
    assert isinstance(node, ast.FunctionDef)
    node.body, node.decorator_list, node.returns = [ast.Expr(ast.Constant(ast.get_docstring(node)))], [], None
    names: dict[str, Any] = {"__name__": "command", "Any": Any, "Literal": Literal, "Path": Path}
    exec(compile(ast.fix_missing_locations(ast.Module([node], [])), module, "exec"), names)
    function: Callable[..., Any] = names[name]
    return function


def _definition(module: str, name: str) -> ast.FunctionDef | ast.ClassDef:
    package, *rest = module.split(".")
    spec = find_spec(package)  # of a module within it, this would import the package
    assert spec is not None
    assert spec.origin is not None
    source = Path(spec.origin).parent.joinpath(*rest).with_suffix(".py").read_text(encoding="utf-8")
    nodes = (node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef | ast.ClassDef))
    return next(node for node in nodes if node.name == name)
