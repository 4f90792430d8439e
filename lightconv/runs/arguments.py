"""Types of settings, checked against the annotations of the class they configure before it is built.

Lightning and torch keep a wrong value until the first comparison with it: trainer.max_epochs=abc would fail in a run.
"""

import inspect
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from hydra.errors import InstantiationException
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf

from lightconv.errors import InputError

# packages with annotations to rely on; a user's own may say int and take anything
_ANNOTATED = ("lightconv.", "lightning.", "torch.optim.")
# bounds that Lightning and torch do not check, or not before the run
_LEAST = {
    "accumulate_grad_batches": 1,
    "check_val_every_n_epoch": 1,
    "gradient_clip_val": 0,
    "log_every_n_steps": 0,
    "training_images": 1,
    "min_epochs": 0,
    "min_steps": 0,
    "seed": 0,
    "lr": 0,
    "max_lr": 0,
    "base_lr": 0,
    "min_lr": 0,
    "eta_min": 0,
    "factor": 0,
    "patience": 0,
    "cooldown": 0,
    "step_size": 1,
    "T_max": 1,
    "T_0": 1,
    "gamma": 0,
}
_POSITIVE = {"val_check_interval"}
_BELOW_ONE = {"momentum"}
_WORDS = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "a word",
    NoneType: "null",
    list: "a list",
}


def check_arguments(config: DictConfig) -> None:
    """Check the values of a configuration with a ``_target_``, and of those within it.

    Raises:
        InputError: If a value is of a type that the target does not take, or no finite number.
    """
    # OmegaConf has no public way to the path of a node
    key = config._get_full_key(None)
    _check_node(OmegaConf.to_container(config, resolve=True), key)


def _check_node(node: Any, key: str) -> None:
    if isinstance(node, list):
        for index, entry in enumerate(node):
            _check_node(entry, f"{key}[{index}]")
    if not isinstance(node, dict):
        return
    parameters = _parameters(node["_target_"]) if "_target_" in node else {}
    for name, value in node.items():
        if name in parameters:
            _check_value(value, parameters[name], f"{key}.{name}")
        _check_node(value, f"{key}.{name}")


def _check_value(value: Any, parameter: inspect.Parameter, key: str) -> None:
    """Check one value of a target's parameter."""
    _check_finite(value, key)
    choices = _plain_choices(parameter.annotation)
    # lists and nested configurations are left to the target; a default is allowed whatever its annotation says
    if choices is None or isinstance(value, list | dict) or value == parameter.default:
        return
    if not any(_fits(value, choice) for choice in choices):
        raise InputError(f"{key}={as_typed(value)}: {_describe(choices)}")
    if isinstance(value, int | float) and not isinstance(value, bool):
        _check_range(value, parameter.name, key)


def _check_range(value: float, name: str, key: str) -> None:
    if name in _LEAST and value < _LEAST[name]:
        raise InputError(f"{key}={value}: set it to at least {_LEAST[name]}")
    if name in _POSITIVE and value <= 0:
        raise InputError(f"{key}={value}: set it above 0")
    if name in _BELOW_ONE and not 0 <= value < 1:
        raise InputError(f"{key}={value}: set it from 0 to less than 1")


def _check_finite(value: Any, key: str) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise InputError(f"{key}={value}: set a finite number")
    if isinstance(value, list):
        for index, entry in enumerate(value):
            _check_finite(entry, f"{key}[{index}]")


def _parameters(target: str) -> dict[str, inspect.Parameter]:
    """Return the annotated parameters of a target by name; none if it does not exist or is of another package."""
    if not target.startswith(_ANNOTATED):
        return {}
    try:
        function = get_object(target)
    except (InstantiationException, ImportError, ValueError, AttributeError):
        return {}  # instantiate reports it
    functions = [function]
    if isinstance(function, type):
        # **options of a subclass are arguments of its base
        functions = [base.__dict__["__init__"] for base in function.__mro__ if "__init__" in base.__dict__]
    parameters: dict[str, inspect.Parameter] = {}
    for candidate in functions:
        own = _own_parameters(candidate)
        parameters = {**own, **parameters}
        if not any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in own.values()):
            break
    return parameters


def _own_parameters(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    try:
        parameters = dict(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        return {}  # built into Python
    names = getattr(inspect.unwrap(function), "__globals__", {})
    for name, parameter in parameters.items():
        if isinstance(parameter.annotation, str):
            parameters[name] = parameter.replace(annotation=_evaluate(parameter.annotation, names))
    return parameters


def _evaluate(annotation: str, names: dict[str, Any]) -> Any:
    """Return the type that an annotation names; Any if it is imported for type checkers alone."""
    try:
        return eval(annotation, dict(names))
    except (NameError, AttributeError, TypeError):
        return Any


def _plain_choices(hint: Any) -> list[Any] | None:
    """Return the plain types and literal values that a hint allows; None if it may allow anything."""
    origin = get_origin(hint)
    if hint is None or hint in _WORDS:
        return [NoneType if hint is None else hint]
    if origin is Literal:
        return list(get_args(hint))
    if origin in {Union, UnionType}:
        return _choices_of_union(get_args(hint))
    if hint is Path:
        return [str]
    if origin is not None:
        # a mapping or a function is no plain value; a word is a Sequence of letters, and never meant so
        return [list] if isinstance(origin, type) and issubclass(origin, Sequence) else []
    if hint is inspect.Parameter.empty or not isinstance(hint, type) or issubclass(float, hint):
        return None
    return []


def _choices_of_union(hints: Iterable[Any]) -> list[Any] | None:
    choices: list[Any] = []
    for hint in hints:
        own = _plain_choices(hint)
        if own is None:
            return None
        choices += own
    return choices


def _fits(value: Any, choice: Any) -> bool:
    """Return True if a value is of a plain type, or equal to a literal."""
    if choice is float:
        choice = int | float
    # bool is a subclass of int, and true is no number of anything
    if isinstance(value, bool) and choice is not bool:
        return value is choice
    if isinstance(choice, type | UnionType):
        return isinstance(value, choice)
    return value == choice


def _describe(choices: list[Any]) -> str:
    """Return a sentence of the choices."""
    if float in choices:
        choices = [choice for choice in choices if choice is not int]
    words = list(dict.fromkeys(_WORDS.get(choice, str(choice)) for choice in choices))
    if not words or words == ["null"]:
        words = ["a configuration with _target_", *words]
    if len(words) == 1:
        return f"set {words[0]}"
    return f"set {', '.join(words[:-1])} or {words[-1]}"


def as_typed(value: Any) -> str:
    """Return a value as it is written in a configuration."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)
