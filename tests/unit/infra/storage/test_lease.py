"""A lease whose store goes away before it is given back; the rest is in tests/services/test_registry.py."""

import pytest

from flashslm.infra.process.interrupts import Terminated
from flashslm.infra.storage import lease
from flashslm.infra.storage.errors import StoreUnavailable
from tests.unit.launch.schedule.memory_store import MemoryStore


class Mortal(MemoryStore):
    """One that stops to answer."""

    is_away = False

    def put_json(self, key, value, **condition):
        if self.is_away:
            raise StoreUnavailable("S3 does not answer")
        return super().put_json(key, value, **condition)


@pytest.mark.parametrize("error", [Terminated(143), KeyboardInterrupt(), ValueError("the caller's own")])
def test_what_ends_the_holder_is_not_replaced_by_a_store_that_is_away(error: BaseException) -> None:
    store = Mortal()
    with pytest.raises(type(error)) as caught, lease.hold(store, "leases/x"):  # type: ignore[arg-type]
        store.is_away = True
        raise error
    assert caught.value is error


def test_work_that_is_done_is_done_though_the_lease_cannot_be_given_back() -> None:
    store = Mortal()
    with lease.hold(store, "leases/x") as held:  # type: ignore[arg-type]
        held.check()
        store.is_away = True
    assert store.get_json("leases/x")[0]["holder"], "it runs out by itself"
