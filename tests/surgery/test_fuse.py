"""Fusing is exact and reversible, on small chains and on known networks; unsupported chains are left alone."""

import copy
import importlib
import pickle
from pathlib import Path

import pytest
import torch
from helpers.support import assert_same
from helpers.zoo import NETWORKS, TORCHVISION, build, fuse_to_row
from timm.layers import BatchNormAct2d
from timm.layers.norm_act import FrozenBatchNormAct2d
from torch import nn
from torch.nn import functional as F
from torchvision.ops import FrozenBatchNorm2d

import lightconv as lc
from lightconv.analysis.layers import find_layers
from lightconv.errors import InputError
from lightconv.surgery.fuse import FusedConv2d

ACTIVATIONS = [nn.ReLU(), nn.ReLU(inplace=True), nn.LeakyReLU(), nn.Tanh(), nn.Sigmoid(), nn.GELU(), nn.SiLU()]
TABLE = Path(__file__).parents[2] / "docs" / "fused.md"


@pytest.fixture(autouse=True)
def fold_small_outputs(monkeypatch):
    """Fold the statistics into the filters for small outputs, too."""
    # by its full name: the attribute `fuse` of lightconv.surgery is the function
    monkeypatch.setattr(importlib.import_module("lightconv.surgery.fuse"), "_FOLDING_COST", 0)


def conv(**options):
    return nn.Conv2d(3, 6, 3, padding=1, **options)


def with_statistics(model):
    """Give norms random statistics and affine parameters, in place of the initial zeros and ones."""
    for module in model.modules():
        if getattr(module, "running_var", None) is not None:
            nn.init.normal_(module.running_mean, std=0.3)
            nn.init.uniform_(module.running_var, 0.3, 2)
            if module.weight is not None:
                nn.init.uniform_(module.weight, -1.5, 1.5)
                nn.init.normal_(module.bias, std=0.3)
    return model


def chain(*modules):
    """Build a sequence of copies of modules, in evaluation."""
    torch.manual_seed(0)
    return with_statistics(copy.deepcopy(nn.Sequential(*modules))).eval()


def normalised():
    return chain(conv(), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2))


def images():
    return torch.randn(2, 3, 8, 9, generator=torch.Generator().manual_seed(1))


def classes(model):
    return [type(module) for module in model.modules()]


def fused(model):
    twin = copy.deepcopy(model)
    lc.fuse(twin)
    return twin


def gradients(model):
    """Return a model's result, and the gradients of a random weighted sum of it."""
    x = images().requires_grad_()
    result = model(x)
    weights = torch.randn(result.shape, generator=torch.Generator().manual_seed(2))
    return result, *torch.autograd.grad((result * weights).sum(), [x, *model.parameters()])


def batch_norm_act(activation=nn.ReLU, **options):
    """Build timm's combination of BatchNorm2d and an activation."""
    return BatchNormAct2d(6, act_layer=activation, **options)


class Branches(nn.Module):
    """A network whose forward is ``combine(self, x)``."""

    def __init__(self, combine):
        super().__init__()
        self.conv, self.act, self.pool = conv(), nn.ReLU(), nn.MaxPool2d(2, return_indices=True)
        self.norm = nn.BatchNorm2d(6, track_running_stats=False)
        self.combine = combine

    def forward(self, x):
        return self.combine(self, x)


