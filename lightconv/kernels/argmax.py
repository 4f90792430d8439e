"""Byte that a pooled convolution block stores per element of its result, for backward.

A value from 0 to 254 is the argmax: the position r * width + s of the kept pixel in its pooling window. KILLED marks
an element with a gradient of zero, stopped by ReLU.
"""

KILLED = 255
