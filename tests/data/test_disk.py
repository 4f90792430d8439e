import os
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

from lightconv.data import disk, stored
from lightconv.data.disk import cache_on_disk
from lightconv.data.stored import Decoder
from lightconv.errors import InputError

ROWS = torch.arange(5)


@pytest.fixture
def paths(tmp_path):
    """Five files, of which the third and the last are bad."""
    for number in range(5):
        Image.new("RGB", (4, 4), (10 * number, number, 200)).save(tmp_path / f"{number}.png")
    for number in (2, 4):
        (tmp_path / f"{number}.png").write_bytes(b"")
    return [tmp_path / f"{number}.png" for number in range(5)]


@pytest.fixture
def decoded(monkeypatch):
    names = []
    decode = stored.decode
    monkeypatch.setattr(stored, "decode", lambda path, side, fit: names.append(path.name) or decode(path, side, fit))
    return names


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "cache" / "set"


def opened(paths, folder, side=3):
    read, bad = cache_on_disk(paths, Decoder(side, "crop"), folder)
    return read(ROWS), bad


def test_the_next_run_decodes_none_but_the_bad_ones(paths, folder, decoded):
    images, bad = opened(paths, folder)
    assert bad == {2: "empty", 4: "empty"}
    assert images[:, 0, 0, 0].tolist() == [0, 10, 0, 30, 0]
    decoded.clear()
    again, same = opened(paths, folder)
    assert torch.equal(again, images)
    assert same == bad
    assert sorted(decoded) == ["2.png", "4.png"]
    assert sorted(path.name for path in folder.parent.iterdir()) == ["set", "set.lock"]


def overwrite(file, at, data):
    with file.open("r+b") as opened:
        opened.seek(at)
        opened.write(data)


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: overwrite(folder / "images", 30, b"\xff"),
        lambda folder: os.truncate(folder / "images", 100),
        lambda folder: (folder / "images").open("ab").write(b"more"),
        lambda folder: (folder / "images").unlink(),
        lambda folder: (folder / "index.json").unlink(),
        lambda folder: (folder / "index.json").write_text("{"),
        lambda folder: (folder / "index.json").write_text("[]"),
        lambda folder: (folder / "index.json").write_text('{"bad": []}'),
        lambda folder: folder.with_suffix(".new").mkdir(),
    ],
    ids=["byte", "truncated", "longer", "no images", "no index", "no json", "list", "no bad", "half written"],
)
def test_what_is_damaged_is_decoded_anew(paths, folder, damage):
    expected = opened(paths, folder)
    damage(folder)
    images, bad = opened(paths, folder)
    assert torch.equal(images, expected[0])
    assert bad == expected[1]
    images, bad = opened(paths, folder)
    assert torch.equal(images, expected[0])


def test_a_changed_file_is_decoded_anew(paths, folder, decoded):
    opened(paths, folder)
    Image.new("RGB", (4, 4), (99, 1, 200)).save(paths[1])
    os.utime(paths[1], ns=(0, 1))
    assert opened(paths, folder)[0][1, 0, 0, 0] == 99


def test_a_bad_file_that_has_become_good_is_noticed_whatever_its_time_says(paths, folder, monkeypatch):
    monkeypatch.setattr(disk, "_state", lambda path: (0, 0))
    opened(paths, folder)
    Image.new("RGB", (4, 4), (99, 1, 200)).save(paths[2])
    images, bad = opened(paths, folder)
    assert bad == {4: "empty"}
    assert images[2, 0, 0, 0] == 99


@pytest.mark.parametrize(
    "change",
    [partial(Decoder, 4, "crop"), partial(Decoder, 3, "squash")],
)
def test_other_settings_are_decoded_anew(paths, folder, decoded, change):
    opened(paths, folder)
    decoded.clear()
    cache_on_disk(paths, change(), folder)
    assert {"0.png", "1.png", "3.png"} <= set(decoded)


def test_other_files_or_another_order_are_decoded_anew(paths, folder):
    opened(paths, folder)
    read, _ = cache_on_disk(paths[1::-1], Decoder(3, "crop"), folder)
    assert read(torch.tensor([0, 1]))[:, 0, 0, 0].tolist() == [10, 0]


def test_a_run_that_reads_keeps_its_images_while_another_decodes_anew(paths, folder):
    read, _ = cache_on_disk(paths, Decoder(3, "crop"), folder)
    expected = read(ROWS).clone()
    Image.new("RGB", (4, 4), "white").save(paths[0])
    opened(paths, folder)
    assert torch.equal(read(ROWS), expected)


def test_who_cannot_write_is_told_what_to_do(paths, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(InputError, match=r"give another by data.cache_dir=FOLDER"):
        opened(paths, tmp_path / "file" / "set")


def test_a_full_disk_is_told_and_leaves_nothing_that_would_be_trusted(paths, folder, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(disk.zlib, "crc32", full)
    with pytest.raises(InputError, match="No space left on device"):
        opened(paths, folder)
    monkeypatch.undo()
    assert not folder.exists()
    assert np.array_equal(opened(paths, folder)[0][:, 0, 0, 0], [0, 10, 0, 30, 0])


def test_the_first_bad_file_stops_who_wants_it_also_where_others_let_it_pass(paths, folder):
    opened(paths, folder)
    with pytest.raises(InputError, match=r"2.png: empty"):
        cache_on_disk(paths, Decoder(3, "crop", strict=True), folder)
