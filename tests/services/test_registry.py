"""The model registry against a real MLflow and S3."""

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from flashslm.infra.registry import champion_record, long_tags, model_registry
from flashslm.infra.registry.model_registry import Lineage, PromotionConflict, RegistryError
from flashslm.infra.storage import lease
from flashslm.infra.storage.errors import ObjectCorrupt, ObjectMissing
from flashslm.infra.storage.lease import LeaseTimeout
from flashslm.infra.tracking import mlflow_runs
from flashslm.infra.tracking.mlflow_client import TrackingClient

pytestmark = pytest.mark.services


@pytest.fixture(scope="module")
def run_id(settings):
    run = mlflow_runs.start_parent_run(settings, "registry-tests")
    yield run
    mlflow_runs.finish_run(settings, run, "FINISHED")


@pytest.fixture
def name() -> str:
    return f"model-{os.urandom(4).hex()}"


@pytest.fixture
def make(store, tmp_path):
    """Store a little model; the same text is the same tree."""

    def put(text: str):
        directory = tmp_path / text
        directory.mkdir(exist_ok=True)
        (directory / "weights").write_text(text)
        return store.put_tree(directory, "exported", {"operators": "DFMF"})

    return put


def aliases(settings, name) -> dict[str, str]:
    return {alias: v.version for v in model_registry.list_versions(settings, name) for alias in v.aliases}


def test_a_life_of_three_versions(settings, name, run_id, make):
    assert model_registry.champion(settings, name) is None and model_registry.list_versions(settings, name) == []
    facts = {"perplexity": 3.25, "device": "cpu-x", "parameters": 7}
    first = model_registry.register(settings, name, make("one"), run_id, facts, {"recipe": "demo"})
    assert aliases(settings, name) == {"challenger": first}
    model_registry.promote(settings, name, first, expected_champion="")
    second = model_registry.register(settings, name, make("two"), run_id, facts | {"perplexity": 3.0})
    assert aliases(settings, name) == {"champion": first, "challenger": second}
    model_registry.promote(settings, name, second, expected_champion=first)
    assert aliases(settings, name) == {"champion": second, "previous": first}
    third = model_registry.register(settings, name, make("three"), run_id, facts)
    model_registry.promote(settings, name, third, expected_champion=second)
    assert aliases(settings, name) == {"champion": third, "previous": second}
    for _ in range(2):  # a second time, as after a kill, it changes nothing
        assert model_registry.rollback(settings, name) == second
    assert aliases(settings, name) == {"champion": second, "previous": third}
    champion = model_registry.champion(settings, name)
    assert champion.version == second and champion.run_id == run_id
    assert champion.facts == {"perplexity": 3.0, "device": "cpu-x", "parameters": 7}
    assert champion.manifest == make("two") and champion.uri == champion.manifest.uri
    versions = model_registry.list_versions(settings, name)
    assert [v.version for v in versions] == [third, second, first] and versions[2].tags == {"recipe": "demo"}


def test_a_retried_registration_and_promotion_change_nothing(settings, name, run_id, make):
    first = model_registry.register(settings, name, make("one"), run_id, {"perplexity": 3.0})
    assert model_registry.register(settings, name, make("one"), run_id, {"perplexity": 3.0}) == first
    model_registry.promote(settings, name, first, "")
    assert model_registry.promote(settings, name, first, "") == first
    assert model_registry.register(settings, name, make("one"), run_id, {"perplexity": 3.0}) == first
    assert aliases(settings, name) == {"champion": first}


def test_a_decision_made_against_another_champion_is_refused(settings, name, run_id, make):
    versions = [model_registry.register(settings, name, make(text), run_id, {}) for text in ("one", "two", "three")]
    model_registry.promote(settings, name, versions[0], "")
    model_registry.promote(settings, name, versions[1], versions[0])
    with pytest.raises(PromotionConflict, match=f"is version {versions[1]}, expected {versions[0]}"):
        model_registry.promote(settings, name, versions[2], versions[0])
    assert aliases(settings, name)["champion"] == versions[1]


