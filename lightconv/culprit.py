"""Search for the setting that makes a call fail."""

import re
import warnings
from collections.abc import Callable, Mapping
from typing import Any


def find_culprit(build: Callable[[dict[str, Any]], Any], settings: Mapping[str, Any], error: Exception) -> str | None:
    """Return the name of the setting without which building works, or else of one named in the error; or None.

    Args:
        build: function of the settings.
        settings: values by name.
        error: error of building with all settings.

    Example:
        >>> find_culprit(lambda settings: 1 / settings.get("divisor", 1), {"divisor": 0}, ZeroDivisionError())
        'divisor'
    """
    for name in settings:
        others = {other: value for other, value in settings.items() if other != name}
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                build(others)
        except Exception:  # any error means that the fault lies elsewhere, too
            continue
        return name
    for name in re.findall(r"\w+", str(error)):
        if name in settings:
            return name
    return None
