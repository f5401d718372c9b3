"""Images from files, as a model's test pipeline makes them, and what models say of them."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from mmengine.registry import DefaultScope, init_default_scope
from torch import Tensor, nn

from dskd_mm.utils.config import datasets, type_name

SURE = 0.3
"""Objects of which a detector is surer than that stand for annotations, and are drawn."""
Batch = dict[str, Any]


def load_image(path: str, cfg: Config, model: nn.Module) -> Batch:
    """Read an image by the test pipeline of a config, as a batch of one that is ready for a model.

    Args:
        path (str): The image.
        cfg (Config): A whole config, with a ``test_dataloader``.
        model (nn.Module): The model, whose data preprocessor is applied.

    Returns:
        dict: ``inputs`` (1, C, H, W) and ``data_samples``.

    Raises:
        ValueError: If the config has no test pipeline, or the file holds no image.
    """
    pipelines = (each['pipeline'] for _, each in datasets(cfg.get('test_dataloader'), 'test_dataloader') if 'pipeline' in each)
    pipeline = next(pipelines, None)
    if pipeline is None:
        raise ValueError(
            f'Expected a test_dataloader with a pipeline in {cfg.filename}, which reads images, but there is none.'
        )
    init_default_scope(cfg.get('default_scope', 'mmengine'))
    steps = [step for step in pipeline if not is_reading(step, 'Annotations', 'Proposals')]
    if not any(is_reading(step, 'Image') for step in steps):
        # Data sets that are kept in memory hand over images: here they are files.
        channels = next(weight.shape[1] for weight in model.parameters() if weight.ndim == 4)
        steps = [dict(type='LoadImageFromFile', color_type='grayscale' if channels == 1 else 'color'), *steps]
    try:
        packed = Compose(steps)(dict(img_path=path, img_id=0, seg_fields=[], reduce_zero_label=False, instances=[]))
    except AssertionError as error:  # mmcv's way to say that it found no image in the file
        raise ValueError(f'Expected an image that OpenCV reads at {path!r}: {error}.') from error
    return model.get_submodule('data_preprocessor')(pseudo_collate([packed]), False)


def is_reading(step: Mapping[str, Any], *kinds: str) -> bool:
    """Return whether a step of a pipeline reads something from files."""
    return type_name(dict(step)).startswith('Load') and any(kind in type_name(dict(step)) for kind in kinds)


@torch.no_grad()
def predict(model: nn.Module, batch: Batch) -> Any:
    """Return what a model in eval mode says of an image, as the host's sample."""
    (sample,) = model(batch['inputs'], copy.deepcopy(batch['data_samples']), mode='predict')
    return sample


def in_input_frame(batch: Batch, inputs: Tensor | None = None) -> Batch:
    """Return a batch whose predictions are in pixels of the student's input, not of the file.

    Args:
        batch (dict): ``inputs``, the student's, and ``data_samples``.
        inputs (Tensor, optional): What another model sees of them, maybe in another size. Defaults to None: the same.
    """
    inputs = batch['inputs'] if inputs is None else inputs
    size, own = tuple(batch['inputs'].shape[-2:]), tuple(inputs.shape[-2:])
    frame = dict(ori_shape=size, img_shape=own, pad_shape=own, batch_input_shape=own)
    batch = dict(inputs=inputs, data_samples=copy.deepcopy(batch['data_samples']))
    for sample in batch['data_samples']:
        sample.set_metainfo(frame | dict(scale_factor=(own[1] / size[1], own[0] / size[0])))
        for name in ('padding_size', 'img_padding_size'):
            if name in sample.metainfo:
                sample.set_metainfo({name: [0] * 4})
    return batch


def annotate(batch: Batch, sample: Any) -> Batch:
    """Return a batch annotated with a prediction, for images from anywhere have no annotations.

    Args:
        batch (dict): ``inputs`` and ``data_samples`` of one image, see :func:`in_input_frame`.
        sample (Any): A prediction for it, in pixels of the input.
    """
    annotated = copy.deepcopy(batch['data_samples'])
    target = annotated[0]
    if 'pred_instances' in sample:
        found = sample.pred_instances[sample.pred_instances.scores > SURE]
        objects = type(found)(bboxes=found.bboxes, labels=found.labels)
        objects.masks = instance_masks(found, tuple(batch['inputs'].shape[-2:]))
        target.gt_instances, target.ignored_instances = objects, objects[:0]
    elif 'pred_sem_seg' in sample:
        target.gt_sem_seg = sample.pred_sem_seg
    else:
        chosen = sample.pred_label
        target.set_gt_label(chosen)
        target.set_gt_score(torch.zeros_like(sample.pred_score).index_fill(0, chosen.reshape(-1), 1.0))
    return dict(inputs=batch['inputs'], data_samples=annotated)


