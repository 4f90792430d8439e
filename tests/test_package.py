"""What a wheel brings, and the rules of the house that can be checked."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAYERS = [
    "kernels",
    "operators",
    "functional",
    "nn",
    "models",
    ("tasks", "callbacks", "data", "visualize", "loggers", "analysis"),
    "cli",
]
EVERYWHERE = {"errors"}


def layer_of(name: str) -> int | None:
    return next(
        (i for i, layer in enumerate(LAYERS) if name == layer or (isinstance(layer, tuple) and name in layer)), None
    )


@pytest.mark.parametrize("path", sorted((ROOT / "lightconv").rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_run_one_way(path):
    own = layer_of(path.relative_to(ROOT / "lightconv").with_suffix("").parts[0])
    if own is None:
        return
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("lightconv"):
            parts = node.module.split(".")[1:]
            for name in [parts[0]] if parts else [alias.name for alias in node.names]:
                assert name in EVERYWHERE or layer_of(name) <= own, f"{path.name} imports {name}"


@pytest.mark.parametrize("path", sorted((ROOT / "lightconv" / "kernels").glob("*.py")), ids=lambda p: p.name)
def test_kernels_import_only_torch_and_triton(path):
    allowed = {
        "torch",
        "triton",
        "lightconv.kernels",
        "functools",
        "math",
        "operator",
        "collections",
        "contextlib",
        "typing",
    }
    for node in ast.walk(ast.parse(path.read_text())):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else [getattr(node, "module", None)]
        if isinstance(node, ast.Import | ast.ImportFrom):
            assert all(any(n == a or n.startswith(f"{a}.") for a in allowed) for n in names), names


def test_the_wheel_brings_the_configs_and_what_lightning_asks(installed):
    shipped = {path.relative_to(ROOT / "conf") for path in (ROOT / "conf").rglob("*.yaml")}
    assert shipped <= {path.relative_to(installed / "lightconv/conf") for path in installed.rglob("*.yaml")}
    assert (installed / "lightconv/kernels/implicit_gemm.py").exists()
    assert (installed / "lightconv_autoload.py").exists()
    assert not list(installed.glob("tests*"))
