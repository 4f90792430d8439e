"""Settings that several verbs have, and what is wrong with them."""

from collections.abc import Iterable
from typing import Any

import torch
from omegaconf import DictConfig, ListConfig

from lightconv.errors import InputError

DTYPES = ("float32", "float16", "bfloat16")


def check_choice(config: DictConfig, name: str, known: Iterable[str]) -> None:
    """Raise InputError unless a setting is one of those known."""
    if config[name] not in known:
        raise InputError(f"{name}={config[name]}: choose one of {', '.join(known)}")


def check_whole(config: DictConfig, name: str, least: int = 1) -> None:
    """Raise InputError unless a setting is a whole number that is large enough."""
    value = config[name]
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise InputError(f"{name}={value}: give a whole number, at least {least}")


def formatted(config: DictConfig) -> dict[str, Any]:
    """The dtype and the memory format that a configuration asks for, by the names that ``Tensor.to`` has for them.

    Raises:
        InputError: for an unknown dtype.
    """
    check_choice(config, "dtype", DTYPES)
    memory_format = torch.channels_last if config.channels_last else torch.contiguous_format
    return {"dtype": getattr(torch, config.dtype), "memory_format": memory_format}


def several(value: Any) -> list[Any]:
    """A setting that may be one value or a list of them."""
    return list(value) if isinstance(value, ListConfig) else [value]
