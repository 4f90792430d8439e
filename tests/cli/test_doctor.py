import json
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers.idx_files import write_idx_folder
from torch._subclasses.fake_tensor import FakeTensorMode

from lightconv.cli import installation
from lightconv.cli.doctor import facts, problems
from lightconv.cli.doctor.report import Gpu
from lightconv.cli.help import CONFIGURATIONS
from lightconv.operators import backend

nvidia_driver = facts.nvidia_driver  # `bare_machine` replaces it
READY = {"installed": True, "interpreting": False, "C compiler": "/usr/bin/gcc", "Python.h": True}


@pytest.fixture(autouse=True)
def bare_machine(monkeypatch):
    """Simulate a machine without GPU, driver and interpreter."""
    monkeypatch.setattr("lightconv.cli.tables.console.width", 120)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(facts, "nvidia_driver", lambda: None)
    monkeypatch.setattr(backend, "INTERPRETED", False)
    monkeypatch.setattr(facts.launch, "INTERPRETED", False)


@pytest.fixture
def plug_in(monkeypatch):
    """Simulate GPUs of these capabilities."""

    def fake(device, *shape):
        with FakeTensorMode():
            return torch.empty(shape, device=device)

    def simulate(*capabilities):
        properties = [
            SimpleNamespace(name=f"GPU {major}.{minor}", major=major, minor=minor, total_memory=80 * 2**30)
            for major, minor in capabilities
        ]
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(properties))
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda d=None: properties[torch.device(d).index])
        monkeypatch.setattr(torch.version, "hip", None)
        monkeypatch.setattr("torch._subclasses.fake_tensor.init_gpu_context", lambda device: None)
        monkeypatch.setattr(facts, "stand_in", fake)
        monkeypatch.setattr(facts, "triton_needs", lambda: READY)

    return simulate


@pytest.fixture
def report(lightconv, capsys):
    """Run the command and return its JSON."""

    def ask(*arguments):
        lightconv("doctor", "json=true", *arguments)
        return json.loads(capsys.readouterr().out)

    return ask


def without(monkeypatch, package, instead=None):
    """Simulate that a package is missing, or has another version."""
    original = metadata.version

    def version(name):
        if name == package and instead is None:
            raise metadata.PackageNotFoundError(name)
        return instead if name == package else original(name)

    monkeypatch.setattr(installation, "version", version)


def test_machine_without_gpu(lightconv, capsys):
    lightconv("doctor")
    printed = capsys.readouterr().out
    for words in (
        torch.__version__.split("+")[0],
        "PyTorch's own operators serve everything",
        "Who serves LeNet's first layer on the CPU",
        "kernels need a GPU, this is a cpu tensor",
        "1,257 train, 180 validation, 360 test",
        "MNIST: no train-images-idx3-ubyte or train-images-idx3-ubyte.gz in data, data/raw, data/MNIST/raw",
        "No problems found",
    ):
        assert words in printed
    assert list(Path().iterdir()) == []


def test_json(report):
    found = report()
    assert found["installed"]["torch"] == metadata.version("torch")
    assert found["gpus"] == []
    assert found["problems"] == []
    assert {row["by"] for row in found["served"]} == {"torch"}
    assert found["settings"]["backend"] == "auto"
    assert found["triton"]["installed"] is True


def test_all_data_sets_of_conf(report):
    sets = {path.stem for path in (CONFIGURATIONS / "data").glob("*.yaml")}
    assert {row["name"] for row in report()["data"]} == sets


def test_gpu_of_capability_9(plug_in, report, monkeypatch):
    plug_in((9, 0))
    monkeypatch.setattr(
        facts.autotune_file, "load", lambda gpu: {("a",): True, ("b",): False} if gpu == "GPU 9.0" else {}
    )
    found = report()
    assert found["gpus"] == [
        {
            "device": "cuda:0",
            "name": "GPU 9.0",
            "capability": "9.0",
            "memory": 80.0,
            "architecture": "sm_90",
            "tiles": "sm_90",
            "refusal": None,
            "tuned": 2,
        }
    ]
    assert [row["by"] for row in found["served"]] == ["torch", "lightconv", "lightconv"]
    assert found["problems"] == []
    assert {row["by"] for row in report("backend=triton")["served"]} == {"lightconv"}
    assert {row["by"] for row in report("backend=reference")["served"]} == {"torch"}


def test_unsupported_gpus_are_explained_once(plug_in, lightconv, capsys):
    plug_in((7, 5), (7, 5), (12, 1))
    lightconv("doctor")
    printed = capsys.readouterr().out
    assert "sm_75   GPUs before Ampere (compute capability 8.0) have no kernel" in printed
    assert "has kernels, with the tiles of sm_120" in printed
    problems = printed[printed.index("Problems") :]
    assert problems.count("GPU 7.5: GPUs before Ampere") == problems.count("->") == 1
    assert printed.count("Who serves") == 2