def test_of_two_promoters_one_wins(settings, name, run_id, make):
    base, *racers = [model_registry.register(settings, name, make(t), run_id, {}) for t in ("base", "left", "right")]
    model_registry.promote(settings, name, base, "")

    def promote(version: str) -> str:
        try:
            return model_registry.promote(settings, name, version, base)
        except PromotionConflict:
            return ""

    with ThreadPoolExecutor(2) as pool:
        outcomes = list(pool.map(promote, racers))
    winners = [version for version in outcomes if version]
    assert len(winners) == 1
    assert aliases(settings, name)["champion"] == winners[0] and aliases(settings, name)["previous"] == base


def test_two_writers_may_set_one_new_alias_at_the_same_moment(settings, name, run_id, make):
    version = model_registry.register(settings, name, make("one"), run_id, {})
    api = TrackingClient(settings)
    with ThreadPoolExecutor(8) as pool:
        for alias in (f"alias-{turn}" for turn in range(5)):  # MLflow itself refuses about one of eight such writes
            list(pool.map(lambda alias: model_registry._set_alias(api, name, alias, version), [alias] * 8))
    assert {f"alias-{turn}" for turn in range(5)} <= set(aliases(settings, name))


RACER = """
import sys
from flashslm.infra.registry import model_registry
from flashslm.infra.settings import Settings
name, version, expected = sys.argv[1:]
print("ready", flush=True)
sys.stdin.readline()
try:
    print(model_registry.promote(Settings.from_env(), name, version, expected))
except model_registry.PromotionConflict as error:
    print("conflict", error)
"""


def test_of_two_processes_one_wins_and_the_loser_is_told(settings, name, run_id, make):
    base, *racers = [model_registry.register(settings, name, make(t), run_id, {}) for t in ("base", "left", "right")]
    model_registry.promote(settings, name, base, "")
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", RACER, name, version, base],
            env=os.environ | settings.as_env(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for version in racers
    ]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    said = sorted(process.communicate(timeout=300)[0].strip() for process in processes)
    winner = said[0]
    assert winner in racers and said[1].startswith(
        f"conflict champion of '{name}' is version {winner}, expected {base}"
    )
    assert aliases(settings, name) == {"champion": winner, "previous": base, "challenger": racers[-1]} or (
        winner == racers[-1] and aliases(settings, name) == {"champion": winner, "previous": base}
    )


def test_a_version_says_what_it_was_made_of(settings, name, run_id, make):
    data = [make(text).model_copy(update={"kind": "dataset"}) for text in ("data one", "data two")]
    first_lineage = Lineage(
        data=(data[0],),
        config_digest="recipe",
        code_digest="code",
        image="image@sha256:1",
        metrics={"perplexity": 3.5},
        latency_ms={"cpu-a": 1.25, "gpu-b": 0.5},
    )
    first = model_registry.register(settings, name, make("one"), run_id, {}, lineage=first_lineage)
    second_lineage = Lineage(data=(data[1],), parent=first)
    second = model_registry.register(settings, name, make("two"), run_id, {}, {"recipe": "demo"}, second_lineage)
    found = model_registry.find(settings, name, first)
    assert found.lineage == first_lineage and found.tags == {} and found.hook == ""
    child = model_registry.find(settings, name, second)
    assert child.lineage == second_lineage and child.tags == {"recipe": "demo"}
    assert model_registry.seen_data(settings, found) == [data[0]]
    assert model_registry.seen_data(settings, child) == data
    model_registry.record_hook(settings, name, second, "delivered in attempt 1: host answered 200")
    assert model_registry.find(settings, name, second).hook == "delivered in attempt 1: host answered 200"
    assert model_registry.find(settings, name, first).hook == ""


def test_unknown_ancestry_is_an_error(settings, name, run_id, make):
    bare = model_registry.register(settings, name, make("one"), run_id, {})
    with pytest.raises(RegistryError, match=f"version {bare} does not say what it was trained on"):
        model_registry.seen_data(settings, model_registry.find(settings, name, bare))
    lineage = Lineage(data=(make("data"),), parent="99")
    orphan = model_registry.register(settings, name, make("two"), run_id, {}, lineage=lineage)
    with pytest.raises(RegistryError, match=f"version {orphan} was trained from version 99, which is gone"):
        model_registry.seen_data(settings, model_registry.find(settings, name, orphan))


