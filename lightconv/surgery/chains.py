"""Which modules follow a convolution and can be computed together with it: what a chain is, and what ends one.

torch.fx says who reads which map, in training and in evaluation. A forward that it cannot trace is a closed box: what
it calls is unknown, but each of its submodules, an nn.Sequential for instance, is traced by itself.
"""

import copy
import inspect
import operator
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import takewhile
from typing import Any, NamedTuple

import torch
from torch import fx, nn

from lightconv.nn.modules import Conv2d, MaxPool2d
from lightconv.operators.conv_block import NON_DECREASING
from lightconv.operators.geometry import pair
from lightconv.surgery.swap import class_before

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
# with what each calls on the normalised map, in this order; by name, since timm need not be installed
NORMS: dict[str, tuple[str, ...]] = {
    "BatchNorm2d": (),
    "torchvision.ops.misc.FrozenBatchNorm2d": (),
    "timm.layers.norm_act.BatchNormAct2d": ("drop", "act"),
    "timm.layers.norm_act.FrozenBatchNormAct2d": ("drop", "act"),
}
_KNOWN = {*CONVOLUTIONS, *POOLINGS, *ACTIVATIONS, nn.BatchNorm2d, nn.Identity}
_AUGMENTED = (operator.iadd, operator.isub, operator.imul, operator.itruediv)
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class Chain(NamedTuple):
    """A convolution and what can be computed with it.

    Attributes:
        name: of the convolution within the model.
        convolution: the module.
        absorbed: the modules right after it, in the order of their calls, without nn.Identity; () if there are none. A
            module that calls others on its result comes before them.
        end: why nothing more is part of it.
    """

    name: str
    convolution: nn.Conv2d
    absorbed: tuple[nn.Module, ...]
    end: str


def full_name(kind: type[nn.Module]) -> str:
    """A class by its module and name, torch's own by name."""
    return kind.__name__ if kind.__module__.startswith("torch.nn") else f"{kind.__module__}.{kind.__qualname__}"


def activation_of(module: nn.Module) -> str | None:
    """The name that a block has for what an activation module computes; None if it has none."""
    plain = getattr(module, "negative_slope", 0.01) == 0.01 and getattr(module, "approximate", "none") == "none"
    return ACTIVATIONS.get(type(module)) if plain else None


def pooling_unsupported_reason(pooling: nn.MaxPool2d) -> str | None:
    """Why a max-pooling cannot be part of a block, whose windows meet and do not overlap; None if it can."""
    size = pair(pooling.kernel_size)
    if pooling.return_indices:
        return "MaxPool2d returns indices"
    if pair(pooling.padding) != (0, 0):
        return "MaxPool2d pads"
    if pair(pooling.dilation) != (1, 1):
        return "MaxPool2d is dilated"
    if size is None or size != pair(pooling.stride):
        return f"MaxPool2d's windows of {pooling.kernel_size} overlap or leave gaps, with stride {pooling.stride}"
    return "MaxPool2d's ceil_mode keeps windows that hang over the edge" if pooling.ceil_mode else None


def chains(model: nn.Module) -> list[Chain]:
    """Every convolution of a model with what can be computed with it, as its forward is called by default."""
    modes = [_Calls(model, training) for training in (True, False)]
    return [_chain(name, module, modes) for name, module in model.named_modules() if isinstance(module, nn.Conv2d)]


def _chain(name: str, convolution: nn.Conv2d, modes: Sequence["_Calls"]) -> Chain:
    end = _obstacle(convolution) or _hidden(convolution, modes)
    if end is not None:
        return Chain(name, convolution, (), end)
    runs = [mode.run(convolution) for mode in modes if convolution in mode.nodes]
    run, end = min(runs, key=lambda run: len(run[0]))
    steps = zip(*(modules for modules, _ in runs), strict=False)
    common = [step[0] for step in takewhile(lambda step: len(set(step)) == 1, steps)]
    if len(common) < len(run):
        end = "goes on differently in training and in evaluation"
    absorbed: list[nn.Module] = []
    for module in common:
        refusal = _obstacle(module) or _shared(module, convolution, modes) or _refusal(module, absorbed)
        if refusal is None and _saves_more(module, absorbed) and any(mode.written(module) for mode in modes):
            refusal = f"{type(module).__name__}'s map is written to, which a block needs for its gradient"
        if refusal is not None:
            return Chain(name, convolution, tuple(absorbed), refusal)
        if type(module) is not nn.Identity:
            absorbed.append(module)
    return Chain(name, convolution, tuple(absorbed), end)


