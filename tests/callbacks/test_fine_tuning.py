"""Stages of fine-tuning. Lightning's BackboneFinetuning (2.6.6) fails each of the seven tests of its defects."""

import functools
import math
import subprocess
import sys
from pathlib import Path

import lightning as L
import pytest
import torch
from helpers.fine_tuned import BLOCKS, Data, Tuned, fine_tuning
from helpers.trainers import SILENT
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import FSDPStrategy
from torch.optim.lr_scheduler import CosineAnnealingLR, CosineAnnealingWarmRestarts, LambdaLR, OneCycleLR, StepLR

import lightconv as lc
from lightconv.errors import InputError
from lightconv.models import Pretrained
from lightconv.tasks import Classification

OURS_AND_LIGHTNINGS = [
    "ours",
    pytest.param("lightning", marks=pytest.mark.xfail(strict=True, reason="the defect")),
]
both = pytest.mark.parametrize("kind", OURS_AND_LIGHTNINGS)


def fit(module, callback, epochs, checkpoint=None, side=8, **settings):
    settings = {**SILENT, "enable_checkpointing": any(isinstance(c, ModelCheckpoint) for c in callback), **settings}
    trainer = L.Trainer(max_epochs=epochs, callbacks=callback, **settings)
    trainer.fit(module, Data(side), ckpt_path=checkpoint)
    return trainer


def snapshot(module):
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


@both
def test_defect_1_frozen_batchnorm_does_not_train(kind):
    module = Tuned()
    before = snapshot(module)
    fit(module, [fine_tuning(kind, epoch=2)], 2)
    assert torch.equal(module.backbone[1].weight, before["backbone.1.weight"])


@both
def test_defect_2_frozen_batchnorm_keeps_statistics(kind):
    module = Tuned()
    before = snapshot(module)
    fit(module, [fine_tuning(kind, epoch=2)], 2)
    assert torch.equal(module.backbone[1].running_mean, before["backbone.1.running_mean"])
    assert not any("backbone.1" in training for training in module.training_modules)


@both
def test_defect_3_frozen_dropout_is_off(kind):
    module = Tuned()
    fit(module, [fine_tuning(kind, epoch=2)], 2)
    assert not any("backbone.3" in training for training in module.training_modules)


@both
def test_defect_4_resumed_run_stays_unfrozen(kind, tmp_path):
    fit(Tuned(), [fine_tuning(kind), ModelCheckpoint(tmp_path, "last")], 2)
    module = Tuned()
    before = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    fit(module, [fine_tuning(kind)], 4, tmp_path / "last.ckpt")
    assert not torch.equal(module.backbone[0].weight, before["backbone.0.weight"])


@both
def test_defect_5_equal_parameters_are_distinct(kind):
    module = Tuned()  # GroupNorm's weights in the backbone are ones, as BatchNorm's in the head
    trainer = fit(module, [fine_tuning(kind, epoch=0, train_bn=True)], 1)
    optimized = {id(p) for group in trainer.optimizers[0].param_groups for p in group["params"]}
    assert optimized == {id(p) for p in module.parameters()}


SCHEDULERS = {
    "LambdaLR": functools.partial(LambdaLR, lr_lambda=lambda step: 0.9**step),
    "CosineAnnealingWarmRestarts": functools.partial(CosineAnnealingWarmRestarts, T_0=5),
    "OneCycleLR": functools.partial(OneCycleLR, max_lr=0.1, total_steps=13),
}


@both
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_defect_6_schedulers_survive_unfreezing(kind, scheduler):
    module = Tuned(scheduler=SCHEDULERS[scheduler])
    fit(module, [fine_tuning(kind)], 3)
    assert len({rates[0] for rates in module.rates}) > 4


@both
def test_defect_7_processes_stay_equal(kind, tmp_path):
    command = [sys.executable, "-m", "helpers.fine_tuned", kind, tmp_path / "difference.pt"]
    subprocess.run(command, check=True, cwd=Path(__file__).parents[1])
    assert torch.load(tmp_path / "difference.pt") == 0


HEAD = {"epoch": 0, "train": "head"}
THREE = [HEAD, {"epoch": 1, "train": 1, "lr": 0.5}, {"epoch": 3, "train": "all"}]


