import math
import signal
from contextlib import suppress
from functools import partial

import lightning as L
import pytest
import torch
from helpers.trainers import QUIET, SILENT
from lightning.pytorch.callbacks import LambdaCallback, ModelCheckpoint
from sklearn.metrics import balanced_accuracy_score
from torch import nn
from torch.nn.functional import one_hot
from torch.optim import SGD, lr_scheduler
from torch.utils.data import DataLoader, TensorDataset

import lightconv as lc
from lightconv.callbacks import GracefulStop, RandomState
from lightconv.errors import InputError
from lightconv.models import LeNet
from lightconv.tasks import Classification


class WithDropout(nn.Module):
    """Network that draws random numbers in every step."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Dropout(0.3), nn.Linear(784, 16), nn.ReLU(), nn.Linear(16, 10))

    def forward(self, images):
        return self.layers(images)


def digits(**options):
    return lc.data.Digits(**{"batch_size": 256, "augmentation": lc.data.Augmentation(shift=0.1)} | options)


def task(model=None, **options):
    torch.manual_seed(0)
    defaults = {
        "optimizer": partial(SGD, lr=0.05, momentum=0.9),
        "scheduler": partial(lr_scheduler.OneCycleLR, max_lr=0.1),
    }
    return Classification(model or LeNet(), **defaults | options)


def fit(module, epochs=1, data=None, ckpt_path=None, callbacks=(), **options):
    options = {"enable_checkpointing": any(isinstance(c, ModelCheckpoint) for c in callbacks)} | QUIET | options
    trainer = L.Trainer(max_epochs=epochs, callbacks=[RandomState(), *callbacks], **options)
    trainer.fit(module, data or digits(), ckpt_path=ckpt_path)
    return trainer


def assert_bitwise_equal(one, other):
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name


def test_minimal_script():
    trainer = L.Trainer(max_epochs=2, **SILENT)
    trainer.fit(lc.tasks.Classification(lc.models.LeNet()), lc.data.Digits())
    assert trainer.callback_metrics["val/accuracy"] > 0.5


class SaveAt(L.Callback):
    """Save a checkpoint after a given number of steps, and stop there if asked to."""

    def __init__(self, path, step, stop=False):
        self.path, self.step, self.stop = path, step, stop

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)
            if self.stop:
                raise InterruptedError


@pytest.mark.parametrize("step", [3, 5, 8])  # 5 steps an epoch: in the first, at its end, in the second
@pytest.mark.parametrize("model", [LeNet, WithDropout])
def test_checkpoint_resumes_bit_for_bit(tmp_path, model, step):
    torch.manual_seed(0)
    whole = task(model())
    fit(whole, epochs=3)
    torch.manual_seed(0)
    begun = task(model())
    with pytest.raises(InterruptedError):
        fit(begun, epochs=3, callbacks=[SaveAt(tmp_path / "half.ckpt", step, stop=True)])
    torch.manual_seed(123)
    resumed = task(model())
    fit(resumed, epochs=3, ckpt_path=tmp_path / "half.ckpt")
    assert_bitwise_equal(whole, resumed)


@pytest.mark.parametrize(
    "options", [{"monitor": "val/loss"}, {"save_last": True}, {"every_n_epochs": 1, "save_on_train_epoch_end": True}]
)
def test_epoch_checkpoints_resume_bit_for_bit(tmp_path, options):
    # Lightning restores checkpoints saved after validation and after the epoch in different ways
    checkpoint = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1, **options)
    whole = task(WithDropout())
    fit(whole, epochs=3, callbacks=[checkpoint])
    resumed = task(WithDropout())
    fit(resumed, epochs=3, ckpt_path=tmp_path / "epoch=0.ckpt")
    assert_bitwise_equal(whole, resumed)


class CtrlC(L.Callback):
    """Press Ctrl-C in the middle of a step."""

    def __init__(self, step):
        self.step = step

    def on_before_backward(self, trainer, *_):
        if trainer.global_step == self.step:
            signal.raise_signal(signal.SIGINT)


def test_ctrl_c_waits_for_the_end_of_the_step(tmp_path):
    last = ModelCheckpoint(tmp_path, filename="last", save_on_exception=True)
    whole = task(WithDropout())
    fit(whole, epochs=3)
    with pytest.raises(SystemExit):
        fit(
            task(WithDropout()), epochs=3, callbacks=[GracefulStop(), CtrlC(9), last]
        )  # 9: last step of the second epoch
    signal.signal(signal.SIGINT, signal.default_int_handler)  # Lightning leaves it ignored
    resumed = task(WithDropout())
    trainer = fit(resumed, epochs=3, ckpt_path=tmp_path / "last.ckpt")
    assert trainer.global_step == 15
    assert_bitwise_equal(whole, resumed)


@pytest.mark.parametrize("step", [8, 9, 14], ids=["within an epoch", "at its end", "at the end of the run"])
def test_ctrl_c_loses_no_validation(step, tmp_path):
    validated = []

    class RecordValidation(L.Callback):
        def on_validation_end(self, trainer, *_):
            if not trainer.sanity_checking:
                validated.append(trainer.global_step)

    last = ModelCheckpoint(tmp_path, filename="last", save_on_exception=True)
    with suppress(SystemExit):
        fit(task(WithDropout()), epochs=3, callbacks=[GracefulStop(), CtrlC(step), RecordValidation(), last])
    signal.signal(signal.SIGINT, signal.default_int_handler)  # Lightning leaves it ignored
    fit(task(WithDropout()), epochs=3, callbacks=[RecordValidation()], ckpt_path=tmp_path / "last.ckpt")
    assert validated == [5, 10, 15]


def test_classes_of_the_model():
    assert Classification(LeNet(classes=7)).classes == 7
    assert Classification(nn.Flatten()).classes == 10


def test_seed_decides_every_bit():
    def run(seed):
        L.seed_everything(seed, verbose=False)
        module = Classification(LeNet())
        fit(module, data=digits(seed=seed))
        return module

    assert_bitwise_equal(run(0), run(0))
    assert not torch.equal(run(0).model.fc3.weight, run(1).model.fc3.weight)


def test_kernels_take_the_same_steps(tmp_path):
    class Losses(L.Callback):
        def __init__(self):
            self.values = []

        def on_train_batch_end(self, trainer, module, outputs, *_):
            self.values.append(outputs["loss"].item())

    courses = {}
    for name in ("reference", "triton"):
        record = Losses()
        with lc.use_backend(name):
            fit(task(), data=digits(batch_size=16), callbacks=[record], limit_train_batches=4, limit_val_batches=0)
        courses[name] = record.values
    assert len(courses["triton"]) == 4
    assert courses["triton"] == pytest.approx(courses["reference"], abs=1e-4)


def test_metrics_equal_a_manual_count():
    module = task()
    trainer = fit(module)
    figures = {k: v.item() for k, v in trainer.callback_metrics.items()}
    images, labels = (data := digits()).split("validation")
    with torch.no_grad():
        logits = module.eval()(data.normalize(images.float() / 255))
    assert figures["val/accuracy"] == pytest.approx((logits.argmax(1) == labels).float().mean().item())
    assert figures["val/loss"] == pytest.approx(nn.functional.cross_entropy(logits, labels).item(), rel=1e-5)
    trainer.test(module, data, verbose=False)
    images, labels = data.split("test")
    with torch.no_grad():
        predictions = module(data.normalize(images.float() / 255)).argmax(1)
    assert trainer.callback_metrics["test/accuracy"].item() == pytest.approx(
        (predictions == labels).float().mean().item()
    )
    counts = torch.zeros(10, 10, dtype=torch.long)
    counts.index_put_((labels, predictions), torch.ones_like(labels), accumulate=True)
    assert torch.equal(module.class_results["confusion"], counts)
    torch.testing.assert_close(module.class_results["recall"], counts.diagonal() / counts.sum(1))


class UnbalancedDigits(lc.data.Digits):
    """All training images of the ones, a tenth of the others."""

    def load(self, stage):
        splits = super().load(stage)
        if stage == "fit":
            images, labels = splits["train"]
            kept = (labels == 1) | (torch.arange(len(labels)) % 10 == 0)
            splits["train"] = images[kept], labels[kept]
        return splits


def test_class_weights_multiply_each_loss():
    logits, labels, weights = torch.randn(6, 3), torch.tensor([0, 1, 1, 2, 2, 2]), [0.5, 1, 4]
    module = task(LeNet(classes=3), class_weights=weights)
    losses = nn.functional.cross_entropy(logits, labels, reduction="none")
    by_hand = sum(weights[label] * loss for label, loss in zip(labels, losses, strict=True)) / 6
    torch.testing.assert_close(module.training_loss(logits, labels), by_hand)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("class_weights", [None, [0.5, 1, 4]])
def test_labels_equal_soft_targets(label_smoothing, class_weights):
    logits, labels = torch.randn(6, 3), torch.tensor([0, 1, 1, 2, 2, 2])
    module = task(LeNet(classes=3), class_weights=class_weights, label_smoothing=label_smoothing)
    soft = module.training_loss(logits, one_hot(labels).float())
    torch.testing.assert_close(module.training_loss(logits, labels), soft)


def test_balanced_weights_sum_equally_per_class():
    module, data = task(class_weights="balanced"), UnbalancedDigits()
    module.balance_class_weights(data)
    counts = data.split("train")[1].bincount()
    assert counts.max() > 5 * counts.min()
    torch.testing.assert_close(module.loss_weights * counts, torch.full((10,), counts.sum() / 10))


def test_balanced_weights_help_rare_classes():
    def figures(class_weights):
        module, data = task(class_weights=class_weights), UnbalancedDigits(batch_size=32)
        trainer = fit(module, epochs=6, data=data)
        trainer.test(module, data, verbose=False)
        return trainer.callback_metrics

    without, balanced = figures(None), figures("balanced")
    assert balanced["test/balanced_accuracy"] > without["test/balanced_accuracy"] + 0.02


def test_balanced_accuracy_equals_scikit_learn():
    module, data = task(), UnbalancedDigits()
    fit(module, epochs=1, data=data)
    trainer = L.Trainer(**SILENT)
    figures = trainer.validate(module, data.train_dataloader(), verbose=False)[0]
    data.augmentation = None
    images, labels = data.split("train")
    with torch.no_grad():
        predictions = module.eval()(data.normalize(images.float() / 255)).argmax(1)
    assert figures["val/balanced_accuracy"] == pytest.approx(balanced_accuracy_score(labels, predictions))
    assert figures["val/balanced_accuracy"] < figures["val/accuracy"] - 0.1


def test_class_weights_do_not_change_validation_or_checkpoints(tmp_path):
    weighted, plain = task(class_weights="balanced"), task()
    trainer = fit(weighted, data=UnbalancedDigits())
    trainer.save_checkpoint(tmp_path / "weighted.ckpt")
    state = torch.load(tmp_path / "weighted.ckpt", weights_only=True)["state_dict"]
    plain.load_state_dict(state)
    for metric, value in trainer.validate(plain, UnbalancedDigits(), verbose=False)[0].items():
        assert value == trainer.validate(weighted, UnbalancedDigits(), verbose=False)[0][metric]


def test_balanced_training_resumes_bit_for_bit(tmp_path):
    whole, begun, resumed = (task(class_weights="balanced") for _ in range(3))
    fit(whole, epochs=2, data=UnbalancedDigits())
    with pytest.raises(InterruptedError):
        fit(begun, epochs=2, data=UnbalancedDigits(), callbacks=[SaveAt(tmp_path / "half.ckpt", 3, stop=True)])
    fit(resumed, epochs=2, data=UnbalancedDigits(), ckpt_path=tmp_path / "half.ckpt")
    assert_bitwise_equal(whole, resumed)
    without = task()
    fit(without, epochs=2, data=UnbalancedDigits())
    assert not torch.equal(whole.model.fc3.weight, without.model.fc3.weight)


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true"])
def test_class_weights_in_any_precision(precision):
    trainer = fit(task(class_weights="balanced"), epochs=2, precision=precision)
    assert trainer.callback_metrics["train/loss"] < 2.3


@pytest.mark.parametrize(
    "class_weights", ["even", [1, 1], [1] * 9 + [-1], [0] * 10, [1] * 9 + [math.nan], [1] * 9 + [math.inf]], ids=str
)
def test_invalid_class_weights(class_weights):
    with pytest.raises(InputError, match="give null, balanced, or a list of 10 numbers"):
        task(class_weights=class_weights)


def test_class_weights_that_cannot_be_balanced():
    data = digits()
    images, labels = data.split("train")
    loader = data.train_dataloader()
    with pytest.raises(InputError, match="give a list of 10 weights"):
        L.Trainer(max_epochs=1, **SILENT).fit(task(class_weights="balanced"), loader)
    data._splits["train"] = images[labels > 1], labels[labels > 1]
    with pytest.raises(InputError, match="no training image is of class 0, 1:"):
        task(class_weights="balanced").balance_class_weights(data)


def test_training_loss_is_the_epoch_mean(monkeypatch):
    losses, sizes = [], []
    step = Classification.training_step

    def spy(self, batch, index):
        losses.append(step(self, batch, index))
        sizes.append(len(batch[1]))
        return losses[-1]

    monkeypatch.setattr(Classification, "training_step", spy)
    trainer = fit(task(label_smoothing=0.1))
    mean = sum(loss.item() * n for loss, n in zip(losses, sizes, strict=True)) / sum(sizes)
    assert sum(sizes) == 1257
    assert trainer.callback_metrics["train/loss"].item() == pytest.approx(mean, rel=1e-5)


def test_training_step_logs_nothing(monkeypatch):
    module = task()
    inside = []
    monkeypatch.setattr(module, "log", lambda *a, **k: inside.append(a))
    module.training_step((torch.zeros(2, 1, 28, 28), torch.zeros(2, dtype=torch.long)), 0)
    assert inside == []


@pytest.mark.parametrize(
    ("scheduler", "interval", "final"),
    [
        (partial(lr_scheduler.OneCycleLR, max_lr=0.1), "step", 0.1 / 25 / 1e4),
        (partial(lr_scheduler.OneCycleLR, max_lr=0.1, epochs=2, steps_per_epoch=5), "step", 0.1 / 25 / 1e4),
        (lr_scheduler.CosineAnnealingLR, "step", 0.05 * (1 + math.cos(0.9 * math.pi)) / 2),
        (partial(lr_scheduler.CosineAnnealingLR, T_max=2), "epoch", 0.025),
        (partial(lr_scheduler.LinearLR, start_factor=1, end_factor=0.5), "step", 0.05 * 0.55),
        (partial(lr_scheduler.StepLR, step_size=1), "epoch", 0.005),
        (partial(lr_scheduler.ReduceLROnPlateau, patience=5), "epoch", 0.05),
        (None, None, 0.05),
    ],
)
def test_any_torch_scheduler(scheduler, interval, final):
    used = []
    record = LambdaCallback(
        on_train_batch_start=lambda trainer, *_: used.append(trainer.optimizers[0].param_groups[0]["lr"])
    )
    trainer = fit(task(scheduler=scheduler), epochs=2, callbacks=[record], accelerator="cpu")
    assert len(used) == 10
    assert used[-1] == pytest.approx(final, abs=1e-9)
    assert [config.interval for config in trainer.lr_scheduler_configs] == ([interval] if interval else [])


def test_optimizer_skips_frozen_parameters():
    module = task()
    module.model.conv1.requires_grad_(False)
    trainer = fit(module, limit_train_batches=1)
    assert len(trainer.optimizers[0].param_groups[0]["params"]) == 8


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (lambda: LeNet(channels=3), r"LeNet cannot take Digits's images of 1 x 28 x 28.*model\.channels"),
        (lambda: LeNet(image_size=32), r"LeNet cannot take Digits's images"),
        (
            lambda: LeNet(classes=7),
            r"returns 7 values .* but Digits has 10 classes: set model\.classes=10",
        ),
    ],
)
def test_model_mismatch_with_data(model, words):
    with pytest.raises(InputError, match=words):
        fit(task(model()))


def test_wrong_number_of_classes():
    with pytest.raises(InputError, match=r"task\.classes=10"):
        fit(task(classes=5))


def test_label_smoothing_out_of_range():
    with pytest.raises(InputError, match="label_smoothing=1"):
        task(label_smoothing=1)


def test_predicts_probabilities():
    module = task()
    trainer = L.Trainer(**SILENT)
    probabilities = torch.cat(trainer.predict(module, digits()))
    assert probabilities.shape == (360, 10)
    torch.testing.assert_close(probabilities.sum(1), torch.ones(360))


def test_soft_labels_train_alike():
    images, classes = torch.randn(6, 1, 28, 28, generator=torch.Generator().manual_seed(0)), torch.arange(6)
    module = task(label_smoothing=0.1)
    hard = module.training_step((images, classes), 0)
    soft = module.training_step((images, nn.functional.one_hot(classes, 10).float()), 1)
    torch.testing.assert_close(soft, hard)
    assert module._training_loss.count == 12
    torch.testing.assert_close(module._training_loss.total, 12 * hard.detach())
    other = module.training_step((images, nn.functional.one_hot(classes + 1, 10).float()), 2)
    both = (nn.functional.one_hot(classes, 10) + 3 * nn.functional.one_hot(classes + 1, 10)) / 4
    torch.testing.assert_close(module.training_step((images, both), 3), 0.25 * hard + 0.75 * other)


def test_mixed_images_resume_bit_for_bit(tmp_path):
    mixed = lambda: digits(mixing=lc.data.Mixing(mixup=0.2, cutmix=1))  # noqa: E731
    whole, resumed = task(), task()
    save = SaveAt(tmp_path / "middle.ckpt", 3)
    fit(whole, data=mixed(), callbacks=[save])
    fit(resumed, data=mixed(), ckpt_path=tmp_path / "middle.ckpt")
    assert_bitwise_equal(whole, resumed)


@pytest.mark.parametrize("views", [["flip"], ["flip", "vertical_flip"]])
def test_views_in_tests_and_predictions(views):
    module, plain = task(views=views), task()
    data = digits()
    (tester := L.Trainer(**SILENT)).test(module, data, verbose=False)
    images, labels = data.split("test")
    images = data.normalize(images.float() / 255)
    with torch.no_grad():
        seen = [images, images.flip(3), images.flip(2)][: 1 + len(views)]
        mean = sum(module.model(view).softmax(1) for view in seen) / len(seen)
    figures = {name: value.item() for name, value in tester.callback_metrics.items()}
    assert figures["test/loss"] == pytest.approx(nn.functional.nll_loss(mean.log(), labels).item(), rel=1e-5)
    assert figures["test/accuracy"] == pytest.approx((mean.argmax(1) == labels).float().mean().item())
    torch.testing.assert_close(torch.cat(tester.predict(module, data)), mean)
    losses = []
    for each in (module, plain):
        (validator := L.Trainer(**SILENT)).validate(each, data, verbose=False)
        losses.append(validator.callback_metrics["val/loss"].item())
    assert losses[0] == losses[1]


def test_unknown_view():
    with pytest.raises(InputError, match="views=turn: choose some of flip, vertical_flip"):
        task(views=["flip", "turn"])
    assert task(views="flip").views == ("flip",)


class Lookup(nn.Module):
    """Network that returns its (n, 1, 2, 2) images as logits of four classes."""

    classes = 4

    def __init__(self):
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, images):
        return images.flatten(1)


def test_balanced_accuracy_without_images_of_predicted_classes():
    labels, predictions = torch.tensor([0, 0, 0, 1, 1, 1]), torch.tensor([0, 0, 3, 1, 1, 2])
    images = one_hot(predictions, 4).float().view(6, 1, 2, 2)
    trainer = L.Trainer(**SILENT)
    trainer.test(Classification(Lookup()), DataLoader(TensorDataset(images, labels), 3), verbose=False)
    expected = balanced_accuracy_score(labels, predictions)
    assert trainer.callback_metrics["test/balanced_accuracy"].item() == pytest.approx(expected)


@pytest.mark.parametrize("precision", ["bf16-true", "bf16-mixed"])
def test_loss_is_summed_in_float32(precision):
    images = torch.randint(-2, 3, (4000, 1, 2, 2)).float()  # exact in bfloat16
    labels = torch.randint(0, 4, (4000,))
    trainer = L.Trainer(**SILENT, precision=precision)
    trainer.test(Classification(Lookup()), DataLoader(TensorDataset(images, labels), 8), verbose=False)
    expected = nn.functional.cross_entropy(images.flatten(1), labels).item()
    assert trainer.callback_metrics["test/loss"].item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("epochs_per_validation", "reductions"), [(1, 3), (2, 1)])
def test_plateau_moves_after_each_validation(epochs_per_validation, reductions):
    plateau = partial(lr_scheduler.ReduceLROnPlateau, patience=0, threshold=1e9, threshold_mode="abs")
    module = task(scheduler=plateau)
    trainer = fit(
        module, epochs=4, limit_train_batches=1, limit_val_batches=1, check_val_every_n_epoch=epochs_per_validation
    )
    # the first validation sets the best loss, which no later one beats by the threshold
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.05 * 0.1**reductions)


def test_plateau_without_validation():
    module = task(scheduler=lr_scheduler.ReduceLROnPlateau)
    with pytest.raises(InputError, match="scheduler=plateau follows the validation loss"):
        fit(module, limit_val_batches=0)
