"""Weights out of files, whatever wrote them."""

import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightconv.errors import InputError

State = dict[str, Tensor]


def read_checkpoint(path: str | Path, mmap: bool = False) -> dict[str, Any]:
    """Read a checkpoint or a state dict of torch's, tensors and plain values only; with ``mmap``, as they are needed.

    Raises:
        InputError: if it is not one, or damaged.
    """
    try:
        return dict(torch.load(path, weights_only=True, map_location="cpu", mmap=mmap))
    except (OSError, RuntimeError, EOFError, LookupError, TypeError, ValueError, pickle.UnpicklingError) as error:
        raise InputError(f"{path} is no checkpoint, or damaged ({type(error).__name__})") from error


def read_weights(path: str | Path) -> State:
    """Read the tensors of a state dict, a Lightning checkpoint or a .safetensors file.

    Raises:
        InputError: if it is none of these, or damaged.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise InputError(f"weights={path}: there is no such file. default: the library's, downloaded; none: random")
    content: dict[str, Any] = _read_safetensors(path) if path.suffix == ".safetensors" else read_checkpoint(path)
    for wrapper in ("state_dict", "model"):  # Lightning's name for it, and other programs'
        content = content[wrapper] if isinstance(content.get(wrapper), dict) else content
    return {name: value for name, value in content.items() if isinstance(value, Tensor)}


def _read_safetensors(path: Path) -> dict[str, Any]:
    try:
        from safetensors import SafetensorError  # noqa: PLC0415  comes with the extra `pretrained`
        from safetensors.torch import load_file  # noqa: PLC0415
    except ImportError as error:
        raise InputError(f"{path}: to read it, pip install 'lightconv[pretrained]'") from error
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is damaged: {error}") from error


def matching(weights: State, expected: State, source: str) -> State:
    """The part of ``weights`` that belongs to a network, under the names that the network has for it.

    Other tensors, such as another classifier's, are left out; what precedes all names (``module.``,
    ``model.backbone.``) is taken off.

    Raises:
        InputError: if a tensor is missing; the message begins with ``source``.
    """
    needed = [name for name in expected if not name.endswith("num_batches_tracked")]  # unknown to early torch
    prefixes = [name.removesuffix(needed[0]) for name in weights if name.endswith(needed[0])] or [""]
    prefix = max(prefixes, key=lambda prefix: sum(prefix + name in weights for name in needed))
    if missing := [name for name in needed if prefix + name not in weights]:
        raise InputError(
            f"{source} lacks {len(missing)} of the network's {len(needed)} tensors: {', '.join(missing[:3])}"
            f"{' ...' if len(missing) > 3 else ''}. Does it belong to another network?"
        )
    return {name: weights[prefix + name] for name in expected if prefix + name in weights}


def check_shapes(weights: State, expected: State, source: str) -> None:
    """Raise InputError, with a message that begins with ``source``, for a tensor of another shape than expected."""
    for name, tensor in weights.items():
        if tensor.shape != expected[name].shape:
            given, needed = (" x ".join(map(str, t.shape)) for t in (tensor, expected[name]))
            raise InputError(f"{source}: {name} is {given}, the network's {needed}")
