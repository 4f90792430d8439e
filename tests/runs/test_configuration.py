import pytest
from omegaconf import OmegaConf

from lightconv.errors import InputError
from lightconv.runs import configuration
from lightconv.runs.configuration import load_config, relocate

CONFIG = {
    "data": {"_target_": "lightconv.data.Digits", "batch_size": 64},
    "optimizer": {"lr": 0.1},
    "scheduler": {"max_lr": "${optimizer.lr}"},
    "task": {"classes": 10},
    "find_lr": True,
}


@pytest.fixture
def config():
    config = OmegaConf.create(CONFIG)
    OmegaConf.set_struct(config, True)
    return config


@pytest.mark.parametrize(
    ("function", "arguments", "key", "expected"),
    [
        (configuration.with_learning_rate, [0.5], "scheduler.max_lr", 0.5),
        (configuration.with_learning_rate, [0.5], "find_lr", False),
        (configuration.with_classes, [("a", "b")], "data.classes", ["a", "b"]),
        (configuration.override_config, [["optimizer.lr=2", "task.classes=3"]], "task.classes", 3),
        (configuration.replace_settings, [{"batch_size": 2}, {}], "data.batch_size", 2),
        (configuration.replace_settings, [{"root": None}, {"views": ["flip"]}], "task.views", ["flip"]),
    ],
)
def test_changes_are_made_in_a_copy(config, function, arguments, key, expected):
    assert OmegaConf.select(function(config, *arguments), key) == expected
    assert OmegaConf.to_container(config) == CONFIG


def test_unknown_data_setting(config):
    with pytest.raises(InputError, match=r"data.root=there: the run's lightconv.data.Digits has no root"):
        configuration.replace_settings(config, {"root": "there"}, {})


def test_relocate():
    value = {"/old/a": ["/old"], "b": {"c": "/old/d", "e": 1}, "f": "not /old"}
    assert relocate(value, "/old", "/new") == {"/new/a": ["/new"], "b": {"c": "/new/d", "e": 1}, "f": "not /old"}


def test_paths_of_a_moved_run(tmp_path):
    (tmp_path / "config.yaml").write_text("directory: /old\nfolder: /old/checkpoints\nother: /else\n")
    config = load_config(tmp_path)
    assert config == {"directory": str(tmp_path), "folder": f"{tmp_path}/checkpoints", "other": "/else"}


def test_paths_beside_a_moved_run_stay():
    assert relocate(["/runs/a", "/runs/a/data", "/runs/ab", "/runs/a_images/x"], "/runs/a", "/new") == [
        "/new",
        "/new/data",
        "/runs/ab",
        "/runs/a_images/x",
    ]
