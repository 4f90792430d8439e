from pathlib import Path

import pytest
from helpers.command_line import metrics


def evaluations():
    return sorted(Path("runs/mine/evaluations").iterdir())


def test_test_split(trained, capsys):
    trained("evaluate", "run=runs/mine")
    (evaluation,) = evaluations()
    assert metrics(evaluation)["test/accuracy"] == pytest.approx(metrics(Path("runs/mine"))["test/accuracy"])
    assert (evaluation / "confusion_matrix.png").is_file()
    assert "test/accuracy" in capsys.readouterr().out


def test_validation_split_and_last_checkpoint(trained):
    trained("evaluate", "run=runs/mine", "split=validation", "checkpoint=last")
    (evaluation,) = evaluations()
    assert metrics(evaluation)["validation/accuracy"] == pytest.approx(metrics(Path("runs/mine"))["val/accuracy"])


@pytest.mark.parametrize("split", ["test", "validation"])
def test_averaging_over_views(trained, split, capsys):
    trained("evaluate", "run=runs/mine", f"split={split}")
    assert "averaged" not in capsys.readouterr().out
    trained("evaluate", "run=runs/mine", f"split={split}", "task.views=[flip]", "hydra.run.dir=runs/mine/evaluations/x")
    assert f"{split}, averaged with flip" in " ".join(capsys.readouterr().out.split())
    plain, averaged = (metrics(path)[f"{split}/loss"] for path in evaluations())
    assert plain != pytest.approx(averaged)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["run"]),
        (["run=runs/other"], ["runs/other", "not a run"]),
        (["run=runs/mine", "checkpoint=middle"], ["checkpoint=middle", "best, last"]),
        (["run=runs/mine", "split=train"], ["split=train", "test, validation"]),
        (["run=runs/mine", "data.root=elsewhere"], ["data.root=elsewhere", "has no root"]),
        (["run=runs/mine", "checkpoint=runs/mine/metrics.csv"], ["is not a checkpoint"]),
        (["run=runs/mine", "task.views=[turn]"], ["views=turn", "flip, vertical_flip"]),
    ],
)
def test_mistakes(trained, mistake, arguments, words):
    message = mistake(trained, "evaluate", *arguments)
    for word in words:
        assert word in message
    assert not Path("runs/other").exists()


def test_plain_weights(trained):
    trained("evaluate", "run=runs/mine", "checkpoint=runs/mine/weights.pt")
    (evaluation,) = evaluations()
    assert metrics(evaluation)["test/accuracy"] == pytest.approx(metrics(Path("runs/mine"))["test/accuracy"])
