"""lightconv train: from a configuration to a run directory with a trained, tested network."""

import time
from pathlib import Path
from typing import Any

import lightning as L
import torch
from hydra.core.hydra_config import HydraConfig
from lightning.pytorch.utilities.exceptions import SIGTERMException
from lightning.pytorch.utilities.seed import isolate_rng
from omegaconf import DictConfig, OmegaConf

from lightconv import visualize
from lightconv.callbacks import FineTuning, KernelSummary
from lightconv.cli import run, tables
from lightconv.cli.application import instantiate
from lightconv.data import ImageData, ImageFolder
from lightconv.errors import InputError
from lightconv.loggers import read_metrics
from lightconv.models.weights import read_checkpoint
from lightconv.operators.backend import use_backend
from lightconv.tasks import Classification, range_test

_SIGTERM_STATUS = 143


def train(config: DictConfig) -> float | None:
    """Train, test the best weights, and write everything into the run's directory.

    Returns:
        The figure that ``objective`` names, for Hydra's sweepers; None if the run has no such figure.

    Raises:
        InputError: if the configuration does not make a run.
    """
    directory = Path(HydraConfig.get().runtime.output_dir)
    resuming = config.resume is not None
    if resuming:
        config = run.reopen(directory)
        if config.get("find_lr"):
            raise InputError("find_lr=true: a resumed run keeps its learning rate")
    else:
        run.check_unused(directory)
        run.write_json(directory / "overrides.json", list(HydraConfig.get().overrides.task))
    check_settings(config)
    L.seed_everything(config.seed, workers=True, verbose=False)
    task = build_task(config)
    data = build_data(config, task)
    data.prepare_data()
    data.setup("fit")  # what is missing is missed before there is a run
    if config.get("find_lr"):
        find_learning_rate(config, data, directory)
        L.seed_everything(config.seed, workers=True, verbose=False)
        task = build_task(config)  # anew, with the rate
    task.check_fit(data)
    trainer = build_trainer(config, directory)
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, FineTuning):
            callback.check(task)
    batch = torch.zeros(data.batch_size, *data.image_shape)
    task.example_input_array = trainer.precision_plugin.convert_input(batch)
    if not resuming:  # everything fits: from here on there is a run
        begin(directory, config, data)
    checkpoint = run.last_checkpoint(directory, config) if resuming else None
    with use_backend(config.backend):
        started = time.perf_counter()
        fit(trainer, task, data, checkpoint, directory)
        seconds = time.perf_counter() - started
        test(trainer, task, data, directory)
    figures = {
        **{name: float(value) for name, value in best_validation(directory).items()},
        **{name: value.item() for name, value in trainer.callback_metrics.items() if name.startswith("test/")},
        "parameters": sum(p.numel() for p in task.model.parameters()),
        "epochs": trainer.current_epoch,
        "seconds": round(seconds, 3),
        "seed": config.seed,
    }
    write_results(directory, task, data, figures)
    return figures.get(config.objective)


def check_settings(config: DictConfig) -> None:
    """Refuse what would fail later, or differently from what was meant.

    Raises:
        InputError: for a seed that is none, or more than one process.
    """
    if not isinstance(config.seed, int) or not 0 <= config.seed < 2**32:
        raise InputError(f"seed={config.seed}: a seed is a whole number from 0 to {2**32 - 1}")
    if config.trainer.devices not in {1, "1", "auto"}:
        raise InputError(
            f"trainer.devices={config.trainer.devices}: the command line trains in one process; for more, call "
            "lightning.Trainer on lightconv.tasks.Classification in a script of your own"
        )


def build_data(config: DictConfig, task: Classification) -> ImageData:
    """Build the data, as the network expects them to be."""
    preprocessing = getattr(task.model, "preprocessing", None)
    if preprocessing is None:
        return instantiate(config.data)
    try:
        return instantiate(config.data, _partial_=True)(preprocessing=preprocessing)  # Hydra would make it a config
    except TypeError as error:
        raise InputError(f"data: {error}") from error


def begin(directory: Path, config: DictConfig, data: ImageData) -> None:
    """Write what defines a run; of a folder of images also its classes, in config.yaml, and which files gave no image.

    The folder may change: a network's outputs keep their names.
    """
    if isinstance(data, ImageFolder):
        OmegaConf.update(config, "data.classes", list(data.classes), force_add=True)
        run.write_json(directory / "bad_files.json", data.bad_files)
    run.begin(directory, config)


def build_task(config: DictConfig) -> Classification:
    """Build the network and, around it, the task with its optimizer and scheduler."""
    model = instantiate(config.model)
    if config.channels_last:
        model = model.to(memory_format=torch.channels_last)
    names = (
        ["optimizer"] if config.get("finetune") else ["optimizer", "scheduler"]
    )  # each stage has a schedule of its own
    parts = {name: instantiate(config[name]) for name in names if config.get(name)}
    return instantiate(config.task, model=model, **parts)


