"""Hydra around a verb: where configurations are found, and how a mistake in one is told."""

import importlib
import itertools
import logging
import os
import sys
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import hydra
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.plugins import Plugins
from hydra.errors import HydraException, InstantiationException
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lightconv.cli import run, sweep
from lightconv.errors import InputError, InputWarning
from lightconv.operators import backend


def config_directory() -> Path:
    """Where the shipped configurations are: in the installed package, or beside it in a checkout."""
    package = Path(__file__).parents[1]
    return package / "conf" if (package / "conf").is_dir() else package.parent / "conf"


def launch(verb: str, overrides: list[str]) -> None:
    """Compose conf/<verb>.yaml with the overrides and call the verb's function, for each job of a sweep.

    Exits with status 2 and a message where the user's input is at fault, with 143 after SIGTERM.
    """
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # exceptions arrive here as they are
    # Hydra's parser takes no settings on both sides of a flag
    overrides = sorted(overrides, key=lambda argument: argument not in {"-m", "--multirun"})
    sys.argv = [f"lightconv {verb}", *overrides]
    UserConfigs.directory = next((v for flag, v in _flags(overrides) if flag in {"--config-dir", "-cd"}), None)
    Plugins.instance().register(UserConfigs)
    function = getattr(importlib.import_module(f"lightconv.cli.{verb}"), verb)
    quiet()
    application = hydra.main(version_base="1.3", config_path=str(config_directory()), config_name=verb)(function)
    try:
        backend.check_environment()
        application()
    except (InputError, HydraException, OmegaConfBaseException) as error:
        print(f"error: {explain(error)}", file=sys.stderr)
        sys.exit(2)
    except ValueError as error:
        if "Config group override must be a string" not in str(error):  # Hydra's own words would be a traceback
            raise
        print("error: GROUP=null: a group is left out by ~GROUP, and has a value otherwise", file=sys.stderr)
        sys.exit(2)
    finally:
        sweep.show_last()


class UserConfigs(SearchPathPlugin):
    """Let the files under ``--config-dir`` go before lightconv's own of the same name; Hydra would put them after."""

    directory: str | None = None

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Put the user's directory first."""
        if self.directory is not None:
            search_path.prepend("user", f"file://{Path(self.directory).resolve()}")


def _flags(arguments: list[str]) -> list[tuple[str, str]]:
    # both --flag=value and --flag value
    pairs = [argument.split("=", 1) for argument in arguments if argument.startswith("--") and "=" in argument]
    return [(flag, value) for flag, value in pairs] + list(itertools.pairwise(arguments))


def explain(error: BaseException) -> str:
    """Say what was wrong with the input: our own words, or Hydra's with the names it knows."""
    chain: list[BaseException] = [error]
    while cause := chain[-1].__cause__:
        chain.append(cause)
    ours = [e for e in chain if isinstance(e, InputError)]
    if ours:
        return str(ours[-1])  # the first cause knows best
    for inner in chain:
        parent = getattr(inner, "parent_node", None)
        if isinstance(inner, OmegaConfBaseException) and isinstance(parent, DictConfig):
            known = ", ".join(sorted(str(key) for key in parent if key != "hydra"))
            return (
                f"{str(error).splitlines()[0]} {str(inner).splitlines()[0]} (known here: {known}; +key=value adds one)"
            )
    return str(error)


def instantiate(config: Any, *args: Any, **kwargs: Any) -> Any:
    """Build what a configuration's ``_target_`` names: the one place that does.

    Raises:
        InputError: if the target does not exist or refuses its arguments.
    """
    try:
        return hydra.utils.instantiate(config, *args, **kwargs)
    except InstantiationException as error:
        raise InputError(str(error)) from error


def run_directory(resume: str | None, fresh: str) -> str:
    """The resolver behind ``hydra.run.dir``: a resumed run goes on where it was."""
    return fresh if resume is None else str(run.existing(resume, "resume"))


def run_name(choices: DictConfig) -> str:
    """The resolver behind the folder below runs/: the recipe's name, or what was chosen instead."""
    return choices.experiment or f"{choices.model}_{choices.data}"


def evaluated_run(directory: str | None) -> str:
    """The resolver behind the directory of an evaluation, which lies in its run."""
    return str(run.existing(directory, "run"))


OmegaConf.register_new_resolver("evaluated_run", evaluated_run, replace=True)
OmegaConf.register_new_resolver("run_directory", run_directory, replace=True)
OmegaConf.register_new_resolver("run_name", run_name, replace=True)


def quiet() -> None:
    """Keep off the terminal what others announce and a verb's own tables say; once Lightning has been imported."""
    for name in ("lightning.pytorch", "lightning.fabric", "lightning", "onnx_ir", "onnxscript"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*`isinstance.treespec, LeafSpec.`.*")
    warnings.filterwarnings("ignore", message=".*Checkpoint directory .* exists and is not empty.*")
    warnings.formatwarning = partial(_formatted, warnings.formatwarning)


def _formatted(others: Callable[..., str], message: Any, category: type[Warning], *place: Any) -> str:
    return f"warning: {message}\n" if issubclass(category, InputWarning) else others(message, category, *place)
