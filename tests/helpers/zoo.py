"""Known networks with random weights. ``python tests/helpers/zoo.py > docs/fused.md`` writes the page about them."""

import sys
import warnings
from collections import Counter

import timm
import torchvision
from torch import nn

import lightconv as lc
from lightconv.cli.tables import markdown
from lightconv.errors import InputError

TORCHVISION = [
    *("alexnet", "vgg11", "vgg11_bn", "resnet18", "resnext50_32x4d", "wide_resnet50_2", "densenet121", "googlenet"),
    *("inception_v3", "mobilenet_v2", "mobilenet_v3_small", "mnasnet0_5", "shufflenet_v2_x0_5", "efficientnet_b0"),
    *("efficientnet_v2_s", "regnet_x_400mf", "regnet_y_400mf", "convnext_tiny", "squeezenet1_0", "squeezenet1_1"),
]
TIMM = [
    *("resnet10t", "seresnet18", "skresnet18", "resnest14d", "res2net50_26w_4s", "legacy_seresnet18", "dla46_c"),
    *("ghostnet_050", "ghostnetv2_100", "repghostnet_050", "hrnet_w18_small", "hgnetv2_b0", "mobilenetv3_small_050"),
    *("efficientnet_b0", "tinynet_e", "mnasnet_small", "mixnet_s", "hardcorenas_a", "lcnet_035", "rexnet_100"),
    *("regnety_002", "starnet_s1", "shvit_s1", "swiftformer_xs", "repvit_m0_9", "efficientvit_b0", "poolformer_s12"),
    *("fastvit_t8", "inception_next_atto", "legacy_xception", "mobilenetv2_035", "regnetx_002", "efficientnet_lite0"),
    *("resnetv2_50", "densenet121", "convnext_atto", "edgenext_xx_small", "repvgg_a0"),
]
NETWORKS = [*TORCHVISION, *(f"timm/{name}" for name in TIMM)]
# drawing the initial weights of these two takes minutes
_OPTIONS = {"googlenet": {"init_weights": False}, "inception_v3": {"init_weights": False}}


def build(name: str) -> nn.Module:
    """Build a network with random weights, for 10 classes, in evaluation."""
    if name.startswith("timm/"):
        return timm.create_model(name.removeprefix("timm/"), num_classes=10).eval()
    return torchvision.models.get_model(name, num_classes=10, **_OPTIONS.get(name, {})).eval()


def fuse_to_row(name: str, network: nn.Module) -> dict[str, str | int]:
    """Fuse a network and return its row of docs/fused.md."""
    reason = ""
    try:
        reasons = Counter(row.reason for row in lc.fuse(network).left)
        if reasons:
            ((reason, _),) = reasons.most_common(1)
    except InputError as error:
        reason = str(error).partition("the modules after it: ")[2]
    convolutions = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    blocks = [m for m in convolutions if isinstance(m, lc.nn.ConvBlock)]
    return {
        "network": name,
        "convolutions": len(convolutions),
        "fused": len(blocks),
        "with BatchNorm2d": sum(bool(block.norms) for block in blocks),
        "with activation": sum(block.activation != "identity" for block in blocks),
        "with pooling": sum(block.pool != (1, 1) for block in blocks),
        "most frequent reason to leave a convolution": reason,
    }


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    print(f"""\
# Networks fused by `lightconv.fuse`

Each row counts the convolutions of a network, those that `lightconv.fuse` computes together with the modules after
them, and the modules fused. Chains with BatchNorm2d are fused in evaluation; other chains are also fused in training.
Measured with torchvision {torchvision.__version__.partition("+")[0]} and timm {timm.__version__}. Written by

```
python tests/helpers/zoo.py > docs/fused.md
```
""")
    sys.stdout.write(markdown([fuse_to_row(name, build(name)) for name in NETWORKS]))
