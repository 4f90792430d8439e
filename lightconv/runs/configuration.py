"""Configuration of a run: read back from config.yaml, and copied with changes. No function changes its argument."""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf, open_dict
from yaml import YAMLError

from lightconv.errors import InputError
from lightconv.runs.literal import escape_name, escape_references
from lightconv.runs.targets import check_targets


def load_config(directory: Path, allow: Sequence[str] = ()) -> DictConfig:
    """Read the resolved configuration of a run, to build its parts.

    Args:
        directory: directory of the run.
        allow: targets that this run may build beyond those of `lightconv.runs.targets`.

    Raises:
        InputError: If config.yaml is damaged, or names a target that is not allowed.
    """
    config = read_config(directory)
    try:
        check_targets(OmegaConf.to_container(config), allow)
    except InputError as error:
        raise InputError(f"{directory / 'config.yaml'}: {error}") from error
    return config


def read_config(directory: Path) -> DictConfig:
    """Read the resolved configuration of a run, to compare it: its targets are not checked.

    A run may have been moved: paths below its former directory are returned below ``directory``.

    Raises:
        InputError: If config.yaml is damaged.
    """
    path = directory / "config.yaml"
    try:
        content = OmegaConf.to_container(OmegaConf.load(path))
        assert isinstance(content, dict)
        content = relocate(content, content["directory"], escape_references(str(directory.resolve())))
    except (YAMLError, AssertionError, KeyError) as error:
        raise InputError(f"{path} is damaged: {error}") from error
    config = OmegaConf.create(content)
    OmegaConf.set_struct(config, True)  # a misspelt setting is an error, as on a new run
    return config


def former_directory(directory: Path) -> str:
    """Return the directory recorded in a run's config.yaml: another than today's if the run was moved."""
    return OmegaConf.load(directory / "config.yaml").directory


def relocate(value: Any, old: str, new: str) -> Any:
    """Copy a value with the directory ``old`` replaced by ``new`` in its paths, in nested dictionaries and lists too.

    A path beside the directory stays as it is, even if its name begins like the directory's: runs/a is not runs/ab.
    """
    if isinstance(value, str) and (value == old or value.startswith(f"{old}/")):
        return new + value[len(old) :]
    if isinstance(value, dict):
        return {relocate(key, old, new): relocate(entry, old, new) for key, entry in value.items()}
    if isinstance(value, list):
        return [relocate(entry, old, new) for entry in value]
    return value


def override_config(config: DictConfig, settings: Sequence[str]) -> DictConfig:
    """Copy a configuration with settings changed.

    Args:
        config: configuration to copy.
        settings: overrides in Hydra's grammar, such as ``trainer.max_epochs=5``; ``+`` adds a setting, ``~`` deletes
            one.

    Raises:
        InputError: If a setting to delete does not exist.
        OmegaConfBaseException: If a setting to change does not exist.
    """
    config = deepcopy(config)
    for override in OverridesParser.create().parse_overrides(list(settings)):
        name = override.key_or_group
        if not override.is_delete():
            OmegaConf.update(config, name, override.value(), force_add=override.is_add() or override.is_force_add())
            continue
        parent, _, key = name.rpartition(".")
        node = OmegaConf.select(config, parent) if parent else config
        if not isinstance(node, DictConfig) or key not in node:
            raise InputError(f"~{name}: the configuration has no {name}")
        with open_dict(node):
            del node[key]
    return config


def replace_settings(config: DictConfig, data: Mapping[str, Any], task: Mapping[str, Any]) -> DictConfig:
    """Copy the configuration of a finished run with settings of its data and task replaced.

    Args:
        config: configuration to copy.
        data: settings by name; None keeps the run's own.
        task: settings by name, likewise.

    Raises:
        InputError: If the run's data have no such setting.
    """
    config = deepcopy(config)
    for name, value in data.items():
        if value is not None and name not in config.data:
            raise InputError(
                f"data.{name}={value}: the run's {config.data._target_} has no {name}. Leave the setting out."
            )
        if value is not None:
            config.data[name] = value
    with open_dict(config.task):  # a run of an earlier version may lack the setting
        for name, value in task.items():
            if value is not None:
                config.task[name] = value
    return config


def with_directory(config: DictConfig, directory: Path) -> DictConfig:
    """Copy a configuration with another directory of the run."""
    config = deepcopy(config)
    config.directory = str(directory)
    return config


def with_learning_rate(config: DictConfig, rate: float) -> DictConfig:
    """Copy a configuration as if the optimizer's learning rate had been given instead of searched for."""
    config = deepcopy(config)
    config.optimizer.lr = rate
    config.find_lr = False
    return config


def with_classes(config: DictConfig, classes: Sequence[str]) -> DictConfig:
    """Copy a configuration with the class names of its data fixed.

    A folder of images may change later; the outputs of the network keep their names.
    """
    config = deepcopy(config)
    OmegaConf.update(config, "data.classes", [escape_name(name) for name in classes], force_add=True)
    return config
