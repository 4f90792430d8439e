import gzip
import hashlib
import os
import pickle
import struct
import tracemalloc

import numpy as np
import pytest
import torch
import torchvision
from helpers.idx_files import idx, write_idx_folder

from lightconv.data import CIFAR10, MNIST, Digits, FashionMNIST
from lightconv.data.mnist import read_idx
from lightconv.errors import InputError
from lightconv.preprocessing import Preprocessing


@pytest.fixture
def idx_folder(tmp_path):
    return write_idx_folder(tmp_path / "files")


def test_digits_split():
    splits = {name: Digits().split(name) for name in ("train", "validation", "test")}
    assert {name: len(labels) for name, (_, labels) in splits.items()} == {
        "train": 1257,
        "validation": 180,
        "test": 360,
    }
    images = torch.cat([images for images, _ in splits.values()])
    assert images.dtype is torch.uint8
    assert images.shape == (1797, 1, 28, 28)
    assert len(images.flatten(1).unique(dim=0)) == 1797
    for _, labels in splits.values():
        shares = labels.bincount(minlength=10) / len(labels)
        assert (shares - 0.1).abs().max() < 0.01


def test_split_ignores_the_seed():
    assert torch.equal(Digits(seed=1).split("test")[0], Digits(seed=2).split("test")[0])


def test_digits_mean_and_std():
    images = Digits().split("train")[0].float() / 255
    assert images.mean().item() == pytest.approx(Digits.mean[0], abs=1e-3)
    assert images.std().item() == pytest.approx(Digits.std[0], abs=1e-3)
    normalized = Digits().normalize(images)
    assert normalized.std().item() == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("gzipped", [False, True])
@pytest.mark.parametrize("layout", ["", "raw", "FashionMNIST/raw"])
def test_idx_layouts(tmp_path, gzipped, layout):
    write_idx_folder(tmp_path / layout, gzipped)
    data = FashionMNIST(tmp_path, validation=50)
    data.setup("fit")
    assert len(data.split("train")[1]) == 150
    assert len(data.split("validation")[1]) == 50
    images, labels = next(iter(data.train_dataloader()))
    assert images.shape == (64, 1, 28, 28)
    assert labels.dtype is torch.int64


def test_equals_torchvisions_reader(tmp_path):
    write_idx_folder(tmp_path / "MNIST" / "raw")
    theirs = torchvision.datasets.MNIST(str(tmp_path), train=False)
    images, labels = MNIST(tmp_path).split("test")
    assert torch.equal(images[:, 0], theirs.data)
    assert torch.equal(labels, theirs.targets)


def test_fit_reads_no_test_files(idx_folder):
    for path in idx_folder.glob("t10k*"):
        path.unlink()
    data = MNIST(idx_folder, validation=50)
    data.setup("fit")
    with pytest.raises(InputError, match="t10k-images"):
        data.setup("test")


def test_missing_files_and_remedies(tmp_path):
    with pytest.raises(InputError) as error:
        FashionMNIST(tmp_path / "nowhere").setup("fit")
    for words in ("train-images-idx3-ubyte", str(tmp_path / "nowhere"), "data.download=true", "dataset-fashion-mnist"):
        assert words in str(error.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "damaged"),
        (b"hello, world", "damaged"),
        (idx(np.zeros((200, 28, 28), np.uint8))[:-1], "holds 156799 values instead of 200 x 28 x 28"),
        (idx(np.zeros((199, 28, 28), np.uint8)), "199 images but 200 labels"),
    ],
)
def test_damaged_files_are_kept(idx_folder, content, words):
    path = idx_folder / "train-images-idx3-ubyte"
    path.write_bytes(content)
    with pytest.raises(InputError, match=words):
        MNIST(idx_folder, validation=50).setup("fit")
    assert path.read_bytes() == content


def header(*lengths, axes=None):
    axes = len(lengths) if axes is None else axes
    return bytes([0, 0, 8, axes]) + struct.pack(f">{len(lengths)}I", *lengths)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (header(*[0] * 255), "announces 255 axes"),
        (header(axes=0), "announces 0 axes"),
        (header(3, axes=3), "damaged"),
        (header(2**31, 2**31, 4), "2147483648 x 2147483648 x 4 values, more than such a file can hold"),
        (header(2**32 - 1, 2**32 - 1), "more than such a file can hold"),
        (header(2, 3) + bytes(7), "holds more values than 2 x 3"),
        (header(2, 3) + bytes(5), "holds 5 values instead of 2 x 3"),
        (header(0), "damaged"),
    ],
)
@pytest.mark.parametrize("gzipped", [False, True])
def test_impossible_headers(tmp_path, content, words, gzipped):
    path = tmp_path / ("x.gz" if gzipped else "x")
    path.write_bytes(gzip.compress(content) if gzipped else content)
    with pytest.raises(InputError, match=words) as error:
        read_idx(path)
    assert f"{path} is damaged" in str(error.value)


@pytest.mark.parametrize("announced", [10, 2**31 + 1])
def test_gzip_bomb_is_not_unpacked(tmp_path, announced):
    with gzip.open(tmp_path / "x.gz", "wb", 1) as file:
        file.write(header(announced))
        for _ in range(8):
            file.write(bytes(2**23))
    tracemalloc.start()
    with pytest.raises(InputError, match="more"):
        read_idx(tmp_path / "x.gz")
    assert tracemalloc.get_traced_memory()[1] < 2**21
    tracemalloc.stop()


def test_labels_in_place_of_images(idx_folder):
    labels = (idx_folder / "train-labels-idx1-ubyte").read_bytes()
    (idx_folder / "train-images-idx3-ubyte").write_bytes(labels)
    with pytest.raises(InputError, match="train-images-idx3-ubyte has 1 axes instead of 3"):
        MNIST(idx_folder).setup("fit")


