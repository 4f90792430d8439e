"""Every public class and function has an example that runs; those that map tensors state their shapes."""

import doctest
import importlib
import inspect
import pkgutil

import pytest

import lightconv as lc

ROOMS = [
    module.name
    for module in pkgutil.iter_modules(lc.__path__)
    if module.name not in {"cli", "kernels", "operators", "deprecated"} and not module.name.startswith("_")
]
MAPS_TENSORS = ("lightconv.functional", "lightconv.nn", "lightconv.models", "lightconv.tasks")


def public_names():
    """Qualified names of the classes and functions in every room's ``__all__``."""
    names = []
    for room in ROOMS:
        module = importlib.import_module(f"lightconv.{room}")
        for name in getattr(module, "__all__", ()):
            public = getattr(module, name)
            if inspect.isclass(public) or inspect.isfunction(public):
                names.append(f"{module.__name__}.{name}")
    return names


def resolve(qualified_name):
    module, _, name = qualified_name.rpartition(".")
    return getattr(importlib.import_module(module), name)


@pytest.mark.parametrize("qualified_name", public_names())
def test_example_runs(qualified_name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    public = resolve(qualified_name)
    assert ">>> " in (public.__doc__ or ""), f"{qualified_name} has no example"
    globals_of_module = vars(importlib.import_module(public.__module__))
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    for test in doctest.DocTestFinder(recurse=False).find(public, qualified_name, globs=dict(globals_of_module)):
        runner.run(test)
    assert runner.summarize().failed == 0


@pytest.mark.parametrize("qualified_name", [name for name in public_names() if name.startswith(MAPS_TENSORS)])
def test_shapes_are_stated(qualified_name):
    public = resolve(qualified_name)
    if inspect.isclass(public) and hasattr(public, "forward"):
        assert "Shape:" in public.__doc__
