"""Checkpoints that are whole or absent."""

import os
from pathlib import Path

import pytest
import torch
from mmengine.fileio import get_file_backend

from dskd_mm.resume.saving import ATOMIC, is_intact, latest_checkpoint
from dskd_mm.utils.atomic import write_atomically


def write(path: Path, age: int = 0) -> str:
    torch.save(dict(weight=torch.ones(100)), path)
    os.utime(path, (1000 - age, 1000 - age))
    return str(path)


def test_a_backend_removes_nothing_before_the_next_file_is_written(tmp_path: Path) -> None:
    # CheckpointHook removes with one instance, mmengine writes with another one of the same arguments.
    arguments = dict(backend=ATOMIC, removed_later=[])
    remover, writer = (get_file_backend(str(tmp_path), backend_args=arguments) for _ in range(2))
    old, new = tmp_path / 'old.pth', tmp_path / 'deep' / 'new.pth'
    writer.put(b'old', str(old))
    remover.remove(str(old))
    remover.remove(str(tmp_path / 'never there.pth'))
    assert old.read_bytes() == b'old'
    (tmp_path / 'deep').write_text('in the way of the folder')
    with pytest.raises(OSError):
        writer.put(b'new', str(new))
    assert old.exists()
    (tmp_path / 'deep').unlink()
    writer.put(b'new', str(new))
    assert new.read_bytes() == b'new' and not old.exists()
    # What is written under the name of what was to be removed stays.
    remover.remove(str(new))
    writer.put(b'newer', str(new))
    assert new.read_bytes() == b'newer' and not arguments['removed_later']


def test_what_cannot_be_written_is_named_with_what_was_expected(tmp_path: Path) -> None:
    path = tmp_path / 'a.pth'
    path.write_bytes(b'before')
    Path(f'{path}.partial').symlink_to('/dev/full')
    with pytest.raises(OSError) as caught:
        write_atomically(b'x' * 12345, str(path))
    assert caught.value.errno == 28
    for words in (str(path), '12,345 bytes', 'free on its disk', 'older checkpoints are intact', '--resume'):
        assert words in str(caught.value)
    assert path.read_bytes() == b'before' and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize('length', [0, 1, 100, -1])
def test_a_truncated_checkpoint_is_not_intact(tmp_path: Path, length: int) -> None:
    path = Path(write(tmp_path / 'a.pth'))
    assert is_intact(str(path))
    path.write_bytes(path.read_bytes()[:length])
    assert not is_intact(str(path))


def test_the_youngest_intact_checkpoint_is_found(tmp_path: Path) -> None:
    pattern = str(tmp_path / 'epoch_{}.pth')
    assert latest_checkpoint(None, [pattern, str(tmp_path / 'nowhere' / '{}.pth')]) is None
    third, tenth = write(tmp_path / 'epoch_3.pth', age=1), write(tmp_path / 'epoch_10.pth', age=2)
    for other in ('best_epoch_11.pth', 'epoch_12.pth.partial', 'epoch_x.pth'):
        write(tmp_path / other)
    (tmp_path / 'epoch_4.pth').mkdir()
    assert latest_checkpoint(None, [pattern]) == third  # of another run in the same folder, though its number is greater
    assert latest_checkpoint(tenth, [pattern]) == tenth
    assert latest_checkpoint(str(tmp_path / 'gone' / 'epoch_3.pth'), [pattern]) == third  # the folder was moved
    os.truncate(third, 100)
    assert latest_checkpoint(third, [pattern]) == tenth
    os.truncate(tenth, 100)
    with pytest.raises(ValueError, match=r'intact checkpoint.*epoch_3.pth, .*epoch_10.pth are truncated.*--resume PATH'):
        latest_checkpoint(third, [pattern])


def test_what_is_no_file_here_is_left_to_mmengine(tmp_path: Path) -> None:
    assert latest_checkpoint('s3://bucket/epoch_1.pth', []) == 's3://bucket/epoch_1.pth'
    assert latest_checkpoint(str(tmp_path), []) == str(tmp_path)  # DeepSpeed's are folders
    with pytest.raises(ValueError, match='which last_checkpoint names, but neither it nor another one is there'):
        latest_checkpoint(str(tmp_path / 'gone.pth'), [])


def test_a_place_that_is_no_folder_is_named_without_talk_of_space(tmp_path: Path) -> None:
    (tmp_path / 'file').touch()
    with pytest.raises(OSError, match=r"'.*file/a\.pth' was not written: choose a folder that can be") as caught:
        write_atomically(b'x', str(tmp_path / 'file/a.pth'))
    assert 'resume' not in str(caught.value)
