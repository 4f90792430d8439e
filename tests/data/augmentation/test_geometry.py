import math

import pytest
import torch
from scipy.stats import kstest
from torch.nn.functional import affine_grid, grid_sample, pad
from torchvision.transforms.v2 import functional as F

from lightconv.data import Augmentation
from lightconv.data.augmentation.boxes import draw_sides, pixels_inside
from lightconv.data.batches import seeded_generator

SQUARE = torch.rand(32, 3, 28, 28, generator=torch.Generator().manual_seed(0))
WIDE = torch.rand(32, 2, 18, 30, generator=torch.Generator().manual_seed(1))


def first_release(images, generator, flip=0.0, crop=0, rotation=0.0, scale=0.0, shift=0.0):
    """The code with which the accuracies in README were reached."""
    n, _, height, width = images.shape
    if flip:
        mirrored = torch.rand(n, generator=generator) < flip
        images = torch.where(mirrored[:, None, None, None], images.flip(3), images)
    if crop:
        corner = torch.randint(2 * crop + 1, (2, n, 1), generator=generator)
        rows, columns = corner[0] + torch.arange(height), corner[1] + torch.arange(width)
        image = torch.arange(n)[:, None, None]
        padded = pad(images, [crop] * 4).permute(0, 2, 3, 1)
        images = padded[image, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
    if rotation or scale or shift:
        angle, size, x, y = 2 * torch.rand(4, n, generator=generator) - 1
        angle, size = math.radians(rotation) * angle, 1 + scale * size
        cosine, sine = torch.cos(angle) / size, torch.sin(angle) / size
        rows = [cosine, -sine, 2 * shift * x, sine, cosine, 2 * shift * y]
        grid = affine_grid(torch.stack(rows, 1).view(n, 2, 3), list(images.shape), align_corners=False)
        images = grid_sample(images, grid, align_corners=False)
    return images


@pytest.mark.parametrize(
    "options",
    [
        {"flip": 0.5},
        {"crop": 2},
        {"flip": 0.5, "crop": 1},
        {"rotation": 10, "scale": 0.1, "shift": 0.1},
        {"rotation": 30},
        {"scale": 0.3},
        {"shift": 0.2},
    ],
    ids=str,
)
def test_bits_of_the_first_release(options):
    for seed in range(3):
        expected = first_release(SQUARE, seeded_generator(seed), **options)
        assert torch.equal(Augmentation(**options)(SQUARE, seeded_generator(seed)), expected)


def test_whole_pixels_equal_resampling():
    options = {"flip": 0.5, "vertical_flip": 0.5, "crop": 3}
    whole = Augmentation(**options)(WIDE, seeded_generator(0))
    resampled = Augmentation(**options, rotation=1e-9)(WIDE, seeded_generator(0))
    torch.testing.assert_close(resampled, whole, rtol=0, atol=1e-4)


def drawn(images, seed=0, **options):
    """What is drawn first for the geometry, in torchvision's words, and the images that it makes."""
    draw = seeded_generator(seed)
    angle, scale, x, y = (2 * torch.rand(4, len(images), generator=draw) - 1).tolist()
    squeeze, slant = (2 * torch.rand(2, len(images), generator=draw) - 1).tolist()
    return zip(
        Augmentation(**options)(images, seeded_generator(seed)), images, angle, scale, x, y, squeeze, slant, strict=True
    )


def assert_equal(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-4)


BILINEAR = {"interpolation": F.InterpolationMode.BILINEAR}
STILL = {"angle": 0.0, "translate": [0, 0], "scale": 1.0, "shear": [0.0, 0.0]} | BILINEAR


@pytest.mark.parametrize("images", [SQUARE, WIDE], ids=["square", "wide"])
def test_rotation_scale_and_shear_equal_torchvision(images):
    for ours, image, angle, *_ in drawn(images, rotation=40):
        assert_equal(ours, F.affine(image, **STILL | {"angle": -40 * angle}))
    for ours, image, _, scale, *_ in drawn(images, scale=0.3):
        assert_equal(ours, F.affine(image, **STILL | {"scale": 1 + 0.3 * scale}))
    for ours, image, *_, slant in drawn(images, shear=30):
        assert_equal(ours, F.affine(image, **STILL | {"shear": [30 * slant, 0.0]}))


def test_shift_equals_torchvision():
    for ours, image, _, _, x, y, *_ in drawn(WIDE, shift=0.5):
        # torchvision rounds to whole pixels, so each side is looked at between two of them
        columns, rows = -0.5 * x * 30, -0.5 * y * 18
        left, upper = math.floor(columns), math.floor(rows)
        right, lower = columns - left, rows - upper
        expected = sum(
            weight * F.affine(image, **STILL | {"translate": [left + across, upper + down]})
            for across, down, weight in (
                (0, 0, (1 - right) * (1 - lower)),
                (1, 0, right * (1 - lower)),
                (0, 1, (1 - right) * lower),
                (1, 1, right * lower),
            )
        )
        assert_equal(ours, expected)


def test_squeeze_keeps_the_area():
    squeezed = Augmentation(squeeze=1)
    sources = squeezed.geometry.draw_maps(2000, (28, 28), seeded_generator(0))
    across, down = sources[:, 0, 0], sources[:, 1, 1]
    torch.testing.assert_close(across * down, torch.ones(2000))
    assert across.min() == pytest.approx(0.5**0.5, abs=0.01)
    assert across.max() == pytest.approx(2**0.5, abs=0.01)
    assert kstest((across / down).log2().numpy(), "uniform", (-1, 2)).pvalue > 0.01
    assert not sources[:, [0, 1], [1, 0]].any()


def test_order_of_moves_in_one_resampling(monkeypatch):
    def homogeneous(upper, lower):
        return torch.tensor([upper, lower, [0, 0, 1]], dtype=torch.float64)

    options = {"flip": 1, "crop": 2, "shift": 0.2, "rotation": 30, "shear": 20, "scale": 0.2, "squeeze": 0.3}
    augmentation, size = Augmentation(**options), (18, 30)
    sources = augmentation.geometry.draw_maps(8, size, seeded_generator(0))
    draw = seeded_generator(0)
    torch.rand(8, generator=draw)
    corners = torch.randint(5, (2, 8, 1), generator=draw)
    angle, scale, x, y = 2 * torch.rand(4, 8, generator=draw, dtype=torch.float32) - 1
    squeeze, slant = 2 * torch.rand(2, 8, generator=draw) - 1
    pixels = homogeneous([15, 0, 0], [0, 9, 0])  # from grid_sample's units
    for i in range(8):
        sine, cosine = math.sin(math.radians(30 * angle[i])), math.cos(math.radians(30 * angle[i]))
        stretch = 1.3 ** (squeeze[i] / 2)
        across, down = (1 + 0.2 * scale[i]) * stretch, (1 + 0.2 * scale[i]) / stretch
        backwards = (
            homogeneous([-1, 0, 0], [0, 1, 0])  # flip
            @ homogeneous([1, 0, corners[1, i, 0] - 2], [0, 1, corners[0, i, 0] - 2])  # crop
            @ homogeneous([1, 0, 0.2 * 30 * x[i]], [0, 1, 0.2 * 18 * y[i]])  # shift
            @ homogeneous([cosine, -sine, 0], [sine, cosine, 0])  # rotation
            @ homogeneous([1, math.tan(math.radians(20 * slant[i])), 0], [0, 1, 0])  # shear
            @ homogeneous([1 / across, 0, 0], [0, 1 / down, 0])  # scale and squeeze
        )
        expected = (pixels.inverse() @ backwards @ pixels)[:2].float()
        torch.testing.assert_close(sources[i], expected, rtol=1e-4, atol=1e-5)

    calls = []
    monkeypatch.setattr(
        "lightconv.data.augmentation.geometry.grid_sample",
        lambda *arguments, **options: calls.append(arguments) or grid_sample(*arguments, **options),
    )
    augmentation(WIDE, seeded_generator(0))
    assert len(calls) == 1


def test_crop_area_equals_torchvision():
    image, size = SQUARE[:1, :, :16, :16], (16, 16)
    augmentation = Augmentation(crop_area=[1 / 4, 1 / 4], crop_aspect=[1, 1])
    varied = augmentation(image.expand(20_000, -1, -1, -1), seeded_generator(0))
    sources = augmentation.geometry.draw_maps(20_000, size, seeded_generator(0))
    assert torch.equal(sources[:, :, :2], 0.5 * torch.eye(2).expand(20_000, 2, 2))
    corners = (sources[:, :, 2] + 1) * 8 - 4
    assert (corners.min(), corners.max()) == (pytest.approx(0, abs=1e-2), pytest.approx(8, abs=1e-2))
    whole = ((corners - corners.round()).abs() < 0.01).all(1).nonzero()[:, 0]  # torchvision cuts whole pixels
    assert len(whole) > 4
    for index in whole.tolist():
        left, top = corners[index].round().int().tolist()
        theirs = F.resized_crop(image[0], top, left, 8, 8, list(size), antialias=False)
        # torchvision does not look beyond the edge of what it has cut
        torch.testing.assert_close(varied[index, :, 1:-1, 1:-1], theirs[:, 1:-1, 1:-1], rtol=0, atol=0.02)


@pytest.mark.parametrize(("area", "aspect"), [((0.08, 1.0), (3 / 4, 4 / 3)), ((0.02, 0.33), (0.3, 3.3))])
def test_sides_distributed_as_torchvision(area, aspect):
    from torchvision.transforms.v2 import RandomResizedCrop

    torch.manual_seed(0)
    theirs = RandomResizedCrop(8, area, aspect)
    boxes = [theirs.make_params([torch.empty(3, 400, 600)]) for _ in range(3000)]
    ours = draw_sides(3000, (400, 600), area, aspect, seeded_generator(0))
    assert kstest(ours[:, 0].numpy(), [box["width"] / 600 for box in boxes]).pvalue > 0.01
    assert kstest(ours[:, 1].numpy(), [box["height"] / 400 for box in boxes]).pvalue > 0.01


def test_too_large_rectangle_is_clipped():
    assert torch.equal(draw_sides(4, (20, 20), (1.0, 1.0), (2.0, 2.0), seeded_generator(0))[:, 0], torch.ones(4))


def test_pixels_inside():
    start, sides = (
        torch.tensor([[0.25, 0.0], [0.26, 0.0], [-1.0, -1.0]]),
        torch.tensor([[0.5, 1.0], [0.5, 0.1], [3, 3.0]]),
    )
    columns, first, everything = pixels_inside(start, sides, (2, 4))[:, 0]
    assert columns.tolist() == [[False, True, True, False]] * 2
    assert not first.any()
    assert everything.all()


@pytest.mark.parametrize(("mode", "edge"), [("zeros", 0.0), ("border", 1.0), ("reflection", 1.0)])
@pytest.mark.parametrize("options", [{"crop": 4}, {"shift": 0.2, "rotation": 20}], ids=str)
def test_padding_values(mode, edge, options):
    varied = Augmentation(padding_mode=mode, **options)(torch.ones(64, 1, 12, 12), seeded_generator(0))
    assert varied.min() == pytest.approx(edge, abs=1e-5)


def test_reflection_and_border():
    ramp = torch.arange(12.0).expand(64, 1, 12, 12)
    reflected, edged = (
        Augmentation(crop=4, padding_mode=m)(ramp, seeded_generator(0)) for m in ("reflection", "border")
    )
    shift = (reflected[:, 0, 0, 6] - 6).round().long()  # of the image to the left
    assert set(shift.tolist()) == set(range(-4, 5))
    for image, other, by in zip(reflected[:, 0, 0], edged[:, 0, 0], shift.tolist(), strict=True):
        places = [c + by for c in range(12)]
        torch.testing.assert_close(image, torch.tensor([float(min(max(p, -1 - p), 23 - p)) for p in places]))
        torch.testing.assert_close(other, torch.tensor([float(min(max(p, 0), 11)) for p in places]))
