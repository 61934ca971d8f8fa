"""One local Ray for the folder."""

import pytest

from tests.support.ray_stores import local_ray


@pytest.fixture(scope="package")
def cluster():
    """One for all files of this folder, each of which ends what it started."""
    with local_ray():
        yield
