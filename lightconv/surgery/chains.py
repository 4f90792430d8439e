"""Find a convolution and the modules after it that one fused operator can compute.

A chain is a convolution followed by BatchNorm2d, an activation and a max-pooling, or by some of them. torch.fx traces
the model's forward in training and in evaluation; its graphs show the users of every output. If torch.fx cannot trace
a forward, its calls are unknown; its submodules, an nn.Sequential for instance, are still traced one by one.
"""

import copy
import inspect
import operator
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import fx, nn

from lightconv.nn.modules import Conv2d, MaxPool2d
from lightconv.operators.conv_block import NON_DECREASING
from lightconv.operators.geometry import pair
from lightconv.surgery.swap import original_class

CONVOLUTIONS: tuple[type[nn.Conv2d], ...] = (nn.Conv2d, Conv2d)
POOLINGS: tuple[type[nn.MaxPool2d], ...] = (nn.MaxPool2d, MaxPool2d)
ACTIVATIONS: dict[type[nn.Module], str] = {
    nn.ReLU: "relu",
    nn.LeakyReLU: "leaky_relu",
    nn.Tanh: "tanh",
    nn.Sigmoid: "sigmoid",
    nn.GELU: "gelu",
    nn.SiLU: "silu",
}
# Names of the inner modules that each norm calls on its normalised output, in this order. The norms are keyed by name,
# because timm may not be installed.
NORMS: dict[str, tuple[str, ...]] = {
    "BatchNorm2d": (),
    "torchvision.ops.misc.FrozenBatchNorm2d": (),
    "timm.layers.norm_act.BatchNormAct2d": ("drop", "act"),
    "timm.layers.norm_act.FrozenBatchNormAct2d": ("drop", "act"),
}
_KNOWN = (*CONVOLUTIONS, *POOLINGS, *ACTIVATIONS, nn.BatchNorm2d, nn.Identity)
_IN_PLACE_OPERATORS = (operator.iadd, operator.isub, operator.imul, operator.itruediv)
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class Chain(NamedTuple):
    """A convolution and the modules to compute together with it.

    Attributes:
        name: name of the convolution in the model.
        convolution: the module itself.
        absorbed: modules after the convolution in call order, without nn.Identity; () if there are none. A norm
            precedes its inner modules.
        end_reason: why the chain ends there.
    """

    name: str
    convolution: nn.Conv2d
    absorbed: tuple[nn.Module, ...]
    end_reason: str


def find_chains(model: nn.Module) -> list[Chain]:
    """Find the chain of every convolution in a model.

    A forward is traced with the default values of its arguments.
    """
    graphs = [CallGraph(model, training=True), CallGraph(model, training=False)]
    return [find_chain(name, m, graphs) for name, m in model.named_modules() if isinstance(m, nn.Conv2d)]


def find_chain(name: str, convolution: nn.Conv2d, graphs: Sequence["CallGraph"]) -> Chain:
    """Find the chain of one convolution.

    Args:
        name: name of the convolution in the model.
        convolution: the module itself.
        graphs: calls of the model in training and in evaluation.
    """
    reason = override_reason(convolution) or untraced_reason(convolution, graphs)
    if reason is not None:
        return Chain(name, convolution, (), reason)
    followers, end_reason = common_followers(convolution, graphs)
    absorbed: list[nn.Module] = []
    for module in followers:
        reason = follower_unsupported_reason(module, convolution, absorbed, graphs)
        if reason is not None:
            return Chain(name, convolution, tuple(absorbed), reason)
        if type(module) is not nn.Identity:
            absorbed.append(module)
    return Chain(name, convolution, tuple(absorbed), end_reason)


def full_name(kind: type[nn.Module]) -> str:
    """Return a class's module and name, "torchvision.ops.misc.Permute"; torch's own classes have no module."""
    if kind.__module__.startswith("torch.nn"):
        return kind.__name__
    return f"{kind.__module__}.{kind.__qualname__}"


