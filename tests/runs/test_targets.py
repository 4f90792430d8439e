"""What a stored run may build."""

import pickle
import sys
from pathlib import Path

import pytest
import yaml
from helpers.command_line import SMOKE, metrics
from omegaconf import OmegaConf

import lightconv as lc
from lightconv.cli.train import resume_command
from lightconv.runs.targets import check_targets

MINE = """
import lightconv as lc
import os, pickle, torch
from functools import partial

class Net(lc.models.LeNet):
    pass

build = partial(Net, width=1)
from rich.text import Text
load = pickle.load
wrapped = partial(os.system)
"""


@pytest.fixture
def mynet(tmp_path, monkeypatch):
    """Module of the user's own."""
    (tmp_path / "mynet.py").write_text(MINE)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("mynet", None)


@pytest.mark.parametrize(
    "target",
    [
        "lightconv.models.LeNet",
        "lightconv.models.lenet.LeNet",
        "lightconv.data.Mixing",
        "lightconv.runs.tensorboard_if_installed",
        "lightconv.tasks.Classification",
        "lightning.Trainer",
        "lightning.pytorch.Trainer",
        "lightning.pytorch.callbacks.LearningRateMonitor",
        "lightning.pytorch.loggers.CSVLogger",
        "torch.optim.RMSprop",
        "torch.optim.lr_scheduler.ReduceLROnPlateau",
        "torch.nn.Identity",
        "torchvision.models.resnet18",
        "torchvision.models.ResNet",
        "torchvision.transforms.v2.RandomErasing",
        "timm.create_model",
        "timm.models.resnet18",
    ],
)
def test_parts_of_runs(target):
    check_targets({"part": {"_target_": target}})


@pytest.mark.parametrize(
    "target",
    [
        "torch.load",
        "torch.serialization.load",
        "torch.hub.load",
        "torch.jit.load",
        "torch.package.PackageImporter",
        "torch.utils.cpp_extension.load",
        "torch.utils.model_zoo.load_url",
        "torch.utils.benchmark.Timer",
        "torch.ops.load_library",
        "torch.classes.load_library",
        "numpy.load",
        "numpy.lib.npyio.load",
        "joblib.load",
        "pickle.load",
        "pickle.loads",
        "_pickle.loads",
        "os.system",
        "posix.system",
        "subprocess.Popen",
        "builtins.eval",
        "builtins.getattr",
        "importlib.import_module",
        "runpy.run_path",
        "functools.partial",
        "operator.methodcaller",
        "yaml.unsafe_load",
        "hydra.utils.get_method",
        "hydra.utils.instantiate",
        "omegaconf.OmegaConf.load",
        "torch.optim.sys.modules",
        "torch.optim.optimizer.functools.partial",
        "torchvision.models.resnet.partial",
        "torch.nn.modules.module.torch.load",
        "lightconv.files.os.system",
        "lightconv.models.weights.torch.load",
        "lightconv.models.weights.pickle.loads",
        "timm.models._helpers.load_checkpoint",
    ],
)
def test_loaders_never(target):
    package = target.split(".")[0]
    for allow in ([], [target], [f"{package}.*"]):
        with pytest.raises(lc.InputError, match=r"part\._target_"):
            check_targets({"part": {"_target_": target}}, allow)


@pytest.mark.parametrize(
    "target",
    [
        "lightconv.cli.main",
        "lightconv.cli.installation.output",
        "lightconv.files.write_text",
        "lightconv.open_run",
        "lightconv.models.LeNet.load_state_dict",
        "lightconv.tasks.Classification.load_from_checkpoint",
        "lightning.Trainer.fit",
        "lightning.pytorch.cli.LightningCLI",
        "lightning.pytorch.utilities.rank_zero_only",
        "torch.optim.swa_utils.AveragedModel.__init__.__globals__",
        "torch.optim.optimizer.torch.nn.Linear.load_state_dict",
        "torchvision.io.read_file",
        "torchvision.datasets.FakeData",
        "no_such_package.Net",
        3,
    ],
)
def test_anything_else_needs_a_name(target):
    with pytest.raises(lc.InputError, match=r"part\._target_"):
        check_targets({"part": {"_target_": target}})


def test_any_depth():
    evil = {"_target_": "os.system", "command": "true"}
    for node in ({"a": [1, [{"b": evil}]]}, {"a": {"_target_": "torch.nn.Identity", "_args_": [evil]}}):
        with pytest.raises(lc.InputError, match=r"a.*_target_=os.system"):
            check_targets(node)


