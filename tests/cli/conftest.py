import json
from pathlib import Path

import pytest


@pytest.fixture
def lightconv(tmp_path, monkeypatch):
    """Run the command line in an empty directory, as a user would."""
    from lightconv.cli import main  # not earlier: tests/conftest.py first says whether kernels are interpreted

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("lightconv.cli.sweep._last", None)

    def run(*arguments: str) -> None:
        main(list(arguments))

    return run


@pytest.fixture
def told(capsys):
    """Make a mistake on the command line and return what is said of it."""

    def mistake(lightconv, *arguments: str) -> str:
        with pytest.raises(SystemExit, match="2"):
            lightconv(*arguments)
        message = capsys.readouterr().err
        assert "error: " in message
        assert "Traceback" not in message
        return message

    return mistake


def runs(directory: Path = Path()) -> list[Path]:
    """The runs below a directory, oldest first."""
    return sorted({p.parent for p in directory.glob("runs/**/config.yaml")}, key=lambda p: p.stat().st_mtime)


def metrics(run: Path) -> dict:
    return json.loads((run / "metrics.json").read_text())
