"""Cached features of a frozen backbone: computed once, equal to uncached ones, never stale, never damaged."""

import os

import lightning as L
import pytest
import torch
from helpers.trainers import SILENT

import lightconv as lc
from lightconv.callbacks.feature_cache import FeatureCache
from lightconv.data import Augmentation, Digits, Mixing
from lightconv.errors import InputError, InputWarning
from lightconv.keyed_cache import CacheEntry
from lightconv.models import Pretrained
from lightconv.tasks import Classification

HEAD = {"epoch": 0, "train": "head"}
TWO = [HEAD, {"epoch": 2, "train": "last_block", "lr": 0.1}]


def network(**options):
    torch.manual_seed(0)
    options = {"weights": "none", "channels": 1, "image_size": 32, "dropout": 0.0, **options}
    return Pretrained("torchvision/resnet18", 10, **options)


def digits(model, **options):
    return Digits(preprocessing=model.preprocessing, training_images=60, batch_size=20, **options)


class Counter(L.Callback):
    """Counts the images through the backbone per epoch and records the head's weights."""

    def __init__(self):
        self.seen, self.heads, self.passed = [], [], 0

    def on_fit_start(self, trainer, pl_module):
        def count(module, inputs):
            self.passed += len(inputs[0])

        pl_module.model.backbone.register_forward_pre_hook(count)

    def on_train_epoch_end(self, trainer, pl_module):
        self.seen.append(self.passed)
        self.passed = 0
        self.heads.append([p.detach().clone() for p in pl_module.model.head.parameters()])


def train(model, stages=(HEAD,), epochs=2, data=None, **options):
    counter = Counter()
    callbacks = [counter, lc.FineTuning(list(stages), **options)]
    settings = {**SILENT, "num_sanity_val_steps": 0}
    trainer = L.Trainer(max_epochs=epochs, callbacks=callbacks, **settings)
    trainer.fit(Classification(model), datamodule=data or digits(model))
    return counter


def test_head_learns_the_same_from_cached_features():
    plain, cached = train(network(), TWO, 4), train(network(), TWO, 4, cache="memory")
    for ours, expected in zip(cached.heads, plain.heads, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-5)


def test_frozen_backbone_sees_images_once():
    assert train(network(), TWO, 4).seen == [240] * 4
    assert train(network(), TWO, 4, cache="memory").seen == [240, 0, 240, 240]


def test_augmented_images_need_copies():
    def varied(model):
        return digits(model, augmentation=Augmentation(rotation=10))

    model = network()
    assert train(model, epochs=2, data=varied(model), cache="memory").seen == [240] * 2
    model = network()
    data = varied(model)
    counter = train(model, epochs=3, data=data, cache="memory", copies=2)
    assert counter.seen == [2 * 60 + 180, 0, 0]


def test_mixed_images_are_not_cached():
    model = network()
    data = digits(model, augmentation=Augmentation(rotation=10), mixing=Mixing(mixup=0.2))
    assert train(model, epochs=2, data=data, cache="memory", copies=2).seen == [240] * 2


def test_augmented_copies_take_turns(tmp_path):
    model = network().eval()
    data = digits(model, augmentation=Augmentation(rotation=30))
    first, second = (torch.cat([images for images, _ in data.ordered_batches("train", copy)]) for copy in (0, 1))
    assert not torch.equal(first, second)
    model.backbone.requires_grad_(False)
    trainer = L.Trainer(**SILENT)
    features = FeatureCache(copies=2).features(trainer, model, data, show_progress=False)["train"]
    assert features.shape == (2, 60, 512)
    with torch.no_grad():
        torch.testing.assert_close(features[1], model.features(second))
    data.serve({"train": features})
    loader = data.train_dataloader()
    delivered = [torch.cat([seen for seen, _ in loader]) for _ in range(3)]
    for epoch, copy in enumerate((0, 1, 0)):
        torch.testing.assert_close(delivered[epoch].sum(0), features[copy].sum(0))


def test_features_and_labels_keep_their_order():
    model = network()
    data = digits(model)
    served = digits(model)
    served.serve({"train": torch.arange(60.0).view(1, 60, 1)})
    for (images, labels), (positions, same) in zip(data.train_dataloader(), served.train_dataloader(), strict=True):
        assert torch.equal(labels, same)
        stored = data.split("train")[0][positions[:, 0].long()]
        torch.testing.assert_close(images, data.normalize(data.resize(stored.float() / 255)))


