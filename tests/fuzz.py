"""Compare many random convolution blocks with torch, on the fused kernels in Triton's interpreter: `make fuzz`.

Case n is the same on every machine. A failure prints its number. `python tests/fuzz.py --first n --cases 1` repeats it.
"""

import argparse
import os
import signal
import sys
import traceback
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path


def run(case: int) -> tuple[int, bool, str]:
    """Check one case, and return its number, True if gradients were compared, and the traceback of an error or ""."""
    from helpers.blocks import check, random_block

    try:
        return case, check(random_block(case)), ""
    except Exception:
        return case, False, traceback.format_exc()


def prepare() -> None:
    """Make this process interpret kernels on one thread, and leave Ctrl-C to the main process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ.update(TRITON_INTERPRET="1", OMP_NUM_THREADS="1")
    sys.path.insert(0, str(Path(__file__).parent))
    from conftest import speed_up_interpreter

    speed_up_interpreter()


def main() -> int:
    """Check cases first .. first + cases - 1 on all cores. Ctrl-C stops and prints how to continue."""
    from rich.progress import track

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--cases", type=int, default=20_000, help="number of cases")
    options = parser.parse_args()
    numbers = range(options.first, options.first + options.cases)
    compared = failed = done = 0
    with ProcessPoolExecutor(initializer=prepare) as pool:
        try:
            for case, gradients, error in track(pool.map(run, numbers, chunksize=10), "fuzzing", len(numbers)):
                done, compared = done + 1, compared + gradients
                if error:
                    failed += 1
                    print(f"case {case} failed:\n{error}", flush=True)
                if not sys.stdout.isatty() and done % 1000 == 0:  # rich draws no bar
                    print(f"cases {numbers[0]} to {case}: {failed} failed", flush=True)
        except KeyboardInterrupt:
            pool.shutdown(cancel_futures=True)
            print(f"stopped: go on with --first {numbers[done]} --cases {len(numbers) - done}")
    if done:
        print(f"cases {numbers[0]} to {numbers[done - 1]}: {failed} failed; gradients compared in {compared}")
    return failed > 0 or done < len(numbers)


if __name__ == "__main__":
    sys.exit(main())
