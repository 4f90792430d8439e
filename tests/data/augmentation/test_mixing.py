import pytest
import torch
from scipy.stats import kstest
from torch.nn.functional import one_hot
from torchvision.transforms.v2 import CutMix, MixUp

from lightconv.data import Digits, Mixing
from lightconv.data.augmentation.mixing import draw_beta
from lightconv.data.batches import seeded_generator
from lightconv.errors import InputError

IMAGES = torch.rand(64, 3, 12, 20, generator=torch.Generator().manual_seed(0))
CLASSES = torch.arange(64) % 5
LABELS = one_hot(CLASSES, 5).float()


def torchvisions(mixing, index, **parameters):
    """What torchvision makes of an image and the one before it, with what was drawn for the image."""
    pair = [index - 1, index]
    parameters = {"labels": CLASSES[pair], "batch_size": 2, **parameters}
    return [mixing.transform(value, parameters)[1] for value in (IMAGES[pair], parameters["labels"])]


def test_mixup_equals_torchvision_per_image():
    mixing = Mixing(mixup=0.4)
    images, labels = mixing(IMAGES, LABELS, seeded_generator(0))
    kept = mixing.draw_masks(64, (12, 20), seeded_generator(0))[:, 0, 0, 0]
    assert len(kept.unique()) == 64
    for index, share in enumerate(kept.tolist()):
        expected, label = torchvisions(MixUp(num_classes=5), index, lam=share)
        torch.testing.assert_close(images[index], expected)
        torch.testing.assert_close(labels[index], label)


def test_cutmix_equals_torchvision_per_image():
    mixing = Mixing(cutmix=1)
    images, labels = mixing(IMAGES, LABELS, seeded_generator(0))
    for index, kept in enumerate(mixing.draw_masks(64, (12, 20), seeded_generator(0))[:, 0]):
        rows, columns = (kept == 0).nonzero(as_tuple=True)
        box = (0, 0, 0, 0)
        if len(rows):
            box = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        expected, label = torchvisions(CutMix(num_classes=5), index, box=box, lam_adjusted=kept.mean().item())
        assert torch.equal(images[index], expected)
        torch.testing.assert_close(labels[index], label)


def test_cutmix_distributed_as_torchvision():
    torch.manual_seed(0)
    size = (100, 150)  # torchvision rounds down to whole pixels: not too few of them
    theirs = [CutMix(num_classes=5).make_params([torch.empty(3, *size)])["lam_adjusted"] for _ in range(3000)]
    ours = Mixing(cutmix=1).draw_masks(1000, size, seeded_generator(0)).mean((1, 2, 3))
    assert kstest(ours.numpy(), theirs).statistic < 0.06


@pytest.mark.parametrize("parameter", [0.01, 0.2, 1.0, 3.0])
def test_beta_distribution(parameter):
    shares = draw_beta(parameter, 5000, seeded_generator(0))
    assert shares.isfinite().all()
    assert shares.mean() == pytest.approx(0.5, abs=0.02)
    if parameter >= 0.2:  # less is 0 or 1 in float32
        assert kstest(shares.double().clamp(1e-30, 1).numpy(), "beta", (parameter, parameter)).pvalue > 0.01


def test_mixup_and_cutmix_exclude_each_other():
    kept = Mixing(mixup=1, cutmix=1, probability=0.6).draw_masks(4000, (8, 8), seeded_generator(0)).flatten(1)
    untouched = (kept == 1).all(1)
    mixed = ((kept > 0) & (kept < 1)).all(1)
    cut = ~untouched & ((kept == 0) | (kept == 1)).all(1)
    assert (untouched | mixed | cut).all()
    assert mixed.float().mean() == pytest.approx(0.3, abs=0.03)
    assert untouched.float().mean() == pytest.approx(0.4, abs=0.05)  # and some rectangles hold no pixel


def test_batch_of_one():
    images, labels = Mixing(mixup=1, cutmix=1)(IMAGES[:1], LABELS[:1], seeded_generator(0))
    torch.testing.assert_close(images, IMAGES[:1])
    torch.testing.assert_close(labels, LABELS[:1])


def test_only_training_labels_are_shares():
    mixing = Mixing(mixup=0.2, cutmix=1)
    data = Digits(mixing=mixing, batch_size=64)
    data.setup("fit")
    images, labels = next(iter(data.train_dataloader()))
    assert labels.shape == (64, 10)
    torch.testing.assert_close(labels.sum(1), torch.ones(64))
    plain = Digits(batch_size=64)
    unmixed, classes = next(iter(plain.train_dataloader()))
    assert (images != unmixed).flatten(1).any(1).sum() > 48
    assert (labels.gather(1, classes[:, None]) > 0).float().mean() > 0.9
    for loader, expected in (
        (data.val_dataloader(), plain.val_dataloader()),
        (data.test_dataloader(), plain.test_dataloader()),
    ):
        for ours, theirs in zip(loader, expected, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_generator_determines_mixing(device):
    images, labels, mixing = IMAGES.to(device), LABELS.to(device), Mixing(mixup=0.2, cutmix=1)
    torch.manual_seed(1)
    once = mixing(images, labels, seeded_generator(3, device=device))
    torch.manual_seed(2)
    again = mixing(images, labels, seeded_generator(3, device=device))
    other = mixing(images, labels, seeded_generator(4, device=device))
    assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(once, other, strict=True))


@pytest.mark.parametrize("options", [{}, {"mixup": -1, "cutmix": 2}, {"mixup": 0.2, "probability": 1.5}])
def test_mixing_out_of_range(options):
    with pytest.raises(InputError, match="mixing"):
        Mixing(**options)
