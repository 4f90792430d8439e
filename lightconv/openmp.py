"""Environment variables that OpenMP, the runtime of torch's CPU threads, reads when torch is loaded."""

import os
import sys

_VARIABLES = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT")


def limit_spinning() -> None:
    """Let idle threads sleep early, unless the user has set threads or their waiting.

    GNU's runtime spins otherwise: beside other programs a small network trains ten times slower.
    """
    # torch reads the variables once, when it is loaded
    if "torch" not in sys.modules and not openmp_variables():
        os.environ["GOMP_SPINCOUNT"] = "1000"


def openmp_variables() -> dict[str, str]:
    """Return the variables that are set."""
    return {name: os.environ[name] for name in _VARIABLES if name in os.environ}
