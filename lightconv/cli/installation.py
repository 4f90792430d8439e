"""What is installed, and whether it is what lightconv requires."""

import importlib
import subprocess
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from pathlib import Path

from packaging.requirements import Requirement

from lightconv.operators import backend


@dataclass(frozen=True)
class Extra:
    """An optional part of an installation, those of its requirements that are not met, and how to get it."""

    name: str
    unmet: list[str]
    command: str


def installed(package: str) -> str | None:
    """The version of a package; None if it is not installed."""
    if package == "triton":  # nightly builds and AMD's come under other names: the module is what counts
        return importlib.import_module("triton").__version__ if backend.TRITON else None
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def requirements(package: str, extra: str = "") -> list[Requirement]:
    """What an installed package, or one of its extras alone, requires on this machine."""

    def apply(extra: str) -> list[Requirement]:
        return [r for r in listed if r.marker is None or r.marker.evaluate({"extra": extra})]

    listed = [Requirement(line) for line in requires(package) or []]
    return [r for r in apply(extra) if r not in apply("")] if extra else apply("")


def is_met(requirement: Requirement) -> bool:
    """Whether a version that fits is installed."""
    found = installed(requirement.name)
    return found is not None and requirement.specifier.contains(found, prereleases=True)


def extras() -> list[Extra]:
    """The optional parts of lightconv's installation."""
    return [
        Extra(
            name,
            [f"{r.name}{r.specifier}" for r in requirements("lightconv", name) if not is_met(r)],
            f"pip install 'lightconv[{name}]'",
        )
        for name in metadata("lightconv").get_all("Provides-Extra", [])
    ]


def revision() -> str | None:
    """The git revision of the checkout that lightconv runs from; None if it runs from none."""
    root = Path(__file__).parents[2]
    return output("git", "-C", str(root), "describe", "--always", "--dirty") if (root / ".git").exists() else None


def output(*command: str) -> str | None:
    """What a command prints; None if there is none of that name or it fails."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
