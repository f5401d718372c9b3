"""Distil a ResNet of ten layers into a ShuffleNetV2 x0.5, both torchvision's, in an ordinary training loop."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import shufflenet_v2_x0_5
from torchvision.models.resnet import BasicBlock, ResNet

import dskd_mm
from examples.pytorch.digits import accuracy, load, parse_args

args = parse_args(__doc__)
(images, labels), test = load()


def fit(network: nn.Module, loss_of: Callable[[Tensor, Tensor], Tensor], parameters: list[nn.Parameter]) -> str:
    """Train a network by the loss of a batch; return its accuracy on the test images."""
    optimizer = torch.optim.AdamW(parameters, lr=2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.epochs)
    for _ in range(args.epochs):
        network.train()
        for batch in torch.randperm(len(labels)).split(64)[:-1]:
            loss = loss_of(images[batch], labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        schedule.step()
    return f'{accuracy(network, *test):.1f} %'


def fit_alone(network: nn.Module) -> str:
    """Train a network by the labels alone."""
    return fit(network, lambda x, y: F.cross_entropy(network(x), y), list(network.parameters()))


torch.manual_seed(0)
teacher = ResNet(BasicBlock, [1, 1, 1, 1], num_classes=10)
print('teacher  ', fit_alone(teacher), flush=True)

torch.manual_seed(args.seed)
print('plain    ', fit_alone(shufflenet_v2_x0_5(num_classes=10)), flush=True)

torch.manual_seed(args.seed)
student = shufflenet_v2_x0_5(num_classes=10)
distiller = dskd_mm.distil(student, teacher, classifier='fc', method=args.method, warmup=40)
print('distilled', fit(student, distiller, list(distiller.parameters())))
