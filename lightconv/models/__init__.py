"""Networks: LeNet made of lightconv's modules, and pretrained ones by name."""

from lightconv.models.lenet import LeNet
from lightconv.models.preprocessing import Preprocessing
from lightconv.models.pretrained import Pretrained

__all__ = ["LeNet", "Preprocessing", "Pretrained"]
