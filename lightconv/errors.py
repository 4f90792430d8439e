"""The one exception for input that a person has to correct."""


class InputError(ValueError):
    """Something given by the user does not work: the message says what, and what to do about it.

    The command line prints the message alone; any other exception is a defect and shows its traceback.
    """
