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
def test_help_lists_the_verbs_in_words(capsys, arguments):
    main(arguments)
    printed = capsys.readouterr().out
    for verb, words in VERBS.items():
        assert verb in printed
        assert words in printed


def test_an_unknown_verb_lists_the_known_ones():
    with pytest.raises(SystemExit, match="unknown verb 'trian': choose one of train, list, evaluate"):
        main(["trian"])


def test_a_group_that_is_null_is_told_how_to_be_left_out(lightconv, told):
    assert "a group is left out by ~GROUP" in told(lightconv, "train", "scheduler=null")


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_a_function_and_a_config(lightconv, capsys, verb):
    lightconv(verb, "--cfg", "job", *(["run=somewhere"] if verb == "evaluate" else []))
    assert OmegaConf.create(capsys.readouterr().out)


def test_help_is_quick():
    code = "import sys; from lightconv.cli import main; main([]); assert 'lightning' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


@pytest.mark.parametrize("verb", VERBS)
def test_a_mistake_in_the_environment_is_told_without_a_traceback(verb):
    call = [sys.executable, "-c", f"from lightconv.cli import main; main([{verb!r}])"]
    done = subprocess.run(
        call, env=os.environ | {"LIGHTCONV_BACKEND": "fast"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    *others, told = done.stderr.splitlines()
    assert told.startswith("error: LIGHTCONV_BACKEND: unknown backend 'fast': choose one of auto")
    assert all("torch/utils/cpp_extension" in line for line in others)  # where nvcc is without a driver


def test_a_warning_about_input_is_one_line_and_others_stay_as_they_are():
    quiet()
    told = warnings.formatwarning(InputWarning("two files are left out"), InputWarning, "folder.py", 7)
    assert told == "warning: two files are left out\n"
    assert "folder.py:7" in warnings.formatwarning(UserWarning("other"), UserWarning, "folder.py", 7)
