from pathlib import Path

import pytest
import torch
from matplotlib.image import imread

from lightconv import visualize
from lightconv.data import Digits


@pytest.fixture
def drawn(lightconv, monkeypatch):
    """Run `lightconv gallery` and return the arguments of the figure: images, captions, title."""

    def run(*arguments):
        calls = []
        gallery = visualize.gallery

        def record(*values):
            calls.append(values)
            return gallery(*values)

        with monkeypatch.context() as patch:
            patch.setattr(visualize, "gallery", record)
            lightconv("gallery", *arguments)
        (call,) = calls
        return call

    return run


def test_writes_one_picture_and_prints_its_path(lightconv, capsys):
    lightconv("gallery", "rows=2", "columns=3")
    path = Path(capsys.readouterr().out.strip())
    assert path.name == "gallery.png"
    assert path.is_relative_to(Path.cwd() / "runs" / "gallery")
    assert imread(path).shape[1] > 500
    assert [p for p in Path.cwd().rglob("*") if p.is_file()] == [path]


def test_output_directory(lightconv):
    lightconv("gallery", "rows=1", "columns=1", "output=mine")
    assert Path("mine/gallery.png").is_file()


def test_originals_come_first_then_variations(drawn):
    images, captions, title = drawn("rows=3", "columns=5", "seed=1")
    assert images.shape == (3, 6, 1, 28, 28)
    assert title == "Digits, augmentation: its own"
    training, labels = Digits().split("train")
    for row, names in zip(images, captions, strict=True):
        index = (training / 255 - row[0]).flatten(1).abs().sum(1).argmin()
        torch.testing.assert_close(training[index] / 255, row[0], rtol=0, atol=1e-5)
        assert names == [str(labels[index].item())] * 6
        assert len({tuple(image.flatten().tolist()) for image in row}) == 6


def test_mixed_labels_are_shares(drawn):
    _, captions, title = drawn("rows=4", "columns=8", "augmentation=strong")
    assert title == "Digits, augmentation: strong"
    mixed = [caption for row in captions for caption in row if "%" in caption]
    assert len(mixed) > 8
    assert all("%" not in row[0] for row in captions)
    for caption in mixed:
        shares = [int(line.split("%")[0]) for line in caption.split("\n")]
        assert shares == sorted(shares, reverse=True)
        assert 98 <= sum(shares) <= 101


def test_seed_chooses_images_and_variations(drawn):
    arguments = ("rows=2", "columns=2", "augmentation=strong", "output=mine")
    first, again, other = (drawn(*arguments, seed)[0] for seed in ("seed=0", "seed=0", "seed=1"))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_without_augmentation_all_are_equal(drawn):
    images, _, title = drawn("rows=2", "columns=2", "augmentation=none")
    assert title == "Digits, augmentation: none"
    assert torch.equal(images, images[:, :1].expand_as(images))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["what=augmentation"], ["what"]),
        (["rows=0"], ["rows=0", "at least 1"]),
        (["columns=many"], ["columns=many"]),
        (["augmentation=medium"], ["augmentation=medium", "light", "standard", "strong"]),
        (["data=fashion_mnist", "data.root=nowhere"], ["nowhere", "data.download=true"]),
    ],
)
def test_mistakes(lightconv, mistake, arguments, words):
    message = mistake(lightconv, "gallery", *arguments)
    for word in words:
        assert word in message
