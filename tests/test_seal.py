import io
import random

import pytest
import torch

from lightconv.seal import find_damage, seal


@pytest.fixture
def content():
    """Bytes of a file of torch's."""
    buffer = io.BytesIO()
    torch.save({"weight": torch.arange(1000.0), "epoch": 3}, buffer)
    return buffer.getvalue()


@pytest.fixture
def sealed(tmp_path, content):
    path = tmp_path / "sealed.ckpt"
    path.write_bytes(content)
    seal(path)
    return path


@pytest.mark.parametrize("mmap", [True, False])
def test_sealed_file_is_a_file_of_torch(sealed, content, mmap):
    assert find_damage(sealed) is None
    assert sealed.read_bytes()[: len(content) - 2] == content[:-2]
    loaded = torch.load(sealed, weights_only=True, mmap=mmap)
    assert loaded["epoch"] == 3
    assert torch.equal(loaded["weight"], torch.arange(1000.0))


def test_every_flipped_bit_is_found(sealed):
    original = sealed.read_bytes()
    draw = random.Random(0)
    # the first two bytes say that it is a zip archive: without them torch.load refuses the file
    places = [draw.randrange(2, len(original)) for _ in range(200)]
    for place in [*places, *range(len(original) - 120, len(original))]:
        flipped = bytearray(original)
        flipped[place] ^= 1 << draw.randrange(8)
        sealed.write_bytes(flipped)
        assert find_damage(sealed) is not None, place


def test_every_truncation_is_found(sealed):
    original = sealed.read_bytes()
    for length in [*range(2, len(original) - 200, 97), *range(len(original) - 200, len(original))]:
        sealed.write_bytes(original[:length])
        assert find_damage(sealed) is not None, length


def test_file_of_another_program(tmp_path, content):
    path = tmp_path / "other.pt"
    path.write_bytes(content)
    assert find_damage(path) is None
    place = content.index(torch.arange(1000.0).numpy().tobytes()) + 40
    path.write_bytes(content[:place] + b"\xff" + content[place + 1 :])
    assert "checksum of its entry" in find_damage(path)
    path.write_bytes(content[:-1])
    assert find_damage(path) == "its end is missing"


def test_file_that_is_no_archive(tmp_path):
    path = tmp_path / "old.pt"
    torch.save({"weight": torch.zeros(2)}, path, _use_new_zipfile_serialization=False)
    assert find_damage(path) is None
