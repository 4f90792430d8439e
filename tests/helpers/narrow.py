"""Networks with a part of their channels, which Triton's interpreter gets through in seconds."""

import contextlib
import inspect
from unittest import mock

from torch import nn

# the arguments that count channels, or groups of them
WIDTHS = {
    nn.Conv2d: ("in_channels", "out_channels", "groups"),
    nn.BatchNorm2d: ("num_features",),
    nn.Linear: ("in_features", "out_features"),
}


@contextlib.contextmanager
def narrow(factor):
    """Divide the channels of every layer made inside a ``with`` block, unless they are fewer than the factor.

    Depth, kernels, strides and branches stay. Groups are divided too, so that grouped and depthwise convolutions stay
    what they are. A network that reckons with its widths outside these layers fails at its first batch.
    """
    with contextlib.ExitStack() as patches:
        for layer, widths in WIDTHS.items():
            patches.enter_context(mock.patch.object(layer, "__init__", _narrowed(layer.__init__, widths, factor)))
        yield


def _narrowed(initialize, widths, factor):
    signature = inspect.signature(initialize)

    def narrowed(*args, **options):
        call = signature.bind(*args, **options)
        for width in call.arguments.keys() & set(widths):
            call.arguments[width] = call.arguments[width] // factor or call.arguments[width]
        initialize(*call.args, **call.kwargs)

    return narrowed
