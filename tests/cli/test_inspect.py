import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from omegaconf import OmegaConf

import lightconv.cli.inspect as verb
from lightconv.cli.help import CONFIGURATIONS
from lightconv.cli.inspect import difference, subjects
from lightconv.cli.inspect.report import print_listings
from lightconv.errors import InputError, InputWarning

SMALL = ("layers=null", "batch_size=2", "layer.channels=16", "layer.filters=16", "layer.image_size=8")
PACKAGE = Path(verb.__file__).parents[2]


@pytest.fixture(autouse=True)
def wide_terminal(monkeypatch):
    monkeypatch.setattr("lightconv.cli.tables.console.width", 200)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["arch=sm_75"], ["arch=sm_75", "sm_80", "gfx942"]),
        (["gpu=t4"], ["gpu=t4", "sm_75", "torch serves"]),
        (["gpu=voodoo"], ["gpu=voodoo", "a100", "h100"]),
        (["layers=lenet6"], ["lenet6", "torchvision.models"]),
        (["dtype=int8"], ["dtype=int8", "float16"]),
        (["batch_size=0"], ["batch_size=0"]),
        (["layers=null", "layer.groups=5"], ["groups"]),
        (["layers=null", "layer.activation=swish"], ["swish"]),
        (["diff=[one.json]"], ["two files"]),
        (["diff=[one.json,two.json]"], ["one.json"]),
        (["diff=no-such-revision"], ["git", "no-such-revision"]),
        (["diff=no-such-revision~1"], ["git", "no-such-revision~1"]),
        (["diff=no-such-revision^"], ["git", "no-such-revision^"]),
    ],
    ids=lambda value: " ".join(value) if "=" in value[0] else "",
)
def test_mistakes(lightconv, mistake, arguments, words):
    message = mistake(lightconv, "inspect", *arguments)
    for word in words:
        assert word in message
    assert list(Path().iterdir()) == []


def test_interpreting_process(lightconv, capsys):
    with pytest.raises(SystemExit, match="2"):
        lightconv("inspect", *SMALL)
    assert "TRITON_INTERPRET is set" in capsys.readouterr().err


def test_without_triton(lightconv, capsys, monkeypatch):
    monkeypatch.setattr(verb, "TRITON", False)
    with pytest.raises(SystemExit, match="2"):
        lightconv("inspect")
    assert "Triton is not installed" in capsys.readouterr().err


@pytest.mark.compile
def test_printed_tables(lightconv, capsys):
    lightconv("inspect", *SMALL, "layer.pool=2", "layer.activation=relu")
    printed = capsys.readouterr().out
    for word in ("implicit_gemm", "descriptors", "TMA", "kernels of layer on h100", "predicted, µs", "gain"):
        assert word in printed
    assert list(Path().iterdir()) == []


@pytest.mark.compile
def test_architecture_without_data_sheet(lightconv, capsys):
    lightconv("inspect", *SMALL, "arch=sm_86")
    printed = capsys.readouterr().out
    assert "kernels of layer on sm_86" in printed
    assert "predicted" not in printed


@pytest.mark.compile
def test_written_files_and_their_difference(lightconv, capsys):
    lightconv("inspect", *SMALL, "output=found/first")
    assert {p.name for p in Path("found").iterdir()} == {"first.json", "first.md", "first_h100_layer.png"}
    assert "# Predicted, not measured" in Path("found/first.md").read_text()
    found = json.loads(Path("found/first.json").read_text())
    lightconv("inspect", "diff=[found/first.json,found/first.json]")
    assert "no kernel changed" in capsys.readouterr().out

    found["kernels"][0] |= {"spilled": 64, "loads": "16", "divisions": 3}
    Path("worse.json").write_text(json.dumps(found))
    with pytest.raises(SystemExit, match="1"):
        lightconv("inspect", "diff=[found/first.json,worse.json]")
    printed = capsys.readouterr().out
    for figure in ("spilled", "loads", "divisions", "worse"):
        assert figure in printed
    lightconv("inspect", "diff=[worse.json,found/first.json]")
    assert "better" in capsys.readouterr().out


@pytest.fixture
def revision(monkeypatch, tmp_path):
    """Return a folder that stands for another revision's tree, and git's commands that check it out."""
    tree = tmp_path / "revision"
    tree.mkdir()
    commands = []

    def git(repository, command, action, *arguments):
        commands.append(f"{command} {action}")
        if action == "add":
            checkout = arguments[2]
            shutil.copytree(tree, checkout)

    monkeypatch.setattr(difference, "_git", git)
    return tree, commands


def settings(**changed):
    own = OmegaConf.load(CONFIGURATIONS / "inspect.yaml")
    for part in ("defaults", "hydra"):
        own.pop(part, None)
    return OmegaConf.merge(own, changed, {"diff": "HEAD"})


