import warnings

import pytest
import torch
from helpers.command_line import SMOKE

from lightconv.errors import InputWarning
from lightconv.runs.precision import has_bfloat16


def fake(monkeypatch, **capabilities):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, **capabilities}, raising=False)


@pytest.mark.parametrize("name", ["avx512_bf16", "amx_bf16", "bf16"])
def test_instructions(monkeypatch, name):
    fake(monkeypatch, **{name: True})
    assert has_bfloat16()
    fake(monkeypatch, **{name: False})
    assert not has_bfloat16()
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert has_bfloat16()  # not known: no warning


def test_warns_at_the_start(lightconv, monkeypatch):
    run = ("train", *SMOKE, "logger=metrics", "trainer.accelerator=cpu")
    fake(monkeypatch)
    with pytest.warns(InputWarning, match="trainer.precision=bf16-mixed: this processor has no bfloat16 instructions"):
        lightconv(*run, "trainer.precision=bf16-mixed")
    with warnings.catch_warnings():
        warnings.simplefilter("error", InputWarning)
        lightconv(*run, "hydra.run.dir=plain")
        fake(monkeypatch, avx512_bf16=True)
        lightconv(*run, "trainer.precision=bf16-mixed", "hydra.run.dir=fast")
