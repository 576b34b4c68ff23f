"""The walls of the house: who may import whom. A wall that nobody checks is a suggestion."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("kernels", "model_store", "serving", "trainer")

MAY_IMPORT = {
    "kernels": {"kernels"},
    "model_store": {"kernels", "model_store"},
    "serving": {"kernels", "model_store", "serving"},
    "trainer": {"kernels", "model_store", "trainer"},
}
ONLY_IN = {
    "datasets": ("trainer/readers/hub.py",),
    "ray": ("serving/replica.py", "serving/app.py"),
    "triton": ("kernels/gpu/*",),
    "transformers": ("model_store/backbones/*", "model_store/tasks/*", "serving/encoding.py", "trainer/*"),
}
NEVER_IN = {"torch": ("serving/scheduler.py", "serving/config.py", "serving/access.py")}


def imports_of(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import; say prefixbank.x.y"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def sources() -> list[Path]:
    return [path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))]


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_imports_only_what_its_room_may(path: Path) -> None:
    here = str(path.relative_to(ROOT))
    for name in imports_of(path):
        top, _, rest = name.partition(".")
        if top == "prefixbank":
            room = rest.partition(".")[0]
            assert room in MAY_IMPORT[path.relative_to(ROOT).parts[0]] | {"", "__version__"}, f"{here} imports {name}"
        if top in ONLY_IN:
            assert any(fnmatch(here, allowed) for allowed in ONLY_IN[top]), f"{here} imports {name}"
        assert here not in NEVER_IN.get(top, ()), f"{here} imports {name}"


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_is_a_symlinked_namespace_without_init(room: str) -> None:
    link = ROOT / "src" / "prefixbank" / room
    assert link.is_symlink()
    assert link.resolve() == ROOT / room
    assert not (ROOT / room / "__init__.py").exists()
    assert (ROOT / room / "README.md").exists(), "the README is the package's docstring"


def test_importing_prefixbank_loads_neither_torch_nor_ray() -> None:
    program = "import sys, prefixbank; sys.exit(bool({'torch', 'ray', 'transformers'} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_the_lint_rule_forbids_bare_room_names(tmp_path: Path) -> None:
    offender = tmp_path / "offender.py"
    offender.write_text("import kernels\n\nprint(kernels)\n")
    command = [sys.executable, "-m", "ruff", "check", "--config", ROOT / "pyproject.toml", offender]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert "TID251" in done.stdout
