"""lightconv doctor: report installed versions, GPUs, the kernels in use, and problems with their remedies."""

import sys

import torch
from omegaconf import DictConfig

from lightconv.cli.doctor import facts, problems
from lightconv.cli.doctor.report import Report
from lightconv.cli.installation import extras
from lightconv.operators.backend import use_backend


def doctor(config: DictConfig) -> None:
    """Print the report; exit with status 1 if lightconv cannot work.

    Args:
        config: conf/doctor.yaml.

    Raises:
        InputError: If the backend is unknown.
        SystemExit: If a problem is fatal; the status is 1.
    """
    with use_backend(config.backend):
        report = examine(config)
    if config.json:
        report.print_json()
    else:
        report.print_tables()
    if any(problem.fatal for problem in report.problems):
        sys.exit(1)


def examine(config: DictConfig) -> Report:
    """Gather all facts and problems under the current backend."""
    driver = facts.nvidia_driver()
    triton = facts.triton_needs()
    gpus = []
    if torch.cuda.is_available():
        gpus = [facts.describe_gpu(f"cuda:{index}") for index in range(torch.cuda.device_count())]
    # equal GPUs are served alike: one of each kind is enough
    devices = {gpu.name: gpu.device for gpu in gpus} or {"the CPU": "cpu"}
    served = []
    for name, device in devices.items():
        served += facts.served_calls(name, device)
    return Report(
        installed=facts.versions(),
        driver=driver,
        gpus=gpus,
        triton=triton,
        settings=facts.settings(config.backend),
        served=served,
        data=[facts.find_data(name, part) for name, part in config.data.items()],
        extras=extras(),
        problems=problems.find_all(driver, gpus, triton),
    )
