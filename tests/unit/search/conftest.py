import pytest

from tests.unit.search import synthetic


@pytest.fixture(scope="session")
def table():
    return synthetic.make_table()
