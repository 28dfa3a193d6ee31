"""Imports go one way: a package imports those below it alone, and what packs loads no torch."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import pcam_lightning

ORDER = [
    "cli",
    "serve",
    "export",
    "evaluation",
    "slides",
    "training",
    "plotting",
    "models",
    "data",
    "synthetic",
    "transforms",
    "metrics",
    "utils",
]
ROOT = Path(pcam_lightning.__file__).parent
MODULES = sorted(path for path in ROOT.rglob("*.py") if path.parent != ROOT)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_package_imports_those_below_it_alone(path: Path) -> None:
    own = ORDER.index(path.relative_to(ROOT).parts[0])
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("pcam_lightning."):
            package = str(node.module).split(".")[1]
            assert ORDER.index(package) >= own, f"{path}, line {node.lineno}: imports {node.module}"


def test_a_packing_process_loads_neither_torch_nor_pandas() -> None:
    code = (
        "import sys; from pcam_lightning.data import chunks; print({'torch', 'lightning', 'pandas'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_public_names_are_loaded_when_they_are_used() -> None:
    assert set(pcam_lightning.__all__) <= set(dir(pcam_lightning))
    for name in pcam_lightning.__all__:
        assert getattr(pcam_lightning, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = pcam_lightning.nothing
