"""The networks of `training.py` in PyTorch, as a program that trains on demand.

    python torch_training.py compact|bvlc_alexnet BATCH contiguous|channels_last|compiled
    python torch_training.py recipe DATA SEED

The first prints a line when it is ready; then, for every number it reads, it runs that many steps
and prints the seconds they took. Optimizers are torch's fused ones, its fastest. The second follows
the recipe of `tf-alexnet train DATA --mode scratch --epochs 10`: ten epochs of `compact` on
``DATA/train``, with Adam, random crops and flips; it prints the accuracy on ``DATA/val`` after each
epoch. Needs torch, and for the recipe Pillow and NumPy.
"""

import math
import random
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

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
    """SGD for conv5 and later layers, with Caffe's multipliers; the others are frozen."""
    weighted = [x for x in network if isinstance(x, nn.Conv2d | nn.Linear)]
    for layer in weighted[:4]:
        layer.requires_grad_(False)
    groups = []
    for layer in weighted[4:]:
        rate = 1e-3 if layer is weighted[-1] else 1e-4
        groups.append({"params": [layer.weight], "lr": rate, "weight_decay": 5e-4})
        groups.append({"params": [layer.bias], "lr": 2 * rate, "weight_decay": 0.0})
    return torch.optim.SGD(groups, lr=1e-3, momentum=0.9, fused=True)


def crop_of(width, height):
    """Left, top, right and bottom of a random crop: torchvision's ``RandomResizedCrop``."""
    for _ in range(10):
        area = width * height * random.uniform(0.08, 1)
        ratio = math.exp(random.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = random.randint(0, width - w), random.randint(0, height - h)
            return left, top, left + w, top + h
    w, h = min(width, round(height * 4 / 3)), min(height, round(width * 4 / 3))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def picture(path, train):
    """A photo preprocessed by the recipe, (3, 224, 224) in -1..1."""
    import numpy
    from PIL import Image

    with Image.open(path) as image:
        image = image.convert("RGB")
        box = crop_of(*image.size) if train else None
        image = image.resize((224, 224), Image.Resampling.BILINEAR, box)
    if train and random.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return torch.from_numpy(numpy.array(image)).permute(2, 0, 1) / 127.5 - 1


def recipe(data, seed, epochs=10, batch=32):
    """Train `compact` on class folders, and print the accuracy after each epoch."""
    random.seed(seed)
    torch.manual_seed(seed)
    classes = sorted(x.name for x in Path(data, "train").iterdir())
    parts = {
        part: [(x, i) for i, y in enumerate(classes) for x in sorted(Path(data, part, y).iterdir())]
        for part in ("train", "val")
    }
    network = compact(len(classes))
    for layer in network:
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, 0, 0.01)
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.zeros_(layer.bias)
    optimizer = torch.optim.Adam(network.parameters(), 2e-4, fused=True)
    threads = ThreadPoolExecutor(torch.get_num_threads())

    def batches(part):
        train = part == "train"
        examples = random.sample(parts[part], len(parts[part])) if train else parts[part]
        for start in range(0, len(examples), batch):
            some = examples[start : start + batch]
            pictures = list(threads.map(lambda x: picture(x[0], train), some))
            yield torch.stack(pictures), torch.tensor([x[1] for x in some])

    for epoch in range(1, epochs + 1):
        network.train()
        for pictures, labels in batches("train"):
            optimizer.zero_grad()
            functional.cross_entropy(network(pictures), labels).backward()
            optimizer.step()
        network.eval()
        with torch.no_grad():
            right = sum(int((network(x).argmax(1) == y).sum()) for x, y in batches("val"))
        print(f"epoch {epoch}: val accuracy {right / len(parts['val']):.3f}", flush=True)


def main():
    """Run the program (see the module)."""
    if sys.argv[1] == "recipe":
        recipe(sys.argv[2], int(sys.argv[3]))
        return
    name, batch, memory = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    contiguous = memory == "contiguous"
    layout = torch.contiguous_format if contiguous else torch.channels_last
    torch.manual_seed(0)
    if name == "compact":
        network, side = compact(5).to(memory_format=layout), 224
        optimizer = torch.optim.Adam(network.parameters(), 2e-4, fused=True)
    else:
        network, side = alexnet(5).to(memory_format=layout), 227
        optimizer = fine_tuned(network)
    network.train()
    run = torch.compile(network) if memory == "compiled" else network
    pictures = torch.randn(batch, 3, side, side).contiguous(memory_format=layout)
    labels = torch.randint(5, (batch,))

    def step():
        optimizer.zero_grad()
        loss = functional.cross_entropy(run(pictures), labels)
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
