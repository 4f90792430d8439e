import os
import shutil
from functools import partial

import pytest
import torch
from PIL import Image

from lightconv import keyed_cache
from lightconv.data import disk, stored
from lightconv.data.disk import cache_on_disk
from lightconv.data.stored import Decoder
from lightconv.errors import InputError

ROWS = torch.arange(5)


@pytest.fixture
def paths(tmp_path):
    """Five files; the third and the last are bad."""
    paths = [tmp_path / f"{number}.png" for number in range(5)]
    for number, path in enumerate(paths):
        Image.new("RGB", (4, 4), (10 * number, number, 200)).save(path)
    for number in (2, 4):
        paths[number].write_bytes(b"")
    return paths


@pytest.fixture
def decoded(monkeypatch):
    """Names of the files decoded so far."""
    names = []
    decode = stored.decode

    def record(path, side, fit):
        names.append(path.name)
        return decode(path, side, fit)

    monkeypatch.setattr(stored, "decode", record)
    return names


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache" / "set.images"


def read_all(paths, cache, side=3):
    read, bad = cache_on_disk(paths, Decoder(side, "crop"), cache)
    return read(ROWS), bad


def reds(images):
    return images[:, 0, 0, 0].tolist()


def test_next_run_decodes_bad_files_only(paths, cache, decoded):
    images, bad = read_all(paths, cache)
    assert bad == {2: "empty", 4: "empty"}
    assert reds(images) == [0, 10, 0, 30, 0]
    decoded.clear()
    again, same = read_all(paths, cache)
    assert torch.equal(again, images)
    assert same == bad
    assert sorted(decoded) == ["2.png", "4.png"]
    assert sorted(path.name for path in cache.parent.iterdir()) == ["set.images", "set.images.lock"]


def overwrite(file, at, data):
    with file.open("r+b") as content:
        content.seek(at)
        content.write(data)


def append(file, data):
    with file.open("ab") as content:
        content.write(data)


@pytest.mark.parametrize(
    "damage",
    [
        lambda cache: overwrite(cache, 30, b"\xff"),
        lambda cache: overwrite(cache, cache.stat().st_size - 100, b"\xff"),
        lambda cache: os.truncate(cache, 100),
        lambda cache: append(cache, b"more"),
        lambda cache: cache.unlink(),
        lambda cache: cache.write_text("{"),
        lambda cache: cache.write_text("[]"),
        lambda cache: cache.write_text('{"bad": []}'),
        lambda cache: cache.write_bytes(b""),
        lambda cache: cache.with_name(".set.images.half.new").write_bytes(b"half"),
    ],
    ids=[
        "byte", "description", "truncated", "longer", "missing", "no json", "list", "no bad", "empty", "half written",
    ],
)  # fmt: skip
def test_damaged_cache_is_rebuilt(paths, cache, damage):
    expected, expected_bad = read_all(paths, cache)
    damage(cache)
    for _ in range(2):
        images, bad = read_all(paths, cache)
        assert torch.equal(images, expected)
        assert bad == expected_bad


def test_folder_of_an_earlier_version_is_replaced(paths, cache):
    folder = cache.with_suffix("")
    folder.mkdir(parents=True)
    (folder / "images").write_bytes(bytes(5 * 3 * 3 * 3))
    (folder / "index.json").write_text('{"files": "", "bad": {}, "checksum": 0}')
    images, _ = read_all(paths, cache)
    assert reds(images) == [0, 10, 0, 30, 0]
    assert not folder.exists()


def test_changed_file_is_decoded_again(paths, cache):
    read_all(paths, cache)
    Image.new("RGB", (4, 4), (99, 1, 200)).save(paths[1])
    os.utime(paths[1], ns=(0, 1))
    images, _ = read_all(paths, cache)
    assert images[1, 0, 0, 0] == 99


def test_bad_file_turned_good_at_the_same_time_and_size(paths, cache, monkeypatch):
    monkeypatch.setattr(disk, "_size_and_time", lambda path: (0, 0))
    read_all(paths, cache)
    Image.new("RGB", (4, 4), (99, 1, 200)).save(paths[2])
    images, bad = read_all(paths, cache)
    assert bad == {4: "empty"}
    assert images[2, 0, 0, 0] == 99


def test_file_that_changes_while_it_is_read(paths, cache, monkeypatch):
    times = iter(range(100))
    monkeypatch.setattr(disk, "_size_and_time", lambda path: (0, next(times)))
    with pytest.raises(InputError, match=r"image files change while they are read; choose data.cache=none"):
        read_all(paths, cache)


@pytest.mark.parametrize("other", [partial(Decoder, 4, "crop"), partial(Decoder, 3, "squash")])
def test_other_settings_are_decoded_again(paths, cache, decoded, other):
    read_all(paths, cache)
    decoded.clear()
    cache_on_disk(paths, other(), cache)
    assert {"0.png", "1.png", "3.png"} <= set(decoded)


def test_other_order_is_decoded_again(paths, cache):
    read_all(paths, cache)
    read, _ = cache_on_disk(paths[1::-1], Decoder(3, "crop"), cache)
    assert reds(read(torch.tensor([0, 1]))) == [10, 0]


def test_reader_keeps_its_images_while_the_cache_is_rebuilt(paths, cache):
    read, _ = cache_on_disk(paths, Decoder(3, "crop"), cache)
    expected = read(ROWS).clone()
    Image.new("RGB", (4, 4), "white").save(paths[0])
    read_all(paths, cache)
    assert torch.equal(read(ROWS), expected)


def test_directory_that_cannot_be_written(paths, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(InputError, match=r"set another directory by data.cache_dir=FOLDER"):
        read_all(paths, tmp_path / "file" / "set.images")


def test_full_disk_leaves_no_cache(paths, cache, monkeypatch):
    def fail(digest):
        raise OSError(28, "No space left on device")

    # the last line of the file
    monkeypatch.setattr(keyed_cache, "_digest_line", fail)
    with pytest.raises(InputError, match="No space left on device"):
        read_all(paths, cache)
    monkeypatch.undo()
    assert not cache.exists()
    images, _ = read_all(paths, cache)
    assert reds(images) == [0, 10, 0, 30, 0]


def test_strict_decoder_raises_on_a_cache_with_bad_files(paths, cache):
    read_all(paths, cache)
    with pytest.raises(InputError, match=r"2.png: empty"):
        cache_on_disk(paths, Decoder(3, "crop", strict=True), cache)


def test_too_little_space_is_told_before_decoding(paths, cache, decoded, monkeypatch):
    usage = disk.shutil.disk_usage(cache.parents[1])
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda path: usage._replace(free=5 * 27 - 1))
    with pytest.raises(InputError, match=r"No space left on device\): set another directory by data.cache_dir=FOLDER"):
        read_all(paths, cache)
    assert decoded == []


def test_directory_that_vanishes_while_decoding(paths, cache, monkeypatch):
    decode = stored.decode

    def vanish(*arguments):
        shutil.rmtree(cache.parent, ignore_errors=True)
        return decode(*arguments)

    monkeypatch.setattr(stored, "decode", vanish)
    with pytest.raises(InputError, match=r"set.images cannot be written \(No such file or directory\)"):
        read_all(paths, cache)
