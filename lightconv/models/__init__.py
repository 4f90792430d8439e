"""Networks: LeNet made of lightconv's modules, and what pretrained ones expect."""

from lightconv.models.lenet import LeNet
from lightconv.models.preprocessing import Preprocessing

__all__ = ["LeNet", "Preprocessing"]
