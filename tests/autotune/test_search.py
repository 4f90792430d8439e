"""The search for the fastest choices, with interpreted kernels and a clock that computes a time from the choices."""

import math

import pytest
import torch
from helpers.small_layers import layer
from torch import nn

import lightconv as lc
from lightconv.analysis.layers import group_equal_layers
from lightconv.autotune import search
from lightconv.kernels import autotune
from lightconv.kernels.window import Window
from lightconv.operators import autotune_file, backend

CPU = torch.device("cpu")


@pytest.fixture
def everywhere(monkeypatch):
    """Let backend "auto" consider kernels on a CPU, where they are interpreted."""
    monkeypatch.setattr(backend, "wants_kernels", lambda device: backend._backend != "reference")


@pytest.fixture
def file(tmp_path):
    return tmp_path / "tuned" / "gpu.json"


def clock_of(cost):
    """A clock that runs a step and adds the costs of its choices to 10 milliseconds."""

    def clock(step):
        with autotune.record() as questions:
            step()
        return 10.0 + sum(cost(question) for question in questions)

    return clock


def kernels_are_fast(question):
    return -5.0 if question.answer else 0.0


def tune(module, shape, file, cost, **options):
    tuned = layer(module, *shape, dtype=torch.float32, **options)
    return list(search.tune_layer(tuned, CPU, file, 1, clock_of(cost)))


def test_faster_side_is_stored(everywhere, file):
    results = tune(nn.MaxPool2d(2), (2, 4, 6, 6), file, kernels_are_fast)
    assert [(r.step, r.rule, r.measured) for r in results] == [("forward", 10.0, 5.0), ("forward+backward", 10.0, 5.0)]
    assert results[0].changes == ("max_pool2d: lightconv (rule: torch)",)
    answers = autotune_file.read(file)
    assert len(answers) == 2  # with gradients and without
    with autotune.override(answers), torch.no_grad():
        image = torch.ones(2, 4, 6, 6).contiguous(memory_format=torch.channels_last)
        window = Window(stride=(2, 2), padding=(0, 0), dilation=(1, 1))
        assert lc.operators.max_pool2d.dispatch(image, (2, 2), window, False, False).use_kernel


@pytest.mark.parametrize("gain", [0.0, 0.1])
def test_noise_changes_nothing(everywhere, file, gain):
    for result in tune(nn.MaxPool2d(2), (2, 4, 6, 6), file, lambda question: -gain if question.answer else 0.0):
        assert result.changes == ()
        assert result.rule == result.measured


def test_tiles_of_faster_kernels(everywhere, file):
    def cost(question):
        if isinstance(question.answer, bool):
            return -4.0 if question.answer else 0.0
        return -1.0 if question.answer.tile.columns == 16 else 0.0

    forward, training = tune(nn.Conv2d(16, 32, 3, bias=False), (2, 16, 6, 6), file, cost)
    words = "\n".join(training.changes)
    assert "conv2d: lightconv (rule: torch)" in words
    answers = autotune_file.read(file)
    parts = {key[:2] for key in answers if key[0] == "implicit GEMM"}
    assert parts == {("implicit GEMM", part) for part in ("forward", "input gradient", "weight gradient")}
    tiles = {key[1]: answer for key, answer in answers.items() if key[:2] == ("implicit GEMM", "forward")}
    assert tiles["forward"][0][:2] == (64, 16)
    assert forward.measured == 10.0 - 4.0 - 1.0


def test_first_layer_has_no_input_gradient(everywhere, file):
    def cost(question):
        return -float(question.answer is True)

    tune(nn.Conv2d(16, 32, 3), (1, 16, 6, 6), file, cost, needs_gradient=False)
    assert any(key[1] == "weight gradient" for key in autotune_file.read(file))
    assert not any(key[1] == "input gradient" for key in autotune_file.read(file))


def test_block_against_its_best_parts(everywhere, file):
    gains = {"conv_block": 2.0, "max_pool2d": 3.0}

    def cost(question):
        return -gains.get(question.key[0], 0.0) if question.answer is True else 0.0

    for result in tune(lc.nn.ConvBlock(3, 8, 3, pool=2), (1, 3, 6, 6), file, cost):
        assert "conv_block: torch (rule: lightconv)" in result.changes
        assert "max_pool2d: lightconv (rule: torch)" in result.changes


def test_stored_answers_are_not_measured_again(everywhere, file):
    first = tune(nn.MaxPool2d(2), (2, 4, 6, 6), file, kernels_are_fast)
    written = file.stat().st_mtime_ns
    timed = []

    def cost(question):
        timed.append(question)
        return kernels_are_fast(question)

    again = tune(nn.MaxPool2d(2), (2, 4, 6, 6), file, cost)
    assert again == first
    assert file.stat().st_mtime_ns == written
    assert len(timed) == 2 * 2  # two passes, each with the rule's choice and the measured one


