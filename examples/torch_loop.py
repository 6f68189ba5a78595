"""A khub model in a plain PyTorch loop: a Layer is an nn.Module there."""

import argparse
import os

os.environ["KHUB_BACKEND"] = "torch"  # before the first import of khub

import torch

import khub
from khub import layers


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=200)
    options = parser.parse_args(argv)
    khub.utils.set_random_seed(0)
    torch.manual_seed(0)
    x = torch.rand(512, 2) * 6 - 3
    y = torch.sin(x).sum(1, keepdim=True)

    model = khub.Sequential(
        [
            khub.Input((2,)),
            layers.Dense(64, activation="gelu"),
            layers.Dropout(0.05),
            layers.Dense(1),
        ]
    )
    assert isinstance(model, torch.nn.Module)
    device = next(model.parameters()).device  # the GPU if there is one
    x, y = x.to(device), y.to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    model.train()
    for step in range(options.steps):
        rows = torch.randint(len(x), (128,), device=device)
        loss = torch.nn.functional.mse_loss(model(x[rows]), y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % (options.steps // 5) == 0:
            print(f"step {step}: loss {loss.item():.4f}")

    model.eval()
    with torch.no_grad():
        error = torch.nn.functional.mse_loss(model(x), y).item()
    print(f"final loss {error:.4f}; state_dict: {', '.join(model.state_dict())}")


if __name__ == "__main__":
    main()
