"""Mix images of a batch with each other, and their labels in the same shares.

mixup: Zhang, Cisse, Dauphin, Lopez-Paz: mixup: beyond empirical risk minimization, ICLR (2018).
CutMix: Yun, Han, Oh, Chun, Choe, Yoo: CutMix: regularization strategy to train strong classifiers with localizable
features, ICCV (2019).
"""

import torch
from jaxtyping import Float
from torch import Tensor

from lightconv.data.augmentation.boxes import pixels_inside
from lightconv.errors import InputError


class Mixing:
    """Mix every image with the one before it in its batch, by its own random amount.

    mixup averages both images; CutMix pastes a rectangle of the other into the image. The share kept of the image is
    drawn from Beta(a, a), and labels become class shares. With both mixup and CutMix, each image gets one of them at
    equal odds.

    Args:
        mixup: parameter a of mixup, 0 for none; the paper takes 0.1 to 0.4 on photographs.
        cutmix: parameter a of CutMix, 0 for none; the paper takes 1.
        probability: probability of mixing, per image.

    Shape:
        - images: (n, c, h, w) float32; labels: (n, classes) float32, one-hot; with a generator on the same device.
        - returned: images and labels of the same shapes; each row of labels sums to 1.

    Raises:
        InputError: If a number is out of range, or both ``mixup`` and ``cutmix`` are 0.

    Example:
        >>> import torch
        >>> images, labels = torch.rand(8, 3, 32, 32), torch.eye(10)[:8]
        >>> images, labels = Mixing(cutmix=1)(images, labels, torch.Generator().manual_seed(0))
        >>> images.shape, labels.shape
        (torch.Size([8, 3, 32, 32]), torch.Size([8, 10]))
    """

    def __init__(self, mixup: float = 0.0, cutmix: float = 0.0, probability: float = 1.0) -> None:
        if not (mixup >= 0 and cutmix >= 0 and mixup + cutmix > 0):
            raise InputError(f"mixing: mixup={mixup}, cutmix={cutmix}: set one of them above 0, and none below 0")
        if not 0 <= probability <= 1:
            raise InputError(f"mixing: probability={probability} is not between 0 and 1")
        self.mixup = mixup
        self.cutmix = cutmix
        self.probability = probability

    def __call__(
        self, images: Float[Tensor, "n c h w"], labels: Float[Tensor, "n classes"], generator: torch.Generator
    ) -> tuple[Float[Tensor, "n c h w"], Float[Tensor, "n classes"]]:
        """Return mixed images and the share of each class in them."""
        n, _, height, width = images.shape
        mask = self.draw_masks(n, (height, width), generator)
        # (n, 1, h, w) -> (n, 1): share of an image's own pixels
        share = mask.mean((2, 3))
        return _blend(images, mask), _blend(labels, share)

    def draw_masks(self, n: int, size: tuple[int, int], generator: torch.Generator) -> Float[Tensor, "n 1 h w"]:
        """Draw per pixel the share of the image itself; the rest is the preceding image of the batch.

        The first image is mixed with the last one.

        Args:
            n: number of images.
            size: height and width of the images, in pixels.
            generator: source of randomness.
        """
        cuts, mixes, *centre = torch.rand(4, n, generator=generator, device=generator.device)
        cut_probability = float(self.cutmix > 0)
        if self.mixup and self.cutmix:
            cut_probability = 0.5
        cut = cuts < cut_probability
        share = torch.where(cut, draw_beta(self.cutmix, n, generator), draw_beta(self.mixup, n, generator))
        share = torch.where(mixes < self.probability, share, 1.0)
        # CutMix: a box of area 1 - share with a uniform centre; it may reach beyond the image, (n, 2)
        side = (1 - share).sqrt()[:, None].expand(n, 2)
        box = pixels_inside(torch.stack(centre, 1) - side / 2, side, size)
        # (n,) -> (n, 1, 1, 1), which broadcasts over (n, 1, h, w)
        return torch.where(cut[:, None, None, None], (~box).float(), share[:, None, None, None])


def draw_beta(parameter: float, n: int, generator: torch.Generator) -> Float[Tensor, " n"]:
    """Draw n numbers from Beta(parameter, parameter); ones if the parameter is 0.

    torch's own distribution takes no generator.
    """
    if not parameter:
        return torch.ones(n, device=generator.device)
    # float64, because both gammas of a small parameter would be 0 in float32
    parameters = torch.full((2, n), parameter, dtype=torch.float64, device=generator.device)
    first, second = torch._standard_gamma(parameters, generator)
    return (first / (first + second)).float()


def _blend(values: Tensor, share: Tensor) -> Tensor:
    """Blend each row with the row before it; the first row with the last."""
    return share * values + (1 - share) * values.roll(1, 0)
