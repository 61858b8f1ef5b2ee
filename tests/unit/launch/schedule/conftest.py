import pytest

from tests.unit.launch.schedule.world import World


@pytest.fixture
def world() -> World:
    return World()
