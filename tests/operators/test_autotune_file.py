import os
import subprocess
import sys
import time

import pytest
import torch

import lightconv as lc
from lightconv.kernels import autotune
from lightconv.operators import autotune_file

KEY = ("conv2d", ("torch.float32", (1, 2), (2, 1)), None, True)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "tuned" / "some-gpu.json"
    path.parent.mkdir()
    return path


def test_write_and_read(file):
    answers = {KEY: True, ("implicit GEMM", 3): ((64, 32, 32, 4, 3), "pointers", (0, 0))}
    autotune_file.write(file, answers)
    assert autotune_file.read(file) == answers
    assert list(file.parent.iterdir()) == [file]


def test_file_of_a_former_version(file):
    """Files are lists of questions and answers, one a line; lists stand for tuples."""
    question = '["conv2d", ["torch.float32", [1, 2], [2, 1]], null, true]'
    file.write_text('[\n{"question": ' + question + ', "answer": [[64, 32, 32, 4, 3], "pointers", [0, 0]]}\n]\n')
    assert autotune_file.read(file) == {KEY: ((64, 32, 32, 4, 3), "pointers", (0, 0))}


def test_missing_file(tmp_path, recwarn):
    assert autotune_file.read(tmp_path / "nowhere.json") == {}
    assert not recwarn.list


@pytest.mark.parametrize("text", ["", "[1, 2", "[1]", '{"a": 1}', '[{"question": [1]}]', "\0", "3"])
def test_damaged_file(file, text):
    file.write_text(text)
    with pytest.warns(UserWarning, match="damaged and ignored"):
        assert autotune_file.read(file) == {}


def test_file_per_gpu_and_version(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    file = autotune_file.path("Some GPU/80GB")
    assert file.parent == tmp_path / "lightconv" / "tuned"
    assert "Some-GPU-80GB" in file.name
    assert file != autotune_file.path("Other GPU")
    monkeypatch.setattr(torch, "__version__", "9.9.9")
    assert "torch-9.9.9" in autotune_file.path("Some GPU/80GB").name


def test_processes_take_turns(file):
    code = (
        "import sys; from pathlib import Path; from lightconv.operators import autotune_file\n"
        "file = Path(sys.argv[1])\n"
        "with autotune_file.locked(file): autotune_file.write(file, {**autotune_file.read(file), ('theirs',): True})"
    )
    with autotune_file.locked(file):
        other = subprocess.Popen([sys.executable, "-c", code, str(file)], stderr=subprocess.PIPE, text=True)
        line = other.stderr.readline()
        assert "waiting for another process" in line
        time.sleep(0.1)
        assert other.poll() is None
        autotune_file.write(file, {("ours",): False})
    assert other.wait(60) == 0, other.stderr.read()
    other.stderr.close()
    assert autotune_file.read(file) == {("ours",): False, ("theirs",): True}


def test_lock_ends_with_process(file):
    code = (
        "import os, sys; from pathlib import Path; from lightconv.operators import autotune_file\n"
        "autotune_file.locked(Path(sys.argv[1])).__enter__(); os._exit(1)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(file)], check=False, env=dict(os.environ)).returncode == 1
    with autotune_file.locked(file):
        pass


def test_answer_must_be_an_option():
    image = torch.ones(1)
    with autotune.override({("a",): 2, ("b",): 9}):
        assert autotune.select(image, ("a",), (1, 2)) == 2
        assert autotune.select(image, ("b",), (1, 2)) == 1
        assert autotune.select(image, ("c",), (1, 2)) == 1


@pytest.fixture
def tensor_on_gpu(monkeypatch):
    """A stand-in for a tensor on a GPU with a stored answer."""

    class OnGpu:
        is_cuda = True
        device = torch.device("cuda:0")

    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"GPU {index}")
    autotune.set_source(lambda gpu: {("a", gpu): 2})
    yield OnGpu()
    autotune.set_source(autotune_file.load)


def test_answers_of_the_tensors_gpu(tensor_on_gpu):
    assert autotune.is_enabled(tensor_on_gpu)
    assert autotune.select(tensor_on_gpu, ("a", "GPU 0"), (1, 2)) == 2
    assert autotune.select(tensor_on_gpu, ("a", "GPU 1"), (1, 2)) == 1
    assert not autotune.is_enabled(torch.ones(1))


def test_deterministic_algorithms_ignore_answers(tensor_on_gpu, monkeypatch):
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    assert not autotune.is_enabled(tensor_on_gpu)
    assert autotune.answers_for(tensor_on_gpu) == {}


def test_dispatch_follows_answers():
    call = lc.operators.backend.Call("conv2d", 8, 9)
    image, weight = torch.ones(1, 1, 8, 8), torch.ones(1, 1, 3, 3, requires_grad=True)

    def dispatch():
        with autotune.record() as questions:
            result = lc.operators.backend.dispatch(call, (image, weight, None), (1, 1))
        return result, questions

    with autotune.override({}):
        rule, (question,) = dispatch()
        with torch.no_grad():
            _, (without_gradients,) = dispatch()
    assert not rule.use_kernel
    assert question.options == (False, True)
    assert question.key != without_gradients.key
    with autotune.override({question.key: True}):
        measured, _ = dispatch()
        assert measured.use_kernel
        assert "measured" in measured.reason
        with lc.use_backend("reference"):
            assert not dispatch()[0].use_kernel
    assert dispatch() == (rule, [])


def test_answers_under_vmap(monkeypatch):
    monkeypatch.setattr(lc.operators.backend, "wants_kernels", lambda device: True)
    images, weight = torch.ones(3, 2, 4, 6, 6), torch.ones(2, 4, 3, 3)
    with autotune.override({}), autotune.record() as questions:
        actual = torch.func.vmap(lambda x: lc.functional.conv2d(x, weight))(images)
    assert questions[0].key[0] == "conv2d"
    torch.testing.assert_close(actual, torch.full((3, 2, 2, 4, 4), 36.0))
