import abc
import copy
import pickle
import subprocess
import sys

import pytest
import torch
from helpers.support import assert_same
from torch import nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn.utils import parametrizations, parametrize, prune

import lightconv as lc
from lightconv.errors import InputError
from lightconv.models import LeNet


class Renamed(nn.Conv2d):
    """Only built differently."""

    def __init__(self, channels):
        super().__init__(channels, channels, 3, padding=1)


class Doubled(nn.Conv2d):
    def forward(self, input):
        return 2 * super().forward(input)


class Halved(nn.Conv2d):
    def _conv_forward(self, input, weight, bias):
        return super()._conv_forward(input, weight, bias) / 2


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), Renamed(4), nn.Dropout(0.5))


def classes(model):
    return [type(module) for module in model.modules()]


def ours(model):
    return [name for name, m in model.named_modules() if isinstance(m, lc.nn.Conv2d | lc.nn.MaxPool2d)]


@pytest.fixture
def images():
    return torch.randn(2, 3, 8, 8)


@pytest.fixture
def calls(monkeypatch):
    """The names of lightconv's functions, as they are called."""
    names = []

    def spy(name, function):
        return lambda *args, **kwargs: [names.append(name), function(*args, **kwargs)][1]

    for name in ("conv2d", "max_pool2d"):
        monkeypatch.setattr(lc.functional, name, spy(name, getattr(lc.functional, name)))
    return names


def test_swap_changes_only_classes(images, calls):
    model = network().eval()
    before, expected = {**vars(model[0])}, model(images)
    model[0].weight.requires_grad_(False)
    report = lc.swap(model)
    assert list(report.swapped) == ours(model) == ["0", "2", "3"]
    assert report.left == {}
    assert isinstance(model[3], Renamed)
    assert vars(model[0]).keys() == before.keys()
    assert all(vars(model[0])[name] is value for name, value in before.items())
    assert repr(model) == repr(network())
    assert calls == []
    torch.testing.assert_close(model(images), expected, rtol=0, atol=0)
    assert calls == ["conv2d", "max_pool2d", "conv2d"]


def test_swapped_layers_run_on_kernels(kernels, images):
    model = network().train(False)
    expected = model(images)
    lc.swap(model)
    with torch.profiler.profile() as profile:
        torch.testing.assert_close(model(images), expected)
    counts = {event.key: event.count for event in profile.key_averages()}
    assert (counts["lightconv::conv2d"], counts["lightconv::max_pool2d"]) == (2, 1)


def test_restore_gives_original_classes_back(images, calls):
    model, expected = network(), classes(network())
    lc.swap(model)
    lc.restore(model)
    lc.restore(model)
    model(images)
    assert classes(model) == expected
    assert calls == []


def test_swap_twice(images):
    model = network()
    lc.swap(model)
    after = classes(model)
    report = lc.swap(model)
    assert classes(model) == after
    assert report.swapped == {}
    assert set(report.left.values()) == {"already a lightconv layer"}


def test_restore_keeps_lightconv_modules():
    model = nn.Sequential(lc.nn.Conv2d(1, 2, 3), lc.nn.ConvBlock(2, 3, 3), nn.MaxPool2d(2))
    assert list(lc.swap(model).swapped) == ["2"]
    lc.restore(model)
    assert classes(model)[1:] == [lc.nn.Conv2d, lc.nn.ConvBlock, nn.MaxPool2d]


def test_state_dicts_load_both_ways():
    model, other = network(), network()
    lc.swap(model)
    assert list(model.state_dict()) == list(other.state_dict())
    other.load_state_dict(model.state_dict())
    model.load_state_dict(other.state_dict())


def test_hooks_tied_weights_and_shared_layers(images):
    shared = nn.Conv2d(3, 3, 3, padding=1)
    model = nn.Sequential(shared, nn.Conv2d(3, 3, 3, padding=1), shared)
    model[1].weight = shared.weight
    seen = []
    shared.register_forward_hook(lambda *_: seen.append("forward"))
    shared.weight.register_hook(lambda _: seen.append("gradient"))
    assert list(lc.swap(model).swapped) == ["0", "1"]
    model(images).sum().backward()
    assert model[0] is model[2] is shared
    assert model[1].weight is shared.weight
    assert seen == ["forward", "forward", "gradient"]


@pytest.mark.parametrize("layer", [Doubled(3, 4, 3), Halved(3, 4, 3)])
def test_overridden_methods(layer):
    report = lc.swap(nn.Sequential(layer, nn.Conv2d(4, 4, 3)))
    assert list(report.swapped) == ["1"]
    assert f"0: {type(layer).__name__} overrides " in str(report)
    assert "forward" in report.left["0"]
    assert not isinstance(layer, lc.nn.Conv2d)


def test_replaced_forward():
    model = network()
    model[0].forward = torch.relu
    assert lc.swap(model).left == {"0": "Conv2d overrides forward"}


