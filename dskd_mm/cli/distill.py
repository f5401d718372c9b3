"""Write a short config that distils a model of yours by a teacher, check it, and train it."""

import argparse
import os.path as osp
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config, DictAction

from dskd_mm.cli import train
from dskd_mm.cli.check import print_findings
from dskd_mm.cli.common import in_one_line
from dskd_mm.preflight import CHEAP, check_config
from dskd_mm.utils.config import imported_modules, is_distiller_config, load_config, resolve_config_path
from dskd_mm.utils.methods import PAIR_KEYS, ROWS, apply_method, method_path

DSKD = 'dskd_mm.DSKDDistiller'
LINE_LENGTH = 100
PAGE = """# Student: {student}
# Teacher: {teacher}
# Method:  {method}
#
#   dskd check {out}
#   dskd train {out}
#   dskd test {out} CHECKPOINT
#
# What is deployed is the plain student, student_last.pth in the work dir, with its own config.
{head}
model = dict(
{model}
)
"""
INHERITED = """_base_ = {base!r}
custom_imports = {imports}
{others}"""
# A config in pure Python can only be inherited by another one.
IMPORTED = """from mmengine.config import read_base

with read_base():
    from {base} import *

custom_imports = {imports}
{others}"""
TEACHER_FREE = """    # Without the teacher's predictions, at little more than the cost of plain training:
    # target='label', loss_weights=dict(logit=0),"""


def parse_args(argv: Sequence[str] | None = None, prog: str | None = None) -> argparse.Namespace:
    """Parse the command line; that of the process by default."""
    parser = argparse.ArgumentParser(prog, description=__doc__)
    parser.add_argument('config', help="the student's config: a path, or package::path of one that a package ships")
    parser.add_argument('--teacher', required=True, help="the teacher's config, likewise")
    parser.add_argument('--teacher-checkpoint', required=True, help="the teacher's weights: a path or an address")
    parser.add_argument('--method', default='dskd', help='dskd (the default), a name in configs/methods, or the path of a file')
    parser.add_argument('--out', help='file to write; default: <student>_<method>.py')
    parser.add_argument('--train', action='store_true', help='train it if the check finds no fault')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        default={},
        help='override settings for check and training: key=value pairs. They are not written to the file',
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Run the command."""
    args = parse_args(argv, prog)
    out = Path(args.out or f'{Path(args.config).stem}_{Path(args.method).stem}.py')
    with in_one_line(prog or 'distill'):
        text = distiller_text(args.config, args.teacher, args.teacher_checkpoint, args.method, out)
        if out.exists():
            raise FileExistsError(f'{out} is there already: remove it, or name another file with --out.')
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(text, encoding='utf-8')
    print(f'{out} is written:\n\n{text}')
    cfg = Config.fromfile(out)
    cfg.merge_from_dict(args.cfg_options)
    if print_findings(check_config(cfg, CHEAP, thorough=False).findings, str(out)):
        raise SystemExit(1)
    if not args.train:
        options = [shlex.quote(f'{key}={value}'.replace(', ', ',')) for key, value in args.cfg_options.items()]
        print(' '.join([f'Train it: dskd train {out}', *(['--cfg-options', *options] if options else [])]))
        return
    train.run(train.merge_args(cfg, train.parse_args([str(out)])))


def distiller_text(student: str, teacher: str, checkpoint: str, method: str, out: Path) -> str:
    """Return the text of a config that distils a model.

    Args:
        student (str): The student's config: a path, or ``package::path``.
        teacher (str): The teacher's, likewise. It stands in the config as it is given.
        checkpoint (str): The teacher's weights, likewise.
        method (str): 'dskd', the name of a file in ``configs/methods``, or the path of one.
        out (Path): Where the text will be written: what it inherits is relative to that.

    Raises:
        FileNotFoundError: If there is no such config.
        ValueError: If the student's config has no model or is a distiller's, or the method is not for such models.
    """
    path = resolve_config_path(student)
    resolve_config_path(teacher)
    cfg = load_config(student)
    if 'model' not in cfg or is_distiller_config(cfg):
        raise ValueError(
            f'Expected the config of a plain model as the student, but {student} '
            f'{"distils one: give the config that it inherits" if "model" in cfg else "has no model"}.'
        )
    imports, others = imported_modules(cfg), {}
    is_python = path.endswith('.py') and Config._is_lazy_import(path)
    given = 'model' if is_python else '_base_.model'
    model: dict[str, Any] = dict(type=DSKD)
    if method != 'dskd':
        cfg.model = dict(type=DSKD, student=cfg.model, teacher={})
        overlay = Config.fromfile(method_path(method))
        others = {key: value for key, value in overlay.to_dict().items() if key not in (*ROWS, 'custom_imports')}
        imports += imported_modules(overlay)
        changed = apply_method(cfg, method).model.to_dict()
        model = {key: value for key, value in changed.items() if key not in PAIR_KEYS}
        if changed['student'] != cfg.model.student.to_dict():  # a base's model cannot be changed where it is named
            given = source(changed['student'])
    kind = model.pop('type')
    lines = [] if is_python else ['_delete_=True']
    lines += [f'type={kind!r}', f'student={given}']
    lines += [
        f'{key}={source(value)}' for key, value in {'teacher': dict(config=teacher, checkpoint=checkpoint), **model}.items()
    ]
    body = '\n'.join(f'    {line},' for line in lines)
    return PAGE.format(
        student=Path(path).stem,
        teacher=Path(teacher).stem,
        method=Path(method).stem,
        out=out,
        head=(IMPORTED if is_python else INHERITED).format(
            base=import_path(path, out) if is_python else base_path(student, out),
            imports=source(dict(imports=list(dict.fromkeys(['dskd_mm', *imports]))), 0),
            others=''.join(f'{key} = {source(value, 0)}\n' for key, value in others.items()),
        ),
        model=f'{body}\n{TEACHER_FREE}' if kind == DSKD else body,
    )


def base_path(config: str, out: Path) -> str:
    """Return how a config is named in ``_base_``: relative to the file that inherits it, or as that of a package."""
    if '::' not in config:
        return osp.relpath(config, out.parent)
    try:
        Config._get_cfg_path(config, str(out))
    except Exception:  # mmengine goes by the distribution's name, which is not the same for all that ship a package
        return osp.realpath(resolve_config_path(config))
    return config


def import_path(path: str, out: Path) -> str:
    """Return how a config in pure Python is imported by another one.

    Raises:
        ValueError: If its path has no names of Python.
    """
    *ups, name = Path(osp.relpath(path, out.parent)).with_suffix('').parts
    up, folders = ups.count('..'), [part for part in ups if part != '..']
    if not all(part.isidentifier() for part in (*folders, name)):
        raise ValueError(
            f'{path} is a config in pure Python, which another inherits by an import, but not every part of its path is a name '
            f'of Python. Write it as a whole first, `dskd config {path} > plain.py`, and distil plain.py.'
        )
    return '.' * (up + 1) + '.'.join((*folders, name))


def source(value: Any, indent: int = 4) -> str:
    """Return the source code of a setting, a dict over several lines where one would be too long."""
    if not isinstance(value, Mapping) or not all(isinstance(key, str) and key.isidentifier() for key in value):
        return repr(value)
    items = [f'{key}={source(item, indent + 4)}' for key, item in value.items()]
    line = f'dict({", ".join(items)})'
    if indent + len(line) <= LINE_LENGTH - 20 and '\n' not in line:
        return line
    inner = ''.join(f'{" " * (indent + 4)}{item},\n' for item in items)
    return f'dict(\n{inner}{" " * indent})'
