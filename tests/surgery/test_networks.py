"""Known networks compute the same bits with their layers swapped, and restored."""

import contextlib
import copy
import itertools
from functools import partial

import pytest
import timm
import torch
import torchvision
from helpers.narrow import narrow
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.models.convnext import CNBlockConfig
from torchvision.models.regnet import BlockParams

import lightconv as lc
from lightconv.errors import InputError

# the smallest network of each family
TORCHVISION = """
alexnet convnext_tiny densenet121 efficientnet_b0 googlenet inception_v3 mnasnet0_5 mobilenet_v2 mobilenet_v3_small
regnet_x_400mf resnet18 resnext50_32x4d shufflenet_v2_x0_5 squeezenet1_1 vgg11
"""
TIMM = """
convnext_atto convnextv2_atto cs3darknet_focus_s cspnext_tiny densenet121 dla46_c dpn48b edgenext_xx_small
efficientnet_lite0 fasternet_t0 fastvit_t8 gernet_s ghostnet_050 hardcorenas_a hgnetv2_b0 hrnet_w18_small
inception_next_atto lcnet_035 legacy_seresnet18 mambaout_femto mixnet_s mobilenetv2_035 mobilenetv3_small_050
mobilenetv4_conv_small regnety_002 repghostnet_050 repvgg_a0 repvit_m0_9 resnest14d resnet10t resnetv2_18 rexnet_100
selecsls42b skresnet18 starnet_s050 tinynet_e tresnet_m ese_vovnet19b_slim
"""
# torchvision's other convolutional networks, without the largest ones, which take minutes
OTHERS = [
    name
    for name in torchvision.models.list_models(torchvision.models)
    if name not in TORCHVISION.split()
    and not name.startswith(("vit_", "swin_"))
    and torchvision.models.get_model_weights(name).DEFAULT.meta["num_params"] < 60e6
]
# networks with layers that override forward, and the classes of these layers
PARTLY = {
    "tf_efficientnet_lite0": {"Conv2dSame"},
    "nf_regnet_b0": {"ScaledStdConv2d"},
    "resnetv2_50x1_bit": {"StdConv2d"},
}
# built with an eighth of their channels, because Triton's interpreter runs every block of a kernel in Python
EIGHTHS = """
torchvision/alexnet torchvision/densenet121 torchvision/efficientnet_b0 torchvision/googlenet torchvision/inception_v3
torchvision/mnasnet0_5 torchvision/mobilenet_v2 torchvision/mobilenet_v3_small torchvision/resnet18
torchvision/resnext50_32x4d torchvision/shufflenet_v2_x0_5 torchvision/squeezenet1_1 torchvision/vgg11
timm/cspnext_tiny timm/dla46_c timm/efficientnet_lite0 timm/ese_vovnet19b_slim timm/gernet_s timm/hardcorenas_a
timm/hgnetv2_b0 timm/hrnet_w18_small timm/lcnet_100 timm/mobilenetv2_035 timm/mobilenetv4_conv_small
timm/repvgg_a0 timm/resnet10t timm/resnetv2_18 timm/selecsls42b timm/starnet_s050 timm/tinynet_e
"""
# also for the interpreter: networks that compute with their widths outside their layers, made small by their arguments
CHANNELS, BLOCKS = (8, 16, 24, 32), (1, 1, 2, 1)
OWN = {
    "torchvision/convnext": partial(
        torchvision.models.ConvNeXt, [CNBlockConfig(8, 16, 1), CNBlockConfig(16, 24, 1), CNBlockConfig(24, None, 2)]
    ),
    "torchvision/regnet": partial(
        torchvision.models.RegNet, BlockParams.from_init_params(depth=8, w_0=8, w_a=8, w_m=2, group_width=4)
    ),
    "timm/convnext": partial(timm.create_model, "convnext_atto", dims=CHANNELS, depths=BLOCKS),
    "timm/convnextv2": partial(timm.create_model, "convnextv2_atto", dims=CHANNELS, depths=BLOCKS),
    "timm/dpn": partial(timm.create_model, "dpn48b", k_r=16, groups=4, k_sec=BLOCKS, inc_sec=(4, 4, 8, 8)),
    "timm/edgenext": partial(timm.create_model, "edgenext_xx_small", dims=CHANNELS),
    "timm/fasternet": partial(timm.create_model, "fasternet_t0", embed_dim=8),
    "timm/inception_next": partial(timm.create_model, "inception_next_atto", dims=CHANNELS),
    "timm/mambaout": partial(timm.create_model, "mambaout_femto", dims=CHANNELS, depths=BLOCKS),
    "timm/repvit": partial(timm.create_model, "repvit_m0_9", embed_dim=CHANNELS),
    "timm/resnest": partial(timm.create_model, "resnest14d", channels=CHANNELS, stem_width=8),
    "timm/rexnet": partial(timm.create_model, "rexnet_100", width_mult=0.2, depth_mult=0.5),
    "timm/skresnet": partial(timm.create_model, "skresnet18", channels=(16, 24, 32, 40), stem_width=8),
}
# height and width of the images, for networks that reject 32 x 40
SIZES = {
    "torchvision/alexnet": (64, 72),
    "torchvision/inception_v3": (75, 80),
    "timm/dla46_c": (32, 64),
    "timm/hrnet_w18_small": (32, 64),
}


