"""Images that are normalised for the student, normalised for the teacher."""

import copy

import torch
from mmengine.structures import BaseDataElement
from torch import Tensor, nn


class InputAdapter(nn.Module):
    """Undoes the student's input normalisation and applies the teacher's.

    Hosts and their versions name their settings differently, so none is read: what each preprocessor makes of known images
    tells what it does.

    Args:
        student (nn.Module): The student's data preprocessor.
        teacher (nn.Module): The teacher's data preprocessor.

    Raises:
        ValueError: If one of them does more than to scale, shift and reorder channels.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, student: nn.Module, teacher: nn.Module) -> None:
        super().__init__()
        means = [getattr(module, 'mean', None) for module in (student, teacher)]
        channels = max([3, *(mean.numel() for mean in means if isinstance(mean, Tensor))])
        source_order, source_scale, source_shift = channel_map(student, channels, 'student')
        order, scale, shift = channel_map(teacher, channels, 'teacher')
        # Where the teacher's channels are among the student's.
        self.order = [source_order.index(channel) for channel in order]
        scale = scale / source_scale[self.order]
        shift = shift - scale * source_shift[self.order]
        self.reorders = self.order != list(range(channels))
        if not self.reorders and len(set(scale.tolist())) == len(set(shift.tolist())) == 1:
            scale, shift = scale[:1], shift[:1]  # whatever the number of channels
        self.register_buffer('scale', scale.float()[:, None, None], persistent=False)
        self.register_buffer('shift', shift.float()[:, None, None], persistent=False)
        self.is_identity = not self.reorders and bool((self.scale == 1).all() and (self.shift == 0).all())

    def forward(self, inputs: Tensor) -> Tensor:
        """Renormalise images of shape (B, C, H, W)."""
        if self.is_identity:
            return inputs
        if self.reorders and inputs.shape[1] == len(self.order):
            inputs = inputs[:, self.order]
        return inputs * self.scale + self.shift


def channel_map(preprocessor: nn.Module, channels: int, owner: str) -> tuple[list[int], Tensor, Tensor]:
    """Return what a data preprocessor does to the channels of an image, as it treats known ones.

    Args:
        preprocessor (nn.Module): The preprocessor of a host.
        channels (int): Number of channels C of an image.
        owner (str): Whose it is, for the error.

    Returns:
        tuple[list[int], Tensor, Tensor]: Which channel of the image each of its outputs is, and what that is multiplied with
        and shifted by, (C, ) in float64.

    Raises:
        ValueError: If it does anything else.
    """
    ramp = torch.arange(channels * 32 * 32, device='cpu').reshape(channels, 32, 32).float() % 251  # differs in each place
    units = 255 * torch.eye(channels, device='cpu')
    images = [ramp * 0, *(ramp * 0 + unit[:, None, None] for unit in units), ramp]
    # In double precision on the CPU, whatever the model is in and on, and torch's default device.
    probed = copy.deepcopy(preprocessor).cpu()._apply(lambda x: x.double() if x.is_floating_point() else x)
    samples = [BaseDataElement() for _ in images]
    made = probed(dict(inputs=images, data_samples=samples), False)['inputs']
    outputs = [image.detach().cpu().double()[:, :32, :32] for image in made]
    shift = outputs[0][:, 0, 0]
    gains = torch.stack([(output[:, 0, 0] - shift) / 255 for output in outputs[1:-1]], dim=1)
    order, scale = gains.abs().argmax(dim=1), gains.abs().amax(dim=1)
    expected = images[-1][order] * scale[:, None, None] + shift[:, None, None]
    is_plain = expected.shape == outputs[-1].shape and torch.allclose(outputs[-1], expected, rtol=1e-4, atol=1e-4)
    if not is_plain or sorted(order.tolist()) != list(range(channels)):
        raise ValueError(
            f"The {owner}'s data preprocessor ({type(preprocessor).__name__}) is expected to scale, shift and reorder the "
            'channels of images and nothing else, so that images prepared for the student can be turned into those for the '
            'teacher, but it does more. Move the rest into the pipeline, or give it as a plain '
            "data_preprocessor=dict(type='ImgDataPreprocessor', mean=..., std=..., bgr_to_rgb=...)."
        )
    return order.tolist(), scale, shift
