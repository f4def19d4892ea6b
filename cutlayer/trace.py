"""Cutting what torch.fx can trace: residual connections and several tensors may cross, train() and eval() keep working."""

import operator
from typing import Any

from torch import fx, nn
from torch.utils import _pytree as pytree

from .errors import BadInput, unknown
from .frozen import modes_kept

MODE = "training_mode"


class TrainingMode(nn.Module):
    """Answers self.training inside a graph, where tracing would have frozen it."""

    def forward(self) -> bool:
        return self.training


def divide_traced(model: nn.Module, at: str, single: bool = False) -> tuple[fx.GraphModule, fx.GraphModule]:
    """Divide a traced model after the last operation of its module `at`.

    The bottom gives a dict: "main", the output of `at`, and by name every other tensor that the top needs. Names of
    parameters stay the uncut model's. With `single` it gives the one tensor itself. Raises BadInput if the model cannot be
    traced, `at` is unknown, x itself would cross, or more than a single tensor would.
    """
    graph = _trace(model)
    order = [node for node in graph.nodes if node.op != "output"]
    names = _owners(order)
    if at not in names:
        raise unknown("tail" if single else "cut", at, names)
    last = max(i for i, node in enumerate(order) if at in _path(node))
    first, second = order[: last + 1], order[last + 1 :]
    result = next(node for node in graph.nodes if node.op == "output")
    if order[last] in result.all_input_nodes or not second:
        raise BadInput(f"the cut {at!r} leaves nothing behind it; choose an earlier block")
    needed = {argument for node in [*second, result] for argument in node.all_input_nodes}
    crossing = [node for node in first if node in needed and node is not order[last] and node.target != MODE]
    if single and crossing:
        raise BadInput(
            f"behind {at!r} the tail would need {', '.join(node.name for node in crossing)} too; let it begin where one tensor crosses"
        )
    for node in crossing:
        if node.op == "placeholder":
            raise BadInput(f"the input {node.name!r} is used behind the cut {at!r}, so raw data would cross; cut later")
        if node.op == "get_attr":
            raise BadInput(f"the parameter {node.target!r} is used on both sides of the cut {at!r}; cut elsewhere")
    bottom, copies = _graph(first)
    main = copies[order[last]]
    bottom.output(main if single else {"main": main} | {node.name: copies[node] for node in crossing})
    modes = [node for node in first if node.target == MODE]
    top, copies = _graph([*modes, *second], inputs=[order[last], *crossing])
    top.output(fx.node.map_arg(result.args[0], copies.__getitem__))
    return _module(model, bottom), _module(model, top)


def _graph(nodes: list[fx.Node], inputs: list[fx.Node] = []) -> tuple[fx.Graph, dict[fx.Node, fx.Node]]:
    graph, copies = fx.Graph(), {}
    for i, node in enumerate(inputs):
        copies[node] = graph.placeholder("main" if i == 0 else node.name)
    for node in nodes:
        copies[node] = graph.node_copy(node, copies.__getitem__)
    return graph, copies


def _module(model: nn.Module, graph: fx.Graph) -> fx.GraphModule:
    for node in [node for node in graph.nodes if node.target == MODE and not node.users]:
        graph.erase_node(node)
    targets = {str(node.target) for node in graph.nodes if node.op in ("call_module", "get_attr")}
    root = {path: TrainingMode() if path == MODE else _attribute(model, path) for path in targets}
    module = fx.GraphModule(root, graph)
    for child in module.modules():  # the containers that fx makes begin in train mode
        if type(child) is nn.Module or isinstance(child, fx.GraphModule | TrainingMode):
            child.training = model.training
    return module


def _attribute(model: nn.Module, path: str) -> Any:
    return operator.attrgetter(path)(model)


def _path(node: fx.Node) -> list[str]:
    """Return the modules a node belongs to, outermost first."""
    return [path for path, _ in node.meta.get("nn_module_stack", {}).values()]


def _owners(nodes: list[fx.Node]) -> list[str]:
    seen: dict[str, None] = {}
    for node in nodes:
        seen.update(dict.fromkeys(path for path in _path(node) if path))
    return list(seen)


def _trace(model: nn.Module) -> fx.Graph:
    """Trace a model in train and in eval mode and make one graph that follows the mode."""
    if isinstance(model, fx.GraphModule):
        return model.graph  # a top that is cut again
    graphs = []
    try:
        with modes_kept([model]):
            for mode in (True, False):
                model.train(mode)
                graphs.append(fx.Tracer().trace(model))
    except Exception as error:
        first = str(error).strip().partition("\n")[0]
        raise BadInput(
            f"{type(model).__name__} cannot be traced by torch.fx ({first}); write it as nn.Sequential of blocks, "
            "or pass cl.Parts(bottom, top)"
        ) from error
    graph, other = graphs
    if [(n.op, n.target) for n in graph.nodes] != [(n.op, n.target) for n in other.nodes]:
        raise BadInput(
            f"{type(model).__name__}.forward takes other steps in train() than in eval(); pass cl.Parts(bottom, top) instead"
        )
    frozen = [(a, b) for a, b in zip(graph.nodes, other.nodes, strict=True) if _leaves(a) != _leaves(b)]
    if frozen:
        with graph.inserting_before(next(node for node in graph.nodes if node.op != "placeholder")):
            mode_node = graph.create_node("call_module", MODE)
        for node, twin in frozen:
            _follow_mode(node, twin, mode_node)
    return graph


def _leaves(node: fx.Node) -> list[Any]:
    flat = pytree.tree_leaves((node.args, node.kwargs))
    return [leaf.name if isinstance(leaf, fx.Node) else leaf for leaf in flat]


def _follow_mode(node: fx.Node, twin: fx.Node, mode: fx.Node) -> None:
    mine, spec = pytree.tree_flatten((node.args, node.kwargs))
    theirs = pytree.tree_leaves((twin.args, twin.kwargs))
    for i, (a, b) in enumerate(zip(mine, theirs, strict=True)):
        if a is True and b is False:
            mine[i] = mode
        elif not isinstance(a, fx.Node) and a != b:
            raise BadInput(
                f"{node.target} is called with {a!r} in train() and {b!r} in eval(); pass cl.Parts(bottom, top) instead"
            )
    node.args, node.kwargs = pytree.tree_unflatten(mine, spec)