def in_class_order(sample: Any, classes: Sequence[int]) -> Any:
    """Return a teacher's prediction with its classes in the student's order.

    Args:
        sample (Any): The host's sample with a prediction.
        classes (Sequence[int]): Which of the teacher's outputs are the student's classes, none for all as they are.
    """
    if not classes:
        return sample
    places = {theirs: own for own, theirs in enumerate(classes)}
    if 'pred_instances' in sample:
        found = sample.pred_instances
        found = found[torch.tensor([int(label) in places for label in found.labels], dtype=torch.bool)]
        found.labels = found.labels.new_tensor([places[int(label)] for label in found.labels])
        sample.pred_instances = found
    elif 'pred_sem_seg' in sample:
        sample.pred_sem_seg.data = sample.seg_logits.data[list(classes)].argmax(dim=0, keepdim=True)
    else:
        sample.pred_score = sample.pred_score[list(classes)]
        sample.pred_label = sample.pred_score.argmax(dim=0, keepdim=True)
    return sample


def instance_masks(found: Any, size: tuple[int, int]) -> Any:
    """Return mmdet's masks of predicted objects; those of their boxes where no mask is predicted."""
    from mmdet.structures.mask import BitmapMasks

    masks: Tensor = found.get('masks', torch.zeros(len(found), *size, dtype=torch.bool))
    if 'masks' not in found:
        for mask, (left, top, right, bottom) in zip(masks, found.bboxes.round().int().tolist(), strict=True):
            mask[top:bottom, left:right] = True
    return BitmapMasks(masks.cpu().numpy().astype('uint8'), *size)


def picture_of(batch: Batch, model: nn.Module) -> Tensor:
    """Return the model's input as a picture (H, W, 3), red, green and blue of 0 to 255."""
    preprocessor: Any = model.get_submodule('data_preprocessor')
    image = batch['inputs'][0].float()
    if isinstance(getattr(preprocessor, 'mean', None), Tensor):
        image = image * preprocessor.std.reshape(-1, 1, 1) + preprocessor.mean.reshape(-1, 1, 1)
    is_bgr = not (getattr(preprocessor, '_channel_conversion', False) or getattr(preprocessor, 'to_rgb', False))
    is_bgr = is_bgr and not getattr(preprocessor, 'channel_conversion', False)
    image = image.expand(3, -1, -1) if len(image) == 1 else image.flip(0) if is_bgr else image
    return image.clamp(0, 255).byte().permute(1, 2, 0)


def class_names(metas: Sequence[Any], count: int) -> list[str]:
    """Return the names of classes, from the first of several descriptions of a data set that has them; else their numbers."""
    for meta in metas:
        names = list((meta or {}).get('classes') or ())
        if len(names) >= count - 1 > 0:  # the background may have no name
            return [str(name) for name in names] + ['background'] * (count - len(names))
    return [str(index) for index in range(count)]


def palette_of(metas: Sequence[Any], count: int) -> list[tuple[int, int, int]]:
    """Return the colours of classes, red, green and blue of 0 to 255; those of a colour wheel where none are told."""
    from matplotlib import colormaps

    for meta in metas:
        colours = list((meta or {}).get('palette') or ())
        if len(colours) >= count - 1 > 0 and not isinstance(colours[0], str):
            return [(int(red), int(green), int(blue)) for red, green, blue in colours] + [(0, 0, 0)] * (count - len(colours))
    wheel = colormaps['tab10' if count <= 10 else 'tab20']
    colours = [wheel(index % wheel.N) for index in range(count)]
    return [(int(255 * red), int(255 * green), int(255 * blue)) for red, green, blue, _ in colours]


def scope_of(cfg: Config) -> Any:
    """Return a context in which names are looked up in a config's host."""
    return DefaultScope.overwrite_default_scope(cfg.get('default_scope'))
