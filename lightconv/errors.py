"""The exception and the warning about a user's input."""

__all__ = ["InputError", "InputWarning"]


class InputError(ValueError):
    """Invalid input from the user. The message names the input, the mistake and the remedy.

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
    """Input from the user that has no effect in part. The message names the part and the reason.

    The command line prints the message alone.

    Example:
        >>> import warnings
        >>> import lightconv as lc
        >>> warnings.filterwarnings("error", category=lc.InputWarning)  # stop at input without effect
    """
