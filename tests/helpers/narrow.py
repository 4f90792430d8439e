"""Build networks with fewer channels, so that Triton's interpreter runs them in seconds."""

import contextlib
import inspect
from unittest import mock

from torch import nn

# arguments that are numbers of channels or groups
WIDTHS = {
    nn.Conv2d: ("in_channels", "out_channels", "groups"),
    nn.BatchNorm2d: ("num_features",),
    nn.Linear: ("in_features", "out_features"),
}


@contextlib.contextmanager
def narrow(factor):
    """Divide the channels of every layer made inside a ``with`` block, unless they are fewer than the factor.

    Depth, kernels, strides and branches stay. Groups are divided, too, so grouped and depthwise convolutions stay
    grouped and depthwise. A network that computes with its widths outside these layers fails at its first batch.
    """
    with contextlib.ExitStack() as patches:
        for layer, widths in WIDTHS.items():
            narrow_init = build_narrow_init(layer.__init__, widths, factor)
            patches.enter_context(mock.patch.object(layer, "__init__", narrow_init))
        yield


def build_narrow_init(initialize, widths, factor):
    """Wrap a layer's ``__init__`` and divide its widths."""
    signature = inspect.signature(initialize)

    def narrow_init(*args, **options):
        call = signature.bind(*args, **options)
        for width in call.arguments.keys() & set(widths):
            call.arguments[width] = call.arguments[width] // factor or call.arguments[width]
        initialize(*call.args, **call.kwargs)

    return narrow_init
