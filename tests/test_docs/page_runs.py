"""Running what a page prints."""

import contextlib
import re
import shlex
from pathlib import Path

from dskd_mm.cli.main import main

BLOCK = re.compile(r'^```(python|shell)\n(.*?)^```', re.DOTALL | re.MULTILINE)
SCRIPTS = {'tools/train.py': 'train', 'tools/test.py': 'test', 'tools/misc/print_config.py': 'config'}
"""Scripts, and the commands that run the same code."""


def run_page(page, shorter=(), skip=()):
    """Run the blocks of a page in their order in the current folder.

    Python that names a file in its first line is written there, other Python is run; commands are run in this process.

    Returns:
        dict: What the Python left behind.
    """
    text = page.read_text(encoding='utf-8')
    for long, short in shorter:
        assert long in text, long
        text = text.replace(long, short)
    names = {}
    for language, code in BLOCK.findall(text):
        file = re.match(r'# (\w+\.py)\n', code)
        if language == 'python' and code.startswith(tuple(f'from {package}.' for package in skip)):
            continue
        if file:
            Path(file[1]).write_text(code, encoding='utf-8')
        elif language == 'python':
            exec(compile(code, str(page), 'exec'), names)
        else:
            for line in code.replace('\\\n', ' ').splitlines():
                run_command(line)
    return names


def run_command(line):
    """Run one command of `dskd` or of `tools/`, its output into a file where it says so."""
    command, _, file = line.partition(' > ')
    program, *arguments = shlex.split(command)
    if program == 'python':
        program, arguments = 'dskd', [SCRIPTS[arguments[0]], *arguments[1:]]
    assert program == 'dskd', line
    with contextlib.ExitStack() as stack:
        if file:
            stack.enter_context(contextlib.redirect_stdout(stack.enter_context(open(file, 'w', encoding='utf-8'))))
        main(arguments)
