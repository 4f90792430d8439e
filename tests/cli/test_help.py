import subprocess
import sys

import pytest

from lightconv.cli import VERBS, main
from lightconv.cli.help import CONFIGURATIONS, EXAMPLES, nearest_settings, read_settings

# recipes set what other files explain
FILES = [
    path for path in sorted(CONFIGURATIONS.rglob("*.yaml")) if path.parent.name not in {"debug", "experiment"}
    and "experiment" not in path.parts
]  # fmt: skip


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(CONFIGURATIONS)))
def test_every_setting_is_explained(path):
    for setting in read_settings(path):
        assert setting.comment or not setting.default, f"{setting.name} has no comment"


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_a_verb(verb, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    main([verb, "--help"])
    printed = capsys.readouterr().out
    assert printed.startswith(f"lightconv {verb}: ")
    assert len(EXAMPLES[verb]) == 2
    assert all(f"  {example}\n" in printed for example in EXAMPLES[verb])
    assert max(map(len, printed.splitlines())) <= 80
    for setting in read_settings(CONFIGURATIONS / f"{verb}.yaml"):
        assert not setting.default or f"  {setting.name}{setting.default}\n" in printed


def test_help_of_train(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    main(["train", "--help"])
    printed = capsys.readouterr().out
    assert "  seed=0\n      seed of the initial weights, the order of the images and their\n" in printed
    assert "  trainer.max_epochs=40\n" in printed
    assert "  backend=auto\n      auto, reference (torch's operators) or triton" in printed
    assert "  data.seed  (as seed)\n" in printed
    assert "\ndata=digits\n    or cifar10, fashion_mnist, folder, mnist" in printed


@pytest.mark.parametrize("example", [example for verb in ("train", "gallery", "bench") for example in EXAMPLES[verb]])
def test_examples_compose(example, capsys):
    main([*example.split()[1:], "--cfg", "job"])
    assert "_target_" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("epochs", "trainer.max_epochs"),
        ("max_epoch", "trainer.max_epochs"),
        ("lr", "optimizer.lr"),
        ("learning_rate", "optimizer.lr"),
        ("batch_size", "data.batch_size"),
        ("model.widht", "model.width"),
        ("data.rot", "data.root"),
        ("modle", "model"),
        ("weight_decay", "optimizer.weight_decay"),
        ("gpus", "trainer.accelerator"),
    ],
)
def test_nearest_settings(typed, meant):
    assert nearest_settings(typed)[0] == meant


def test_nothing_is_near():
    assert nearest_settings("zzz") == []


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["--help"], 0, "usage: lightconv VERB"),
        (["train", "--help"], 0, "usage: lightconv train"),
        (["trian"], 1, "unknown verb 'trian'"),
        (["train", "epochs=5"], 2, "there is no setting epochs. Did you mean trainer.max_epochs?"),
        (["train", "data.root=x"], 2, "It belongs to data=cifar10, data=fashion_mnist, data=folder, data=mnist."),
        (
            ["train", "model=lennet"],
            2,
            "model=lennet: there is no such choice. Choose one of efficientnet_lite0, lenet",
        ),
        (["list"], 0, "data=digits"),
        (["list", "what=data"], 0, "data=digits"),
    ],
)
def test_torch_is_not_loaded(arguments, status, words, tmp_path):
    code = (
        "import atexit, sys; from lightconv.cli import main\n"
        "atexit.register(lambda: print('heavy:', sorted({'torch', 'lightning'} & set(sys.modules))))\n"
        "main(sys.argv[1:])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.returncode == status
    assert words in done.stdout + done.stderr
    assert "heavy: []" in done.stdout
    assert (done.stdout + done.stderr).count("error: ") == (status != 0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arguments", [["list"], ["--help"], ["train", "--help"]])
def test_closed_standard_output(arguments):
    code = f"from lightconv.cli import main; main({arguments})"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.close()
    assert process.wait() == 1
    assert process.stderr.read() == "error: standard output was closed\n"


def test_names_in_a_list_are_whole(lightconv, capsys, monkeypatch):
    monkeypatch.setattr("lightconv.cli.tables.console.width", 80)
    lightconv("list")
    printed = capsys.readouterr().out
    assert "  experiment=fashion_mnist_500/last_block  " in printed
    assert "…" not in printed
