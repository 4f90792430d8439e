import torch
from scipy.stats import kstest
from torchvision.transforms.v2 import RandomErasing
from torchvision.transforms.v2 import functional as F

from lightconv.data import Augmentation
from lightconv.data.augmentation.erasing import erase
from lightconv.data.batches import seeded_generator

IMAGES = 2 + torch.rand(400, 2, 20, 30, generator=torch.Generator().manual_seed(0))


def boxes(erased):
    """Top, left, height and width of what was erased in each image: noise is below 1, the images above 2."""
    for image in erased:
        rows, columns = (image[0] < 1).nonzero(as_tuple=True)
        top, left = rows.min().item(), columns.min().item()
        yield top, left, rows.max().item() - top + 1, columns.max().item() - left + 1


def test_erase_equals_torchvision():
    erased = erase(IMAGES, 1.0, seeded_generator(0))
    for (top, left, height, width), image, before in zip(boxes(erased), erased, IMAGES, strict=True):
        noise = image[:, top : top + height, left : left + width]
        assert torch.equal(image, F.erase(before, top, left, height, width, noise))
    everywhere = erased[erased < 1]
    assert kstest(everywhere[::50].numpy(), "uniform").pvalue > 0.01


def test_rectangles_distributed_as_torchvision():
    torch.manual_seed(0)
    theirs = RandomErasing(scale=(0.02, 1 / 3), ratio=(0.3, 1 / 0.3), value=0)
    expected = [theirs.make_params([IMAGES[0]]) for _ in range(2000)]
    tops, lefts, heights, widths = zip(*boxes(erase(IMAGES.repeat(5, 1, 1, 1), 1.0, seeded_generator(0))), strict=True)
    for ours, name in ((tops, "i"), (lefts, "j"), (heights, "h"), (widths, "w")):
        assert kstest(ours, [box[name] for box in expected]).statistic < 0.06


def test_erasing_probability():
    erased = Augmentation(erasing=0.25)(IMAGES, seeded_generator(0))
    touched = (erased != IMAGES).flatten(1).any(1)
    assert 70 < touched.sum() < 130
    assert torch.equal(Augmentation(erasing=0)(IMAGES, seeded_generator(0)), IMAGES)
