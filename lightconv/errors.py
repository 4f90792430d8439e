"""The exception and the warning for input that the user has to correct."""

__all__ = ["InputError", "InputWarning"]


class InputError(ValueError):
    """Invalid input from the user. The message names it, says what is wrong and what to do.

    The command line prints the message alone. Any other exception is a defect and shows its traceback.

    Example:
        >>> import lightconv as lc
        >>> try:
        ...     with lc.use_backend("cudnn"):
        ...         pass
        ... except lc.InputError as error:
        ...     print(error)
        unknown backend 'cudnn': choose one of auto, reference, triton
    """


class InputWarning(UserWarning):
    """Input from the user of which a part has no effect. The message names the part and the reason.

    The command line prints the message alone.

    Example:
        >>> import warnings
        >>> import lightconv as lc
        >>> warnings.filterwarnings("error", category=lc.InputWarning)  # stop at input without effect
    """
