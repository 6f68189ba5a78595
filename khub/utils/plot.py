"""A model as a picture of its layers, drawn by Graphviz."""

import shutil

from khub import tree


def _graph(model):
    return getattr(getattr(model, "_graph", None) or model, "_nodes", None)


def _label(node, show_shapes, show_dtype, show_layer_names, activations, trainable):
    layer = node.function
    kind = type(layer).__name__ if hasattr(layer, "name") else layer.__name__
    lines = [f"{layer.name} ({kind})" if show_layer_names and hasattr(layer, "name") else kind]
    outputs, inputs = tree.flatten(node.outputs), node.parents
    if activations and getattr(layer, "activation", None) is not None:
        lines.append(f"activation: {layer.activation.__name__}")
    if show_shapes:
        lines += [
            f"{what}: {', '.join(str(x.shape) for x in xs)}"
            for what, xs in (("in", inputs), ("out", outputs))
            if xs
        ]
    if show_dtype:
        lines.append(f"dtype: {', '.join(x.dtype for x in outputs)}")
    if trainable:
        lines.append("trainable" if getattr(layer, "trainable", True) else "frozen")
    return "\n".join(lines)


def model_to_dot(
    model, show_shapes=False, show_dtype=False, show_layer_names=True, rankdir="TB",
    expand_nested=False, dpi=200, subgraph=False, show_layer_activations=False,
    show_trainable=False, splines="ortho", **kwargs,
):  # fmt: skip
    """Return a Functional or Sequential model as a `pydot.Dot` graph of its layers.

    rankdir: "TB" from top to bottom, "LR" from left to right; expand_nested: the layers of models
    inside, too; subgraph: return a `pydot.Cluster`
    """
    try:
        import pydot
    except ImportError as error:
        raise ImportError("Drawing a model needs pydot: pip install 'khub[plot]'.") from error
    nodes = _graph(model)
    if nodes is None:
        raise ValueError(
            f"{model.name} has no graph of layers: it must be Functional, or Sequential and built."
        )
    given = show_shapes, show_dtype, show_layer_names
    about = (*given, show_layer_activations, show_trainable)
    graph = pydot.Cluster(model.name, label=model.name) if subgraph else None
    graph = graph or pydot.Dot(rankdir=rankdir, dpi=dpi, splines=splines)
    ends = {}  # id of what was called -> where its edges begin and end
    for node in nodes:
        key, layer = id(node.function), node.function
        if expand_nested and _graph(layer):
            inner = model_to_dot(layer, *given, rankdir, True, dpi, True, *about[3:], splines)
            graph.add_subgraph(inner)
            names = [str(id(n.function)) for n in _graph(layer)]
            ends[key] = names[0], names[-1]
        else:
            ends[key] = (str(key),) * 2
            graph.add_node(pydot.Node(str(key), label=_label(node, *about), shape="box"))
        for x in node.parents:
            if x.node is not None and id(x.node.function) in ends:
                graph.add_edge(pydot.Edge(ends[id(x.node.function)][1], ends[key][0]))
    return graph


def plot_model(
    model,
    to_file="model.png",
    show_shapes=False,
    show_dtype=False,
    show_layer_names=False,
    **kwargs,
):
    """Write the picture of `model_to_dot` to a file: .png, .svg, .pdf, or .dot (Graphviz' text).

    Raises ImportError when Graphviz' program `dot`, which draws all but .dot, is not installed.
    """
    form = str(to_file).rpartition(".")[2]
    graph = model_to_dot(model, show_shapes, show_dtype, show_layer_names, **kwargs)
    if form != "dot" and shutil.which("dot") is None:
        raise ImportError(
            f"{to_file}: Graphviz, whose program `dot` draws it, is not installed (apt install "
            "graphviz); a file .dot needs none."
        )
    graph.write(str(to_file), format="raw" if form == "dot" else form)