def _obstacle(module: nn.Module) -> str | None:
    """Why a module might do something else than its class is known for."""
    kind = class_before(module)
    if any(getattr(module, hooks) for hooks in _HOOKS):
        return f"{kind.__name__} has hooks, which would see other maps"
    if "forward" in vars(module):
        return f"the forward of this {kind.__name__} has been replaced"
    if kind not in _KNOWN and full_name(kind) not in NORMS and isinstance(module, tuple(_KNOWN)):
        return f"{kind.__name__} has a forward of its own"
    return None


def _hidden(convolution: nn.Conv2d, modes: Sequence["_Calls"]) -> str | None:
    called = [mode.count[convolution] for mode in modes]
    if max(called) > 1:
        return f"called {max(called)} times"
    if not any(called):
        return "never called"
    box = next((mode.boxes[convolution] for mode in modes if convolution in mode.boxes), None)
    return None if box is None else f"called by the forward of {box}, which torch.fx cannot trace"


def _parts(modules: Iterable[nn.Module]) -> list[nn.Module]:
    """Modules in the order of their calls, each before those that it calls on what it has normalised."""
    parts = list[nn.Module]()
    for module in modules:
        parts += [module, *(getattr(module, name) for name in NORMS.get(full_name(type(module)), ()))]
    return parts


def _shared(module: nn.Module, convolution: nn.Conv2d, modes: Sequence["_Calls"]) -> str | None:
    if all(mode.count[module] == mode.count[convolution] for mode in modes):
        return None
    return f"{type(module).__name__} is called elsewhere, too"


def _refusal(module: Any, absorbed: Sequence[nn.Module]) -> str | None:
    """Why a module cannot go on a chain; None if it can."""
    kind = type(module).__name__
    pooled = any(isinstance(m, nn.MaxPool2d) for m in absorbed)
    activated = any(type(m) in ACTIVATIONS for m in absorbed)
    if full_name(type(module)) in NORMS:
        if absorbed:
            return f"{kind} comes after {type(absorbed[-1]).__name__}"
        return f"{kind} keeps no statistics" if module.running_mean is None else None
    if isinstance(module, nn.MaxPool2d):
        return "a second MaxPool2d" if pooled else pooling_unsupported_reason(module)
    if type(module) not in ACTIVATIONS:
        return None if type(module) is nn.Identity else f"followed by {full_name(type(module))}"
    name = activation_of(module)
    if name is None:
        return f"{module} is no activation of ConvBlock"
    if activated:
        return f"a second activation, {kind}"
    commutes = not pooled or name in NON_DECREASING
    return None if commutes else f"{kind} comes after pooling, with which it does not commute"


def _saves_more(module: nn.Module, absorbed: Sequence[nn.Module]) -> bool:
    """Whether backward of a block may need the result, where the module at its end alone does not."""
    pools = isinstance(module, nn.MaxPool2d) and any(type(m) in ACTIVATIONS for m in absorbed)
    return pools or isinstance(module, nn.LeakyReLU)


class _Calls:
    """Which modules a model calls in one mode, and who reads what they return.

    Attributes:
        count: calls of each module without modules within, or with such as it calls on what it has normalised.
        nodes: of those whose call torch.fx has seen.
        boxes: the class whose forward calls it, for the others.
    """

    def __init__(self, model: nn.Module, training: bool) -> None:
        self.count: Counter[nn.Module] = Counter()
        self.nodes: dict[nn.Module, fx.Node] = {}
        self.boxes: dict[nn.Module, str] = {}
        self._modules: dict[fx.Node, nn.Module] = {}
        self._seen: set[nn.Module] = set()
        self._tracer = _Tracer()
        with _as_it_was(model):
            for module in model.modules():
                vars(module)["training"] = training  # a ScriptModule keeps its own
            self._collect(model)

    def run(self, module: nn.Module) -> tuple[list[nn.Module], str]:
        """The modules that are called on a module's result, one on the other's and nothing else, and what is then."""
        node, modules = self.nodes[module], list[nn.Module]()
        while len(node.users) == 1:
            (reader,) = node.users
            if reader not in self._modules or reader.args != (node,) or reader.kwargs:
                return modules, _described(reader)
            modules += _parts([self._modules[reader]])
            node = reader
        return modules, "its map is read more than once" if node.users else "nothing reads its map"

    def written(self, module: nn.Module) -> bool:
        """Whether what a module returns is changed in place."""
        readers = self.nodes[module].users if module in self.nodes else ()
        return any(_writes(reader, self._modules.get(reader)) for reader in readers)

    def _collect(self, module: nn.Module) -> None:
        if module in self._seen:
            return
        self._seen.add(module)
        graph = self._tracer.graph_of(module)
        if graph is None:
            called = _parts(module.children())
            self.boxes.update(dict.fromkeys(called, type(module).__name__))
        else:
            nodes = {node: module.get_submodule(str(node.target)) for node in graph.nodes if node.op == "call_module"}
            self._modules.update(nodes)
            self.nodes.update({part: node for node, called in nodes.items() for part in _parts([called])})
            called = _parts(nodes.values())
        self.count.update(called)
        for child in called:
            if any(child.children()) and full_name(type(child)) not in NORMS:
                self._collect(child)


