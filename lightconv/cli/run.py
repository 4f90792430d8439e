"""A run's directory: claimed once, and complete enough to be understood and repeated years later."""

import json
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf
from yaml import YAMLError

from lightconv.errors import InputError
from lightconv.models.weights import read_checkpoint

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


def existing(directory: str | Path | None, setting: str) -> Path:
    """The directory of a run that a setting names.

    Raises:
        InputError: if there is no run.
    """
    if directory is None or not (Path(directory) / "config.yaml").is_file():
        raise InputError(
            f"{setting}={directory} is not a run, no run is there (no config.yaml): name the directory that "
            "`lightconv train` wrote"
        )
    return Path(directory)


def check_unused(directory: Path) -> None:
    """Make sure that a new run can begin here.

    Raises:
        InputError: if there is a run already.
    """
    if (directory / "config.yaml").exists():
        raise InputError(
            f"{directory} already holds a run: choose another hydra.run.dir, or go on with it by resume={directory}"
        )


def begin(directory: Path, config: DictConfig) -> None:
    """Write what defines a run: config.yaml, resolved, and environment.json."""
    OmegaConf.save(config, directory / "config.yaml", resolve=True)
    write_json(directory / "environment.json", environment())


def reopen(directory: Path) -> DictConfig:
    """Read the configuration of an existing run, with this command's ``key=value`` settings over it.

    Raises:
        InputError: if there is no run, or the command chooses another group than the run did.
    """
    config = load_config(directory)
    settings = [o for o in HydraConfig.get().overrides.task if not o.lstrip("+~").startswith("resume=")]
    groups = [o for o in settings if o.split("=", 1)[0].lstrip("+~") in HydraConfig.get().runtime.choices]
    if groups:
        raise InputError(f"a resumed run keeps its {', '.join(groups)}: only single settings like a.b=c can change")
    parser = OverridesParser.create()
    for setting in map(parser.parse_override, settings):
        OmegaConf.update(config, setting.key_or_group, setting.value())
    return config


def last_checkpoint(directory: Path, config: DictConfig) -> Path | None:
    """Find where a run stopped, and tell a run that was moved where it is: Lightning would forget its best weights.

    Returns:
        The checkpoint; None, so that the run starts over, if it did not get through its first epoch.

    Raises:
        InputError: if the checkpoint is damaged, or beyond the epochs that are asked for.
    """
    path = directory / "checkpoints" / "last.ckpt"
    if not path.is_file():
        return None
    content = read_checkpoint(path)
    if 0 <= config.trainer.max_epochs < content["epoch"]:
        raise InputError(
            f"{directory} is in epoch {content['epoch'] + 1} already: trainer.max_epochs={config.trainer.max_epochs} "
            "must be at least as many"
        )
    written_in = OmegaConf.load(directory / "config.yaml").directory
    if written_in != str(directory.resolve()):
        content["callbacks"] = _replaced(content["callbacks"], written_in, str(directory.resolve()))
        fresh = path.with_suffix(".new")
        torch.save(content, fresh)
        fresh.replace(path)
    return path


def _replaced(value: Any, old: str, new: str) -> Any:
    if isinstance(value, str):
        return new + value[len(old) :] if value.startswith(old) else value
    if isinstance(value, dict):
        return {_replaced(k, old, new): _replaced(v, old, new) for k, v in value.items()}
    return value


def load_config(directory: Path) -> DictConfig:
    """Read the resolved configuration of an existing run.

    Raises:
        InputError: if it is damaged.
    """
    path = directory / "config.yaml"
    try:
        content = OmegaConf.to_container(OmegaConf.load(path))
        assert isinstance(content, dict)
        content = _replaced(content, content["directory"], str(directory.resolve()))  # the run may have been moved
    except (YAMLError, AssertionError, KeyError) as error:
        raise InputError(f"{path} is damaged: {error}") from error
    config = OmegaConf.create(content)
    OmegaConf.set_struct(config, True)
    return config


def environment() -> dict[str, Any]:
    """What the figures depend on besides the configuration: code, versions, machine."""
    return {
        "git": _git("rev-parse", "HEAD"),
        "git_changes": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "python": platform.python_version(),
        "versions": {package: _version(package) for package in _PACKAGES},
        "platform": platform.platform(),
        "threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "command": sys.argv,
    }


def _git(*arguments: str) -> str | None:
    try:
        result = subprocess.run(["git", *arguments], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None  # no git, or not a repository
    return result.stdout.strip()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def write_json(path: Path, content: dict[str, Any] | list[Any]) -> None:
    """Write indented JSON."""
    path.write_text(json.dumps(content, indent=2) + "\n")
