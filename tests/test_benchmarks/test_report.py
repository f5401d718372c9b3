"""The published tables follow from the recorded results."""

import json
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
from scipy.stats import sem, ttest_1samp

from benchmarks import health_tables, lead_tables, report
from benchmarks import records as recorded
from benchmarks.runner import ROOT
from benchmarks.settings import SETTINGS
from benchmarks.variants import label_of

KEYS = {
    *('task', 'dataset', 'pair', 'method', 'variant', 'seed', 'metric', 'value', 'epochs', 'train_images'),
    *('seconds', 'command', 'commit', 'versions'),
}


def test_every_record_is_complete_and_recorded_once():
    records = recorded.records()
    assert records
    assert all(set(record) >= KEYS for record in records)
    assert all(0 <= record['value'] <= 100 and record['seconds'] > 0 for record in records)
    runs = [tuple(record[k] for k in ('dataset', 'variant', 'seed', 'split', 'epochs')) for record in records]
    # A teacher may be trained again, to other weights.
    runs = [(*run, run[1] == 'teacher' and record.get('teacher')) for run, record in zip(runs, records, strict=True)]
    assert len(runs) == len(set(runs))


def test_records_name_no_place_of_a_machine():
    for path in recorded.RESULTS.parent.glob('*.jsonl'):
        words = {word for record in recorded.records(path) for word in record.get('command', '').replace('=', ' ').split()}
        assert not [word for word in words if word.startswith('/')], path.name


