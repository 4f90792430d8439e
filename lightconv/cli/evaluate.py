"""lightconv evaluate: test a finished run's network again, on its own or on other files of the same set."""

from pathlib import Path

import lightning as L
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, open_dict

from lightconv.cli import run, tables
from lightconv.cli.application import instantiate
from lightconv.cli.train import build_data, build_task, load_weights, show_classes, titled
from lightconv.data import ImageData
from lightconv.errors import InputError
from lightconv.operators.backend import use_backend
from lightconv.tasks import Classification


def evaluate(config: DictConfig) -> float:
    """Print accuracy, loss and each class's figures, and write them below the run.

    Returns:
        The accuracy.

    Raises:
        InputError: if there is no such run, checkpoint or split.
    """
    directory = run.existing(config.run, "run")
    if config.split not in {"test", "validation"}:
        raise InputError(f"split={config.split}: choose test or validation")
    task, data = finished(directory, config)
    trainer: L.Trainer = instantiate(config.trainer, logger=False, enable_checkpointing=False)
    with use_backend(config.backend):
        data.setup("test" if config.split == "test" else "validate")
        trainer.test(task, data.test_dataloader() if config.split == "test" else data.val_dataloader(), verbose=False)
    figures = {f"{config.split}/{k.split('/')[1]}": v.item() for k, v in trainer.callback_metrics.items()}
    directory = Path(HydraConfig.get().runtime.output_dir)
    run.write_json(directory / "metrics.json", figures)
    averaged = f", averaged with {', '.join(task.views)}" if task.views else ""
    title = f"{titled(task, data)}, {config.split}{averaged}"
    show_classes(directory, task, data, title)
    tables.show_figures(title, {**figures, "directory": str(directory)})
    return figures[f"{config.split}/accuracy"]


def finished(directory: Path, config: DictConfig) -> tuple[Classification, ImageData]:
    """A finished run's task with a checkpoint's weights, and its data; ``config`` may have settings of both.

    Raises:
        InputError: if the data have no such setting, or there is no such checkpoint.
    """
    trained = run.load_config(directory)
    with open_dict(trained.task):  # an older run may not have it
        trained.task.update({name: value for name, value in config.get("task", {}).items() if value is not None})
    for name, value in config.data.items():
        if value is None:
            continue
        if name not in trained.data:
            raise InputError(f"data.{name}={value}: the run's {trained.data._target_} has no {name}")
        trained.data[name] = value
    task = build_task(trained)
    load_weights(task, find_checkpoint(directory, config.checkpoint))
    return task, build_data(trained, task)


def find_checkpoint(directory: Path, name: str) -> Path:
    """Look a checkpoint up by its name in the run, or as a path.

    Raises:
        InputError: if there is none; the message lists the run's.
    """
    folder = directory / "checkpoints"
    path = next((p for p in (folder / f"{name}.ckpt", folder / name, Path(name)) if p.is_file()), None)
    if path is None:
        known = ", ".join(sorted(p.stem for p in folder.glob("*.ckpt"))) or "none"
        raise InputError(f"checkpoint={name} is neither a file nor in {folder}, which holds: {known}")
    return path
