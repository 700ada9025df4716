"""The networks of `training.py` in PyTorch, as a program that trains when it is told to.

    python torch_training.py compact|bvlc_alexnet BATCH contiguous|channels_last

Prints a line when it is ready; then, for every line it reads, does that many steps and prints the
seconds they took. Needs torch alone. Optimizers are torch's fused ones, its fastest.
"""

import sys
import time

import torch
from torch import nn
from torch.nn import functional


def alexnet(classes):
    """Caffe's AlexNet."""
    relu = nn.ReLU(inplace=True)
    norm = nn.LocalResponseNorm(5, 1e-4, 0.75, 1.0)
    pool = nn.MaxPool2d(3, 2)
    return nn.Sequential(
        *(nn.Conv2d(3, 96, 11, 4), relu, norm, pool),
        *(nn.Conv2d(96, 256, 5, padding=2, groups=2), relu, norm, pool),
        *(nn.Conv2d(256, 384, 3, padding=1), relu),
        *(nn.Conv2d(384, 384, 3, padding=1, groups=2), relu),
        *(nn.Conv2d(384, 256, 3, padding=1, groups=2), relu, pool, nn.Flatten()),
        *(nn.Linear(9216, 4096), relu, nn.Dropout(0.5)),
        *(nn.Linear(4096, 4096), relu, nn.Dropout(0.5)),
        nn.Linear(4096, classes),
    )


def compact(classes):
    """The half-width network."""
    relu, pool = nn.ReLU(inplace=True), nn.MaxPool2d(3, 2)
    return nn.Sequential(
        *(nn.Conv2d(3, 48, 11, 4, padding=2), relu, pool),
        *(nn.Conv2d(48, 128, 5, padding=2), relu, pool),
        *(nn.Conv2d(128, 192, 3, padding=1), relu),
        *(nn.Conv2d(192, 192, 3, padding=1), relu),
        *(nn.Conv2d(192, 128, 3, padding=1), relu, pool, nn.Flatten()),
        *(nn.Dropout(0.5), nn.Linear(4608, 2048), relu),
        *(nn.Dropout(0.5), nn.Linear(2048, 2048), relu),
        nn.Linear(2048, classes),
    )


def fine_tuned(network):
    """SGD for conv5 and what follows, with Caffe's multipliers; the rest needs no gradient."""
    weighted = [x for x in network if isinstance(x, nn.Conv2d | nn.Linear)]
    for layer in weighted[:4]:
        layer.requires_grad_(False)
    groups = []
    for layer in weighted[4:]:
        rate = 1e-3 if layer is weighted[-1] else 1e-4
        groups.append({"params": [layer.weight], "lr": rate, "weight_decay": 5e-4})
        groups.append({"params": [layer.bias], "lr": 2 * rate, "weight_decay": 0.0})
    return torch.optim.SGD(groups, lr=1e-3, momentum=0.9, fused=True)


def main():
    """See the module."""
    name, batch, memory = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    layout = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}[memory]
    torch.manual_seed(0)
    if name == "compact":
        network, side = compact(5).to(memory_format=layout), 224
        optimizer = torch.optim.Adam(network.parameters(), 2e-4, fused=True)
    else:
        network, side = alexnet(5).to(memory_format=layout), 227
        optimizer = fine_tuned(network)
    network.train()
    pictures = torch.randn(batch, 3, side, side).contiguous(memory_format=layout)
    labels = torch.randint(5, (batch,))

    def step():
        optimizer.zero_grad()
        loss = functional.cross_entropy(network(pictures), labels)
        loss.backward()
        optimizer.step()
        return loss.item()

    print("ready", flush=True)
    for line in sys.stdin:
        start = time.perf_counter()
        for _ in range(int(line)):
            step()
        print(time.perf_counter() - start, flush=True)


if __name__ == "__main__":
    main()
