import subprocess
import sys
from pathlib import Path

import onnxruntime
import pytest
import torch
from torch import nn

import lightconv as lc
from lightconv.cli import export
from lightconv.data import Digits


def images():
    data = Digits()
    data.setup("test")
    return next(iter(data.test_dataloader()))[0]


def logits(images):
    """Logits of plain torch with the run's weights.pt."""
    model = lc.models.LeNet()
    model.load_state_dict(torch.load("runs/mine/weights.pt"))
    with torch.no_grad():
        return model(images)


@pytest.mark.filterwarnings("error")
def test_both_formats_equal_the_network(trained, capsys):
    trained("export", "run=runs/mine")
    printed = capsys.readouterr().out
    assert all(word in printed for word in ("model.pt2", "model.onnx", "MB", "e-0", "1 x 28 x 28", "0.3049"))
    session = onnxruntime.InferenceSession("runs/mine/model.onnx")
    program = torch.export.load("runs/mine/model.pt2")
    weights = Path("runs/mine/weights.pt").stat().st_size
    assert all(path.stat().st_size < 1.5 * weights for path in Path("runs/mine").glob("model.*"))
    assert not [node for node in program.graph.nodes if "lightconv" in str(node.target)]
    for batch in (images()[:size] for size in (1, 3, 200)):
        torch.testing.assert_close(program.module()(batch), logits(batch))
        (by_onnx,) = session.run(["logits"], {"images": batch.numpy()})
        torch.testing.assert_close(torch.from_numpy(by_onnx), logits(batch), rtol=1e-4, atol=1e-4)


def test_file_runs_without_lightconv(trained):
    with lc.use_backend("triton"):
        trained("export", "run=runs/mine", "formats=pt2")
    assert not Path("runs/mine/model.onnx").exists()
    code = (
        "import sys; sys.modules['lightconv'] = None; import torch; "
        "print(torch.export.load('runs/mine/model.pt2').module()(torch.zeros(5, 1, 28, 28)).shape)"
    )
    printed = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert "[5, 10]" in printed


def test_run_of_a_checkpoint_and_chosen_directory(trained):
    trained("export", "checkpoint=runs/mine/checkpoints/best.ckpt", "formats=[onnx]", "output=elsewhere/files")
    assert [path.name for path in Path("elsewhere/files").iterdir()] == ["model.onnx"]
    (ours,) = onnxruntime.InferenceSession("elsewhere/files/model.onnx").run(None, {"images": images().numpy()})
    torch.testing.assert_close(torch.from_numpy(ours), logits(images()), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["run=None is not a run"]),
        (["run=runs/other"], ["runs/other", "not a run"]),
        (["run=runs/mine", "checkpoint=middle"], ["checkpoint=middle", "best, last"]),
        (["run=runs/mine", "formats=[pt2,tflite]"], ["formats=tflite", "pt2, onnx"]),
        (["run=runs/mine", "data.root=elsewhere"], ["data.root=elsewhere", "has no root"]),
    ],
)
def test_mistakes(trained, mistake, arguments, words):
    message = mistake(trained, "export", *arguments)
    for word in words:
        assert word in message
    assert not list(Path().rglob("model.*"))


def test_missing_package(lightconv, mistake, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    message = mistake(lightconv, "export", "run=runs/none")
    assert "formats=onnx needs onnxscript: pip install 'lightconv[export]', or choose formats=pt2" in message


class Plain(nn.Module):
    """Layers of torch and of lightconv, some of which `fuse` combines."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            *(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2)),
            *(lc.nn.Conv2d(4, 4, 3), lc.nn.MaxPool2d(3, 2, 1), lc.nn.ConvBlock(4, 4, 1, activation="silu", pool=2)),
            *(nn.Flatten(), nn.LazyLinear(10)),
        )

    def forward(self, x):
        return self.layers(x)


@pytest.mark.parametrize("writer", [export.write_pt2, export.write_onnx])
@pytest.mark.parametrize("fuse", [False, True])
def test_every_kind_of_layer(tmp_path, writer, fuse):
    torch.manual_seed(0)
    model, batch = Plain().eval(), torch.randn(9, 1, 28, 28)
    expected = model(batch)
    if fuse:
        lc.fuse(model)
    path = tmp_path / "model"
    written = writer(export.export_program(model.train(), batch), path)
    torch.testing.assert_close(written(batch), expected)
    assert export.check_file(written, model, batch, path) < 1e-5
    for error in (0.01, float("nan")):
        path.touch()
        with pytest.raises(RuntimeError, match="does not compute what the network does"):
            export.check_file(lambda images, error=error: written(images) + error, model, batch, path)
        assert not path.exists()
