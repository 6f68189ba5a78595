"""A khub model in PyTorch's own programs: torch.compile, state dicts, hooks, other modules."""

import copy

import numpy as np
import pytest

import khub
from khub import layers, tree

if khub.backend.name != "torch":
    pytest.skip("PyTorch's own programs", allow_module_level=True)

import torch


def mlp():
    inner = [layers.Dense(8, activation="gelu"), layers.BatchNormalization(), layers.Dense(3)]
    return khub.Sequential([khub.Input((6,)), *inner]), torch.randn(5, 6)


def cnn():
    x = given = khub.Input((8, 8, 3))
    x = layers.MaxPooling2D()(layers.Conv2D(4, 3, padding="same", activation="relu")(x))
    return khub.Model(given, layers.GlobalAveragePooling2D()(x)), torch.randn(2, 8, 8, 3)


def lstm():
    x = given = khub.Input((4,), dtype="int32")
    x = layers.LSTM(5)(layers.Embedding(20, 8, mask_zero=True)(x))
    return khub.Model(given, x), torch.tensor([[1, 2, 3, 0], [4, 0, 0, 0]])


def block():
    x = given = khub.Input((None, 8))
    x = layers.LayerNormalization()(x + layers.MultiHeadAttention(2, 4)(x, x))
    return khub.Model(given, {"x": x + layers.Dense(8)(x)}), torch.randn(2, 5, 8)


def bert():
    from khub import nlp

    sizes = dict(vocabulary_size=30, num_layers=1, num_heads=2, hidden_dim=8, intermediate_dim=16)
    model = nlp.BertBackbone(**sizes, max_sequence_length=12)
    ids = torch.randint(1, 30, (2, 6), dtype=torch.int32)
    ones = torch.ones_like(ids)
    return model, {"token_ids": ids, "padding_mask": ones, "segment_ids": 0 * ids}


def mobilenet():
    from khub import applications

    model = applications.MobileNetV2(weights=None, input_shape=(32, 32, 3), alpha=0.35, classes=5)
    return model, torch.rand(2, 32, 32, 3)


NETS = [mlp, cnn, lstm, block, bert, pytest.param(mobilenet, marks=pytest.mark.slow)]


@pytest.mark.parametrize("make", NETS)
def test_torch_compile_finds_one_graph(make):
    model, x = make()
    torch._dynamo.reset()
    explained = torch._dynamo.explain(model)(x)
    assert (explained.graph_count, explained.graph_break_count) == (1, 0)
    found = torch.compile(model, fullgraph=True, backend="aot_eager")(x)
    torch.testing.assert_close(found, model(x), atol=1e-5, rtol=1e-5)
    sum(y.square().sum() for y in tree.flatten(found)).backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_a_compiled_layer_learns_and_draws():
    dropout = layers.Dropout(0.5)
    model = khub.Sequential([khub.Input((64,)), layers.BatchNormalization(), dropout])
    compiled = torch.compile(model.train(), fullgraph=True, backend="aot_eager")
    x = torch.randn(8, 64) + 3
    one, other = compiled(x), compiled(x)
    assert not torch.equal(one, other) and 0.3 < (one == 0).float().mean() < 0.7
    assert model.layers[0].moving_mean.numpy().mean() == pytest.approx(0.06, abs=0.01)
    model.eval()
    torch.testing.assert_close(compiled(x), model(x))


def test_a_graph_is_that_of_its_own_layer():
    call = torch.compile(lambda layer, x: layer(x) + 1, fullgraph=True, backend="aot_eager")
    x = torch.randn(2, 3)
    for layer in (layers.Dense(4), layers.Dense(4)):
        layer.build((None, 3))
        torch.testing.assert_close(call(layer, x), layer(x) + 1)


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first = torch.nn.Linear(6, 6)
        self.second = mlp()[0]

    def forward(self, x):
        return self.second(torch.relu(self.first(x)))


