"""A model as a picture of its layers, drawn by Graphviz."""

import shutil

from khub import tree
from khub.utils.extras import optional


def _nodes(model):
    return getattr(getattr(model, "_graph", None) or model, "_nodes", ())


def model_to_dot(
    model, show_shapes=False, show_dtype=False, show_layer_names=True, rankdir="TB",
    expand_nested=False, dpi=200, subgraph=False, show_layer_activations=False,
    show_trainable=False, splines="ortho", **kwargs,
):  # fmt: skip
    """Return a Functional or Sequential model as a `pydot.Dot` graph of its layers.

    rankdir: "TB" from top to bottom, "LR" from left to right; expand_nested: the layers of models
    inside, too; subgraph: return a `pydot.Cluster`.  Needs khub[plot]
    """
    pydot = optional("pydot", "plot")
    if not _nodes(model):
        raise ValueError(
            f"{model.name} has no graph of layers: it must be Functional, or Sequential and built."
        )
    options = {k: v for k, v in locals().items() if k not in ("model", "pydot", "subgraph")}

    def label(node):
        layer, outputs = node.function, tree.flatten(node.outputs)
        kind = type(layer).__name__ if hasattr(layer, "name") else layer.__name__
        activation = getattr(getattr(layer, "activation", None), "__name__", "none")
        lines = {
            f"{getattr(layer, 'name', 'op')} ({kind})" if show_layer_names else kind: True,
            f"activation: {activation}": show_layer_activations and activation != "none",
            f"in: {', '.join(str(x.shape) for x in node.parents)}": show_shapes,
            f"out: {', '.join(str(x.shape) for x in outputs)}": show_shapes,
            f"dtype: {', '.join(x.dtype for x in outputs)}": show_dtype,
            "trainable" if getattr(layer, "trainable", True) else "frozen": show_trainable,
        }
        return "\n".join(line for line, shown in lines.items() if shown)

    graph = pydot.Cluster(model.name, label=model.name) if subgraph else None
    graph = graph or pydot.Dot(rankdir=rankdir, dpi=dpi, splines=splines)
    ends = {id(x): (str(id(x)),) * 2 for x in model.inputs}  # where edges to and from it go
    for x in model.inputs:
        graph.add_node(pydot.Node(str(id(x)), label=f"{x.name} {x.shape}", shape="ellipse"))
    for node in _nodes(model):
        key = id(node.function)
        inside = _nodes(node.function) if expand_nested else ()
        ends[key] = (str(key),) * 2
        if inside:
            ends[key] = str(id(node.function.inputs[0])), str(id(inside[-1].function))
            graph.add_subgraph(model_to_dot(node.function, subgraph=True, **options))
        else:
            graph.add_node(pydot.Node(str(key), label=label(node), shape="box"))
        for x in node.parents:
            source = id(x) if id(x) in ends else id(x.node.function)
            graph.add_edge(pydot.Edge(ends[source][1], ends[key][0]))
    return graph


def plot_model(
    model, to_file="model.png", show_shapes=False, show_dtype=False, show_layer_names=False,
    **kwargs,
):  # fmt: skip
    """Write the picture of `model_to_dot` to a file: .png, .svg, .pdf, or .dot (Graphviz' text).

    Raises ImportError when Graphviz' program `dot`, which draws all but .dot, is not installed.
    """
    form = str(to_file).rpartition(".")[2]
    if form != "dot" and shutil.which("dot") is None:
        raise ImportError(f"{to_file}: install Graphviz, which draws it; a file .dot needs none.")
    graph = model_to_dot(model, show_shapes, show_dtype, show_layer_names, **kwargs)
    graph.write(str(to_file), format="raw" if form == "dot" else form)
