"""The operators of torch.library: schemas, output shapes, gradients, references and dispatch."""

from lightconv.operators import batching, conv2d, conv_block, flops, max_pool2d

__all__ = ["batching", "conv2d", "conv_block", "flops", "max_pool2d"]