def test_inside_another_module_with_hooks_and_state_dicts():
    torch.manual_seed(0)
    net, x = Net(), torch.randn(32, 6)
    y = x[:, :3].sin()
    names = net.state_dict().keys()
    assert {"first.weight", "second.layers_0.kernel", "second.layers_1.moving_mean"} <= set(names)
    seen = []
    hooks = [
        net.second.register_forward_hook(lambda module, args, out: seen.append("forward")),
        net.second.register_full_backward_hook(lambda *_: seen.append("backward")),
    ]
    optimizer, losses = torch.optim.AdamW(net.parameters(), 3e-2), []
    for _ in range(30):
        loss = torch.nn.functional.mse_loss(net(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0] and seen == ["forward", "backward"] * 30
    for hook in hooks:
        hook.remove()
    other = Net()
    other.load_state_dict(net.state_dict())
    torch.testing.assert_close(other.eval()(x), net.eval()(x))
    assert net.to(torch.float64).second.layers[0].kernel.value.dtype is torch.float64
    compiled = torch.compile(other, fullgraph=True, backend="aot_eager")
    np.testing.assert_allclose(compiled(x).detach(), other(x).detach(), atol=1e-6)


class Holder(khub.Model):
    """Has layers, Variables and torch's own parameters in all places that there are."""

    def __init__(self):
        super().__init__()
        self.blocks, self.named = [layers.Dense(4), layers.Dropout(0.2)], {"last": layers.Dense(4)}
        self.blocks_0 = layers.LayerNormalization()  # the name of blocks[0], too
        self.pair = [self.add_weight((4,), name="one"), self.add_weight((4,), name="two")]
        self.register_parameter("own", torch.nn.Parameter(torch.ones(4)))
        self.register_buffer("fixed", torch.full((4,), 2.0))

    def call(self, x):
        x = self.named["last"](self.blocks[1](self.blocks_0(self.blocks[0](x))))
        self.add_loss(x.square().mean())
        return x * self.own * self.fixed + self.pair[0] + self.pair[1]


def holder():
    model, x = Holder(), torch.randn(3, 4)
    model(x)
    return model, x


STATEFUL = [mlp, cnn, lstm, holder]


@pytest.mark.parametrize("make", STATEFUL)
def test_functional_call_takes_all_tensors_and_puts_them_back(make):
    model, x = make()
    before, state = model(x), model.state_dict()
    given = {k: v + 0.1 if v.is_floating_point() else v for k, v in state.items()}
    found = torch.func.functional_call(model, given, (x,))
    assert not torch.allclose(found, before)
    torch.testing.assert_close(model(x), before)
    model.load_state_dict(given, assign=True)
    torch.testing.assert_close(model(x), found)
    weights = dict(model.named_parameters())
    if make is not lstm:  # torch's fused kernels know no functional gradient

        def loss(weights):
            return torch.func.functional_call(model, weights, (x,)).square().sum()

        assert torch.func.grad(loss)(weights).keys() == weights.keys()


@pytest.mark.parametrize("make", STATEFUL)
def test_a_copy_is_a_model_of_its_own(make):
    model, x = make()
    before, other = model(x), copy.deepcopy(model)
    with torch.no_grad():
        for weight in other.parameters():
            weight.add_(1)
    torch.testing.assert_close(model(x), before)
    assert not torch.allclose(other(x), before)


def test_torch_finds_by_attributes_what_it_names():
    model, x = holder()
    names = {"blocks_0", "blocks_0_", "blocks_1", "named_last", "", "blocks_1.seed_generator"}
    assert {name for name, _ in model.named_modules()} <= names
    for name, module in model.named_modules():
        assert model.get_submodule(name) is module
    assert {"own", "fixed", "pair_0", "pair_1"} <= model.state_dict().keys()
    exported = torch.export.export(mlp()[0], (torch.randn(2, 6),)).module()
    assert exported(torch.randn(2, 6)).shape == (2, 3)
    with pytest.raises(NotImplementedError, match="DistributedDataParallel"):
        model._replicate_for_data_parallel()
