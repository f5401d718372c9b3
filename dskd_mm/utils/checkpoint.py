"""Reading checkpoints safely and taking the plain student out of a distiller's."""

import os.path as osp
import pickle
import re
import zipfile
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import mmengine.runner.checkpoint as mmengine_checkpoint
import numpy as np
import torch
from mmengine.dist import barrier, get_rank, is_distributed
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader
from torch import Tensor, nn
from torch.serialization import safe_globals

from dskd_mm.utils.atomic import save_atomically

STUDENT_PREFIX = 'student.'


def load_checkpoint_file(path: str, map_location: Any = 'cpu') -> dict[str, Any]:
    """Read a checkpoint without running any code in it.

    Args:
        path (str): A file of torch or safetensors, or an http(s) address, which is downloaded once (by the first process).
        map_location (Any): Where its tensors go, as in :func:`torch.load`. Defaults to 'cpu'.

    Returns:
        dict: The checkpoint.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is truncated, or holds objects other than tensors and plain values.
    """
    path = osp.expanduser(path)
    is_address = path.startswith(('http://', 'https://'))
    if not is_address and not osp.isfile(path):
        raise FileNotFoundError(
            f'Expected a checkpoint at {osp.abspath(path)!r}, but there is none. Train the model first or correct the path.'
        )
    try:
        if path.endswith('.safetensors') and not is_address:
            return read_safetensors(path, map_location)
        with _harmless_types():
            checkpoint = _download(path, map_location) if is_address else torch.load(path, map_location, weights_only=True)
    except pickle.UnpicklingError as error:
        # torch's own text advises to load it anyway.
        found = re.search(r"GLOBAL (\S+)|Unsupported class (\S+)|but got <class '(\S+)'>", str(error))
        if found is None:
            raise ValueError(
                f'Expected a checkpoint of torch in {path!r}, but it is damaged or something else. Copy it again.'
            ) from error
        name = next(name for name in found.groups() if name)
        raise ValueError(
            f'Expected tensors and plain values in the checkpoint {path!r}, but it holds a {name}, which is '
            'not loaded because it could run code. If you trust whoever made the file, save its state_dict alone in a new one: '
            'docs/en/security.md has the line for it.'
        ) from error
    except (RuntimeError, EOFError, OSError, zipfile.BadZipFile) as error:
        if is_address:
            raise ValueError(f'The checkpoint {path!r} could not be downloaded or read: {error!r}.') from error
        raise ValueError(
            f'The checkpoint {path!r} ({osp.getsize(path)} bytes) is truncated or damaged ({error!r}). Copy it again, or use '
            'an older one.'
        ) from error
    if not isinstance(checkpoint, dict):
        raise ValueError(f'Expected a dict in the checkpoint {path!r}, but it holds a {type(checkpoint).__name__}.')
    return checkpoint  # itself, not a copy: a bare state dict carries its versions as an attribute


def read_safetensors(path: str, map_location: Any = 'cpu') -> dict[str, Tensor]:
    """Return the tensors of a file of safetensors, the format of timm's and transformers' public weights.

    Raises:
        ImportError: If safetensors is not installed.
        RuntimeError: If the file is truncated or damaged.
    """
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError as error:
        raise ImportError(f'{path!r} is read by safetensors, which is not installed: pip install safetensors.') from error
    try:
        return load_file(path, device=str(map_location or 'cpu'))
    except SafetensorError as error:
        raise RuntimeError(str(error)) from error


def _harmless_types() -> AbstractContextManager:
    # What numpy's arrays and numbers are made by in pickles, and all their types: metrics and best scores come in any.
    numbers: list[Any] = [np.ndarray, np.dtype, np.empty(0).__reduce__()[0], np.float64().__reduce__()[0]]
    dtypes = {type(np.dtype(code)) for code in np.typecodes['All'] if code != 'O'}
    # mmengine's own list allows getattr, too, by which a file gets at any attribute of anything. Only its logs need that.
    return safe_globals([slice, HistoryBuffer, _method_of_logs, *numbers, *dtypes])


def _method_of_logs(owner: Any, name: str) -> Any:
    """Return what pickles mean by getattr, for the methods of mmengine's log buffers alone."""
    if owner is not HistoryBuffer or not isinstance(name, str) or name.startswith('_'):
        raise pickle.UnpicklingError(f'GLOBAL getattr({getattr(owner, "__name__", "...")},{name!r})')
    return getattr(owner, name)


