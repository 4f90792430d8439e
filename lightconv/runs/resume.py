"""Resuming a run: its own configuration with settings of today over it, and its own checkpoint.

A checkpoint restores the states of optimizer, schedule and random generators. A setting that such a state would
override is applied to the state, or refused.
"""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, ListConfig, OmegaConf

from lightconv.errors import InputError
from lightconv.models.weights import read_checkpoint
from lightconv.runs import checkpoints
from lightconv.runs.configuration import load_config, override_config, read_config
from lightconv.tasks import Classification

# settings of the optimizer that a scheduler changes in each step
_SCHEDULED = {"lr", "momentum", "betas"}


class OptimizerSettings(L.Callback):
    """Settings of the optimizer that change when a run resumes.

    Lightning restores the parameter groups of the checkpoint, and with them their former settings. A setting that is
    configured differently now takes its place there.

    Args:
        settings: settings of the optimizer by name, as configured now.
        former: settings at the time of the checkpoint, for checkpoints that do not hold them.
    """

    def __init__(self, settings: Mapping[str, Any], former: Mapping[str, Any]) -> None:
        self.settings = dict(settings)
        self.former = dict(former)

    def state_dict(self) -> dict[str, Any]:
        """Return the settings, for the next resume."""
        return self.settings

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Change the parameter groups before Lightning restores them."""
        former = checkpoint["callbacks"].get(self.state_key, self.former)
        changed = {name: value for name, value in self.settings.items() if former.get(name) != value}
        for state in checkpoint["optimizer_states"]:
            for group in state["param_groups"]:
                # rates may differ by depth: all change by the same factor
                factor = group["lr"] / former["lr"] if "lr" in changed else 1.0
                group.update(changed)
                group["lr"] *= factor


def resumed_config(
    directory: Path, settings: Sequence[str], groups: Collection[str], allow: Sequence[str] = ()
) -> DictConfig:
    """Return the configuration of a run to resume, with settings over it.

    Args:
        directory: directory of the run.
        settings: overrides in Hydra's grammar, such as ``trainer.max_epochs=5``.
        groups: names of the groups of configurations.
        allow: targets that the run may build beyond lightconv's own.

    Raises:
        InputError: If a setting cannot be changed in a resumed run, or if the run names a target that is not allowed.
    """
    config = load_config(directory, allow)
    for override in OverridesParser.create().parse_overrides(list(settings)):
        check_override(override, config, groups)
    return override_config(config, settings)


def check_override(override: Override, config: DictConfig, groups: Collection[str]) -> None:
    """Check one setting of a resumed run, as `resumed_config` does.

    Raises:
        InputError: If the setting cannot be changed.
    """
    name, setting = override.key_or_group, override.input_line
    if name in groups:
        raise InputError(
            f"a resumed run keeps its {setting}. Leave that out: only single settings like a.b=c can change."
        )
    if override.is_sweep_override():
        raise InputError(f"{setting}: a resumed run takes one value, not several")
    if not override.is_delete() and OmegaConf.select(config, name) == override.value():
        return
    first, _, rest = name.partition(".")
    if name == "find_lr":
        reason = "a resumed run keeps its learning rate"
    elif name == "seed" or first == "scheduler" or name == "optimizer._target_":
        reason = f"a resumed run keeps its {name}"
    elif first == "optimizer" and rest in _SCHEDULED and config.get("scheduler"):
        reason = f"{name} goes on as the run's scheduler has left it"
    else:
        return
    raise InputError(f"{setting}: {reason}, because its checkpoint restores it. Leave that setting out.")


def optimizer_settings(config: DictConfig, directory: Path) -> OptimizerSettings:
    """Return the callback for settings of the optimizer that change when a run resumes.

    Args:
        config: configuration of the run.
        directory: directory of the run, with its stored configuration if it is to resume.
    """
    is_stored = (directory / "config.yaml").is_file()
    # values alone are compared, nothing of it is built
    former = read_config(directory) if is_stored else config
    return OptimizerSettings(_plain_settings(config), _plain_settings(former))


def _plain_settings(config: DictConfig) -> dict[str, Any]:
    settings = {}
    for name, value in (config.get("optimizer") or {}).items():
        if name not in {"_target_", "_partial_"}:
            # lists of a configuration become what torch keeps: betas=(0.9, 0.99)
            settings[str(name)] = tuple(value) if isinstance(value, ListConfig) else value
    return settings


def resume_point(task: Classification, config: DictConfig, directory: Path) -> Path | None:
    """Return the checkpoint to go on from: repaired if it is damaged, its paths rewritten if the run was moved.

    Args:
        task: task of the run.
        config: configuration of the resumed run.
        directory: directory of the run; the caller holds its claim.

    Returns:
        None if the run has no checkpoint yet and starts again.

    Raises:
        InputError: If no checkpoint is whole, if it is beyond the end of the run, or if it does not fit the network.
    """
    checkpoints.repair_last_checkpoint(directory)
    checkpoint = checkpoints.find_last_checkpoint(directory)
    if checkpoint is None:
        return None
    content = read_checkpoint(checkpoint)
    check_end(content, config.trainer, directory)
    check_network(content, task)
    checkpoints.rewrite_moved_checkpoints(directory)
    return checkpoint


def check_end(content: Mapping[str, Any], trainer: DictConfig, directory: Path) -> None:
    """Check that a run does not end before its checkpoint.

    Args:
        content: content of the checkpoint.
        trainer: settings of the Trainer.
        directory: directory of the run, for the message.

    Raises:
        InputError: If ``max_epochs`` or ``max_steps`` lies before the checkpoint.
    """
    epoch, step = content["epoch"], content["global_step"]
    # None and -1 are no limits; the file counts epochs from 0, the message from 1
    if trainer.max_epochs is not None and 0 <= trainer.max_epochs < epoch:
        raise InputError(
            f"trainer.max_epochs={trainer.max_epochs}: the run in {directory} is in epoch {epoch + 1} already. "
            f"Set trainer.max_epochs to at least {epoch}."
        )
    if 0 <= trainer.get("max_steps", -1) < step:
        raise InputError(
            f"trainer.max_steps={trainer.max_steps}: the run in {directory} has made {step} steps already. "
            f"Set trainer.max_steps to at least {step}."
        )


def check_network(content: Mapping[str, Any], task: Classification) -> None:
    """Check that a checkpoint holds the weights of a network.

    Raises:
        InputError: If a weight is missing, left over, or of another shape.
    """
    shapes_in_checkpoint = {name: list(tensor.shape) for name, tensor in content["state_dict"].items()}
    shapes_in_network = {name: list(tensor.shape) for name, tensor in task.state_dict().items()}
    for name in [*shapes_in_network, *shapes_in_checkpoint]:
        in_checkpoint = shapes_in_checkpoint.get(name, "missing")
        in_network = shapes_in_network.get(name, "missing")
        if in_checkpoint != in_network:
            raise InputError(
                f"the checkpoint of this run does not fit its network: {name} is {in_checkpoint} in the checkpoint and "
                f"{in_network} in the network. Leave settings of model and task out."
            )
