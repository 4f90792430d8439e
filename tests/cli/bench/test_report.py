import torch
from matplotlib.figure import Figure
from omegaconf import OmegaConf

from lightconv.cli.bench import report
from lightconv.cli.bench.report import Report, circumstances


def test_report_is_printed_and_written(tmp_path, capsys):
    tables = {"one title": [{"by": "us", "seconds": 0.5}], "another title": [{"by": "them", "images/s": 1234}]}
    result = Report(tables, note="what counts", figure=Figure())
    result.show()
    result.write(tmp_path / "folder" / "mine.md")
    printed = capsys.readouterr().out
    for word in ("one title", "another title", "0.5000", "1,234", "what counts"):
        assert word in printed
    assert (tmp_path / "folder" / "mine.md").read_text() == (
        "one title\n\n| by | seconds |\n| --- | --- |\n| us | 0.5000 |\n\n"
        "another title\n\n| by | images/s |\n| --- | --- |\n| them | 1,234 |\n\n"
        "what counts\n\n![the same as a picture](mine.png)\n"
    )
    assert (tmp_path / "folder" / "mine.png").stat().st_size > 0


def test_circumstances(monkeypatch):
    config = OmegaConf.create({"dtype": "bfloat16", "channels_last": False, "rounds": 1})
    monkeypatch.setattr(report, "_cpu_name", lambda: "Some CPU")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    assert circumstances(config, torch.device("cpu"), "torch") == (
        f"Some CPU, 3 threads, torch {torch.__version__}, bfloat16, contiguous, median of 1 round"
    )


def test_cpu_name():
    assert report._cpu_name()


def test_clock_waits_for_accelerator(monkeypatch):
    waited = []
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "synchronize", lambda: waited.append(True))
    assert report.clock() <= report.clock()
    assert waited == [True, True]
