"""The torch.library namespace ``lightconv``, in which every operator is defined.

Operators are called by lightconv.functional, which hands them only what a kernel can serve; called directly they fall
back to torch's operators, but do not check geometry as torch does.
"""

from torch.library import Library

LIBRARY = Library("lightconv", "FRAGMENT")
