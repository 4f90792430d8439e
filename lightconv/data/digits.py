"""1,797 real handwritten digits that come with scikit-learn: no download, no files."""

import torch
from sklearn.datasets import load_digits
from torch.nn.functional import interpolate

from lightconv.data.base import ImageData, Split, Stage, split_off


class Digits(ImageData):
    """scikit-learn's digits, enlarged from 8x8 to 28x28 pixels: 1,257 to train, 180 to validate, 360 to test.

    Source: E. Alpaydin, C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning Repository (1998),
    its test part, 43 writers. Pixels are block counts in 0..16; bilinear interpolation turns them into strokes of the
    width that LeNet expects.

    Shape:
        - splits: images (n, 1, 28, 28) uint8, labels (n,) int64.
        - batches: images (b, 1, 28, 28) float32, normalised; labels (b,) int64.

    Example:
        >>> data = Digits(batch_size=32)
        >>> images, labels = next(iter(data.train_dataloader()))
        >>> images.shape, labels.shape, data.classes[3]
        (torch.Size([32, 1, 28, 28]), torch.Size([32]), '3')
    """

    classes = tuple("0123456789")
    image_shape = (1, 28, 28)
    mean = (0.3049,)
    std = (0.3244,)

    def load(self, stage: Stage) -> dict[str, Split]:
        """Split the embedded set; all three splits come out of the same file."""
        digits = load_digits()
        # (n, 8, 8) float64 in 0..16 -> (n, 1, 28, 28) uint8
        small = torch.from_numpy(digits.images).float().unsqueeze(1)
        large = interpolate(small, size=self.image_shape[1:], mode="bilinear", align_corners=False)
        images = (large * (255 / 16)).round().to(torch.uint8)
        labels = torch.from_numpy(digits.target).long()
        rest, test = split_off(images, labels, 360)
        if stage == "test":
            return {"test": test}
        train, validation = split_off(*rest, 180)
        return {"train": train, "validation": validation}
