"""Differences between two inspections: of two files, or of a git revision and the working tree.

The other revision is inspected by its own code in its own checkout, because a change may be in the kernels, in the
tables or in the analysis itself. Its settings are its own conf/inspect.yaml, overridden by today's settings: it may
have more settings or fewer.
"""

import json
import os
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from lightconv.analysis.comparison import changes
from lightconv.cli import tables
from lightconv.cli.inspect import files, subjects
from lightconv.errors import InputError, InputWarning

# Run by the other revision's code. Prints the names of today's settings that it does not have, as JSON.
_INSPECT = """\
import json, sys
from hydra import compose, initialize_config_dir
from omegaconf import open_dict
from lightconv.cli.inspect import inspect

settings, conf = json.load(open(sys.argv[1])), sys.argv[2]
with initialize_config_dir(version_base="1.3", config_dir=conf):
    config = compose("inspect")
unknown = []
with open_dict(config):
    for name, value in settings.items():
        if name in config:
            config[name] = value
        elif value not in (None, False):
            unknown.append(name)
inspect(config)
print(json.dumps(unknown))
"""
_REMEDY = "name a later revision, or compare two files: diff=[before.json,after.json]"


def read_both_sides(config: DictConfig) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the JSON content of two inspections, before and after the change.

    Raises:
        InputError: If ``diff`` names neither two files nor a git revision, or the revision cannot inspect itself.
    """
    if isinstance(config.diff, ListConfig):
        if len(config.diff) != 2:
            raise InputError(f"diff={list(config.diff)}: give two files, [before.json,after.json], or a git revision")
        before, after = config.diff
        return files.read(Path(before)), files.read(Path(after))
    before_change = inspect_revision(str(config.diff), config)
    return before_change, files.as_json(subjects.inspect_all(config), config)


def print_changes(before: dict[str, Any], after: dict[str, Any]) -> None:
    """Print all changed figures; exit with status 1 if one got worse.

    Args:
        before: JSON content of the inspection before the change.
        after: JSON content of the inspection after the change.
    """
    found = changes(before["kernels"], after["kernels"])
    if not found:
        print("no kernel changed")
        return
    rows = []
    for change in found:
        row = change._asdict()
        rows.append({column: _readable(value) for column, value in row.items()})
    tables.show_rows("what changed", rows)
    if any(change.verdict == "worse" for change in found):
        sys.exit(1)


def _readable(value: Any) -> Any:
    # a table's four decimals would round the seconds of a kernel, some millionths, to zero
    return f"{value:.3g}" if isinstance(value, float) else value


def inspect_revision(revision: str, config: DictConfig) -> dict[str, Any]:
    """Inspect the settings' subjects by the code of another revision, in a temporary checkout."""
    repository = Path(__file__).parents[3]
    with tempfile.TemporaryDirectory() as folder:
        checkout = Path(folder) / "checkout"
        # a worktree leaves the user's files and index alone
        _git(repository, "worktree", "add", "--detach", "--force", str(checkout), revision)
        try:
            return inspect_checkout(checkout, revision, config)
        finally:
            _git(repository, "worktree", "remove", "--force", str(checkout))


def _git(repository: Path, *arguments: str) -> None:
    done = subprocess.run(["git", "-C", str(repository), *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise InputError(f"diff: git {arguments[0]} failed: {done.stderr.strip()}")


def inspect_checkout(checkout: Path, revision: str, config: DictConfig) -> dict[str, Any]:
    """Inspect the settings' subjects by the code of a checkout, in a process of its own.

    Args:
        checkout: directory of the checkout.
        revision: its name for messages.
        config: today's settings.

    Raises:
        InputError: If the revision cannot inspect the subjects.
    """
    # Hazard: without a package of its own, the checkout would import and inspect the installed one.
    if not (checkout / "lightconv" / "cli").is_dir() or not (checkout / "conf" / "inspect.yaml").is_file():
        raise InputError(f"diff: revision {revision} has no `lightconv inspect`: {_REMEDY}")
    settings: dict[str, Any] = OmegaConf.to_container(config)  # type: ignore[assignment]
    settings |= {"diff": None, "listing": None, "published": False, "output": str(checkout / "inspected")}
    settings_file = checkout / "settings.json"
    settings_file.write_text(json.dumps(settings))
    done = subprocess.run(
        [sys.executable, "-c", _INSPECT, str(settings_file), str(checkout / "conf")],
        cwd=checkout,
        # the checkout's lightconv goes before the installed one
        env=os.environ | {"PYTHONPATH": str(checkout)},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        # the last line of a traceback says what is wrong
        reason = " ".join(done.stderr.strip().splitlines()[-1:])
        raise InputError(f"diff: revision {revision} cannot inspect itself: {reason}; {_REMEDY}")
    # the last line, after the tables
    unknown = json.loads(done.stdout.splitlines()[-1])
    if unknown:
        message = f"diff: revision {revision} has no setting {', '.join(unknown)}, and was inspected without"
        warnings.warn(message, InputWarning, stacklevel=2)
    return files.read(checkout / "inspected.json")
