"""What stands in for what older stacks lack."""

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import StepLR

from dskd_mm.utils.legacy import StepPreHook, register_step_pre_hook


@pytest.mark.parametrize('register', [StepPreHook, register_step_pre_hook], ids=['wrapper', 'of this torch'])
@pytest.mark.filterwarnings('error')
def test_a_hook_is_called_before_each_step_until_it_is_removed(register):
    layer = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
    scheduler = StepLR(optimizer, 1)
    torch.compile(nn.Identity(), backend='eager')(torch.zeros(1))  # after which torch 2.1 calls no hooks of its own
    seen = []

    def hook(owner, args, kwargs):
        assert owner is optimizer
        seen.append(layer.weight.detach().clone())

    handle = register(optimizer, hook)
    for _ in range(2):
        layer(torch.ones(1, 2)).sum().backward()
        before = layer.weight.detach().clone()
        optimizer.step()
        scheduler.step()  # warns of a step that it does not know
        assert torch.equal(seen[-1], before) and not torch.equal(layer.weight, before)
    handle.remove()
    optimizer.step()
    assert len(seen) == 2
