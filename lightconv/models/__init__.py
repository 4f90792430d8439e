"""Networks made of lightconv's modules."""

from lightconv.models.lenet import LeNet

__all__ = ["LeNet"]
