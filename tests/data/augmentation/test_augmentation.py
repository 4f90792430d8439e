import pytest
import torch

from lightconv.data import Augmentation, Digits
from lightconv.data.batches import seeded_generator
from lightconv.errors import InputError

IMAGES = torch.rand(64, 2, 6, 8, generator=torch.Generator().manual_seed(0))


def test_identity_by_default():
    assert Augmentation()(IMAGES, seeded_generator(0)) is IMAGES


def test_flip_probability():
    varied = Augmentation(flip=0.5)(IMAGES, seeded_generator(0))
    kept = (varied == IMAGES).flatten(1).all(1)
    mirrored = (varied == IMAGES.flip(3)).flatten(1).all(1)
    assert (kept ^ mirrored).all()
    assert 16 < mirrored.sum() < 48
    assert torch.equal(Augmentation(flip=1)(IMAGES, seeded_generator(0)), IMAGES.flip(3))


def test_crops_are_windows_of_the_padded_image():
    varied = Augmentation(crop=1)(IMAGES, seeded_generator(0))
    padded = torch.nn.functional.pad(IMAGES, [1, 1, 1, 1])
    windows = torch.stack([padded[:, :, r : r + 6, c : c + 8] for r in range(3) for c in range(3)])
    hits = (windows == varied).flatten(2).all(2)
    assert hits.any(0).all()
    assert hits.any(1).all()  # all nine corners occur among 64 images


def test_shift_range():
    point = torch.zeros(256, 1, 21, 21)
    point[:, :, 10, 10] = 1
    varied = Augmentation(shift=2 / 21)(point, seeded_generator(0))
    rows = (varied.sum((1, 3)) * torch.arange(21)).sum(1) - 10
    assert rows.abs().max() <= 2 + 1e-4
    assert rows.min() < -1.5
    assert rows.max() > 1.5


def test_rotation_by_a_right_angle():
    augmentation = Augmentation(rotation=90)
    ends = torch.zeros(512, 1, 5, 5)
    ends[:, :, 0, 2] = 1  # a dot at the top may travel to the left and right, never to the bottom
    varied = augmentation(ends, seeded_generator(0))
    assert varied[:, 0, 4].abs().max() < 1e-6
    assert varied[:, 0, 2, 0].max() > 0.9
    assert varied[:, 0, 2, 4].max() > 0.9


def test_scale_range():
    square = torch.zeros(256, 1, 40, 40)
    square[:, :, 10:30, 10:30] = 1
    area = Augmentation(scale=0.1)(square, seeded_generator(0)).sum((1, 2, 3)).sqrt() / 20
    assert 0.89 < area.min() < 0.93
    assert 1.07 < area.max() < 1.11


EVERYTHING = {
    "flip": 0.5, "vertical_flip": 0.5, "crop": 1, "crop_area": (0.5, 1), "rotation": 10, "scale": 0.1, "shift": 0.1,
    "shear": 10, "squeeze": 0.1, "brightness": 0.2, "contrast": 0.2, "saturation": 0.2, "hue": 0.1, "grayscale": 0.2,
    "erasing": 0.5,
}  # fmt: skip


@pytest.mark.parametrize("channels", [1, 3])
def test_generator_determines_each_image(channels, device):
    images = IMAGES[:1, :1].expand(8, channels, -1, -1).to(device)
    augmentation = Augmentation(**EVERYTHING)
    torch.manual_seed(1)
    first = augmentation(images, seeded_generator(3, device=device))
    torch.manual_seed(2)
    assert torch.equal(first, Augmentation(**EVERYTHING)(images, seeded_generator(3, device=device)))
    assert not torch.equal(first, augmentation(images, seeded_generator(4, device=device)))
    assert len({tuple(image.flatten().tolist()) for image in first}) == 8
    assert first.shape == images.shape


@pytest.mark.parametrize("name", EVERYTHING)
def test_every_setting_changes_something(name):
    images = torch.rand(64, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert not torch.equal(Augmentation(**{name: EVERYTHING[name]})(images, seeded_generator(0)), images)


@pytest.mark.parametrize("name", EVERYTHING)
def test_repr_has_every_setting(name):
    # features of augmented images are kept on disk under these words
    assert repr(Augmentation(**EVERYTHING)) == repr(Augmentation(**EVERYTHING))
    assert repr(Augmentation(**EVERYTHING)) != repr(Augmentation(**{k: v for k, v in EVERYTHING.items() if k != name}))


def test_input_is_unchanged():
    images = torch.rand(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    before = images.clone()
    Augmentation(**EVERYTHING)(images, seeded_generator(0))
    assert torch.equal(images, before)


def test_evaluation_is_not_augmented():
    data, plain = Digits(augmentation=Augmentation(**EVERYTHING)), Digits()
    for loader in ("val_dataloader", "test_dataloader", "predict_dataloader"):
        ours, theirs = next(iter(getattr(data, loader)())), next(iter(getattr(plain, loader)()))
        assert torch.equal(ours[0], theirs[0])
    assert not torch.equal(next(iter(data.train_dataloader()))[0], next(iter(plain.train_dataloader()))[0])


@pytest.mark.parametrize(
    "options",
    [
        {"flip": 1.5}, {"shift": -0.1}, {"scale": 1}, {"rotation": 270}, {"crop": -1}, {"squeeze": 2}, {"shear": 90},
        {"hue": 0.6}, {"brightness": -1}, {"erasing": 2}, {"crop_area": [0.5, 0.1]}, {"crop_area": [0, 1]},
        {"crop_area": [0.5, 1.5]}, {"crop_area": [0.5]}, {"crop_aspect": [0, 1]}, {"padding_mode": "mirror"},
    ],
)  # fmt: skip
def test_out_of_range(options):
    with pytest.raises(InputError, match=next(iter(options))):
        Augmentation(**options)
