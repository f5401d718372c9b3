"""Take models of all three hosts from `dskd distill` to an ONNX graph, with the commands of the docs, and record each step.

python benchmarks/shipped.py                    # all of PAIRS, to benchmarks/results/shipped.jsonl
python benchmarks/shipped.py retinanet segformer  # some; the rows of the others stay

Models are of the installed hosts' own configs in full width, with random weights. Data are a few scenes of scikit-learn's
digits, training is two iterations: what is shown is that every step works, not how good the student is.
"""

import argparse
import contextlib
import io
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from mmengine.config import Config
from mmengine.registry import MODELS

if not __package__:  # called as a script, which sees its own folder only
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.mmcv_zoo import without_weights
from benchmarks.records import origin, records, rewrite
from benchmarks.runner import ROOT
from dskd_mm.cli.main import main as dskd
from dskd_mm.utils.config import load_config, model_config
from examples.digits.scenes import CLASSES, DigitScenes, write_digit_scenes

RESULTS = ROOT / 'benchmarks' / 'results' / 'shipped.jsonl'


class Pair(NamedTuple):
    """A student and a teacher of a host, and the height and width of the images that they see."""

    host: str
    student: str
    teacher: str
    size: int


PAIRS = dict(
    resnet=Pair('mmpretrain', 'resnet/resnet18_8xb32_in1k.py', 'resnet/resnet50_8xb32_in1k.py', 64),
    mobilenet=Pair('mmpretrain', 'mobilenet_v2/mobilenet-v2_8xb32_in1k.py', 'resnet/resnet50_8xb32_in1k.py', 64),
    swin=Pair('mmpretrain', 'swin_transformer/swin-tiny_16xb64_in1k.py', 'swin_transformer/swin-small_16xb64_in1k.py', 224),
    retinanet=Pair('mmdet', 'retinanet/retinanet_r18_fpn_1x_coco.py', 'retinanet/retinanet_r50_fpn_1x_coco.py', 128),
    rtmdet=Pair('mmdet', 'rtmdet/rtmdet_tiny_8xb32-300e_coco.py', 'rtmdet/rtmdet_s_8xb32-300e_coco.py', 128),
    faster_rcnn=Pair('mmdet', 'faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py', 'faster_rcnn/faster-rcnn_r101_fpn_1x_coco.py', 128),
    fcn=Pair('mmseg', 'fcn/fcn_r18-d8_4xb2-80k_cityscapes-512x1024.py', 'fcn/fcn_r50-d8_4xb2-80k_cityscapes-512x1024.py', 128),
    deeplabv3plus=Pair(
        'mmseg',
        'deeplabv3plus/deeplabv3plus_r18-d8_4xb2-80k_cityscapes-512x1024.py',
        'deeplabv3plus/deeplabv3plus_r50-d8_4xb2-80k_cityscapes-512x1024.py',
        128,
    ),
    segformer=Pair(
        'mmseg',
        'segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py',
        'segformer/segformer_mit-b1_8xb2-160k_ade20k-512x512.py',
        128,
    ),
)
NAMED = tuple(map(str, range(1000)))
"""Names for the classes of the hosts' classifiers."""
DETECTED = tuple(map(str, range(80)))
"""The digits, and names for the other classes that the hosts' detectors know."""
STEPS = ('distill', 'train', 'test', 'export', 'inferencer', 'onnx')