def build_trainer(config: DictConfig, directory: Path) -> L.Trainer:
    """Build the Trainer with the callbacks and loggers of the configuration."""
    callbacks = [instantiate(c) for c in config.callbacks.values() if c]
    if config.get("finetune"):
        callbacks.insert(0, instantiate(config.finetune, scheduler=instantiate(config.scheduler)))
    if config.trainer.get("enable_model_summary"):
        callbacks.append(KernelSummary(max_depth=2))  # in place of Lightning's own; the task's one layer is the network
    loggers = [logger for c in config.logger.values() if c and (logger := instantiate(c)) is not None]
    return instantiate(config.trainer, callbacks=callbacks, logger=loggers, default_root_dir=str(directory))


def find_learning_rate(config: DictConfig, data: ImageData, directory: Path) -> None:
    """Set the configuration's learning rate by a range test with a network and a Trainer of its own.

    The run is then as if it had been given the rate. Lightning's Tuner is told to leave validation out, in its way.

    Raises:
        InputError: if no rate is found.
    """
    with isolate_rng(), use_backend(config.backend):
        task = build_task(OmegaConf.create({**config, "scheduler": None}))
        if config.get("finetune"):
            instantiate(config.finetune).begin(task)
        trainer = instantiate(
            config.trainer,
            max_epochs=-1,
            check_val_every_n_epoch=2**31,
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            default_root_dir=str(directory),
        )
        found = range_test(trainer, task, data)
    rate = float(f"{found.suggestion():.2g}")
    visualize.learning_rates(found.rates, found.losses, rate).savefig(directory / "lr_finder.png", dpi=110)
    print(f"learning rate found: {rate}")
    config.optimizer.lr, config.find_lr = rate, False


def fit(trainer: L.Trainer, task: Classification, data: ImageData, checkpoint: Path | None, directory: Path) -> None:
    """Train; when interrupted, say how to go on."""
    try:
        trainer.fit(task, data, ckpt_path=checkpoint)
    except SystemExit as stop:  # Lightning's answer to Ctrl-C, and what its SIGTERMException derives from
        print(f"stopped; go on with: lightconv train resume={directory}")
        raise SystemExit(_SIGTERM_STATUS) if isinstance(stop, SIGTERMException) else stop from None


def test(trainer: L.Trainer, task: Classification, data: ImageData, directory: Path) -> None:
    """Test the best weights, or the last where none were kept."""
    best = directory / "checkpoints" / "best.ckpt"
    if best.is_file():
        load_weights(task, best)
    trainer.test(task, data, verbose=False)


def load_weights(task: Classification, path: Path) -> None:
    """Put the weights of a checkpoint or of a weights.pt, and nothing else of it, into the task.

    Raises:
        InputError: if the file is damaged, or of another network.
    """
    content = read_checkpoint(path)
    try:
        if "state_dict" in content:
            task.load_state_dict(content["state_dict"])
        else:
            task.model.load_state_dict(content)
    except (RuntimeError, TypeError) as error:
        raise InputError(f"{path} does not hold the weights of this {type(task.model).__name__}: {error}") from error


def best_validation(directory: Path) -> dict[str, float]:
    """The validation figures of the epoch with the lowest loss, whose weights are tested."""
    rows = [row for row in read_metrics(directory / "metrics.csv") if "val/loss" in row]
    best = min(rows, key=lambda row: row["val/loss"], default={})
    return {name: value for name, value in best.items() if name.startswith("val/")}


def write_results(directory: Path, task: Classification, data: ImageData, figures: dict[str, Any]) -> None:
    """Write metrics.json, weights.pt and the pictures, and print the tables."""
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in task.model.state_dict().items()}
    torch.save(weights, directory / "weights.pt")
    title = titled(task, data)
    curve = visualize.learning_curve(read_metrics(directory / "metrics.csv"), title)
    curve.savefig(directory / "learning_curve.png", dpi=110)
    per_class = {}
    if task.class_results:  # there are none if testing was turned off
        show_classes(directory, task, data, f"{title}, test")
        per_class = {
            name: {key: round(task.class_results[key][index].item(), 6) for key in ("precision", "recall", "f1")}
            for index, name in enumerate(data.classes)
        }
    run.write_json(directory / "metrics.json", {**figures, "classes": per_class})
    tables.show_figures(title, {**figures, "directory": str(directory)})


def titled(task: Classification, data: ImageData) -> str:
    """Which network on which data."""
    return f"{getattr(task.model, 'name', type(task.model).__name__)} on {type(data).__name__}"


def show_classes(directory: Path, task: Classification, data: ImageData, title: str) -> None:
    """Draw the confusion matrix of the last test, and print its figures of each class."""
    confusion = visualize.confusion_matrix(task.class_results["confusion"], data.classes, title)
    confusion.savefig(directory / "confusion_matrix.png", dpi=110)
    tables.show_classes(data.classes, task.class_results)