# The name under which torch looks it up.
_method_of_logs.__module__, _method_of_logs.__qualname__, _method_of_logs.__name__ = 'builtins', 'getattr', 'getattr'


def load_safely_everywhere() -> None:
    """Let mmengine read checkpoints by :func:`load_checkpoint_file`: those of load_from, resume and init_cfg.

    Its own loading falls back to running the code in a file that is not harmless, and runs that in what it downloads.
    """
    CheckpointLoader.register_scheme(('', 'http://', 'https://'), load_from_file, force=True)
    # What its other schemes (torchvision://, open-mmlab://, ...) call once they know the address.
    mmengine_checkpoint.load_from_http = load_from_file


def load_from_file(filename: str, map_location: Any = None) -> dict[str, Any]:
    """Call :func:`load_checkpoint_file` as a loader of mmengine, which logs a part of this function's name."""
    return load_checkpoint_file(filename, map_location)


def _download(address: str, map_location: Any) -> Any:
    def load() -> Any:
        return torch.hub.load_state_dict_from_url(address, map_location=map_location, weights_only=True)

    if is_distributed() and get_rank() > 0:
        barrier()
        return load()
    try:
        return load()
    finally:
        # Also after an error, or the others would wait.
        if is_distributed():
            barrier()


def model_state(checkpoint: Mapping[str, Any], source: str = 'in memory') -> dict[str, Tensor]:
    """Return the model's tensors in a checkpoint of mmengine or a bare state dict; of a distiller's, those of its student.

    Args:
        checkpoint (Mapping): What :func:`load_checkpoint_file` returned.
        source (str): How to call it in the error, its path. Defaults to 'in memory'.

    Returns:
        dict[str, Tensor]: The state dict of a plain model.

    Raises:
        ValueError: If it holds no tensors.
    """
    state = checkpoint.get('state_dict', checkpoint)
    state = {key.removeprefix('module.'): value for key, value in state.items() if isinstance(value, Tensor)}
    if not state:
        inner = [key for key, value in checkpoint.items() if isinstance(value, Mapping) and is_state(value)]
        mend = f" They are under {inner[0]!r}: torch.save(torch.load({source!r})[{inner[0]!r}], 'new.pth')." if inner else ''
        raise ValueError(
            f"Expected the weights of a model in the checkpoint {source!r}, bare or under 'state_dict', but got only "
            f'{sorted(checkpoint)}.{mend}'
        )
    student = {key.removeprefix(STUDENT_PREFIX): value for key, value in state.items() if key.startswith(STUDENT_PREFIX)}
    return student or state


def is_state(value: Mapping[str, Any]) -> bool:
    """Return whether a mapping holds nothing but tensors."""
    return bool(value) and all(isinstance(tensor, Tensor) for tensor in value.values())


def export_student(source: str, target: str, config: str | None = None) -> dict[str, Any]:
    """Write the plain student of a distiller's checkpoint, as the host itself would have saved it.

    With :class:`mmengine.hooks.EMAHook` these are the averaged weights: it swaps them into what is saved.

    Args:
        source (str): Checkpoint of a distiller.
        target (str): File to write: ``meta`` and ``state_dict``.
        config (str, optional): Text of the plain student's config, which takes the place of the distiller's in ``meta``: some
            hosts' inferencers build their model from it. None leaves it out. Defaults to None.

    Returns:
        dict: What was written.

    Raises:
        ValueError: If ``source`` is not the checkpoint of a distiller.
    """
    student = plain_student(load_checkpoint_file(source), source, config)
    save_atomically(student, target)
    return student


def plain_student(checkpoint: Mapping[str, Any], source: str, config: str | None = None) -> dict[str, Any]:
    """Return what :func:`export_student` writes.

    Args:
        checkpoint (Mapping): What :func:`load_checkpoint_file` returned.
        source (str): How to call it in the error, its path.
        config (str, optional): See :func:`export_student`. Defaults to None.

    Raises:
        ValueError: If it is not the checkpoint of a distiller.
    """
    state = checkpoint.get('state_dict', checkpoint)
    if not any(key.startswith(STUDENT_PREFIX) for key in state):
        raise ValueError(
            f'Expected the checkpoint of a distiller, with keys that begin with {STUDENT_PREFIX!r}, in {source!r}, but its '
            f'keys begin with {sorted({key.split(".")[0] for key in state})}: is it a plain student already?'
        )
    meta = {key: value for key, value in checkpoint.get('meta', {}).items() if key != 'cfg'}
    if config is not None:
        meta['cfg'] = config
    return dict(meta=meta, state_dict=model_state(checkpoint, source))


