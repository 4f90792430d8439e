"""Problems of an installation, each with its remedy."""

import os
from importlib.metadata import entry_points

import torch
from packaging.requirements import Requirement

from lightconv.cli.doctor.report import Facts, Gpu, Problem
from lightconv.cli.installation import installed, is_met, requirements


def find_all(driver: str | None, gpus: list[Gpu], triton: Facts) -> list[Problem]:
    """Return all problems.

    Args:
        driver: version of NVIDIA's driver; None if it does not run.
        gpus: GPUs usable by torch.
        triton: result of `facts.triton_needs`.
    """
    return [*unmet_requirements(), *missing_entry_point(), *gpu_problems(driver, gpus, triton)]


def unmet_requirements() -> list[Problem]:
    """Return the unmet requirements of lightconv and torchvision.

    Each release of torchvision fits a single release of torch, so a torch upgraded alone breaks it.
    """
    problems = []
    for package in ("lightconv", "torchvision"):
        # a checkout that was never installed has no metadata to read requirements from
        if installed(package):
            unmet = [requirement for requirement in requirements(package) if not is_met(requirement)]
            problems += [_unmet_problem(package, requirement) for requirement in unmet]
    return problems


def _unmet_problem(package: str, requirement: Requirement) -> Problem:
    wanted = f"{requirement.name}{requirement.specifier}"
    found = installed(requirement.name)
    state = f"{found} is installed" if found else "which is not installed"
    # without Triton torch serves everything; a Triton of another version fails
    fatal = requirement.name != "triton" or found is not None
    return Problem(f"{package} needs {wanted}, {state}", f"pip install '{wanted}'", fatal)


def missing_entry_point() -> list[Problem]:
    """Return a problem if LIGHTCONV is set but Lightning does not know lightconv's callbacks."""
    is_set = os.environ.get("LIGHTCONV", "") not in {"", "0"}
    # Lightning asks the installed packages for callbacks through this entry point
    if not is_set or entry_points(group="lightning.pytorch.callbacks_factory", name="lightconv"):
        return []
    what = "LIGHTCONV is set, but Lightning does not load lightconv: the installed lightconv has no entry point for it"
    return [Problem(what, "install it again: pip install -e . in a checkout")]


def gpu_problems(driver: str | None, gpus: list[Gpu], triton: Facts) -> list[Problem]:
    """Return the problems that keep a GPU from running kernels, or from running them fast.

    Args:
        driver: version of NVIDIA's driver; None if it does not run.
        gpus: GPUs usable by torch.
        triton: result of `facts.triton_needs`.
    """
    problems = []
    cuda = torch.version.cuda
    if driver is not None and not gpus and cuda is None:
        problems.append(
            Problem(
                f"NVIDIA's driver {driver} is here, but torch was built without CUDA",
                "install a build with CUDA: https://pytorch.org/get-started/locally",
            )
        )
    if driver is not None and not gpus and cuda is not None:
        problems.append(
            Problem(
                f"NVIDIA's driver {driver} is here, but torch sees no GPU",
                f"check CUDA_VISIBLE_DEVICES, and that the driver is new enough for CUDA {cuda}",
            )
        )
    if gpus and triton["interpreting"]:
        problems.append(Problem("Triton interprets kernels, slowly, although a GPU is here", "unset TRITON_INTERPRET"))
    # the interpreter launches nothing, and so needs no compiler
    launches_kernels = any(gpu.refusal is None for gpu in gpus) and not triton["interpreting"]
    if launches_kernels and not triton["C compiler"]:
        problems.append(
            Problem(
                "Triton finds no C compiler, and launches no kernel without one",
                "install gcc, or name another compiler in CC",
            )
        )
    if launches_kernels and not triton["Python.h"]:
        problems.append(
            Problem(
                "Python.h is missing, and Triton launches no kernel without it",
                "install Python's headers: python3-dev on Debian, python3-devel on Fedora",
            )
        )
    # a GPU without kernels is no error: torch serves it
    return problems + unserved_gpus(gpus, triton)


def unserved_gpus(gpus: list[Gpu], triton: Facts) -> list[Problem]:
    """Return a problem per kind of GPU without kernels.

    A missing Triton is an unmet requirement already, and no problem of each GPU.
    """
    if not triton["installed"]:
        return []
    kinds = {gpu.name: gpu.refusal for gpu in gpus if gpu.refusal}
    return [
        Problem(f"{name}: {reason}", "nothing breaks: torch serves everything there") for name, reason in kinds.items()
    ]
