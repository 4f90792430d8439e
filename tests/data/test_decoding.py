import errno
import inspect
import os
import re
import struct
import sys
import tracemalloc
import zlib

import numpy as np
import pytest
import torch
from helpers.photographs import BAD, ODD, TEMPLE, content, photograph, save, sideways
from PIL import EpsImagePlugin, Image, ImageCms, ImageOps

from lightconv.data import decoding
from lightconv.data.decoding import UnreadableError, decode
from lightconv.errors import InputError

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


def test_iptc_file_starts_no_ghostscript(tmp_path, monkeypatch):
    # as PIL reads it: fields of record, number, length; the image in field (8, 10) is an EPS
    def field(record, number, data):
        return bytes([0x1C, record, number]) + struct.pack(">H", len(data)) + data

    size = struct.pack(">H", 10)
    header = field(3, 60, b"\1\0") + field(3, 20, size) + field(3, 30, size) + field(3, 120, b"\5")
    eps = content(photograph(), "EPS")
    (tmp_path / "x.png").write_bytes(header + field(8, 10, eps) + field(8, 11, b""))
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_: pytest.fail("Ghostscript"))
    with pytest.raises(UnreadableError, match="of a kind that is not read"):
        decode(tmp_path / "x.png", SIDE)


@pytest.mark.parametrize("wrapper", ["ICNS", "ICO", "PSD", "TIFF"])
def test_no_reader_opens_what_it_likes(wrapper):
    """Readers of other formats may not call Image.open without naming a format."""
    source = inspect.getsource(sys.modules[Image.OPEN[wrapper][0].__module__])
    assert not re.search(r"Image\.open\((?!sys\.argv)", source)


def test_formats_are_those_that_read_their_own_file():
    formats = decoding.formats()
    assert {"JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP"} <= set(formats)
    assert not {"EPS", "IPTC", "FITS", "WMF", "MIC", "FPX", "HDF5"} & set(formats)


def test_short_memory_is_no_bad_picture(tmp_path, monkeypatch):
    def fail(image):
        raise MemoryError

    save(photograph())(tmp_path / "whole.png")
    monkeypatch.setattr(decoding, "to_rgb", fail)
    with pytest.raises(InputError, match=r"whole.png: memory is short for its 48 x 36 pixels: .* data.workers=1"):
        decode(tmp_path / "whole.png", SIDE)


@pytest.mark.parametrize("number", [errno.ENOMEM, errno.EMFILE, errno.EIO, errno.ESTALE])
def test_fault_of_the_machine_is_no_bad_picture(tmp_path, monkeypatch, number):
    def fail(path):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(decoding, "check_file", fail)
    with pytest.raises(InputError, match=rf"x.png cannot be read at the moment \({re.escape(os.strerror(number))}\)"):
        decode(tmp_path / "x.png", SIDE)


@pytest.mark.parametrize(
    ("kind", "options", "expected"),
    [("PNG", {}, True), ("JPEG", {}, False), ("JPEG", {"progressive": True}, True)],
)
def test_large_images_one_at_a_time(tmp_path, monkeypatch, kind, options, expected):
    save(TEMPLE, kind, **options)(tmp_path / "x")
    monkeypatch.setattr(decoding, "_LARGE", 640 * 427 - 1)
    locked = []
    monkeypatch.setattr(decoding, "to_rgb", lambda image: locked.append(lock.locked()) or image.convert("RGB"))
    lock = decoding._large_image
    decode(tmp_path / "x", SIDE)
    assert locked == [expected]
    assert not lock.locked()


@pytest.mark.parametrize("name", [name for name in ODD if name != "one_pixel.png"], ids=ascii)
def test_strips_of_a_large_image_make_no_difference(tmp_path, monkeypatch, name):
    ODD[name][0](tmp_path / name)
    expected = decode(tmp_path / name, SIDE)
    monkeypatch.setattr(decoding, "_STRIP", 200)
    assert torch.equal(decode(tmp_path / name, SIDE), expected)


def test_memory_of_a_large_image_of_16_bits(tmp_path):
    side = 3000
    save(Image.fromarray(np.zeros((side, side), np.uint16)))(tmp_path / "x.png")
    tracemalloc.start()  # sees numpy's memory, not PIL's own
    decode(tmp_path / "x.png", SIDE)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20 * side**2


def test_pixel_bomb_between_pils_warning_and_error(tmp_path, monkeypatch):
    save(photograph())(tmp_path / "x.png")
    save(photograph(), "JPEG")(tmp_path / "x.jpg")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 48 * 36 - 1)
    with pytest.warns(Image.DecompressionBombWarning), pytest.raises(UnreadableError, match=r"bomb.*48 x 36 pixels"):
        decode(tmp_path / "x.png", SIDE)
    # libjpeg scales a large photograph of a phone before its pixels take memory
    with pytest.warns(Image.DecompressionBombWarning):
        decode(tmp_path / "x.jpg", 8)


