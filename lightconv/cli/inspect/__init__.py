"""lightconv inspect: compile kernels for a GPU that need not be present, judge them, and compare revisions."""

from omegaconf import DictConfig

from lightconv.cli.settings import DTYPES, check_choice, check_integer
from lightconv.errors import InputError
from lightconv.operators.triton_kernels import TRITON

if TRITON:
    from lightconv.cli.inspect import difference, files, report, subjects


def inspect(config: DictConfig) -> None:
    """Print the kernels of a training step and their predicted times, or their changes since a revision.

    Args:
        config: conf/inspect.yaml.

    Raises:
        InputError: If a setting is unknown, Triton is missing, or this process interprets kernels.
        SystemExit: If ``diff`` finds a figure that got worse; the status is 1.
    """
    if not TRITON:
        raise InputError("inspect compiles kernels, and Triton is not installed: pip install triton (Linux)")
    check_choice(config, "dtype", DTYPES)
    check_integer(config, "batch_size")
    # published, diff and listing each print something else instead of the tables
    if config.published:
        report.print_published()
        return
    if config.diff is not None:
        difference.print_changes(*difference.read_both_sides(config))
        return
    inspected = subjects.inspect_all(config)
    if config.listing is not None:
        report.print_listings(inspected, config.listing)
        return
    for one in inspected:
        report.print_tables(one)
    if config.output is not None:
        files.write(inspected, config)
