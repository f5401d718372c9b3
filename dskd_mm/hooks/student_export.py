"""Writes the plain student beside the checkpoints of a distiller."""

import os.path as osp
from typing import Any

from mmengine.dist import is_main_process
from mmengine.hooks import CheckpointHook, Hook
from mmengine.runner import Runner

from dskd_mm.distillers import Distiller
from dskd_mm.distributed import bare_model
from dskd_mm.registry import HOOKS
from dskd_mm.utils.checkpoint import export_student
from dskd_mm.utils.config import student_config


@HOOKS.register_module()
class StudentExportHook(Hook):
    """Writes the plain student whenever :class:`mmengine.hooks.CheckpointHook` has saved a checkpoint.

    The files lie in the folder of the checkpoints and are replaced by their successors, whatever ``max_keep_ckpts`` says:

    - ``student_last.pth``: of the last checkpoint;
    - ``student_best.pth``: of the best one with ``save_best='auto'`` or one key; with several keys there is one file for each,
      ``student_best_<key>.pth``, in which '/' becomes '_', as in CheckpointHook's own names.

    They hold ``meta`` (with the plain config) and ``state_dict`` without the prefix ``student.``, and load strictly in the host
    library with the host's own config. They are made from what was saved, so that with :class:`mmengine.hooks.EMAHook` they
    hold the averaged weights. A plain model, for which there is nothing to export, is left alone.

    ``tools/train.py`` of dskd_mm adds this hook by itself; for the hosts' own training scripts write
    ``custom_hooks = [dict(type='dskd_mm.StudentExportHook')]``.
    """

    # After CheckpointHook, which is VERY_LOW.
    priority = 'LOWEST'

    def __init__(self) -> None:
        self._has_saved = False
        self._exported: dict[str, tuple[str, float]] = {}
        self._config: str | None = None

    def before_train(self, runner: Runner) -> None:
        """Export anew what a resumed run begins with: an interruption may have left the students behind their checkpoints."""
        self._has_saved = runner.iter > 0
        self.export_new(runner)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Notice that a checkpoint is about to be saved; its file is read once it is complete."""
        self._has_saved = True

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Export what CheckpointHook saved with ``by_epoch=False``."""
        self.export_new(runner)

    def after_train_epoch(self, runner: Runner) -> None:
        """Export what CheckpointHook saved with ``by_epoch=True``."""
        self.export_new(runner)

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Export the best checkpoint, if this validation made one."""
        self.export_new(runner)

    def export_new(self, runner: Runner) -> None:
        """Export every checkpoint of CheckpointHook that is new or was written again since the last call."""
        model = bare_model(runner.model)
        if not (self._has_saved and is_main_process() and isinstance(model, Distiller)):
            return
        self._has_saved = False
        if self._config is None:
            # Once: formatting the text of a config takes about a second.
            self._config = student_config(runner.cfg).pretty_text
        for name, source in self._saved(runner).items():
            # Of DeepSpeed a folder, on remote storage not here: tools/model_converters/export_student.py is for those.
            if not osp.isfile(source):
                continue
            version = source, osp.getmtime(source)
            if self._exported.get(name) != version:
                target = osp.join(osp.dirname(source), name)
                self._exported[name] = version
                try:
                    export_student(source, target, self._config)
                except ValueError as error:
                    # The checkpoint itself is saved: no reason to lose the rest of the training.
                    runner.logger.error(f'No plain student is saved to {target}, training goes on: {error}')
                    continue
                runner.logger.info(f'The plain student of {osp.basename(source)} is saved to {target}.')

    @staticmethod
    def _saved(runner: Runner) -> dict[str, str]:
        """Return the checkpoints that CheckpointHook holds at present, by the name of their export."""
        saved: dict[str, str | None] = {}
        for hook in runner.hooks:
            if isinstance(hook, CheckpointHook):
                saved['student_last.pth'] = hook.last_ckpt or runner.message_hub.get_info('last_ckpt')
                saved['student_best.pth'] = getattr(hook, 'best_ckpt_path', None)
                for key, path in getattr(hook, 'best_ckpt_path_dict', {}).items():
                    saved[f'student_best_{key.replace("/", "_")}.pth'] = path
        return {name: path for name, path in saved.items() if path}
