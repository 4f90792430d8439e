"""Hydra around a verb: finds the configurations, runs the verb and reports mistakes in the input."""

import importlib
import logging
import os
import re
import sys
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import hydra
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from lightconv.cli import outputs, sweep
from lightconv.cli.resolvers import register_resolvers
from lightconv.cli.resume import split_arguments
from lightconv.cli.settings import quote_value
from lightconv.errors import InputError, InputWarning, NonFiniteLossError
from lightconv.operators import backend
from lightconv.text import printable


def config_directory() -> Path:
    """Return the directory of the shipped configurations: in the installed package, or beside it in a checkout."""
    package = Path(__file__).parents[1]
    installed = package / "conf"
    return installed if installed.is_dir() else package.parent / "conf"


def launch(verb: str, overrides: list[str]) -> None:
    """Compose conf/<verb>.yaml with the overrides and call the verb's function, once per job of a sweep.

    Exit with a message and status 2 if the input is at fault, with status 1 if the training loss is NaN or infinite,
    with status 143 after SIGTERM.

    Args:
        verb: name of the verb.
        overrides: arguments after the verb.
    """
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # Hydra raises exceptions unchanged instead of printing them
    overrides = [quote_revision(override) for override in overrides]
    # Hydra's parser accepts no settings before -m if others come after it
    overrides = sorted(overrides, key=lambda argument: argument not in {"-m", "--multirun"})
    sys.argv = [f"lightconv {verb}", *overrides]
    UserConfigs.directory = user_directory(overrides)
    Plugins.instance().register(UserConfigs)
    register_resolvers()
    function = getattr(importlib.import_module(f"lightconv.cli.{verb}"), verb)
    quiet()
    decorate = hydra.main(version_base="1.3", config_path=str(config_directory()), config_name=verb)
    try:
        backend.check_environment()
        if verb == "train":
            arguments, settings = split_arguments(overrides)
            sys.argv[1:] = arguments
            function = partial(function, settings=settings or ())
        decorate(function)()
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        message = input_mistake(error)
        if message is None:
            raise
        print(f"error: {printable(message)}", file=sys.stderr)
        sys.exit(2)
    except NonFiniteLossError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    finally:  # after a failed job, too
        sweep.show_last()
        outputs.remove_empty()


def quote_revision(override: str) -> str:
    """Quote the value of an override that reads like a git revision: Hydra's grammar refuses ``diff=HEAD~1``.

    Example:
        >>> quote_revision("diff=HEAD~1"), quote_revision("~trainer"), quote_revision("arch=sm_90")
        ('diff="HEAD~1"', '~trainer', 'arch=sm_90')
    """
    name, _, value = override.partition("=")
    if re.fullmatch(r"[\w./@-]+[~^][\w./@~^-]*", value):
        return f"{name}={quote_value(value)}"
    return override


class UserConfigs(SearchPathPlugin):
    """Search path plugin for ``--config-dir``: its files go before lightconv's own of the same name.

    Hydra alone puts them after.
    """

    directory: str | None = None

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Put the user's directory first."""
        if self.directory is not None:
            search_path.prepend("user", f"file://{Path(self.directory).resolve()}")


def user_directory(arguments: list[str]) -> str | None:
    """Return the value of ``--config-dir`` (or ``-cd``), written as --flag=value or as --flag value."""
    for index, argument in enumerate(arguments):
        flag, separator, value = argument.partition("=")
        if flag not in {"--config-dir", "-cd"}:
            continue
        if separator:
            return value
        return next(iter(arguments[index + 1 :]), None)
    return None


def input_mistake(error: BaseException) -> str | None:
    """Return the message for a mistake in the input; None if the error is a defect of the program.

    An InputError is printed as it is; the last one raised names the key. Hydra's and OmegaConf's errors get
    the list of keys known at that place.
    """
    # instantiate raises InputError from Hydra's error, which in turn has the real cause
    causes = [error]
    while causes[-1].__cause__ is not None:
        causes.append(causes[-1].__cause__)
    for cause in causes:
        if isinstance(cause, InputError):
            return str(cause)
    if not isinstance(error, HydraException | OmegaConfBaseException):
        # Hydra reports GROUP=null by a plain ValueError
        if "Config group override must be a string" in str(error):
            return "GROUP=null: a group is left out by ~GROUP, and has a value otherwise"
        return None
    # a misspelt key: OmegaConf's error knows the node, and the node its keys
    for cause in causes:
        parent = getattr(cause, "parent_node", None)
        if isinstance(cause, OmegaConfBaseException) and isinstance(parent, DictConfig):
            known = ", ".join(sorted(str(key) for key in parent if key != "hydra"))
            summary, detail = str(error).splitlines()[0], str(cause).splitlines()[0]
            return f"{summary} {detail} (known here: {known}; +key=value adds one)"
    return str(error)


def quiet() -> None:
    """Silence other libraries' messages: the verbs print tables of their own. Call it after importing Lightning."""
    # Lightning sets the levels of its loggers when it is imported
    for name in ("lightning.pytorch", "lightning.fabric", "lightning", "onnx_ir", "onnxscript"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*`isinstance.treespec, LeafSpec.`.*")
    warnings.filterwarnings("ignore", message=".*Checkpoint directory .* exists and is not empty.*")
    warnings.formatwarning = partial(_format_warning, warnings.formatwarning)


def _format_warning(others: Callable[..., str], message: Any, category: type[Warning], *place: Any) -> str:
    """Format an InputWarning as one line; leave all other warnings to ``others``."""
    if issubclass(category, InputWarning):
        return f"warning: {printable(str(message))}\n"
    return others(message, category, *place)
