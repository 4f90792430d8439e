import contextlib

import torch

from lightconv.autotune.timing import cudnn_benchmark, medians


def test_contenders_take_turns():
    turns = []

    def contender(name, *seconds):
        remaining = list(seconds)

        def measure():
            turns.append(name)
            return remaining.pop(0)

        return measure

    contenders = {"ours": contender("ours", 3.0, 1.0, 2.0), "theirs": contender("theirs", 5.0, 9.0, 5.0)}
    assert medians(contenders, 3) == {"ours": 2.0, "theirs": 5.0}
    assert turns == ["ours", "theirs"] * 3


def test_cudnn_benchmark_ends_with_block():
    assert not torch.backends.cudnn.benchmark
    with contextlib.suppress(KeyError), cudnn_benchmark():
        assert torch.backends.cudnn.benchmark
        raise KeyError
    assert not torch.backends.cudnn.benchmark