def test_lazy_layer(images):
    model = nn.Sequential(nn.LazyConv2d(4, 3), nn.MaxPool2d(2))
    assert "lazy" in lc.swap(model).left["0"]
    model(images)
    assert list(lc.swap(model).swapped) == ["0"]


def test_qat_convolution():
    qat = pytest.importorskip("torch.ao.nn.qat")
    configuration = torch.ao.quantization.get_default_qat_qconfig()
    model = nn.Sequential(qat.Conv2d(3, 4, 3, qconfig=configuration), nn.MaxPool2d(2))
    assert list(lc.swap(model).left) == ["0"]


@pytest.mark.parametrize("parametrized", [parametrizations.weight_norm, parametrizations.spectral_norm])
def test_parametrized_layer(parametrized, images, calls):
    model = nn.Sequential(parametrized(nn.Conv2d(3, 4, 3))).eval()
    expected = model(images)
    lc.swap(model)
    twin = copy.deepcopy(model)
    for swapped in (model, twin):
        torch.testing.assert_close(swapped(images), expected, rtol=0, atol=0)
    assert calls == ["conv2d"] * 2
    lc.restore(model)
    assert ours(model) == []
    assert ours(twin) == ["0"]
    for changed, class_ in ((model, nn.Conv2d), (twin, lc.nn.Conv2d)):
        parametrize.remove_parametrizations(changed[0], "weight")
        assert isinstance(changed[0], class_)
        torch.testing.assert_close(changed(images), expected)
    lc.restore(twin)
    assert type(model[0]) is type(twin[0]) is nn.Conv2d


def test_layer_parametrized_while_swapped(images):
    model = network().eval()
    lc.swap(model)
    parametrizations.weight_norm(model[0])
    expected = model(images)
    lc.restore(model)
    assert ours(model) == []
    torch.testing.assert_close(copy.deepcopy(model)(images), expected, rtol=0, atol=0)
    parametrize.remove_parametrizations(model[0], "weight")
    assert type(model[0]) is nn.Conv2d


@pytest.mark.parametrize("first", ["swap", "shard"])
def test_sharded_layer(first, images, calls):
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        model = network().eval()
        expected = model(images)
        for change in (lc.swap, fully_shard) if first == "swap" else (fully_shard, lc.swap):
            change(model[0])
        torch.testing.assert_close(model(images), expected, rtol=0, atol=0)
        assert calls == ["conv2d"]
        lc.restore(model)
        assert ours(model) == []
        assert isinstance(model[0], FSDPModule)
        torch.testing.assert_close(model(images), expected, rtol=0, atol=0)
    finally:
        torch.distributed.destroy_process_group()


def test_pruned_layer(images):
    model = network().eval()
    prune.l1_unstructured(model[0], "weight", 0.5)
    expected = model(images)
    lc.swap(model)
    torch.testing.assert_close(model(images), expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("include", "exclude", "expected"),
    [
        ("body.*", (), ["body.0", "body.1"]),
        (["stem", nn.MaxPool2d], (), ["stem", "body.1"]),
        ("*", "*.1", ["stem", "body.0"]),
        (nn.Conv2d, ["st*"], ["body.0"]),
    ],
)
def test_include_and_exclude(include, exclude, expected):
    body = nn.Sequential(nn.Conv2d(4, 4, 3), nn.MaxPool2d(2))
    model = nn.Sequential()
    model.stem, model.body = nn.Conv2d(3, 4, 3), body
    report = lc.swap(model, include, exclude)
    assert ours(model) == list(report.swapped) == expected
    assert set(report.left.values()) <= {"matches exclude", "does not match include"}


@pytest.mark.parametrize("arguments", [{"include": ["0", "head.*"]}, {"exclude": "head.*"}])
def test_pattern_without_match(arguments):
    model = network()
    with pytest.raises(InputError, match=r"'head\.\*' matches no convolution or max-pooling; there are 0, 2, 3"):
        lc.swap(model, **arguments)
    assert ours(model) == []


@pytest.mark.filterwarnings("ignore:.*torch.jit")
@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: nn.Linear(1, 1), "Linear has no torch.nn.Conv2d"),
        (lambda: torch.jit.trace(nn.Conv2d(1, 1, 1), torch.ones(1, 1, 1, 1)), "within a ScriptModule"),
        (lambda: nn.Sequential(Doubled(3, 4, 3)), "0: Doubled overrides forward"),
    ],
)
def test_nothing_to_swap(model, message):
    with pytest.raises(InputError, match=f"nothing to swap.*(?s:.)*{message}"):
        lc.swap(model())


def test_model_of_lightconv_modules():
    assert lc.swap(LeNet()).swapped == {}


def test_deepcopy(images):
    model = network().eval()
    model[0].itself = [model[0]]
    lc.swap(model)
    twin = copy.deepcopy(model)
    assert ours(twin) == ours(model)
    assert twin[0].itself == [twin[0]]
    assert twin[0].weight is not model[0].weight
    torch.testing.assert_close(twin(images), model(images), rtol=0, atol=0)
    lc.restore(twin)
    assert ours(twin) == []
    assert ours(model) == ["0", "2", "3"]


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_pickle_holds_original_classes(protocol, images):
    model = network().eval()
    lc.swap(model)
    twin = pickle.loads(pickle.dumps(model, protocol))
    assert classes(twin) == classes(network())
    torch.testing.assert_close(twin(images), model(images), rtol=0, atol=0)


