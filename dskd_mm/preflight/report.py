"""What a check finds, and how it is told."""

import difflib
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

from mmengine.config import Config
from rich.table import Table
from torch import nn

MARKS = dict(ok='[green]ok', warning='[yellow]warning', fault='[bold red]FAULT')
"""How a table shows the levels of findings."""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        part (str): Of :data:`~dskd_mm.preflight.PARTS`.
        subject (str): What was looked at.
        text (str): What was found; of a fault, what was expected, what came, and the mend.
        level (str): 'fault' if training cannot run so, 'warning' if it runs, and hardly as it is meant. Defaults to 'ok'.
    """

    part: str
    subject: str
    text: str
    level: Literal['ok', 'warning', 'fault'] = 'ok'


@dataclass
class Report:
    """What one part of a check has learned and the next ones need.

    Attributes:
        cfg (Config): The whole config, of a distiller or of a plain model. It is not changed.
        thorough (bool): Whether time may be spent: data sets are read and checkpoints downloaded, as training would do.
        findings (list[Finding]): What was found so far.
        part (str): The part that looks at present.
        model (nn.Module, optional): The model without memory for its weights.
        teacher (nn.Module, optional): The teacher, likewise.
        has_teacher_weights (bool): Whether the teacher's checkpoint fits it.
        image_size (tuple[int, int], optional): Height and width of the largest training image that was seen.
        ends_in_one_image (bool): Whether the last batch of an epoch is known to have a single image.
        classes (dict[str, list[str]]): Names of the classes of the data sets that were built, by their keys in the config.
    """

    cfg: Config
    thorough: bool = True
    findings: list[Finding] = field(default_factory=list)
    part: str = ''
    model: nn.Module | None = None
    teacher: nn.Module | None = None
    has_teacher_weights: bool = False
    image_size: tuple[int, int] | None = None
    ends_in_one_image: bool = False
    classes: dict[str, list[str]] = field(default_factory=dict)

    @property
    def faults(self) -> list[Finding]:
        """Return what keeps the config from training."""
        return [finding for finding in self.findings if finding.level == 'fault']

    def note(self, subject: str, text: str) -> None:
        """Keep what was found."""
        self.findings.append(Finding(self.part, subject, text))

    def warn(self, subject: str, text: str) -> None:
        """Keep what trains, and hardly as it is meant."""
        self.findings.append(Finding(self.part, subject, text, 'warning'))

    def fault(self, subject: str, text: str) -> None:
        """Keep what cannot train."""
        self.findings.append(Finding(self.part, subject, text, 'fault'))

    @contextmanager
    def faults_in(self, subject: str) -> Iterator[None]:
        """Take whatever is raised for a fault."""
        try:
            yield
        except Exception as error:
            self.fault(subject, explain(error))


def explain(error: BaseException) -> str:
    """Return an error in one line, without what mmengine puts around it; types that are nearly right are named."""
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    text = re.sub(r'^(class `\w+` in \S+: )+', '', text)
    unknown = re.match(r'(\S+) is not in the (.+?) registry', text)
    if unknown:
        from dskd_mm.registry import MODELS

        name = unknown[1].rpartition('.')[2]
        near = difflib.get_close_matches(name, MODELS.module_dict, n=3)
        hint = f' Did you mean {" or ".join(f"dskd_mm.{one}" for one in near)}?' if near else ''
        return f'Expected a type that is registered, but nothing is under the name {unknown[1]!r} ({unknown[2]}).{hint}'
    return text if isinstance(error, (ValueError, OSError)) and text else f'{type(error).__name__}: {text}'


def report_table(findings: Sequence[Finding], title: str) -> Table:
    """Return a table for a terminal."""
    table = Table(title=title, title_justify='left', show_lines=False)
    for column in ('part', 'what', '', 'found'):
        table.add_column(column, overflow='fold', no_wrap=column in ('part', ''))
    for finding in findings:
        # Texts hold brackets of their own.
        table.add_row(finding.part, finding.subject, MARKS[finding.level], finding.text.replace('[', r'\['))
    return table