def _writes(reader: fx.Node, module: nn.Module | None) -> bool:
    """Whether a call changes what it reads: ``+=``, ``relu_``, an argument or an attribute ``inplace``."""
    told = True in (reader.kwargs.get("inplace"), getattr(module, "inplace", False))
    name = str(getattr(reader.target, "__name__", reader.target))
    return told or name.endswith("_") or reader.target in _AUGMENTED


def _described(node: fx.Node) -> str:
    if node.op in {"output", "call_module"}:
        return "returned" if node.op == "output" else f"one of several arguments of {node.target}"
    return f"followed by {getattr(node.target, '__name__', node.target)}(), which is no module"


class _Proxy(fx.Proxy):
    """Tells ``x += y``, which writes to x, from ``x + y``; fx.Proxy takes the one for the other."""


def _augmented(assignment: Callable[[Any, Any], Any]) -> Callable[[_Proxy, Any], fx.Proxy]:
    return lambda proxy, other: proxy.tracer.create_proxy("call_function", assignment, (proxy, other), {})


for _assignment in _AUGMENTED:
    setattr(_Proxy, f"__{_assignment.__name__}__", _augmented(_assignment))


class _Tracer(fx.Tracer):
    """Traces through everything but modules that stand for themselves, and those that cannot be traced."""

    proxy_buffer_attributes = True  # in-place updates of statistics are to be seen, not done

    def __init__(self) -> None:
        super().__init__()
        self._opaque: set[nn.Module] = set()

    def proxy(self, node: fx.Node) -> _Proxy:
        return _Proxy(node, self)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        known = isinstance(m, tuple(_KNOWN)) or full_name(type(m)) in NORMS or not any(m.children())
        return known or m in self._opaque or _obstacle(m) is not None or super().is_leaf_module(m, "")

    def graph_of(self, module: nn.Module) -> fx.Graph | None:
        """What a module does; None if its forward cannot be traced even where submodules are taken as they are."""
        graph = self._traced(module)
        opaque = len(self._opaque)
        if graph is None:
            for child in module.children():
                if any(child.children()) and child not in self._opaque:
                    self.graph_of(child)
            graph = self._traced(module) if len(self._opaque) > opaque else None
        if graph is None:
            self._opaque.add(module)
        return graph

    def _traced(self, module: nn.Module) -> fx.Graph | None:
        if "forward" in vars(module):  # torch.fx would trace the class's
            return None
        try:
            parameters = inspect.signature(type(module).forward).parameters.values()
            return self.trace(module, {p.name: p.default for p in parameters if p.default is not p.empty})
        except Exception:  # whatever a forward raises that is given no tensors
            return None


@contextmanager
def _as_it_was(model: nn.Module) -> Iterator[None]:
    """Give every module its attributes back: a forward may set some, and tracing means to call it."""
    before: list[tuple[nn.Module, dict[str, Any]]] = [(module, dict(vars(module))) for module in model.modules()]
    held = [(v, copy.copy(v)) for _, attributes in before for v in attributes.values() if type(v) in {dict, list, set}]
    try:
        with torch.random.fork_rng(devices=()):
            yield
    finally:
        for holder, content in held:
            holder.clear()
            holder.extend(content) if isinstance(holder, list) else holder.update(content)
        for module, attributes in before:
            vars(module).clear()
            vars(module).update(attributes)
