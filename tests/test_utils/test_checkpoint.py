"""Reading and writing checkpoints."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from dskd_mm.utils import checkpoint as module
from dskd_mm.utils.atomic import save_atomically
from dskd_mm.utils.checkpoint import (
    export_student,
    load_checkpoint_file,
    load_plain_model,
    load_report,
    model_state,
)


@pytest.fixture
def model() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))


def save(path: Path, **content: object) -> str:
    torch.save(content, path)
    return str(path)


def prefixed(model: nn.Module, prefix: str) -> dict[str, torch.Tensor]:
    return {prefix + key: value for key, value in model.state_dict().items()}


def test_the_students_state_is_found_in_every_kind_of_checkpoint(model: nn.Module) -> None:
    plain = model.state_dict()
    distiller = {**prefixed(model, 'student.'), 'denoiser.weight': torch.ones(1)}
    for state in (plain, distiller, prefixed(model, 'module.'), {f'module.{key}': value for key, value in distiller.items()}):
        for content in (state, dict(state_dict=state, meta={})):
            assert model_state(content).keys() == plain.keys()


def test_a_checkpoint_without_tensors_is_refused() -> None:
    words = r"weights of a model in the checkpoint 'a.pth', bare or under 'state_dict', but got only \['meta'\]\.$"
    with pytest.raises(ValueError, match=words):
        model_state(dict(meta=dict(epoch=1)), 'a.pth')


def test_weights_under_another_name_are_told_and_the_mend_works(
    model: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other libraries save them under 'model'."""
    monkeypatch.chdir(tmp_path)
    path = save(tmp_path / 'theirs.pth', model=model.state_dict(), epoch=3)
    with pytest.raises(ValueError, match="They are under 'model': ") as error:
        model_state(load_checkpoint_file(path), path)
    exec(str(error.value).partition("They are under 'model': ")[2].removesuffix('.'), dict(torch=torch))
    assert model_state(load_checkpoint_file('new.pth')).keys() == model.state_dict().keys()


def test_keys_behind_a_prefix_are_told(model: nn.Module) -> None:
    text = str(load_report(model, prefixed(model, 'net.model.')))
    assert '0 keys match' in text and "All the model's keys are there behind 'net.model.': save them without it" in text
    others = {'net.0.weight': torch.ones(3, 2), **prefixed(nn.Linear(2, 3), 'fc.')}
    for state in (model.state_dict(), prefixed(model, 'model.') | dict(model.state_dict()), others):
        assert 'behind' not in str(load_report(model, state))


def test_the_export_holds_the_student_alone(model: nn.Module, tmp_path: Path) -> None:
    state = {**prefixed(model, 'student.'), 'denoiser.weight': torch.ones(1), 'noise_seed': torch.tensor(1)}
    meta = dict(epoch=3, cfg='model = dict(teacher=...)', dataset_meta=dict(classes=['a']))
    source = save(tmp_path / 'distiller.pth', state_dict=state, meta=meta, optimizer=dict(state={}), message_hub={})
    export_student(source, str(tmp_path / 'student.pth'))
    student = load_checkpoint_file(str(tmp_path / 'student.pth'))
    assert student['meta'] == dict(epoch=3, dataset_meta=dict(classes=['a']))
    assert set(student) == {'meta', 'state_dict'}
    nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)).load_state_dict(student['state_dict'], strict=True)
    export_student(source, str(tmp_path / 'student.pth'), 'model = dict()')
    assert load_checkpoint_file(str(tmp_path / 'student.pth'))['meta']['cfg'] == 'model = dict()'


@pytest.mark.parametrize('value', [np.float32(0.5), np.int32(3), np.bool_(True), np.str_('a'), np.ones(2, np.float16)])
def test_metrics_may_be_of_any_type_of_numpy(tmp_path: Path, value: object) -> None:
    source = save(tmp_path / 'a.pth', message_hub=dict(best_score=value))
    assert np.array_equal(load_checkpoint_file(source)['message_hub']['best_score'], value)


PLAIN = [Counter([8, 12]), {1}, bytearray(b'a'), 1j, torch.bool, torch.bfloat16, torch.device('cpu')]


