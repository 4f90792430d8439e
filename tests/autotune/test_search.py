import math

import pytest
import torch
from helpers.small_layers import layer
from torch import nn

import lightconv as lc
from lightconv.autotune import search
from lightconv.kernels import autotune
from lightconv.operators import autotune_file, backend

CPU = torch.device("cpu")


@pytest.fixture
def everywhere(monkeypatch):
    """Let "auto" ask for kernels on a CPU, too, where they are interpreted."""
    monkeypatch.setattr(backend, "wants_kernels", lambda device: backend._backend != "reference")


@pytest.fixture
def file(tmp_path):
    return tmp_path / "tuned" / "gpu.json"


def by_answers(cost):
    """A clock that runs a step and adds up what its choices cost."""

    def clock(step):
        with autotune.record() as asked:
            step()
        return 10.0 + sum(cost(a) for a in asked)

    return clock


def tune(module, shape, file, cost, **options):
    return list(
        search.tune_layer(layer(module, *shape, dtype=torch.float32, **options), CPU, file, 1, by_answers(cost))
    )


def test_the_faster_side_wins_and_is_kept(everywhere, file):
    results = tune(nn.MaxPool2d(2), (2, 4, 6, 6), file, lambda asked: -5.0 if asked.answer else 0.0)
    assert [(r.step, r.rule, r.tuned) for r in results] == [("forward", 10.0, 5.0), ("forward+backward", 10.0, 5.0)]
    assert results[0].changes == ("max_pool2d: lightconv (rule: torch)",)
    answers = autotune_file.read(file)
    assert len(answers) == 2  # with gradients and without
    with autotune.override(answers), torch.no_grad():
        image = torch.ones(2, 4, 6, 6).contiguous(memory_format=torch.channels_last)
        assert lc.operators.max_pool2d.dispatch(image, (2, 2), _halves(), False, False).kernel


def _halves():
    return lc.operators.geometry.Window((2, 2), (0, 0), (1, 1))


@pytest.mark.parametrize("gain", [0.0, 0.1])
def test_less_than_noise_changes_nothing(everywhere, file, gain):
    for result in tune(nn.MaxPool2d(2), (2, 4, 6, 6), file, lambda asked: -gain if asked.answer else 0.0):
        assert result.changes == ()
        assert result.rule == result.tuned


def test_tiles_are_chosen_where_kernels_win(everywhere, file):
    def cost(asked):
        if isinstance(asked.answer, bool):
            return -4.0 if asked.answer else 0.0
        return -1.0 if asked.answer.tile.columns == 16 else 0.0

    forward, training = tune(nn.Conv2d(16, 32, 3, bias=False), (2, 16, 6, 6), file, cost)
    words = "\n".join(training.changes)
    assert "conv2d: lightconv (rule: torch)" in words
    answers = autotune_file.read(file)
    parts = {key[:2] for key in answers if key[0] == "implicit GEMM"}
    assert parts == {("implicit GEMM", part) for part in ("forward", "input gradient", "weight gradient")}
    tiles = {key[1]: answer for key, answer in answers.items() if key[:2] == ("implicit GEMM", "forward")}
    assert tiles["forward"][0][:2] == (64, 16)
    assert forward.tuned == 10.0 - 4.0 - 1.0


def test_a_first_layers_images_get_no_gradient(everywhere, file):
    tune(nn.Conv2d(16, 32, 3), (1, 16, 6, 6), file, lambda a: -float(a.answer is True), needs_gradient=False)
    assert any(key[1] == "weight gradient" for key in autotune_file.read(file))
    assert not any(key[1] == "input gradient" for key in autotune_file.read(file))


def test_a_block_is_compared_with_its_parts_at_their_best(everywhere, file):
    def cost(asked):  # a fused kernel gains 2, a pooling of its own 3
        return {"conv_block": -2.0, "max_pool2d": -3.0}.get(asked.key[0], 0.0) if asked.answer is True else 0.0

    for result in tune(lc.nn.ConvBlock(3, 8, 3, pool=2), (1, 3, 6, 6), file, cost):
        assert "conv_block: torch (rule: lightconv)" in result.changes
        assert "max_pool2d: lightconv (rule: torch)" in result.changes


def test_what_is_known_is_not_measured_again(everywhere, file):
    cost = lambda asked: -5.0 if asked.answer else 0.0  # noqa: E731
    first = tune(nn.MaxPool2d(2), (2, 4, 6, 6), file, cost)
    written = file.stat().st_mtime_ns
    calls = []
    again = tune(nn.MaxPool2d(2), (2, 4, 6, 6), file, lambda asked: (calls.append(asked), cost(asked))[1])
    assert again == first
    assert file.stat().st_mtime_ns == written
    assert len(calls) == 2 * 2  # passes; the rule's and what is tuned


