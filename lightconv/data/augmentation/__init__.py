"""Random variations of training images, drawn per image and applied to the batch as a whole."""

from lightconv.data.augmentation.augmentation import Augmentation
from lightconv.data.augmentation.mixing import Mixing

__all__ = ["Augmentation", "Mixing"]
