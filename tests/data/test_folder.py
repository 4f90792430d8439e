import shutil
from collections import Counter

import numpy as np
import pytest
import torch
from helpers.photographs import BAD, ODD, write_odd_files, write_photographs
from PIL import Image

from lightconv.data import ImageFolder, stored
from lightconv.data.stored import StoredImages
from lightconv.errors import InputError, InputWarning
from lightconv.preprocessing import Preprocessing

pytestmark = pytest.mark.filterwarnings("ignore::lightconv.errors.InputWarning")


def write_colours(root, **counts):
    """Images of one colour each, by which they are known again: its red names the class, its green the image."""
    for label, (name, count) in enumerate(counts.items()):
        (root / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            Image.new("RGB", (3, 2), (label, number, 0)).save(root / name / f"{number}.png")
    return root


@pytest.fixture
def colours(tmp_path):
    return write_colours(tmp_path / "colours", a=20, b=20)


def folder(root, **options):
    return ImageFolder(root, **{"image_size": 2, "cache_dir": root and root.parent / "cache", **options})


def seen(data, split):
    """Which images a split has, as (label, red, green)."""
    images, labels = data.split(split)
    return {(label, *image[:2, 0, 0].tolist()) for label, image in zip(labels.tolist(), images[:], strict=True)}


@pytest.fixture
def decoded(monkeypatch):
    """Which files have been decoded."""
    names = []

    def note(path, side, fit):
        names.append(path.name)
        return decode(path, side, fit)

    decode = stored.decode
    monkeypatch.setattr(stored, "decode", note)
    return names


@pytest.mark.parametrize("cache", ["memory", "disk", "none"])
def test_every_image_is_in_one_split(colours, cache):
    data = folder(colours, cache=cache)
    data.setup("fit")
    assert data.classes == ("a", "b")
    parts = {name: seen(data, name) for name in ("train", "validation", "test")}
    assert {name: len(part) for name, part in parts.items()} == {"train": 28, "validation": 6, "test": 6}
    assert set.union(*parts.values()) == {(label, label, number) for label in (0, 1) for number in range(20)}
    for part in parts.values():
        assert len(set(Counter(label for label, _, _ in part).values())) == 1


def test_caches_give_equal_batches(tmp_path):
    root = write_photographs(tmp_path / "photographs", 6)
    batches = {}
    for cache in ("memory", "disk", "none"):
        data = folder(root, image_size=16, cache=cache, batch_size=3)
        data.setup("fit")
        batches[cache] = list(data.train_dataloader())
        assert batches[cache][0][0].shape == (3, 3, 16, 16)
    for cache in ("disk", "none"):
        for ours, theirs in zip(batches["memory"], batches[cache], strict=True):
            assert torch.equal(ours[0], theirs[0])
            assert torch.equal(ours[1], theirs[1])


def test_stored_images_are_indexed_like_a_tensor():
    whole = torch.arange(40, dtype=torch.uint8).view(10, 1, 2, 2)
    rows = torch.tensor([7, 1, 9, 3])
    images, expected = StoredImages(lambda chosen: whole[chosen], rows), whole[rows]
    mask = torch.tensor([True, False, False, True])
    for chosen in (2, -1, slice(1, 3), [3, 0], torch.tensor([1, 1]), mask, slice(None)):
        assert torch.equal(images[chosen], expected[chosen])
        if not isinstance(chosen, int):
            assert torch.equal(images.subset(chosen)[:], expected[chosen])
    assert len(images) == 4


def test_bad_files_are_skipped_with_a_warning(tmp_path):
    root = write_photographs(tmp_path / "photographs")
    write_odd_files(root / "flower")
    data = folder(root, image_size=16)
    with pytest.warns(InputWarning) as told:
        data.setup("fit")
    assert {name.removeprefix("flower/") for name in data.bad_files} == set(BAD)
    assert all(BAD[name.removeprefix("flower/")][1] in reason for name, reason in data.bad_files.items())
    assert sum(len(data.split(name)[1]) for name in ("train", "validation", "test")) == 24 + len(ODD)
    warning, *others = (str(warning.message) for warning in told)
    assert all("are training images" in other for other in others)  # one photograph in many formats
    assert f"{len(BAD)} of {24 + len(ODD) + len(BAD)} files give no image and are skipped" in warning
    assert "flower/bomb.png: Image size" in warning
    assert f"and {len(BAD) - 20} more" in warning


def test_name_with_newline_stays_on_its_line(colours):
    (colours / "a" / "two\nlines.jpg").write_bytes(b"")
    with pytest.warns(InputWarning, match=r"'a/two\\nlines.jpg': empty"):
        folder(colours).setup("fit")


def test_on_error_raise(colours, decoded):
    (colours / "a" / "00.jpg").write_bytes(b"")
    with pytest.raises(InputError, match=r"00.jpg: empty\. .* data.on_error=skip"):
        folder(colours, on_error="raise").setup("fit")


def test_bad_file_moves_few_others(colours):
    before = {name: seen(folder(colours), name) for name in ("train", "validation", "test")}
    (colours / "a" / "7.png").write_bytes(b"")
    after = {name: seen(folder(colours), name) for name in before}
    assert all(len(after[name] - before[name]) <= 1 for name in before)
    assert not after["test"] & before["train"]


def test_only_split_seed_changes_the_split(colours):
    assert seen(folder(colours, seed=1), "test") == seen(folder(colours, seed=2), "test")
    assert seen(folder(colours, split_seed=1), "test") != seen(folder(colours), "test")


def test_moved_folder_keeps_its_split(colours, tmp_path):
    before = seen(folder(colours), "test")
    assert seen(folder(colours.rename(tmp_path / "moved")), "test") == before


def test_split_folders_are_read_separately(tmp_path, decoded):
    root = tmp_path / "set"
    write_colours(root / "train", a=8, b=8)
    write_colours(root / "test", a=3, b=3)
    data = folder(root, validation=0.25)
    data.setup("fit")
    assert [len(data.split(name)[1]) for name in ("train", "validation", "test")] == [12, 4, 6]
    decoded.clear()
    assert len(seen(folder(root), "test")) == 6
    assert len(decoded) == 6


def test_labels_from_a_table(colours, tmp_path):
    rows = [f"{name}/{number}.png,{'even' if number % 2 == 0 else 'odd'}" for name in "ab" for number in range(20)]
    (tmp_path / "labels.csv").write_text("\n".join(["path,label", *rows, "a/missing.png,odd"]))
    data = folder(colours, labels=tmp_path / "labels.csv")
    data.setup("fit")
    assert data.classes == ("even", "odd")
    assert all(label == number % 2 for label, _, number in seen(data, "train"))
    assert data.bad_files == {"a/missing.png": "No such file or directory"}


def test_class_order(colours):
    data = folder(colours, classes=["c", "b", "a"])
    assert data.classes == ("c", "b", "a")
    data.setup("test")
    assert {(label, red) for label, red, _ in seen(data, "test")} == {(2, 0), (1, 1)}
    with pytest.raises(InputError, match="class c has 0 files"):
        data.setup("fit")
    with pytest.raises(InputError, match="classes unknown to the network: b; it knows a, c"):
        folder(colours, classes=["a", "c"]).setup("test")
    assert folder(None, classes=["a"]).classes == ("a",)  # wherever the folder has gone


def test_training_images_are_chosen_unread(colours, decoded):
    data = folder(colours, cache="none", training_images=4)
    data.setup("fit")
    assert len(decoded) == 40
    assert len(data.split("train")[0]) == 4
    assert len(list(data.train_dataloader())) == 1
    assert len(decoded) == 44


def test_testing_needs_no_training_images(colours):
    data = folder(colours, training_images=100)
    data.setup("test")
    assert len(data.split("test")[1]) == 6
    with pytest.raises(InputError, match="cannot set 100 of 28 images apart"):
        data.split("train")


def test_preprocessing(colours, tmp_path):
    preprocessing = Preprocessing(image_size=5, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    data = folder(colours, preprocessing=preprocessing)
    assert data.image_shape == (3, 5, 5)
    assert data.split("train")[0][:1].shape == (1, 3, 5, 5)
    images, _ = next(iter(data.val_dataloader()))
    assert images.max() < -0.8  # the colours are dark
    assert folder(colours).mean == (0.485, 0.456, 0.406)
    assert ImageFolder().image_shape == (3, 224, 224)


def test_class_of_bad_files(colours):
    for path in (colours / "b").iterdir():
        path.write_bytes(b"")
    with pytest.raises(InputError, match="class b has 20 files, of which 20 give no image"):
        folder(colours).setup("fit")


def test_class_with_too_few_images(colours):
    write_colours(colours, a=20, b=20, c=2)
    with pytest.raises(InputError, match="class c has 2 files, of which 0 give no image, and none is left to train on"):
        folder(colours).setup("fit")


@pytest.mark.parametrize(("name", "split"), [("Test", "test"), ("val", "validation")])
@pytest.mark.parametrize(("cache", "found"), [("memory", 3), ("disk", 3), ("none", 2)])
def test_training_images_in_another_split(tmp_path, name, split, cache, found):
    root = tmp_path / "set"
    write_colours(root / "Train", a=4, b=4)
    for number, other in enumerate(("Test", "val")):
        (root / other / "a").mkdir(parents=True)
        Image.new("RGB", (3, 2), (number, 99, 99)).save(root / other / "a/new.png")
    shutil.copy(root / "Train/a/0.png", root / name / "a/copy.png")
    (root / name / "a/link.png").symlink_to(root / "Train/b/1.png")
    Image.open(root / "Train/b/2.png").save(root / name / "a/2.bmp")  # other bytes, the same pixels
    with pytest.warns(InputWarning, match=f"^{found} {split} images are training images") as told:
        folder(root, cache=cache).setup("fit")
    assert f"{name}/a/copy.png" in str(told[0].message)
    assert f"{name}/a/new.png" not in str(told[0].message)


def test_no_warning_about_images_of_their_own(colours, recwarn):
    folder(colours).setup("fit")
    assert not [warning for warning in recwarn if issubclass(warning.category, InputWarning)]


def test_files_of_a_sample_of_the_training_images(colours):
    data = folder(colours, training_images=10)
    names = {path.relative_to(colours).as_posix() for path in data.files("train")}
    images, labels = data.split("train")
    pairs = zip(labels.tolist(), images[:][:, 1, 0, 0].tolist(), strict=True)
    assert {f"{'ab'[label]}/{green}.png" for label, green in pairs} == names
    assert folder(colours, training_images=10).files("train", bad=[]) == data.files("train")


def test_folder_without_images(tmp_path):
    (tmp_path / "set/a").mkdir(parents=True)
    with pytest.raises(InputError, match="none of 0 files gives an image"):
        folder(tmp_path / "set").setup("fit")
    (tmp_path / "set/a/notes.txt").write_text("none yet")
    with pytest.raises(InputError, match=r"none of 1 files gives an image\n  a/notes.txt: not an image"):
        folder(tmp_path / "set").setup("fit")


def test_split_of_bad_files_is_not_replaced(tmp_path):
    write_colours(tmp_path / "set/train", a=8, b=8)
    for name in "ab":
        (tmp_path / "set/val" / name).mkdir(parents=True)
        (tmp_path / "set/val" / name / "1.jpg").write_bytes(b"")
    with pytest.raises(InputError, match="no image is left for the validation split"):
        folder(tmp_path / "set").setup("fit")


def test_all_images_for_testing(colours):
    data = folder(colours, test=1)
    data.setup("test")
    assert len(data.split("test")[1]) == 40
    with pytest.raises(InputError, match="no image is left for the train split"):
        folder(colours, test=1).setup("fit")


def test_file_turns_bad_during_a_run(colours):
    data = folder(colours, cache="none")
    data.setup("fit")
    for path in colours.rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(InputError, match=r"png: empty. It could be read when the run began"):
        next(iter(data.train_dataloader()))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"on_error": "ignore"}, "on_error=ignore: choose one of skip, raise"),
        ({"cache": "ram"}, "cache=ram: choose one of memory, disk, none"),
        ({"fit": "pad"}, "fit=pad: choose one of crop, squash"),
        ({"image_size": 0}, "image_size=0"),
        ({"workers": 0}, "workers=0"),
        ({"validation": 0}, "validation=0"),
        ({"test": 1.5}, "test=1.5"),
    ],
)
def test_settings_out_of_range(options, words):
    with pytest.raises(InputError, match=words):
        folder(None, **options)


def test_images_larger_than_memory(colours):
    with pytest.raises(InputError, match=r"do not fit into memory: choose data.cache=disk or none"):
        folder(colours, image_size=10**8).setup("fit")


def test_no_folder():
    with pytest.raises(InputError, match=r"data.root=FOLDER, or data.labels=FILE.csv"):
        folder(None).setup("fit")


def test_many_files_keep_their_order(tmp_path):
    root = write_colours(tmp_path / "set", a=200, b=200)
    data = folder(root, workers=4)
    data.setup("fit")
    everything = set.union(*(seen(data, name) for name in ("train", "validation", "test")))
    assert everything == {(label, label, number) for label in (0, 1) for number in range(200)}
    assert np.prod(data.split("train")[0][:].shape) == 280 * 3 * 2 * 2