def test_wrong_kernel_is_skipped(everywhere, file, monkeypatch):
    right = lc.operators.max_pool2d.max_pooling.forward

    def wrong(outputs, *args, **options):
        right(outputs, *args, **options)
        outputs[0].add_(1)

    monkeypatch.setattr(lc.operators.max_pool2d.max_pooling, "forward", wrong)
    with pytest.warns(UserWarning, match="does not work on this GPU: max_pool2d: lightconv"):
        results = tune(nn.MaxPool2d(2), (2, 4, 6, 6), file, kernels_are_fast)
    assert all(result.changes == () for result in results)


def too_much(*args, **options):
    raise RuntimeError("out of shared memory")


def test_failing_kernel_is_skipped(everywhere, file, monkeypatch):
    monkeypatch.setattr(lc.operators.max_pool2d.max_pooling, "forward", too_much)
    with pytest.warns(UserWarning, match="out of shared memory"):
        results = tune(nn.MaxPool2d(2), (2, 4, 6, 6), file, kernels_are_fast)
    assert all(result.changes == () for result in results)


def test_failing_rule_has_no_time(everywhere, file, monkeypatch):
    monkeypatch.setattr(lc.operators.conv_block.implicit_gemm, "forward", too_much)
    with pytest.warns(UserWarning, match="out of shared memory"):
        results = tune(lc.nn.ConvBlock(3, 8, 3, pool=2), (1, 3, 6, 6), file, lambda question: 0.0)
    for result in results:
        assert math.isnan(result.rule)
        assert result.measured == 10.0
        assert "conv_block: torch (rule: lightconv)" in result.changes


def test_stopped_search_keeps_answers(everywhere, file):
    pooling = layer(nn.MaxPool2d(2), 2, 4, 6, 6, dtype=torch.float32)
    results = search.tune_layer(pooling, CPU, file, 1, clock_of(kernels_are_fast))
    next(results)
    results.close()
    assert len(autotune_file.read(file)) == 1
    assert torch.backends.cudnn.benchmark is False


@pytest.mark.parametrize("training", [False, True])
def test_explain_uses_answers(everywhere, file, training):
    def cost(question):
        return -5.0 if question.answer is True else 0.0

    tune(nn.Conv2d(16, 32, 3, bias=False), (2, 16, 6, 6), file, cost)
    model = nn.Sequential(lc.nn.Conv2d(16, 32, 3, bias=False)).to(memory_format=torch.channels_last).train(training)
    images = torch.ones(2, 16, 6, 6, requires_grad=True).contiguous(memory_format=torch.channels_last)
    with autotune.override(autotune_file.read(file)):
        (row,) = lc.explain(model, images).rows
    assert "implicit GEMM" in row.served_by
    assert "measured" in row.reason
    (row,) = lc.explain(model, images).rows
    assert row.served_by == "torch"


def test_equal_layers_are_measured_once():
    twice = [layer(nn.Conv2d(4, 4, 3), 1, 4, 6, 6)._replace(name=name) for name in ("first", "second")]
    other = layer(nn.Conv2d(4, 4, 3), 1, 4, 8, 8)
    groups = group_equal_layers([*twice, other])
    assert [[layer.name for layer in group] for group in groups] == [["first", "second"], [other.name]]


def test_error_without_gpu():
    with pytest.raises(lc.errors.InputError, match=r"tune measures kernels on a GPU.*lightconv inspect"):
        lc.tune(lc.models.LeNet(), torch.ones(1, 1, 28, 28))


def test_former_name_of_measured():
    result = search.Result("conv1", "1x28x28, 6 of 5x5", "forward", rule=2.0, measured=1.0, changes=())
    with pytest.warns(DeprecationWarning, match=r"Result\.measured"):
        assert result.tuned == 1.0


@pytest.mark.gpu
def test_tune_on_gpu(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    images = torch.randn(32, 1, 28, 28, device="cuda")
    model = lc.models.LeNet().cuda()
    autotune.set_source(autotune_file.load)
    results = lc.tune(model, images, rounds=2)
    assert {result.step for result in results} == {"forward", "forward+backward"}
    assert all(result.measured < 1.1 * result.rule for result in results)
    with lc.use_backend("reference"):
        expected = model(images)
    torch.testing.assert_close(model(images), expected, rtol=1e-3, atol=1e-3)
    autotune.set_source(autotune_file.load)
