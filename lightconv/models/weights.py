"""Read weights from checkpoints and state dicts of any program, and match them to a network."""

import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from lightconv.errors import InputError
from lightconv.models.layouts import State, describe_unreadable, find_state, load_tensors
from lightconv.seal import find_damage

# Parts that a file may have besides the convolutional part, by the names of torchvision's and timm's classifiers, and
# averages of the weights under buffers' names.
_HEADS = re.compile(
    r"(heads?|fc|classif|classifier|last_linear|linear|logits|pre_logits|aux|attn_pool|weights_dist)(_?\w*)|AuxLogits|"
    r"(model_)?ema(_\w+)?"
)
_COUNTS_OF_THOP = ("total_ops", "total_params")


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
        content = {} if damage else dict(load_tensors(path, mmap))
    except (OSError, RuntimeError, EOFError, LookupError, TypeError, ValueError, pickle.UnpicklingError) as error:
        raise InputError(f"{path} {describe_unreadable(path, error)}") from error
    if damage:
        raise InputError(f"{path} is damaged: {damage}")
    return content


def read_weights(path: str | Path) -> State:
    """Read the tensors of a state dict, a checkpoint of any program in `layouts`, or a .safetensors file.

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
    return find_state(content, f"weights={path}")


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

    Heads and whole copies of the network, such as averages, are left out. A common prefix (``module.``,
    ``model.backbone.``) is removed.

    Args:
        weights: tensors by the names in their file.
        expected: state dict of the network.
        source: origin of the weights, the beginning of an error's message.

    Raises:
        InputError: If a tensor is missing, or if the file is a larger network's.
    """
    # early versions of torch had no num_batches_tracked
    needed = [name for name in expected if not name.endswith("num_batches_tracked")]
    first = needed[0]
    prefixes = [name.removesuffix(first) for name in weights if name.endswith(first)] or [""]

    def count_matches(prefix: str) -> int:
        return sum(prefix + name in weights for name in needed)

    # of several copies, averages have the longer names
    prefix = max(sorted(prefixes, key=len), key=count_matches)
    missing = [name for name in needed if prefix + name not in weights]
    if missing:
        raise InputError(
            f"{source} lacks {len(missing)} of the network's {len(needed)} tensors: {list_some(missing)}. Does it "
            "belong to another network?"
        )
    copies = tuple(other for other in prefixes if other != prefix and count_matches(other) == len(needed))
    own = {name: tensor for name, tensor in weights.items() if name.startswith(prefix)}
    # with the prefix "" all names are the network's own, so copies under longer prefixes are told by their completeness
    own = {name.removeprefix(prefix): tensor for name, tensor in own.items() if not name.startswith(copies)}
    check_names(own, expected, source)
    return {name: own[name] for name in expected if name in own}


def check_names(weights: State, expected: Mapping[str, Tensor], source: str) -> None:
    """Check that weights are not those of a larger network, such as ResNet-34's for a ResNet-18.

    Heads may differ, and so may linear layers and vectors that belong to no part of the network: embeddings, the mean
    of the images.

    Raises:
        InputError: If the network lacks a tensor that changes its features.
    """
    parts = {name.partition(".")[0] for name in expected}
    foreign = []
    for name, tensor in weights.items():
        part = name.partition(".")[0]
        # integers are counters and tables of indices
        is_weight = tensor.is_floating_point() and not name.endswith(_COUNTS_OF_THOP)
        if name not in expected and is_weight and not _HEADS.fullmatch(part) and (part in parts or tensor.ndim == 4):
            foreign.append(name)
    if foreign:
        raise InputError(
            f"{source} belongs to another network, probably a deeper one. Besides all tensors of this network it has "
            f"{len(foreign)} more: {list_some(foreign)}."
        )


def list_some(names: list[str]) -> str:
    """Return the first three names, and an ellipsis if there are more."""
    ellipsis = " ..." if len(names) > 3 else ""
    return ", ".join(names[:3]) + ellipsis


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
