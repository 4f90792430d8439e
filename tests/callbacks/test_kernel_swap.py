import pickle
import subprocess
import sys
from pathlib import Path

import lightning as L
import pytest
import pytorch_lightning
import torch
from helpers.trainers import SILENT
from lightning.fabric.plugins.precision import MixedPrecision as FabricMixedPrecision
from lightning.pytorch.callbacks import EMAWeightAveraging
from lightning.pytorch.plugins.precision import HalfPrecision, MixedPrecision, Precision
from lightning.pytorch.tuner import Tuner
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import lightconv as lc
from lightconv.callbacks.kernel_swap import DefaultKernelSwap
from lightconv.errors import InputError


def network():
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 3))


class Plain(L.LightningModule):
    """Module unaware of lightconv. Records its losses and, per kind of step, how many lightconv layers it has."""

    def __init__(self, net=None):
        super().__init__()
        self.net = net
        self.losses, self.swapped = [], {}

    def step(self, name, batch):
        ours = [isinstance(module, lc.nn.Conv2d | lc.nn.MaxPool2d) for module in self.net.modules()]
        self.swapped[name] = sum(ours)
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def training_step(self, batch, index):
        loss = self.step("fit", batch)
        self.losses.append(loss.item())
        return loss

    def validation_step(self, batch, index):
        self.log("loss", self.step("validate", batch))

    def test_step(self, batch, index):
        self.step("test", batch)

    def predict_step(self, batch, index):
        return self.step("predict", batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


class BuiltLate(Plain):
    def configure_model(self):
        if self.net is None:
            self.net = network()


class BuiltInSetup(Plain):
    def setup(self, stage):
        self.net = self.net or network()


class Failing(Plain):
    error = RuntimeError("no")

    def training_step(self, batch, index):
        super().training_step(batch, index)
        raise self.error


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def data():
    torch.manual_seed(1)
    images, labels = torch.randn(12, 1, 8, 8), torch.randint(0, 3, (12,))
    return DataLoader(TensorDataset(images, labels), batch_size=4)


def fit(data, callbacks=(), of=lambda: Plain(network()), wrapped=lambda module: module, **options):
    """Return a module after two epochs from the same weights."""
    torch.manual_seed(0)
    module = of()
    trainer = L.Trainer(max_epochs=2, callbacks=list(callbacks), **SILENT, **options)
    trainer.fit(wrapped(module), data, data)
    return module


def layers(module):
    return [type(layer) for layer in module.net]


TORCHS = [nn.Conv2d, nn.ReLU, nn.MaxPool2d, nn.Flatten, nn.Linear]


def test_fit_has_the_same_losses(data):
    plain, swapped = fit(data), fit(data, [lc.KernelSwap()])
    assert plain.losses == swapped.losses
    assert plain.swapped == {"fit": 0, "validate": 0}
    assert swapped.swapped == {"fit": 2, "validate": 2}
    assert layers(swapped) == TORCHS


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_fit_runs_on_the_kernels(data, kernels, precision):
    plain = fit(data, precision=precision)
    with torch.profiler.profile() as profile:
        swapped = fit(data, [lc.KernelSwap()], precision=precision)
    counts = {event.key: event.count for event in profile.key_averages()}
    assert counts["lightconv::conv2d_weight_gradient"] == 6
    assert counts["lightconv::max_pool2d"] == 6 + 2 + 6  # training, two to check sanity, validation
    torch.testing.assert_close(swapped.losses, plain.losses, rtol=2e-2 if "bf16" in precision else 1e-5, atol=0)


@pytest.mark.parametrize("task", ["validate", "test", "predict"])
@pytest.mark.parametrize("of", [lambda: Plain(network()), BuiltLate, BuiltInSetup])
def test_every_stage_swaps_and_restores(data, task, of):
    module = of()
    getattr(L.Trainer(callbacks=[lc.KernelSwap()], **SILENT), task)(module, data)
    assert module.swapped == {task: 2}
    assert layers(module) == TORCHS


def test_one_trainer_for_all_stages(data):
    module, trainer = Plain(network()), L.Trainer(max_epochs=1, callbacks=[lc.KernelSwap()], **SILENT)
    trainer.fit(module, data, data)
    trainer.test(module, data)
    trainer.predict(module, data)
    assert module.swapped == {"fit": 2, "validate": 2, "test": 2, "predict": 2}
    assert layers(module) == TORCHS


@pytest.mark.parametrize("of", [BuiltLate, BuiltInSetup])
def test_modules_built_late(data, of):
    module = fit(data, [lc.KernelSwap()], of)
    assert module.swapped == {"fit": 2, "validate": 2}
    assert layers(module) == TORCHS


@pytest.mark.parametrize(
    "options",
    [
        {"precision": "bf16-mixed"},
        {"precision": "bf16-true"},
        {"accumulate_grad_batches": 2, "gradient_clip_val": 0.1},
        {"wrapped": lambda module: torch.compile(module, backend="eager")},
        {"of": lambda: Plain(torch.compile(network(), backend="eager"))},
    ],
    ids=["bf16-mixed", "bf16-true", "accumulated", "compiled", "compiled within"],
)
def test_trainer_options_make_no_difference(data, options):
    plain, swapped = fit(data, **options), fit(data, [lc.KernelSwap()], **options)
    assert plain.losses == swapped.losses
    assert swapped.swapped == {"fit": 2, "validate": 2}
    assert not any(isinstance(module, lc.nn.Conv2d) for module in swapped.modules())


@pytest.mark.parametrize("first", [True, False])
def test_weight_averaging_makes_no_difference(data, first):
    def callbacks(*more):
        averaging = EMAWeightAveraging(decay=0.5)
        return [*more, averaging] if first else [averaging, *more]

    plain, swapped = fit(data, callbacks()), fit(data, callbacks(lc.KernelSwap()))
    assert swapped.swapped == {"fit": 2, "validate": 2}
    torch.testing.assert_close(swapped.state_dict(), plain.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("plugged", ["callback", "plugin"])
@pytest.mark.parametrize("error", [RuntimeError("no"), KeyboardInterrupt()])
def test_failed_run_restores(data, plugged, error):
    options = {"callbacks": [lc.KernelSwap()]} if plugged == "callback" else {"plugins": Full()}
    module = Failing(network())
    module.error = error
    with pytest.raises((RuntimeError, SystemExit)):
        L.Trainer(max_epochs=1, **options, **SILENT).fit(module, data, data)
    assert module.swapped["fit"] == 2
    assert layers(module) == TORCHS


def test_include_and_exclude(data):
    assert fit(data, [lc.KernelSwap(include="net.*", exclude=nn.MaxPool2d)]).swapped["fit"] == 1


def test_earlier_swap_stays(data):
    module = Plain(network())
    lc.swap(module.net[0])
    fit(data, [lc.KernelSwap()], lambda: module)
    assert module.swapped["fit"] == 2
    assert isinstance(module.net[0], lc.nn.Conv2d)
    assert layers(module)[1:] == TORCHS[1:]


def test_checkpoints_hold_plain_modules(data, tmp_path):
    class WithNetwork(Plain):
        def __init__(self, net):
            super().__init__(net)
            self.save_hyperparameters("net")

    class Save(L.Callback):
        def on_train_end(self, trainer, pl_module):
            trainer.save_checkpoint(tmp_path / "last.ckpt")

    module = fit(data, [lc.KernelSwap(), Save()], lambda: WithNetwork(network()))
    load = (
        "import sys, torch; sys.modules['lightconv'] = None; c = torch.load(sys.argv[1], weights_only=False);"
        "print(c['hyper_parameters']['net'], *c['state_dict'])"
    )
    command = [sys.executable, "-c", load, tmp_path / "last.ckpt"]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    assert printed == " ".join([repr(module.net), *module.state_dict()])
    assert "lightconv" not in (tmp_path / "last.ckpt").read_bytes().decode("latin")


def test_nothing_to_swap_is_an_error(data):
    with pytest.raises(InputError, match="nothing to swap: Plain has no"):
        fit(data, [lc.KernelSwap()], lambda: Plain(nn.Sequential(nn.Flatten(), nn.Linear(64, 3))))


def test_default_warns_of_nothing_to_swap(data):
    with pytest.warns(UserWarning, match="LIGHTCONV=1: nothing to swap: Plain has no"):
        fit(data, [DefaultKernelSwap()], lambda: Plain(nn.Sequential(nn.Flatten(), nn.Linear(64, 3))))


def test_default_yields_to_callback(data):
    assert fit(data, [lc.KernelSwap(exclude="net.0"), DefaultKernelSwap()]).swapped["fit"] == 1
    fabric = L.Fabric(accelerator="cpu", callbacks=[lc.KernelSwap(exclude="0"), DefaultKernelSwap()])
    assert not isinstance(fabric.setup(network()).module[0], lc.nn.Conv2d)


def test_trainer_of_pytorch_lightning(data):
    class Other(pytorch_lightning.LightningModule):
        training_step = configure_optimizers = lambda self, *_: None

    trainer = pytorch_lightning.Trainer(max_epochs=1, callbacks=[lc.KernelSwap()], **SILENT)
    with pytest.raises(InputError, match=r"comes from pytorch_lightning\.trainer.*import lightning\.pytorch as pl"):
        trainer.fit(Other(), data)


class Full(lc.KernelPrecision, Precision):
    pass


class Mixed(lc.KernelPrecision, MixedPrecision):
    pass


class Half(lc.KernelPrecision, HalfPrecision):
    exclude = nn.MaxPool2d


@pytest.mark.parametrize(
    ("plugin", "precision", "swapped"),
    [
        (Full, "32-true", 2),
        (lambda: Mixed("bf16-mixed", "cpu"), "bf16-mixed", 2),
        (lambda: Half("bf16-true"), "bf16-true", 1),
    ],
)
def test_precision_plugin_swaps_and_restores(data, plugin, precision, swapped):
    plain, module = fit(data, precision=precision), fit(data, plugins=plugin())
    assert plain.losses == module.losses
    assert module.swapped == {"fit": swapped, "validate": swapped}
    assert layers(module) == TORCHS


def test_plugins_and_callbacks_pickle():
    assert pickle.loads(pickle.dumps(Mixed("bf16-mixed", "cpu"))).precision == "bf16-mixed"
    assert pickle.loads(pickle.dumps(lc.KernelSwap("net.*"))).include == "net.*"


class FabricMixed(lc.KernelPrecision, FabricMixedPrecision):
    pass


@pytest.mark.parametrize(
    "options",
    [{"callbacks": lc.KernelSwap()}, {"plugins": FabricMixed("bf16-mixed", "cpu")}],
    ids=["callback", "plugin"],
)
def test_fabric_trains_on_the_kernels(data, options, kernels):
    fabric = L.Fabric(accelerator="cpu", **options)
    net = network()
    model, optimizer = fabric.setup(net, torch.optim.SGD(net.parameters(), 0.1))
    images, labels = next(iter(data))
    with torch.profiler.profile() as profile:
        fabric.backward(nn.functional.cross_entropy(model(images), labels))
        optimizer.step()
    assert {"lightconv::conv2d", "lightconv::max_pool2d"} <= {event.key for event in profile.key_averages()}
    lc.restore(net)
    assert [type(layer) for layer in net] == TORCHS


def test_two_processes_train_the_same_weights(tmp_path):
    def trained(strategy, callback):
        command = [sys.executable, "-m", "helpers.distributed", strategy, callback, tmp_path / "weights.pt"]
        subprocess.run(command, check=True, cwd=Path(__file__).parents[1])
        weights = torch.load(tmp_path / "weights.pt")
        return weights.pop("swapped"), weights

    swapped, expected = trained("ddp", "none")
    assert swapped == 0
    for strategy in ("ddp", "ddp_spawn"):
        swapped, weights = trained(strategy, "swap")
        assert swapped == 2
        torch.testing.assert_close(weights, expected, rtol=0, atol=0)


def test_tuner_runs_on_swapped_layers(data):
    model = Plain(network())
    trainer = L.Trainer(max_epochs=1, callbacks=[lc.KernelSwap()], **SILENT)
    Tuner(trainer).lr_find(model, data, num_training=3, attr_name="rate", update_attr=False)
    assert model.swapped["fit"] == 2
    assert not any(isinstance(module, lc.nn.Conv2d) for module in model.modules())


class ValidatesAnother(L.Callback):
    """Runs another Trainer with the same swap in the middle of a fit."""

    def __init__(self, swap, data):
        self.swap, self.data = swap, data

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        L.Trainer(callbacks=[self.swap], **SILENT).validate(Plain(network()), self.data, verbose=False)


def test_nested_run_restores_its_own_module(data):
    model, swap = Plain(network()), lc.KernelSwap()
    L.Trainer(max_epochs=1, callbacks=[swap, ValidatesAnother(swap, data)], **SILENT).fit(model, data)
    assert model.swapped["fit"] == 2
    assert not any(isinstance(module, lc.nn.Conv2d) for module in model.modules())


def test_fabric_warns_of_nothing_to_swap():
    fabric = L.Fabric(accelerator="cpu", callbacks=[lc.KernelSwap()])
    convolutional = fabric.setup(network())
    with pytest.warns(UserWarning, match="KernelSwap: nothing to swap: Linear"):
        fabric.setup(nn.Linear(2, 2))
    assert isinstance(convolutional.module[0], lc.nn.Conv2d)


class SwappingPrecision(lc.KernelPrecision, Precision):
    include = "*0"


def test_precision_plugin_restores_every_model():
    plugin, models = SwappingPrecision(), [network(), network()]
    for model in models:
        plugin.convert_module(model)
    plugin.teardown()
    assert not any(isinstance(module, lc.nn.Conv2d) for model in models for module in model.modules())


def test_default_yields_to_precision_plugin(data):
    model = Plain(network())
    L.Trainer(max_epochs=1, callbacks=[DefaultKernelSwap()], plugins=[SwappingPrecision()], **SILENT).fit(model, data)
    assert model.swapped["fit"] == 1, "the max-pooling is not included"