def small_config(pair: Pair, data: Path) -> Config:
    """Return the host's config with the scenes as data and two iterations as training."""
    cfg = load_config(f'{pair.host}::{pair.student}')
    without_weights(cfg.model)
    for name, (dataset, evaluator) in parts(pair, data).items():
        loader = dict(batch_size=2, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False), dataset=dataset)
        if pair.host == 'mmpretrain':
            loader['collate_fn'] = dict(type='default_collate')
        for key in ('train',) if name == 'train' else ('val', 'test'):
            cfg[f'{key}_dataloader'] = loader
            if name == 'test':
                cfg[f'{key}_evaluator'] = evaluator
    for preprocessor in (cfg.get('data_preprocessor'), cfg.model.get('data_preprocessor')):
        if preprocessor and pair.host == 'mmseg':
            preprocessor.size = (pair.size, pair.size)
        elif preprocessor:
            preprocessor.pop('batch_augments', None)
    if pair.host == 'mmdet':  # untrained detectors are sure of nothing
        cfg.model.test_cfg.get('rcnn', cfg.model.test_cfg).update(score_thr=0.0, max_per_img=5)
    cfg.train_cfg = dict(type='IterBasedTrainLoop', max_iters=2, val_interval=2)
    cfg.val_cfg, cfg.test_cfg = dict(type='ValLoop'), dict(type='TestLoop')
    cfg.param_scheduler, cfg.custom_hooks = None, []
    cfg.optim_wrapper.optimizer.lr *= 1e-3  # without a warm-up, from random weights
    cfg.default_hooks.logger.interval = 1
    cfg.default_hooks.checkpoint = dict(type='CheckpointHook', interval=2, by_epoch=False)
    cfg.randomness = dict(seed=0)
    cfg.log_level = 'WARNING'
    cfg.test_pipeline = cfg.test_dataloader.dataset.pipeline  # which mmseg's inference reads
    return Config(cfg.to_dict(), format_python_code=False)


def parts(pair: Pair, data: Path) -> dict[str, tuple[dict, Any]]:
    """Return the data set of each part, and what it is judged by."""
    found: dict[str, tuple[dict, Any]] = {}
    for name in ('train', 'test'):
        load = dict(type='LoadImageFromFile')
        resize = dict(type='Resize', scale=(pair.size, pair.size))
        common = dict(data_root=str(data))
        if pair.host == 'mmpretrain':
            pipeline = [load, resize, dict(type='PackInputs')]
            common |= dict(type='CustomDataset', data_prefix=f'images/{name}', ann_file=f'{name}.txt', classes=NAMED)
            evaluator: Any = dict(type='Accuracy', topk=(1,))
        elif pair.host == 'mmdet':
            pipeline = [load, resize, dict(type='LoadAnnotations', with_bbox=True), dict(type='PackDetInputs')]
            common |= dict(type='CocoDataset', metainfo=dict(classes=DETECTED), data_prefix=dict(img=f'images/{name}/'))
            common |= dict(ann_file=f'annotations/{name}.json', test_mode=name == 'test')
            evaluator = dict(type='CocoMetric', metric='bbox', ann_file=f'{data}/annotations/{name}.json')
        else:
            pipeline = [load, resize, dict(type='LoadAnnotations'), dict(type='PackSegInputs')]
            common |= dict(type='BaseSegDataset', img_suffix='.png', seg_map_suffix='.png')
            common |= dict(data_prefix=dict(img_path=f'images/{name}', seg_map_path=f'masks/{name}'))
            common |= dict(metainfo=dict(classes=('background', *CLASSES), palette=[[20 * k] * 3 for k in range(11)]))
            evaluator = dict(type='IoUMetric', iou_metrics=['mIoU'])
        found[name] = dict(**common, pipeline=pipeline), evaluator
    return found


def write_data(folder: Path, size: int) -> Path:
    """Write scenes in the layouts of all hosts; an image's class is its number."""
    write_digit_scenes(folder, DigitScenes(num_train=8, num_test=4, size=size))
    for name in ('train', 'test'):
        images = sorted((folder / 'images' / name).glob('*.png'))
        path = folder / f'annotations/{name}.json'
        categories = [dict(id=k + 1, name=text) for k, text in enumerate(DETECTED)]
        path.write_text(json.dumps({**json.loads(path.read_text()), 'categories': categories}))
        (folder / f'{name}.txt').write_text(''.join(f'{image.name} {i}\n' for i, image in enumerate(images)))
    return folder


def save_random(config: str, path: Path) -> None:
    """Write the weights of a model as it begins to train, but for what it would download."""
    torch.manual_seed(0)
    cfg = model_config(load_config(config))
    without_weights(cfg)
    model = MODELS.build(cfg)
    model.init_weights()
    torch.save(dict(state_dict=model.state_dict()), path)


def infer(host: str, config: Path, weights: Path, image: Path) -> str:
    """Return in words what the host's inferencer makes of an image."""
    if host == 'mmpretrain':
        from mmpretrain import ImageClassificationInferencer

        (found,) = ImageClassificationInferencer(str(config), pretrained=str(weights), device='cpu')(str(image))
        return f'class {found["pred_label"]}'
    if host == 'mmdet':
        from mmdet.apis import DetInferencer

        inferencer = DetInferencer(model=str(config), weights=str(weights), device='cpu', show_progress=False)
        (found,) = inferencer(str(image), no_save_vis=True)['predictions']
        return f'{len(found["bboxes"])} boxes'
    from mmseg.apis import MMSegInferencer

    found = MMSegInferencer(model=str(config), weights=str(weights), device='cpu')(str(image))['predictions']
    return f'map of {found.shape[0]}x{found.shape[1]}'


