"""Modules of torch and the functions that `hx.from_torch` makes of them: the largest differences, relative to the
largest entry, of outputs, gradient and Hessian product. Run: python -m benchmarks.torch_modules

Gradient and product are those of Σ c·sin(output), with fixed random numbers c. In float64 both sides compute in
float64; in float32, each in its own. Every module is looked at in train and in eval mode, dropout aside, and the larger
difference is printed.
"""

import itertools
import sys

import torch
from torch import nn

from hyprax.torch._check import differences
from hyprax.torch._export import exported


class LeNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            *(nn.Conv2d(1, 6, 5, padding=2), nn.Sigmoid(), nn.AvgPool2d(2)),
            *(nn.Conv2d(6, 16, 5), nn.Sigmoid(), nn.MaxPool2d(2), nn.Flatten()),
        )
        self.head = nn.Sequential(nn.LazyLinear(120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10))

    def forward(self, x):
        return self.head(self.features(x))


class Block(nn.Module):
    """Two convolutions beside a shortcut, as in ResNet-18."""

    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs)
        same = stride == 1 and inputs == outputs
        short = (nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
        self.downsample = nn.Identity() if same else nn.Sequential(*short)

    def forward(self, x):
        y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return torch.relu(y + self.downsample(x))


class ResNet18(nn.Module):
    """Eight blocks in four stages; `width` is 64 in the original."""

    def __init__(self, width=64):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, width, 7, 2, 3, bias=False), nn.BatchNorm2d(width)
        self.pool = nn.MaxPool2d(3, 2, 1)
        widths = [width, width, 2 * width, 4 * width, 8 * width]
        stages = [
            nn.Sequential(Block(a, b, 1 if i == 0 else 2), Block(b, b, 1))
            for i, (a, b) in enumerate(itertools.pairwise(widths))
        ]
        self.stages, self.fc = nn.Sequential(*stages), nn.Linear(8 * width, 10)

    def forward(self, x):
        x = self.stages(self.pool(torch.relu(self.bn1(self.conv1(x)))))
        return self.fc(nn.functional.adaptive_avg_pool2d(x, 1).flatten(1))


class LSTM(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(5, 8, num_layers=2, batch_first=True, dropout=0.2, bidirectional=True)
        self.head = nn.Linear(16, 3)

    def forward(self, x):
        return self.head(self.lstm(x)[0][:, -1])


class Attention(nn.Module):
    def __init__(self, width, heads, dropout):
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x):
        n, t, width = x.shape
        q, k, v = (z.view(n, t, self.heads, -1).transpose(1, 2) for z in self.qkv(x).chunk(3, dim=-1))
        p = self.dropout if self.training else 0.0
        y = nn.functional.scaled_dot_product_attention(q, k, v, dropout_p=p, is_causal=True)
        return self.out(y.transpose(1, 2).reshape(n, t, width))


class GPT2(nn.Module):
    """GPT-2's shape: learned positions, norms before attention and MLP, the head tied to the embedding."""

    def __init__(self, layers=4, width=32, heads=4, tokens=50, length=12, dropout=0.1):
        super().__init__()
        self.wte, self.wpe, self.drop = nn.Embedding(tokens, width), nn.Embedding(length, width), nn.Dropout(dropout)
        self.blocks = nn.ModuleList(
            nn.ModuleDict(
                {
                    "ln_1": nn.LayerNorm(width),
                    "attn": Attention(width, heads, dropout),
                    "ln_2": nn.LayerNorm(width),
                    "mlp": nn.Sequential(
                        *(nn.Linear(width, 4 * width), nn.GELU(approximate="tanh")),
                        *(nn.Linear(4 * width, width), nn.Dropout(dropout)),
                    ),
                }
            )
            for _ in range(layers)
        )
        self.ln_f, self.head = nn.LayerNorm(width), nn.Linear(width, tokens, bias=False)
        self.head.weight = self.wte.weight

    def forward(self, tokens):
        x = self.drop(self.wte(tokens) + self.wpe(torch.arange(tokens.shape[1], device=tokens.device)))
        for block in self.blocks:
            x = x + block["attn"](block["ln_1"](x))
            x = x + block["mlp"](block["ln_2"](x))
        return self.head(self.ln_f(x))


class Bag(nn.Module):
    def __init__(self):
        super().__init__()
        self.bag, self.head = nn.EmbeddingBag(20, 6, mode="mean", padding_idx=3), nn.Linear(6, 2)

    def forward(self, x):
        return self.head(self.bag(x))


class Tied(nn.Module):
    """An autoencoder whose two layers are one matrix."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 9) / 3)

    def forward(self, x):
        return torch.tanh(x @ self.weight.T) @ self.weight


def cases():
    """Names, modules and examples."""
    yield "MLP", nn.Sequential(nn.Linear(10, 32), nn.Tanh(), nn.Dropout(0.2), nn.Linear(32, 3)), torch.randn(4, 10)
    yield "LeNet", LeNet(), torch.randn(3, 1, 28, 28)
    yield "ResNet-18", ResNet18(), torch.randn(3, 3, 32, 32)
    yield "LSTM", LSTM(), torch.randn(3, 7, 5)
    yield "GPT-2, 4 layers", GPT2(), torch.randint(0, 50, (2, 12))
    yield "EmbeddingBag", Bag(), torch.randint(0, 20, (4, 5))
    yield "tied weights", Tied(), torch.randn(4, 9)


def main(names):
    torch.manual_seed(0)
    print("| module | arithmetic | outputs | gradient | Hessian product |\n| --- | --- | --- | --- | --- |")
    for name, module, example in cases():
        if names and name not in names:
            continue
        if any(isinstance(part, nn.modules.lazy.LazyModuleMixin) for part in module.modules()):
            module(example)
        graphs = {train: exported(module, (example,), train) for train in (False, True)}
        for arithmetic in ("float64", "float32"):
            found = [
                differences(module, graph, (example,), train, arithmetic=arithmetic) for train, graph in graphs.items()
            ]
            worst = {what: max(each[what] for each in found) for what in found[0]}
            numbers = " | ".join(f"{worst[what]:.0e}" for what in ("outputs", "gradient", "product"))
            print(f"| {name} | {arithmetic} | {numbers} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
