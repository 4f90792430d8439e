import contextlib

import torch

from lightconv.autotune.timing import cudnn_at_its_best, medians


def test_contenders_take_turns():
    turns = []

    def contender(name, *seconds):
        remaining = list(seconds)
        return lambda: (turns.append(name), remaining.pop(0))[1]

    assert medians({"ours": contender("ours", 3.0, 1.0, 2.0), "theirs": contender("theirs", 5.0, 9.0, 5.0)}, 3) == {
        "ours": 2.0,
        "theirs": 5.0,
    }
    assert turns == ["ours", "theirs"] * 3


def test_cudnn_measures_only_inside_the_block():
    assert not torch.backends.cudnn.benchmark
    with contextlib.suppress(KeyError), cudnn_at_its_best():
        assert torch.backends.cudnn.benchmark
        raise KeyError
    assert not torch.backends.cudnn.benchmark
