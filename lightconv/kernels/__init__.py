"""Triton kernels: how lightconv's operators are computed on a GPU.

Kernels have a file per algorithm. Its tile tables and plans lie in a file of their own (``*_plan.py``), helpers of
several kernels in `jit_helpers`. Nothing here imports more than torch and Triton.

Names in all kernels::

    n        image of the batch
    k        filter, an output channel
    c        channel of the input, within its group
    h, w     row and column of the input; w is a width and never a weight
    i, j     row and column of the output
    r, s     row and column of a tap within the filter or the window

    *_ptr                 address of a tensor's first element: input_ptr, weight_ptr, bias_ptr, output_ptr,
                          argmax_ptr, and their gradients grad_output_ptr, grad_input_ptr, ...
    *_stride, *_strides   elements from one index to the next; of an image in the order (n, c, h, w), of a weight
                          (k, c, r, s)
    *_size                height and width, in pixels
    *_in                  mask: True for elements inside their tensor
    *_offset              elements from the first element, added to a *_ptr
    CAPITALS              constexpr: a value known to the compiler
    INDEX                 integer type of offsets, int32 or int64

A gradient's kernel keeps the names of the convolution it belongs to: in `weight_gradient`, h and w are a row and a
column of the images, i and j of grad_output. `implicit_gemm` computes two products with one kernel: there the names are
those of the product, and in the input gradient its "input" is grad_output and its "output" is grad_input.
"""
