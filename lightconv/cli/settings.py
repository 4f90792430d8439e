"""Settings shared by several verbs, and their checks."""

import re
from collections.abc import Iterable
from typing import Any

from omegaconf import DictConfig, ListConfig

from lightconv.errors import InputError

DTYPES = ("float32", "float16", "bfloat16")


def check_choice(config: DictConfig, name: str, choices: Iterable[str]) -> None:
    """Check a setting against its choices.

    Args:
        config: configuration of the verb.
        name: name of the setting.
        choices: values allowed.

    Raises:
        InputError: If the setting has any other value.
    """
    if config[name] not in choices:
        raise InputError(f"{name}={config[name]}: choose one of {', '.join(choices)}")


def check_integer(config: DictConfig, name: str, least: int = 1) -> None:
    """Check an integer setting.

    Args:
        config: configuration of the verb.
        name: name of the setting.
        least: smallest value allowed.

    Raises:
        InputError: If it is no integer, or too small.
    """
    value = config[name]
    # bool is a subclass of int, and true is no number of anything
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise InputError(f"{name}={value}: give a whole number, at least {least}")


def tensor_format(config: DictConfig) -> dict[str, Any]:
    """Return the dtype and memory format of a configuration as arguments of ``Tensor.to``.

    Raises:
        InputError: If the dtype is unknown.
    """
    import torch  # noqa: PLC0415  a mistyped setting is reported before torch is loaded

    check_choice(config, "dtype", DTYPES)
    memory_format = torch.channels_last if config.channels_last else torch.contiguous_format
    return {"dtype": getattr(torch, config.dtype), "memory_format": memory_format}


def as_list(value: Any) -> list[Any]:
    """Return a setting of one value, or of a list of values, as a list."""
    return list(value) if isinstance(value, ListConfig) else [value]


def quote_value(value: str) -> str:
    """Quote a value for Hydra's grammar if it holds more than letters, digits and the characters of plain paths.

    Example:
        >>> quote_value("runs/first"), quote_value("My Project (v1)/runs")
        ('runs/first', '"My Project (v1)/runs"')
    """
    if re.fullmatch(r"[\w./+-]+", value):
        return value
    # a backslash is doubled only before a quote: elsewhere Hydra takes it as it is
    escaped = re.sub(r'(\\*)"', r'\1\1\\"', value)
    ending = re.search(r"\\*$", value)
    assert ending is not None
    return f'"{escaped}{ending[0]}"'
