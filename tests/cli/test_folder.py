import json
import shutil
import warnings
from pathlib import Path

import pytest
from helpers.command_line import metrics
from helpers.photographs import BAD, photograph, write_odd_files, write_photographs
from omegaconf import OmegaConf

import lightconv as lc
from lightconv.errors import InputWarning

# one test checks the warning about files left out
pytestmark = pytest.mark.filterwarnings("ignore::lightconv.errors.InputWarning")

SETTINGS = (
    "data=folder", "data.root=photographs", "data.image_size=32", "data.batch_size=8",
    "model.channels=3", "model.image_size=32", "model.classes=2", "scheduler=none",
    "trainer.enable_progress_bar=false", "hydra.run.dir=runs/mine",
)  # fmt: skip
KINDS = 20


@pytest.fixture
def photographs(tmp_path):
    root = write_photographs(tmp_path / "photographs", 24)
    write_odd_files(root / "flower")
    return root


def test_bad_files_are_named_and_left_out(lightconv, photographs):
    assert len(BAD) >= KINDS
    with pytest.warns(InputWarning, match=f"photographs: {len(BAD)} of .* files give no image and are skipped"):
        lightconv("train", *SETTINGS, "trainer.max_epochs=12", "optimizer.lr=0.003")
    named = json.loads(Path("runs/mine/bad_files.json").read_text())
    assert set(named) == {f"flower/{name}" for name in BAD}
    assert metrics(Path("runs/mine"))["test/accuracy"] > 0.8
    assert metrics(Path("runs/mine"))["classes"].keys() == {"flower", "temple"}
    assert OmegaConf.load("runs/mine/config.yaml").data.classes == ["flower", "temple"]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ((), {"classes": 2, "channels": 3, "image_size": 64}),
        (("data.image_size=32",), {"classes": 2, "channels": 3, "image_size": 32}),
        (
            ("model=pretrained", "model.backbone=timm/test_efficientnet", "model.weights=none"),
            {"classes": 2, "channels": 3, "image_size": None},
        ),
    ],
)
def test_network_of_the_folders_classes_and_sizes(lightconv, tmp_path, settings, expected):
    write_photographs(tmp_path / "images", 8)
    lightconv(
        "train", "data=folder", "data.root=images", *settings, "trainer.max_epochs=1",
        "trainer.enable_progress_bar=false", "hydra.run.dir=runs/mine",
    )  # fmt: skip
    config = OmegaConf.load("runs/mine/config.yaml")
    assert {name: config.model[name] for name in expected} == expected
    assert config.task.classes == 2
    lightconv("evaluate", "run=runs/mine")


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("model.channels=1", "LeNet cannot take ImageFolder's images of 3 x 64 x 64"),
        ("model.image_size=32", "Set model.channels and model.image_size to the images' own"),
        ("model.classes=3", "set model.classes=2"),
        ("model._target_=lightconv.models.LeNett", "LeNett"),
    ],
)
def test_network_that_contradicts_the_folder(lightconv, mistake, tmp_path, setting, words):
    write_photographs(tmp_path / "images", 8)
    message = mistake(lightconv, "train", "data=folder", "data.root=images", setting, "hydra.run.dir=runs/mine")
    assert words in message
    assert not Path("runs/mine/config.yaml").exists()


def test_run_keeps_its_classes(lightconv, mistake, photographs):
    lightconv("train", *SETTINGS, "trainer.max_epochs=2")
    shutil.rmtree(photographs / "flower")  # what is left has to keep the second output
    lightconv("evaluate", "run=runs/mine", "+data.test=1")
    (evaluation,) = Path("runs/mine/evaluations").iterdir()
    assert (evaluation / "confusion_matrix.png").is_file()
    (photographs / "animal").mkdir()
    message = mistake(lightconv, "evaluate", "run=runs/mine")
    assert "classes unknown to the network: animal; it knows flower, temple" in message
    assert "animal" in mistake(lightconv, "train", "resume=runs/mine", "trainer.max_epochs=3")


def test_warnings_about_a_folder_come_once(lightconv, tmp_path):
    for part in ("train", "test"):
        write_photographs(tmp_path / "photographs" / part, 8)
    (tmp_path / "photographs/notes").mkdir()
    for arguments in (
        ("train", *SETTINGS, "trainer.max_epochs=1"),
        ("evaluate", "run=runs/mine", "data.root=photographs/train", "+data.test=1"),
    ):
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always", InputWarning)
            lightconv(*arguments)
        texts = [str(warning.message) for warning in told if issubclass(warning.category, InputWarning)]
        assert len(texts) == len(set(texts))
        assert any("photographs/notes lies beside" in text for text in texts) == (arguments[0] == "train")


