"""Write the plain student of a checkpoint for others: weights with their hash in the name, config, and what it was made by.

Three files: NAME-HASH.pth (weights, and in its ``meta`` the plain config and the record), NAME-HASH.py (the plain config) and
NAME-HASH.yml (the record as an entry of a model index: method, teacher, data, figures, versions).
"""

import argparse
import hashlib
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mmengine
import torch
from mmengine.config import Config

from dskd_mm.cli.common import in_one_line
from dskd_mm.utils.atomic import write_atomically
from dskd_mm.utils.checkpoint import load_checkpoint_file, plain_student
from dskd_mm.utils.config import added_losses, datasets, is_distiller_config, load_config, student_config, type_name
from dskd_mm.version import __version__

HASH_LENGTH = 8
"""Characters of the SHA-256 in a file's name, as in those of the hosts."""


def parse_args(argv: Sequence[str] | None = None, prog: str | None = None) -> argparse.Namespace:
    """Parse the command line; that of the process by default."""
    parser = argparse.ArgumentParser(prog, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('checkpoint', help='checkpoint of a distiller')
    parser.add_argument('name', help='where to write, such as published/resnet18_dskd')
    parser.add_argument('--config', help="the distiller's config; default: the one in the checkpoint")
    parser.add_argument(
        '--metrics', help='figures to publish: what `dskd test CONFIG CHECKPOINT --out metrics.json --out-item metrics` wrote'
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Run the command."""
    args = parse_args(argv, prog)
    with in_one_line(prog or 'publish'):
        target = publish(args.checkpoint, args.name, args.config, args.metrics)
    print(f'{target} is written, its config and its record beside it.')
    if args.metrics is None:
        print('The record has no figures: give --metrics.')


def publish(checkpoint: str, name: str, config: str | None = None, metrics: str | None = None) -> Path:
    """Write the plain student of a distiller's checkpoint with its hash, its config and its record.

    Args:
        checkpoint (str): Checkpoint of a distiller.
        name (str): Folder and beginning of the files' names.
        config (str, optional): The distiller's config. Defaults to None: the one in the checkpoint's ``meta``.
        metrics (str, optional): A JSON file of figures. Defaults to None: none.

    Returns:
        Path: The weights.

    Raises:
        FileNotFoundError: If a file is not there.
        ValueError: If the checkpoint or the config is not that of a distiller.
    """
    source = load_checkpoint_file(checkpoint)
    cfg = distiller_config(source.get('meta', {}), config)
    figures = json.loads(Path(metrics).read_text(encoding='utf-8')) if metrics else {}
    plain = student_config(cfg)
    student = plain_student(source, checkpoint, plain.pretty_text)
    made_by = record(cfg, source.get('meta', {}), figures, student['state_dict'])
    student['meta']['published'] = made_by
    with io.BytesIO() as buffer:
        torch.save(student, buffer)
        weights = buffer.getvalue()
    target = Path(f'{name}-{hashlib.sha256(weights).hexdigest()[:HASH_LENGTH]}.pth')
    write_atomically(weights, str(target))
    plain.dump(str(target.with_suffix('.py')))
    entry = dict(Name=target.stem, **{'In Collection': 'DSKD'}, Config=f'{target.stem}.py', Weights=target.name, **made_by)
    mmengine.dump(dict(Models=[entry]), str(target.with_suffix('.yml')), sort_keys=False)
    return target


def distiller_config(meta: dict[str, Any], path: str | None) -> Config:
    """Return the distiller's config, from a file or from a checkpoint's ``meta``."""
    if path is None and not isinstance(meta.get('cfg'), str):
        raise ValueError('Expected the config in the meta of the checkpoint, but there is none: give --config.')
    cfg = load_config(path) if path is not None else Config.fromstring(meta['cfg'], '.py')
    if not is_distiller_config(cfg):
        raise ValueError(
            f'Expected the config of a distiller, with student and teacher, but the model of {path or "the checkpoint"} is a '
            f'{type_name(cfg.get("model") or {})}: give the checkpoint that training wrote (epoch_*.pth)'
            f'{"" if path is None else ", or its own config"}.'
        )
    return cfg


def record(cfg: Config, meta: dict[str, Any], figures: dict[str, Any], state: dict[str, Any]) -> dict[str, Any]:
    """Return what a student was made by, in plain values: method, teacher, data, figures, versions.

    Args:
        cfg (Config): The distiller's config.
        meta (dict): The checkpoint's ``meta``.
        figures (dict): What a test gave.
        state (dict): The student's tensors.
    """
    model = cfg.model
    losses = [type_name(loss) for loss in added_losses(model).values()]
    teachers = model.teacher if isinstance(model.teacher, (list, tuple)) else [model.teacher]
    data: Any = next((dataset for _, dataset in datasets(cfg.get('train_dataloader'), 'train_dataloader')), {})
    metadata = {
        'Training Data': type_name(data) or 'unknown',
        'Classes': len((meta.get('dataset_meta') or {}).get('classes') or ()),
        'Techniques': [type_name(model), *losses],
        'Teachers': [{key: str(teacher.get(key)) for key in ('config', 'checkpoint')} for teacher in teachers],
        'Epochs': meta.get('epoch'),
        'Iterations': meta.get('iter'),
        'Seed': meta.get('seed'),
        'Parameters': sum(tensor.numel() for key, tensor in state.items() if not key.endswith('num_batches_tracked')),
        'Versions': {'dskd_mm': __version__, 'torch': str(torch.__version__), 'mmengine': mmengine.__version__},
    }
    results = [dict(Dataset=metadata['Training Data'], Metrics=figures)] if figures else []
    return dict(Metadata=metadata, Results=results)