def test_a_wrong_kernel_is_left_out(everywhere, file, monkeypatch):
    right = lc.operators.max_pool2d.max_pooling.forward

    def wrong(outputs, *args):
        right(outputs, *args)
        outputs[0].add_(1)

    monkeypatch.setattr(lc.operators.max_pool2d.max_pooling, "forward", wrong)
    with pytest.warns(UserWarning, match="does not work on this GPU: max_pool2d: lightconv"):
        results = tune(nn.MaxPool2d(2), (2, 4, 6, 6), file, lambda asked: -5.0 if asked.answer else 0.0)
    assert all(r.changes == () for r in results)


def test_a_kernel_that_does_not_run_is_left_out(everywhere, file, monkeypatch):
    def too_much(*args):
        raise RuntimeError("out of shared memory")

    monkeypatch.setattr(lc.operators.max_pool2d.max_pooling, "forward", too_much)
    with pytest.warns(UserWarning, match="out of shared memory"):
        results = tune(nn.MaxPool2d(2), (2, 4, 6, 6), file, lambda asked: -5.0 if asked.answer else 0.0)
    assert all(r.changes == () for r in results)


def test_a_rule_that_does_not_run_has_no_time(everywhere, file, monkeypatch):
    def too_much(*args, **options):
        raise RuntimeError("out of shared memory")

    monkeypatch.setattr(lc.operators.conv_block.implicit_gemm, "forward", too_much)
    with pytest.warns(UserWarning, match="out of shared memory"):
        results = tune(lc.nn.ConvBlock(3, 8, 3, pool=2), (1, 3, 6, 6), file, lambda asked: 0.0)
    for result in results:
        assert math.isnan(result.rule)
        assert result.tuned == 10.0
        assert "conv_block: torch (rule: lightconv)" in result.changes


def test_what_was_found_stays_when_stopped(everywhere, file):
    found = layer(nn.MaxPool2d(2), 2, 4, 6, 6, dtype=torch.float32)
    results = search.tune_layer(found, CPU, file, 1, by_answers(lambda asked: -5.0 if asked.answer else 0.0))
    next(results)
    results.close()
    assert len(autotune_file.read(file)) == 1
    assert torch.backends.cudnn.benchmark is False


@pytest.mark.parametrize("training", [False, True])
def test_explain_knows_what_was_measured(everywhere, file, training):
    tune(nn.Conv2d(16, 32, 3, bias=False), (2, 16, 6, 6), file, lambda a: -5.0 if a.answer is True else 0.0)
    model = nn.Sequential(lc.nn.Conv2d(16, 32, 3, bias=False)).to(memory_format=torch.channels_last).train(training)
    images = torch.ones(2, 16, 6, 6, requires_grad=True).contiguous(memory_format=torch.channels_last)
    with autotune.override(autotune_file.read(file)):
        (row,) = lc.explain(model, images).rows
    assert "implicit GEMM" in row.served_by
    assert "measured" in row.reason
    (row,) = lc.explain(model, images).rows
    assert row.served_by == "torch"


def test_layers_called_alike_are_measured_once():
    twice = [layer(nn.Conv2d(4, 4, 3), 1, 4, 6, 6)._replace(name=name) for name in ("first", "second")]
    other = layer(nn.Conv2d(4, 4, 3), 1, 4, 8, 8)
    assert [found.name for found in search.distinct([*twice, other])] == ["first", other.name]


def test_without_a_gpu_it_explains_itself():
    with pytest.raises(lc.errors.InputError, match=r"tune measures kernels on a GPU.*lightconv inspect"):
        lc.tune(lc.models.LeNet(), torch.ones(1, 1, 28, 28))


@pytest.mark.gpu
def test_tunes_on_a_gpu(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    images = torch.randn(32, 1, 28, 28, device="cuda")
    model = lc.models.LeNet().cuda()
    autotune.set_source(autotune_file.load)
    results = lc.tune(model, images, rounds=2)
    assert {r.step for r in results} == {"forward", "forward+backward"}
    assert all(r.tuned < 1.1 * r.rule for r in results)
    with lc.use_backend("reference"):
        expected = model(images)
    torch.testing.assert_close(model(images), expected, rtol=1e-3, atol=1e-3)
    autotune.set_source(autotune_file.load)