@pytest.mark.parametrize("pool", [[], [nn.MaxPool2d(2)], [nn.MaxPool2d((2, 3))]], ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
@pytest.mark.parametrize("backend", ["reference", "triton"])
def test_training_without_batch_norm(backend, activation, pool):
    model = chain(conv(), activation, *pool).train()
    block = fused(model)
    assert type(block[0]) is FusedConv2d
    with lc.use_backend(backend):
        for ours, theirs in zip(gradients(block), gradients(model), strict=True):
            assert_same(ours, theirs, exactly=backend == "reference")


@pytest.mark.parametrize("activation", ACTIVATIONS[:5], ids=str)
def test_pooling_before_activation(activation):
    model = chain(conv(), nn.MaxPool2d(2), activation)
    x = images()
    x[0, :, 2, 3], x[1, :, 4, 4] = float("nan"), -float("inf")
    block = fused(model)
    assert block[0].pool == (2, 2)
    assert block[0].activation != "identity"
    assert model(x).isnan().any()
    assert_same(block(x), model(x), exactly=True)


def added_to(x):
    x += 1
    return x


@pytest.mark.parametrize(
    "write",
    [nn.Dropout(inplace=True), added_to, lambda x: x.mul_(2), lambda x: F.hardtanh(x, inplace=True), torch.relu_],
    ids=["module", "iadd", "method", "argument", "function"],
)
@pytest.mark.parametrize("last", [nn.MaxPool2d(2), nn.LeakyReLU()], ids=["pool", "leaky"])
@pytest.mark.parametrize("backend", ["reference", "triton"])
def test_output_written_in_place(backend, last, write):
    first = [nn.ReLU()] if isinstance(last, nn.MaxPool2d) else [nn.MaxPool2d(2)]
    model = Branches(lambda m, x: m.write(m.chain(x)))
    model.chain, model.write = chain(conv(), *first, last), write
    del model.conv, model.norm
    block = copy.deepcopy(model)
    (only,) = lc.fuse(block).rows
    assert "output is written to" in only.reason
    with lc.use_backend(backend):
        for m in (model, block):
            torch.manual_seed(0)
            m(images()).sum().backward()
    torch.testing.assert_close(block.chain[0].weight.grad, model.chain[0].weight.grad)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize(
    "after", [[], [nn.ReLU()], [nn.SiLU(), nn.MaxPool2d(2)], [nn.MaxPool2d(2), nn.Tanh()]], ids=str
)
def test_batch_norm_in_evaluation(after, affine, bias):
    model = chain(conv(bias=bias), nn.BatchNorm2d(6, eps=0.1, affine=affine), nn.Identity(), *after)
    block = fused(model)
    with torch.no_grad():
        convolved = block[0](images())
        assert_same(block(images()), convolved)  # the others do nothing
    for ours, theirs in zip(gradients(block), gradients(model), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


class Shifted(nn.Conv2d):
    def forward(self, x):
        return super().forward(x) + 1


def hooked(model):
    model[1].register_forward_hook(lambda *_: None)
    return model


def replaced(model):
    model[1].forward = torch.tanh
    return model


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (chain(conv(), nn.Flatten()), "followed by Flatten"),
        (chain(Shifted(3, 6, 3), nn.ReLU()), "Shifted is a subclass"),
        (nn.Sequential(nn.utils.parametrizations.weight_norm(conv()), nn.ReLU()), "Conv2d is a subclass"),
        (hooked(chain(conv(), nn.ReLU())), "ReLU has hooks"),
        (replaced(chain(conv(), nn.ReLU())), "ReLU has a replaced forward"),
        (Branches(lambda m, x: m.conv(x) + 1), "followed by add(), not a module"),
        (Branches(lambda m, x: F.relu(m.conv(x))), "followed by relu(), not a module"),
        (Branches(lambda m, x: m.conv(x).relu()), "followed by relu(), not a module"),
        (Branches(lambda m, x: m.conv(x)), "returned"),
        (Branches(lambda m, x: m.pool(m.conv(x))), "returns indices"),
        (Branches(lambda m, x: m.norm(m.conv(x))), "keeps no statistics"),
        (Branches(lambda m, x: m.act(m.conv(m.act(x)))), "ReLU is also called elsewhere"),
        (Branches(lambda m, x: m.act(m.conv(x)) + m.act(m.conv(x))), "called 2 times"),
        (Branches(lambda m, x: (y := m.conv(x)) + m.act(y)), "its output is used more than once"),
        (Branches(lambda m, x: (m.conv(x), m.act(x))[1]), "its output is not used"),
        (Branches(lambda m, x: m.act(x)), "never called"),
        (Branches(lambda m, x: m.act(m.conv(x)) if x.sum() > 0 else x), "by the forward of Branches, and torch.fx"),
        (
            Branches(lambda m, x: m.act(m.conv(x)) if m.training else m.norm(m.conv(x))),
            "followed by different modules in training",
        ),
        (Branches(lambda m, x: m.act(m.conv(x)) if m.training else m.act(x)), "ReLU is also called elsewhere"),
        (nn.Flatten(), "it has no Conv2d"),
        (fused(chain(conv(), nn.ReLU())), "FusedConv2d is a subclass"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_nothing_to_fuse(model, reason):
    before = classes(model)
    with pytest.raises(InputError, match="no convolution to fuse") as error:
        lc.fuse(model)
    assert reason in str(error.value)
    assert classes(model) == before


@pytest.mark.parametrize(
    ("modules", "block", "reason"),
    [
        ((conv(), nn.ReLU(), nn.MaxPool2d(3, 2)), "Conv2d, ReLU", "overlap or leave gaps"),
        ((conv(), nn.ReLU(), nn.MaxPool2d(2, 3)), "Conv2d, ReLU", "overlap or leave gaps"),
        ((conv(), nn.ReLU(), nn.MaxPool2d(2, padding=1)), "Conv2d, ReLU", "pads"),
        ((conv(), nn.ReLU(), nn.MaxPool2d(2, dilation=2)), "Conv2d, ReLU", "is dilated"),
        ((conv(), nn.ReLU(), nn.MaxPool2d(2, ceil_mode=True)), "Conv2d, ReLU", "ceil_mode"),
        ((conv(), nn.ReLU(), nn.AvgPool2d(2)), "Conv2d, ReLU", "followed by AvgPool2d"),
        ((conv(), nn.MaxPool2d(2), nn.MaxPool2d(2)), "Conv2d, MaxPool2d", "a second MaxPool2d"),
        ((conv(), nn.MaxPool2d(2), nn.GELU()), "Conv2d, MaxPool2d", "does not commute"),
        ((conv(), nn.ReLU(), nn.BatchNorm2d(6)), "Conv2d, ReLU", "BatchNorm2d comes after ReLU"),
        ((conv(), nn.ReLU(), nn.Tanh()), "Conv2d, ReLU", "a second activation, Tanh"),
        ((conv(), nn.BatchNorm2d(6), nn.ReLU6()), "Conv2d, BatchNorm2d", "followed by ReLU6"),
        ((conv(), nn.BatchNorm2d(6), nn.LeakyReLU(0.2)), "Conv2d, BatchNorm2d", "LeakyReLU(negative_slope=0.2) is not"),
        ((conv(), nn.MaxPool2d(2), nn.GELU("tanh")), "Conv2d, MaxPool2d", "GELU(approximate='tanh') is not an"),
        ((conv(padding_mode="circular"), nn.ReLU()), "Conv2d, ReLU", "returned"),
    ],
    ids=str,
)
def test_end_of_chain(modules, block, reason):
    model = chain(*modules)
    twin = copy.deepcopy(model)
    (only,) = lc.fuse(twin).rows
    assert (only.name, only.block) == ("0", block)
    assert reason in only.reason
    torch.testing.assert_close(twin(images()), model(images()))


def test_report_table():
    report = lc.fuse(chain(conv(), nn.ReLU(), nn.Conv2d(6, 2, 1), nn.Flatten()))
    assert [row.name for row in report.fused] == ["0"]
    assert [row.name for row in report.left] == ["2"]
    assert [line.split() for line in str(report).splitlines()[1:]] == [
        ["0", "Conv2d,", "ReLU", "followed", "by", "Conv2d"],
        ["2", "followed", "by", "Flatten"],
    ]


def test_unfuse_restores_everything():
    model = chain(conv(), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2), lc.nn.Conv2d(6, 4, 1), nn.Tanh())
    model.append(lc.nn.Conv2d(4, 4, 1)).append(lc.nn.MaxPool2d(2))
    attributes = [set(vars(module)) for module in model.modules()]
    kinds, before = classes(model), model(images())
    assert len(lc.fuse(model).fused) == 3
    assert classes(model) != kinds
    lc.unfuse(model)
    assert classes(model) == kinds
    assert [set(vars(module)) for module in model.modules()] == attributes
    assert_same(model(images()), before, exactly=True)
    lc.unfuse(model)  # there is nothing to take back, and that is all right


def test_pickle_of_former_version():
    block = fused(normalised())
    pickled = pickle.dumps(block, protocol=0).replace(b"lightconv.surgery.fuse", b"lightconv.nn.fuse")
    with pytest.warns(DeprecationWarning, match=r"import FusedConv2d from lightconv\.surgery\.fuse"):
        twin = pickle.loads(pickled)
    assert classes(twin) == classes(block)
    assert_same(twin(images()), block(images()), exactly=True)
    assert {"unfused", "norms", "absorbed", "activation", "pool"} <= vars(twin[0]).keys()
    lc.unfuse(twin)
    assert classes(twin) == classes(normalised())


def test_unfuse_part_of_model():
    model = normalised()
    block = fused(model)
    lc.unfuse(block[2])  # a chain is its convolution's
    torch.testing.assert_close(block(images()), model(images()))
    lc.unfuse(block[0])
    assert_same(block(images()), model(images()), exactly=True)


# ------------------------------------------------------------------------------------------------- batch norm


def test_batch_norm_in_training():
    model = normalised()
    block = fused(model)
    for mode in (True, False, True):
        ours, theirs = (m.train(mode)(images()) for m in (block, model))
        torch.testing.assert_close(ours, theirs)
    for ours, theirs in zip(gradients(block), gradients(model), strict=True):
        assert_same(ours, theirs, exactly=True)
    assert_same(block[1].running_var, model[1].running_var, exactly=True)


def test_batch_norm_in_evaluation_of_training_model():
    model = normalised().train()
    model[1].eval()
    block = fused(model)
    assert_same(block[0](images()), block(images()))
    for ours, theirs in zip(gradients(block), gradients(model), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["weight", "1.running_var", "1.running_mean", "1.weight", "1.bias"])
def test_folded_tensors_stay_current(name):
    model = normalised()
    block = fused(model)
    block(images())
    for twin in (model, block):
        tensor = twin.state_dict(keep_vars=True)[f"0.{name}" if "." not in name else name]
        tensor.data.mul_(2)  # which not even torch's version counters notice
    torch.testing.assert_close(block(images()), model(images()))


# ---------------------------------------------------------------------------------------- variants of BatchNorm2d

NORM_VARIANTS = {
    "act": chain(conv(), batch_norm_act(), nn.MaxPool2d(2)),
    "frozen": chain(conv(), FrozenBatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2)),
    "frozen act": chain(conv(), FrozenBatchNormAct2d(6), nn.MaxPool2d(2)),
}
norm_variants = pytest.mark.parametrize("model", NORM_VARIANTS.values(), ids=NORM_VARIANTS)


@norm_variants
def test_norm_variant_folded_and_unfused(model):
    block, x = fused(model.double()), images().double()
    kinds, attributes = classes(model), [set(vars(module)) for module in model.modules()]
    assert (block[0].activation, block[0].pool) == ("relu", (2, 2))
    with torch.no_grad():
        assert_same(block[0](x), block(x), exactly=True)  # the others do nothing
    torch.testing.assert_close(block(x), model(x), rtol=0, atol=1e-9)
    torch.testing.assert_close(block(x[..., :4, :4]), model(x[..., :4, :4]), rtol=0, atol=1e-9)  # not folded
    assert list(block.state_dict()) == list(model.state_dict())
    block.load_state_dict(model.state_dict())
    model.load_state_dict(block.state_dict())
    lc.unfuse(block)
    assert classes(block) == kinds
    assert [set(vars(module)) for module in block.modules()] == attributes
    assert_same(block(x), model(x), exactly=True)
    model.float()


@norm_variants
def test_norm_variant_in_training(model):
    model = copy.deepcopy(model)
    block = fused(model)
    for mode in (True, False):
        for ours, theirs in zip(gradients(block.train(mode)), gradients(model.train(mode)), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(block.state_dict(), model.state_dict())
    assert block.train()[0].runs_unfused == isinstance(model[1], nn.BatchNorm2d), (
        "frozen statistics hold in training, too"
    )


@norm_variants
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"])
def test_norm_variant_copies(model, copied):
    block = fused(model)
    twin = copied(block)
    assert_same(twin(images()), block(images()), exactly=True)
    with torch.no_grad():
        twin[1].weight.zero_()
    torch.testing.assert_close(block(images()), model(images()))
    lc.unfuse(twin)
    assert classes(twin) == classes(model)


@norm_variants
@pytest.mark.parametrize("training", [True, False])
def test_norm_variant_autocast_dtype(model, training):
    model = copy.deepcopy(model).train(training)
    with torch.autocast("cpu", torch.bfloat16):
        ours, theirs = fused(model)(images()), model(images())
    assert ours.dtype is theirs.dtype
    torch.testing.assert_close(ours, theirs, rtol=0.05, atol=0.05)


@norm_variants
def test_norm_variant_compiles(model):
    model = copy.deepcopy(model)
    compiled = torch.compile(fused(model), fullgraph=True, backend="aot_eager")
    for mode in (False, True):
        torch.testing.assert_close(compiled.train(mode)(images()), model.train(mode)(images()))


class BatchNormSubclass(BatchNormAct2d):
    """A subclass of unknown behaviour."""


def shared():
    model = chain(conv(), batch_norm_act(), nn.Conv2d(6, 6, 1), batch_norm_act())
    model[3].act = model[1].act
    return model


def within(hook):
    model = chain(conv(), batch_norm_act())
    hook(model[1].act)
    return model


@pytest.mark.parametrize(
    ("model", "block", "reason"),
    [
        (chain(conv(), batch_norm_act(apply_act=False)), "Conv2d, BatchNormAct2d", "followed by Conv2d"),
        (
            chain(conv(), batch_norm_act(apply_act=False), nn.Tanh()),
            "Conv2d, BatchNormAct2d, Tanh",
            "followed by Conv2d",
        ),
        (chain(conv(), batch_norm_act(nn.Hardswish)), "Conv2d, BatchNormAct2d", "followed by Hardswish"),
        (
            chain(conv(), batch_norm_act(nn.SiLU), nn.ReLU()),
            "Conv2d, BatchNormAct2d, SiLU",
            "a second activation, ReLU",
        ),
        (chain(conv(), batch_norm_act(drop_layer=nn.Dropout)), "Conv2d, BatchNormAct2d", "followed by Dropout"),
        (within(lambda act: act.register_forward_hook(print)), "Conv2d, BatchNormAct2d", "ReLU has hooks"),
        (shared(), "Conv2d, BatchNormAct2d", "ReLU is also called elsewhere"),
        (chain(conv(), nn.ReLU(), batch_norm_act()), "Conv2d, ReLU", "BatchNormAct2d comes after ReLU"),
        (chain(conv(), nn.MaxPool2d(2), batch_norm_act()), "Conv2d, MaxPool2d", "BatchNormAct2d comes after MaxPool2d"),
        (chain(conv(), BatchNormSubclass(6)), "", "BatchNormSubclass is a subclass"),
        (chain(conv(), batch_norm_act(track_running_stats=False)), "", "BatchNormAct2d keeps no statistics"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_norm_variant_inner_modules(model, block, reason):
    twin = nn.Sequential(copy.deepcopy(model), nn.Conv2d(6, 2, 1), nn.ReLU()).double().eval()
    exact = copy.deepcopy(twin)
    row, *_ = lc.fuse(twin).rows
    assert row.block == block
    assert reason in row.reason
    for size in (4, 8):
        x = images().double()[..., :size, :size]
        torch.testing.assert_close(twin(x), exact(x), rtol=0, atol=1e-9)


def test_norm_variant_output_written_in_place():
    model = chain(conv(), batch_norm_act(nn.LeakyReLU), nn.Dropout(inplace=True))
    (only,) = lc.fuse(model).rows
    assert only.block == "Conv2d, BatchNormAct2d"
    assert "LeakyReLU's output is written to" in only.reason


def test_norm_variant_with_hook():
    model = chain(conv(), batch_norm_act())
    model[1].register_forward_hook(lambda *_: None)
    with pytest.raises(InputError, match="BatchNormAct2d has hooks"):
        lc.fuse(model)


# ------------------------------------------------------------------------------------------- what stays as it is


def test_parameters_and_optimizers_stay_valid():
    model = normalised().train()
    block = copy.deepcopy(model)
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.01, momentum=0.9) for m in (model, block)]
    parameters = list(block.parameters())
    lc.fuse(block)
    assert all(ours is theirs for ours, theirs in zip(block.parameters(), parameters, strict=True))
    for _ in range(3):
        for m, optimizer in zip((model, block), optimizers, strict=True):
            optimizer.zero_grad()
            m(images()).square().mean().backward()
            optimizer.step()
    assert list(block.state_dict()) == list(model.state_dict())
    torch.testing.assert_close(block.state_dict(), model.state_dict())
    fresh, other = normalised(), fused(normalised())
    fresh.load_state_dict(block.state_dict())
    other.load_state_dict(model.state_dict())
    torch.testing.assert_close(fresh(images()), other(images()))


def test_isinstance_holds():
    model = normalised()
    kinds = classes(model)
    assert all(map(isinstance, fused(model).modules(), kinds))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"])
def test_copies_are_independent(copied):
    model = normalised()
    block = fused(model)
    twin = copied(block)
    assert_same(twin(images()), block(images()), exactly=True)
    twin[1].train()
    assert not block[1].training
    assert twin[0].runs_unfused
    with torch.no_grad():
        twin.eval()[1].weight.zero_()
    torch.testing.assert_close(block(images()), model(images()))
    lc.unfuse(twin)
    assert classes(twin) == classes(model)


@pytest.mark.parametrize("model", [normalised(), chain(conv(), nn.ReLU(), nn.MaxPool2d(2))], ids=["norm", "none"])
def test_memory_format(model):
    block = fused(model)
    for m in (model, block):
        m.to(memory_format=torch.channels_last)
    assert_same(block(images()), model(images()))


def test_image_without_batch():
    model = chain(conv(), nn.ReLU(), nn.MaxPool2d(2))
    assert_same(fused(model)(images()[0]), model(images()[0]), exactly=True)


@pytest.mark.parametrize("training", [True, False])
def test_autocast_and_half_precision(training):
    model = normalised().train(training)
    block = fused(model)
    with torch.autocast("cpu", torch.bfloat16):
        ours, theirs = block(images()), model(images())
    assert ours.dtype is theirs.dtype is torch.bfloat16
    torch.testing.assert_close(ours, theirs, rtol=0.05, atol=0.05)
    ours, theirs = (m.eval().bfloat16()(images().bfloat16()) for m in (block, model))
    torch.testing.assert_close(ours, theirs, rtol=0.05, atol=0.05)


def test_compiles_in_both_modes():
    model = normalised()
    block = fused(model)
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    for mode in (False, True, False):
        torch.testing.assert_close(compiled.train(mode)(images()), model.train(mode)(images()))


def test_explain_and_found_see_blocks():
    rows = lc.explain(fused(normalised()), images()).rows
    assert [(row.name, row.layer) for row in rows] == [("0", "ConvBlock")]
    rows = lc.explain(fused(normalised()).train(), images()).rows
    assert [(row.name, row.layer) for row in rows] == [("0", "Conv2d"), ("3", "MaxPool2d")]
    (row,) = lc.explain(fused(normalised()), images()[..., :5, :5]).rows
    assert row.layer == "Conv2d", "its map is smaller than its filters"
    layers = find_layers(fused(normalised()), images())
    assert [(layer.name, layer.module.pool) for layer in layers] == [("0", (2, 2))]


# ------------------------------------------------------------------------------------------------------- tracing


class Untraceable(nn.Module):
    """A network whose forward depends on values."""

    def __init__(self):
        super().__init__()
        self.relu = nn.ReLU()
        self.features = nn.Sequential(conv(), nn.ReLU(), nn.Conv2d(6, 6, 3), self.relu)
        self.alone = nn.Conv2d(6, 4, 1)

    def forward(self, x):
        x = self.features(x)
        return self.relu(self.alone(x)) if x.sum() > -1e9 else x


def test_sequences_of_untraceable_forward():
    torch.manual_seed(0)
    model = Untraceable()
    block = copy.deepcopy(model)
    report = lc.fuse(block)
    assert [row.name for row in report.fused] == ["features.0"]
    assert [row.reason for row in report.left] == [
        "ReLU is also called elsewhere",
        "called by the forward of Untraceable, and torch.fx cannot trace it",
    ]
    assert_same(block(images()), model(images()), exactly=True)


def test_modules_around_untraceable_part():
    torch.manual_seed(0)
    model = nn.Sequential(
        conv(), nn.Conv2d(6, 3, 1), nn.Sequential(Untraceable(), nn.ReLU()), nn.Conv2d(4, 2, 1), nn.Tanh()
    )
    block = copy.deepcopy(model)
    assert [row.name for row in lc.fuse(block).fused] == ["2.0.features.0", "3"]
    assert_same(block(images()), model(images()), exactly=True)


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")
def test_scripted_part_keeps_mode():
    model = nn.Sequential(torch.jit.script(normalised()), nn.Conv2d(6, 2, 1), nn.ReLU())
    for mode in (True, False):
        assert [row.name for row in lc.fuse(model.train(mode)).fused] == ["1"]
        assert model[0].training == mode
        lc.unfuse(model)


def test_hook_on_container():
    seen = []
    model = nn.Sequential(chain(conv(), nn.ReLU()), nn.Tanh())
    model[0].register_forward_hook(lambda *args: seen.append(args[2]))
    block = fused(model)
    assert not seen
    model(images())
    block(images())
    assert_same(seen[1], seen[0], exactly=True)


class Remembers(nn.Module):
    """A network whose forward sets attributes and takes options."""

    def __init__(self):
        super().__init__()
        self.conv, self.act, self.last, self.calls = conv(), nn.ReLU(), None, 0
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x, double=False, scale=None):
        self.last, self.calls = x, self.calls + 1
        self.count.add_(1)
        x = self.act(self.conv(x))
        x = x * 2 if double else x
        return x if scale is None else x * scale


def test_tracing_restores_attributes():
    model = Remembers().eval()
    model.act.train()
    with torch.no_grad():
        before = torch.get_rng_state()
        lc.fuse(model)
    assert (model.last, model.calls, model.count.item()) == (None, 0, 0)
    assert (model.training, model.conv.training, model.act.training) == (False, False, True)
    assert torch.equal(torch.get_rng_state(), before)


def test_lightning_module():
    task = lc.tasks.Classification(nn.Sequential(conv(), nn.ReLU(), nn.MaxPool2d(8), nn.Flatten()), classes=6)
    expected = task(images())
    assert [row.name for row in lc.fuse(task).fused] == ["model.0"]
    assert_same(task(images()), expected, exactly=True)


# ------------------------------------------------------------------------------------------------ known networks


def build_trained(name):
    """Build a network with the statistics of some images, as after training, so that no map vanishes."""
    torch.manual_seed(0)
    model = build(name)
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.normal_(norm.bias, std=0.2)
        norm.momentum = 1.0
    if name.startswith("vgg"):
        model.classifier = nn.Linear(512 * 7 * 7, 10)  # for 100 million weights that have no part in this
    side = 299 if name == "inception_v3" else 96
    x = torch.randn(4, 3, side, side)
    with torch.no_grad():
        model.train()(x)
    for norm in norms:
        norm.momentum = 0.1
    return model.eval(), x[:2]


@pytest.mark.parametrize("name", NETWORKS)
def test_known_networks(name):
    model, x = build_trained(name)
    kinds, state = classes(model), copy.deepcopy(model.state_dict())
    with torch.no_grad():
        before, exact = model(x), copy.deepcopy(model).double()(x.double())
        row = fuse_to_row(name, model)
        assert row["convolutions"] == sum(isinstance(m, nn.Conv2d) for m in model.modules())
        if name in TORCHVISION:
            assert f"| {' | '.join(map(str, row.values()))} |" in TABLE.read_text().splitlines()
        if not row["fused"]:
            assert classes(model) == kinds
            return
        torch.testing.assert_close(model(x), before, rtol=0, atol=1e-4 * before.abs().max().item())
        # in double precision, by what tells the images apart: no map that faded away hides a mistake
        telling = (exact - exact.mean(0)).abs().max().item()
        torch.testing.assert_close(copy.deepcopy(model).double()(x.double()), exact, rtol=0, atol=1e-9 * telling)
        assert list(model.state_dict()) == list(state)
        model.load_state_dict(state)
        lc.unfuse(model)
        assert classes(model) == kinds
        assert_same(model(x), before, exactly=True)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


def test_fuse_after_swap():
    model = normalised()
    before, plain = classes(model), copy.deepcopy(model)
    lc.swap(model)
    assert [row.block for row in lc.fuse(model).rows] == [row.block for row in lc.fuse(plain).rows]
    assert_same(model(images()), plain(images()), exactly=True)
    twin = pickle.loads(pickle.dumps(model))
    lc.restore(model)
    for fused_model in (model, twin):
        lc.unfuse(fused_model)
        assert classes(fused_model) == before


def test_training_runs_on_lightconv(monkeypatch):
    called = []
    for name in ("conv2d", "max_pool2d"):
        real = getattr(lc.functional, name)
        monkeypatch.setattr(lc.functional, name, lambda *a, r=real, n=name, **k: (called.append(n), r(*a, **k))[1])
    fused(normalised()).train()(images())
    assert called == ["conv2d", "max_pool2d"]


class Caching(nn.Module):
    """A network whose forward fills containers and draws random numbers."""

    def __init__(self):
        super().__init__()
        self.part, self.grids, self.taps = normalised(), {}, []

    def forward(self, x):
        self.grids.setdefault("grid", torch.zeros_like(x))
        self.taps.append(x)
        return self.part(x + self.grids["grid"] + torch.rand(()) * 0)


def test_tracing_restores_containers_and_random_state():
    model = Caching().eval()
    state = torch.get_rng_state()
    lc.fuse(model)
    assert torch.equal(torch.get_rng_state(), state)
    assert (model.grids, model.taps) == ({}, [])
    model(images())


def test_export_with_dynamic_sizes():
    model = fused(chain(conv(), nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(1)))
    auto = torch.export.Dim.AUTO
    program = torch.export.export(model, (torch.randn(4, 3, 16, 16),), dynamic_shapes=({0: auto, 2: auto, 3: auto},))
    small = torch.randn(2, 3, 4, 4)
    assert_same(program.module()(small), model(small))


def test_parametrized_while_fused():
    model = fused(chain(conv(), nn.ReLU()))
    nn.utils.parametrizations.weight_norm(model[0])
    expected = model(images())
    lc.unfuse(model)
    assert_same(model(images()), expected)
    assert nn.utils.parametrize.is_parametrized(model[0])


def test_swap_after_fuse():
    model = chain(conv(), nn.ReLU(), nn.Conv2d(6, 3, 1), nn.Flatten())
    before = classes(model)
    expected = model(images())
    lc.fuse(model)
    assert list(lc.swap(model).swapped) == ["2"]
    assert_same(model(images()), expected)
    lc.restore(model)
    lc.unfuse(model)
    assert classes(model) == before


@pytest.mark.parametrize(("count", "side", "folded"), [(1, 4, False), (2, 4, False), (4, 4, True), (1, 8, True)])
def test_small_output_is_normalised_instead(count, side, folded):
    model = normalised()  # 6 filters of 27 terms; twice that are as many as 6 maps of 54 pixels
    x = torch.randn(count, 3, side, side)
    assert_same(fused(model)(x), model(x))
    assert torch.equal(fused(model)(x), model(x)) != folded, "folded, it is rounded differently"


def test_folding_cost(monkeypatch):
    monkeypatch.undo()
    block = fused(normalised())
    assert not block[0].should_fold(images())
    assert block[0].should_fold(torch.empty(64, 3, 28, 28))


def test_chain_without_norm_is_always_a_block():
    assert fused(chain(conv(), nn.ReLU()))[0].should_fold(images())
