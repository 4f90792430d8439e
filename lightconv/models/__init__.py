"""LeNet built from lightconv's modules, and pretrained networks by name."""

from lightconv.deprecated import moved
from lightconv.models.lenet import LeNet
from lightconv.models.pretrained import Pretrained

__all__ = ["LeNet", "Pretrained"]

__getattr__ = moved(__name__, {"Preprocessing": "lightconv.preprocessing"})
