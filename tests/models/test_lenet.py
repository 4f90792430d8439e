import pytest
import torch
from torch import nn

import lightconv as lc
from lightconv.errors import InputError


class PlainLeNet(nn.Module):
    """LeNet of plain torch.nn modules."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 6, 5, padding=2)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.fc1 = nn.Linear(400, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, 10)

    def forward(self, x):
        x = nn.functional.max_pool2d(self.conv1(x).relu(), 2)
        x = nn.functional.max_pool2d(self.conv2(x).relu(), 2)
        return self.fc3(self.fc2(self.fc1(x.flatten(1)).relu()).relu())


def count_parameters(model):
    return sum(p.numel() for p in model.parameters())


def test_number_of_parameters():
    assert count_parameters(lc.models.LeNet()) == 61_706


@pytest.mark.parametrize("backend", ["reference", "triton"])
def test_equals_plain_network(backend):
    ours, plain = lc.models.LeNet(), PlainLeNet()
    plain.load_state_dict(ours.state_dict())
    x = torch.randn(3, 1, 28, 28)
    with lc.use_backend(backend):
        torch.testing.assert_close(ours(x), plain(x))


@pytest.mark.parametrize(("width", "classes", "channels", "size"), [(2, 7, 1, 28), (0.5, 10, 3, 32), (1, 2, 1, 12)])
def test_configurable_size(width, classes, channels, size):
    model = lc.models.LeNet(classes, channels, size, width)
    assert model(torch.zeros(2, channels, size, size)).shape == (2, classes)
    assert model.conv1.out_channels == round(6 * width)


def test_injected_block():
    calls = []

    class Block(lc.nn.ConvBlock):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            calls.append(args)

    lc.models.LeNet(block=Block)
    assert calls == [(1, 6, 5), (6, 16, 5)]


@pytest.mark.parametrize(
    ("arguments", "message"), [({"image_size": 8}, "at least 12x12"), ({"width": 0.05}, "width=0.05")]
)
def test_impossible_sizes(arguments, message):
    with pytest.raises(InputError, match=message):
        lc.models.LeNet(**arguments)
