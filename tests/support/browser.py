"""A headless browser, where there is one: what it draws of a page and what its console says."""

import json
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

BROWSER = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)
# What is measured in the page, written into its title, which --dump-dom prints.
PROBE = """
<script>
window.onload = () => {
  const boxes = [...document.querySelectorAll('figure svg, figure img, svg.spark')].map(e => e.getBoundingClientRect());
  document.title = 'probe ' + JSON.stringify({
    overflow: document.documentElement.scrollWidth - document.documentElement.clientWidth,
    height: document.documentElement.scrollHeight,
    boxes: boxes.map(b => [b.top, b.bottom, b.left, b.right].map(Math.round)),
  });
};
</script></head>
"""


@dataclass
class Screen:
    """What a browser shows.

    Attributes:
        console (list[str]): What its console says.
        overflow (int): By how many pixels the page is wider than the screen.
        boxes (list[list[int]]): Top, bottom, left and right of each chart and picture.
        hidden (list[list[int]]): Those that take no room.
        picture (np.ndarray): The whole page, (H, W, 3).
    """

    console: list[str]
    overflow: int
    boxes: list[list[int]]
    hidden: list[list[int]]
    picture: np.ndarray


def visit(page: Path, picture: Path, width: int, dark: bool) -> Screen:
    """Open a page of HTML.

    Args:
        page (Path): The page.
        picture (Path): Where the screenshot goes.
        width (int): Of the screen; windows are at least 500 wide.
        dark (bool): Whether the reader wishes a dark page.
    """
    probed = picture.with_name('probed.html')
    probed.write_text(page.read_text(encoding='utf-8').replace('</head>', PROBE, 1), encoding='utf-8')
    printed = run(probed, width, 2000, dark, '--dump-dom').stdout
    found = json.loads(re.search(r'<title>probe ({.*?})</title>', printed)[1])
    done = run(page, width, found['height'], dark, f'--screenshot={picture}')
    console = [line for line in done.stderr.splitlines() if 'CONSOLE' in line]
    return Screen(
        console=console,
        overflow=found['overflow'],
        boxes=found['boxes'],
        hidden=[box for box in found['boxes'] if box[1] - box[0] < 8 or box[3] - box[2] < 8],
        picture=cv2.imread(str(picture)),
    )


def run(page: Path, width: int, height: int, dark: bool, action: str) -> subprocess.CompletedProcess:
    """Start the browser once; by --blink-settings it prefers a dark page (0) or a light one (1)."""
    options = [
        '--headless',
        '--no-sandbox',
        '--disable-gpu',
        '--hide-scrollbars',
        '--enable-logging=stderr',
        '--disable-extensions',
    ]
    options += [f'--window-size={width},{height}', f'--blink-settings=preferredColorScheme={0 if dark else 1}']
    return subprocess.run([BROWSER, *options, action, page.as_uri()], capture_output=True, text=True, timeout=120, check=True)
