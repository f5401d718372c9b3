"""Every setting of the benchmark fits the configs that it names."""

from dataclasses import replace
from pathlib import Path

import pytest
from mmengine.config import Config, DictAction

from benchmarks import accuracy
from benchmarks.runner import ROOT


def schedulers(cfg: Config) -> list[dict]:
    """The config's schedulers, of which there may be one or several."""
    return cfg.param_scheduler if isinstance(cfg.param_scheduler, list) else [cfg.param_scheduler]


@pytest.mark.parametrize('name', accuracy.SETTINGS)
def test_setting_fits_its_configs(name):
    setting = accuracy.SETTINGS[name]
    student, teacher, distilled = (
        Config.fromfile(ROOT / path) for path in (setting.student, setting.teacher, setting.config('dskd'))
    )
    # The distilled student is the plain one, its teacher the one that the benchmark trains, after its last epoch.
    assert distilled.model.student == student.model
    assert Path(distilled.model.teacher.config).resolve() == ROOT / setting.teacher
    last = f'work_dirs/{setting.own_teacher or Path(setting.teacher).stem}/epoch_{teacher.train_cfg.max_epochs}.pth'
    distilled.merge_from_dict(accuracy.Run(name, 'dskd', 0, 1, False, Path(), Path()).options)
    assert distilled.model.teacher.checkpoint == str(setting.teacher_checkpoint) == last
    assert setting.epochs <= student.train_cfg.max_epochs
    # A budget reaches all that counts epochs, and the last epoch is the one at which the learning rate is 0.
    student.merge_from_dict(dict.fromkeys(setting.schedule, 7))
    assert student.train_cfg.max_epochs == 7
    assert [(s.T_max, s.end) for s in schedulers(student) if s.type == 'CosineAnnealingLR'] == [(7, 7)]


def test_a_folder_with_a_run_of_another_config_is_no_run_of_this_one(tmp_path, monkeypatch):
    monkeypatch.setattr(accuracy.Run, 'work_dir', tmp_path)
    run = accuracy.Run('cifar100-subset', 'kd', 0, 8, False, tmp_path / 'accuracy.jsonl', tmp_path)
    assert run.claim('abc') == 'abc'
    # Resumed, after further commits: it is still a run of the first.
    assert run.claim('def') == 'abc'
    for other in (dict(seed=1), dict(epochs=9), dict(holdout=True), dict(variant='fitnet'), dict(variant='kd-t1')):
        with pytest.raises(RuntimeError, match=r'another config.*Remove the folder'):
            replace(run, **other).claim('abc')
    # One that nobody claimed, but that holds a run.
    (tmp_path / 'config.sha256').unlink()
    (tmp_path / 'last_checkpoint').write_text('epoch_1.pth')
    with pytest.raises(RuntimeError, match='another config'):
        run.claim('abc')


@pytest.mark.parametrize('name', accuracy.SETTINGS)
def test_holdout_judges_on_other_images_than_the_results(name):
    setting = accuracy.SETTINGS[name]
    cfg = Config.fromfile(ROOT / setting.student)
    before = cfg.val_dataloader.dataset.to_dict()
    cfg.merge_from_dict(setting.holdout)
    assert cfg.val_dataloader.dataset.to_dict() != before


def test_a_teacher_of_its_own_sees_what_its_students_see_and_takes_no_place_of_another():
    setting, usual = (accuracy.SETTINGS[name] for name in ('cifar100-subset-15k', 'cifar100-subset'))
    assert setting.teacher == usual.teacher and setting.teacher_checkpoint != usual.teacher_checkpoint
    where = (0, 24, False, Path(), Path())
    teacher = accuracy.TeacherRun('cifar100-subset-15k', 'teacher', *where)
    student = accuracy.Run('cifar100-subset-15k', 'kd', *where)
    for run in (teacher, student):
        cfg = Config.fromfile(ROOT / run.config)
        cfg.merge_from_dict({key: DictAction._parse_iterable(value) for key, value in run.options.items() if 'dataset' in key})
        cfg.merge_from_dict({key: DictAction._parse_iterable(value) for key, value in setting.holdout.items()})
        trained, judged = cfg.train_dataloader.dataset, cfg.val_dataloader.dataset
        assert (trained.split, list(trained.blocks), judged.split, list(judged.blocks)) == ('train', [0, 1, 2], 'train', [3])
    assert 'model.teacher.checkpoint' not in accuracy.Run('cifar100-subset-15k', 'plain', *where).options
    # That of the configs is trained as they say.
    assert accuracy.TeacherRun('fashion-mnist', 'teacher', *where).options == {'randomness.seed': 0}


def test_a_smaller_training_part_has_the_size_that_its_table_says():
    setting = accuracy.SETTINGS['fashion-mnist-10k']
    cfg = Config.fromfile(ROOT / setting.student)
    cfg.merge_from_dict(setting.options)
    assert int(cfg.train_dataloader.dataset.indices) == setting.train_images


@pytest.mark.parametrize(('name', 'images'), [('fashion-mnist-10k', 60000), ('dsb2018-fcn', 531)])
def test_what_is_held_out_is_seen_by_no_teacher(name, images):
    """The first images are for training, the last ones are held out, and both do not meet."""
    for kind in (accuracy.TeacherRun, accuracy.Run):
        run = kind(name, 'plain', 0, 1, False, Path(), Path())
        options = run.options | run.setting.holdout
        trained, judged = (int(options[f'{part}_dataloader.dataset.indices']) for part in ('train', 'val'))
        # A negative number counts from the end.
        trained = range(images)[trained:] if trained < 0 else range(images)[:trained]
        assert len(trained) == run.train_images
        judged = range(images)[judged:] if judged < 0 else range(images)[:judged]
        assert len(judged) in (133, 10000) and not set(trained) & set(judged)


def test_variants_fit_their_task():
    assert 'mix-.5-dense' in accuracy.applicable(accuracy.SETTINGS['fashion-mnist'])
    names = accuracy.applicable(accuracy.SETTINGS['dsb2018-fcn'])
    assert 'mix-.5' in names and 'mix-.5-dense' not in names
    assert 'neck-soft' in accuracy.applicable(accuracy.SETTINGS['bccd-retinanet-w8']) and 'neck-soft' not in names
