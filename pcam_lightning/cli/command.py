"""What a command takes, as far as it can be read from source: importing what it calls takes seconds."""

import ast
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from jsonargparse import Namespace

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
    """A command whose options are the arguments of a function of the library.

    Attributes:
        module: of this package: imported once the options have been checked, since that takes seconds.
        function: its name in the module; its arguments and docstring are read from source.
        show: takes what the function returns and the parsed options, and prints.
        options: the command's own options, by name: arguments of `add_argument`.
        more: module and name of a class whose arguments the function's `**options` are; importing it takes no seconds.
        defaults: of arguments, where they are others than those of the function.
    """

    module: str
    function: str
    show: Callable[[Any, Namespace], None] | None = None
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    more: tuple[str, str] | None = None
    defaults: Mapping[str, Any] = field(default_factory=dict)

    def declared(self) -> Callable[..., Any]:
        """Return a function with the arguments and the docstring of the library's, that does nothing."""
        return declaration(f"pcam_lightning.{self.module}", self.function)


def data_options() -> set[str]:
    """Return the names of the options of a data folder."""
    return set(init_arguments(*_GROUPS["data"]))


def init_arguments(module: str, name: str) -> list[str]:
    """Return the names of the arguments of a class."""
    methods = (node for node in _definition(module, name).body if isinstance(node, ast.FunctionDef))
    arguments = next(node.args for node in methods if node.name == "__init__")
    return [one.arg for one in (*arguments.args[1:], *arguments.kwonlyargs)]


def declaration(module: str, name: str) -> Callable[..., Any]:
    """Return a function with the arguments and the docstring of another one, that does nothing.

    Where an argument takes a path, as text or as a run that is open too, it takes a path; `**options` are left out.
    """
    node = _definition(module, name)
    assert isinstance(node, ast.FunctionDef)
    node.body, node.decorator_list, node.returns = [ast.Expr(ast.Constant(ast.get_docstring(node)))], [], None
    node.args.kwarg = None
    node = _PathsAlone().visit(node)
    names: dict[str, Any] = {"__name__": "command", "Collection": Collection, "Literal": Literal, "Path": Path}
    exec(compile(ast.fix_missing_locations(ast.Module([node], [])), module, "exec"), names)
    function: Callable[..., Any] = names[name]
    return function


class _PathsAlone(ast.NodeTransformer):
    """Leaves of a union with `Path`, such as `LoadedRun | Path | str | None`, what the command line can give."""

    def visit_BinOp(self, node: ast.BinOp) -> ast.AST:
        """Take text and runs that are open out."""
        names = ast.unparse(node).split(" | ")
        if "Path" not in names:
            return self.generic_visit(node)
        kept = [name for name in names if name not in ("str", "LoadedRun")]
        return ast.parse(" | ".join(kept), mode="eval").body


def _definition(module: str, name: str) -> ast.FunctionDef | ast.ClassDef:
    package, *rest = module.split(".")
    spec = find_spec(package)  # of a module within it, this would import the package
    assert spec is not None
    assert spec.origin is not None
    source = Path(spec.origin).parent.joinpath(*rest).with_suffix(".py").read_text(encoding="utf-8")
    nodes = (node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef | ast.ClassDef))
    return next(node for node in nodes if node.name == name)
