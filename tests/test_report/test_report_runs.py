"""What is read of a run's folder, and what runs are to each other."""

import json
import shutil
from pathlib import Path

import pytest

from dskd_mm.report import RunLog, read_runs
from dskd_mm.report.results import compare, group_runs, main_metric
from dskd_mm.report.runs import role

METRIC = 'accuracy/top1'


def test_runs_find_their_roles_and_their_teacher(work_dirs: dict[str, Path]) -> None:
    given = [work_dirs[name] for name in ('dskd_seed0', 'plain', 'dskd_seed1')]
    runs = read_runs(given)
    assert [run.folder for run in runs] == [*given, work_dirs['teacher']], 'the teacher is found by its checkpoint'
    assert [role(run, runs) for run in runs] == ['distilled', 'plain', 'distilled', 'teacher']
    groups = group_runs(runs)
    assert [(group.name, len(group.runs)) for group in groups] == [
        ('Plain student', 1),
        ('DSKD+maps student', 2),
        ('Teacher', 1),
    ]
    assert main_metric(runs) == METRIC
    result = compare(groups, METRIC)
    last = [list(RunLog.read(work_dirs[name]).curve(METRIC).values())[-1] for name in ('dskd_seed0', 'dskd_seed1', 'plain')]
    assert result.gain == pytest.approx((last[0] + last[1]) / 2 - last[2])
    assert result.noise is None, 'a single plain run says nothing of chance'


def test_a_run_says_what_it_was(work_dirs: dict[str, Path]) -> None:
    run = RunLog.read(work_dirs['dskd_seed1'])
    assert (run.name, run.method, run.added_losses, run.unit) == ('toy_dskd', 'DSKD+maps', ['maps'], 'epoch')
    assert list(run.curve(METRIC)) == [1, 2, 3, 4, 5, 6] and len(run.training) == 24
    assert run.environment()['seed'] == '1' and 'PyTorch' in run.environment()
    assert not RunLog.read(work_dirs['plain']).is_distilled


def write_run(folder: Path, evaluations: list[dict], log: str = '', config: str = "model = dict(type='X')\n") -> RunLog:
    data = folder / '20260101_000000/vis_data'
    data.mkdir(parents=True)
    (data / 'config.py').write_text(config)
    (data / 'scalars.json').write_text(''.join(json.dumps(row) + '\n' for row in evaluations))
    (data.parent / 'x.log').write_text(log)
    return RunLog.read(folder)


def test_results_of_classes_as_each_host_logs_them(tmp_path: Path) -> None:
    detector = write_run(tmp_path / 'det', [{'coco/bbox_mAP': 0.2, 'coco/red cell_precision': 0.25, 'step': 1}])
    assert detector.classwise() == {'red cell': 0.25}
    listed = write_run(tmp_path / 'cls', [{'single-label/f1-score_classwise': [10.0, 20.0], 'step': 1}])
    assert listed.classwise() == {'0': 10.0, '1': 20.0}
    table = '+--+\n|   Class    |  IoU  |  Acc  |\n+--+\n| background | 88.84 | 97.82 |\n|  nucleus   | 55.5 | 60.0 |\n+--+\n'
    segmenter = write_run(
        tmp_path / 'seg',
        [{'mIoU': 72.0, 'step': 1}],
        f'per class results:\n{table.replace("55.5", "1.0")}later per class results:\n\n{table}',
    )
    assert segmenter.classwise() == {'background': 88.84, 'nucleus': 55.5}, 'those of the last evaluation'


def test_a_folder_without_a_run_is_refused_with_what_it_needs(tmp_path: Path, work_dirs: dict[str, Path]) -> None:
    with pytest.raises(ValueError, match=r'scalars.json and config.py in .*LocalVisBackend'):
        RunLog.read(tmp_path)
    moved = tmp_path / 'moved'
    shutil.copytree(work_dirs['plain'], moved)
    assert RunLog.read(moved).name == 'toy_plain'