def test_torch_save_loads_without_lightconv(tmp_path):
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.MaxPool2d(2))
    lc.swap(model)
    torch.save(model, tmp_path / "model.pt")
    load = "import sys, torch; sys.modules['lightconv'] = None; print(torch.load(sys.argv[1], weights_only=False))"
    command = [sys.executable, "-c", load, tmp_path / "model.pt"]
    assert subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip() == repr(model)


def test_averaged_model(images):
    model = network().eval()
    lc.swap(model)
    average = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.5))
    average.update_parameters(model)
    assert len(ours(average)) == 3
    torch.testing.assert_close(average(images), model(images))


def test_torch_fx_leaves(images):
    model = network().eval()
    operations = [node.op for node in torch.fx.symbolic_trace(model).graph.nodes]
    lc.swap(model)
    traced = torch.fx.symbolic_trace(model)
    assert [node.op for node in traced.graph.nodes] == operations
    torch.testing.assert_close(traced(images), model(images), rtol=0, atol=0)


@pytest.mark.parametrize("in_place", [False, True])
def test_compiled_module(in_place, kernels, images):
    model = network().eval()
    expected = model(images)
    compiled = model if in_place else torch.compile(model, backend="eager")
    if in_place:
        model.compile(backend="eager")

    def kernels_called():
        compiled(images)
        with torch.profiler.profile() as profile:
            torch.testing.assert_close(compiled(images), expected)
        return sum(event.count for event in profile.key_averages() if event.key.startswith("lightconv::"))

    assert kernels_called() == 0
    lc.swap(compiled)
    assert kernels_called() == 3
    lc.restore(compiled)
    assert kernels_called() == 0


def test_jit_trace(kernels):
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.MaxPool2d(2)).eval()
    images = torch.randn(2, 2, 6, 6)
    expected = model(images)
    lc.swap(model)
    assert_same(torch.jit.trace(model, images)(images), expected)


def test_name_with_wildcard_characters():
    model = nn.ModuleDict({"conv[1]": nn.Conv2d(1, 1, 1)})
    assert list(lc.swap(model, include="conv[1]").swapped) == ["conv[1]"]


def test_tables_by_class_find_a_swapped_layer():
    model = network()
    lc.swap(model)
    table = {nn.Conv2d: "convolution", nn.MaxPool2d: "pooling", Renamed: "renamed"}
    assert [table.get(kind) for kind in classes(model[:4])[1:]] == ["convolution", None, "pooling", "renamed"]
    assert type(model[0]) == nn.Conv2d  # noqa: E721
    assert nn.Conv2d == type(model[0])  # noqa: E721
    assert type(model[3]) != nn.Conv2d  # noqa: E721
    # parametrize derives a class of its own, which no table finds on a plain layer either
    parametrizations.weight_norm(model[0])
    assert type(model[0]) not in table


def test_class_with_a_metaclass():
    class Abstract(nn.Conv2d, metaclass=abc.ABCMeta):
        pass

    model = nn.Sequential(Abstract(3, 4, 3))
    lc.swap(model)
    assert {Abstract: 1}[type(model[0])] == 1
    assert isinstance(model[0], lc.nn.Conv2d)
    lc.restore(model)
    assert type(model[0]) is Abstract


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("way", ["eager", "eager in training", "fx", "fx in training"])
def test_quantization_as_before(way, images):
    import torch.ao.quantization as ao
    from torch.ao.quantization import quantize_fx

    def quantize(change):
        model = network()[:3].train("training" in way)
        change(model)
        if way.startswith("fx"):
            prepare = quantize_fx.prepare_qat_fx if "training" in way else quantize_fx.prepare_fx
            prepared = prepare(model, ao.get_default_qconfig_mapping("x86"), images)
            prepared(images)
            return quantize_fx.convert_fx(prepared.eval())
        model = nn.Sequential(ao.QuantStub(), model, ao.DeQuantStub()).train("training" in way)
        model.qconfig = ao.get_default_qat_qconfig("x86") if "training" in way else ao.get_default_qconfig("x86")
        prepared = ao.prepare_qat(model) if "training" in way else ao.prepare(model)
        prepared(images)
        return ao.convert(prepared.eval())

    plain, swapped = quantize(lambda model: None), quantize(lc.swap)
    assert "torch.ao.nn" in str(classes(plain))
    assert str(classes(swapped)) == str(classes(plain))
    assert torch.equal(swapped(images), plain(images))


def test_layer_with_a_qconfig_is_left():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3))
    model[0].qconfig = torch.ao.quantization.default_qconfig
    assert lc.swap(model).left == {"0": "has a qconfig: torch.ao.quantization replaces it"}
    model[1].qconfig = None
    assert ours(model) == ["1"]
