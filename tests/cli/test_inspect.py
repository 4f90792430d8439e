import json
from pathlib import Path

import pytest
from omegaconf import OmegaConf

import lightconv.cli.inspect as verb

SMALL = ("layers=null", "batch_size=2", "layer.channels=16", "layer.filters=16", "layer.image_size=8")


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
    ],
    ids=lambda value: " ".join(value) if "=" in value[0] else "",
)
def test_mistakes_are_told(lightconv, mistake, arguments, words):
    message = mistake(lightconv, "inspect", *arguments)
    for word in words:
        assert word in message
    assert list(Path().iterdir()) == []


def test_a_process_that_interprets_says_that_it_cannot_compile(lightconv, capsys):
    with pytest.raises(SystemExit, match="2"):
        lightconv("inspect", *SMALL)
    assert "TRITON_INTERPRET is set" in capsys.readouterr().err


def test_without_triton_it_explains_itself(lightconv, capsys, monkeypatch):
    monkeypatch.setattr(verb, "TRITON", False)
    with pytest.raises(SystemExit, match="2"):
        lightconv("inspect")
    assert "Triton is not installed" in capsys.readouterr().err


@pytest.mark.compile
def test_prints_kernels_and_predicted_times(lightconv, capsys):
    lightconv("inspect", *SMALL, "layer.pool=2", "layer.activation=relu")
    printed = capsys.readouterr().out
    for word in ("implicit_gemm", "descriptors", "TMA", "kernels of layer on h100", "predicted, µs", "gain"):
        assert word in printed
    assert list(Path().iterdir()) == []


@pytest.mark.compile
def test_an_architecture_without_a_data_sheet_is_compiled_and_not_predicted(lightconv, capsys):
    lightconv("inspect", *SMALL, "arch=sm_86")
    printed = capsys.readouterr().out
    assert "kernels of layer on sm_86" in printed
    assert "predicted" not in printed


@pytest.mark.compile
def test_writes_what_it_found_and_compares_it(lightconv, capsys):
    lightconv("inspect", *SMALL, "output=found/first")
    assert {p.name for p in Path("found").iterdir()} == {"first.json", "first.md", "first_h100_layer.png"}
    assert "# Predicted, not measured" in Path("found/first.md").read_text()
    found = json.loads(Path("found/first.json").read_text())
    lightconv("inspect", "diff=[found/first.json,found/first.json]")
    assert "every kernel is what it was" in capsys.readouterr().out

    found["kernels"][0] |= {"spilled": 64, "loads": "16", "divisions": 3}
    Path("worse.json").write_text(json.dumps(found))
    with pytest.raises(SystemExit, match="1"):
        lightconv("inspect", "diff=[found/first.json,worse.json]")
    printed = capsys.readouterr().out
    for figure in ("spilled", "loads", "divisions", "worse"):
        assert figure in printed
    lightconv("inspect", "diff=[worse.json,found/first.json]")
    assert "better" in capsys.readouterr().out


@pytest.mark.compile
def test_compares_with_another_revision(monkeypatch, tmp_path):
    """The other revision is inspected by its own code, from its own checkout: here the working tree itself."""
    checkouts = []

    def git(source, *arguments):
        checkouts.append(arguments)
        if arguments[1] == "add":
            Path(arguments[4]).parent.mkdir(exist_ok=True)
            Path(arguments[4]).symlink_to(tmp_path)

    for folder in ("lightconv", "conf"):
        (tmp_path / folder).symlink_to(Path(verb.__file__).parents[2] / folder)
    monkeypatch.setattr(verb, "_git", git)
    settings = OmegaConf.load(verb.Path(verb.__file__).parents[2] / "conf" / "inspect.yaml")
    changed = {"layers": None, "batch_size": 2, "layer": {"channels": 16, "filters": 16, "image_size": 8}}
    settings = OmegaConf.merge(settings, changed, {"diff": "HEAD"})
    before, after = verb._both_sides(settings)
    assert before["kernels"]
    assert [k["kernel"] for k in before["kernels"]] == [k["kernel"] for k in after["kernels"]]
    assert [arguments[1] for arguments in checkouts] == ["add", "remove"]


@pytest.mark.compile
def test_lists_machine_code_with_the_loop_marked(lightconv, capsys):
    lightconv("inspect", *SMALL, "listing=0.conv2d.implicit")
    lines = capsys.readouterr().out.splitlines()
    assert any("HGMMA" in line and line.startswith("|") for line in lines)
    assert any("EXIT" in line and line.startswith(" ") for line in lines)
    with pytest.raises(SystemExit, match="2"):
        lightconv("inspect", *SMALL, "listing=nothing-like-it")
    assert "conv2d_weight_gradient" in capsys.readouterr().err


@pytest.mark.compile
def test_shows_how_far_predictions_are_off(lightconv, capsys, monkeypatch):
    monkeypatch.setattr(verb.published, "MEASUREMENTS", verb.published.MEASUREMENTS[:1])
    lightconv("inspect", "published=true")
    printed = capsys.readouterr().out
    assert "predicted against published" in printed
    assert "github.com" in printed
    assert "in the median" in printed
