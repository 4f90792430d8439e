"""Environment of a run: code, versions and machine, written beside its configuration."""

import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from lightconv.openmp import openmp_variables

_PACKAGES = (
    "lightconv",
    "torch",
    "torchvision",
    "lightning",
    "torchmetrics",
    "hydra-core",
    "triton",
    "scikit-learn",
)


def environment() -> dict[str, Any]:
    """Return the code, versions and machine of this process: figures of a run depend on them, too."""
    return {
        "git": _git("rev-parse", "HEAD"),
        "git_changes": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "python": platform.python_version(),
        "versions": {package: _version(package) for package in _PACKAGES},
        "platform": platform.platform(),
        # sums are taken in another order by another number of threads
        "threads": torch.get_num_threads(),
        "openmp": openmp_variables(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "command": sys.argv,
    }


def _git(*arguments: str) -> str | None:
    """Return git's output; None if git is not installed or the working directory is not in a repository."""
    try:
        result = subprocess.run(["git", *arguments], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return result.stdout.strip()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
