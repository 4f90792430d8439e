"""The wheel's contents, and the rules of the house that a test can check."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "lightconv"
MODULES = sorted(PACKAGE.rglob("*.py"))
# every room, from the ground up: a room imports itself and rooms before it
ROOMS = [
    "_version",
    "culprit",
    "deprecated",
    "errors",
    "files",
    "keyed_cache",
    "openmp",
    "preprocessing",
    "seal",
    "text",
    "progress",
    "kernels",
    "operators",
    "functional",
    "nn",
    "surgery",
    "models",
    "tasks",
    "data",
    "visualize",
    "analysis",
    "autotune",
    "callbacks",
    "runs",
    "loggers",
    "cli",
]
# rooms that a room may not import although they lie below it
FORBIDDEN = {"data": {"kernels", "operators", "functional", "nn", "surgery", "models", "tasks"}}
KERNEL_IMPORTS = {"torch", "triton", "lightconv.kernels", *sys.stdlib_module_names}


def imported_modules(path: Path) -> set[str]:
    """Absolute names of all modules that a file imports, by statement or by importlib, at any depth."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "import_module":
            argument = node.args[0]
            # an f-string counts by its constant beginning
            constant = argument.values[0] if isinstance(argument, ast.JoinedStr) else argument
            if isinstance(constant, ast.Constant):
                names.add(str(constant.value).rstrip("."))
    return names


def room_of(module: str) -> str:
    """The room of an absolute module name, "" for the package root."""
    return module.partition(".")[2].partition(".")[0]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_run_one_way(path):
    own = path.relative_to(PACKAGE).with_suffix("").parts[0]
    if own == "__init__":
        return
    is_shim = "deprecated" in {room_of(name) for name in imported_modules(path)}
    for module in imported_modules(path):
        if module.split(".")[0] == "lightconv" and not is_shim:
            room = room_of(module)
            assert room in ROOMS, f"{module} reaches the package root"
            assert ROOMS.index(room) <= ROOMS.index(own), f"{own} imports {room}"
            assert room not in FORBIDDEN.get(own, ()), f"{own} imports {room}"


def test_every_room_has_its_place():
    assert {path.relative_to(PACKAGE).with_suffix("").parts[0] for path in MODULES} - {"__init__"} == set(ROOMS)


@pytest.mark.parametrize("path", sorted((PACKAGE / "kernels").glob("*.py")), ids=lambda path: path.name)
def test_kernels_import_only_torch_and_triton(path):
    for module in imported_modules(path):
        parts = module.split(".")
        assert {".".join(parts[:length]) for length in range(1, len(parts) + 1)} & KERNEL_IMPORTS, module


def test_import_loads_nothing_heavy():
    heavy = "{'torch', 'lightning', 'triton', 'torchvision', 'matplotlib'}"
    code = f"import sys, lightconv; print(sorted({heavy} & set(sys.modules)))"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "[]"


def test_dir_lists_public_names_and_each_loads():
    import lightconv as lc

    assert set(lc.__all__) <= set(dir(lc))
    for name in lc.__all__:
        assert getattr(lc, name) is not None


def test_moved_names_warn_and_resolve():
    import lightconv as lc
    from lightconv.nn import swap as old

    with pytest.warns(DeprecationWarning, match=r"import restore from lightconv\.surgery\.swap"):
        assert old.restore is lc.restore


def test_wheel_contents(installed):
    shipped = {path.relative_to(ROOT / "conf") for path in (ROOT / "conf").rglob("*.yaml")}
    assert shipped <= {path.relative_to(installed / "lightconv/conf") for path in installed.rglob("*.yaml")}
    assert (installed / "lightconv/kernels/implicit_gemm.py").exists()
    assert (installed / "lightconv/py.typed").exists()
    assert (installed / "lightconv_autoload.py").exists()
    assert not list(installed.glob("tests*"))
