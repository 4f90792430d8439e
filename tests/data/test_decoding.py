import numpy as np
import pytest
import torch
from helpers.photographs import BAD, ODD, TEMPLE, photograph, save, sideways
from PIL import Image, ImageOps

from lightconv.data import decoding
from lightconv.data.decoding import UnreadableError, decode

SIDE = 24


def pixels(image):
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def difference(ours, theirs):
    return (ours.float() - theirs.float()).abs().mean().item()


@pytest.mark.parametrize("name", ODD, ids=ascii)
def test_odd_files(tmp_path, name):
    write, seen = ODD[name]
    write(tmp_path / name)
    image = decode(tmp_path / name, SIDE)
    assert image.dtype is torch.uint8
    expected = pixels(ImageOps.fit(seen, (SIDE, SIDE), Image.Resampling.BICUBIC))
    assert difference(image, expected) < 4  # of 255: JPEG and palettes lose a little


@pytest.mark.parametrize("name", BAD)
def test_reasons_of_bad_files(tmp_path, name):
    write, reason = BAD[name]
    write(tmp_path / name)
    with pytest.raises(UnreadableError, match=reason):
        decode(tmp_path / name, SIDE)


def test_missing_file(tmp_path):
    with pytest.raises(UnreadableError, match="No such file"):
        decode(tmp_path / "missing.jpg", SIDE)


@pytest.mark.parametrize(
    ("orientation", "stored"),
    [
        (1, None),
        (2, "FLIP_LEFT_RIGHT"),
        (3, "ROTATE_180"),
        (4, "FLIP_TOP_BOTTOM"),
        (5, "TRANSPOSE"),
        (6, "ROTATE_90"),
        (7, "TRANSVERSE"),
        (8, "ROTATE_270"),
    ],
)
def test_orientations(tmp_path, orientation, stored):
    upright = photograph(size=(30, 30))
    turned = upright.transpose(Image.Transpose[stored]) if stored else upright
    sideways(orientation, turned)(tmp_path / "turned.png")
    assert torch.equal(decode(tmp_path / "turned.png", 30), pixels(upright))


def test_sixteen_bits_are_scaled(tmp_path):
    values = np.arange(256, dtype=np.uint16).reshape(16, 16)
    save(Image.fromarray(values * 257))(tmp_path / "all.png")
    assert torch.equal(decode(tmp_path / "all.png", 16)[0], torch.from_numpy(values.astype(np.uint8)))


def test_crop_and_squash(tmp_path):
    stripes = np.zeros((8, 32, 3), np.uint8)
    stripes[:, :8], stripes[:, 24:] = (255, 0, 0), (0, 0, 255)
    save(Image.fromarray(stripes))(tmp_path / "stripes.png")
    assert decode(tmp_path / "stripes.png", 8, "crop").sum() == 0
    squashed = decode(tmp_path / "stripes.png", 8, "squash")
    assert squashed[:, 4, 0].tolist() == [255, 0, 0]
    assert squashed[:, 4, -1].tolist() == [0, 0, 255]


def test_large_jpeg_is_scaled_while_decoding(tmp_path, monkeypatch):
    save(TEMPLE, "JPEG", quality=95)(tmp_path / "large.jpg")
    save(TEMPLE)(tmp_path / "large.png")
    sizes = []
    monkeypatch.setattr(
        decoding, "to_rgb", lambda image, to_rgb=decoding.to_rgb: sizes.append(image.size) or to_rgb(image)
    )
    assert difference(decode(tmp_path / "large.jpg", 48), decode(tmp_path / "large.png", 48)) < 2
    assert sizes == [(160, 107), (640, 427)]


@pytest.mark.parametrize("kept", [0.3, 0.6, 0.9, 0.99])
def test_truncated_jpeg_is_noticed_while_scaling(tmp_path, kept):
    save(TEMPLE, "JPEG")(tmp_path / "whole.jpg")
    whole = (tmp_path / "whole.jpg").read_bytes()
    (tmp_path / "part.jpg").write_bytes(whole[: int(kept * len(whole))])
    with pytest.raises(UnreadableError, match="truncated"):
        decode(tmp_path / "part.jpg", 32)
