"""lightconv train: from a configuration to a run directory with a trained, tested network."""

import shlex
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from lightning.pytorch.utilities.exceptions import SIGTERMException
from omegaconf import DictConfig, ListConfig, OmegaConf

from lightconv.callbacks import FineTuning
from lightconv.cli import tables
from lightconv.cli.resume import read_overrides
from lightconv.cli.settings import as_list, quote_value
from lightconv.data import ImageData, ImageFolder
from lightconv.errors import InputError, NonFiniteLossError
from lightconv.operators.backend import use_backend
from lightconv.runs import checkpoints, results
from lightconv.runs.arguments import as_typed
from lightconv.runs.build import build_data, build_task, build_trainer, name_key
from lightconv.runs.configuration import with_classes, with_directory, with_learning_rate
from lightconv.runs.directory import check_unused, claimed_directory, write_definition, write_json
from lightconv.runs.last_batch import join_last_image
from lightconv.runs.learning_rate import find_learning_rate
from lightconv.runs.model_settings import complete_model
from lightconv.runs.monitors import check_monitors, check_objective
from lightconv.runs.precision import warn_of_slow_precision
from lightconv.runs.rehearsal import rehearse
from lightconv.runs.resume import optimizer_settings, resume_point, resumed_config
from lightconv.runs.targets import foreign_targets
from lightconv.tasks import Classification
from lightconv.tasks.schedules import check_scheduler

_SIGTERM_STATUS = 143  # 128 + 15, as shells and schedulers expect


class Parts(NamedTuple):
    """Objects of a run.

    Attributes:
        config: configuration of the run, with the learning rate if one was searched for.
        task: network with its losses, metrics and optimizer.
        data: images and labels, read for training.
        trainer: Trainer with callbacks and loggers.
    """

    config: DictConfig
    task: Classification
    data: ImageData
    trainer: L.Trainer


def train(config: DictConfig, settings: Sequence[str] = ()) -> float | None:
    """Train a network, test its best weights, and write everything into the run's directory.

    Args:
        config: configuration of the command.
        settings: settings of a command that resumes a run.

    Returns:
        The figure named by ``objective``, for Hydra's sweepers; None if the run has no such figure.

    Raises:
        InputError: If the configuration does not make a run.
        NonFiniteLossError: If the training loss becomes NaN or infinite.
    """
    resuming = config.resume is not None
    with open_directory(resuming=resuming) as directory:
        config = read_config(config, settings, directory, resuming=resuming)
        parts = build(config, directory)
        check(parts, directory)
        parts = search_learning_rate(parts, directory)
        checkpoint = start(parts, settings, directory, resuming=resuming)
        try:
            seconds = fit(parts, checkpoint, directory)
        except NonFiniteLossError as error:
            write_stopped_results(parts, str(error), directory)
            raise
        test(parts, directory)
        return write_results(parts, {"seconds": round(seconds, 3)}, directory)


def open_directory(*, resuming: bool) -> AbstractContextManager[Path]:
    """Claim the directory of the run for the time of a ``with`` block.

    Two runs that begin in the same second get directories of their own, unless hydra.run.dir names one.

    Raises:
        InputError: If a multirun would resume a run. On entering the block, if another process trains there.
    """
    command = HydraConfig.get()
    if resuming and command.mode is RunMode.MULTIRUN:
        raise InputError("resume= goes on with one run in its own directory: leave -m (--multirun) out")
    named = any(override.startswith("hydra.run.dir=") for override in command.overrides.hydra)
    return claimed_directory(
        Path(command.runtime.output_dir),
        numbered=not (resuming or named or command.mode is RunMode.MULTIRUN),
    )


def read_config(config: DictConfig, settings: Sequence[str], directory: Path, *, resuming: bool) -> DictConfig:
    """Return the configuration of the run: this command's, or on resuming the run's own with settings over it.

    Raises:
        InputError: If a new run would overwrite another, or if a setting would fail late or be misunderstood.
    """
    command = HydraConfig.get()
    if resuming:
        config = resumed_config(directory, settings, command.runtime.choices, as_list(config.allow))
    else:
        check_unused(directory)
        config = with_directory(config, directory)
    if command.mode is RunMode.MULTIRUN:
        # the table of a sweep names the settings of failed jobs, too
        write_overrides(directory)
    check_settings(config)
    return config


