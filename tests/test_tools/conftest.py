"""What all runs of the command-line tools have in common."""

from collections.abc import Iterator

import pytest


@pytest.fixture(scope='module', autouse=True)
def _no_formatting() -> Iterator[None]:
    """The runner prints its config often, and formatting takes longer than these runs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr('yapf.yapflib.yapf_api.FormatCode', lambda text, **options: (text, True))
        yield
