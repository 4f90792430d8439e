"""Resolvers: functions called from conf/*.yaml, such as ``${run_name:...}``."""

import re

from omegaconf import DictConfig, OmegaConf


def register_resolvers() -> None:
    """Make the resolvers known to OmegaConf.

    Hydra's launchers copy them to the processes they start.
    """
    OmegaConf.register_new_resolver("evaluated_run", evaluated_run, replace=True)
    OmegaConf.register_new_resolver("run_directory", run_directory, replace=True)
    OmegaConf.register_new_resolver("run_name", run_name, replace=True)


def run_directory(resume: str | None, fresh: str) -> str:
    """Return the directory of a training run.

    Args:
        resume: directory of the run to resume; None for a new run.
        fresh: directory of a new run.

    Raises:
        InputError: If there is no run to resume.
    """
    return fresh if resume is None else _existing_run(resume, "resume")


def run_name(choices: DictConfig, backbone: str | None = None) -> str:
    """Return the name of a run's folder below runs/: the recipe, or else the backbone or model, and the data.

    Args:
        choices: choice of each group, as ``hydra.runtime.choices`` holds them.
        backbone: backbone of the model, such as ``torchvision/resnet18``; None if it has none.
    """
    # the library's name would become a folder, and a hub's name may hold signs that paths do not take
    model = re.sub(r"[^\w.-]", "_", str(backbone).rpartition("/")[2]) if backbone else choices.model
    return choices.experiment or f"{model}_{choices.data}"


def evaluated_run(directory: str | None) -> str:
    """Return the directory of the run to evaluate; the evaluation is written below it.

    Raises:
        InputError: If no run is there.
    """
    return _existing_run(directory, "run")


def _existing_run(directory: str | None, setting: str) -> str:
    # imported late: runs load torch, and most commands with a mistake in them name no run
    from lightconv.runs.directory import existing_run  # noqa: PLC0415

    # a directory named by digits is read as a number
    return str(existing_run(directory if directory is None else str(directory), setting))