def build(name):
    """Return a network with random weights, and two images of its default size."""
    library, name = name.split("/")
    torch.manual_seed(0)
    if library == "timm":
        model = timm.create_model(name)
        side = model.default_cfg["input_size"][1]
    else:
        options = {"init_weights": False} if name in {"googlenet", "inception_v3"} else {}
        model = torchvision.models.get_model(name, weights=None, **options)
        side = 299 if name == "inception_v3" else 224
    return model, torch.randn(2, 3, side, side)


def small(name):
    """Return a network that is cheap to interpret, with random weights, and two small images."""
    torch.manual_seed(0)
    with contextlib.nullcontext() if name in OWN else narrow(8):
        model = OWN[name]() if name in OWN else build(name)[0]
    for parameter in model.parameters():
        if not parameter.any():  # a branch that begins at zero would have no gradients
            nn.init.constant_(parameter, 0.1)
    return model, torch.randn(2, 3, *SIZES.get(name, (32, 40)))


def step(model, images):
    """Return the outputs, and the gradients of all parameters that they depend on."""
    torch.manual_seed(1)  # dropout, stochastic depth
    model.zero_grad(set_to_none=True)
    outputs = model(images)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    sum(output.square().sum() for output in outputs).backward()
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    return [output.detach() for output in outputs], gradients


class Operators(TorchDispatchMode):
    """Counter of the calls of lightconv's operators."""

    count = 0

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        self.count += operator.namespace == "lightconv"
        return operator(*args, **kwargs or {})


@pytest.mark.parametrize(
    "name",
    [f"torchvision/{name}" for name in TORCHVISION.split()] + [f"timm/{name}" for name in (*TIMM.split(), *PARTLY)],
)
def test_same_bits_swapped_and_restored(name):
    model, images = build(name)
    classes, keys = [type(module) for module in model.modules()], list(model.state_dict())
    layers = {n for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.MaxPool2d)}
    expected = step(model, images)
    report = lc.swap(model)
    assert layers == {*report.swapped, *report.left}
    assert {reason.split()[0] for reason in report.left.values()} == PARTLY.get(name.split("/")[1], set())
    torch.testing.assert_close(step(model, images), expected, rtol=0, atol=0)
    assert list(model.state_dict()) == keys
    lc.restore(model)
    assert [type(module) for module in model.modules()] == classes


@pytest.mark.parametrize("name", OTHERS)
def test_swapped_and_fused(name):
    model, images = build(f"torchvision/{name}")
    model, images = model.eval(), images[:1] if name == "maxvit_t" else images[:1, :, :128, :128]
    expected = step(model, images)
    lc.swap(model)
    torch.testing.assert_close(step(model, images), expected, rtol=0, atol=0)
    with contextlib.suppress(InputError):  # ConvNeXt has nothing to fuse
        lc.fuse(model)
    ((output,), _), ((before,), _) = step(model, images), expected
    assert (output - before).abs().max() <= 1e-4 * before.abs().max()


@pytest.mark.parametrize("name", ["torchvision/resnet18", "timm/mobilenetv3_small_050", "timm/tf_efficientnet_lite0"])
def test_state_dicts_load_both_ways(name):
    (swapped, images), (plain, _) = build(name), build(name)
    for parameter in plain.parameters():
        nn.init.constant_(parameter, 0.1)
    lc.swap(swapped)
    plain.load_state_dict(swapped.state_dict())
    swapped.load_state_dict(plain.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(swapped.eval()(images), plain.eval()(images), rtol=0, atol=0)


@pytest.mark.parametrize("name", [*EIGHTHS.split(), *OWN])
def test_runs_on_kernels(name, kernels):
    model, images = small(name)
    model.eval()  # a BatchNorm of few pixels magnifies rounding
    exact = step(copy.deepcopy(model).double(), images.double())
    report = lc.swap(model)
    assert not report.left
    with Operators() as operators:
        actual = step(model, images)
    assert operators.count >= 2 * len(report.swapped)  # forward and backward
    for ours, theirs in zip(itertools.chain(*actual), itertools.chain(*exact), strict=True):
        assert (ours - theirs).norm() < 1e-4 * theirs.norm()  # which is not 0


def test_network_without_plain_convolution():
    with pytest.raises(InputError, match=r"stem\.conv1: ScaledStdConv2d overrides forward"):
        lc.swap(timm.create_model("eca_nfnet_l0"))