def test_bytes_are_checked_before_registration_and_promotion(settings, store, name, run_id, make):
    manifest = make("one")
    version = model_registry.register(settings, name, manifest, run_id, {})
    key = manifest.uri.split("/", 3)[3]
    store.client.put_object(Bucket=store.bucket, Key=f"{key}/weights", Body=b"onf")
    with pytest.raises(ObjectCorrupt, match="weights"):
        model_registry.promote(settings, name, version, "")
    assert make("one") == manifest  # stored again
    store.client.put_object(Bucket=store.bucket, Key=f"{key}/weights", Body=b"onf")
    with pytest.raises(ObjectCorrupt, match="weights"):
        model_registry.register(settings, name, manifest, "other-run", {})
    store.delete_tree(manifest)
    with pytest.raises(ObjectMissing):
        model_registry.register(settings, name, manifest, run_id, {})
    assert model_registry.champion(settings, name) is None and len(model_registry.list_versions(settings, name)) == 1


@pytest.mark.parametrize("tag", ["flashslm.manifest", "fact.perplexity", "lineage.data"])
def test_a_version_that_cannot_be_read_does_not_stop_the_others(tag, settings, name, run_id, make, caplog):
    facts = {"perplexity": 3.0}
    first, broken, third = [
        model_registry.register(settings, name, make(text), run_id, facts, lineage=Lineage(data=(make("data"),)))
        for text in ("one", "broken", "three")
    ]
    model_registry.promote(settings, name, first, "")
    TrackingClient(settings).set_model_version_tag(name, broken, tag, '{"kind":')
    assert [v.version for v in model_registry.list_versions(settings, name)] == [third, first]
    assert f"version {broken} of model '{name}' cannot be read" in caplog.text
    model_registry.promote(settings, name, third, first)
    assert model_registry.rollback(settings, name) == first
    with pytest.raises(RegistryError, match=f"no version {broken}"):
        model_registry.promote(settings, name, broken, first)


def test_a_champion_that_cannot_be_read_can_be_replaced(settings, name, run_id, make):
    first, second = [model_registry.register(settings, name, make(text), run_id, {}) for text in ("one", "two")]
    model_registry.promote(settings, name, first, "")
    TrackingClient(settings).set_model_version_tag(name, first, "flashslm.manifest", "{")
    with pytest.raises(RegistryError, match=f"no version {first}"):
        model_registry.champion(settings, name)
    current = model_registry.champion_version(settings, name)
    assert current == first
    model_registry.promote(settings, name, second, current)
    assert model_registry.champion(settings, name).version == second


def test_aliases_follow_the_record(settings, store, name, run_id, make):
    first, second = [model_registry.register(settings, name, make(text), run_id, {}) for text in ("one", "two")]
    model_registry.promote(settings, name, first, "")
    model_registry.promote(settings, name, second, first)
    TrackingClient(settings).set_registered_model_alias(name, "champion", first)
    assert model_registry.champion(settings, name).version == second
    there = TrackingClient(settings).get_registered_model(name).aliases
    assert there == {"champion": second, "previous": first}, "they are repaired"


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b'{"champion": "7"}'])
def test_a_damaged_record_is_kept_and_the_aliases_count(content, settings, store, name, run_id, make, caplog):
    first, second = [model_registry.register(settings, name, make(text), run_id, {}) for text in ("one", "two")]
    model_registry.promote(settings, name, first, "", notify=True)
    good = store.get_bytes(champion_record.key_of(name))[0]
    flipped = good.replace(b'"event": "promotion"', b'"event": "promotioN"')
    for damaged in (content, flipped):
        store.client.put_object(Bucket=store.bucket, Key=champion_record.key_of(name), Body=damaged)
        assert model_registry.champion(settings, name).version == first
        assert "is damaged" in caplog.text
    model_registry.promote(settings, name, second, first)
    assert aliases(settings, name) == {"champion": second, "previous": first}
    kept = [store.get_json(key)[0]["base16"] for key in store.list(f"registry/{name}.damaged-")]
    assert {bytes.fromhex(text) for text in kept} == {content, flipped}


