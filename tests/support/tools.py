"""Running command-line tools: as processes of their own, or in this one, which spares the imports."""

import contextlib
import json
import os
import pickle
import random
import runpy
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any


def environment(**variables: str) -> dict[str, str]:
    """Return the environment of a process that a test starts: one thread, our interpreter; a PYTHONPATH is put before ours.

    Args:
        **variables (str): Added to the environment.
    """
    found = {**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHON': sys.executable, **variables}
    if 'PYTHONPATH' in variables and 'PYTHONPATH' in os.environ:
        found['PYTHONPATH'] = os.pathsep.join((variables['PYTHONPATH'], os.environ['PYTHONPATH']))
    return found


def run_process(*command: Any, **variables: str) -> str:
    """Run a command from the home directory, so that nothing is found by chance, and return what it printed.

    Args:
        *command (Any): The command and its arguments.
        **variables (str): Added to the environment.

    Raises:
        AssertionError: If it fails; with the end of its output.
    """
    done = subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        env=environment(**variables),
        cwd=Path.home(),
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


def free_port() -> str:
    """A port of this machine for processes to meet at, as an environment variable holds it."""
    # Below those that the system gives to connections: such a one may be taken again before the process listens on it.
    draw = random.SystemRandom()
    while True:
        port = draw.randint(20000, 29999)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(('127.0.0.1', port))
            return str(port)


def run_script(script: Path, *arguments: Any) -> None:
    """Run a script's main part in this process.

    Args:
        script (Path): The script.
        *arguments (Any): What follows its name on the command line.
    """
    before = sys.argv
    sys.argv = [script.name, *map(str, arguments)]
    if '--resume' in sys.argv:
        time.sleep(1)  # mmengine names the folder of a run by the second in which it begins: that of the one before is taken
    try:
        runpy.run_path(str(script), run_name='__main__')
    finally:
        sys.argv = before


def named(name: str) -> list[str]:
    """Options for ``--cfg-options`` of a run in this process: mmengine keeps loggers and visualizers by their names."""
    return [f'experiment_name={name}', f'visualizer.name={name}']


def scalars(work_dir: Path) -> list[dict[str, Any]]:
    """What the latest run in a folder logged, line by line."""
    log = max(work_dir.glob('*/vis_data/scalars.json'))
    return [json.loads(line) for line in log.read_text(encoding='utf-8').splitlines()]


def predictions(path: Path) -> list[dict[str, Any]]:
    """What mmengine's DumpResults wrote in this test; a pickle of anybody else is not to be read."""
    return pickle.loads(path.read_bytes())
