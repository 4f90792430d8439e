r"""Texts of users as values of a configuration, where OmegaConf reads ${NAME} as a reference and ??? as missing.

A class folder named ${oc.env:HOME} must neither fail nor put an environment variable into a run. OmegaConf takes \${
for ${, with the backslashes before it doubled. It has no such form for ???, so that a backslash is put before it here.
"""

import re
from typing import Any

from lightconv.errors import InputError

_REFERENCE = re.compile(r"(\\*)\$\{")
_MISSING = re.compile(r"\\*\?\?\?")


def escape_references(value: Any) -> Any:
    r"""Copy nested dictionaries and lists with \${ for every ${, so that OmegaConf reads each text as it is.

    Example:
        >>> from omegaconf import OmegaConf
        >>> OmegaConf.create([escape_references("${oc.env:HOME}")])[0]
        '${oc.env:HOME}'
    """
    if isinstance(value, str):
        return _REFERENCE.sub(lambda match: match[1] * 2 + r"\${", value)
    if isinstance(value, dict):
        return {escape_references(key): escape_references(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [escape_references(entry) for entry in value]
    return value


def escape_name(name: str) -> str:
    """Return the form of a name in a configuration; `read_name` reads it."""
    if _MISSING.fullmatch(name):
        return "\\" + name
    return escape_references(name)


def read_name(value: Any) -> str:
    """Return the name that a configuration holds in the form of `escape_name`; ${NAME} has been resolved already.

    Raises:
        InputError: If the value is true, false, null or a fraction: YAML and Hydra read some names as these.
    """
    if isinstance(value, bool) or not isinstance(value, str | int):
        shown = {None: "null", True: "true", False: "false"}.get(value, value)
        raise InputError(f"{shown} is no name: put it in quotation marks, '\"...\"'")
    return str(value).removeprefix("\\") if _MISSING.fullmatch(str(value)) else str(value)
