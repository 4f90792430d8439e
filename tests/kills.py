"""Kill training at random moments, damage checkpoints at random places, resume, and compare with a whole run.

    python tests/kills.py --kills 20 --damages 100

A run killed by SIGKILL, while it saves a checkpoint each three steps, resumes to the same weights and the same rows of
metrics.csv. A last.ckpt with a flipped bit or without its end is never loaded: the run goes on from the one before,
to the same weights. TMPDIR lies on another file system than the runs if there is one.
"""

import argparse
import contextlib
import io
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

SETTINGS = [
    "trainer.max_epochs=4", "trainer.limit_train_batches=8", "trainer.limit_val_batches=1", "logger=metrics",
    "trainer.enable_progress_bar=false", "callbacks.last.every_n_train_steps=3",
]  # fmt: skip
RESULTS = ("weights.pt", "metrics.csv")


def start(*arguments: str) -> int:
    """Start ``lightconv train`` in a child process, which has all imports already, and return its number."""
    child = os.fork()
    if child:
        return child
    status = 1
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as errors:
        try:
            from lightconv.cli import main

            main(["train", *arguments])
            status = 0
        except SystemExit as stop:
            status = stop.code if isinstance(stop.code, int) else 1
        finally:
            Path("errors.txt").write_text(errors.getvalue())
            os._exit(status)


def wait(child: int) -> int:
    """Return the status of a child process at its end."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def train(*arguments: str) -> str:
    """Train to the end and return what was printed to standard error."""
    status = wait(start(*arguments))
    errors = Path("errors.txt").read_text()
    if status != 0:
        sys.exit(f"{' '.join(arguments)}: status {status}\n{errors}")
    return errors


def check(run: str, reason: str) -> None:
    """Compare the results of a run with those of the whole one."""
    for name in RESULTS:
        if Path(run, name).read_bytes() != Path("whole", name).read_bytes():
            sys.exit(f"{run}: {name} differs from an uninterrupted run's, {reason}")


def kill_and_resume(number: int, seconds: float, draw: random.Random) -> float:
    """Kill a run at a random moment, resume it, and return the moment as a share of a whole run."""
    run = f"killed{number}"
    child = start(*SETTINGS, f"hydra.run.dir={run}")
    # from the first written configuration to the end
    while not Path(run, "config.yaml").exists():
        time.sleep(0.001)
    moment = draw.uniform(0, seconds)
    time.sleep(moment)
    os.kill(child, signal.SIGKILL)
    wait(child)
    train(f"resume={run}")
    check(run, f"killed after {moment:.3f} s")
    shutil.rmtree(run)
    return moment / seconds


def damage_and_resume(number: int, draw: random.Random) -> str:
    """Damage last.ckpt of a run stopped before its end, resume it, and return the kind of damage."""
    run = Path(f"damaged{number}")
    shutil.copytree("stopped", run)
    last = run / "checkpoints/last.ckpt"
    content = bytearray(last.read_bytes())
    place = draw.randrange(len(content))
    kind = draw.choice(("bit", "end"))
    if kind == "bit":
        content[place] ^= 1 << draw.randrange(8)
    else:
        del content[place:]
    last.write_bytes(content)
    errors = train(f"resume={run}")
    if "last.ckpt is damaged" not in errors:
        sys.exit(f"{run}: loaded with {kind} {place} damaged\n{errors}")
    check(str(run), f"damage of {kind} {place}")
    shutil.rmtree(run)
    return kind


def main() -> None:
    """Run the checks in a temporary directory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--damages", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    draw = random.Random(options.seed)
    shared_memory = Path("/dev/shm")
    if shared_memory.is_dir():
        os.environ["TMPDIR"] = str(shared_memory)
    with tempfile.TemporaryDirectory(dir=Path.home()) as directory:
        os.chdir(directory)
        import lightconv.cli.train  # noqa: F401  before the forks

        train(*SETTINGS, "hydra.run.dir=whole")
        begin = time.monotonic()
        train(*SETTINGS, "hydra.run.dir=timed")
        seconds = time.monotonic() - begin
        shares = [kill_and_resume(number, seconds, draw) for number in range(options.kills)]
        print(f"{len(shares)} kills from {min(shares):.0%} to {max(shares):.0%} of a run: the same weights and rows")
        # a run of three epochs, made to go on to four
        train(*SETTINGS, "trainer.max_epochs=3", "+scheduler.total_steps=32", "hydra.run.dir=stopped")
        shutil.rmtree("whole")
        train(*SETTINGS, "+scheduler.total_steps=32", "hydra.run.dir=whole")
        config = Path("stopped/config.yaml")
        config.write_text(config.read_text().replace("max_epochs: 3", "max_epochs: 4"))
        kinds = [damage_and_resume(number, draw) for number in range(options.damages)]
        print(f"{len(kinds)} damages, {kinds.count('bit')} of them flipped bits: none loaded, no run lost")
        os.chdir("/")


if __name__ == "__main__":
    main()