def verdict(tmp_path: Path, plain: list[float], distilled: list[float], settings: str = '') -> str:
    student = "dict(type='X')"
    taught = f"dict(type='dskd_mm.DSKDDistiller', student={student}, teacher=dict(config='none.py', checkpoint='none.pth'))"
    runs = []
    for kind, config, values in (('plain', student, plain), ('dskd', taught, distilled)):
        for seed, value in enumerate(values):
            folder = tmp_path / f'{kind}{seed}'
            text = f'model = {config}\n{settings}'
            runs.append(write_run(folder, [{'mIoU': value, 'step': 1}], config=text))
            (folder / f'{kind}.py').write_text(text)
    return compare(group_runs([RunLog.read(run.folder) for run in runs]), 'mIoU').verdict()


def test_methods_and_options_of_one_config_are_no_seeds(tmp_path: Path) -> None:
    """`--method` and `--cfg-options` leave a config its name."""
    head = "student=dict(type='X', head=dict(type='H', loss=dict(type='L', loss_weight={}))), teacher=dict(checkpoint='x')"
    models = dict(
        dskd=f"dict(type='dskd_mm.DSKDDistiller', {head.format(1)})",
        other=f"dict(type='dskd_mm.DSKDDistiller', {head.format(1)}, mix=0.5)",
        kd=f"dict(type='dskd_mm.ConfigurableDistiller', {head.format(0.1)}, distill_losses=dict(kd=dict(type='KD')))",
        plain="dict(type='X', head=dict(type='H', loss=dict(type='L', loss_weight=1)))",
    )
    for name, model in models.items():
        for seed in range(2):
            config = f'model = {model}\nrandomness = dict(seed={seed})\n'
            write_run(tmp_path / f'{name}{seed}', [{'mIoU': 50.0 + seed, 'step': 1}], config=config)
            (tmp_path / f'{name}{seed}/{"plain" if name == "plain" else "pair"}.py').write_text(config)

    def found(*names: str) -> dict[str, int]:
        groups = group_runs(read_runs([tmp_path / name for name in names]))
        return {group.name: len(group.runs) for group in groups}

    assert found('dskd0', 'dskd1', 'kd0', 'kd1') == {'DSKD student': 2, 'Kd student': 2}
    assert found('dskd0', 'other0', 'other1', 'kd0') == {
        'DSKD student (dskd0)': 1,
        'DSKD student (other0)': 2,
        'Kd student (kd0)': 1,
    }
    # KD weighs the student's own loss; the plain student is the same network.
    runs = read_runs([tmp_path / 'kd0', tmp_path / 'plain0'])
    assert [role(run, runs) for run in runs] == ['distilled', 'plain']
    assert '0.0 points above the plain one (50.0)' in compare(group_runs(runs), 'mIoU').verdict()


def test_an_exported_config_is_not_that_of_the_training(tmp_path: Path) -> None:
    config = "model = dict(type='dskd_mm.DSKDDistiller', student=dict(type='X'), teacher=dict(checkpoint='x'))\n"
    write_run(tmp_path, [{'mIoU': 50.0, 'step': 1}], config=config)
    (tmp_path / 'pair.py').write_text(config)
    (tmp_path / 'student.py').write_text("model = dict(type='X')\n")
    (tmp_path / 'broken.py').write_text('import nothing.of.the.kind\n')
    assert RunLog.read(tmp_path).config == tmp_path / 'pair.py'


