"""Targets that a stored run may build: a run of a stranger is read, not obeyed.

Each ``_target_`` of a config.yaml names something to call. A stored run may call the kinds of parts that conf/ is
made of: networks, tasks, data sets, augmentation, optimizers, schedulers, callbacks, loggers, the Trainer. Anything
else must be named by ``allow=`` where the run is opened. Loaders of code never run, named or not: Python's own library,
torch.load, torch.hub, numpy.load and their like. A target is looked up before it is judged, so that another module
reached through an allowed one, as torch.optim.sys, is judged by its own name.
"""

import functools
import inspect
import re
import sys
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

import lightning as L
from hydra.errors import InstantiationException
from hydra.utils import get_object
from lightning.pytorch.loggers import Logger
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from lightconv.data import Augmentation, Mixing
from lightconv.errors import InputError

# classes by the package that they must come from
_KINDS: dict[str, tuple[type, ...]] = {
    "lightconv": (nn.Module, L.LightningDataModule, L.Callback, Logger, Augmentation, Mixing),
    "lightning.pytorch.callbacks": (L.Callback,),
    "lightning.pytorch.loggers": (Logger,),
    "lightning.pytorch.trainer": (L.Trainer,),
    "torch.optim": (Optimizer, LRScheduler),
    "torch.nn": (nn.Module,),
    "torchvision.models": (nn.Module,),
    "torchvision.transforms": (object,),
    "timm": (nn.Module,),
    "kornia.augmentation": (nn.Module,),
}
_FUNCTIONS = {
    "lightconv.runs.metrics.tensorboard_if_installed",
    "timm.models._factory.create_model",
    "torchvision.models._api.get_model",
}
_TRAINER = ("lightning.Trainer", "lightning.pytorch.Trainer")
# arguments of timm's networks that name a file or an address of weights
_LOADER_ARGUMENTS = {"checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"}
# nothing of these is ever called: they load code, or call what they are told to
_NEVER = (
    *sys.stdlib_module_names,
    "IPython",
    "cloudpickle",
    "dill",
    "fsspec",
    "huggingface_hub",
    "hydra",
    "joblib",
    "numpy.f2py",
    "numpy.testing",
    "omegaconf",
    "pip",
    "setuptools",
    "timm.models._hub",
    "torch._C",
    "torch._dynamo",
    "torch._inductor",
    "torch._ops",
    "torch.export",
    "torch.hub",
    "torch.jit",
    "torch.package",
    "torch.serialization",
    "torch.utils",
    "yaml",
)
# in packages that everybody has, a function of such a name loads whatever it is given
_LIBRARIES = ("torch", "numpy", "scipy", "pandas", "sklearn", "torchvision", "timm", "lightning", "kornia", "lightconv")
_LOADER_NAME = re.compile(r"(.*_)?(load|loads|read|open|run|exec|eval|download)(_.*|txt)?|load.*|from.*file")


def check_targets(node: Any, allow: Sequence[str] = (), key: str = "") -> None:
    """Check every target of a stored configuration, at any depth, before one of them is built.

    Args:
        node: configuration as nested dictionaries and lists.
        allow: further targets, such as ``mynet.Net`` or ``mynet.*``.
        key: path of the node.

    Raises:
        InputError: If a target is not allowed, or if a value is a reference such as ``${oc.env:HOME}``.
    """
    if isinstance(node, list):
        for index, entry in enumerate(node):
            check_targets(entry, allow, f"{key}[{index}]")
    elif isinstance(node, dict):
        if "_target_" in node:
            check_target(node, allow, key)
        for name, entry in node.items():
            check_targets(entry, allow, f"{key}.{name}".lstrip("."))
    elif isinstance(node, str) and is_reference(node):
        raise InputError(f"{key}={node}: a stored run holds values, and no references to be looked up")


def foreign_targets(node: Any) -> list[str]:
    """Return the targets of a configuration that a stored run builds only if they are named by allow=."""
    if isinstance(node, list):
        return [target for entry in node for target in foreign_targets(entry)]
    if not isinstance(node, dict):
        return []
    targets = foreign_targets(list(node.values()))
    if "_target_" in node:
        try:
            check_target(node, (), "")
        except InputError:
            targets.append(node["_target_"])
    return targets