@pytest.mark.compile
def test_difference_to_revision(revision):
    """The other revision is inspected by its own code from its own checkout: here a copy of the working tree."""
    tree, commands = revision
    shutil.copytree(PACKAGE, tree / "lightconv")
    shutil.copytree(CONFIGURATIONS, tree / "conf")
    layer = {"channels": 16, "filters": 16, "image_size": 8}
    before, after = difference.read_both_sides(settings(layers=None, batch_size=2, layer=layer))
    assert before["kernels"]
    assert [k["kernel"] for k in before["kernels"]] == [k["kernel"] for k in after["kernels"]]
    assert commands == ["worktree add", "worktree remove"]


OTHER_LAYOUT = """
import json
from pathlib import Path
from types import SimpleNamespace

def inspect(config):
    assert config.diff is config.listing is None
    report = {"layer": config.layers, "batch_size": config.batch_size, "precision": config.precision}
    Path(config.output + ".json").write_text(json.dumps({"kernels": [report]}))
"""


def write_revision(tree, code):
    """Write a revision with verbs in single modules, one setting that is unknown today, and without ``dtype``."""
    cli = tree / "lightconv" / "cli"
    cli.mkdir(parents=True)
    (tree / "lightconv" / "__init__.py").touch()
    (cli / "__init__.py").touch()
    (cli / "inspect.py").write_text(code)
    (tree / "conf").mkdir()
    names = ("layers", "batch_size", "output", "diff", "listing", "published")
    own = dict.fromkeys(names) | {"precision": 16}
    OmegaConf.save(OmegaConf.create(own), tree / "conf" / "inspect.yaml")


def test_revision_with_other_layout_and_settings(revision):
    tree, commands = revision
    write_revision(tree, OTHER_LAYOUT)
    with pytest.warns(InputWarning, match="HEAD has no setting arch, dtype, channels_last, layer"):
        before = difference.inspect_revision("HEAD", settings(layers="lenet", batch_size=2))
    assert before["kernels"] == [{"layer": "lenet", "batch_size": 2, "precision": 16}]
    assert commands == ["worktree add", "worktree remove"]


def test_revision_without_inspect(revision):
    _, commands = revision
    with pytest.raises(InputError, match="revision HEAD has no `lightconv inspect`: name a later revision"):
        difference.read_both_sides(settings())
    assert commands == ["worktree add", "worktree remove"]


def test_revision_that_fails(revision):
    tree, commands = revision
    write_revision(tree, "def inspect(config):\n    raise KeyError('sm_90')")
    with pytest.raises(InputError, match="revision HEAD cannot inspect itself: KeyError: 'sm_90'; name a later"):
        difference.read_both_sides(settings())
    assert commands == ["worktree add", "worktree remove"]


@pytest.mark.compile
def test_listing_with_marked_loop(lightconv, capsys):
    lightconv("inspect", *SMALL, "listing=0.conv2d.implicit")
    lines = capsys.readouterr().out.splitlines()
    assert any("HGMMA" in line and line.startswith("|") for line in lines)
    assert any("EXIT" in line and line.startswith(" ") for line in lines)
    with pytest.raises(SystemExit, match="2"):
        lightconv("inspect", *SMALL, "listing=nothing-like-it")
    assert "conv2d_weight_gradient" in capsys.readouterr().err


def test_listings_of_every_architecture(capsys, monkeypatch):
    monkeypatch.setattr("lightconv.cli.inspect.report.mark_main_loop", str)
    report = SimpleNamespace(layer="0", operator="conv2d", kernel="implicit")
    code = SimpleNamespace(machine_code="")
    inspected = []
    for network in ("layer", "vgg16"):
        for architecture, gpu in (("sm_80", "a100"), ("sm_90", "h100"), ("sm_90", "h200")):
            subject = subjects.Subject(network, architecture, gpu)
            inspected.append(subjects.Inspected(subject, SimpleNamespace(kernels=[report], codes=[code])))
    print_listings(inspected, "conv2d")
    heads = [line.partition(":")[0] for line in capsys.readouterr().out.splitlines() if "marks" in line]
    names = ("0.conv2d.implicit", "vgg16.0.conv2d.implicit")
    assert heads == [f"{name}, {architecture}" for name in names for architecture in ("sm_80", "sm_90")]


@pytest.mark.compile
def test_published_times(lightconv, capsys, monkeypatch):
    monkeypatch.setattr(verb.report.published, "MEASUREMENTS", verb.report.published.MEASUREMENTS[:1])
    lightconv("inspect", "published=true")
    printed = capsys.readouterr().out
    assert "predicted against published" in printed
    assert "github.com" in printed
    assert "median size of the error" in printed