def activation_name(module: nn.Module) -> str | None:
    """Return the name of an activation module among ConvBlock's activations, None if it is none of them."""
    # ConvBlock has LeakyReLU with torch's default slope, and GELU by erf
    if getattr(module, "negative_slope", 0.01) != 0.01 or getattr(module, "approximate", "none") != "none":
        return None
    return ACTIVATIONS.get(type(module))


def override_reason(module: nn.Module) -> str | None:
    """Return why a module may compute something else than its class is known for, None if it cannot."""
    kind = original_class(module)
    for hooks in _HOOKS:
        if getattr(module, hooks):
            return f"{kind.__name__} has hooks, and they would see other outputs"
    if "forward" in vars(module):
        return f"{kind.__name__} has a replaced forward"
    if kind not in _KNOWN and full_name(kind) not in NORMS and isinstance(module, _KNOWN):
        return f"{kind.__name__} is a subclass and may compute something else"
    return None


def untraced_reason(convolution: nn.Conv2d, graphs: Sequence["CallGraph"]) -> str | None:
    """Return why the modules after a convolution are unknown, None if they are known."""
    most_calls = max(graph.counts[convolution] for graph in graphs)
    if most_calls > 1:
        return f"called {most_calls} times"
    if most_calls == 0:
        return "never called"
    for graph in graphs:
        if convolution in graph.untraced_callers:
            return f"called by the forward of {graph.untraced_callers[convolution]}, and torch.fx cannot trace it"
    return None


def common_followers(convolution: nn.Conv2d, graphs: Sequence["CallGraph"]) -> tuple[list[nn.Module], str]:
    """Return the modules after a convolution in both modes, and why they end there."""
    sequences = [graph.followers(convolution) for graph in graphs if convolution in graph.nodes]
    shortest, end_reason = min(sequences, key=lambda sequence: len(sequence[0]))
    for position, module in enumerate(shortest):
        if any(modules[position] is not module for modules, _ in sequences):
            return shortest[:position], "followed by different modules in training and in evaluation"
    return shortest, end_reason


def follower_unsupported_reason(
    module: nn.Module,
    convolution: nn.Conv2d,
    absorbed: Sequence[nn.Module],
    graphs: Sequence["CallGraph"],
) -> str | None:
    """Return why a module after a convolution cannot be computed with it, None if it can.

    Args:
        module: the module in question.
        convolution: start of the chain.
        absorbed: modules of the chain so far.
        graphs: calls of the model in training and in evaluation.
    """
    reason = override_reason(module)
    if reason is not None:
        return reason
    for graph in graphs:
        if graph.counts[module] != graph.counts[convolution]:
            return f"{type(module).__name__} is also called elsewhere"
    reason = module_unsupported_reason(module, absorbed)
    if reason is not None:
        return reason
    # A block's backward would read this output. The module's own backward does not, so writing to it was allowed.
    for graph in graphs:
        if backward_needs_output(module, absorbed) and graph.is_written_in_place(module):
            return f"{type(module).__name__}'s output is written to in place, and a block needs it for its gradient"
    return None


def module_unsupported_reason(module: Any, absorbed: Sequence[nn.Module]) -> str | None:
    """Return why a module cannot follow the modules absorbed so far, None if it can."""
    kind = type(module)
    if full_name(kind) in NORMS:
        if absorbed:
            return f"{kind.__name__} comes after {type(absorbed[-1]).__name__}"
        if module.running_mean is None:
            return f"{kind.__name__} keeps no statistics"
        return None
    if isinstance(module, nn.MaxPool2d):
        if contains(absorbed, POOLINGS):
            return "a second MaxPool2d"
        return pooling_unsupported_reason(module)
    if kind is nn.Identity:
        return None
    if kind not in ACTIVATIONS:
        return f"followed by {full_name(kind)}"
    name = activation_name(module)
    if name is None:
        return f"{module} is not an activation of ConvBlock"
    if contains(absorbed, ACTIVATIONS):
        return f"a second activation, {kind.__name__}"
    # max(f(a), f(b)) == f(max(a, b)) only if f never decreases
    if contains(absorbed, POOLINGS) and name not in NON_DECREASING:
        return f"{kind.__name__} comes after pooling and does not commute with it"
    return None


