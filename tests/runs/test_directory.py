import json
import subprocess
import sys
from contextlib import ExitStack

import pytest

from lightconv.errors import InputError
from lightconv.runs.directory import claimed_directory, write_json


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_non_numbers_become_null(tmp_path, number):
    write_json(tmp_path / "metrics.json", {"test/loss": number, "classes": {"a": [number, 0.5]}, "epochs": 3})

    def refuse(name):
        raise AssertionError(name)

    content = json.loads((tmp_path / "metrics.json").read_text(), parse_constant=refuse)
    assert content == {"test/loss": None, "classes": {"a": [None, 0.5]}, "epochs": 3}


def test_claimed_directory_is_refused(tmp_path):
    with claimed_directory(tmp_path / "run") as directory:
        (directory / "config.yaml").touch()
        with pytest.raises(InputError, match="in use: another process trains there"), claimed_directory(directory):
            raise AssertionError("claimed twice")
    with claimed_directory(directory):
        pass


def test_runs_of_the_same_second_get_directories_of_their_own(tmp_path):
    names = []
    with ExitStack() as stack:
        for _ in range(3):
            directory = stack.enter_context(claimed_directory(tmp_path / "run", numbered=True))
            (directory / "config.yaml").touch()
            names.append(directory.name)
    with claimed_directory(tmp_path / "run", numbered=True) as directory:
        names.append(directory.name)
    assert names == ["run", "run_2", "run_3", "run_4"]
    assert not (tmp_path / "run_4").exists()


def test_claim_of_a_dead_process_is_taken_over(tmp_path):
    code = (
        "import os, sys; from pathlib import Path; from lightconv.runs.directory import claimed_directory\n"
        "with claimed_directory(Path('run')) as directory:\n"
        "    (directory / 'config.yaml').touch(); print('claimed', flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "claimed\n"
    with pytest.raises(InputError, match="in use"), claimed_directory(tmp_path / "run"):
        raise AssertionError("claimed twice")
    process.kill()
    process.wait()
    with claimed_directory(tmp_path / "run"):
        pass


def test_refused_command_leaves_no_directory(tmp_path):
    with pytest.raises(RuntimeError), claimed_directory(tmp_path / "run"):
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "run").mkdir()
    with pytest.raises(RuntimeError), claimed_directory(tmp_path / "run"):
        raise RuntimeError
    assert list((tmp_path / "run").iterdir()) == []
    (tmp_path / "run/notes.txt").touch()
    with pytest.raises(RuntimeError), claimed_directory(tmp_path / "run"):
        raise RuntimeError
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["notes.txt"]


def test_directory_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(InputError, match=r"run cannot be written .*: choose another hydra.run.dir"),
        claimed_directory(tmp_path / "file/run"),
    ):
        raise AssertionError("claimed")