def test_heic_without_its_reader(tmp_path, monkeypatch):
    BAD["phone.heic"][0](tmp_path / "phone.heic")
    monkeypatch.setattr(decoding, "formats", lambda: ("JPEG",))
    with pytest.raises(UnreadableError, match=r'HEIC.*pip install "lightconv\[heif\]"'):
        decode(tmp_path / "phone.heic", SIDE)


def test_heic(tmp_path):
    pytest.importorskip("pillow_heif")
    decoding.formats()
    save(photograph(), "HEIF", quality=95)(tmp_path / "phone.jpg")
    expected = pixels(ImageOps.fit(photograph(), (SIDE, SIDE), Image.Resampling.BICUBIC))
    assert difference(decode(tmp_path / "phone.jpg", SIDE), expected) < 6


def exif(orientation=1):
    tags = Image.Exif()
    tags[0x0112] = orientation
    tags[0x010F] = "maker"
    tags.get_ifd(0x8825)[2] = (1.0, 2.0, 3.0)
    return tags.tobytes()


PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
PACKET = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="1"/></x:xmpmeta>'
METADATA = {"exif": exif(), "icc_profile": PROFILE, "xmp": PACKET}


def damage(data, draw):
    """Flip bytes, cut, or replace the data."""
    kind = draw.integers(3)
    if kind == 0:
        changed = bytearray(data)
        for place in draw.integers(len(data), size=4):
            changed[place] ^= 1 + draw.integers(255)
        return bytes(changed)
    if kind == 1:
        return data[: draw.integers(1, len(data))]
    return data[:6] + draw.bytes(40)


@pytest.mark.parametrize("metadata", METADATA)
@pytest.mark.parametrize("kind", ["PNG", "WEBP", "JPEG", "TIFF"])
@pytest.mark.filterwarnings("ignore")
def test_damaged_metadata_is_no_damaged_image(tmp_path, kind, metadata):
    draw = np.random.default_rng(0)
    path = tmp_path / "x"
    options = {"lossless": True} if kind == "WEBP" else {}
    save(photograph(), kind, **options)(path)
    expected = decode(path, SIDE)
    for _ in range(40):
        damaged = damage(METADATA[metadata], draw)
        try:
            photograph().save(path, kind, **options, **{metadata: damaged})
        except (SyntaxError, struct.error):
            continue  # PIL writes no EXIF of this kind
        assert decode(path, SIDE).shape == expected.shape
        if metadata != "exif":  # a damaged orientation may turn the image
            assert torch.equal(decode(path, SIDE), expected)


def png_chunk(kind, data, checksum=None):
    checksum = zlib.crc32(kind + data) if checksum is None else checksum
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)


@pytest.mark.parametrize(
    "chunk",
    [
        png_chunk(b"tEXt", b"Comment\0x", checksum=1),
        png_chunk(b"eXIf", exif(6), checksum=1),
        png_chunk(b"iCCP", b"sRGB\0\7" + zlib.compress(PROFILE)),
        png_chunk(b"iCCP", b"sRGB\0\0" + zlib.compress(bytes(2**27))),
        png_chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(2**21))),
        png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(bytes(2**27))),
        png_chunk(b"gAMA", b"\1"),
        png_chunk(b"pHYs", b""),
        png_chunk(b"cHRM", b"\0"),
        png_chunk(b"sRGB", b""),
    ],
    ids=["checksum", "exif checksum", "method", "profile", "text", "packet", "gamma", "dots", "colours", "intent"],
)
def test_png_with_a_damaged_ancillary_chunk(tmp_path, chunk):
    whole = content(photograph(), "PNG")
    (tmp_path / "whole.png").write_bytes(whole)
    (tmp_path / "x.png").write_bytes(whole[:33] + chunk + whole[33:])  # after the signature and IHDR
    assert torch.equal(decode(tmp_path / "x.png", SIDE), decode(tmp_path / "whole.png", SIDE))


@pytest.mark.parametrize(
    "segment", [b"\xff\xed\0\x15Photoshop 3.0\0" + b"8BIM\4", b"\xff\xe0\0\6JFIF", b"\xff\xe2\0\x10ICC_PROFILE\0\0\0"]
)
def test_jpeg_with_a_damaged_segment(tmp_path, segment):
    whole = content(photograph(), "JPEG")
    (tmp_path / "whole.jpg").write_bytes(whole)
    (tmp_path / "x.jpg").write_bytes(whole[:2] + segment + whole[2:])
    assert torch.equal(decode(tmp_path / "x.jpg", SIDE), decode(tmp_path / "whole.jpg", SIDE))


def test_orientation_beside_other_damage(tmp_path):
    tags = Image.Exif()
    tags[0x0112] = 6
    upright = photograph(size=(30, 30))
    damaged = tags.tobytes()[:-4] + b"\xff\xff\xff\xff"  # where the next directory would begin
    save(upright.transpose(Image.Transpose.ROTATE_90), "PNG", exif=damaged)(tmp_path / "x.png")
    assert torch.equal(decode(tmp_path / "x.png", 30), pixels(upright))