def test_what_was_trained_again_counts_once(tmp_path: Path) -> None:
    """After a kill training goes on from the last checkpoint; without --resume it begins anew, in the same folder."""

    def log(name: str, steps: range, evaluations: dict[int, float]) -> None:
        data = tmp_path / name / 'vis_data'
        data.mkdir(parents=True)
        (data / 'config.py').write_text("model = dict(type='X')\n")
        rows: list[dict] = []
        for step in steps:
            rows.append({'loss': 1.0, 'step': step})
            rows += [{METRIC: evaluations[step // 2], 'step': step // 2}] if step % 2 == 0 and step // 2 in evaluations else []
        (data / 'scalars.json').write_text(''.join(json.dumps(row) + '\n' for row in rows))

    def told() -> tuple[list[int], dict[int, float]]:
        run = RunLog.read(tmp_path)
        return [row['step'] for row in run.training], run.curve(METRIC)

    log('20260101_000000', range(1, 6), {1: 10.0, 2: 20.0})
    log('20260101_000001', range(5, 9), {3: 30.0, 4: 40.0})
    assert told() == ([1, 2, 3, 4, 5, 6, 7, 8], {1: 10.0, 2: 20.0, 3: 30.0, 4: 40.0})
    log('20260101_000002', range(1, 4), {1: 11.0})
    assert told() == ([1, 2, 3], {1: 11.0})
    log('20260101_000003', range(0), {})
    assert told() == ([1, 2, 3], {1: 11.0})


def test_a_folder_given_twice_is_one_run(work_dirs: dict[str, Path]) -> None:
    assert len(read_runs([f'{work_dirs["plain"]}/', work_dirs['plain'], work_dirs['plain'] / '../plain'])) == 1


@pytest.mark.parametrize(
    ('plain', 'distilled', 'expected'),
    [
        ([50.0], [60.0], '10.0 points above the plain one (50.0). With a single run of a student, chance is not ruled out.'),
        ([50.0, 52.0], [60.0, 60.0], '9.0 points above the plain one (51.0). Runs differ by a standard deviation of 1.4.'),
        ([50.0, 54.0], [53.0, 53.0], '1.0 points above the plain one (52.0). That is within noise (standard deviation 2.8).'),
        ([50.0], [45.0], '5.0 points below the plain one'),
        ([], [45.0], 'Add the folder of a plain run'),
        ([45.0], [], 'The student reaches 45.0 mIoU; none is distilled.'),
    ],
)
def test_the_verdict_says_what_the_runs_support(
    tmp_path: Path, plain: list[float], distilled: list[float], expected: str
) -> None:
    assert expected in verdict(tmp_path, plain, distilled)


def test_no_verdict_on_runs_that_have_not_ended(tmp_path: Path) -> None:
    training = 'train_cfg = dict(by_epoch=True, max_epochs={})\n'
    text = verdict(tmp_path / 'under_way', [70.0], [45.0], training.format(10))
    assert text.endswith('45.0 mIoU so far. Runs have not ended (epoch 1 of 10): what it gave shows then.')
    assert '25.0 points below' in verdict(tmp_path / 'ended', [70.0], [45.0], training.format(1))
    early = "custom_hooks = [dict(type='EarlyStoppingHook', monitor='mIoU')]\n"
    assert '25.0 points below' in verdict(tmp_path / 'early', [70.0], [45.0], training.format(10) + early)


def test_an_error_is_better_the_lower_it_is(tmp_path: Path) -> None:
    rule = "default_hooks = dict(checkpoint=dict(type='CheckpointHook', save_best='mIoU', rule='less'))\n"
    assert '5.0 points below the plain one (50.0)' in verdict(tmp_path, [50.0], [45.0], rule)
    result = compare(group_runs(read_runs([tmp_path / 'plain0', tmp_path / 'dskd0'])), 'mIoU')
    assert result.gain == 5.0 and result.lower


def test_a_low_percentage_is_no_share(tmp_path: Path) -> None:
    assert '0.2 points above the plain one (0.6)' in verdict(tmp_path, [0.6], [0.8])


def test_what_is_not_finite_is_left_out(tmp_path: Path) -> None:
    rows = [{'coco/bbox_mAP': float('nan'), 'coco/a_precision': float('nan'), 'coco/b_precision': 0.5, 'step': 1}]
    run = write_run(tmp_path, rows)
    assert run.classwise() == {'b': 0.5} and run.curve('coco/bbox_mAP') == {} and run.metrics() == ['coco/b_precision']