@pytest.mark.parametrize(
    "arguments",
    [
        {"model_name": "resnet18", "checkpoint_path": "evil.pth"},
        {"model_name": "hf-hub:evil/net"},
        {"_args_": ["hf-hub:evil/net"]},
        {"model_name": "resnet18", "pretrained_cfg": {"file": "evil.pth"}},
    ],
)
def test_networks_of_timm_load_no_file(arguments):
    check_targets({"model": {"_target_": "timm.create_model", "model_name": "resnet18"}})
    with pytest.raises(lc.InputError, match="loads no weights through timm"):
        check_targets({"model": {"_target_": "timm.create_model", **arguments}})


@pytest.mark.usefixtures("mynet")
def test_own_modules():
    for target in ("mynet.Net", "mynet.build"):
        with pytest.raises(lc.InputError, match=f"allow={target}"):
            check_targets({"model": {"_target_": target}})
        assert "mynet" not in sys.modules or target == "mynet.build"
        check_targets({"model": {"_target_": target}}, ["mynet.*"])
        check_targets({"model": {"_target_": target}}, [target])
    for target in ("mynet.os.system", "mynet.load", "mynet.torch.load", "mynet.wrapped"):
        with pytest.raises(lc.InputError, match="never built from a"):
            check_targets({"model": {"_target_": target}}, ["mynet.*"])
    # the class of another package, under a name of this one
    with pytest.raises(lc.InputError, match=r"allow=rich\.text\.Text"):
        check_targets({"model": {"_target_": "mynet.Text"}}, ["mynet.*"])
    check_targets({"model": {"_target_": "mynet.Text"}}, ["mynet.*", "rich.text.Text"])
    for pattern in ("*", "?ynet.*", ".*"):
        with pytest.raises(lc.InputError, match="begin with the name of a package"):
            check_targets({"model": {"_target_": "mynet.Net"}}, [pattern])


class Evil:
    def __reduce__(self):
        return Path.touch, (Path("owned").absolute(),)


@pytest.mark.usefixtures("mynet")
def test_own_network_through_the_command_line(lightconv, mistake):
    lightconv("train", *SMOKE, "scheduler=none", "model._target_=mynet.Net", "hydra.run.dir=run")
    for command in (["evaluate", "run=run"], ["train", "resume=run"], ["export", "run=run", "formats=pt2"]):
        assert "allow=mynet.Net" in mistake(lightconv, *command)
        lightconv(*command, "allow=mynet.Net")
    lightconv("train", "resume=run", "allow=[mynet.*]", "trainer.max_epochs=2")
    assert metrics("run")["epochs"] == 2
    with pytest.raises(lc.InputError, match=r"allow=mynet\.Net"):
        lc.open_run("run")
    assert type(lc.open_run("run", allow="mynet.Net").network).__name__ == "Net"


@pytest.mark.usefixtures("mynet")
def test_command_to_go_on_names_own_classes():
    config = OmegaConf.create({"model": {"_target_": "mynet.Net", "parts": [{"_target_": "torch.nn.ReLU"}]}})
    assert resume_command(config, Path("runs/a b")) == "lightconv train 'resume=\"runs/a b\"' 'allow=[mynet.Net]'"
    config.model._target_ = "lightconv.models.LeNet"
    assert resume_command(config, Path("runs/a")) == "lightconv train resume=runs/a"


def edit(path, change):
    content = yaml.safe_load(path.read_text())
    change(content)
    path.write_text(yaml.safe_dump(content))


def test_run_of_a_stranger(trained, mistake, monkeypatch):
    Path("evil.pkl").write_bytes(pickle.dumps(Evil()))
    load = {"_target_": "numpy.load", "file": "evil.pkl", "allow_pickle": True}

    def plant(content):
        content["task"]["class_weights"] = load
        content["allow"] = ["numpy.*"]

    edit(Path("runs/mine/config.yaml"), plant)
    for command in (["evaluate", "run=runs/mine"], ["train", "resume=runs/mine"], ["export", "run=runs/mine"]):
        for allow in ([], ["allow=numpy.load"]):
            assert "task.class_weights._target_=numpy.load" in mistake(trained, *command, *allow)
    with pytest.raises(lc.InputError, match=r"numpy\.load"):
        lc.open_run("runs/mine", allow="numpy.load")
    assert not Path("owned").exists()
    assert not Path("runs/mine/evaluations").exists()


def test_environment_of_the_reader(trained, mistake, monkeypatch):
    monkeypatch.setenv("SECRET", "mellon")
    path = Path("runs/mine/config.yaml")
    edit(path, lambda content: content["task"].update(views="${oc.env:SECRET}"))
    message = mistake(trained, "evaluate", "run=runs/mine")
    assert "task.views=${oc.env:SECRET}: a stored run holds values" in message
    # a text with the characters of a reference is a text, however often it is read
    edit(path, lambda content: content["task"].update(views=[r"\${oc.env:SECRET}"]))
    message = mistake(trained, "evaluate", "run=runs/mine")
    assert "mellon" not in message
    assert "views=${oc.env:SECRET}" in message