def contains(modules: Iterable[nn.Module], kinds: Container[type[nn.Module]]) -> bool:
    """True if a module is of one of these classes, swapped or not."""
    return any(original_class(module) in kinds for module in modules)


def pooling_unsupported_reason(pooling: nn.MaxPool2d) -> str | None:
    """Return why a max-pooling cannot be part of a block, None if it can.

    The windows of a block touch and do not overlap.
    """
    size = pair(pooling.kernel_size)
    if pooling.return_indices:
        return "MaxPool2d returns indices"
    if pair(pooling.padding) != (0, 0):
        return "MaxPool2d pads"
    if pair(pooling.dilation) != (1, 1):
        return "MaxPool2d is dilated"
    if size is None or size != pair(pooling.stride):
        return f"MaxPool2d's windows of {pooling.kernel_size} overlap or leave gaps, with stride {pooling.stride}"
    if pooling.ceil_mode:
        return "MaxPool2d's ceil_mode keeps windows that reach over the edge"
    return None


def backward_needs_output(module: nn.Module, absorbed: Sequence[nn.Module]) -> bool:
    """True if a block's backward may need the output of its last module. The module's own backward does not need it."""
    if isinstance(module, nn.MaxPool2d):
        return contains(absorbed, ACTIVATIONS)
    return isinstance(module, nn.LeakyReLU)


class CallGraph:
    """Calls of a model's modules in one mode, and the users of every output.

    Attributes:
        counts: calls per module. The inner modules of a norm count with it.
        nodes: fx node of each module; modules called by an untraced forward have none.
        untraced_callers: class name of the caller, for modules called by a forward that torch.fx cannot trace.
    """

    def __init__(self, model: nn.Module, training: bool) -> None:
        self.counts: Counter[nn.Module] = Counter()
        self.nodes: dict[nn.Module, fx.Node] = {}
        self.untraced_callers: dict[nn.Module, str] = {}
        self._modules: dict[fx.Node, nn.Module] = {}
        self._visited: set[nn.Module] = set()
        self._tracer = _Tracer()
        with preserved_state(model):
            for module in model.modules():
                vars(module)["training"] = training  # a ScriptModule ignores this and keeps its own mode
            self._add_calls(model)

    def followers(self, module: nn.Module) -> tuple[list[nn.Module], str]:
        """Return the modules after a module, and why they end there.

        Each is the only user of the output before it and takes nothing else.
        """
        node = self.nodes[module]
        modules: list[nn.Module] = []
        while len(node.users) == 1:
            (user,) = node.users
            if user.op == "output":
                return modules, "its output is returned"
            if user not in self._modules:
                return modules, f"followed by {getattr(user.target, '__name__', user.target)}(), not a module"
            if user.args != (node,) or user.kwargs:
                return modules, f"its output is one of several arguments of {user.target}"
            modules.extend(with_inner_modules(self._modules[user]))
            node = user
        if node.users:
            return modules, "its output is used more than once"
        return modules, "its output is not used"

    def is_written_in_place(self, module: nn.Module) -> bool:
        """True if a user of a module's output writes to it: ``x += y``, ``x.relu_()``, or anything with ``inplace``."""
        if module not in self.nodes:
            return False
        for user in self.nodes[module].users:
            inplace_options = (user.kwargs.get("inplace"), getattr(self._modules.get(user), "inplace", False))
            name = str(getattr(user.target, "__name__", user.target))
            if True in inplace_options or name.endswith("_") or user.target in _IN_PLACE_OPERATORS:
                return True
        return False

    def _add_calls(self, module: nn.Module) -> None:
        """Add the calls of a module's forward, then the calls of the modules called."""
        if module in self._visited:
            return
        self._visited.add(module)
        graph = self._tracer.build_graph(module)
        called: list[nn.Module] = []
        if graph is None:
            # the calls are unknown: assume one of each child
            called.extend(chain.from_iterable(map(with_inner_modules, module.children())))
            self.untraced_callers.update(dict.fromkeys(called, type(module).__name__))
        else:
            for node in graph.find_nodes(op="call_module"):
                self._modules[node] = module.get_submodule(str(node.target))
                parts = list(with_inner_modules(self._modules[node]))
                self.nodes.update(dict.fromkeys(parts, node))
                called.extend(parts)
        self.counts.update(called)
        for child in called:
            if any(child.children()) and full_name(type(child)) not in NORMS:
                self._add_calls(child)


