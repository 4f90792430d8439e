"""Learning rate of a run, found by a range test."""

from copy import deepcopy
from pathlib import Path

from lightning.pytorch.utilities.seed import isolate_rng
from omegaconf import DictConfig, OmegaConf

from lightconv import visualize
from lightconv.data import ImageData
from lightconv.operators.backend import use_backend
from lightconv.runs.build import build_task, instantiate
from lightconv.tasks import range_test


def find_learning_rate(config: DictConfig, data: ImageData, directory: Path) -> float:
    """Find the learning rate of a run by a range test with a network and a Trainer of its own.

    Random states are restored, so the run continues as if the rate had been given. The test is drawn in
    lr_finder.png.

    Args:
        config: configuration of the run.
        data: data to train on.
        directory: directory of the run.

    Raises:
        InputError: If no rate lets the loss fall.
    """
    # the test itself raises the rate from step to step, so the run's own scheduler is left out
    constant_rate = deepcopy(config)
    OmegaConf.update(constant_rate, "scheduler", None, force_add=True)
    with isolate_rng(), use_backend(config.backend):
        task = build_task(constant_rate)
        if config.get("finetune"):
            # find the rate of the first stage: freeze what that stage freezes
            instantiate(config.finetune).begin(task)
        trainer = instantiate(
            config.trainer,
            max_epochs=-1,
            check_val_every_n_epoch=2**31,  # Lightning's Tuner has no other way to leave validation out
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            default_root_dir=str(directory),
        )
        result = range_test(trainer, task, data)
    rate = float(f"{result.suggestion():.2g}")
    picture = visualize.learning_rates(result.rates, result.losses, rate)
    picture.savefig(directory / "lr_finder.png", dpi=110)
    return rate
