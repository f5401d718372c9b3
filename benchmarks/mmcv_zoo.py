"""Take a training step and a test step of models of both model zoos, and record which of mmcv's operators they call.

python benchmarks/mmcv_zoo.py                 # all of MODELS, to benchmarks/results/mmcv_zoo.jsonl
python benchmarks/mmcv_zoo.py retinanet dino  # some; the rows of the others stay

Each model is built of the installed host's own config, with random weights, and sees two random images of 64 x 64 on the
CPU. Only sizes are changed: the padding of images, DINO's number of
queries, and where a segmenter cuts windows. Operators that mmcv and mmdet call on
CUDA only are not seen here.
"""

import argparse
import gc
import importlib
import json
import re
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.logging import MessageHub, MMLogger
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import OptimWrapper
from mmengine.registry import init_default_scope

if not __package__:  # called as a script, which sees its own folder only
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.records import commit, records, rewrite, versions
from benchmarks.runner import ROOT

RESULTS = ROOT / 'benchmarks' / 'results' / 'mmcv_zoo.jsonl'
SIZE = (64, 64)
MODELS = {
    'mmdet': dict(
        retinanet='retinanet/retinanet_r50_fpn_1x_coco.py',
        fcos='fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py',
        atss='atss/atss_r50_fpn_1x_coco.py',
        gfl='gfl/gfl_r50_fpn_1x_coco.py',
        tood='tood/tood_r50_fpn_1x_coco.py',
        vfnet='vfnet/vfnet_r50_fpn_1x_coco.py',
        paa='paa/paa_r50_fpn_1x_coco.py',
        rtmdet='rtmdet/rtmdet_tiny_8xb32-300e_coco.py',
        rtmdet_ins='rtmdet/rtmdet-ins_tiny_8xb32-300e_coco.py',
        yolox='yolox/yolox_tiny_8xb8-300e_coco.py',
        yolov3='yolo/yolov3_mobilenetv2_8xb24-320-300e_coco.py',
        yolof='yolof/yolof_r50-c5_8xb8-1x_coco.py',
        yolact='yolact/yolact_r50_1xb8-55e_coco.py',
        ssd='ssd/ssdlite_mobilenetv2-scratch_8xb24-600e_coco.py',
        reppoints='reppoints/reppoints-moment_r50_fpn_1x_coco.py',
        centernet='centernet/centernet_r18-dcnv2_8xb16-crop512-140e_coco.py',
        ga_retinanet='guided_anchoring/ga-retinanet_r50_fpn_1x_coco.py',
        faster_rcnn='faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py',
        faster_rcnn_soft_nms='faster_rcnn/faster-rcnn_r50_fpn_soft-nms_1x_coco.py',
        faster_rcnn_c4='faster_rcnn/faster-rcnn_r50-caffe-c4_ms-1x_coco.py',
        faster_rcnn_dcn='dcn/faster-rcnn_r50-dconv-c3-c5_fpn_1x_coco.py',
        faster_rcnn_dcnv2='dcnv2/faster-rcnn_r50-mdconv-c3-c5_fpn_1x_coco.py',
        faster_rcnn_dpool='dcn/faster-rcnn_r50_fpn_dpool_1x_coco.py',
        faster_rcnn_mdpool='dcnv2/faster-rcnn_r50_fpn_mdpool_1x_coco.py',
        faster_rcnn_pisa='pisa/faster-rcnn_r50_fpn_pisa_1x_coco.py',
        mask_rcnn='mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py',
        mask_rcnn_carafe='carafe/mask-rcnn_r50_fpn-carafe_1x_coco.py',
        mask_rcnn_point_rend='point_rend/point-rend_r50-caffe_fpn_ms-1x_coco.py',
        cascade_rcnn='cascade_rcnn/cascade-rcnn_r50_fpn_1x_coco.py',
        double_head='double_heads/dh-faster-rcnn_r50_fpn_1x_coco.py',
        libra_rcnn='libra_rcnn/libra-faster-rcnn_r50_fpn_1x_coco.py',
        dynamic_rcnn='dynamic_rcnn/dynamic-rcnn_r50_fpn_1x_coco.py',
        sparse_rcnn='sparse_rcnn/sparse-rcnn_r50_fpn_1x_coco.py',
        detr='detr/detr_r50_8xb2-150e_coco.py',
        conditional_detr='conditional_detr/conditional-detr_r50_8xb2-50e_coco.py',
        dab_detr='dab_detr/dab-detr_r50_8xb2-50e_coco.py',
        deformable_detr='deformable_detr/deformable-detr_r50_16xb2-50e_coco.py',
        dino='dino/dino-4scale_r50_8xb2-12e_coco.py',
        solo='solo/solo_r50_fpn_1x_coco.py',
        solov2='solov2/solov2_r50_fpn_1x_coco.py',
        condinst='condinst/condinst_r50_fpn_ms-poly-90k_coco_instance.py',
        mask2former='mask2former/mask2former_r50_8xb2-lsj-50e_coco.py',
        panoptic_fpn='panoptic_fpn/panoptic-fpn_r50_fpn_1x_coco.py',
    ),
    'mmseg': dict(
        fcn='fcn/fcn_r18-d8_4xb2-80k_cityscapes-512x1024.py',
        pspnet='pspnet/pspnet_r18-d8_4xb2-80k_cityscapes-512x1024.py',
        deeplabv3plus='deeplabv3plus/deeplabv3plus_r18-d8_4xb2-80k_cityscapes-512x1024.py',
        upernet_swin='swin/swin-tiny-patch4-window7-in1k-pre_upernet_8xb2-160k_ade20k-512x512.py',
        segformer='segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py',
        ocrnet='ocrnet/ocrnet_hr18s_4xb2-40k_cityscapes-512x1024.py',
        bisenetv2='bisenetv2/bisenetv2_fcn_4xb4-160k_cityscapes-1024x1024.py',
        point_rend='point_rend/pointrend_r50_4xb2-80k_cityscapes-512x1024.py',
        mask2former='mask2former/mask2former_r50_8xb2-160k_ade20k-512x512.py',
        psanet='psanet/psanet_r50-d8_4xb2-40k_cityscapes-512x1024.py',
    ),
}


