"""Kernel modules with a mistake put in on purpose: what tests of tests work on."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest


def mutants(module: ModuleType, source: str, broken: str, folder: Path) -> list[ModuleType]:
    """The module with the mistake in one place, for each place where its source reads so."""
    parts = Path(module.__file__).read_text().split(source)
    assert len(parts) > 1, f"{module.__name__} no longer reads {source!r}"
    imported = []
    for place in range(1, len(parts)):
        path = folder / f"{module.__name__}_{place}.py"
        path.write_text(source.join(parts[:place]) + broken + source.join(parts[place:]))
        spec = importlib.util.spec_from_file_location(module.__name__, path)
        imported.append(importlib.util.module_from_spec(spec))
        spec.loader.exec_module(imported[-1])
    return imported


def put_in_place(mutant: ModuleType, original: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let everything in lightconv that uses the module, or functions imported from it, use the mutant's."""
    users = [module for name, module in sys.modules.items() if name.startswith("lightconv.") and module is not original]
    for user in users:
        for name, value in list(vars(user).items()):
            if value is original:
                monkeypatch.setattr(user, name, mutant)
            elif callable(value) and value is getattr(original, name, None):
                monkeypatch.setattr(user, name, getattr(mutant, name, value))
