"""Settings and output of every `lightconv bench`."""

from pathlib import Path

import pytest


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["what=speed"], ["what=speed", "traffic, kernels"]),
        (["dtype=int8"], ["dtype=int8", "float32, float16, bfloat16"]),
        (["batch_size=0"], ["batch_size=0"]),
        (["batch_size=many"], ["batch_size=many"]),
        (["rounds=0"], ["rounds=0", "at least 1"]),
        (["rounds=true"], ["rounds=True"]),
        (["rounds=null"], ["rounds=None"]),
        (["images=0"], ["images=0", "at least 1"]),
        (["num_workers=-1"], ["num_workers=-1", "at least 0"]),
        (["output=table.txt"], ["output=table.txt", "FILE.md"]),
        (["output=3"], ["output=3", "FILE.md"]),
    ],
    ids=lambda value: " ".join(value) if "=" in value[0] else "",
)
def test_invalid_settings(lightconv, mistake, arguments, words):
    message = mistake(lightconv, "bench", *arguments)
    for word in words:
        assert word in message
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize("output", ["auto", "null", "none"])
def test_no_file_by_default(lightconv, capsys, output):
    lightconv("bench", f"output={output}")
    assert "launches" in capsys.readouterr().out
    assert list(Path().iterdir()) == []


def test_written_file(lightconv, capsys):
    lightconv("bench", "output=tables/mine.md", "batch_size=1000")
    written = Path("tables/mine.md").read_text()
    title, empty, head, *_ = written.splitlines()
    assert title in " ".join(capsys.readouterr().out.split())  # wrapped
    assert "forward and backward of 1000 images" in title
    assert empty == ""
    assert head.startswith("|  | launches | operators |")
