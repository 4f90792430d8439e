"""Size, mean and standard deviation of the images that a network expects."""

import warnings
from dataclasses import dataclass
from typing import Any

_RENAMED = "Preprocessing.deviation was renamed: use std"


@dataclass(frozen=True, init=False)
class Preprocessing:
    """Size and normalisation of the images that weights were trained on.

    Attributes:
        image_size: height and width, in pixels.
        mean: mean per channel, for pixels in 0..1.
        std: standard deviation per channel, for pixels in 0..1.

    A grey image is repeated for as many channels as ``mean`` has.

    Example:
        >>> from lightconv.preprocessing import Preprocessing
        >>> Preprocessing(image_size=224, mean=(0.5,), std=(0.25,))
        Preprocessing(image_size=224, mean=(0.5,), std=(0.25,))
    """

    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __init__(
        self,
        image_size: int,
        mean: tuple[float, ...],
        std: tuple[float, ...] | None = None,
        *,
        deviation: tuple[float, ...] | None = None,
    ) -> None:
        if deviation is not None:
            warnings.warn(_RENAMED, DeprecationWarning, stacklevel=2)
            std = deviation
        if std is None:
            raise TypeError("Preprocessing needs std, the standard deviation per channel")
        # the class is frozen, so attributes are set past its own __setattr__
        vars(self).update(image_size=image_size, mean=mean, std=std)

    @property
    def deviation(self) -> tuple[float, ...]:
        """Standard deviation per channel under its former name. Deprecated: use ``std``."""
        warnings.warn(_RENAMED, DeprecationWarning, stacklevel=2)
        return self.std

    def __setstate__(self, state: dict[str, Any]) -> None:
        # pickles of version 0.1.0 hold `deviation`
        values = dict(state)
        if "deviation" in values:
            values["std"] = values.pop("deviation")
        vars(self).update(values)
