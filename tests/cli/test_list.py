import re
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from lightconv.cli import tables
from lightconv.cli.help import CONFIGURATIONS
from lightconv.cli.list import GROUPS, purpose

SHIPPED = sorted(CONFIGURATIONS.glob("*/**/*.yaml"))


@pytest.fixture
def listed(lightconv, capsys, monkeypatch):
    """Return the output of `lightconv list` in a terminal of a given width."""

    def ask(*arguments, width=200):
        monkeypatch.setattr(tables.console, "width", width)
        lightconv("list", *arguments)
        return capsys.readouterr().out

    return ask


def settings(printed):
    return re.findall(r"^  (\w+=[\w/]+)", printed, re.MULTILINE)


def write(file, text):
    file = Path(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def test_lists_every_file_with_its_purpose(listed):
    printed = listed(width=500)
    lines = [" ".join(line.split()) for line in printed.splitlines()]
    for path in SHIPPED:
        group, *names = path.relative_to(CONFIGURATIONS).with_suffix("").parts
        assert f"{group}={'/'.join(names)} {purpose(path)}" in lines
    assert len(settings(printed)) == len(SHIPPED)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: f"{path.parent.name}={path.stem}")
def test_every_file_states_its_purpose(path):
    assert len(purpose(path)) > 10
    assert "package" not in purpose(path)


def test_recipes_state_their_result(listed):
    printed = listed("what=experiment")
    assert settings(printed)
    assert "experiment=lenet_fashion_mnist" in printed
    assert "mean test accuracy 0.9176" in " ".join(printed.split())


def test_listed_settings_compose(listed, tmp_path):
    printed = settings(listed())
    assert {setting.split("=")[0] for setting in printed} == set(GROUPS)
    with initialize_config_dir(str(CONFIGURATIONS), version_base="1.3"):
        for setting in printed:
            assert compose("train", [setting, f"directory={tmp_path}", "hydra.run.dir=test"])


def test_narrow_terminal(listed):
    printed = listed(width=80)
    assert len(settings(printed)) == len(SHIPPED)
    assert max(map(len, printed.splitlines())) <= 80


def test_one_group_alone(listed):
    printed = settings(listed("what=data"))
    assert printed == ["data=cifar10", "data=digits", "data=fashion_mnist", "data=folder", "data=mnist"]
    assert list(Path().iterdir()) == []


def test_user_configs_hide_shipped_ones(listed):
    write("mine/data/own.yaml", "# @package _global_\n# images of [my] own,\n# all of them\nroot: data\n# no purpose\n")
    write("mine/data/deep/silent.yaml", "root: data\n")
    write("mine/data/digits.yaml", "# other digits\nroot: data\n")
    lines = [line.strip() for line in listed("what=data", "--config-dir", "mine").splitlines()]
    assert "data=own            images of [my] own, all of them" in lines
    assert "data=digits         other digits" in lines
    assert "data=deep/silent" in lines
    assert sum("data=digits" in line for line in lines) == 1


def test_later_search_path_hides_nothing(listed):
    write("other/data/digits.yaml", "# other digits\nroot: data\n")
    write("other/data/own.yaml", "# my own\nroot: data\n")
    printed = listed("what=data", f"hydra.searchpath=[file://{Path('other').resolve()}]")
    assert "data=own            my own" in printed
    assert "other digits" not in printed


def test_unknown_group(lightconv, mistake):
    assert "what=dat: choose one of all, experiment, model, data" in mistake(lightconv, "list", "what=dat")
