"""Print the CPU seconds that lightconv takes to answer: user and system time, median of several calls.

python tools/start_time.py --repeats 5
"""

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile

CALLS = {
    "import lightconv": ["-c", "import lightconv"],
    "lightconv --help": ["--help"],
    "lightconv train --help": ["train", "--help"],
    "lightconv trian": ["trian"],
    "lightconv train model=lennet": ["train", "model=lennet"],
    "lightconv train epochs=5": ["train", "epochs=5"],
    "lightconv list": ["list"],
}
MAIN = ["-c", "from lightconv.cli import main; main()"]


def cpu_seconds(arguments: list[str]) -> float:
    """Return the CPU seconds of one call."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with tempfile.TemporaryDirectory() as directory:
        command = [sys.executable, *(arguments if arguments[0] == "-c" else [*MAIN, *arguments])]
        subprocess.run(command, cwd=directory, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Print a row per call."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    for name, arguments in CALLS.items():
        seconds = statistics.median(cpu_seconds(arguments) for _ in range(repeats))
        print(f"{name:<30} {seconds:.2f}")


if __name__ == "__main__":
    main()
