import pytest
from omegaconf import OmegaConf

from lightconv.runs.model_settings import complete_model

DIGITS = {"_target_": "lightconv.data.Digits"}
CIFAR = {"_target_": "lightconv.data.CIFAR10"}
LENET = {"_target_": "lightconv.models.LeNet", "classes": None, "channels": None, "image_size": None, "width": None}
PRETRAINED = {"_target_": "lightconv.models.Pretrained", "classes": None, "channels": 3, "image_size": None}


@pytest.mark.parametrize(
    ("model", "data", "expected"),
    [
        (LENET, CIFAR, {"classes": 10, "channels": 3, "image_size": 32, "width": None}),
        (LENET, None, {"classes": 10, "channels": 1, "image_size": 28}),
        ({**LENET, "channels": 1}, CIFAR, {"classes": 10, "channels": 1, "image_size": 32}),
        (PRETRAINED, DIGITS, {"classes": 10, "channels": 3, "image_size": None}),
        (PRETRAINED, None, {"classes": 10, "channels": 3, "image_size": None}),
        ({"_target_": "torch.nn.Identity"}, DIGITS, {"_target_": "torch.nn.Identity"}),
        ({"_target_": "no.such.Network", "classes": None}, DIGITS, {"classes": 10}),
    ],
)
def test_settings_at_null(model, data, expected):
    config = OmegaConf.create({"model": model, "data": data, "task": {"classes": "${model.classes}"}})
    completed = complete_model(config)
    assert {name: completed.model[name] for name in expected} == expected
    assert config.model == model
