import pytest
import torch
from torchvision.transforms.v2 import functional as F

from lightconv.data import Augmentation
from lightconv.data.batches import seeded_generator

COLOURED = torch.rand(16, 3, 9, 11, generator=torch.Generator().manual_seed(0))
COLOURED[0], COLOURED[1] = 0, 0.3
GREY = COLOURED[:, :1]


@pytest.mark.parametrize("images", [COLOURED, GREY], ids=["coloured", "grey"])
@pytest.mark.parametrize(
    ("name", "row", "theirs"),
    [
        ("brightness", 0, F.adjust_brightness),
        ("contrast", 1, F.adjust_contrast),
        ("saturation", 2, F.adjust_saturation),
    ],
)
@pytest.mark.parametrize("largest", [0.2, 1.0])
def test_factors_equal_torchvision_per_image(images, name, row, theirs, largest):
    factors = 1 + largest * (2 * torch.rand(5, len(images), generator=seeded_generator(0))[row] - 1)
    expected = [theirs(image, factor) for image, factor in zip(images, factors.tolist(), strict=True)]
    torch.testing.assert_close(Augmentation(**{name: largest})(images, seeded_generator(0)), torch.stack(expected))
    assert factors.max() - factors.min() > largest


@pytest.mark.parametrize("images", [COLOURED, GREY], ids=["coloured", "grey"])
def test_hue_equals_torchvision_per_image(images):
    turns = 0.5 * (2 * torch.rand(5, len(images), generator=seeded_generator(0))[3] - 1)
    expected = [F.adjust_hue(image, turn) for image, turn in zip(images, turns.tolist(), strict=True)]
    torch.testing.assert_close(Augmentation(hue=0.5)(images, seeded_generator(0)), torch.stack(expected))


def test_grayscale_probability():
    varied = Augmentation(grayscale=0.5)(COLOURED, seeded_generator(0))
    grey = F.rgb_to_grayscale(COLOURED, num_output_channels=3)
    lost = torch.isclose(varied, grey).flatten(1).all(1)
    kept = (varied == COLOURED).flatten(1).all(1)
    assert (lost[2:] ^ kept[2:]).all()
    assert 3 < lost[2:].sum() < 11
    assert torch.equal(Augmentation(grayscale=1)(GREY, seeded_generator(0)), GREY)


def test_order_and_range():
    options = {"brightness": 0.5, "contrast": 0.4, "saturation": 0.3, "hue": 0.2}
    varied = Augmentation(**options)(COLOURED, seeded_generator(0))
    drawn = 2 * torch.rand(5, 16, generator=seeded_generator(0)) - 1
    for index, image in enumerate(COLOURED):
        expected = F.adjust_brightness(image, 1 + 0.5 * drawn[0, index].item())
        expected = F.adjust_contrast(expected, 1 + 0.4 * drawn[1, index].item())
        expected = F.adjust_saturation(expected, 1 + 0.3 * drawn[2, index].item())
        expected = F.adjust_hue(expected, 0.2 * drawn[3, index].item())
        torch.testing.assert_close(varied[index], expected, rtol=0, atol=1e-5)
    assert varied.min() >= 0
    assert varied.max() <= 1


def test_two_channels():
    infrared = COLOURED[:, :2]
    varied = Augmentation(brightness=0.2, contrast=0.2, saturation=1, hue=0.5, grayscale=1)(
        infrared, seeded_generator(0)
    )
    assert torch.equal(varied, Augmentation(brightness=0.2, contrast=0.2)(infrared, seeded_generator(0)))
