"""What the tests of all sites share."""

import pytest
from mmengine.config import ConfigDict


@pytest.fixture(scope='module')
def configs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, ConfigDict]:
    """A distiller's config for each of the module's KINDS, with its SITES if it has any; a checkpoint is written once."""
    from support import dense_distiller_config

    folder = tmp_path_factory.mktemp('teachers')
    sites = getattr(request.module, 'SITES', {})
    made = {}
    for kind in request.module.KINDS:
        (folder / kind).mkdir()
        options = dict(site=dict(type=sites[kind])) if kind in sites else {}
        made[kind] = dense_distiller_config(kind.split('@')[0], str(folder / kind), **options)
    return made
