"""Wrong arguments and inputs: the error names the argument or size, the value and the layer."""

import numpy as np
import pytest
from layer_samples import SAMPLES, array, inputs

import khub
from khub import layers, ops

# --- arguments: every field of every layer, by the kind of its name -------------------------------
COUNTS = ("units", "filters", "groups", "depth_multiplier", "input_dim", "output_dim", "n")
COUNTS += ("num_heads", "key_dim", "head_dim", "num_query_heads", "num_key_value_heads")
SIZES = ("kernel_size", "pool_size", "strides", "dilation_rate", "output_size", "size")
RATES = ("rate", "dropout", "recurrent_dropout", "stddev", "momentum")
WRONG = {  # field -> wrong values, each with the name that should be suggested or None
    **{name: [(0, None), (-3, None), (2.5, None), ("many", None)] for name in COUNTS},
    **{name: [(0, None), (-2, None), (2.5, None), ("wide", None)] for name in SIZES},
    **{name: [(-0.5, None), (1.5, None), ("half", None)] for name in RATES},
    "negative_slope": [(-1.0, None), ("steep", None)],
    "padding": [("smae", "'same'"), ("vaild", "'valid'")],
    "data_format": [("channel_last", "'channels_last'"), ("last", None)],
    "interpolation": [("bilinaer", "'bilinear'")],
    "score_mode": [("conct", "'concat'")],
    "activation": [("rellu", "'relu'"), (5, None)],
    "recurrent_activation": [("sigmiod", "'sigmoid'")],
}
for _part in ("kernel", "bias", "recurrent", "depthwise", "pointwise", "beta", "gamma", "alpha"):
    WRONG[f"{_part}_initializer"] = [("he_nromal", "'he_normal'"), (3, None)]
    WRONG[f"{_part}_regularizer"] = [("l3", "'l2'")]
    WRONG[f"{_part}_constraint"] = [("max_nrom", "'max_norm'")]
NOT_CHECKED = {  # what is a number of another kind in these layers
    ("GroupNormalization", "groups"),  # -1: as many as channels
    *((f"ZeroPadding{n}D", "padding") for n in (1, 2, 3)),
}


def arguments():
    for name, rows in SAMPLES.items():
        for field, _, _ in getattr(layers, name)._fields:
            if (name, field) not in NOT_CHECKED:
                for value, near in WRONG.get(field, ()):
                    yield pytest.param(
                        name, rows[0][0], field, value, near, id=f"{name}-{field}-{value}"
                    )


@pytest.mark.once
@pytest.mark.parametrize(("name", "options", "field", "value", "near"), arguments())
def test_a_wrong_argument_is_named(name, options, field, value, near):
    with pytest.raises(ValueError) as caught:
        getattr(layers, name)(**{**options, field: value, "name": "mine"})
    text = str(caught.value)
    assert f"{name} 'mine'" in text and field in text and repr(value) in text
    assert near is None or f"did you mean {near}" in text or f"or {near}" in text


@pytest.mark.once
def test_an_unknown_merge_mode():
    with pytest.raises(ValueError, match="'b': merge_mode .*'smu'; did you mean 'sum'"):
        layers.Bidirectional(layers.LSTM(2), merge_mode="smu", name="b")


@pytest.mark.once
@pytest.mark.parametrize("name", sorted(SAMPLES))
def test_an_unknown_argument_is_named(name):
    with pytest.raises(TypeError) as caught:
        getattr(layers, name)(**SAMPLES[name][0][0], nmae="mine")
    assert name in str(caught.value) and "'nmae'" in str(caught.value)
    assert "did you mean 'name'" in str(caught.value)


# --- inputs: a rank that is wrong -----------------------------------------------------------------
def text_of(error):
    return "\n".join([str(error), *getattr(error, "__notes__", ())])


def ranked():
    for name, rows in SAMPLES.items():
        layer = getattr(layers, name)(**rows[0][0])
        if isinstance(layer.input_spec, khub.layers.InputSpec) and layer.input_spec.ndim:
            yield name, rows[0]


@pytest.mark.parametrize(("name", "row"), ranked())
@pytest.mark.parametrize("symbolic", [False, True], ids=["tensor", "symbol"])
def test_a_wrong_rank(name, row, symbolic):
    options, shapes, _ = row
    for shape in ((*shapes, 2), shapes[:-1]):
        x = khub.KerasTensor(shape) if symbolic else ops.convert_to_tensor(array(shape))
        with pytest.raises(ValueError) as caught:
            getattr(layers, name)(**options, name="mine")(x, training=True)
        assert f"{name} 'mine'" in str(caught.value) and str(shape) in str(caught.value)
        assert f"{len(shapes)} axes" in str(caught.value)


def built():
    """Layers whose weights depend on the width of the input: built for one, called with another."""
    for name, rows in SAMPLES.items():
        options, shapes, _ = rows[0]
        if not isinstance(shapes, list) and len(shapes) > 1 and "Embedding" not in name:
            layer = getattr(layers, name)(**options)
            layer.build(shapes)
            if layer.trainable_weights:
                yield name, options, shapes


@pytest.mark.parametrize(("name", "options", "shapes"), built())
def test_another_width_than_it_was_built_for(name, options, shapes):
    layer = getattr(layers, name)(**options, name="mine")
    layer(inputs(shapes))
    wrong = (*shapes[:-1], shapes[-1] + 1)
    with pytest.raises(Exception) as caught:
        layer(array(wrong))
    assert f"{name} 'mine'" in text_of(caught.value) and str(wrong) in text_of(caught.value)


