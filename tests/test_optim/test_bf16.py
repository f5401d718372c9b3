"""Which precision pays where, and bfloat16 on the CPU."""

import pytest
import torch
from mmengine.optim import OptimWrapper

from dskd_mm.optim import BF16OptimWrapper, amp_dtype


@pytest.mark.parametrize(
    ('device', 'flags', 'expected'),
    [
        ('cpu', 'flags\t\t: fpu avx512_bf16 avx2\n', torch.bfloat16),
        ('cpu', 'flags\t\t: fpu amx_bf16\n', torch.bfloat16),
        ('cpu', 'Features\t: fp asimd bf16\n', torch.bfloat16),
        ('cpu', 'flags\t\t: fpu avx2 avx512f avx512_vnni\n', torch.float32),
        ('cpu', None, torch.float32),
        ('cuda', None, torch.float16),
    ],
)
def test_mixed_precision_is_what_the_device_is_fast_in(tmp_path, monkeypatch, device, flags, expected):
    monkeypatch.setattr('dskd_mm.optim.bf16.get_device', lambda: device)
    monkeypatch.setattr('dskd_mm.optim.bf16.CPU_INFO', tmp_path / 'cpuinfo')
    if flags is not None:
        (tmp_path / 'cpuinfo').write_text(flags)
    assert amp_dtype() is expected


def test_forward_is_in_bfloat16_and_weights_stay_float32():
    torch.manual_seed(0)
    model = torch.nn.Linear(8, 4)
    before = model.weight.detach().clone()
    wrapper = BF16OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.1))
    with wrapper.optim_context(model):
        output = model(torch.randn(3, 8))
    assert output.dtype == torch.bfloat16
    assert model(torch.randn(3, 8)).dtype == torch.float32, 'autocast ends with the context'
    wrapper.update_params(output.float().square().mean())
    assert model.weight.dtype == torch.float32
    assert not torch.equal(model.weight, before)


def test_gradients_accumulate_as_in_float32():
    def final_weight(cls: type[OptimWrapper]) -> torch.Tensor:
        torch.manual_seed(0)
        model = torch.nn.Linear(4, 1, bias=False)
        wrapper = cls(torch.optim.SGD(model.parameters(), lr=0.1), accumulative_counts=2)
        wrapper.initialize_count_status(model, 0, 4)
        for i in range(4):
            with wrapper.optim_context(model):
                loss = model(torch.full((2, 4), float(i))).float().mean()
            wrapper.update_params(loss)
        return model.weight.detach()

    torch.testing.assert_close(final_weight(BF16OptimWrapper), final_weight(OptimWrapper))
