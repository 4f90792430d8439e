"""For input that a person has to correct: the one exception, and the one warning."""


class InputError(ValueError):
    """Something given by the user does not work: the message says what, and what to do about it.

    The command line prints the message alone; any other exception is a defect and shows its traceback.
    """


class InputWarning(UserWarning):
    """Something given by the user works only in part: the message says what does not, and why.

    The command line prints the message alone.
    """
