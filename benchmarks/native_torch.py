"""Hand-written PyTorch: what someone who knows PyTorch would write for each cell."""

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from .cells import BERT, CELLS, fit_data, matrices, rows

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def size(module):
    return sum(p.numel() for p in module.parameters())


def eager_ops():
    pairs = [(*(torch.from_numpy(m).to(DEVICE) for m in (a, b)), a.shape) for a, b in matrices()]

    def twenty(a, b, shape):
        rows, columns = shape
        c = torch.add(a, 1.5)
        d = torch.mul(a, c)
        e = torch.sub(d, a)
        f = b.T
        g = torch.add(e, f)
        h = torch.matmul(g, b)
        i = torch.exp(torch.mul(h, 0.01))
        j = torch.sum(i, dim=-1, keepdim=True)
        k = torch.div(i, j)
        m = torch.matmul(k, a)
        n = torch.reshape(m, (columns, rows))
        o = torch.maximum(n, b)
        p = torch.tanh(o)
        q = torch.sqrt(torch.square(p))
        r = torch.relu(torch.neg(q))
        s = torch.cat([r, q], dim=0)
        return torch.mean(s)

    def run(n):
        for _ in range(n):
            for a, b, shape in pairs:
                last = twenty(a, b, shape)
        return float(last)

    return run, 0


def functional_call():
    net = nn.Sequential(*(m for _ in range(10) for m in (nn.Linear(16, 16), nn.ReLU())))
    net, x = net.to(DEVICE), torch.ones(8, 16, device=DEVICE)

    def run(n):
        for _ in range(n):
            y = net(x)
        return float(y.sum())

    return run, size(net)


def fit(name, net, loss_of, prepare=lambda x: x):
    batch = CELLS[name].batch
    x, y = (torch.from_numpy(a) for a in fit_data(name, CELLS[name].iterations))
    x, net = prepare(x), net.to(DEVICE)
    optimizer = torch.optim.Adam(net.parameters())

    def run(n):
        total = torch.zeros((), device=DEVICE)
        for i in range(0, n * batch, batch):
            optimizer.zero_grad(set_to_none=True)
            loss = loss_of(net(x[i : i + batch].to(DEVICE)), y[i : i + batch].to(DEVICE))
            loss.backward()
            optimizer.step()
            total += loss.detach()
        return float(total / n)

    return run, size(net)


def predict(name, net, prepare=lambda x: x):
    batch = CELLS[name].batch
    x = prepare(torch.from_numpy(fit_data(name, CELLS[name].iterations)[0]))
    net = net.to(DEVICE).eval()

    def run(n):
        with torch.inference_mode():
            batches = (x[i : i + batch].to(DEVICE) for i in range(0, n * batch, batch))
            parts = [net(rows).cpu().numpy() for rows in batches]
        return float(np.concatenate(parts).mean())

    return run, size(net)


def perceptron(*sizes):
    pairs = [(nn.Linear(n, m), nn.ReLU()) for n, m in zip(sizes, sizes[1:])]
    return nn.Sequential(*[module for pair in pairs for module in pair][:-1])


def fit_tiny():
    return fit("fit_tiny", perceptron(8, 16, 1), F.mse_loss)


def fit_mlp():
    return fit("fit_mlp", perceptron(784, 512, 512, 10), F.cross_entropy)


def cnn_network():
    """The network, and what makes its images; a permuted NHWC tensor is channels-last already."""
    net = nn.Sequential(
        nn.Conv2d(1, 32, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(1600, 10),
    ).to(memory_format=torch.channels_last)
    return net, lambda x: x.permute(0, 3, 1, 2)  # measured faster than NCHW copies


def fit_cnn():
    net, prepare = cnn_network()
    return fit("fit_cnn", net, F.cross_entropy, prepare)


class Block(nn.Module):
    def __init__(self, width, hidden):
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.norm1, self.norm2 = nn.LayerNorm(width, 1e-12), nn.LayerNorm(width, 1e-12)
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x):
        batch, length, width = x.shape
        split = (batch, length, BERT["heads"], -1)
        q, k, v = (f(x).view(split).transpose(1, 2) for f in (self.query, self.key, self.value))
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape)
        x = self.norm1(x + self.out(attended))
        return self.norm2(x + self.down(F.gelu(self.up(x))))


class Bert(nn.Module):
    def __init__(self):
        super().__init__()
        width = BERT["width"]
        self.word = nn.Embedding(BERT["vocabulary"], width)
        self.position = nn.Embedding(BERT["length"], width)
        self.norm = nn.LayerNorm(width, 1e-12)
        self.blocks = nn.Sequential(*(Block(width, BERT["hidden"]) for _ in range(BERT["depth"])))
        self.head = nn.Linear(width, BERT["classes"])

    def forward(self, tokens):
        x = self.norm(
            self.word(tokens) + self.position(torch.arange(tokens.shape[1], device=tokens.device))
        )
        return self.head(self.blocks(x)[:, 0])


def fit_bert():
    return fit("fit_bert", Bert(), F.cross_entropy)


def predict_mlp():
    return predict("predict_mlp", perceptron(784, 512, 512, 10))


def predict_cnn():
    return predict("predict_cnn", *cnn_network())


def predict_bert():
    return predict("predict_bert", Bert())


def predict_row():
    net = nn.Sequential(*perceptron(20, 64, 64, 3), nn.Softmax(-1)).to(DEVICE).eval()
    x = rows()

    def run(n):
        with torch.inference_mode():
            for i in range(n):
                i %= len(x)
                y = net(torch.from_numpy(x[i : i + 1]).to(DEVICE)).cpu().numpy()
        return float(y.sum())

    return run, size(net)
