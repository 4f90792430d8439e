"""Layouts of checkpoints that other programs write: where the weights are, and why a file cannot be read."""

import argparse
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightconv.errors import InputError

State = dict[str, Tensor]

# Keys of a network's weights, the preferred first. As in timm, averaged weights precede the last ones: the program that
# wrote both validated the average. "state_dict" is Lightning's and timm's, "model_state_dict" that of PyTorch's
# tutorials, "model" that of torchvision, Fabric and Detectron2.
WRAPPERS = (
    *("state_dict_ema", "model_ema", "ema_state_dict", "state_dict", "model_state_dict", "model_state"),
    *("model", "net", "network"),
)
_SAVE = "torch.save(model.state_dict(), FILE)"
# modules that wrap another one, anywhere in a name: compiled, sharded or recomputed parts of a network
_WRAPPING = re.compile(r"\b(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
# DenseNet's files at download.pytorch.org have the names of torchvision 0.1
_FORMER_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.([12]\.)")


def load_tensors(path: str | Path, mmap: bool) -> Any:
    """Read a file of torch.save without running its code. timm and torchvision keep an argparse.Namespace in it."""
    with torch.serialization.safe_globals([argparse.Namespace]):
        return torch.load(path, weights_only=True, map_location="cpu", mmap=mmap)


def describe_unreadable(path: str | Path, error: Exception) -> str:
    """Return why `load_tensors` failed, as the end of a message that begins with the file's name."""
    names = list_archive(path)
    if any(name.endswith("/constants.pkl") for name in names):
        return f"is a TorchScript archive, not a state dict. Where its network can be built, write one: {_SAVE}"
    if any(name.endswith(("/archive_format", "serialized_exported_program.json")) for name in names):
        return f"is a program of torch.export, not a state dict. Where its network can be built, write one: {_SAVE}"
    if isinstance(error, pickle.UnpicklingError):
        classes = list_classes(path) or re.findall(r"GLOBAL (\S+)", str(error))
        if classes:
            return (
                f"holds Python objects ({', '.join(classes[:3])}), such as a whole pickled network, and reading them "
                f"could run foreign code. Where the file was written, save the tensors alone: {_SAVE}"
            )
    return f"is not a checkpoint, or it is damaged ({type(error).__name__})"


def list_archive(path: str | Path) -> list[str]:
    """Return the names of a zip archive's entries; none if the file is no archive."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.namelist()
    except (OSError, zipfile.BadZipFile):
        return []


def list_classes(path: str | Path) -> list[str]:
    """Return the classes and functions that a file of torch.save names and `load_tensors` refuses."""
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(str(path)))
    except (OSError, RuntimeError, ValueError):  # a file of torch before 1.6, which is no archive
        return []


def find_state(content: Mapping[str, Any], source: str) -> State:
    """Find a network's weights in a checkpoint, by the names in `WRAPPERS` or as its only dictionary of tensors.

    Args:
        content: checkpoint or state dict.
        source: origin of the checkpoint, the beginning of an error's message.

    Raises:
        InputError: If there are no weights, or several dictionaries of tensors under unknown names.
    """
    state = unwrap(content)
    if state:
        return {clean_name(name): tensor for name, tensor in state.items()}
    keys = ", ".join(map(str, content)) or "nothing"
    raise InputError(
        f"{source} holds {keys}, and no weights under a known name ({', '.join(WRAPPERS)}). Save the network's weights "
        f"alone: {_SAVE}"
    )


def unwrap(content: Mapping[str, Any]) -> State:
    """Return the weights of a checkpoint or state dict, empty if they are not found."""
    inner = {key: value for key, value in content.items() if isinstance(value, Mapping)}
    for key in WRAPPERS:
        if key in inner and (state := unwrap(inner[key])):
            return state
    tensors = select_tensors(content)
    if tensors:
        return tensors
    # an optimizer's state has its tensors one level deeper
    others = [state for state in map(select_tensors, inner.values()) if state]
    return others[0] if len(others) == 1 else {}


def select_tensors(content: Mapping[str, Any]) -> State:
    """Return the tensors among a dictionary's values."""
    return {str(name): value for name, value in content.items() if isinstance(value, Tensor)}


def clean_name(name: str) -> str:
    """Remove the names of wrapping modules from a tensor's name, and write former names as today's."""
    return _FORMER_DENSENET.sub(r"\1\2", _WRAPPING.sub("", name))
