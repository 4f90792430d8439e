"""Objects of a run built from its configuration: network, task, data and Trainer."""

import re
import sys
from collections.abc import Iterable
from copy import deepcopy
from pathlib import Path
from typing import Any

import hydra
import lightning as L
import torch
from hydra.errors import InstantiationException
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig, OmegaConf, open_dict

from lightconv.callbacks import KernelSummary
from lightconv.callbacks.epoch_lines import EpochLines
from lightconv.culprit import find_culprit
from lightconv.data import ImageData
from lightconv.errors import InputError
from lightconv.runs.arguments import as_typed, check_arguments
from lightconv.runs.checkpoints import VerifiedCheckpoints
from lightconv.runs.literal import escape_references, read_name
from lightconv.tasks import Classification


def instantiate(config: Any, *args: Any, **kwargs: Any) -> Any:
    """Build the object named by a configuration's ``_target_``. All of lightconv builds objects here.

    Raises:
        InputError: If the target does not exist, or refuses its arguments; the message names the key.
    """
    if config is None:
        return None
    if not isinstance(config, DictConfig):
        raise InputError(f"{as_typed(config)} is no configuration with _target_, from which an object is built")
    check_arguments(config)
    try:
        # plain lists: checkpoints keep arguments of optimizers and schedulers, and hold no objects of OmegaConf
        return hydra.utils.instantiate(keep_literal(config), *args, _convert_="all", **kwargs)
    except InstantiationException as error:
        raise InputError(describe_failure(config, error, *args, **kwargs)) from error


def keep_literal(config: DictConfig) -> DictConfig:
    r"""Return a configuration whose texts with ${NAME} reach the target as they are.

    OmegaConf reads \${NAME} as the text ${NAME}, and Hydra would look that up: it reads every value twice.
    """
    values = OmegaConf.to_container(config, resolve=True)
    twice = escape_references(escape_references(values))
    return config if twice == values else OmegaConf.create(twice)


def describe_failure(config: DictConfig, error: InstantiationException, *args: Any, **kwargs: Any) -> str:
    """Return the message for a target that cannot be built: the key at fault, its value, and the reason.

    Args:
        config: configuration with the target.
        error: Hydra's error.
        *args: further arguments of the target.
        **kwargs: further keyword arguments.
    """
    # OmegaConf has no public way to the path of a node
    key = config._get_full_key(None)
    place = re.search(r"^full_key: (.+)$", str(error), re.MULTILINE)
    if place is not None and place[1] != key:
        # a part of this configuration fails, such as data.augmentation
        part = OmegaConf.select(config._get_root(), place[1])
        return describe_failure(part, error) if isinstance(part, DictConfig) else str(error)
    cause = error.__cause__
    if isinstance(cause, InputError):
        return name_key(str(cause), config, key)
    if not isinstance(cause, Exception) or str(error).startswith("Error locating"):
        return str(error)

    def build(settings: dict[str, Any]) -> Any:
        return hydra.utils.instantiate({"_target_": config._target_, **settings}, *args, **kwargs)

    settings = {str(name): config[name] for name in config if not str(name).startswith("_")}
    culprit = find_culprit(build, settings, cause)
    if culprit is not None:
        key = f"{key}.{culprit}={as_typed(settings[culprit])}"
    return f"{key}: {config._target_} refuses it: {cause}"


def name_key(message: str, config: DictConfig, key: str) -> str:
    """Return a message that begins with the name of an argument with the argument's key instead.

    Example:
        >>> config = OmegaConf.create({"task": {"views": "turn"}})
        >>> name_key("views=turn: choose some of flip", config.task, "task")
        'task.views=turn: choose some of flip'
    """
    name = message.split("=", 1)[0]
    return f"{key}.{message}" if name in config else message


