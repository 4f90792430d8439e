import pytest
import torch
from omegaconf import OmegaConf

from lightconv.cli.bench import layers
from lightconv.cli.bench.layers import LAYERS, Contender, build_sides, check, time_passes
from lightconv.operators import backend


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: layer.name)
def test_both_libraries_build_every_layer(layer):
    with torch.device("meta"):
        ours, theirs = layer.build(layers.nn), layer.build(layers.Torch)
        images = torch.empty(layer.images)
    assert ours(images).shape == theirs(images).shape
    assert [p.shape for p in ours.parameters()] == [p.shape for p in theirs.parameters()]


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_wrong_layer_is_found(tiny, dtype):
    settings = OmegaConf.create({"dtype": dtype, "channels_last": True})
    check(tiny, settings, "cpu")
    wrong = tiny._replace(build=lambda nn: torch.nn.AvgPool2d(2) if nn is layers.Torch else nn.MaxPool2d(2))
    with pytest.raises(AssertionError, match="tiny block: Tensor-likes are not equal"):
        check(wrong, settings, "cpu")


def test_contenders_run_on_their_backends(tiny, settings):
    ours, theirs, images = build_sides(tiny, settings, "cpu")
    seen = []

    def milliseconds(step):
        seen.append(backend._backend)
        return float(len(step()))

    contenders = {"ours": Contender("triton", ours), "theirs": Contender("reference", theirs)}
    assert time_passes(contenders, images, milliseconds, rounds=2) == {
        "forward": {"ours": 1.0, "theirs": 1.0},
        "forward+backward": {"ours": 4.0, "theirs": 4.0},  # the result, and the gradients of images, weight and bias
    }
    assert seen == ["triton", "reference"] * 4
    assert backend._backend == "auto"
