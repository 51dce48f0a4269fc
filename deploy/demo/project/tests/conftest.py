import uuid

import pytest

from tally.store import Store, connect


@pytest.fixture
def store():
    """A tally of its own for each test, forgotten afterwards."""
    tally = Store(connect(), f"test-{uuid.uuid4()}")
    yield tally
    tally.clear()
