"""Images of a batch mixed with each other, and their labels alike.

mixup: Zhang, Cisse, Dauphin, Lopez-Paz: mixup: beyond empirical risk minimization, ICLR (2018).
CutMix: Yun, Han, Oh, Chun, Choe, Yoo: CutMix: regularization strategy to train strong classifiers with localizable
features, ICCV (2019).
"""

import torch
from jaxtyping import Float
from torch import Tensor

from lightconv.data.augmentation.boxes import within
from lightconv.errors import InputError


class Mixing:
    """Mix every image with the one before it in its batch, by its own random amount.

    mixup adds both up; CutMix puts a rectangle of the other into the image. How much of the image is kept is drawn from
    Beta(a, a), and the labels become shares. With both, each image has the one or the other.

    Args:
        mixup: the a of mixup, 0 for none; the paper takes 0.1 to 0.4 on photographs.
        cutmix: the a of CutMix, 0 for none; the paper takes 1.
        probability: that an image is mixed at all.

    Raises:
        InputError: for a number out of range, or with nothing to do.
    """

    def __init__(self, mixup: float = 0.0, cutmix: float = 0.0, probability: float = 1.0) -> None:
        if not (mixup >= 0 and cutmix >= 0 and mixup + cutmix > 0):
            raise InputError(f"mixing: mixup={mixup}, cutmix={cutmix}: give one of them above 0, and none below")
        if not 0 <= probability <= 1:
            raise InputError(f"mixing: probability={probability} is not between 0 and 1")
        self.mixup, self.cutmix, self.probability = mixup, cutmix, probability

    def __call__(
        self, images: Float[Tensor, "n c h w"], labels: Float[Tensor, "n classes"], generator: torch.Generator
    ) -> tuple[Float[Tensor, "n c h w"], Float[Tensor, "n classes"]]:
        """Return mixed images, and the share that each class has in them."""
        height, width = images.shape[2:]
        kept = self.kept(len(images), (height, width), generator)
        return _mixed(images, kept), _mixed(labels, kept.mean((2, 3)))

    def kept(self, n: int, size: tuple[int, int], generator: torch.Generator) -> Float[Tensor, "n 1 h w"]:
        """Draw how much of each pixel is the image's own.

        Args:
            n: how many images.
            size: their height and width in pixels.
            generator: of the draws.
        """
        cuts, mixes, *centre = torch.rand(4, n, generator=generator, device=generator.device)
        cut = cuts < (0.5 if self.mixup and self.cutmix else float(self.cutmix > 0))
        share = torch.where(cut, draw_beta(self.cutmix, n, generator), draw_beta(self.mixup, n, generator))
        share = torch.where(mixes < self.probability, share, 1.0)
        side = (1 - share).sqrt()[:, None].expand(n, 2)
        box = within(torch.stack(centre, 1) - side / 2, side, size)
        cut, share = cut[:, None, None, None], share[:, None, None, None]
        return torch.where(cut, (~box).float(), share)


def draw_beta(parameter: float, n: int, generator: torch.Generator) -> Float[Tensor, " n"]:
    """Draw from Beta(parameter, parameter): torch's own distribution takes no generator. Ones, for parameter 0."""
    if not parameter:
        return torch.ones(n, device=generator.device)
    # in float64, where small parameters do not make 0 out of both
    parameters = torch.full((2, n), parameter, dtype=torch.float64, device=generator.device)
    first, second = torch._standard_gamma(parameters, generator)
    return (first / (first + second)).float()


def _mixed(values: Tensor, kept: Tensor) -> Tensor:
    return kept * values + (1 - kept) * values.roll(1, 0)