def build_task(config: DictConfig) -> Classification:
    """Build the network and, around it, the task with its optimizer and scheduler."""
    model = instantiate(config.model)
    if config.channels_last:
        # pixel by pixel, the layout of the faster kernels on CPUs and GPUs
        model = model.to(memory_format=torch.channels_last)
    parts = {}
    if config.get("optimizer"):
        parts["optimizer"] = instantiate(config.optimizer)
    # with stages of fine-tuning, each stage has a schedule of its own
    if not config.get("finetune"):
        parts["scheduler"] = build_scheduler(config)
    task = instantiate(config.task, model=model, **parts)
    if not isinstance(task, Classification):
        raise InputError(
            f"task._target_={config.task._target_}: name a class derived from lightconv.tasks.Classification"
        )
    return task


def build_scheduler(config: DictConfig) -> Any:
    """Build the factory of the scheduler; None for a constant rate, by scheduler=none."""
    return instantiate(config.scheduler) if config.get("scheduler") else None


def build_data(config: DictConfig, task: Classification) -> ImageData:
    """Build the data in the size and normalisation of the network."""
    preprocessing = getattr(task.model, "preprocessing", None)
    if preprocessing is None:
        return instantiate_data(config)
    return instantiate_data(config, preprocessing=preprocessing)


def instantiate_data(config: DictConfig, **arguments: Any) -> ImageData:
    """Build the data with arguments that Hydra would change: dataclasses, and class names with ${NAME} in them."""
    config = deepcopy(config)
    if config.data.get("classes") is not None:
        arguments["classes"] = read_classes(config)
        with open_dict(config.data):
            del config.data["classes"]
    partial = instantiate(config.data, _partial_=True)
    try:
        data = partial(**arguments) if arguments else instantiate(config.data)
    except InputError as error:
        raise InputError(name_key(str(error), config.data, "data")) from error
    except TypeError as error:
        raise InputError(f"data: {error}") from error
    if not isinstance(data, ImageData):
        raise InputError(f"data._target_={config.data._target_}: give a class derived from lightconv.data.ImageData")
    return data


def read_classes(config: DictConfig) -> list[str]:
    """Return the class names of the configuration."""
    try:
        return [read_name(name) for name in config.data.classes]
    except InputError as error:
        raise InputError(f"data.classes: {error}") from error


def build_trainer(config: DictConfig, directory: Path, callbacks: Iterable[L.Callback] = ()) -> L.Trainer:
    """Build the Trainer with the callbacks and loggers of the configuration.

    Args:
        config: configuration of the run.
        directory: directory of the run.
        callbacks: further callbacks.
    """
    # callbacks.NAME=null leaves an empty entry
    configured = [instantiate(callback) for callback in config.callbacks.values() if callback]
    callbacks = [*callbacks, *configured]
    if config.get("finetune"):
        # first, so that layers are frozen before other callbacks look at them
        callbacks.insert(0, instantiate(config.finetune, scheduler=build_scheduler(config)))
    if config.trainer.get("enable_model_summary"):
        # in place of Lightning's own; two levels, because the task's only child is the network
        callbacks.append(KernelSummary(max_depth=2))
    plugins = instantiate(config.trainer.get("plugins")) or []
    show, bar = shown_progress(config, callbacks)
    callbacks.append(EpochLines(lines=show and not bar))
    return instantiate(
        config.trainer,
        callbacks=callbacks,
        enable_progress_bar=bar,
        plugins=[*plugins, VerifiedCheckpoints()],
        logger=build_loggers(config),
        default_root_dir=str(directory),
    )


def shown_progress(config: DictConfig, callbacks: Iterable[L.Callback]) -> tuple[bool, bool]:
    """Return whether progress is printed, and whether a bar prints it: a file or a pipe gets a line per epoch."""
    show = bool(config.trainer.get("enable_progress_bar", True))
    # Lightning refuses a bar of the user's own if bars are turned off
    own = any(isinstance(callback, ProgressBar) for callback in callbacks)
    return show, show and (own or sys.stdout.isatty())


def build_loggers(config: DictConfig) -> list[Logger]:
    """Build the loggers of the configuration, except those not installed."""
    loggers = []
    for entry in filter(None, config.logger.values()):  # logger.NAME=null leaves an empty entry
        logger = instantiate(entry)
        if logger is not None:
            loggers.append(logger)
    return loggers
