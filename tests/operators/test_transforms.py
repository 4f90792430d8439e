"""torch.func around every operator: kernels serve vmap, and torch serves the other transforms."""

import pytest
import torch
import torch.nn.functional as F
from helpers.support import assert_same, record_calls
from torch import func

import lightconv as lc
from lightconv.operators import backend

WEIGHT = torch.randint(-2, 3, (2, 2, 3, 3), generator=torch.Generator().manual_seed(0)).float()
BIAS = torch.tensor([1.0, -1.0])
# lightconv's function and torch's, for images of two channels
PAIRS = {
    "max_pool2d": (lambda x: lc.functional.max_pool2d(x, 3, 2, 1), lambda x: F.max_pool2d(x, 3, 2, 1)),
    "max_pool2d with indices": (
        lambda x: lc.functional.max_pool2d(x, 3, 2, 1, return_indices=True)[0],
        lambda x: F.max_pool2d(x, 3, 2, 1),
    ),
    "conv2d": (lambda x: lc.functional.conv2d(x, WEIGHT, BIAS, 2, 1), lambda x: F.conv2d(x, WEIGHT, BIAS, 2, 1)),
    "conv_block": (
        lambda x: lc.functional.conv_block(x, WEIGHT, BIAS, padding=1, pool=2),
        lambda x: F.max_pool2d(F.conv2d(x, WEIGHT, BIAS, padding=1).relu(), 2),
    ),
}


def pushed_through_pullback(pool):
    def pushed(x):
        y, pullback = func.vjp(pool, x[0])
        return func.jvp(lambda g: pullback(g)[0], (y,), (y,))[1]

    return pushed


def batched_pullback(pool):
    def pulled(x):
        x = x[0].detach().requires_grad_()
        y = pool(x)
        return torch.autograd.grad(y, x, torch.stack([y, -y]), is_grads_batched=True)[0]

    return pulled


def squared(f):
    return lambda x: f(x).square().sum()


VMAP = {
    "vmap": func.vmap,
    "vmap over the batch": lambda pool: func.vmap(pool, in_dims=1, out_dims=2),
    "vmap of vmap": lambda pool: func.vmap(func.vmap(pool)),
    "is_grads_batched": batched_pullback,
}
OTHERS = {
    "grad": lambda pool: func.grad(squared(lambda x: pool(x[0]))),
    "grad of vmap": lambda pool: func.grad(squared(func.vmap(pool))),
    "vmap of grad": lambda pool: func.vmap(func.grad(squared(pool))),
    "grad of grad": lambda pool: func.grad(squared(func.grad(lambda x: pool(x[0]).pow(3).sum()))),
    "jacrev": lambda pool: lambda x: func.jacrev(pool)(x[0, :1]),
    "hessian": lambda pool: lambda x: func.jacrev(func.jacrev(squared(pool)))(x[0, :1]),
    "jvp of vjp": pushed_through_pullback,
    "jvp": lambda pool: lambda x: func.jvp(pool, (x[0],), (x[1],)),
    "vmap of jvp": lambda pool: func.vmap(lambda x: func.jvp(pool, (x,), (x,))),
    "jvp of grad": lambda pool: lambda x: func.jvp(func.grad(squared(pool)), (x[0],), (x[1],)),
    "grad of jvp": lambda pool: func.grad(squared(lambda x: func.jvp(pool, (x[0],), (x[1],))[1])),
}


@pytest.mark.parametrize("operator", PAIRS)
@pytest.mark.parametrize("transform", [*VMAP, *OTHERS])
def test_torch_func(kernels, monkeypatch, transform, operator):
    dispatched = record_calls(monkeypatch, backend, "dispatch")
    transformed = (VMAP | OTHERS)[transform]
    x = torch.randint(-3, 4, (2, 2, 2, 5, 4)).float()
    ours, torchs = PAIRS[operator]
    torch.testing.assert_close(transformed(ours)(x), transformed(torchs)(x))
    assert bool(dispatched) == (transform in VMAP)


@pytest.mark.parametrize("operator", PAIRS)
@pytest.mark.parametrize("transform", ["vmap", "vmap of grad", "grad of grad", "jvp"])
def test_torch_func_compiles(kernels, transform, operator):
    transformed = (VMAP | OTHERS)[transform]
    x = torch.randint(-3, 4, (2, 2, 2, 5, 4)).float()
    ours, torchs = PAIRS[operator]
    compiled = torch.compile(transformed(ours), fullgraph=True, backend="eager")
    assert_same(compiled(x), transformed(torchs)(x))


def test_dual_gradient_keeps_its_tangent(kernels):
    tensors = [torch.randint(-3, 4, s).float() for s in [(1, 2, 6, 6), (4, 2, 3, 3)]]
    results = []
    for block in (
        lambda x, w: lc.functional.conv_block(x, w, pool=2),
        lambda x, w: F.max_pool2d(F.conv2d(x, w).relu(), 2),
    ):
        inputs = [t.clone().requires_grad_() for t in tensors]
        output = block(*inputs)
        with torch.autograd.forward_ad.dual_level():
            dual = torch.autograd.forward_ad.make_dual(torch.ones_like(output), torch.full_like(output, 2))
            gradients = torch.autograd.grad(output, inputs, dual)
            results.append([torch.autograd.forward_ad.unpack_dual(g).tangent for g in gradients])
    torch.testing.assert_close(*results)


def test_vmap_of_an_empty_batch():
    window = ((1, 1), (0, 0), (1, 1), 1)
    maps = func.vmap(lambda x: torch.ops.lightconv.conv2d(x, WEIGHT, None, *window))(torch.zeros(2, 0, 2, 8, 8))
    assert maps.shape == (2, 0, 2, 6, 6)
