"""Mutants: kernel modules with a mistake in their source, which tests of tests must catch."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest


def mutants(module: ModuleType, source: str, broken: str, folder: Path) -> list[ModuleType]:
    """Import one mutant of a module per occurrence of a source text.

    Args:
        module: kernel module.
        source: text of the module's source, found at least once.
        broken: text written in place of one occurrence.
        folder: folder for the mutants' files.
    """
    parts = Path(module.__file__).read_text().split(source)
    assert len(parts) > 1, f"{module.__name__} no longer reads {source!r}"
    imported = []
    for place in range(1, len(parts)):
        path = folder / f"{module.__name__}_{place}.py"
        path.write_text(source.join(parts[:place]) + broken + source.join(parts[place:]))
        spec = importlib.util.spec_from_file_location(module.__name__, path)
        mutant = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(mutant)
        imported.append(mutant)
    return imported


def put_in_place(mutant: ModuleType, original: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace a module by its mutant in all of lightconv, and functions imported from it by the mutant's."""
    for module_name, user in list(sys.modules.items()):
        if not module_name.startswith("lightconv.") or user is original:
            continue
        for name, value in list(vars(user).items()):
            if value is original:
                monkeypatch.setattr(user, name, mutant)
            elif callable(value) and value is getattr(original, name, None):
                monkeypatch.setattr(user, name, getattr(mutant, name, value))
