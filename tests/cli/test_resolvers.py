import os
import subprocess
import sys

import pytest
from omegaconf import OmegaConf

from lightconv.cli.resolvers import run_name


@pytest.mark.parametrize(
    ("experiment", "backbone", "name"),
    [
        (None, None, "lenet_digits"),
        (None, "torchvision/resnet18", "resnet18_digits"),
        (None, "timm/hf-hub:me/net v1", "net_v1_digits"),
        ("recipe", "torchvision/resnet18", "recipe"),
    ],
)
def test_run_name(experiment, backbone, name):
    choices = OmegaConf.create({"experiment": experiment, "model": "lenet", "data": "digits"})
    assert run_name(choices, backbone) == name


@pytest.mark.parametrize(
    ("given", "spins"), [({}, "1000"), ({"OMP_NUM_THREADS": "2"}, "None"), ({"GOMP_SPINCOUNT": "7"}, "7")]
)
def test_idle_threads_sleep_early(given, spins):
    code = (
        "import os; from lightconv.openmp import limit_spinning\n"
        "limit_spinning(); print(os.environ.get('GOMP_SPINCOUNT'))"
    )
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    done = subprocess.run([sys.executable, "-c", code], env=kept | given, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == spins