def test_cifar10_of_a_stranger_executes_nothing(tmp_path):
    class Stranger:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "executed"),)

    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for name in ("data_batch_1", "test_batch", "batches.meta"):
        (folder / name).write_bytes(pickle.dumps(Stranger()))
    for stage in ("fit", "test"):
        with pytest.raises(InputError, match="torchvision checks every file"):
            CIFAR10(folder).setup(stage)
    assert not (tmp_path / "executed").exists()


def test_truncated_gzip(tmp_path):
    write_idx_folder(tmp_path, gzipped=True)
    path = tmp_path / "train-labels-idx1-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(InputError, match=r"train-labels-idx1-ubyte.gz is damaged"):
        MNIST(tmp_path, validation=50).setup("fit")


def test_download_only_if_needed(idx_folder, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(
        torchvision.datasets.MNIST, "__init__", lambda self, root, download: asked.append((root, download))
    )
    MNIST(idx_folder, download=True).prepare_data()
    MNIST(tmp_path / "empty").prepare_data()
    assert asked == []
    MNIST(tmp_path / "empty", download=True).prepare_data()
    assert asked == [(str(tmp_path / "empty"), True)]


@pytest.mark.parametrize("validation", [5, 195, 1000])
def test_impossible_validation_size(idx_folder, validation):
    with pytest.raises(InputError, match="cannot set"):
        MNIST(idx_folder, validation=validation).setup("fit")


@pytest.fixture
def cifar_folder(tmp_path, monkeypatch):
    """A small set in CIFAR-10's format, with its checksums known to torchvision."""
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    random = np.random.default_rng(0)
    sums = {}
    for name in [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]:
        batch = {"data": random.integers(0, 256, (20, 3072), dtype=np.uint8), "labels": [i % 10 for i in range(20)]}
        (folder / name).write_bytes(pickle.dumps(batch))
        sums[name] = hashlib.md5((folder / name).read_bytes()).hexdigest()
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list(CIFAR10.classes)}))
    meta = hashlib.md5((folder / "batches.meta").read_bytes()).hexdigest()
    source = torchvision.datasets.CIFAR10
    monkeypatch.setattr(source, "train_list", [[n, s] for n, s in sums.items() if n != "test_batch"])
    monkeypatch.setattr(source, "test_list", [["test_batch", sums["test_batch"]]])
    monkeypatch.setattr(source, "meta", {"filename": "batches.meta", "key": "label_names", "md5": meta})
    return folder


@pytest.mark.parametrize("as_itself", [True, False])
def test_cifar10_layouts(cifar_folder, as_itself):
    data = CIFAR10(cifar_folder if as_itself else cifar_folder.parent, validation=20)
    data.setup("fit")
    images, _ = data.split("train")
    assert images.shape == (80, 3, 32, 32)
    data.setup("test")
    theirs = torchvision.datasets.CIFAR10(str(cifar_folder.parent), train=False)
    assert torch.equal(data.split("test")[0], torch.from_numpy(theirs.data).permute(0, 3, 1, 2))


def test_damaged_cifar10_is_kept(cifar_folder):
    (cifar_folder / "data_batch_3").write_bytes(b"x")
    with pytest.raises(InputError, match=r"data\.download=true"):
        CIFAR10(cifar_folder, validation=20).setup("fit")
    assert (cifar_folder / "data_batch_3").read_bytes() == b"x"


def test_deviation_is_a_deprecated_name_of_std():
    with pytest.warns(DeprecationWarning, match=r"Digits\.deviation is deprecated: it is called std"):
        assert Digits().deviation == Digits.std
    data = Digits()
    with pytest.warns(DeprecationWarning, match="std"):
        data.deviation = (0.5,)
    assert data.std == (0.5,)


def test_subclass_with_deviation():
    with pytest.warns(DeprecationWarning, match=r"Own\.deviation is deprecated: it is called std"):

        class Own(Digits):
            mean = (0.25,)
            deviation = (0.5,)

    images = torch.full((1, 1, 28, 28), 0.75)
    assert torch.equal(Own().normalize(images), torch.ones(1, 1, 28, 28))
    with pytest.warns(DeprecationWarning, match="std"):
        assert Own().deviation == (0.5,)


def test_batch_size_zero():
    with pytest.raises(InputError, match="batch_size=0"):
        Digits(batch_size=0)


def test_preprocessing_of_pretrained_weights():
    preprocessing = Preprocessing(image_size=40, mean=(0.4, 0.5, 0.6), std=(0.1, 0.2, 0.3))
    data = Digits(preprocessing=preprocessing)
    assert data.image_shape == (3, 40, 40)
    images, _ = next(iter(data.val_dataloader()))
    assert images.shape[1:] == (3, 40, 40)
    grey = images[:, 0] * 0.1 + 0.4  # each channel is the same grey image, with its own mean and std
    torch.testing.assert_close(images[:, 2] * 0.3 + 0.6, grey)
    stored = Digits().split("validation")[0][: len(images), 0] / 255
    assert (grey.mean((1, 2)) - stored.mean((1, 2))).abs().max() < 5e-3
    assert Digits.image_shape == (1, 28, 28)


def test_training_images_are_stratified():
    data, whole = Digits(training_images=200), Digits()
    images, labels = data.split("train")
    assert len(images) == len(labels) == 200
    assert (labels.bincount() - 20).abs().max() <= 1
    assert torch.equal(Digits(training_images=200, seed=3).split("train")[0], images)
    assert torch.equal(data.split("validation")[0], whole.split("validation")[0])
    assert len(Digits(training_images=1257).split("train")[0]) == 1257
    with pytest.raises(InputError, match="cannot set 2000 of 1257 images apart"):
        Digits(training_images=2000).split("train")
