"""Make a run that was interrupted end as if it had not been."""

import os
import os.path as osp
from typing import Any

from mmengine.dist import broadcast_object_list, get_rank, get_world_size, is_main_process
from mmengine.fileio import LocalBackend, get_file_backend
from mmengine.hooks import CheckpointHook, Hook
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.runner import EpochBasedTrainLoop, Runner
from torch import Tensor
from torch.utils.data import DataLoader

from dskd_mm.distributed import bare_model
from dskd_mm.registry import HOOKS
from dskd_mm.resume.randomness import IN_MODEL, NumberedBatches, seed_batches, seed_generators
from dskd_mm.resume.saving import ATOMIC, latest_checkpoint
from dskd_mm.utils.checkpoint import load_safely_everywhere


@HOOKS.register_module()
class ResumeHook(Hook):
    """Make a run that is killed at any point and resumed end with the same weights as one that was not.

    mmengine's checkpoints hold what was learned, but not the state of random generators, and are written in place. With this
    hook

    - random numbers follow from the seed, the process and the iteration (in the model) or the batch (in the data set, whatever
      the number of workers), see :mod:`dskd_mm.resume.randomness`;
    - a checkpoint within an epoch (``by_epoch=False`` in a run by epochs) is resumed behind the batches that it has seen, and
      gradients that were being accumulated are in it (of one process);
    - a validation that an interruption left out is made up for before training goes on, so that neither the best checkpoint
      nor a schedule that follows a metric misses it;
    - checkpoints on local disks are whole or absent, and none is removed before its successor is written, see
      :class:`~dskd_mm.resume.saving.AtomicBackend`;
    - ``resume=True`` without a path takes the latest checkpoint that is intact, and says which ones are not: the file
      ``last_checkpoint``, which mmengine reads, is made to name it.

    Not reproduced, as it is kept in no checkpoint: what transforms remember from sample to sample (``CachedMosaic``,
    ``CachedMixUp``) or a data preprocessor from step to step (``BatchSyncRandomResize``), the patience of
    ``EarlyStoppingHook``, and iterable data sets. mmengine's FlexibleRunner loads before any hook is called: there the path of
    an intact checkpoint has to be given.

    ``tools/train.py`` of dskd_mm adds this hook by itself; for the hosts' own training scripts write
    ``custom_hooks = [dict(type='dskd_mm.ResumeHook')]``.
    """

    # Before all hooks that draw random numbers, save or change what is saved.
    priority = 'VERY_HIGH'

    def __init__(self) -> None:
        self._resumed_from: str | None = None
        self._batches: NumberedBatches | None = None
        self._seen = 0
        self._skipped = 0
        self._unvalidated = False
        self._gradients: dict[str, Tensor] = {}

    def before_run(self, runner: Runner) -> None:
        """Choose the checkpoint to resume from: the runner loads it next."""
        if not runner.cfg.get('resume'):
            return
        # OpenMMLab's mmengine 0.10.7 does not read its own checkpoints with torch 2.6 and newer.

        load_safely_everywhere()
        self._resumed_from = runner.cfg.get('load_from')
        if self._resumed_from is not None:
            return
        choice: list[Any] = [None, None]
        if is_main_process():
            try:
                choice[0] = _name_latest(runner)
            except ValueError as error:
                choice[1] = str(error)
        # All processes go on from one checkpoint, or none.
        broadcast_object_list(choice)
        self._resumed_from, refusal = choice
        if refusal is not None:
            raise ValueError(refusal)

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Note where the checkpoint was saved."""
        if runner.cfg.get('resume'):
            self._skipped = checkpoint.get('meta', {}).get('batch', 0)
            self._gradients = checkpoint.pop('gradients', {})
            info = checkpoint.get('message_hub', {}).get('runtime_info', {})
            # As RuntimeInfoHook has it; of a checkpoint that was saved after its validation it is 'val'.
            self._unvalidated = info.get('loop_stage') == 'train'
            _adopt_paths(info, runner)

    def before_train(self, runner: Runner) -> None:
        """Take over the random numbers and the writing of checkpoints."""
        for hook in _checkpoint_hooks(runner):
            _write_atomically(hook, runner)
            # Or a best score that is found before the next checkpoint would not enter the last one.
            hook.last_ckpt = hook.last_ckpt or self._resumed_from
        model = bare_model(runner.model)
        load_teacher = getattr(model, 'load_teacher', None)
        if callable(load_teacher):
            # Which draws random weights first: a step that loads the teacher would go on with other random numbers.
            load_teacher()
        parameters = dict(model.named_parameters())
        for name, gradient in self._gradients.items():
            parameters[name].grad = gradient.to(parameters[name])
        self._gradients = {}
        self._take_over_data(runner)

    def before_train_epoch(self, runner: Runner) -> None:
        """Make up for a validation, and start the epoch where the checkpoint was saved."""
        self._validate(runner)
        self._seen = 0
        if isinstance(runner.train_loop, EpochBasedTrainLoop) and self._batches is not None:
            self._batches.passes = runner.epoch
            self._batches.skip(self._skipped)
            self._seen, self._skipped = self._skipped, 0

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Seed what draws in this iteration."""
        seed_generators(_seed(runner), get_rank(), IN_MODEL, runner.iter, accelerator=True)

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Count the batches of an epoch, those before the interruption included."""
        self._seen += 1

    def after_train_epoch(self, runner: Runner) -> None:
        """Begin to count anew: a checkpoint that is saved now begins with the next epoch."""
        self._seen = 0

    def after_train(self, runner: Runner) -> None:
        """Make up for the last validation, if nothing was left to train."""
        self._validate(runner)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Add the place in the run and gradients that no optimizer has used yet."""
        if runner.message_hub.get_info('loop_stage') == 'val':
            # FlexibleRunner counts one epoch too many here, and would leave it out.
            checkpoint['meta'].update(epoch=runner.epoch, iter=runner.iter)
        if isinstance(runner.train_loop, EpochBasedTrainLoop) and self._seen:
            checkpoint['meta']['batch'] = self._seen
        wrapper = runner.optim_wrapper
        is_one = isinstance(wrapper, OptimWrapper) and not isinstance(wrapper, OptimWrapperDict)
        if 'optimizer' not in checkpoint or not is_one or wrapper.should_update():
            return
        if get_world_size() > 1:
            runner.logger.warning(
                'Gradients are being accumulated while a checkpoint is saved, and those of other processes are not in it: '
                'a resumed run will differ a little. Let accumulative_counts divide the iterations between checkpoints.'
            )
        else:
            parameters = bare_model(runner.model).named_parameters()
            checkpoint['gradients'] = {name: p.grad.cpu() for name, p in parameters if p.grad is not None}

    def _take_over_data(self, runner: Runner) -> None:
        loader = runner.train_loop.dataloader
        self._batches = seed_batches(loader, _seed(runner))
        if self._batches is None:
            runner.logger.warning('An iterable data set draws its own random numbers: a resumed run will see other data.')
            return
        sampler = _drawing_sampler(loader)
        if hasattr(sampler, 'seed') and not (runner.cfg.get('randomness') or {}).get('diff_rank_seed'):
            # Without a seed in the config the runner drew one, and takes that of the checkpoint only after building this.
            sampler.seed = runner.seed
        if hasattr(runner.train_loop, 'dataloader_iterator'):
            _begin_anew(runner.train_loop, self._batches)

    def _validate(self, runner: Runner) -> None:
        is_due, self._unvalidated = self._unvalidated, False
        loop = runner.train_loop
        if not is_due or runner.val_loop is None:
            return
        if isinstance(loop, EpochBasedTrainLoop):
            if self._skipped:
                return
            done, total = loop.epoch, loop.max_epochs
        else:
            done, total = loop.iter, loop.max_iters
        loop._decide_current_val_interval()
        if done and done >= loop.val_begin and (done % loop.val_interval == 0 or done == total):
            runner.logger.info('The validation that may have been interrupted comes first.')
            runner.val_loop.run()