def test_a_registry_that_counts_from_one_again_has_no_champion(settings, store, name, run_id, make, caplog):
    version = model_registry.register(settings, name, make("one"), run_id, {})
    model_registry.promote(settings, name, version, "")
    TrackingClient(settings).delete_registered_model(name)
    assert model_registry.champion(settings, name) is None
    again = model_registry.register(settings, name, make("other"), run_id, {})
    assert again == version and model_registry.champion(settings, name) is None
    assert f"names version {version} as champion, but '{name}' has no version of this number" in caplog.text
    model_registry.promote(settings, name, again, "")
    caplog.clear()
    assert model_registry.champion(settings, name).manifest == make("other") and not caplog.text


def test_lineage_of_any_length_is_registered(settings, store, name, run_id, make):
    paths = [f"/data/{number}/{'文' * 40}" for number in range(600)]
    data = make("data").model_copy(update={"metadata": {"source": paths}})
    lineage = Lineage(data=(data,), metrics={"perplexity": 3.0})
    version = model_registry.register(settings, name, make("one"), run_id, {}, {"note": "x" * 300_000}, lineage)
    found = model_registry.find(settings, name, version)
    assert found.lineage == lineage and found.tags == {"note": "x" * 300_000}
    other = model_registry.register(settings, name, make("two"), run_id, {})
    for key in store.list(long_tags.PREFIX):
        store.client.put_object(Bucket=store.bucket, Key=key, Body=b'"other"')
    assert [v.version for v in model_registry.list_versions(settings, name)] == [other]


def test_nothing_to_roll_back_and_no_such_version(settings, name, run_id, make):
    version = model_registry.register(settings, name, make("one"), run_id, {})
    model_registry.promote(settings, name, version, "")
    with pytest.raises(RegistryError, match="nothing to roll back to"):
        model_registry.rollback(settings, name)
    with pytest.raises(RegistryError, match="no version 99"):
        model_registry.promote(settings, name, "99", version)


def test_a_lease_has_one_holder_and_a_dead_holders_ends(store):
    key = f"leases/test/{os.urandom(4).hex()}.json"
    second = lease.hold(store, key, ttl_s=600, wait_s=0.3)
    with lease.hold(store, key, ttl_s=600), pytest.raises(LeaseTimeout, match="held by another"), second:
        pytest.fail("two holders")
    with lease.hold(store, key, ttl_s=600, wait_s=0.0):  # given back: free at once
        pass
    store.put_json(key, {"holder": "a dead process", "expires_s": time.time() + 0.5})
    with lease.hold(store, key, ttl_s=600, wait_s=300) as held:
        held.check()
        assert store.get_json(key)[0]["holder"] not in ("", "a dead process")


HOLDER = """
import os, sys
from flashslm.infra.settings import Settings
from flashslm.infra.storage import lease
from flashslm.infra.storage.object_store import ObjectStore
with lease.hold(ObjectStore(Settings.from_env()), sys.argv[1], ttl_s=600):
    os._exit(9)
"""


def test_a_lease_ends_with_its_holders_process(settings, store):
    key = f"leases/test/{os.urandom(4).hex()}.json"
    holder = subprocess.run([sys.executable, "-c", HOLDER, key], env=os.environ | settings.as_env(), check=False)
    assert holder.returncode == 9 and store.get_json(key)[0]["expires_s"] > time.time() + 500
    with lease.hold(store, key, wait_s=0.0):
        pass
    elsewhere = {"holder": "x", "owner": "another-host/pid:[1] 7 1000.0", "expires_s": time.time() + 60}
    store.put_json(key, elsewhere)
    with pytest.raises(LeaseTimeout), lease.hold(store, key, wait_s=0.0):
        pytest.fail("its process may live")


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"\xff", b'{"holder": 7}', b'{"holder": "x", "expires_s": "soon"}']
)
def test_a_damaged_lease_is_taken_over(content, store):
    key = f"leases/test/{os.urandom(4).hex()}.json"
    store.client.put_object(Bucket=store.bucket, Key=key, Body=content)
    with lease.hold(store, key, wait_s=0.0) as held:
        held.check()


def test_a_holder_that_took_too_long_may_not_act(store):
    key = f"leases/test/{os.urandom(4).hex()}.json"
    with lease.hold(store, key, ttl_s=0.2) as slow:
        time.sleep(0.25)
        with lease.hold(store, key, ttl_s=600, wait_s=300), pytest.raises(LeaseTimeout, match="ran out"):
            slow.check()
