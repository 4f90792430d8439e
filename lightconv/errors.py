"""Errors and warnings: about a user's input, and about a training run that came to nothing."""

__all__ = ["InputError", "InputWarning", "NonFiniteLossError"]


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


class NonFiniteLossError(RuntimeError):
    """NaN or infinite training loss. The message names the step, the last good checkpoint and the remedy.

    The command line prints the message without a traceback and exits with status 1.

    Example:
        >>> import lightconv as lc
        >>> issubclass(lc.NonFiniteLossError, RuntimeError)
        True
    """