def test_pages_are_up_to_date():
    result = subprocess.run([sys.executable, 'benchmarks/report.py', '--check'], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, f'{result.stdout}{result.stderr}\nRun: python benchmarks/report.py'


def write_records(path: Path, rows: list[tuple]) -> None:
    """Records of data set, variant, seed and value, and the teacher if there is a fifth."""
    with open(path, 'w') as file:
        for dataset, variant, seed, value, *teacher in rows:
            setting = SETTINGS[dataset]
            record = dict(dataset=dataset, variant=variant, seed=seed, value=value, split='test', epochs=5)
            record |= dict(teacher=teacher[0]) if teacher else {}
            common = dict(train_images=60000, task=setting.task, metric=setting.metric, pair=setting.pair)
            file.write(json.dumps({**record, **common}) + '\n')


def test_table_pairs_seeds(tmp_path, monkeypatch):
    rows = [
        *(('teacher', 0, 90.0),),
        *(('plain', seed, value) for seed, value in enumerate((80.0, 82.0, 81.0))),
        # In the order in which they ended, which is not that of the plain student's.
        *(('dskd', seed, value) for seed, value in ((2, 84.9), (0, 84.0), (1, 86.1))),
        *(('no-lsh', seed, value) for seed, value in ((1, 85.0), (2, 81.5), (0, 78.0))),
        *(('no-anchor', seed, value) for seed, value in ((3, 70.0), (2, 82.5))),
    ]
    path = tmp_path / 'accuracy.jsonl'
    write_records(path, [('fashion-mnist', *row) for row in rows])
    monkeypatch.setattr(recorded, 'RESULTS', path)
    lines = report.table('fashion-mnist', 'test', 5).splitlines()
    by_label = {line.split('|')[1].strip(): [cell.strip() for cell in line.split('|')[2:-1]] for line in lines[2:]}
    dskd, no_lsh = by_label[label_of('dskd')], by_label[label_of('no-lsh')]
    assert dskd == [f'85.00 ± {statistics.stdev((84.0, 86.1, 84.9)):.2f}', '+4.00 (p<0.01)', '44%', '', '3']
    p = ttest_1samp([-2.0, 3.0, 0.5], 0).pvalue
    assert no_lsh[1] == f'+0.50 (p={p:.2f})'
    assert by_label['plain student'][1:3] == ['', '']
    # The gains over DSKD are -6, -1.1 and -3.4; scipy's test on the differences instead of on the pairs.
    p = ttest_1samp([6.0, 1.1, 3.4], 0).pvalue
    assert no_lsh[3] == f'+3.50 (p={p:.2f})'
    # One seed of two in common with the plain student: nothing to test.
    assert by_label[label_of('no-anchor')][1:] == ['+1.50', '17%', '+2.40', '2']
    # Best first.
    assert list(by_label)[2:] == [label_of(name) for name in ('dskd', 'no-lsh', 'no-anchor')]


def test_the_gap_is_that_to_the_teacher_of_each_run(tmp_path):
    rows = [
        ('teacher', 0, 90.0),
        ('teacher', 0, 94.0, 'abc'),
        ('plain', 0, 80.0),
        ('plain', 1, 84.0),
        ('kd', 0, 87.0, 'abc'),
        ('kd', 1, 87.0),
        ('sokd', 0, 87.0, 'a teacher that was not recorded'),
        ('dskd', 0, 85.0),
        ('dist', 0, 87.0, 'abc'),
    ]
    path = tmp_path / 'accuracy.jsonl'
    write_records(path, [('fashion-mnist', *row) for row in rows])
    lines = report.table('fashion-mnist', 'test', 5, path).splitlines()[2:]
    cells = {line.split('|')[1].strip(): line.split('|')[4].strip() for line in lines}
    assert lines[0] == '| teacher | 90.00, 94.00 |  |  |  |  |'
    shares = {'kd': (7 + 3) / (14 + 6), 'dskd': 5 / 10, 'dist': 7 / 14}
    assert {name: cells[label_of(name)] for name in shares} == {name: f'{share:.0%}' for name, share in shares.items()}
    assert cells[label_of('sokd')] == ''
    write_records(path, [('fashion-mnist', *row) for row in (('teacher', 0, 80.0), *rows[2:3], *rows[7:8])])
    assert '| +5.00 |  |' in report.table('fashion-mnist', 'test', 5, path), 'there is no gap to close'


def test_a_table_shows_the_teachers_of_its_students(tmp_path):
    teachers = [('teacher', 0, 90.0, 'first'), ('teacher', 0, 94.0, 'again'), ('plain', 0, 80.0)]
    path = tmp_path / 'accuracy.jsonl'
    for taught, shown in ((('again',), '94.00'), (('again', 'first'), '90.00, 94.00')):
        students = [('kd', seed, 87.0, teacher) for seed, teacher in enumerate(taught)]
        write_records(path, [('fashion-mnist', *row) for row in teachers + students])
        lines = report.table('fashion-mnist', 'test', 5, path).splitlines()[2:]
        assert [line.split('|')[2].strip() for line in lines if line.startswith('| teacher')] == [shown]


def test_the_commands_reproduce_what_is_recorded_and_no_more(tmp_path, monkeypatch):
    rows = [('plain', 0), ('plain', 1), ('kd', 1), ('kd', 0), ('dskd', 0), ('no-lsh', 2)]
    write_records(tmp_path / 'accuracy.jsonl', [('fashion-mnist', *row, 80.0) for row in rows])
    monkeypatch.setattr(recorded, 'RESULTS', tmp_path / 'accuracy.jsonl')
    text, _ = report.block('fashion-mnist', 'test', '5', page=ROOT / 'README.md')
    commands = [line for line in text.splitlines() if line.startswith('python')]
    assert [command.split('fashion-mnist ')[1] for command in commands] == [
        '--methods dskd --seeds 0 --epochs 5',
        '--methods plain,kd --seeds 0,1 --epochs 5',
        '--methods no-lsh --seeds 2 --epochs 5',
    ]


def test_what_was_not_recorded_yet_is_no_error(tmp_path, monkeypatch):
    for module, name in ((recorded, 'RESULTS'), (report, 'DENOISED')):
        monkeypatch.setattr(module, name, tmp_path / 'nothing.jsonl')
    text = '<!-- overview: fashion-mnist/test/5 -->\n<!-- end --> <!-- denoised: a.py -->\n<!-- end -->'
    page, _ = report.rewrite(text + '<!-- table: fashion-mnist test 5 -->\n<!-- end -->', ROOT / 'README.md')
    assert 'Nothing was recorded of a.py yet' in page


@pytest.mark.parametrize(
    ('pairs', 'text'),
    [
        ([], ''),
        ([(3.0, 1.0)], '+2.00'),
        ([(47.2, 47.2), (46.1, 46.1)], '+0.00'),
        ([(47.2, 46.2), (46.1, 45.1)], '+1.00'),
        ([(2.0, 1.0), (4.0, 0.0)], '+2.50 (p=0.34)'),
        ([(2.0, 1.0), (4.0, 3.001)], '+1.00 (p<0.01)'),
    ],
)
def test_a_difference_is_tested_where_there_is_a_spread(pairs: list[tuple[float, float]], text: str) -> None:
    assert report.verdict([(dict(value=a), dict(value=b)) for a, b in pairs]) == text


def test_the_overview_has_a_column_for_each_data_set_and_a_row_for_each_method_that_ran(tmp_path, monkeypatch):
    path = tmp_path / 'accuracy.jsonl'
    rows = [
        ('fashion-mnist', 'teacher', 0, 90.0),
        *(('fashion-mnist', 'dskd', seed, value) for seed, value in enumerate((84.0, 86.0))),
        ('fashion-mnist', 'kd', 0, 85.5),
        ('fashion-mnist', 'dist', 0, 85.5),
        ('fashion-mnist', 'published', 0, 80.0),
        ('dsb2018-fcn', 'anchor-and-logit', 0, 70.0),
        ('dsb2018-fcn', 'no-lsh', 0, 99.0),  # a variant that is no preset has no row
    ]
    write_records(path, rows)
    monkeypatch.setattr(recorded, 'RESULTS', path)
    text = '<!-- overview: fashion-mnist/test/5 dsb2018-fcn/test/5 dsb2018-fcn/holdout/5 -->\n<!-- end -->'
    lines = [line for line in report.rewrite(text, ROOT / 'README.md')[0].splitlines() if line.startswith('|')]
    assert lines == [
        '| method | fashion-mnist, top-1 | dsb2018-fcn, mIoU | dsb2018-fcn, mIoU (held out) |',
        '| --- | --- | --- | --- |',
        '| teacher | 90.00 |  |  |',
        '| DSKD | 85.00 ± 1.41 (2) |  |  |',
        '| as published: diffusion and hash alone | 80.00 (1) |  |  |',
        '| control: soft anchor + logit loss (no diffusion) |  | **70.00** (1) |  |',
        '| KD | **85.50** (1) |  |  |',
        '| DIST | **85.50** (1) |  |  |',
    ]


def test_the_picture_has_a_point_for_each_row(tmp_path):
    figure = report.picture('cifar100-subset', 'test', 24)
    groups = report.selected('cifar100-subset', 'test', 24)
    (axes,) = figure.axes
    assert [text.get_text() for text in axes.get_yticklabels()][-1] == 'plain student'
    means = {round(float(line.get_xdata()[0]), 4) for line in axes.lines if len(line.get_xdata()) == 1}
    assert means >= {round(statistics.mean(r['value'] for r in runs), 4) for name, runs in groups.items() if name != 'teacher'}
    figure.savefig(tmp_path / 'a.png')


def test_denoised_features_are_tabled_by_their_last_record(tmp_path, monkeypatch):
    row = dict(config='a.py', epoch=3, batches=2, to_label=1.0, accuracy=50.0, command='python benchmarks/denoised.py a.py')
    values = [(None, None, 0.5), (0.1, 20, 0.4)]
    rows = [dict(row, start=start, scale=scale, to_teacher=value) for start, scale, value in values]
    rows += [dict(rows[1], to_teacher=0.3), dict(rows[1], config='other.py', to_teacher=0.1)]
    path = tmp_path / 'denoised.jsonl'
    path.write_text('\n'.join(map(json.dumps, rows)))
    monkeypatch.setattr(report, 'DENOISED', path)
    text, _ = report.rewrite('before\n<!-- denoised: a.py -->\nold\n<!-- end -->\nafter', ROOT / 'docs' / 'en' / 'a.md')
    assert 'old' not in text and text.startswith('before\n') and text.endswith('<!-- end -->\nafter')
    assert "| (the student's own feature) |  | 0.500 | 1.000 | 50.00 |" in text
    assert '| 0.1 of the schedule | 20 | 0.300 | 1.000 | 50.00 |' in text and '0.400' not in text and '0.100' not in text
    assert row['command'] in text


@pytest.mark.parametrize(
    'arguments, words',
    [
        (['--methods', 'nonsense'], 'nonsense'),
        (['--dataset', 'x'], 'invalid choice'),
        (['--suite', 'cls'], 'not allowed with'),
    ],
)
def test_mistakes_are_named(arguments, words):
    command = [sys.executable, 'benchmarks/accuracy.py', '--dataset', 'fashion-mnist', *arguments]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 2 and words in result.stderr


def test_the_best_weight_of_each_method_is_chosen(tmp_path, monkeypatch):
    rows = [
        *(('kd-x0.3', seed, value) for seed, value in enumerate((84.0, 80.0))),
        *(('kd', 0, 81.0), ('kd-x3', 0, 70.0)),
        *(('dskd', 0, 85.0), ('dskd-x0.1', 0, 84.0)),
        ('at', 0, 60.0),  # of which nothing was searched
    ]
    write_records(tmp_path / 'accuracy.jsonl', [('fashion-mnist', *row) for row in rows])
    where = 'fashion-mnist', 'holdout', 5, tmp_path / 'accuracy.jsonl'
    records = [json.loads(line) for line in where[-1].read_text().splitlines()]
    where[-1].write_text(''.join(json.dumps(record | dict(split='holdout')) + '\n' for record in records))
    assert report.chosen(*where) == {'kd': 'kd-x0.3', 'dskd': 'dskd'}
    # Tables show no other of the weights.
    assert list(report.compared(*where)) == ['kd-x0.3', 'kd', 'dskd', 'at']
    kd, dskd = report.search_table(*where).splitlines()[2:]
    assert [cell.strip() for cell in kd.split('|')[1:-1]] == ['KD', '', '82.00 ± 2.83', '81.00', '70.00', '0.3']
    assert [cell.strip() for cell in dskd.split('|')[1:-1]] == ['**DSKD**', '84.00', '', '85.00', '', '1']
    # Methods are judged in the seeds that all their weights have: the second one of × 0.3 does not count.
    where[-1].write_text(where[-1].read_text().replace('80.0', '60.0'))
    assert report.chosen(*where)['kd'] == 'kd-x0.3'
    # Weights that share no seed say nothing of each other.
    alone = [record | dict(seed=7) if record['variant'] == 'dskd' else record for record in records]
    where[-1].write_text(''.join(json.dumps(record | dict(split='holdout')) + '\n' for record in alone))
    assert list(report.chosen(*where)) == ['kd']


def test_a_lead_counts_runs_that_began_with_the_same_student(tmp_path, monkeypatch):
    rows = [
        # In the first seeds first weights differed between methods.
        *(('dskd', seed, value) for seed, value in ((0, 99.0), (5, 84.0), (6, 86.0), (7, 88.0))),
        *(('kd', seed, value) for seed, value in ((0, 10.0), (7, 83.0), (5, 81.0), (6, 84.0))),
        *(('anchor-and-logit', 6, 87.0), ('plain', 0, 70.0), ('no-lsh', 5, 80.0)),
    ]
    path = tmp_path / 'accuracy.jsonl'
    write_records(path, [('fashion-mnist', *row) for row in rows])
    tested = [json.loads(line) for line in path.read_text().splitlines()]
    held_out = [record | dict(split='holdout', value=record['value'] / 2) for record in tested]
    path.write_text(''.join(json.dumps(record) + '\n' for record in tested + held_out))
    monkeypatch.setattr(recorded, 'RESULTS', path)
    text, pictures = lead_tables.lead('fashion-mnist', '5', page=path)
    control, kd = [[cell.strip() for cell in line.split('|')[1:-1]] for line in text.splitlines()[2:]]
    assert control == [label_of('anchor-and-logit'), '-0.50', '-1.00', '6']
    # Of 3, 2 and 5 the deviation is that of the sample, and the error a root of three smaller.
    error = sem([3.0, 2.0, 5.0])
    assert kd == ['KD', f'+1.67 ± {error / 2:.2f}', f'+3.33 ± {error:.2f}', '5, 6, 7']
    assert not pictures


@pytest.mark.parametrize(
    ('curve', 'value', 'seconds'),
    [
        ([[10, 50], [20, 60], [30, 70]], 65, 25),
        ([[10, 50], [20, 60], [30, 55], [40, 70]], 60, 20),
        ([[10, 50], [20, 60]], 40, 10),  # before the first evaluation nothing is known
        ([[10, 50], [20, 60]], 60.1, None),
        ([[10, 50], [20, 50]], 50, 10),
    ],
)
def test_a_value_is_reached_between_two_evaluations(curve, value, seconds):
    assert report.reached(curve, value) == seconds


def test_seconds_to_the_plain_students_accuracy(tmp_path, monkeypatch):
    write_records(tmp_path / 'a.jsonl', [('fashion-mnist', name, 0, 80.0) for name in ('plain', 'kd', 'at')])
    curves = dict(plain=[[50, 70], [100, 80]], kd=[[80, 75], [160, 85]], at=[[60, 30], [120, 40]])
    rows = [json.loads(line) for line in (tmp_path / 'a.jsonl').read_text().splitlines()]
    rows.append(rows[1] | dict(seed=1))  # of before curves were kept
    text = '\n'.join(json.dumps(row | (dict(curve=curves[row['variant']]) if row['seed'] == 0 else {})) for row in rows)
    # On another processor seconds are others.
    text += '\n' + json.dumps(rows[1] | dict(seed=2, curve=[[8, 75], [16, 85]], processor='a faster one'))
    (tmp_path / 'a.jsonl').write_text(text)
    monkeypatch.setattr(recorded, 'RESULTS', tmp_path / 'a.jsonl')
    text, _ = report.times('fashion-mnist', 'test', '5', page=tmp_path)
    cells = {row.split('|')[1].strip(): [c.strip() for c in row.split('|')[2:-1]] for row in text.splitlines()[2:]}
    assert cells == {
        'plain student': ['100', '100%', '5.0', '100', '1 of 1'],
        'KD': ['120', '120%', '3.8', '160', '1 of 1'],
        'AT': ['never', '', '', '120', '0 of 1'],
    }
    assert 'seconds to 80.00' in text


def test_what_digits_say_of_the_diffusion_is_tabled(tmp_path, monkeypatch):
    late = dict(
        dskd_kl_student=0.2,
        dskd_kl_denoised=0.1,
        dskd_cosine_student=0.5,
        dskd_cosine_denoised=0.7,
        dskd_noise_error=0.2,
        dskd_trivial_error=0.3,
        dskd_gate=0.98,
    )
    health = dict(early=late, middle=late, late=late)
    # One that does not look at the teacher's feature, and one that looked at it as all did before.
    blind = {key: value for key, value in late.items() if '_cosine_' not in key}
    older = {when: blind | dict(dskd_gap_student=1.0, dskd_gap_denoised=0.5) for when in health}
    values = [('plain', 0, 50.0, {}), ('dskd', 0, 55.0, older), ('dskd', 1, 90.0, health), ('dskd', 1, 58.0, health)]
    values += [('anchor-and-logit', 0, 54.0, {}), ('anchor-and-logit', 1, 56.0, {})]
    rows = [dict(task='cls', variant=name, seed=seed, epochs=2, value=value, health=h) for name, seed, value, h in values]
    rows.append(dict(rows[0], task='det', value=1.0))
    rows.append(dict(rows[0], task='seg', variant='published', health=dict.fromkeys(health, blind)))
    recorded.append(tmp_path / 'a.jsonl', rows)
    monkeypatch.setattr(health_tables, 'HEALTH', tmp_path / 'a.jsonl')
    lines = health_tables.digits('cls', '2', tmp_path)[0].splitlines()
    assert lines[2:] == [
        '| plain student | 50.00 |  | -4.00 | 1 |',
        '| **DSKD** | 56.50 ± 2.12 | +5.00 | +1.50 (p=0.20) | 2 |',
        '| control: soft anchor + logit loss (no diffusion) | 55.00 ± 1.41 | +4.00 |  | 2 |',
    ]
    lines = health_tables.health('digits', 'cls', '2', tmp_path)[0].splitlines()
    assert lines[4:] == ['| **DSKD** | late | 0.20 → 0.10 | 0.50 → 0.70 | 1.00 → 0.50 | 0.20 (0.30) | 98 | 2 |']
    lines = health_tables.health('digits', 'seg', '2', tmp_path)[0].splitlines()
    assert lines[4:] == ['| as published: diffusion and hash alone | late | 0.20 → 0.10 |  |  | 0.20 (0.30) | 98 | 1 |']


def test_methods_of_before_have_tables_of_their_own(tmp_path, monkeypatch):
    """Beside the plain student and DSKD as it is; what is printed after a run has both."""
    path = tmp_path / 'accuracy.jsonl'
    today, before = ['anchor-and-logit', 'kd'], ['beta-8-dskd', 'first-dense', 'earlier-kd', 'guidance-once']
    write_records(path, [('fashion-mnist', name, 0, 80.0) for name in ('plain', 'dskd', *today, *before)])
    monkeypatch.setattr(recorded, 'RESULTS', path)
    for arguments, shown in (('', today), (' before', before)):
        page, _ = report.rewrite(f'<!-- table: fashion-mnist test 5{arguments} -->\n<!-- end -->', tmp_path / 'a.md')
        labels = {line.split('|')[1].strip() for line in page.splitlines() if line.startswith('| ')} - {'method', '---'}
        assert labels == {label_of(name) for name in ('plain', 'dskd', *shown)}
        (command,) = [line for line in page.splitlines() if line.startswith('python')]
        assert set(command.split('--methods ')[1].split()[0].split(',')) == {'plain', 'dskd', *shown}
    assert set(report.compared('fashion-mnist', 'test', 5, path)) == {'plain', 'dskd', *today, *before}
    with pytest.raises(ValueError, match="'today' or 'before', but got 'befor'"):
        report.rewrite('<!-- table: fashion-mnist test 5 befor -->\n<!-- end -->', tmp_path / 'a.md')


def test_rows_of_before_are_compared_with_one_another(tmp_path, monkeypatch):
    """What ran with the earlier weight of the wrong classes: against DSKD and the control of that weight."""
    values = [('dskd', 90.0), ('anchor-and-logit', 89.0), ('beta-8-dskd', 80.0), ('beta-8-anchor-and-logit', 78.0)]
    path = tmp_path / 'accuracy.jsonl'
    write_records(path, [('fashion-mnist', name, 0, value) for name, value in values])
    lines = [line.split('|') for line in report.table('fashion-mnist', 'test', 5, path).splitlines()[2:]]
    ahead = {cells[1].strip(): cells[5].strip() for cells in lines}
    assert ahead == dict(zip((label_of(name) for name, _ in values), ('', '+1.00', '', '+2.00'), strict=True))
    rows = [dict(task='cls', variant=name, seed=0, epochs=2, value=value, health={}) for name, value in values]
    recorded.append(tmp_path / 'health.jsonl', rows)
    monkeypatch.setattr(health_tables, 'HEALTH', tmp_path / 'health.jsonl')
    lines = [line.split('|') for line in health_tables.digits('cls', '2', tmp_path)[0].splitlines()[2:]]
    gains = {cells[1].strip(): cells[4].strip() for cells in lines}
    assert gains == dict(zip((label_of(name) for name, _ in values), ('+1.00', '', '+2.00', ''), strict=True))