def with_inner_modules(module: nn.Module) -> Iterator[nn.Module]:
    """Yield a module, then a norm's inner modules in call order."""
    yield module
    for name in NORMS.get(full_name(type(module)), ()):
        yield getattr(module, name)


class _InPlaceProxy(fx.Proxy):
    """Proxy that records ``x += y`` as a write to x. fx.Proxy would record ``x + y``."""


def record_in_place(assignment: Callable[[Any, Any], Any]) -> Callable[[_InPlaceProxy, Any], fx.Proxy]:
    """Build a proxy's method for an in-place operator."""

    def record(proxy: _InPlaceProxy, other: Any) -> fx.Proxy:
        return proxy.tracer.create_proxy("call_function", assignment, (proxy, other), {})

    return record


for _operator in _IN_PLACE_OPERATORS:
    setattr(_InPlaceProxy, f"__{_operator.__name__}__", record_in_place(_operator))


class _Tracer(fx.Tracer):
    """Tracer with two kinds of leaves: possible modules of a chain, and untraceable modules."""

    proxy_buffer_attributes = True  # records in-place updates of statistics; otherwise tracing would perform them

    def __init__(self) -> None:
        super().__init__()
        self._untraceable: set[nn.Module] = set()

    def proxy(self, node: fx.Node) -> _InPlaceProxy:
        return _InPlaceProxy(node, self)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if isinstance(m, _KNOWN) or full_name(type(m)) in NORMS or not any(m.children()):
            return True
        return m in self._untraceable or override_reason(m) is not None or super().is_leaf_module(m, "")

    def build_graph(self, module: nn.Module) -> fx.Graph | None:
        """Trace a module's forward, and remember untraceable modules.

        Returns:
            The graph. None if the forward cannot be traced even with its untraceable submodules as leaves.
        """
        graph = self._trace_forward(module)
        known_before = len(self._untraceable)
        if graph is None:
            for child in module.children():
                if any(child.children()) and child not in self._untraceable:
                    self.build_graph(child)
            if len(self._untraceable) > known_before:
                graph = self._trace_forward(module)
        if graph is None:
            self._untraceable.add(module)
        return graph

    def _trace_forward(self, module: nn.Module) -> fx.Graph | None:
        """Return the graph of a forward called with the default values of its arguments, None if tracing fails."""
        if "forward" in vars(module):  # torch.fx would trace the forward of the class
            return None
        try:
            parameters = inspect.signature(type(module).forward).parameters.values()
            return self.trace(module, {p.name: p.default for p in parameters if p.default is not p.empty})
        except Exception:  # a forward may raise anything if it is called without tensors
            return None


@contextmanager
def preserved_state(model: nn.Module) -> Iterator[None]:
    """Restore every module's attributes and the random state on leaving.

    Tracing calls the forward. A forward may set attributes, fill containers and draw random numbers.
    """
    attributes: list[tuple[nn.Module, dict[str, Any]]] = [(m, dict(vars(m))) for m in model.modules()]
    values = chain.from_iterable(before.values() for _, before in attributes)
    containers = [(value, copy.copy(value)) for value in values if type(value) in {dict, list, set}]
    try:
        with torch.random.fork_rng(devices=()):
            yield
    finally:
        for container, content in containers:
            container.clear()
            if isinstance(container, list):
                container.extend(content)
            else:
                container.update(content)
        for module, before in attributes:
            vars(module).clear()
            vars(module).update(before)
