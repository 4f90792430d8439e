"""Modules on lightconv's operators, with torch.nn's names, arguments and state dicts."""

from lightconv.nn.modules import Conv2d, ConvBlock, MaxPool2d

__all__ = ["Conv2d", "ConvBlock", "MaxPool2d"]
