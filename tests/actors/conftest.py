"""One local Ray for the folder."""

import pytest

from tests.support.ray_stores import local_ray


@pytest.fixture(scope="package")
def cluster():
    """Two CPUs, and one GPU that exists only in Ray's books: for all files of this folder, each of which ends what it
    started."""
    with local_ray(num_gpus=1):
        yield