def test_interpreter_serves_backend_triton_only(monkeypatch, report):
    monkeypatch.setattr(backend, "INTERPRETED", True)
    monkeypatch.setattr(facts.launch, "INTERPRETED", True)
    found = report()
    assert {row["by"] for row in found["served"]} == {"torch"}
    assert any("uses no kernels" in row["reason"] for row in found["served"])
    assert found["problems"] == []
    assert {row["by"] for row in report("backend=triton")["served"]} == {"lightconv"}


def test_process_without_triton(tmp_path):
    code = """
import sys, importlib.util
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *a: None if name == "triton" else find(name, *a)
from lightconv.cli import main
main(["doctor", "json=true"])
assert "lightconv.kernels.launch" not in sys.modules
"""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["installed"]["triton"] is None
    assert found["triton"]["installed"] is found["triton"]["interpreting"] is False
    assert {row["reason"] for row in found["served"]} == {"Triton is not installed"}
    (problem,) = (p for p in found["problems"] if "triton" in p["what"])
    assert "which is not installed" in problem["what"]
    assert problem["advice"].startswith("pip install 'triton>=")
    assert problem["fatal"] is False


def test_gpu_without_triton(plug_in, monkeypatch):
    plug_in((9, 0))
    monkeypatch.setattr(backend, "TRITON", False)
    gpu = facts.describe_gpu("cuda:0")
    assert (gpu.architecture, gpu.tiles, gpu.refusal) == (None, None, "Triton is not installed")
    assert problems.gpu_problems("580.1", [gpu], {**READY, "installed": False}) == []  # it is an unmet requirement


@pytest.mark.parametrize(
    ("package", "instead", "words"),
    [
        ("torchmetrics", "1.4.3", "lightconv needs torchmetrics>=1.5, 1.4.3 is installed"),
        ("torchmetrics", None, "lightconv needs torchmetrics>=1.5, which is not installed"),
        ("pillow", None, "torchvision needs pillow"),
    ],
)
def test_unmet_requirement_is_fatal(lightconv, monkeypatch, capsys, package, instead, words):
    without(monkeypatch, package, instead)
    with pytest.raises(SystemExit, match="1"):
        lightconv("doctor")
    printed = capsys.readouterr().out
    assert words in printed
    assert f"-> pip install '{package}" in printed
    assert "No problems found" not in printed


def test_old_triton_is_fatal(monkeypatch):
    monkeypatch.setattr("triton.__version__", "3.1.0")
    (problem,) = problems.unmet_requirements()
    assert "3.1.0 is installed" in problem.what
    assert problem.fatal


def test_development_versions_meet_requirements(monkeypatch):
    for found in ("99.0.dev20300101", "99.0+git123"):
        monkeypatch.setattr("triton.__version__", found)
        assert problems.unmet_requirements() == []


def test_unmet_requirements_of_extras(monkeypatch):
    without(monkeypatch, "tensorboard")
    (extra,) = (e for e in installation.extras() if e.name == "tensorboard")
    assert [name.split(">")[0] for name in extra.unmet] == ["tensorboard"]
    assert extra.command == "pip install 'lightconv[tensorboard]'"
    without(monkeypatch, "torchmetrics")  # lightconv's own requirement, and tensorboard as it is
    (again,) = (e for e in installation.extras() if e.name == "tensorboard")
    assert "torchmetrics" not in "".join(again.unmet)
    without(monkeypatch, "tensorboard", "99.0")
    (extra,) = (e for e in installation.extras() if e.name == "tensorboard")
    assert extra.unmet == []


def test_extra_is_printed_with_brackets(lightconv, monkeypatch, capsys):
    without(monkeypatch, "tensorboard")
    lightconv("doctor")
    assert "pip install 'lightconv[tensorboard]'" in capsys.readouterr().out


GPU = Gpu("cuda:0", "H100", "9.0", 79.1, "sm_90", "sm_90", None)


@pytest.mark.parametrize(
    ("cuda", "driver", "gpus", "triton", "words"),
    [
        (None, "580.1", [], {}, "built without CUDA"),
        ("13.0", "580.1", [], {}, "torch sees no GPU"),
        ("13.0", "580.1", [GPU], {"interpreting": True, "C compiler": None}, "interprets kernels"),
        ("13.0", "580.1", [GPU], {"C compiler": None}, "no C compiler"),
        ("13.0", "580.1", [GPU], {"Python.h": False}, "Python.h is missing"),
    ],
)
def test_gpu_problems_and_advice(monkeypatch, cuda, driver, gpus, triton, words):
    monkeypatch.setattr(torch.version, "cuda", cuda)
    (problem,) = problems.gpu_problems(driver, gpus, READY | triton)
    assert words in problem.what
    assert len(problem.advice) > 10
    assert "\n" not in problem.advice
    assert not problem.fatal


