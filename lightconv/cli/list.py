"""lightconv list: the parts a run can be made of, as one types them, each with its purpose."""

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
    """Print the configurations of each group, or of the group ``what``, with their opening comments.

    Raises:
        InputError: If the group is unknown.
    """
    check_choice(config, "what", ("all", *GROUPS))
    groups = GROUPS if config.what == "all" else [config.what]
    for group in groups:
        rows = [(f"{group}={name}", purpose(path)) for name, path in sorted(choices(group).items())]
        tables.show_facts(GROUPS[group], rows)


def choices(group: str) -> dict[str, Path]:
    """Return the files of a group, keyed by the name to type.

    A file in a user's directory hides lightconv's own of the same name, as it does for Hydra.
    """
    files = {}
    # Hydra searches its sources in order: the first file of a name wins, so it is entered last
    for source in reversed(HydraConfig.get().runtime.config_sources):
        if source.schema == "file":
            folder = Path(source.path, group)
            for path in folder.rglob("*.yaml"):
                files[path.relative_to(folder).with_suffix("").as_posix()] = path
    return files


def purpose(path: Path) -> str:
    """Return the comment at the head of a configuration, without Hydra's ``@package`` line."""
    words = []
    for line in takewhile(lambda line: line.startswith("#"), path.read_text().splitlines()):
        text = line.lstrip("# ")
        if not text.startswith("@package"):
            words.append(text)
    return " ".join(words)