def is_reference(text: str) -> bool:
    r"""Return True if OmegaConf would look something up: at a ``${`` that no backslash makes a text.

    Example:
        >>> is_reference("${oc.env:HOME}"), is_reference(r"\${oc.env:HOME}"), is_reference("$5")
        (True, False, False)
    """
    return any(len(match[1]) % 2 == 0 for match in re.finditer(r"(\\*)\$\{", text))


def check_target(node: dict[str, Any], allow: Sequence[str], key: str) -> None:
    """Check one target.

    Raises:
        InputError: If a stored run may not build it.
    """
    target = node["_target_"]
    place = f"{key}._target_={target}"
    if not isinstance(target, str) or "__" in target:
        raise InputError(f"{place}: a stored run names classes and functions of packages only")
    named = is_named(target, allow)
    if not named and not is_within(target, (*_KINDS, *_TRAINER)):
        raise refusal(place, target)
    try:
        found = get_object(target)
    except (InstantiationException, ImportError, AttributeError, ValueError) as error:
        raise InputError(f"{place} is not installed, or never built from a configuration: {error}") from error
    while isinstance(found, functools.partial):
        found = found.func
    name = real_name(found)
    if is_loader(found, name):
        raise InputError(f"{place}: {name} can load and run code, and is never built from a stored run")
    if is_known_kind(found, name):
        check_arguments_of_timm(node, name, key)
    elif not named:
        raise refusal(place, target)
    elif name.split(".")[0] != target.split(".")[0] and not is_named(name, allow):
        # the user's package imports it from another one
        raise refusal(place, name)


def refusal(place: str, name: str) -> InputError:
    """Return the error for a target that must be named by allow=."""
    return InputError(
        f"{place}: a stored run builds networks, data, optimizers and callbacks of lightconv, torch, torchvision, timm "
        f"and Lightning alone, since another target may run anything. If you trust it, add allow={name}"
    )


def is_named(target: str, allow: Sequence[str]) -> bool:
    """Return True if the user's own words allow a target.

    Raises:
        InputError: If a pattern names no package.
    """
    for pattern in allow:
        if not re.match(r"\w+(\.|$)", pattern):
            raise InputError(f"allow={pattern}: begin with the name of a package, such as mynet.*")
    return any(fnmatchcase(target, pattern) for pattern in allow)


def is_within(name: str, packages: Sequence[str]) -> bool:
    """Return True if a dotted name is one of these packages, or lies within one."""
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def real_name(found: Any) -> str:
    """Return the module and name of an object, wherever it was found."""
    owner = found if getattr(found, "__module__", None) else type(found)
    name = getattr(owner, "__qualname__", type(found).__qualname__)
    return f"{owner.__module__}.{name}"


def is_loader(found: Any, name: str) -> bool:
    """Return True for objects that load code or call what they are told to."""
    if inspect.ismodule(found) or is_within(name, _NEVER):
        return True
    is_function = not isinstance(found, type) and is_within(name, _LIBRARIES)
    return is_function and _LOADER_NAME.fullmatch(name.rpartition(".")[2]) is not None


def is_known_kind(found: Any, name: str) -> bool:
    """Return True for the kinds of objects that conf/ is made of."""
    if isinstance(found, type):
        return any(is_within(name, [package]) and issubclass(found, kinds) for package, kinds in _KINDS.items())
    if name in _FUNCTIONS:
        return True
    module, _, function = name.rpartition(".")
    # functions of networks, such as torchvision.models.resnet18
    if is_within(module, ["torchvision.models"]):
        from torchvision.models import list_models  # noqa: PLC0415  loaded by the target already

        return function in list_models()
    if is_within(module, ["timm.models"]):
        from timm import is_model  # noqa: PLC0415  an extra, loaded by the target already

        return is_model(function)
    return False


def check_arguments_of_timm(node: dict[str, Any], name: str, key: str) -> None:
    """Check that a network of timm is not told where to load weights from: early versions unpickle them.

    Raises:
        InputError: If it is.
    """
    if not is_within(name, ["timm"]):
        return
    model = str(node.get("model_name", ""))
    named = sorted(_LOADER_ARGUMENTS & node.keys())
    if named or "_args_" in node or not re.fullmatch(r"[\w.]*", model):
        what = named[0] if named else "model_name"
        raise InputError(f"{key}.{what}: a stored run loads no weights through timm. Set model.weights of Pretrained")