def test_disk_cache_key(tmp_path):
    def passes(model, data=None):
        return train(model, epochs=1, data=data, cache=tmp_path).seen[0]

    assert passes(network()) == 240
    assert passes(network()) == 0
    assert passes(network(hidden=[4])) == 0  # the head is not asked
    other = network()
    with torch.no_grad():
        other.backbone.conv1.weight[0, 0, 0, 0] += 1e-3
    assert passes(other) == 240
    model = network()
    data = Digits(preprocessing=model.preprocessing, training_images=61, batch_size=20)
    assert passes(model, data) == 61  # the images to validate are the same
    assert passes(network(image_size=40)) == 240
    assert passes(network(pooling="max")) == 240


@pytest.mark.parametrize("damage", ["cut", "changed", "other", "text"])
def test_damaged_or_foreign_file_is_replaced(damage, tmp_path):
    expected = train(network(), epochs=1, cache=tmp_path).heads[0]
    files = sorted(tmp_path.glob("*.features"))
    assert len(files) == 2
    for path in files:
        content = bytearray(path.read_bytes())
        if damage == "cut":
            path.write_bytes(content[: len(content) // 2])
        elif damage == "changed":
            content[len(content) // 2] ^= 255  # within the features
            path.write_bytes(content)
        elif damage == "other":
            CacheEntry(path, key="another").write([content])
        else:
            path.write_text("no features")
    repaired = train(network(), epochs=1, cache=tmp_path)
    assert repaired.seen == [240]
    assert all(torch.equal(a, b) for a, b in zip(repaired.heads[0], expected, strict=True))
    assert train(network(), epochs=1, cache=tmp_path).seen == [0]


def test_averaged_backbone_is_validated_on_images():
    def losses(cache):
        model, validated = network(), []
        stages = [{"epoch": 0, "train": "all"}, {"epoch": 1, "train": "head"}]

        class Note(L.Callback):
            def on_validation_end(self, trainer, *_):
                validated.append(trainer.callback_metrics["val/loss"].item())

        callbacks = [lc.FineTuning(stages, cache=cache), lc.callbacks.WeightAverage(0.9), Note()]
        settings = {**SILENT, "num_sanity_val_steps": 0}
        trainer = L.Trainer(max_epochs=2, callbacks=callbacks, **settings)
        trainer.fit(Classification(model), datamodule=digits(model))
        return validated

    assert losses("memory") == pytest.approx(losses(None), rel=1e-4)


def test_data_delivers_images_after_the_run():
    model = network()
    data = digits(model)
    train(model, data=data, cache="memory")
    assert next(iter(data.train_dataloader()))[0].shape == (20, 1, 32, 32)
    assert next(iter(data.val_dataloader()))[0].ndim == 4


def test_settings_that_cannot_be_cached(tmp_path):
    model = network()
    loader = digits(model).train_dataloader()
    callbacks = [lc.FineTuning([HEAD], cache="memory")]
    with pytest.raises(InputError, match="for other networks or data set cache to null"):
        L.Trainer(max_epochs=1, callbacks=callbacks, **SILENT).fit(Classification(model), loader)
    with pytest.raises(InputError, match="copies=0"):
        lc.FineTuning([HEAD], cache="memory", copies=0)


@pytest.mark.parametrize(("precision", "dtype"), [("bf16-true", torch.bfloat16), ("64-true", torch.float64)])
def test_true_precisions(tmp_path, precision, dtype):
    for cache in ("memory", tmp_path, tmp_path):
        model = network()
        counter = Counter()
        callbacks = [counter, lc.FineTuning([HEAD], cache=cache)]
        settings = {**SILENT, "num_sanity_val_steps": 0, "precision": precision, "max_epochs": 1}
        L.Trainer(callbacks=callbacks, **settings).fit(Classification(model), datamodule=digits(model))
        assert counter.heads[0][0].dtype is dtype


def test_cache_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("x")
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(InputError, match=rf"finetune.cache={place} cannot be written \({tmp_path}/file is no dir"):
            lc.FineTuning([HEAD], cache=place).check(Classification(network()))
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write everywhere
    with pytest.raises(InputError, match="no permission, or a read-only disk"):
        lc.FineTuning([HEAD], cache=tmp_path / "new").check(Classification(network()))
    assert not (tmp_path / "new").exists()


def test_full_disk_loses_no_features(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    expected = train(network(), epochs=2, cache="memory")
    monkeypatch.setattr(CacheEntry, "write", fail)
    with pytest.warns(InputWarning, match=r"No space left on device\): features stay in memory, for this run alone"):
        counter = train(network(), epochs=2, cache=tmp_path)
    assert counter.seen == expected.seen
    assert all(torch.equal(a, b) for a, b in zip(counter.heads[-1], expected.heads[-1], strict=True))
