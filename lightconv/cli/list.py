"""lightconv list: what a run can be made of, as one types it, and what each is for."""

from itertools import takewhile
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from lightconv.cli import tables
from lightconv.cli.settings import check_choice

GROUPS = {
    "experiment": "recipes, and what they reach",
    "model": "models",
    "data": "data",
    "augmentation": "augmentations of training images",
    "optimizer": "optimizers",
    "scheduler": "schedulers",
    "trainer": "trainers",
    "finetune": "stages of fine-tuning",
    "callbacks": "callbacks",
    "logger": "loggers",
    "debug": "to look for a defect",
}


def list(config: DictConfig) -> None:
    """Print the configurations of each group, or of the one that ``what`` names, with the comment that they open with.

    Raises:
        InputError: for an unknown group.
    """
    check_choice(config, "what", ("all", *GROUPS))
    for group in GROUPS if config.what == "all" else (config.what,):
        rows = [(f"{group}={name}", purpose(path)) for name, path in sorted(choices(group).items())]
        tables.show_facts(GROUPS[group], rows)


def choices(group: str) -> dict[str, Path]:
    """The files of a group by the names that choose them; the user's hide lightconv's own, as Hydra has it."""
    sources = HydraConfig.get().runtime.config_sources
    folders = [Path(source.path, group) for source in reversed(sources) if source.schema == "file"]
    return {
        path.relative_to(folder).with_suffix("").as_posix(): path
        for folder in folders
        for path in folder.rglob("*.yaml")
    }


def purpose(path: Path) -> str:
    """The comment that a configuration opens with, but for Hydra's own words."""
    comment = takewhile(lambda line: line.startswith("#"), path.read_text().splitlines())
    return " ".join(words for line in comment if not (words := line.lstrip("# ")).startswith("@package"))