def check_settings(config: DictConfig) -> None:
    """Check settings whose mistakes would otherwise show late or never.

    Raises:
        InputError: If the seed is not a whole number in range, if a switch is neither true nor false, or if more than
            one process is asked for.
    """
    seed = config.seed
    # bool is a subclass of int, and true is no number
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**32:
        raise InputError(f"seed={as_typed(seed)}: a seed is a whole number from 0 to {2**32 - 1}")
    for name in ("channels_last", "find_lr"):
        if config.get(name) not in {None, True, False}:
            raise InputError(f"{name}={config[name]}: set true or false")
    for group in ("callbacks", "logger"):
        for name, part in config.get(group, {}).items():
            if part is not None and not isinstance(part, DictConfig):
                raise InputError(f"{group}.{name}={as_typed(part)}: give a configuration with _target_, or null")
    devices = config.trainer.devices
    one_device = len(devices) == 1 if isinstance(devices, ListConfig) else devices in {1, "1", "auto"}
    if not one_device:
        raise InputError(
            f"trainer.devices={devices}: the command line trains in one process. For more, call "
            "lightning.Trainer on lightconv.tasks.Classification in a script of your own."
        )


def build(config: DictConfig, directory: Path) -> Parts:
    """Build network, data and Trainer, and read the training images.

    Images are read here: missing files stop the command before the directory holds a run.

    Raises:
        InputError: If a part refuses its settings, or files are missing.
    """
    L.seed_everything(config.seed, workers=True, verbose=False)
    config = complete_model(config)
    task = build_task(config)
    data = build_data(config, task)
    try:
        data.prepare_data()
        data.setup("fit")
    except InputError as error:
        raise InputError(name_key(str(error), config.data, "data")) from error
    trainer = build_trainer(config, directory, [optimizer_settings(config, directory)])
    return Parts(config, task, data, trainer)


def check(parts: Parts, directory: Path) -> None:
    """Check that network, data, fine-tuning stages and callbacks fit together, and rehearse the first step.

    Set the network's example batch, too.

    Raises:
        InputError: If they do not fit, or if the run could not train.
    """
    parts.task.check_fit(parts.data)
    check_scheduler(parts.task.scheduler, parts.trainer)
    for callback in parts.trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, FineTuning):
            callback.check(parts.task)
            check_scheduler(callback.scheduler, parts.trainer)
    join_last_image(parts.trainer, parts.task, parts.data)
    check_objective(parts.config.objective, parts.task)
    check_monitors(parts.config, parts.trainer, parts.task)
    rehearse(parts.config, parts.task, parts.data, directory)
    warn_of_slow_precision(parts.trainer)
    # (batch, c, h, w), read by the summary of layers
    batch = torch.zeros(parts.data.batch_size, *parts.data.image_shape)
    parts.task.example_input_array = parts.trainer.precision_plugin.convert_input(batch)


def search_learning_rate(parts: Parts, directory: Path) -> Parts:
    """Return the parts with the learning rate found by a range test, if the configuration asks for one.

    Raises:
        InputError: If no rate lets the loss fall.
    """
    config = parts.config
    if not config.get("find_lr"):
        return parts
    rate = find_learning_rate(config, parts.data, directory)
    print(f"learning rate found: {rate}")
    config = with_learning_rate(config, rate)
    # anew with that rate, as if it had been given
    L.seed_everything(config.seed, workers=True, verbose=False)
    task = build_task(config)
    task.example_input_array = parts.task.example_input_array
    trainer = build_trainer(config, directory, [optimizer_settings(config, directory)])
    return Parts(config, task, parts.data, trainer)