def test_evaluation_on_training_images(lightconv, tmp_path):
    root = write_photographs(tmp_path / "photographs", 8)
    lightconv("train", *SETTINGS, "trainer.max_epochs=1")
    with pytest.warns(InputWarning, match="^12 test images are training images, so that test figures are too good"):
        lightconv("evaluate", "run=runs/mine", "+data.test=1")
    shutil.copytree(root, tmp_path / "copy")
    with pytest.warns(InputWarning, match="^12 test images are training images"):
        lightconv("evaluate", "run=runs/mine", "data.root=copy", "+data.test=1")
    for number, path in enumerate(sorted((tmp_path / "copy").rglob("*.jpg"))):
        photograph(100 + number).save(path)
    with warnings.catch_warnings():
        warnings.simplefilter("error", InputWarning)
        lightconv("evaluate", "run=runs/mine", "data.root=copy", "+data.test=1")
        lightconv("evaluate", "run=runs/mine", "data.batch_size=4")
        shutil.rmtree(root)
        lightconv("evaluate", "run=runs/mine", "data.root=copy", "+data.test=1")


def test_resume_from_images_on_disk(lightconv, photographs):
    disk = ("data.cache=disk", "data.cache_dir=cache")
    lightconv("train", *SETTINGS, *disk, "trainer.max_epochs=1")
    lightconv("train", "resume=runs/mine", "trainer.max_epochs=2")
    assert metrics(Path("runs/mine"))["epochs"] == 2
    assert len(list(Path("cache").glob("*.images"))) == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["data.root=null"], ["data.root=FOLDER"]),
        (["data.root=nowhere"], ["nowhere is no folder"]),
        (["data.on_error=raise"], ["photographs/flower/", "data.on_error=skip"]),
        (["model.classes=3"], ["ImageFolder has 2 classes", "model.classes=2"]),
        (["data.cache=ram"], ["data.cache=ram", "memory, disk or none"]),
        (["data.classes=[flower,true]"], ["data.classes: true is no name: put it in quotation marks"]),
        (["data.classes=[flower,1e3]"], ["data.classes: 1000.0 is no name"]),
        (["data.labels=labels.csv"], ["labels.csv cannot be read"]),
    ],
)
def test_mistakes(lightconv, mistake, photographs, arguments, words):
    message = mistake(lightconv, "train", *SETTINGS, *arguments)
    for word in words:
        assert word in message
    assert not Path("runs/mine/config.yaml").exists()


NAMES = (
    "${oc.env:SECRET}", "a\\${oc.env:SECRET}", "${", "???", "\\???", "null", "yes", "true", "1e3", "010", "2024-01-01",
    "12:30:45", "~", "$\\oops$", "a#b", '"q"', "it's", "[red]x", "{x}", "a, b", "x: y", "\x1b[31mred", "two\nlines",
    "caf\udce9", "\N{CJK UNIFIED IDEOGRAPH-732B}",
)  # fmt: skip


@pytest.mark.filterwarnings("ignore:Glyph")  # not every font has every letter
def test_any_class_name(lightconv, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SECRET", "a password")
    for name in NAMES:
        write_photographs(tmp_path / "two", 5)
        (tmp_path / "images").mkdir(exist_ok=True)
        shutil.move(tmp_path / "two/flower", tmp_path / "images" / name)
        shutil.rmtree(tmp_path / "two")
    settings = ("data=folder", "data.root=images", "data.image_size=16", "trainer.enable_progress_bar=false")
    lightconv("train", *settings, "trainer.max_epochs=1", "scheduler=none", "hydra.run.dir=runs/mine")
    lightconv("evaluate", "run=runs/mine")
    lightconv("train", "resume=runs/mine", "trainer.max_epochs=2")
    run = lc.open_run("runs/mine")
    assert run.classes == tuple(sorted(NAMES))
    assert list(run.figures["classes"]) == sorted(NAMES)
    lightconv("export", "run=runs/mine", "formats=pt2")
    printed = capsys.readouterr()
    assert "\x1b" not in printed.out + printed.err
    assert "a password" not in printed.out + printed.err
    for path in Path("runs/mine").rglob("*"):
        assert path.is_dir() or b"a password" not in path.read_bytes()


def test_doctor_reads_a_folder(lightconv, photographs, capsys):
    lightconv("doctor", "json=true")
    (row,) = [row for row in json.loads(capsys.readouterr().out)["data"] if row["name"] == "folder"]
    assert row["state"] == "ImageFolder has no folder: set data.root=FOLDER, or data.labels=FILE.csv"
    lightconv("doctor", "json=true", "data.folder.root=photographs")
    (row,) = [row for row in json.loads(capsys.readouterr().out)["data"] if row["name"] == "folder"]
    assert row["found"]
    assert "train" in row["state"]