def test_stages_follow_the_epochs():
    module = Tuned()
    fit(module, [lc.FineTuning(THREE, blocks=BLOCKS)], 4)
    per_epoch = module.training_modules[::4]
    layers = {name for name, child in module.named_modules() if not list(child.children())}
    head, last = {"head.0", "head.1"}, {"backbone.4", "backbone.5"}
    assert [training & layers for training in per_epoch] == [head, head | last, head | last, layers]
    assert all(module.training_modules[i] == per_epoch[i // 4] for i in range(16))


def test_frozen_part_is_unchanged_and_saves_no_tensors():
    model = Pretrained("torchvision/resnet18", 3, "none", image_size=32, channels=1)
    before = snapshot(model.backbone)
    saved = []

    class Task(Classification):
        def training_step(self, batch, index):
            with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.shape) or t, lambda t: t):
                features = self.model.features(batch[0])
            assert not features.requires_grad
            return super().training_step(batch, index)

    task = Task(model, optimizer=functools.partial(torch.optim.AdamW, lr=0.01, weight_decay=0.1))
    fit(task, [lc.FineTuning([{"epoch": 0, "train": "head"}])], 2)
    assert saved == []
    for name, tensor in model.backbone.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_groups_and_rates_by_depth():
    module = Tuned()
    trainer = fit(module, [lc.FineTuning(THREE, decay=0.5, blocks=BLOCKS)], 4)
    assert module.rates[0] == [0.1, 0.05, 0.025]
    assert module.rates[4] == [0.05, 0.025, 0.0125]  # the stage's factor
    assert module.rates[12] == [0.1, 0.05, 0.025]
    sizes = [sum(p.numel() for p in group["params"]) for group in trainer.optimizers[0].param_groups]
    assert sizes == [8 + 15, 148 + 8, 40 + 8]


def test_groups_of_the_module_are_kept():
    def without_decay(parameters, lr):
        parameters = list(parameters)
        matrices, vectors = ([p for p in parameters if (p.ndim > 1) == large] for large in (True, False))
        return torch.optim.AdamW([{"params": matrices}, {"params": vectors, "weight_decay": 0.0}], lr=lr)

    trainer = fit(Tuned(without_decay), [lc.FineTuning(THREE, decay=0.5, blocks=BLOCKS)], 1)
    groups = trainer.optimizers[0].param_groups
    assert [(group["lr"], group["weight_decay"]) for group in groups] == [
        *((0.1, 0.01), (0.05, 0.01), (0.025, 0.01)),
        *((0.1, 0.0), (0.05, 0.0), (0.025, 0.0)),
    ]


def test_schedule_length_per_stage():
    module = Tuned()
    scheduler = functools.partial(OneCycleLR, max_lr=0.1, pct_start=0.5, div_factor=10, cycle_momentum=False)
    fit(module, [lc.FineTuning(THREE, 0.5, scheduler, BLOCKS)], 4)
    head, deepest = [r[0] for r in module.rates], [r[-1] for r in module.rates]
    assert [head[0], head[4], head[12]] == pytest.approx([0.01, 0.005, 0.01])
    assert [max(head[:4]), max(head[4:12]), max(head[12:])] == pytest.approx([0.1, 0.05, 0.1], rel=0.2)
    assert deepest == pytest.approx([rate / 4 for rate in head])


@pytest.mark.parametrize(
    "scheduler",
    [CosineAnnealingLR, functools.partial(StepLR, step_size=1, gamma=0.5), SCHEDULERS["LambdaLR"]],
    ids=["cosine", "step", "lambda"],
)
def test_any_scheduler_restarts_per_stage(scheduler):
    module = Tuned()
    fit(module, [lc.FineTuning(THREE, 0.5, scheduler, BLOCKS)], 4)
    assert [module.rates[i] for i in (0, 4, 12)] == [[0.1, 0.05, 0.025], [0.05, 0.025, 0.0125], [0.1, 0.05, 0.025]]
    assert module.rates[11][0] < 0.05


