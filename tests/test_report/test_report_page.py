"""The page: well-formed, whole without any network, and quiet in a browser, light and dark."""

import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from dskd_mm.report import build_report, read_runs
from support import run_process
from support.browser import BROWSER, Screen, visit

SECTIONS = ['Results', 'Health', 'What each loss contributes', 'Classes', 'Pictures', 'Do it again']


class Page(HTMLParser):
    """Checks that tags close as they opened, and collects what is in a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.words = ''
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if 'style' not in self.open:
            self.words += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.found if name == tag]


@pytest.fixture(scope='module')
def report(work_dirs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Written by the command, of a folder with pictures."""
    out, see = tmp_path_factory.mktemp('report') / 'page.html', work_dirs['dskd_seed0'] / 'see'
    see.mkdir(exist_ok=True)
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2, 1))
    figure.subplots().plot([1, 2])
    figure.savefig(see / 'maps.png')
    folders = [work_dirs[name] for name in ('dskd_seed0', 'dskd_seed1', 'plain')]
    printed = run_process(sys.executable, '-m', 'dskd_mm', 'report', *folders, '--out', out)
    assert str(out) in printed
    return out


def test_the_page_is_whole_and_well_formed(report: Path) -> None:
    text = report.read_text(encoding='utf-8')
    page = Page(text)
    assert re.findall(r'<h2>([^<]*)', text) == SECTIONS
    for attrs in (attrs for _, attrs in page.found):
        for name in ('src', 'href', 'xlink:href', 'srcset'):
            assert (attrs.get(name) or 'data:').startswith('data:'), attrs
    assert not re.search(r'@import|url\(', text) and not page.all('script')
    assert 'nan' not in ' '.join(re.findall(r'points="([^"]*)"', text))
    assert [attrs['alt'] for attrs in page.all('img')] == [
        "The student's feature, what the sampling steps make of it, and the teacher's."
    ]
    assert all(attrs.get('aria-label') or attrs.get('aria-hidden') for attrs in page.all('svg'))
    for words in ('DSKD+maps student', 'Plain student', 'Teacher', 'loss_dskd_anchor', 'loss_maps', 'not judged', 'dskd train'):
        assert words in page.words, words


def test_verdicts_are_words(report: Path) -> None:
    marks = re.findall(r'<span class="verdict-([\w-]+)">([^<]+)</span>', report.read_text(encoding='utf-8'))
    assert len(marks) > 15 and all(name == words.replace(' ', '-') for name, words in marks)


def test_one_plain_run_is_a_report_too(work_dirs: dict[str, Path]) -> None:
    page = Page(build_report(read_runs([work_dirs['plain']])))
    assert 'none is distilled' in page.words and 'dskd see CONFIG CHECKPOINT' in page.words


def test_a_run_that_has_only_begun_is_a_report_too(work_dirs: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(work_dirs['dskd_seed0'], tmp_path / 'begun')
    (log,) = (tmp_path / 'begun').glob('*/vis_data/scalars.json')
    log.write_text(log.read_text(encoding='utf-8').splitlines(keepends=True)[0], encoding='utf-8')
    page = Page(build_report(read_runs([tmp_path / 'begun'])))
    assert 'Nothing is evaluated yet' in page.words


def test_a_diverged_run_is_a_report_too(work_dirs: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(work_dirs['plain'], tmp_path / 'diverged')
    (log,) = (tmp_path / 'diverged').glob('*/vis_data/scalars.json')
    rows = [json.loads(line) for line in log.read_text(encoding='utf-8').splitlines()]
    trained = [row for row in rows if 'loss' in row]
    for row in trained[len(trained) // 2 :]:
        row['loss'] = float('inf')
    log.write_text(''.join(json.dumps(row) + '\n' for row in rows), encoding='utf-8')
    page = build_report(read_runs([tmp_path / 'diverged', work_dirs['dskd_seed0']]))
    step = trained[len(trained) // 2]['step']
    assert f'The loss of the Plain student is not finite from iteration {step} on.' in Page(page).words
    assert 'nan' not in ''.join(re.findall(r'points="[^"]*"|width:[^;"]*', page))


def test_the_commands_train_beside_what_is_there(work_dirs: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / 'a run'
    shutil.copytree(work_dirs['plain'], folder)
    (config,) = folder.glob('*/vis_data/config.py')
    config.write_text(config.read_text(encoding='utf-8') + '\nresume = True\n', encoding='utf-8')
    words = Page(build_report(read_runs([folder]))).words
    command = f"dskd train '{folder}/toy_plain.py' --work-dir '{folder}_again' --cfg-options resume=False"
    assert command in words and f"dskd report '{folder}'" in words


def test_mistakes_are_told(work_dirs: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"--metric expects one that the runs have logged, \['accuracy/top1'\], but got 'mAP'"):
        build_report(read_runs([work_dirs['plain']]), 'mAP')
    done = subprocess.run([sys.executable, '-m', 'dskd_mm', 'report', str(tmp_path)], capture_output=True, text=True)
    assert done.returncode != 0 and 'Expected the folder of a training' in done.stderr


@pytest.mark.skipif(BROWSER is None, reason='no chromium or chrome is installed')
@pytest.mark.parametrize(('width', 'dark'), [(500, True), (1200, False)], ids=['narrow and dark', 'wide and light'])
def test_in_a_browser(report: Path, tmp_path: Path, width: int, dark: bool) -> None:
    screen: Screen = visit(report, tmp_path / 'screen.png', width, dark)
    assert screen.console == []
    assert screen.overflow <= 0, 'nothing is wider than the screen'
    assert screen.hidden == [], 'every figure takes room'
    corner = screen.picture[5, 5]
    assert bool(corner.mean() < 80) is dark
    # Each chart and picture has ink.
    for top, bottom, left, right in screen.boxes:
        piece = screen.picture[top:bottom, left:right].reshape(-1, 3)
        assert len({tuple(color) for color in piece[:: max(1, len(piece) // 5000)].tolist()}) > 1
