"""bfloat16 on the CPU."""

import torch
from mmengine.optim import OptimWrapper

from dskd_mm.optim import BF16OptimWrapper


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
