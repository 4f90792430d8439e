import numpy as np
import torch

from lightconv.data import overlap
from lightconv.data.overlap import find_same_files, find_same_images
from lightconv.data.stored import StoredImages


def test_images_of_equal_pixels(monkeypatch):
    monkeypatch.setattr(overlap, "_IMAGES_PER_BLOCK", 3)
    random = np.random.default_rng(0)
    others = torch.from_numpy(random.integers(0, 256, (10, 3, 5, 4), dtype=np.uint8))
    images = torch.from_numpy(random.integers(0, 256, (8, 3, 5, 4), dtype=np.uint8))
    images[1], images[6], images[7] = others[9], others[0], others[4]
    images[2] = others[3]
    images[2, 0, 0, 0] ^= 1  # the middle row is the same, the rest is not
    assert find_same_images(images, others) == [1, 6, 7]
    stored = StoredImages(lambda rows: others[rows], torch.arange(10))
    assert find_same_images(images, stored) == [1, 6, 7]
    assert find_same_images(images[:1], others) == []
    assert find_same_images(images[:0], others) == []


def test_files_of_equal_content(tmp_path):
    files = [tmp_path / name for name in ("a", "b", "link", "hard", "gone")]
    others = [tmp_path / name for name in ("x", "y", "z")]
    for path, content in zip([*files[:2], *others], (b"one", b"two", b"one", b"three", b"6"), strict=False):
        path.write_bytes(content)
    files[2].symlink_to(others[1])
    files[3].hardlink_to(others[2])
    assert find_same_files(files, others) == [0, 2, 3]
    assert find_same_files(files, []) == []
    assert find_same_files([], others) == []