def ship(name: str, folder: Path) -> dict[str, str]:
    """Take every step, and return what each gave; the first that fails is the last."""
    pair = PAIRS[name]
    data = write_data(folder / 'data', pair.size)
    plain, out, work = folder / 'plain.py', folder / 'dskd.py', folder / 'work'
    small_config(pair, data).dump(str(plain))
    teacher, weights = f'{pair.host}::{pair.teacher}', folder / 'teacher.pth'
    save_random(teacher, weights)
    checkpoint, student, graph = work / 'iter_2.pth', folder / 'student.pth', folder / 'student.onnx'

    def call(*words: Any) -> str:
        options = ['--cfg-options', f'experiment_name={name}_{words[0]}', f'visualizer.name={name}_{words[0]}']
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            dskd([*map(str, words), *(options if words[0] in ('train', 'test') else [])])
        return printed.getvalue()

    def distilled() -> str:
        call('distill', plain, '--teacher', teacher, '--teacher-checkpoint', weights, '--out', out)
        return 'works'

    def trained() -> str:
        call('train', out, '--work-dir', work)
        if not (work / 'student_last.pth').is_file():
            raise FileNotFoundError('training left no student_last.pth')
        return 'works'

    def tested() -> str:
        call('test', out, checkpoint, '--out', folder / 'metrics.json', '--out-item', 'metrics', '--work-dir', work)
        key, value = next(iter(json.loads((folder / 'metrics.json').read_text()).items()))
        return f'{key} {value:.2f}'

    def exported() -> str:
        count = re.search(r'\d+ tensors', call('export', checkpoint, student, '--config', out))
        return count[0] if count else ''

    def compared() -> str:
        printed = call('onnx', out, student, '--size', pair.size, '--out', graph)
        found = re.search(r'differs from PyTorch by (\S+) at most; the largest value is (\S+)\.', printed)
        return f'{found[1]} of {found[2]}' if found else printed

    steps: dict[str, Callable[[], str]] = dict(
        distill=distilled,
        train=trained,
        test=tested,
        export=exported,
        inferencer=lambda: infer(pair.host, student.with_suffix('.py'), student, next((data / 'images/test').glob('*.png'))),
        onnx=compared,
    )
    found: dict[str, str] = {}
    for step in STEPS:
        try:
            found[step] = steps[step]()
        except (Exception, SystemExit) as error:
            found[step] = f'{type(error).__name__}: {error!s}'
            if step != 'onnx':
                break
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('names', nargs='*', metavar='NAME', help=f'some of {", ".join(PAIRS)}; default: all')
    parser.add_argument('--results', type=Path, default=RESULTS, help='file of the records')
    parser.add_argument('--in-process', action='store_true', help='print the record of the only name (called by itself)')
    args = parser.parse_args()
    names = args.names or list(PAIRS)
    if not set(names) <= set(PAIRS):
        parser.error(f'expected some of {", ".join(PAIRS)}, but got {", ".join(sorted(set(names) - set(PAIRS)))}')
    if args.in_process:
        with tempfile.TemporaryDirectory() as folder:
            print('RECORD ' + json.dumps(ship(names[0], Path(folder))))
        return
    kept = {row['name']: row for row in records(args.results)}
    for name in names:
        start = time.time()
        command = [sys.executable, __file__, name, '--in-process']
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
        record = re.search(r'RECORD (.*)', done.stdout)  # progress bars leave their line unfinished
        if record is None:
            raise RuntimeError(f'{name}: {done.stdout[-2000:]}{done.stderr[-4000:]}')
        pair, found = PAIRS[name], json.loads(record[1])
        kept[name] = dict(name=name, **pair._asdict(), **found, command='python benchmarks/shipped.py', **origin())
        print(f'{name}: {time.time() - start:.0f} s; {found}', flush=True)
        rewrite(args.results, [kept[key] for key in PAIRS if key in kept])


if __name__ == '__main__':
    main()
