"""Weights of any program: its layout is read or named, and another network's weights are refused."""

import argparse
import re
from collections import OrderedDict
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

from lightconv.errors import InputError
from lightconv.models import Pretrained
from lightconv.models.weights import read_weights, select_weights


def build_network(name):
    """Return torchvision's network with its classifier and other random weights at every call."""
    quick = {"init_weights": False} if name in {"googlenet", "inception_v3"} else {}
    return torchvision.models.get_model(name, weights=None, **quick)


def features(network):
    """Return the state dict of the convolutional part."""
    return {n: t for n, t in network.state_dict().items() if not n.startswith(("fc.", "classifier.", "aux", "Aux"))}


DEEPER = [
    *[("resnet18", "resnet34"), ("resnet50", "resnet101"), ("resnet101", "resnet152"), ("densenet121", "densenet169")],
    *[("convnext_tiny", "convnext_small"), ("efficientnet_b0", "efficientnet_b1")],
]


@pytest.mark.parametrize(("name", "deeper"), DEEPER)
def test_weights_of_a_deeper_network(name, deeper):
    expected = features(build_network(name))
    with pytest.raises(InputError, match=r"^FILE (belongs to another network|lacks \d+ of)"):
        select_weights(build_network(deeper).state_dict(), expected, "FILE")


def test_deeper_network_is_named(tmp_path):
    state = build_network("resnet34").state_dict()
    torch.save({f"module.{name}": tensor for name, tensor in state.items()}, tmp_path / "weights.pt")
    with pytest.raises(InputError, match=r"weights.pt belongs to another network.* has 80 more: layer1.2.conv1.weight"):
        Pretrained("torchvision/resnet18", weights=str(tmp_path / "weights.pt"), image_size=64)


@pytest.mark.parametrize(("name", "other"), [("mobilenetv1_100", "mobilenetv1_100h"), ("resnet32ts", "resnet33ts")])
def test_further_convolutions_after_the_network(name, other):
    import timm

    expected = timm.create_model(name, num_classes=0, global_pool="").state_dict()
    with pytest.raises(InputError, match="FILE belongs to another network"):
        select_weights(timm.create_model(other).state_dict(), expected, "FILE")


NETWORKS = ["resnet18", "googlenet", "inception_v3", "vgg11", "densenet121", "mobilenet_v3_small", "squeezenet1_1"]


@pytest.mark.parametrize("name", NETWORKS)
def test_whole_network(name):
    network = build_network(name)
    expected = features(network)
    assert select_weights(network.state_dict(), expected, "FILE").keys() == expected.keys()


@pytest.mark.parametrize("name", ["vgg11", "resnet18", "convnext_atto", "regnetx_002", "fastvit_t8", "repvit_m0_9"])
def test_whole_network_of_timm(name):
    import timm

    expected = timm.create_model(name, num_classes=0, global_pool="").state_dict()
    selected = select_weights(timm.create_model(name, num_classes=7).state_dict(), expected, "FILE")
    assert selected.keys() == expected.keys()


EXTRAS = {
    "counters": {"layer1.0.total_ops": torch.zeros(1, dtype=torch.float64), "layer1.5.seen": torch.tensor(3)},
    "range": {"mean": torch.zeros(1, 3, 1), "std": torch.ones(3)},
    "projector": {"projector.0.weight": torch.zeros(8, 512), "arcface": torch.zeros(10, 512)},
    "convolutional head": {"head.0.weight": torch.zeros(8, 512, 1, 1), "aux_head.weight": torch.zeros(8, 512, 1, 1)},
    "average": {f"shadow.{n}": t + 1 for n, t in features(build_network("resnet18")).items()},
}


@pytest.mark.parametrize("extra", EXTRAS)
def test_harmless_extras(extra):
    expected = features(build_network("resnet18"))
    state = build_network("resnet18").state_dict()
    for weights in ({**state, **EXTRAS[extra]}, {**EXTRAS[extra], **state}):
        selected = select_weights(weights, expected, "FILE")
        assert all(torch.equal(tensor, state[name]) for name, tensor in selected.items())


def add_prefix(prefix):
    return lambda state: {prefix + name: tensor for name, tensor in state.items()}


def average(state):
    return {"n_averaged": torch.tensor(3), **add_prefix("module.")(state)}


def other(state):
    return {name: tensor + 1 for name, tensor in state.items()}


