"""Hydra around a verb: finds the configurations, runs the verb and reports mistakes in the input."""

import errno
import importlib
import logging
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import hydra
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.errors import HydraException, MissingConfigException
from hydra.plugins.search_path_plugin import SearchPathPlugin
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from lightconv.cli import discard_output, outputs, sweep
from lightconv.cli.help import CONFIGURATIONS, all_settings, choices, nearest_settings
from lightconv.cli.resolvers import register_resolvers
from lightconv.cli.resume import split_arguments
from lightconv.cli.settings import quote_value
from lightconv.errors import InputError, InputWarning, NonFiniteLossError
from lightconv.openmp import limit_spinning
from lightconv.text import printable

# causes outside lightconv: its words suffice, and a traceback would hide them
_SYSTEM_ERRORS = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.EIO,
    errno.ENOENT,
    errno.ESTALE,
}


def launch(verb: str, overrides: list[str]) -> None:
    """Compose conf/<verb>.yaml with the overrides and call the verb's function, once per job of a sweep.

    Exit with a message and status 2 if the input is at fault, with status 1 if the training loss is NaN or infinite or
    the system refuses a file, with status 143 after SIGTERM.

    Args:
        verb: name of the verb.
        overrides: arguments after the verb.
    """
    limit_spinning()
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # Hydra raises exceptions unchanged instead of printing them
    overrides = [quote_revision(override) for override in overrides]
    # Hydra's parser accepts no settings before -m if others come after it
    overrides = sorted(overrides, key=lambda argument: argument not in {"-m", "--multirun"})
    sys.argv = [f"lightconv {verb}", *overrides]
    UserConfigs.directory = user_directory(overrides)
    Plugins.instance().register(UserConfigs)
    register_resolvers()
    decorate = hydra.main(version_base="1.3", config_path=str(CONFIGURATIONS), config_name=verb)
    try:
        arguments, settings = split_arguments(overrides) if verb == "train" else (overrides, None)
        sys.argv[1:] = arguments
        if os.environ.get("LIGHTCONV_BACKEND"):
            importlib.import_module("lightconv.operators.backend").check_environment()
        decorate(partial(run_verb, verb=verb, settings=settings))()
        sys.stdout.flush()
    except Exception as error:
        exit_with_message(error)
        raise
    finally:  # after a failed job, too
        with suppress(BrokenPipeError):
            sweep.show_last()
        outputs.remove_empty()


def run_verb(config: DictConfig, verb: str, settings: Sequence[str] | None) -> Any:
    """Call the function of a verb.

    Its module is imported here: a mistyped setting is reported before torch is loaded.

    Args:
        config: configuration of the command.
        verb: name of the verb.
        settings: settings for the configuration of a run to resume; None if there are none.
    """
    function = getattr(importlib.import_module(f"lightconv.cli.{verb}"), verb)
    quiet()
    try:
        return function(config) if settings is None else function(config, settings)
    except Exception as error:
        # Hydra prints a line of its own before the error; in a sweep it names the job that failed
        if HydraConfig.get().mode is not RunMode.MULTIRUN:
            exit_with_message(error)
        raise


def exit_with_message(error: Exception) -> None:
    """Print the message of an error of the input or of the system, and exit; return after any other error.

    Args:
        error: error that a command ended with.
    """
    status = 1
    message: str | None
    if isinstance(error, NonFiniteLossError):
        message = str(error)
    elif isinstance(error, BrokenPipeError):
        message = discard_output()
    elif isinstance(error, OSError) and error.errno in _SYSTEM_ERRORS:
        message = ": ".join(filter(None, [error.filename, error.strerror]))
    elif isinstance(error, HydraException | OmegaConfBaseException | ValueError):
        status, message = 2, input_mistake(error)
    else:
        return
    if message is not None:
        with suppress(OSError):  # standard error may be closed, too
            print(f"error: {printable(message)}", file=sys.stderr)
        sys.exit(status)


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
    if isinstance(error, MissingConfigException) and error.missing_cfg_file is not None:
        group, _, name = error.missing_cfg_file.partition("/")
        return f"{group}={name}: there is no such choice. Choose one of {', '.join(sorted(choices(group)))}"
    # a misspelt key: OmegaConf's error knows the node, and the node its keys
    for cause in causes:
        parent = getattr(cause, "parent_node", None)
        if isinstance(cause, ConfigKeyError | ConfigAttributeError) and isinstance(parent, DictConfig):
            known = sorted(str(key) for key in parent if key != "hydra")
            return describe_unknown(str(cause.full_key), known)
    return str(error)


def describe_unknown(name: str, known: Iterable[str]) -> str:
    """Return the message for a setting that the configuration does not have.

    Args:
        name: name of the setting.
        known: names at the same place of the configuration.
    """
    message = f"there is no setting {name}."
    owners = all_settings().get(name)
    nearest = nearest_settings(name)
    if owners:
        message += f" It belongs to {', '.join(owners)}."
    elif nearest:
        message += f" Did you mean {' or '.join(nearest)}?"
    return f"{message} (known here: {', '.join(known)}; +{name}=VALUE adds it)"


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
