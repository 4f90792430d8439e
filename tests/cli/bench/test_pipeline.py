from itertools import count
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir

from lightconv.cli.bench import epochs, pipeline
from lightconv.cli.bench.epochs import LOADERS, TRAININGS, Sized
from lightconv.cli.help import CONFIGURATIONS
from lightconv.data import Digits, ImageData
from lightconv.runs.model_settings import complete_model


@pytest.fixture
def config():
    with initialize_config_dir(str(CONFIGURATIONS), version_base="1.3"):
        return complete_model(compose("bench", ["what=pipeline", "images=6", "batch_size=4", "seed=1"]))


@pytest.fixture
def data(config):
    return Sized(Digits(batch_size=config.batch_size, seed=config.seed), config.images)


class Coloured(ImageData):
    """Ten images of noise; each of the three channels has its own mean and std."""

    image_shape = (3, 4, 5)
    mean, std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)

    def load(self, stage):
        generator = torch.Generator().manual_seed(0)
        images = torch.randint(256, (10, 3, 4, 5), generator=generator).to(torch.uint8)
        return {"train": (images, torch.arange(10)), "validation": (images, torch.arange(10))}


@pytest.fixture
def ticking(monkeypatch):
    """A clock that advances by one second at each reading."""
    monkeypatch.setattr(epochs, "clock", count().__next__)


@pytest.mark.parametrize("images", [6, 3000])
def test_number_of_training_images(images):
    whole = Digits()
    pictures, labels = Sized(whole, images).split("train")
    chosen = [i % 1257 for i in range(images)]
    assert torch.equal(pictures, whole.split("train")[0][chosen])
    assert torch.equal(labels, whole.split("train")[1][chosen])


def test_report(lightconv, capsys, ticking):
    lightconv("bench", "what=pipeline", "images=6", "batch_size=4", "rounds=1", "output=tables/mine.md")
    title, table, note = Path("tables/mine.md").read_text().split("\n\n")
    for words in ("LeNet, 6 images from 1,257 of Digits, 4 a batch, AdamW, num_workers=0", torch.__version__):
        assert words in title
    for words in ("lightning ", "torchvision ", "thread", "float32", "channels_last", "median of 1 round"):
        assert words in title
    assert table.splitlines() == [
        "| epoch of | by | seconds | images/s | / lightconv |",
        "| --- | --- | --- | --- | --- |",
        *(f"| training | {name} | 1 | 6 | 1.0000 |" for name in TRAININGS),
        *(f"| loading | {name} | 1 | 6 | 1.0000 |" for name in LOADERS),
    ]
    assert "Not timed: reading the data" in note
    assert title in " ".join(capsys.readouterr().out.split())  # wrapped
    assert [path.name for path in Path().iterdir()] == ["tables"]


@pytest.mark.parametrize("kind", [Digits, Coloured])
@pytest.mark.parametrize("name", LOADERS)
def test_loaders_have_the_same_images(name, kind, config):
    data = Sized(kind(batch_size=4), 6)
    loader = LOADERS[name](config, data)
    sizes = [len(labels) for _, labels in loader]
    images, labels = (torch.cat(parts) for parts in zip(*loader, strict=True))
    expected = data.normalize(data.split("train")[0].float() / 255)
    distances = torch.cdist(images.flatten(1), expected.flatten(1))
    assert sizes == [4, 2]
    assert sorted(distances.argmin(1).tolist()) == list(range(6))
    assert distances.min(1).values.max() < 1e-2
    assert torch.equal(labels, data.split("train")[1][distances.argmin(1)])


@pytest.mark.parametrize("name", TRAININGS)
def test_second_epoch_is_timed(name, config, data, ticking, monkeypatch):
    sizes = []
    cross_entropy = torch.nn.functional.cross_entropy

    def record(logits, labels, **options):
        sizes.append(len(labels))
        return cross_entropy(logits, labels, **options)

    for module in ("lightconv.cli.bench.epochs", "lightconv.tasks.classification"):
        monkeypatch.setattr(f"{module}.cross_entropy", record)
    trained = TRAININGS[name](config, data)
    assert sizes == [4, 2] * 2
    assert trained.seconds == 1


def test_all_sides_train_the_same_network(config, data):
    pipeline.check(config, data)


def _with_a_larger_step(config, data):
    config = config.copy()
    config.optimizer.lr *= 2
    return TRAININGS["PyTorch loop"](config, data)


def _with_other_labels(config, data):
    data = Sized(data.data, data.count)
    images, labels = data.split("train")
    data.load = lambda stage: {"train": (images, labels.roll(1))}
    data._splits.clear()
    return TRAININGS["PyTorch loop"](config, data)


@pytest.mark.parametrize("wrong", [_with_a_larger_step, _with_other_labels])
def test_different_training_is_not_timed(lightconv, monkeypatch, wrong):
    monkeypatch.setattr(pipeline, "TRAININGS", {**TRAININGS, "otherwise": wrong})
    monkeypatch.setattr(pipeline, "medians", lambda *_: pytest.fail("timed"))
    with pytest.raises(AssertionError, match="otherwise trains another network than lightconv"):
        lightconv("bench", "what=pipeline", "images=6", "batch_size=6")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["dtype=bfloat16"], ["float32"]),
        (["+data.augmentation._target_=lightconv.data.Augmentation"], ["without augmentation"]),
        (["data=fashion_mnist", "data.root=nowhere"], ["FashionMNIST", "nowhere"]),
        (["model.channels=3"], ["Digits", "model.channels"]),
    ],
    ids=lambda value: " ".join(value) if "=" in value[0] else "",
)
def test_invalid_settings(lightconv, mistake, arguments, words):
    message = mistake(lightconv, "bench", "what=pipeline", *arguments)
    for word in words:
        assert word in message