@pytest.mark.parametrize(
    ("cuda", "driver", "gpus", "triton"),
    [
        ("13.0", "580.1", [GPU], {}),
        ("13.0", None, [], {"interpreting": True}),
        ("13.0", None, [], {"C compiler": None, "Python.h": False}),
        (None, None, [], {}),
    ],
)
def test_no_gpu_problems(monkeypatch, cuda, driver, gpus, triton):
    monkeypatch.setattr(torch.version, "cuda", cuda)
    assert problems.gpu_problems(driver, gpus, READY | triton) == []


@pytest.mark.parametrize("gzipped", [False, True])
def test_data_in_given_folder(lightconv, tmp_path, capsys, gzipped):
    write_idx_folder(tmp_path / "my files" / "MNIST" / "raw", gzipped=gzipped)
    lightconv("doctor", "data_root=my files", "data.mnist.validation=50")
    printed = capsys.readouterr().out
    assert "150 train, 50 validation, 50 test, in my files" in printed
    assert "FashionMNIST: no train-images-idx3-ubyte" in printed
    assert "No problems found" in printed


def test_damaged_data(report, tmp_path):
    folder = write_idx_folder(tmp_path / "files")
    (folder / "t10k-labels-idx1-ubyte").write_bytes(b"x")
    (row,) = (r for r in report("data.mnist.root=files", "data.mnist.validation=50")["data"] if r["name"] == "mnist")
    assert row["found"] is False
    assert row["state"].startswith("files/t10k-labels-idx1-ubyte is damaged")


def test_unknown_backend(lightconv, capsys):
    with pytest.raises(SystemExit, match="2"):
        lightconv("doctor", "backend=cudnn")
    assert "unknown backend 'cudnn'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("printed", "version"),
    [("580.65.06\n580.65.06", "580.65.06"), (None, "535.104.05")],
)
def test_nvidia_driver(monkeypatch, tmp_path, printed, version):
    file = tmp_path / "version"
    file.write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19 01:15:15 UTC 2023\n")
    monkeypatch.setattr(facts, "_DRIVER", file)
    monkeypatch.setattr(facts, "output", lambda *command: printed)
    assert nvidia_driver() == version
    monkeypatch.setattr(facts, "output", lambda *command: None)
    monkeypatch.setattr(facts, "_DRIVER", tmp_path / "nothing")
    assert nvidia_driver() is None


def test_c_compiler_of_triton(monkeypatch):
    known = {"gcc": "/bin/gcc", "clang": "/bin/clang", "mycc": "/opt/mycc"}
    monkeypatch.setattr(facts.shutil, "which", known.get)
    monkeypatch.delenv("CC", raising=False)
    assert facts.triton_needs()["C compiler"] == "/bin/gcc"
    monkeypatch.setenv("CC", "mycc")
    assert facts.triton_needs()["C compiler"] == "/opt/mycc"
    monkeypatch.setenv("CC", "nothing")
    assert facts.triton_needs()["C compiler"] is None
    monkeypatch.delenv("CC")
    del known["gcc"]
    assert facts.triton_needs()["C compiler"] == "/bin/clang"


def test_conflicting_cudnn(monkeypatch):
    def version():
        raise RuntimeError("cuDNN version incompatibility\nmore")

    monkeypatch.setattr(torch.backends.cudnn, "version", version)
    assert facts.versions()["torch's cuDNN"] == "cuDNN version incompatibility"


def test_stand_in_has_one_element():
    tensor = facts.stand_in("cpu", 256, 1, 28, 28)
    assert tensor.shape == (256, 1, 28, 28)
    assert tensor.untyped_storage().nbytes() == 4


def test_revision_of_checkout(monkeypatch, tmp_path):
    monkeypatch.setattr(installation, "__file__", str(tmp_path / "lightconv" / "cli" / "installation.py"))
    monkeypatch.setattr(installation, "output", lambda *command: command[2])
    assert installation.revision() is None  # whatever repository is around it
    (tmp_path / ".git").mkdir()
    assert installation.revision() == str(tmp_path)


def test_output_of_commands():
    assert installation.output(sys.executable, "-c", "print(7)") == "7"
    assert installation.output(sys.executable, "-c", "print(7); exit(1)") is None
    assert installation.output("no-such-command") is None


@pytest.mark.parametrize(
    ("value", "points", "count"), [("1", (), 1), ("1", ("lightconv",), 0), ("0", (), 0), ("", (), 0)]
)
def test_missing_entry_point(monkeypatch, value, points, count):
    monkeypatch.setenv("LIGHTCONV", value)
    monkeypatch.setattr(problems, "entry_points", lambda group, name: points)
    assert len(problems.missing_entry_point()) == count
