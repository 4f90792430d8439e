"""The exception and the warning about a user's input."""

__all__ = ["InputError", "InputWarning"]


class InputError(ValueError):
    """Invalid input from the user. The message names the input, the mistake and the remedy.

    The command line prints the message without a traceback. Any other exception is a defect and shows its traceback.

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
    """Partly ignored input from the user. The message names the ignored part and the reason.

    The command line prints the message without Python's file and line.

    Example:
        >>> import warnings
        >>> import lightconv as lc
        >>> warnings.filterwarnings("error", category=lc.InputWarning)  # stop instead
    """
