"""lightconv evaluate: test a finished run's network again, on its own or on other files of the same set."""

import json
import warnings
from pathlib import Path

import lightning as L
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from lightconv.cli import tables
from lightconv.cli.settings import as_list, check_choice
from lightconv.data import ImageFolder
from lightconv.data.base import SplitName
from lightconv.data.folder import warn_of_training_images
from lightconv.data.overlap import find_same_files
from lightconv.errors import InputError, InputWarning
from lightconv.operators.backend import use_backend
from lightconv.runs import Run, results
from lightconv.runs.build import build_data, instantiate
from lightconv.runs.configuration import load_config, replace_settings
from lightconv.runs.directory import existing_run, write_json


def evaluate(config: DictConfig) -> float:
    """Print accuracy, loss and the figures of each class, and write them below the run.

    Returns:
        The accuracy.

    Raises:
        InputError: If there is no such run, checkpoint or split.
    """
    directory = existing_run(config.run, "run")
    check_choice(config, "split", ("test", "validation"))
    stored = load_config(directory, as_list(config.allow))
    run = Run(directory, replace_settings(stored, data=config.data, task=config.task), config.checkpoint)
    figures = test(run, config)
    check_overlap(run, stored, config.split)
    output = Path(HydraConfig.get().runtime.output_dir)
    write_json(output / "metrics.json", figures)
    title = f"{results.run_title(run.task, run.data)}, {config.split}"
    if run.task.views:
        title += f", averaged with {', '.join(run.task.views)}"
    results.draw_confusion_matrix(output, run.task, run.data, title)
    tables.show_classes(run.classes, run.task.class_results)
    tables.show_figures(title, {**figures, "directory": str(output)})
    return figures[f"{config.split}/accuracy"]


def check_overlap(run: Run, original: DictConfig, split: SplitName) -> None:
    """Warn if images of the split were trained on: in a folder that is not the run's, or with other splits.

    Args:
        run: run with its settings of today.
        original: configuration of the run as it was trained.
        split: split that was evaluated.
    """
    # equal settings give equal splits
    if not isinstance(run.data, ImageFolder) or run.config.data == original.data:
        return
    try:
        training = build_data(original, run.task)
        bad = json.loads((run.directory / "bad_files.json").read_text())
        assert isinstance(training, ImageFolder)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", InputWarning)  # about the folder, which training warned of
            trained = training.files("train", bad)
    except (InputError, OSError, ValueError):
        return  # the run's own images are gone
    files = run.data.files(split)
    same = find_same_files(files, trained)
    if same:
        warn_of_training_images([str(files[position]) for position in same], split)


def test(run: Run, config: DictConfig) -> dict[str, float]:
    """Test a run's network on the split of the configuration.

    Returns:
        Figures named after the split, such as ``validation/accuracy``.
    """
    task, data = run.task, run.data
    trainer: L.Trainer = instantiate(config.trainer, logger=False, enable_checkpointing=False)
    with use_backend(config.backend):
        if config.split == "test":
            data.setup("test")
            loader = data.test_dataloader()
        else:
            data.setup("validate")
            loader = data.val_dataloader()
        trainer.test(task, loader, verbose=False)
    figures = {}
    for name, value in trainer.callback_metrics.items():
        figure = name.split("/")[1]  # Lightning names all figures of a test test/...
        figures[f"{config.split}/{figure}"] = value.item()
    return figures