OPTIMIZER = {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 0.1}]}
LAYOUTS = {
    "tutorial": lambda s: {"model_state_dict": s, "optimizer_state_dict": OPTIMIZER, "epoch": 1, "loss": 0.5},
    "timm": lambda s: {
        "epoch": 3,
        "arch": "x",
        "state_dict": s,
        "optimizer": OPTIMIZER,
        "args": argparse.Namespace(lr=1),
    },
    "timm, averaged": lambda s: {"state_dict": other(s), "state_dict_ema": s, "args": argparse.Namespace()},
    "torchvision": lambda s: {"model": s, "optimizer": OPTIMIZER, "args": argparse.Namespace(device="cuda")},
    "torchvision, averaged": lambda s: {"model": other(s), "model_ema": average(s), "epoch": 3},
    "net": lambda s: {"net": add_prefix("module.")(s), "acc": 91.2, "epoch": 3},
    "Lightning, compiled": lambda s: {"state_dict": add_prefix("model._orig_mod.backbone.")(s), "callbacks": {}},
    "compiled": add_prefix("_orig_mod."),
    "compiled parts": lambda s: {re.sub(r"^(layer\d\.)", r"\1_orig_mod.", name): tensor for name, tensor in s.items()},
    "parallel and compiled": add_prefix("_orig_mod.module."),
    "within": lambda s: {"model": {"state_dict": OrderedDict(s)}, "config": {"model": "resnet18"}},
    "only dictionary of tensors": lambda s: {"weights_of_mine": s, "optimizer": OPTIMIZER},
    "empty average": lambda s: {"model_ema": {}, "model": s},
}


@pytest.fixture(scope="module")
def state():
    return features(build_network("resnet18"))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout, state, tmp_path):
    torch.save(LAYOUTS[layout](state), tmp_path / "weights.pt")
    selected = select_weights(read_weights(tmp_path / "weights.pt"), state, "FILE")
    assert selected.keys() == state.keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in selected.items())


def test_densenet_of_the_first_torchvision():
    expected = features(build_network("densenet121"))
    former = {re.sub(r"(denselayer\d+\.(?:norm|conv))([12])", r"\1.\2", n): t for n, t in expected.items()}
    from lightconv.models.layouts import find_state

    assert former.keys() != expected.keys()
    assert find_state(former, "FILE").keys() == expected.keys()


class Marker:
    """Object that leaves a file behind if it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def build_unreadable(kind, path):
    """Write a file that is no state dict."""
    network = nn.Sequential(nn.Conv2d(3, 4, 3)).eval()
    image = torch.zeros(1, 3, 8, 8)
    if kind == "script":
        torch.jit.trace(network, image).save(path)
    elif kind == "exported":
        torch.export.save(torch.export.export(network, (image,)), path)
    else:
        contents = {
            "module": network,
            "numpy": {"state_dict": network.state_dict(), "best": np.float64(0.9)},
            "object": {"model": network.state_dict(), "config": SimpleNamespace(lr=0.1)},
            "code": {"model": network.state_dict(), "hook": Marker(path.parent / "executed")},
            "two": {"generator": network.state_dict(), "discriminator": network.state_dict()},
            "none": {"epoch": 3, "optimizer": OPTIMIZER},
            "list": [1, 2],
        }
        torch.save(contents[kind.removesuffix(", former")], path, _use_new_zipfile_serialization="former" not in kind)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("script", "is a TorchScript archive, not a state dict"),
        ("exported", r"is a program of torch.export, not a state dict"),
        ("module", r"holds Python objects \(.*torch.nn.modules.*\), such as a whole pickled network"),
        ("module, former", r"holds Python objects \(torch.nn.modules.container.Sequential\), such as"),
        ("numpy", r"holds Python objects \(.*numpy.*save the tensors alone: torch.save\(model.state_dict\(\), FILE\)"),
        ("object", r"holds Python objects \(types.SimpleNamespace\)"),
        ("code", "holds Python objects"),
        ("two", "holds generator, discriminator, and no weights under a known name"),
        ("none", "holds epoch, optimizer, and no weights under a known name"),
        ("list", "is not a checkpoint, or it is damaged"),
    ],
)
def test_files_without_a_state_dict(kind, message, tmp_path):
    path = tmp_path / "weights.pt"
    build_unreadable(kind, path)
    with pytest.raises(InputError, match=rf"weights.pt {message}"):
        read_weights(path)
    assert not (tmp_path / "executed").exists()
