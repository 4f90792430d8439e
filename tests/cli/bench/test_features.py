import itertools

import pytest
from hydra import compose, initialize_config_dir

from lightconv.cli.bench import features
from lightconv.cli.help import CONFIGURATIONS
from lightconv.runs.model_settings import complete_model

TINY = ["model=pretrained", "model.backbone=timm/test_efficientnet", "model.weights=none", "model.image_size=32"]


@pytest.fixture
def config():
    settings = ["what=features", *TINY, "features.epochs=2", "rounds=2", "data.training_images=100", "seed=1"]
    with initialize_config_dir(str(CONFIGURATIONS), version_base="1.3"):
        return complete_model(compose("bench", settings))


def test_times_and_accuracies_of_both_sides(config, monkeypatch):
    times = itertools.accumulate([0, 1, 0, 2, 0, 30, 0, 40, 0, 3, 0, 4, 0, 50, 0, 60])  # start and end of each epoch
    monkeypatch.setattr(features, "clock", times.__next__)
    ((title, rows),) = features.features(config).tables.items()
    assert "2 of timm/test_efficientnet on Digits" in title
    cached, images = rows
    assert (cached["seconds"], images["seconds"]) == (2.5, 45)
    assert cached["images / features"] == 18
    assert cached["test accuracy"] == pytest.approx(images["test accuracy"], abs=0.005)


def test_incomparable_settings(lightconv, mistake):
    assert "choose model=efficientnet_lite0" in mistake(lightconv, "bench", "what=features")
    augmented = ["+data.augmentation._target_=lightconv.data.Augmentation"]
    assert "leave augmentation out" in mistake(lightconv, "bench", "what=features", *TINY, *augmented)
