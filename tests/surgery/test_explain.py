import pytest
import torch
from torch import nn

import lightconv as lc
from lightconv.kernels.tiles import ARCHITECTURES


def network():
    layers = [
        lc.nn.Conv2d(64, 64, 3, padding=1, groups=64),
        lc.nn.Conv2d(64, 128, 1),
        lc.nn.ConvBlock(128, 256, 3, padding="same", pool=2),
        lc.nn.ConvBlock(256, 64, 3, padding=1, padding_mode="reflect", activation="gelu", pool=2),
        lc.nn.MaxPool2d(2, return_indices=False),
        nn.Conv2d(64, 8, 3),
    ]
    return nn.Sequential(*layers).half().to(memory_format=torch.channels_last)


def images():
    return torch.empty(32, 64, 56, 56, dtype=torch.float16).to(memory_format=torch.channels_last)


def test_row_per_layer():
    explanation = lc.explain(network(), images(), architecture="sm_90")
    assert [row.layer for row in explanation.rows] == ["Conv2d"] * 2 + ["ConvBlock"] * 2 + ["MaxPool2d", "Conv2d"]
    assert [row.served_by for row in explanation.rows] == [
        "depthwise", "torch", "fused implicit GEMM, descriptors", "torch", "torch", "torch",
    ]  # fmt: skip
    assert "cuDNN" in explanation.rows[1].reason
    assert "no kernel for gelu" in explanation.rows[3].reason
    assert explanation.rows[5].reason == "torch.nn layer: lightconv.swap changes it"
    assert "sm_90" in str(explanation)
    assert explanation.rows[2].tile in str(explanation)


def test_swapped_model():
    class Own(nn.Conv2d):
        def forward(self, input):
            return super().forward(input)

    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 8, 3)), nn.MaxPool2d(2), Own(8, 8, 3))
    lc.swap(model)
    with lc.use_backend("triton"):
        rows = lc.explain(model, torch.empty(2, 4, 16, 16), architecture="sm_90").rows
    assert [row.served_by for row in rows] == ["implicit GEMM, flattened", "gathering", "torch"]
    assert rows[2].reason == "Own overrides forward"


def test_triton_and_reference_backends():
    with lc.use_backend("triton"):
        rows = lc.explain(network(), images(), architecture="sm_80").rows
    assert [row.served_by for row in rows] == [
        "depthwise", "matrix product", "fused implicit GEMM, pointers", "implicit GEMM, pointers", "gathering", "torch",
    ]  # fmt: skip
    with lc.use_backend("reference"):
        rows = lc.explain(network(), images(), architecture="sm_80").rows
    assert {row.served_by for row in rows} == {"torch"}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture(architecture):
    rows = lc.explain(lc.models.LeNet(), torch.empty(1, 1, 28, 28), architecture=architecture).rows
    assert all("fused" in row.served_by and row.tile for row in rows)


def test_named_arguments_and_compiled_part():
    class ByName(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = torch.compile(nn.Sequential(lc.nn.Conv2d(1, 4, 3), lc.nn.MaxPool2d(2)))

        def forward(self, *, images):
            return self.net(images)

    with lc.use_backend("triton"):
        rows = lc.explain(ByName(), images=torch.empty(2, 1, 8, 8), architecture="sm_90").rows
    assert [row.served_by for row in rows] == ["implicit GEMM, flattened", "gathering"]


def test_model_is_unchanged():
    model = lc.models.LeNet()
    before = [p.clone() for p in model.parameters()]
    lc.explain(model, torch.empty(1, 1, 28, 28), architecture="sm_90")
    assert not any(m._forward_hooks for m in model.modules())
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_image_without_batch():
    row = lc.explain(lc.nn.Conv2d(3, 4, 3), torch.empty(3, 8, 8), architecture="sm_90").rows[0]
    assert row.served_by == "torch"


def test_unknown_architecture():
    with pytest.raises(ValueError, match="no kernels for architecture 'sm_75': choose one of sm_80"):
        lc.explain(lc.models.LeNet(), torch.empty(1, 1, 28, 28), architecture="sm_75")


def test_interpreter_serves_only_triton_backend(monkeypatch):
    monkeypatch.setattr(lc.operators.backend, "INTERPRETED", True)
    model, images = lc.models.LeNet(), torch.empty(1, 1, 28, 28)
    (reason,) = {row.reason for row in lc.explain(model, images).rows}
    assert reason == "the backend uses no kernels on this device"
    with lc.use_backend("triton"):
        assert {row.served_by for row in lc.explain(model, images).rows} == {"fused implicit GEMM, flattened"}


def test_without_gpu(monkeypatch):
    monkeypatch.setattr(lc.operators.backend, "INTERPRETED", False)
    explanation = lc.explain(lc.models.LeNet(), torch.empty(1, 1, 28, 28))
    assert {row.served_by for row in explanation.rows} == {"torch"}
    assert "kernels need a GPU" in explanation.rows[0].reason
    assert "without a GPU" in str(explanation)


@pytest.fixture
def products():
    """Torch's switch for the precision of matrix products, put back afterwards."""
    before = torch.backends.cuda.matmul.fp32_precision
    yield torch.backends.cuda.matmul
    torch.backends.cuda.matmul.fp32_precision = before


def test_one_by_one_follows_precision_switches(products):
    model, x = lc.nn.Conv2d(64, 64, 1), torch.empty(2, 64, 16, 16)
    for precision, expected in (("ieee", "implicit GEMM, descriptors"), ("tf32", "matrix product")):
        products.fp32_precision = precision
        with lc.use_backend("triton"):
            assert lc.explain(model, x, architecture="sm_90").rows[0].served_by == expected
