"""The command line in tests: fixtures to run it in an empty directory, and readers of what it wrote."""

import json
from pathlib import Path

import pytest

SMOKE = ("debug=smoke", "trainer.enable_progress_bar=false")  # every part of a run in a second


@pytest.fixture
def lightconv(tmp_path, monkeypatch):
    """Run the command line in an empty directory, as a user would."""
    from lightconv.cli import main  # not earlier: tests/conftest.py first decides whether kernels are interpreted

    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> None:
        main(list(arguments))

    return run


@pytest.fixture
def trained(lightconv):
    """Train a run in runs/mine; return the command line."""
    lightconv("train", *SMOKE, "hydra.run.dir=runs/mine")
    return lightconv


@pytest.fixture
def mistake(capsys):
    """Make a mistake on the command line and return its error message."""

    def message_of(lightconv, *arguments: str) -> str:
        with pytest.raises(SystemExit, match="2"):
            lightconv(*arguments)
        message = capsys.readouterr().err
        assert "error: " in message
        assert "Traceback" not in message
        return message

    return message_of


def runs(directory: Path = Path()) -> list[Path]:
    """Return the runs below a directory, oldest first."""
    found = {path.parent for path in directory.glob("runs/**/config.yaml")}
    return sorted(found, key=lambda path: path.stat().st_mtime)


def metrics(run: Path | str) -> dict:
    return json.loads((Path(run) / "metrics.json").read_text())


def weights(run: Path | str) -> dict:
    import torch

    return torch.load(Path(run) / "weights.pt", weights_only=True)
