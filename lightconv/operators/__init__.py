"""What is computed: torch.library operators with their shapes, gradients, reference and choice of backend."""

from lightconv.operators import conv2d, max_pool2d

__all__ = ["conv2d", "max_pool2d"]
