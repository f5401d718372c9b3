"""Reading what a run has logged."""

import json
from pathlib import Path
from typing import Any


def read_scalars(work_dir: str | Path) -> list[dict[str, Any]]:
    """Read the log of the latest run in a work dir, as mmengine's ``LocalVisBackend`` writes it.

    Args:
        work_dir (str | Path): The work dir of the run.

    Returns:
        list[dict]: One dict per logged step, oldest first: losses, ``time``, ``epoch`` and ``step`` in training, metrics and
        ``step`` in validation. Empty if nothing has been logged yet.
    """
    # mmengine names a run's folder by the time of its start.
    logs = sorted(Path(work_dir).glob('*/vis_data/scalars.json'))
    if not logs:
        return []
    rows = []
    for line in logs[-1].read_text(encoding='utf-8').splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break  # the run is writing this line right now
    return rows
