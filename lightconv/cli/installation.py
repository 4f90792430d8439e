"""Installed packages, and their requirements."""

import importlib
import subprocess
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from pathlib import Path

from packaging.requirements import Requirement

from lightconv.operators import backend


@dataclass(frozen=True)
class Extra:
    """An optional part of lightconv's installation.

    Attributes:
        name: name of the extra.
        unmet: its unmet requirements, such as "onnx>=1.18".
        command: command to install it.
    """

    name: str
    unmet: list[str]
    command: str


def installed(package: str) -> str | None:
    """Return the version of a package; None if it is not installed.

    Args:
        package: name on PyPI.
    """
    if package == "triton":
        # Nightly builds and AMD's have other package names, so the module is asked.
        return importlib.import_module("triton").__version__ if backend.TRITON else None
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def requirements(package: str, extra: str = "") -> list[Requirement]:
    """Return the requirements of an installed package on this machine, or those that one of its extras adds.

    Args:
        package: name of an installed package.
        extra: name of the extra; "" for the package itself.
    """
    listed = [Requirement(line) for line in requires(package) or []]
    own = list(filter(_applies, listed))
    if not extra:
        return own
    return [requirement for requirement in listed if _applies(requirement, extra) and requirement not in own]


def _applies(requirement: Requirement, extra: str = "") -> bool:
    """Return True if a requirement holds for this machine and extra: its marker may restrict both."""
    return requirement.marker is None or requirement.marker.evaluate({"extra": extra})


def is_met(requirement: Requirement) -> bool:
    """Return True if a suitable version is installed."""
    found = installed(requirement.name)
    # Development versions count: a nightly build is newer than the release before it.
    return found is not None and requirement.specifier.contains(found, prereleases=True)


def extras() -> list[Extra]:
    """Return the optional parts of lightconv's installation."""
    found = []
    for name in metadata("lightconv").get_all("Provides-Extra", []):
        unmet = [f"{r.name}{r.specifier}" for r in requirements("lightconv", name) if not is_met(r)]
        found.append(Extra(name, unmet, command=f"pip install 'lightconv[{name}]'"))
    return found


def revision() -> str | None:
    """Return the git revision of lightconv's checkout; None if lightconv does not run from one."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        # git would otherwise describe any repository around an installed package
        return None
    return output("git", "-C", str(root), "describe", "--always", "--dirty")


def output(*command: str) -> str | None:
    """Return the printed output of a command; None if it is missing, fails, or takes more than ten seconds."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