@pytest.mark.parametrize('value', PLAIN, ids=str)
def test_schedulers_and_options_hold_other_plain_values(tmp_path: Path, value: object) -> None:
    source = save(tmp_path / 'a.pth', param_schedulers=[dict(milestones=value)])
    assert load_checkpoint_file(source)['param_schedulers'] == [dict(milestones=value)]


def test_a_plain_checkpoint_has_nothing_to_export(model: nn.Module, tmp_path: Path) -> None:
    source = save(tmp_path / 'plain.pth', state_dict=model.state_dict())
    with pytest.raises(ValueError, match=r"begin with 'student.'.*plain.pth.*\['0', '1'\].*plain student already\?"):
        export_student(source, str(tmp_path / 'student.pth'))
    assert not (tmp_path / 'student.pth').exists()


def test_an_export_to_a_full_disk_leaves_the_older_one_intact(tmp_path: Path) -> None:
    path = tmp_path / 'student.pth'
    save_atomically(dict(state_dict=dict(weight=torch.ones(1))), str(path))
    before = path.read_bytes()
    Path(f'{path}.partial').symlink_to('/dev/full')
    with pytest.raises(OSError, match=r"No space left on device: '.*student.pth' expects [\d,]+ bytes"):
        save_atomically(dict(state_dict={}), str(path))
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_a_plain_model_is_loaded_strictly(model: nn.Module, tmp_path: Path) -> None:
    source = save(tmp_path / 'a.pth', state_dict={**prefixed(model, 'student.'), 'denoiser.weight': torch.ones(1)})
    twin = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    load_plain_model(twin, source)
    assert all(torch.equal(value, twin.state_dict()[key]) for key, value in model.state_dict().items())
    with pytest.raises(ValueError) as caught:
        load_plain_model(nn.Sequential(nn.Linear(2, 4), nn.Identity(), nn.Linear(3, 1)), source)
    for words in (
        'a.pth',
        'does not fit the Sequential of the config',
        '0 keys match',
        '2 missing (2.bias, 2.weight)',
        '5 unexpected (1.bias',
        '0.weight: (3, 2) in the checkpoint, (4, 2) in the model',
        'config and checkpoint belong together',
    ):
        assert words in str(caught.value)


def test_the_report_tells_what_fits(model: nn.Module) -> None:
    state = {**model.state_dict(), '0.weight': torch.ones(3, 5), 'more': torch.ones(1)}
    del state['1.bias'], state['1.num_batches_tracked']
    report = load_report(model, state)
    assert report.missing == ['1.bias']
    assert report.unexpected == ['more']
    assert report.mismatched == ['0.weight: (3, 5) in the checkpoint, (3, 2) in the model']
    assert '0.bias' in report.matched


def test_what_layers_translate_themselves_is_no_mismatch() -> None:
    class Renamed(nn.Linear):
        def _load_from_state_dict(self, state, prefix, *args):
            if prefix + 'kernel' in state:
                state[prefix + 'weight'] = state.pop(prefix + 'kernel')
            super()._load_from_state_dict(state, prefix, *args)

    model, kernel = nn.Sequential(Renamed(2, 3, bias=False)), torch.ones(3, 2)
    report = load_report(model, {'0.kernel': kernel})
    assert (report.matched, report.missing, report.mismatched) == (['0.weight'], [], [])
    assert torch.equal(model[0].weight, kernel)


def test_a_counter_of_batch_norm_alone_is_no_match(model: nn.Module) -> None:
    assert load_report(model, {'other': torch.ones(1)}).matched == []


def test_an_address_is_downloaded_and_its_failure_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    address = 'https://example.com/teacher.pth'
    seen = []

    def download(url: str, **options: object) -> dict:
        seen.append((url, options))
        return dict(state_dict={})

    monkeypatch.setattr(module.torch.hub, 'load_state_dict_from_url', download)
    assert load_checkpoint_file(address) == dict(state_dict={})
    assert seen == [(address, dict(map_location='cpu', weights_only=True))]

    def fail(url: str, **options: object) -> dict:
        raise OSError('Name or service not known')

    monkeypatch.setattr(module.torch.hub, 'load_state_dict_from_url', fail)
    with pytest.raises(ValueError, match=r'https://example.com/teacher.pth.*could not be downloaded.*Name or service'):
        load_checkpoint_file(address)