def _begin_anew(loop: Any, batches: NumberedBatches) -> None:
    """Let a loop by iterations ask for batches once more, those that are numbered."""
    loader, sampler = loop.dataloader, _drawing_sampler(loop.dataloader)
    # Older versions of mmengine have begun to iterate.
    loader._iterator = None
    if hasattr(sampler, '_indices_of_rank') and hasattr(sampler, 'indices'):
        sampler.indices = sampler._indices_of_rank()
    loop.dataloader_iterator = type(loop.dataloader_iterator)(loader)
    if hasattr(loop.dataloader_iterator, 'skip_iter') and hasattr(sampler, 'skip'):
        # mmengine would skip samples, unseen by what numbers the batches.
        loop.dataloader_iterator.skip_iter = batches.skip


def _drawing_sampler(loader: DataLoader) -> Any:
    """Return the sampler that draws indices: that of the batch sampler, if a config names one."""
    return getattr(loader.batch_sampler, 'sampler', loader.sampler)


def _seed(runner: Runner) -> int:
    return runner.seed % 2**62


def _checkpoint_hooks(runner: Runner) -> list[CheckpointHook]:
    return [hook for hook in runner.hooks if isinstance(hook, CheckpointHook)]


def _checkpoint_folder(hook: CheckpointHook, runner: Runner) -> str:
    """Return the folder as CheckpointHook itself finds it, but before training."""
    if hook.out_dir is None or hook.out_dir == runner.work_dir:
        return runner.work_dir
    return osp.join(hook.out_dir, osp.basename(runner.work_dir.rstrip(osp.sep)))


def _name_latest(runner: Runner) -> str | None:
    """Let ``last_checkpoint`` name the latest checkpoint that is intact, and return its path; None if there is none at all."""
    path, recorded = osp.join(runner.work_dir, 'last_checkpoint'), None
    if osp.isfile(path):
        with open(path, encoding='utf-8') as file:
            recorded = file.read().strip() or None  # empty if writing it was interrupted
    patterns = [osp.join(_checkpoint_folder(hook, runner), hook.filename_tmpl) for hook in _checkpoint_hooks(runner)]
    latest = latest_checkpoint(recorded, patterns)
    if latest is None:
        if osp.isfile(path):
            os.remove(path)
    elif latest != recorded:
        with open(path, 'w', encoding='utf-8') as file:
            file.write(latest)
    return latest


def _adopt_paths(info: dict[str, Any], runner: Runner) -> None:
    """Let a copied run know its own best and last checkpoint: CheckpointHook would remove those of the original."""
    for hook in _checkpoint_hooks(runner)[:1]:
        for key, path in info.items():
            if key.startswith(('best_ckpt', 'last_ckpt')) and path and '://' not in path:
                info[key] = osp.join(_checkpoint_folder(hook, runner), osp.basename(path))


def _write_atomically(hook: CheckpointHook, runner: Runner) -> None:
    is_default = hook.file_client_args is None and hook.backend_args is None
    if is_default and type(get_file_backend(hook.out_dir or runner.work_dir)) is LocalBackend:
        hook.backend_args = dict(backend=ATOMIC, removed_later=[])
