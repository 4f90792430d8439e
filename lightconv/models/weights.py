"""Read weights from checkpoints and state dicts of any program, and match them to a network."""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightconv.errors import InputError
from lightconv.seal import find_damage

State = dict[str, Tensor]


def read_checkpoint(path: str | Path, mmap: bool = False) -> dict[str, Any]:
    """Read a checkpoint or a state dict of torch. It may hold tensors and plain values only.

    Args:
        path: file to read.
        mmap: True to map the file into memory and read tensors on first use.

    Raises:
        InputError: If the file is not a checkpoint, or damaged.
    """
    try:
        damage = find_damage(Path(path))
        content = {} if damage else dict(torch.load(path, weights_only=True, map_location="cpu", mmap=mmap))
    except (OSError, RuntimeError, EOFError, LookupError, TypeError, ValueError, pickle.UnpicklingError) as error:
        raise InputError(f"{path} is not a checkpoint, or it is damaged ({type(error).__name__})") from error
    if damage:
        raise InputError(f"{path} is damaged: {damage}")
    return content


def read_weights(path: str | Path) -> State:
    """Read the tensors of a state dict, a Lightning checkpoint or a .safetensors file.

    Raises:
        InputError: If there is no such file, if it is none of these, or if it is damaged.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise InputError(
            f"weights={path}: there is no such file. Choose a file, default (the library's weights, downloaded) or "
            "none (random weights)."
        )
    content: dict[str, Any] = read_safetensors(path) if path.suffix == ".safetensors" else read_checkpoint(path)
    # "state_dict" is Lightning's key for the weights, "model" that of other programs
    for wrapper in ("state_dict", "model"):
        if isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    return {name: value for name, value in content.items() if isinstance(value, Tensor)}


def read_safetensors(path: Path) -> dict[str, Any]:
    """Read a .safetensors file.

    Raises:
        InputError: If the extra `pretrained` is not installed, or if the file is damaged.
    """
    try:
        from safetensors import SafetensorError  # noqa: PLC0415  comes with the extra `pretrained`
        from safetensors.torch import load_file  # noqa: PLC0415
    except ImportError as error:
        raise InputError(f"{path}: reading it needs safetensors: pip install 'lightconv[pretrained]'") from error
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is damaged: {error}") from error


def select_weights(weights: State, expected: Mapping[str, Tensor], source: str) -> State:
    """Select the weights of a network, under the network's own names.

    Other tensors, such as another classifier's, are left out. A common prefix (``module.``, ``model.backbone.``) is
    removed.

    Args:
        weights: tensors by the names in their file.
        expected: state dict of the network.
        source: origin of the weights, the beginning of an error's message.

    Raises:
        InputError: If a tensor is missing.
    """
    # early versions of torch had no num_batches_tracked
    needed = [name for name in expected if not name.endswith("num_batches_tracked")]
    first = needed[0]
    prefixes = [name.removesuffix(first) for name in weights if name.endswith(first)] or [""]

    def count_matches(prefix: str) -> int:
        return sum(prefix + name in weights for name in needed)

    prefix = max(prefixes, key=count_matches)
    missing = [name for name in needed if prefix + name not in weights]
    if missing:
        some = ", ".join(missing[:3])
        ellipsis = " ..." if len(missing) > 3 else ""
        raise InputError(
            f"{source} lacks {len(missing)} of the network's {len(needed)} tensors: {some}{ellipsis}. Does it belong "
            "to another network?"
        )
    return {name: weights[prefix + name] for name in expected if prefix + name in weights}


def check_shapes(weights: State, expected: Mapping[str, Tensor], source: str) -> None:
    """Check the shapes of weights against a network's state dict.

    Args:
        weights: tensors by name.
        expected: state dict of the network.
        source: origin of the weights, the beginning of an error's message.

    Raises:
        InputError: If a tensor has another shape.
    """
    for name, tensor in weights.items():
        if tensor.shape != expected[name].shape:
            actual = " x ".join(map(str, tensor.shape))
            needed = " x ".join(map(str, expected[name].shape))
            raise InputError(f"{source}: {name} is {actual}, the network's {needed}")
