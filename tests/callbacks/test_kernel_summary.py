import lightning as L
import pytest
import torch
from helpers.trainers import SILENT
from lightning.pytorch.callbacks import ModelSummary, RichModelSummary
from rich import box, get_console
from torch import nn
from torch.utils.data import DataLoader

import lightconv as lc

ASKED = "backend 'triton' is selected"


def summary(max_depth=1):
    return lc.KernelSummary(max_depth, box=box.SQUARE)


class Module(L.LightningModule):
    def __init__(self, example=(4, 1, 8, 8), net=None):
        super().__init__()
        layers = [nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(), nn.Flatten(), nn.Linear(36, 3)]
        self.net = net or nn.Sequential(*layers)
        self.example_input_array = None if example is None else torch.zeros(example)
        self.losses = []

    def forward(self, images):
        return self.net(images)

    def training_step(self, images, index):
        loss = self(images).square().mean()
        self.losses.append(loss.item())
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


class ByName(Module):
    def forward(self, *, images):
        return self.net(images)

    def training_step(self, images, index):
        return self(images=images).mean()


class NeedsValues(Module):
    def forward(self, images):
        return self.net(images) if images.sum().item() > -1e9 else images


class Spare(Module):
    def __init__(self):
        super().__init__()
        self.spare = nn.Conv2d(1, 1, 1)
        self.scale = nn.Parameter(torch.ones(()))


def fit(module, *callbacks, **options):
    torch.manual_seed(0)
    L.Trainer(max_epochs=1, callbacks=list(callbacks), **{**SILENT, **options}).fit(
        module, DataLoader(torch.randn(4, 1, 8, 8), batch_size=2)
    )


@pytest.fixture
def printed(capsys, monkeypatch):
    """The table's cells by the module's name, and the lines below it, as a Trainer prints them."""

    def ask(module, *callbacks, width=300, **options):
        monkeypatch.setattr(get_console(), "width", width)
        fit(module, *callbacks, **options)
        table, _, below = capsys.readouterr().out.partition(" parameters, ")
        return {row[1]: row for row in cells(table) if row[0].isdigit()}, below

    return ask


def cells(table):
    return [[cell.strip() for cell in line.split("│")[1:-1]] for line in table.splitlines() if "│" in line]


def reasons(below):
    return [line.strip() for line in below.splitlines() if line.startswith("(")]


@pytest.mark.parametrize("summary_first", [True, False])
def test_swapped_layers_show_kernels_in_any_order(printed, kernels, summary_first):
    callbacks = [summary(2), lc.KernelSwap()]
    module = Module()
    table, below = printed(module, *callbacks[:: 1 if summary_first else -1])
    assert table["net.0"][-1].startswith("implicit GEMM, ")
    assert table["net.0"][-1].endswith(" (1)")
    assert table["net.2"][-1] == "gathering (1)"
    assert table["net.1"][-2:] == ["[4, 4, 6, 6]", ""]
    assert reasons(below) == [f"(1) {ASKED}"]
    assert type(module.net[0]) is nn.Conv2d


def test_unswapped_layer_names_the_remedy(printed, kernels):
    table, below = printed(Module(), summary(2), lc.KernelSwap(exclude="net.0"))
    assert (table["net.0"][-1], table["net.2"][-1]) == ("torch (1)", "gathering (2)")
    assert reasons(below) == ["(1) torch.nn layer: lightconv.swap changes it", f"(2) {ASKED}"]


def test_layers_below_the_table_are_counted(printed):
    table, below = printed(Module(), summary())
    assert list(table) == ["net"]
    assert table["net"][-1] == "2 x torch (1)"
    assert "uses no kernels" in reasons(below)[0]


def test_reason_on_a_cpu(printed, monkeypatch):
    monkeypatch.setattr(lc.operators.backend, "INTERPRETED", False)
    table, below = printed(Module(), summary(-1), lc.KernelSwap())
    assert table["net.0"][-1] == "torch (1)"
    assert reasons(below)[0].startswith("(1) kernels need a GPU, this is a cpu tensor")


def test_fused_block_includes_pooling(printed, kernels):
    module = Module()
    lc.fuse(module)
    table, _ = printed(module, summary(2))
    assert table["net.0"][-1].startswith("fused implicit GEMM")
    assert table["net.2"][-1] == ""


def test_no_example_input_array(printed):
    table, below = printed(Module(None), summary(2), lc.KernelSwap())
    assert (table["net.0"][-1], table["net.1"][-1]) == ("? (1)", "")
    assert "set the module's example_input_array" in reasons(below)[0]


def test_forward_that_needs_values(printed):
    module = NeedsValues()
    table, below = printed(module, summary(2))
    assert table["net.0"][-1] == "? (1)"
    assert "cannot run NeedsValues without values" in reasons(below)[0]
    assert len(module.losses) == 2


def test_uncalled_layer_and_lone_parameter(printed):
    table, below = printed(Spare(), summary())
    assert table["spare"][-1] == "? (2)"
    assert reasons(below)[1] == "(2) not called with the example_input_array"


def test_keyword_arguments_and_compiled_networks(printed, kernels):
    module = ByName()
    module.example_input_array = {"images": torch.zeros(4, 1, 8, 8)}
    table, _ = printed(module, lc.KernelSwap(), summary())
    assert table["net"][-1].startswith("implicit GEMM")
    compiled = Module(net=torch.compile(Module().net, backend="eager"))
    table, _ = printed(compiled, lc.KernelSwap(), summary(3))
    assert table["net._orig_mod.2"][-1] == "gathering (1)"


def test_columns_and_totals_equal_lightning(printed, capsys):
    table, below = printed(Module(), summary(2))
    fit(Module(), RichModelSummary(2))
    header, *theirs = cells(capsys.readouterr().out.replace("┃", "│"))
    assert header[1:] == ["Name", "Type", "Params", "Mode", "FLOPs", "In sizes", "Out sizes"]
    assert [row[:-1] for row in table.values()] == theirs
    assert "151 trainable, 0.001 MB" in below
    assert "11.2 K FLOPs, 7 modules in train mode, 0 modules in eval mode" in below


def test_training_is_unchanged():
    plain, summarized = Module(), Module()
    summarized.load_state_dict(plain.state_dict())
    fit(plain)
    fit(summarized, summary(-1))
    assert plain.losses == summarized.losses
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in summarized.modules())


def test_replaces_lightnings_summary(printed):
    table, _ = printed(Module(), summary(0), enable_model_summary=True)
    assert table == {}
    trainer = L.Trainer(callbacks=[summary()], **{**SILENT, "enable_model_summary": True})
    assert sum(isinstance(callback, ModelSummary) for callback in trainer.callbacks) == 1


def test_names_are_whole_in_a_narrow_terminal(capsys, monkeypatch):
    monkeypatch.setattr(get_console(), "width", 80)
    fit(Module(), lc.KernelSummary(2))
    printed = capsys.readouterr().out
    assert {"net", "net.0", "net.5"} <= set(printed.split())
    assert "Served by" in printed
    assert printed.count("torch (1)") >= 2
