"""Run the commands and the Python code of a documentation page as they are typed, in a directory of their own."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import torch
from helpers.idx_files import write_idx_folder
from helpers.photographs import write_photographs
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import lightconv as lc

ROOT = Path(__file__).parents[2]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
INLINE_COMMAND = re.compile(r"`((?:[A-Z_]+=\S+ )?lightconv [a-z]+ [^`]*=[^`]*)`")
PLACEHOLDER = re.compile(r"\b[A-Z]{4,}\b")
NEEDS_GPU = ("lightconv tune", "lightconv bench what=kernels")

# Appended to a command to keep it short. The command itself is parsed as typed.
SHORT = """\
import sys
from lightconv.cli import main

arguments = sys.argv[1:]
typed = " ".join(arguments)
if arguments[0] == "train" and "resume=" not in typed and "--cfg" not in typed:
    arguments += ["trainer.max_epochs=1", "trainer.limit_test_batches=2"]
    arguments += [] if "find_lr" in typed else ["trainer.limit_train_batches=2", "trainer.limit_val_batches=2"]
    arguments += ["model.image_size=32"] if "fashion_mnist_500" in typed else []
if "what=features" in typed:
    arguments += ["model.image_size=32", "data.training_images=64", "rounds=1", "features.epochs=1"]
if "what=fused" in typed:
    arguments += ["fused.networks=[resnet18]", "fused.batch_size=1", "rounds=1"]
if "layers=[lenet" in typed:
    arguments += ["layers=lenet"]
main(arguments)
"""
SCRIPT = """\
import lightning as L
import torch
from torch import nn


class Module(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(144, 1))

    def training_step(self, batch, index):
        return self.net(batch).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


images = torch.utils.data.DataLoader(torch.randn(4, 1, 8, 8), batch_size=2)
L.Trainer(max_epochs=1, logger=False, enable_checkpointing=False).fit(Module(), images)
"""


class Block(NamedTuple):
    """A fenced block of a page."""

    language: str
    code: str


class Module(L.LightningModule):
    """A user's module, the ``model`` of the pages."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 4, 3), nn.MaxPool2d(2))
        self.head = nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4, 3))
        self.stem = nn.ModuleDict({"downsample": nn.Sequential(nn.Conv2d(1, 1, 1))})
        self.swapped = set()

    def forward(self, images):
        return self.head(self.body(self.stem.downsample(images)))

    def training_step(self, batch, index):
        self.swapped = {name for name, module in self.named_modules() if isinstance(module, lc.nn.Conv2d)}
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def page_path(name: str) -> Path:
    """The file of a page."""
    return ROOT / name


def page_names() -> list[str]:
    """README and every page of docs/."""
    return ["README.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md")))]


def page_blocks(name: str, language: str) -> list[str]:
    """The code of a page's fenced blocks in one language."""
    return [block.code for block in all_blocks(name) if block.language == language]


def all_blocks(name: str) -> list[Block]:
    """The fenced blocks of a page, in order."""
    return [Block(language, code) for language, code in FENCE.findall(page_path(name).read_text())]


def inline_commands(name: str) -> list[str]:
    """Commands with settings inside a page's text and tables, without those that hold a placeholder."""
    prose = FENCE.sub("", page_path(name).read_text())
    commands = [command.replace("\n", " ") for command in INLINE_COMMAND.findall(prose)]
    return [command for command in commands if not PLACEHOLDER.search(command.replace("OMP_NUM_THREADS", ""))]


class Session:
    """A shell and a Python prompt in one directory, with the files that the pages speak of.

    Attributes:
        directory: current directory of both.
        names: variables of the Python prompt.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        images = torch.randn(4, 1, 8, 8)
        data = DataLoader(TensorDataset(images, torch.randint(0, 3, (4,))))
        self.names: dict[str, Any] = {"model": Module(), "data": data, "images": images}
        write_photographs(directory / "photos", 24)
        write_photographs(directory / "more-photos", 4)
        rows = [f"{path.relative_to(directory)},{path.parent.name}" for path in directory.glob("photos/*/*.jpg")]
        (directory / "labels.csv").write_text("\n".join(["path,label", *rows]))
        write_idx_folder(directory / "fashion-mnist", train=5300)
        (directory / "their_script.py").write_text(SCRIPT)
        self._programs = directory / "programs"
        self._programs.mkdir()
        program = self._programs / "lightconv"
        program.write_text(f"#!{sys.executable}\n{SHORT}")
        program.chmod(0o755)

    def run_page(self, name: str) -> None:
        """Run every shell and Python block of a page, then the commands inside its text."""
        for block in all_blocks(name):
            if block.language == "sh":
                for line in block.code.splitlines():
                    self.run_command(line)
            elif block.language == "python":
                exec(block.code, self.names)
        for command in inline_commands(name):
            self.run_command(command)

    def run_command(self, line: str) -> str:
        """Run a line in bash and return what it prints; a command for a GPU must say so where there is none."""
        environment = os.environ | {
            "PATH": f"{self._programs}:{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "XDG_CACHE_HOME": str(self.directory / "cache"),
        }
        environment.pop("TRITON_INTERPRET", None)
        result = subprocess.run(
            ["bash", "-c", line],
            cwd=self.directory,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if line.startswith(NEEDS_GPU) and not torch.cuda.is_available():
            assert result.returncode == 2, line
            assert "GPU" in result.stderr, line
        else:
            assert result.returncode == 0, f"{line}\n{result.stdout}\n{result.stderr}"
        return result.stdout
