from pathlib import Path

import pytest
from helpers.command_line import metrics

SMOKE = ("debug=smoke", "trainer.enable_progress_bar=false", "hydra.run.dir=runs/mine")


@pytest.fixture
def trained(lightconv):
    lightconv("train", *SMOKE)
    return lightconv


def evaluations():
    return sorted(Path("runs/mine/evaluations").iterdir())


def test_repeats_the_test_figures_of_the_run(trained, capsys):
    trained("evaluate", "run=runs/mine")
    (evaluation,) = evaluations()
    assert metrics(evaluation)["test/accuracy"] == pytest.approx(metrics(Path("runs/mine"))["test/accuracy"])
    assert (evaluation / "confusion_matrix.png").is_file()
    assert "test/accuracy" in capsys.readouterr().out


def test_evaluates_the_validation_part_and_the_last_weights(trained):
    trained("evaluate", "run=runs/mine", "split=validation", "checkpoint=last")
    (evaluation,) = evaluations()
    assert metrics(evaluation)["validation/accuracy"] == pytest.approx(metrics(Path("runs/mine"))["val/accuracy"])


@pytest.mark.parametrize("split", ["test", "validation"])
def test_averages_over_views_for_who_asks(trained, split, capsys):
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
        (["run=runs/mine", "checkpoint=runs/mine/metrics.csv"], ["no checkpoint"]),
        (["run=runs/mine", "task.views=[turn]"], ["views=turn", "flip, vertical_flip"]),
    ],
)
def test_mistakes_are_told(trained, told, arguments, words):
    message = told(trained, "evaluate", *arguments)
    for word in words:
        assert word in message
    assert not Path("runs/other").exists()


def test_evaluates_plain_weights(trained):
    trained("evaluate", "run=runs/mine", "checkpoint=runs/mine/weights.pt")
    (evaluation,) = evaluations()
    assert metrics(evaluation)["test/accuracy"] == pytest.approx(metrics(Path("runs/mine"))["test/accuracy"])