def load_plain_model(model: nn.Module, path: str) -> None:
    """Load a plain model's checkpoint, or the student of a distiller's, and accept no difference.

    Args:
        model (nn.Module): The model, built from the plain config.
        path (str): The checkpoint.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged, or not of this model.
    """
    state = model_state(load_checkpoint_file(path), path)
    try:
        # torch's own loading instead of a comparison of keys: layers may translate keys of their older versions.
        model.load_state_dict(state, strict=True)
    except RuntimeError as error:
        raise ValueError(
            f'The checkpoint {path!r} does not fit the {type(model).__name__} of the config: {load_report(model, state)}. '
            'Expected every tensor of the model with its shape, and no other. Check that config and checkpoint belong together '
            '(architecture, number of classes).'
        ) from error


def saved_names(module: nn.Module) -> dict[str, str]:
    """Return how a module's own state dict calls each tensor, by the tensor's path in the module.

    They differ where a host takes a prefix away (TimmClassifier, HuggingFaceClassifier), but only of what it saves alone:
    within a larger model it keeps it, and adds another one when it is loaded.
    """
    inner = [key.removeprefix('0.') for key in nn.Sequential(module).state_dict()]
    return dict(zip(inner, module.state_dict(), strict=True))


@dataclass
class LoadReport:
    """How a state dict fits a model.

    Attributes:
        matched (list[str]): Keys that were loaded.
        missing (list[str]): Keys of the model that the state dict lacks (counters of batch norms aside).
        unexpected (list[str]): Keys of the state dict that the model lacks.
        mismatched (list[str]): Keys of both with other shapes, written with them.
    """

    matched: list[str]
    missing: list[str]
    unexpected: list[str]
    mismatched: list[str]

    def __str__(self) -> str:
        def listing(name: str, keys: list[str]) -> str:
            shown = ', '.join(keys[:5]) + (', ...' if len(keys) > 5 else '')
            return f'{len(keys)} {name}' + (f' ({shown})' if keys else '')

        return ', '.join(
            [
                f'{len(self.matched)} keys match',
                listing('missing', self.missing),
                listing('unexpected', self.unexpected),
                listing('of another shape', self.mismatched),
            ]
        ) + (f". All the model's keys are there behind {self.prefix!r}: save them without it" if self.prefix else '')

    @property
    def prefix(self) -> str:
        """Return what every key of the model has before it in the state dict; '' if there is no such prefix."""
        if self.matched or not self.missing:
            return ''
        first, unexpected = self.missing[0], set(self.unexpected)
        prefixes = [key.removesuffix(first) for key in self.unexpected if key.endswith(f'.{first}')]
        return next((one for one in prefixes if all(one + key in unexpected for key in self.missing)), '')


def load_report(model: nn.Module, state: Mapping[str, Tensor]) -> LoadReport:
    """Load what fits of a state dict into a model and report the rest."""
    own, names = model.state_dict(), saved_names(model)
    others: list[str] = []
    try:
        # torch's own loading comes first: layers may rename keys of their older versions, or resize position embeddings.
        missing, unexpected = model.load_state_dict(state, strict=False)
    except RuntimeError:
        others = [key for key in own if key in state and own[key].shape != state[key].shape]
        if not others:
            raise
        fitting = {key: value for key, value in state.items() if key not in others}
        missing, unexpected = model.load_state_dict(fitting, strict=False)
    if missing:
        # Some compute a buffer themselves whatever a checkpoint holds (Swin v2): what they do not even take of their own.
        never = set(model.load_state_dict(own, strict=False).missing_keys)
        missing = [key for key in missing if key not in never]
    missing = [names.get(key, key) for key in missing]
    # Batch norms bring a counter of their own where there is none.
    absent = {*missing, *(key for key in own if 'num_batches_tracked' in key and key not in state)}
    return LoadReport(
        matched=sorted(own.keys() - absent - set(others)),
        missing=sorted(key for key in missing if key not in others and 'num_batches_tracked' not in key),
        unexpected=sorted(unexpected),
        mismatched=[
            f'{key}: {tuple(state[key].shape)} in the checkpoint, {tuple(own[key].shape)} in the model' for key in others
        ],
    )