def start(parts: Parts, settings: Sequence[str], directory: Path, *, resuming: bool) -> Path | None:
    """Write overrides, configuration and environment: from here on the directory holds a run.

    For a folder of images, write its class names into config.yaml, and the unreadable files into bad_files.json.

    Returns:
        The checkpoint to resume from; None for a new run, and for one stopped before its first checkpoint.

    Raises:
        InputError: If the run cannot be resumed.
    """
    config = parts.config
    checkpoint = resume_point(parts.task, config, directory) if resuming else None
    if isinstance(parts.data, ImageFolder):
        # the folder may change later, and the network's outputs must keep their names
        config = with_classes(config, parts.data.classes)
        write_json(directory / "bad_files.json", parts.data.bad_files)
    write_overrides(directory, settings, resuming=resuming)
    write_definition(directory, config)
    return checkpoint


def write_overrides(directory: Path, settings: Sequence[str] = (), *, resuming: bool = False) -> None:
    """Write the settings of the run as they were typed. Those of a resumed run take the place of earlier ones."""
    overrides = read_overrides(directory) if resuming else list(HydraConfig.get().overrides.task)
    names = [setting.partition("=")[0] for setting in settings]
    kept = [override for override in overrides if override.partition("=")[0] not in names]
    write_json(directory / "overrides.json", [*kept, *settings])


def fit(parts: Parts, checkpoint: Path | None, directory: Path) -> float:
    """Train; if interrupted, print the command to resume.

    Returns:
        Seconds of training.
    """
    started = time.perf_counter()
    try:
        # last.ckpt restores optimizer, epoch, random states and the position within the epoch
        with use_backend(parts.config.backend):
            parts.trainer.fit(parts.task, parts.data, ckpt_path=checkpoint, weights_only=True)
    except SystemExit as stop:  # raised by Lightning after Ctrl-C; its SIGTERMException is one, too
        with suppress(OSError):  # raised if the terminal was closed
            print(f"stopped; go on with: {resume_command(parts.config, directory)}", flush=True)
        if isinstance(stop, SIGTERMException):
            # Lightning's own has no status
            raise SystemExit(stop.code or _SIGTERM_STATUS) from None
        raise
    return time.perf_counter() - started


def resume_command(config: DictConfig, directory: Path) -> str:
    """Return the command that goes on with a run, quoted for Hydra and for the shell.

    It names the classes of the user's own: a stored run builds no others without that.
    """
    settings = [f"resume={quote_value(str(directory))}"]
    own = foreign_targets(OmegaConf.to_container(config, resolve=True))
    if own:
        settings.append(f"allow=[{','.join(own)}]")
    # a path may hold spaces, commas, brackets
    return " ".join(["lightconv train", *map(shlex.quote, settings)])


def test(parts: Parts, directory: Path) -> None:
    """Test the best weights, or the last ones if no best checkpoint was kept."""
    best = directory / "checkpoints" / "best.ckpt"
    if best.is_file():
        checkpoints.load_weights(parts.task, best)
    with use_backend(parts.config.backend):
        parts.trainer.test(parts.task, parts.data, verbose=False)


def write_stopped_results(parts: Parts, reason: str, directory: Path) -> None:
    """Write the results of a run that a loss of NaN has stopped: those of its best weights, if any were kept.

    Args:
        parts: objects of the run.
        reason: message of the error, kept in metrics.json.
        directory: directory of the run.
    """
    if (directory / "checkpoints" / "best.ckpt").is_file():
        test(parts, directory)
        write_results(parts, {"stopped": reason}, directory)
        return
    figures = {"epochs": parts.trainer.current_epoch, "seed": parts.config.seed, "stopped": reason}
    write_json(directory / "metrics.json", figures)


def write_results(parts: Parts, facts: dict[str, Any], directory: Path) -> float | None:
    """Write weights, figures and pictures, and print the tables.

    Args:
        parts: objects of the run.
        facts: further entries of metrics.json.
        directory: directory of the run.

    Returns:
        The figure named by ``objective``; None if there is none.
    """
    config, task, data, trainer = parts
    figures = results.run_figures(trainer, task, directory)
    figures |= {**facts, "seed": config.seed}
    results.write_results(directory, task, data, figures)
    if task.class_results:  # empty if testing was turned off
        tables.show_classes(data.classes, task.class_results)
    tables.show_figures(results.run_title(task, data), {**figures, "directory": str(directory)})
    return figures.get(config.objective)