@pytest.mark.parametrize("epochs", [1, 2, 3], ids="stopped after {} epochs".format)
@pytest.mark.parametrize("optimizer", [torch.optim.Adam, functools.partial(torch.optim.SGD, momentum=0.9)])
def test_resume_in_any_stage(epochs, optimizer, tmp_path):
    def callbacks(*others):
        scheduler = functools.partial(OneCycleLR, max_lr=0.1)
        return [lc.FineTuning(THREE, 0.5, scheduler, BLOCKS), lc.callbacks.RandomState(), *others]

    class Stop(L.Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            trainer.should_stop = trainer.current_epoch == epochs - 1

    whole = Tuned(optimizer)
    fit(whole, callbacks(), 4)
    fit(Tuned(optimizer), callbacks(Stop(), ModelCheckpoint(tmp_path, "last")), 4)
    resumed = Tuned(optimizer)
    fit(resumed, callbacks(), 4, tmp_path / "last.ckpt")
    assert resumed.rates == whole.rates[4 * epochs :]
    for name, tensor in resumed.state_dict().items():
        assert torch.equal(tensor, whole.state_dict()[name])


def test_resume_from_the_last_step_of_a_stage(tmp_path):
    whole = Tuned()
    checkpoint = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=4, save_top_k=-1)  # before the epoch's end
    fit(whole, [lc.FineTuning(THREE, blocks=BLOCKS), checkpoint], 4)
    resumed = Tuned()
    fit(resumed, [lc.FineTuning(THREE, blocks=BLOCKS)], 4, tmp_path / "step=4.ckpt")
    assert resumed.rates == whole.rates[4:]
    assert resumed.training_modules == whole.training_modules[4:]


def test_part_is_frozen_again():
    module = Tuned(functools.partial(torch.optim.SGD, momentum=0.9))
    stages = [{"epoch": 0, "train": "all"}, {"epoch": 1, "train": ["head.1"]}]
    seen = []

    class Note(L.Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            seen.append(snapshot(pl_module))

    fit(module, [lc.FineTuning(stages), Note()], 3)
    assert torch.equal(seen[0]["backbone.0.weight"], seen[2]["backbone.0.weight"])  # in spite of the momentum
    assert not torch.equal(seen[0]["head.1.weight"], seen[2]["head.1.weight"])


def test_user_frozen_layers_and_restored_state():
    module = Tuned()
    module.backbone[0].requires_grad_(False)
    module.backbone[1].eval()
    wanted = [p.requires_grad for p in module.parameters()], [m.training for m in module.modules()]
    before = snapshot(module)
    fit(module, [fine_tuning("ours")], 2)
    assert torch.equal(module.backbone[0].weight, before["backbone.0.weight"])
    assert ([p.requires_grad for p in module.parameters()], [m.training for m in module.modules()]) == wanted
    with pytest.raises(ZeroDivisionError):
        fit(module, [fine_tuning("ours"), Failing()], 2)
    assert ([p.requires_grad for p in module.parameters()], [m.training for m in module.modules()]) == wanted


class Failing(L.Callback):
    def on_train_batch_end(self, *args):
        raise ZeroDivisionError


def test_unfreezing_with_kernels_and_mixed_precision():
    module = Tuned()
    fit(module, [fine_tuning("ours"), lc.KernelSwap()], 2, precision="bf16-mixed")
    plain = Tuned()
    fit(plain, [fine_tuning("ours")], 2, precision="bf16-mixed")
    for name, tensor in module.state_dict().items():
        torch.testing.assert_close(tensor, plain.state_dict()[name])


def test_depth_in_a_pretrained_network():
    model = Pretrained("torchvision/vgg16", 3, "none", image_size=32, channels=1)
    training = []

    class Note(L.Callback):
        def on_train_batch_end(self, trainer, pl_module, *args):
            training.append({name for name, p in pl_module.model.backbone.named_parameters() if p.requires_grad})

    stages = [{"epoch": 0, "train": "last_block"}]
    fit(Classification(model), [lc.FineTuning(stages), Note()], 1, side=32, limit_train_batches=1)
    assert training == [{f"features.{i}.{kind}" for i in (24, 26, 28) for kind in ("weight", "bias")}]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"stages": []}, "the first must begin at 0"),
        ({"stages": [{"epoch": 1, "train": "all"}]}, r"begin at epochs \[1\]: the first must begin at 0"),
        ({"stages": [{"epoch": 0, "train": "all"}, {"epoch": 0, "train": "head"}]}, "each later than the one before"),
        ({"stages": [{"epochs": 0, "train": "all"}]}, "a stage has the keys epoch, train and lr"),
        ({"stages": [{"epoch": 0, "train": "all", "lr": 0}]}, "lr=0 of a stage is a factor"),
        ({"stages": THREE, "decay": 1.5}, "decay=1.5 is not above 0 and at most 1"),
    ],
)
def test_invalid_stages(arguments, message):
    with pytest.raises(InputError, match=message):
        lc.FineTuning(**arguments)


