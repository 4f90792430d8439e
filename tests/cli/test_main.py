import os
import subprocess
import sys
import warnings

import pytest
from omegaconf import OmegaConf

from lightconv.cli import VERBS, main
from lightconv.cli.application import quiet
from lightconv.errors import InputWarning


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"], ["help"]])
def test_help_lists_the_verbs(capsys, monkeypatch, arguments):
    monkeypatch.setenv("COLUMNS", "80")
    main(arguments)
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= 80
    for verb, words in VERBS.items():
        assert f"{verb} {words}" in " ".join(printed.split())


def test_unknown_verb():
    with pytest.raises(SystemExit, match="unknown verb 'trian': choose one of train, list, evaluate"):
        main(["trian"])


def test_group_that_is_null(lightconv, mistake):
    assert "a group is left out by ~GROUP" in mistake(lightconv, "train", "scheduler=null")


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_function_and_config(lightconv, capsys, verb):
    lightconv(verb, "--cfg", "job", *(["run=somewhere"] if verb == "evaluate" else []))
    assert OmegaConf.create(capsys.readouterr().out)


def test_help_loads_neither_torch_nor_hydra():
    heavy = "{'torch', 'lightning', 'hydra'}"
    code = f"import sys; from lightconv.cli import main; main([]); assert not {heavy} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


@pytest.mark.parametrize("verb", VERBS)
def test_mistake_in_the_environment(verb):
    call = [sys.executable, "-c", f"from lightconv.cli import main; main([{verb!r}])"]
    done = subprocess.run(
        call, env=os.environ | {"LIGHTCONV_BACKEND": "fast"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    *others, message = done.stderr.splitlines()
    assert message.startswith("error: LIGHTCONV_BACKEND: unknown backend 'fast': choose one of auto")
    assert all("torch/utils/cpp_extension" in line for line in others)  # where nvcc is without a driver


def test_input_warning_is_one_line():
    quiet()
    message = warnings.formatwarning(InputWarning("two files are left out"), InputWarning, "folder.py", 7)
    assert message == "warning: two files are left out\n"
    assert "folder.py:7" in warnings.formatwarning(UserWarning("other"), UserWarning, "folder.py", 7)