MISMATCHES = [  # layer, inputs, words
    (lambda: layers.Add(name="mine"), [(2, 3), (2, 4)], ["(2, 3)", "(2, 4)"]),
    (lambda: layers.Multiply(name="mine"), [(2, 3), (2, 4)], ["(2, 3)", "(2, 4)"]),
    (lambda: layers.Concatenate(name="mine"), [(2, 3, 1), (2, 4, 1)], ["(2, 3, 1)", "(2, 4, 1)"]),
    (lambda: layers.Dot(axes=1, name="mine"), [(2, 3), (2, 4)], ["(2, 3)", "(2, 4)"]),
    (lambda: layers.Attention(name="mine"), [(2, 3, 4), (2, 3, 5)], ["(2, 3, 4)", "(2, 3, 5)"]),
    (lambda: layers.Reshape((5,), name="mine"), (2, 4), ["(2, 4)"]),
    (lambda: layers.Dropout(0.5, (2, 7), name="mine"), (2, 4), ["(2, 4)"]),
    (lambda: layers.Cropping1D(4, name="mine"), (2, 4, 1), ["cropping", "4", "(2, 4, 1)"]),
    (lambda: layers.Conv2D(2, 5, name="mine"), (1, 3, 3, 1), ["(1, 3, 3, 1)"]),
]


@pytest.mark.parametrize(("make", "shapes", "words"), MISMATCHES)
def test_shapes_that_do_not_fit(make, shapes, words):
    with pytest.raises(Exception) as caught:
        make()(inputs(shapes), training=True)
    assert [w for w in ["'mine'", *words] if w not in text_of(caught.value)] == []


# --- ops -----------------------------------------------------------------------------------------
IMAGE, KERNEL = np.ones((1, 5, 5, 2), "float32"), np.ones((2, 2, 2, 3), "float32")
CALLS = [
    (lambda: ops.conv(IMAGE, KERNEL, padding="smae"), ["padding", "'smae'", "did you mean 'same'"]),
    (lambda: ops.max_pool(IMAGE, 2, padding="vaild"), ["padding", "'vaild'", "'valid'"]),
    (lambda: ops.conv(IMAGE, KERNEL, padding=[(1, 1)]), ["padding", "2 pairs", "[(1, 1)]"]),
    (lambda: ops.conv(IMAGE, KERNEL, padding=[1, (1,)]), ["padding", "2 integers", "got (1,)"]),
    (lambda: layers.Conv2D(1, 3, padding=[(1, -1)] * 2), ["padding", "from 0", "(1, -1)"]),
    (lambda: ops.average_pool(IMAGE, (2, 2, 2)), ["pool_size", "(2, 2, 2)"]),
    (lambda: ops.conv(IMAGE, KERNEL, strides=(1, 2, 3)), ["strides", "(1, 2, 3)"]),
    (
        lambda: ops.conv(IMAGE, KERNEL, data_format="channel_last"),
        ["data_format", "'channel_last'", "'channels_last'"],
    ),
    (lambda: ops.cast(IMAGE, "float33"), ["'float33'", "float32"]),
    (lambda: ops.zeros(2, "int7"), ["'int7'", "int8"]),
]


@pytest.mark.parametrize(("act", "words"), CALLS)
def test_ops_name_what_is_wrong(act, words):
    with pytest.raises(ValueError) as caught:
        act()
    assert [word for word in words if word not in str(caught.value)] == []


# --- masks that hide everything -------------------------------------------------------------------
HIDDEN = np.array([[1, 1, 0], [0, 0, 0]], bool)
X = array((2, 3, 4))
ALL_HIDDEN = [
    lambda m: layers.GlobalAveragePooling1D()(X, mask=m),
    lambda m: layers.Softmax()(X[..., 0], mask=m),
    lambda m: layers.Softmax(axis=1)(X, mask=ops.expand_dims(m, -1)),
    lambda m: layers.Attention()([X, X], mask=[m, m]),
    lambda m: layers.AdditiveAttention()([X, X], mask=[m, m]),
    lambda m: layers.MultiHeadAttention(2, 3)(X, X, query_mask=m, value_mask=m),
    lambda m: layers.GroupQueryAttention(2, 4, 2)(X, X, query_mask=m, value_mask=m),
    lambda m: layers.BatchNormalization()(X, mask=m, training=True),
    lambda m: layers.BatchNormalization()(X, mask=ops.zeros_like(m), training=True),
    lambda m: layers.LSTM(3)(X, mask=m),
    lambda m: layers.Bidirectional(layers.GRU(3))(X, mask=m),
]


@pytest.mark.parametrize("policy", ["float32", "mixed_float16", "mixed_bfloat16"])
@pytest.mark.parametrize("make", ALL_HIDDEN)
def test_a_row_that_is_hidden_makes_no_nan(make, policy):
    khub.dtype_policies.set_dtype_policy(policy)
    try:
        found = make(ops.convert_to_tensor(HIDDEN))
    finally:
        khub.dtype_policies.set_dtype_policy("float32")
    assert np.isfinite(ops.convert_to_numpy(found).astype("float32")).all()