@pytest.mark.parametrize(
    ("arguments", "module", "message"),
    [
        ({"stages": THREE}, {}, "give FineTuning.blocks="),
        ({"stages": [{"epoch": 0, "train": "all"}], "decay": 0.5}, {}, "decay=0.5 lowers the learning rate per block"),
        ({"stages": [{"epoch": 0, "train": 3}], "blocks": BLOCKS}, {}, "this network has 2, so choose 0"),
        ({"stages": [{"epoch": 0, "train": "all"}, {"epoch": 5, "train": ["haed"]}]}, {}, "haed is no module.*head"),
        ({"stages": THREE, "blocks": BLOCKS}, {"scheduler": SCHEDULERS["LambdaLR"]}, "FineTuning.scheduler="),
    ],
)
def test_stages_that_do_not_match_the_module(arguments, module, message):
    module = Tuned(**module)
    with pytest.raises(InputError, match=message):
        fit(module, [lc.FineTuning(**arguments)], 1)
    assert module.rates == []


def test_unsupported_strategy(monkeypatch):
    monkeypatch.setattr(L.Trainer, "strategy", property(lambda trainer: FSDPStrategy.__new__(FSDPStrategy)))
    trainer = L.Trainer.__new__(L.Trainer)
    with pytest.raises(InputError, match="one device or with DDP, not with FSDPStrategy"):
        fine_tuning("ours").on_fit_start(trainer, Tuned())


def test_schedule_length_with_max_steps():
    module = Tuned()
    fit(module, [lc.FineTuning(THREE, scheduler=CosineAnnealingLR, blocks=BLOCKS)], None, max_steps=9)
    rates = [rates[0] for rates in module.rates]
    assert rates[4:] == pytest.approx([0.05 * (1 + math.cos(math.pi * i / 5)) / 2 for i in range(5)])


@pytest.mark.parametrize("name", ["torchvision/vgg16", "torchvision/resnet50", "torchvision/mobilenet_v2"])
def test_frozen_backbone_is_fused(name, tmp_path):
    fused = []

    class Note(L.Callback):
        def on_train_batch_end(self, trainer, pl_module, *args):
            fused.append(sum(isinstance(m, lc.nn.ConvBlock) for m in pl_module.modules()))

    def heads(**options):
        torch.manual_seed(0)
        model = Pretrained(name, 3, "none", image_size=32, channels=1, dropout=0.0)
        classes = [type(module) for module in model.modules()]
        checkpoint = ModelCheckpoint(tmp_path / str(options), "last")
        callbacks = [lc.FineTuning([HEAD, {"epoch": 2, "train": 1}], **options), Note(), checkpoint]
        fit(Classification(model), callbacks, 3, side=32, limit_train_batches=2, precision="64-true")
        assert [type(module) for module in model.modules()] == classes
        return torch.load(tmp_path / str(options) / "last.ckpt", weights_only=True)["state_dict"]

    expected, actual = heads(), heads(fuse=True)
    chains = {"torchvision/vgg16": 13, "torchvision/resnet50": 53, "torchvision/mobilenet_v2": 52}[name]
    assert fused == [0] * 6 + [chains] * 4 + [0] * 2
    assert list(actual) == list(expected)
    torch.testing.assert_close(actual["model.head.1.weight"], expected["model.head.1.weight"], rtol=1e-3, atol=1e-5)