def configured(host: str, path: str) -> Config:
    """Return the config with the sizes of small images, and nothing to download."""
    folder = Path(importlib.import_module(host).__file__ or '').parent / '.mim' / 'configs'
    cfg = Config.fromfile(folder / path)
    model = cfg.model
    preprocessor = model.get('data_preprocessor') or cfg.data_preprocessor
    if host == 'mmpretrain':
        preprocessor.setdefault('type', 'ClsDataPreprocessor')
        model.pop('train_cfg', None)  # mixes images
    else:
        preprocessor.batch_augments = None
    if host == 'mmseg':
        preprocessor.size = SIZE
        model.test_cfg.mode = 'whole'
        if 'psa_type' in model.decode_head:
            model.decode_head.mask_size = (SIZE[0] // 8, SIZE[1] // 8)
    if model.type == 'DINO':
        model.num_queries = 50  # there are fewer locations than queries
    model.data_preprocessor = preprocessor
    without_weights(model)
    return cfg


def without_weights(part: Any) -> None:
    """Drop from a config what would be downloaded."""
    for value in part.values() if isinstance(part, dict) else part if isinstance(part, list) else ():
        without_weights(value)
    if isinstance(part, dict):
        part.pop('pretrained', None)
        if isinstance(part.get('init_cfg'), dict) and 'checkpoint' in part['init_cfg']:
            part.init_cfg = None


def batch(host: str, masks: bool = False, shape: tuple[int, int, int] = (3, *SIZE), classes: int = 10) -> dict[str, list]:
    """Return two random images with annotations; `masks` are for the detectors that have a head for them."""
    rng = np.random.default_rng(0)
    inputs = [torch.from_numpy(rng.integers(256, size=shape, dtype=np.uint8)) for _ in range(2)]
    if host == 'mmpretrain':
        from mmpretrain.structures import DataSample

        return dict(inputs=inputs, data_samples=[DataSample().set_gt_label(int(label)) for label in rng.integers(10, size=2)])
    size = shape[1:]
    samples = [scene(rng, masks, size, classes) if host == 'mmdet' else labelled(rng, size, classes) for _ in inputs]
    return dict(inputs=inputs, data_samples=samples)


def label_map(rng: np.random.Generator, size: tuple[int, int], classes: int) -> torch.Tensor:
    """Return blocks of a class each, (1, H, W)."""
    coarse = rng.integers(classes, size=(size[0] // 8, size[1] // 8))
    return torch.from_numpy(np.kron(coarse, np.ones((8, 8), np.int64)))[None]


def labelled(rng: np.random.Generator, size: tuple[int, int], classes: int) -> Any:
    """Return a sample of mmseg, with the edges that PIDNet asks for."""
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    labels = PixelData(data=label_map(rng, size, classes))
    edges = PixelData(data=labels.data % 2)
    return SegDataSample(gt_sem_seg=labels, gt_edge_map=edges, metainfo=dict(img_shape=size, ori_shape=size))


def scene(rng: np.random.Generator, with_masks: bool, size: tuple[int, int], classes: int) -> Any:
    """Return a sample of mmdet, with the proposals that Fast R-CNN asks for."""
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks
    from mmengine.structures import InstanceData, PixelData

    corner = rng.uniform(0, 0.5, (4, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(0.2, 0.45, (4, 2))], axis=1).astype(np.float32) * size[0]
    masks = np.zeros((4, *size), np.uint8)
    for mask, (left, top, right, bottom) in zip(masks, boxes.astype(int), strict=True):
        mask[top:bottom, left:right] = 1
    objects = InstanceData(bboxes=torch.from_numpy(boxes), labels=torch.from_numpy(rng.integers(classes, size=4)))
    if with_masks:
        objects.masks = BitmapMasks(masks, *size)
    shape = dict(img_shape=size, ori_shape=size, pad_shape=size, batch_input_shape=size, scale_factor=(1.0, 1.0))
    semantics = PixelData(sem_seg=label_map(rng, size, classes))
    sample = DetDataSample(gt_instances=objects, gt_sem_seg=semantics, metainfo=dict(img_id=0, img_path='', **shape))
    sample.set_metainfo(dict(flip=False, border=(0, size[0], 0, size[1])))
    sample.proposals = InstanceData(bboxes=objects.bboxes + 2, scores=torch.ones(4))
    sample.ignored_instances = InstanceData(bboxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.long))
    return sample


@contextmanager
def calls(names: set[str]) -> Iterator[None]:
    """Collect in `names` the operators that are called."""
    ext = importlib.import_module('mmcv._ext')

    def watched(name: str, function: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            names.add(name)
            return function(*args, **kwargs)

        return call

    before = {name: value for name, value in vars(ext).items() if callable(value) and not name.startswith('_')}
    try:
        for name, function in before.items():
            setattr(ext, name, watched(name, function))
        yield
    finally:
        for name, function in before.items():
            setattr(ext, name, function)


def training_step(model: torch.nn.Module, data: dict) -> None:
    optimizer = OptimWrapper(torch.optim.SGD(model.parameters(), lr=1e-6))
    MessageHub.get_current_instance().update_info('epoch', 0)  # as a Runner does; TOOD asks for it
    losses = model.train().train_step(data, optimizer)
    wrong = [name for name, value in losses.items() if 'loss' in name and not torch.isfinite(value).all()]
    if wrong:
        raise ValueError(f'not finite: {", ".join(wrong)}')


def test_step(model: torch.nn.Module, data: dict) -> None:
    with torch.no_grad():
        if len(model.eval().test_step(data)) != len(data['inputs']):
            raise ValueError('a sample is missing')


def try_model(host: str, name: str, path: str) -> dict[str, Any]:
    """Return the record of a model: for each step 'works' or the error, and the operators that were called."""
    from mmengine.registry import MODELS as ROOT_MODELS

    torch.manual_seed(0)
    cfg = configured(host, path)
    init_default_scope(host)
    if host == 'mmseg' and 'mmdet' in str(cfg.model):
        importlib.import_module('mmdet.models')
    model = revert_sync_batchnorm(ROOT_MODELS.build(cfg.model))
    masks = re.search('mask_head|Mask2Former|RTMDetIns', str(cfg.model)) is not None
    names: set[str] = set()
    row: dict[str, Any] = dict(host=host, model=name, config=path, size=SIZE)
    start = time.perf_counter()
    for kind, step in (('train', training_step), ('test', test_step)):
        try:
            with calls(names):
                step(model, batch(host, masks))
            row[kind] = 'works'
        except Exception as error:
            row[kind] = f'{type(error).__name__}: {error}'
    return row | dict(operators=sorted(names), seconds=round(time.perf_counter() - start, 1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('models', nargs='*', help='names in MODELS; all by default')
    chosen = parser.parse_args().models
    warnings.filterwarnings('ignore')
    MMLogger.get_instance('mmengine', log_level='ERROR')
    origin: dict[str, Any] = dict(command=f'python {" ".join(sys.argv)}', commit=commit(), versions=versions())
    origin['versions']['mmcv'] = importlib.import_module('mmcv').__version__
    order = [(host, name) for host, models in MODELS.items() for name in models]
    rows = {(row['host'], row['model']): row for row in records(RESULTS)}
    for host, models in MODELS.items():
        importlib.import_module(f'{host}.utils').register_all_modules(init_default_scope=False)
        for name, path in models.items():
            if chosen and name not in chosen:
                continue
            row = try_model(host, name, path) | origin
            print(json.dumps({key: row[key] for key in ('host', 'model', 'train', 'test', 'operators', 'seconds')}), flush=True)
            rows[host, name] = row
            rewrite(RESULTS, [rows[key] for key in order if key in rows])
            gc.collect()


if __name__ == '__main__':
    main()
