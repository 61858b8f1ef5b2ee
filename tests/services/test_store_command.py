"""`flashslm store`: what is damaged is found and put back, what nothing needs is listed and removed, the rest stays."""

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from flashslm.cli.app import app
from flashslm.config import RunConfig
from flashslm.infra.registry import model_registry
from flashslm.infra.registry.model_registry import Lineage
from flashslm.infra.settings import Settings
from flashslm.infra.storage import long_sections
from flashslm.infra.storage.audit import stored_trees
from flashslm.infra.storage.object_store import Manifest, ObjectStore
from flashslm.infra.tracking import mlflow_runs
from flashslm.launch.schedule.records import Schedule, Schedules
from tests.unit.launch.local.test_kept_results import keep
from tests.waiting import wait_until

pytestmark = pytest.mark.services


class Shop:
    """One user's home and runs beside a store."""

    def __init__(self, settings: Settings, store: ObjectStore, directory: Path) -> None:
        self.settings, self.store, self.directory = settings, store, directory
        self.home, self.runs = directory / "home", directory / "runs"
        self.home.mkdir()
        self.runs.mkdir()

    def tree(self, kind: str = "model", **metadata: Any) -> Manifest:
        root = self.directory / "trees" / os.urandom(6).hex()
        root.mkdir(parents=True)
        (root / "file").write_bytes(os.urandom(40))
        return self.store.put_tree(root, kind, metadata)

    def command(self, *arguments: str) -> dict[str, Any]:
        places = ["--home", str(self.home), "--runs", str(self.runs), "--json"]
        result = CliRunner().invoke(app, ["store", *arguments, *places])
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return dict(json.loads(result.stdout)) | {"exit_code": result.exit_code}

    def checkpoint(self, run_key: str, step: int = 1) -> Manifest:
        manifest = self.tree("checkpoint")
        pointer = {
            "step": step,
            "trees": [manifest.model_dump(mode="json")],
            "values": {},
            "validation_loss_nats": None,
        }
        self.store.put_json(f"checkpoints/{run_key}/{step:08d}.json", pointer)
        return manifest

    def names(self, found: dict[str, Any]) -> set[str]:
        return {row["name"] for row in found["garbage"]}


@pytest.fixture
def shop(platform_env: Settings, store: ObjectStore, tmp_path: Path) -> Shop:
    return Shop(platform_env, store, tmp_path)


def make_old(path: Path) -> Path:
    for found in (*path.rglob("*"), path):
        os.utime(found, (time.time() - 90 * 86_400,) * 2)
    return path


def test_damage_is_found_and_put_back_from_a_local_copy(shop: Shop) -> None:
    good, copied, lost = shop.tree(), shop.tree(), shop.tree()
    shop.store.get_tree(copied, shop.home / "trees" / copied.sha256)
    for manifest in (copied, lost):
        key = manifest.uri.split("/", 3)[3] + "/file"
        shop.store.client.put_object(Bucket=shop.store.bucket, Key=key, Body=b"x")
    shop.store.client.put_object(Bucket=shop.store.bucket, Key="checkpoints/k/1.json", Body=b"{")
    found = shop.command("verify")
    damages = {damage["key"]: damage["is_restored"] for damage in found["damages"]}
    expected = {shop.store.index_key(copied): True, shop.store.index_key(lost): False, "checkpoints/k/1.json": False}
    assert damages == expected and found["exit_code"] == 1 and found["trees"] >= 3
    shop.store.verify_tree(copied)
    assert shop.store.index_key(good) in stored_trees(shop.store)
    shop.store.delete(["checkpoints/k/1.json"])
    assert shop.command("verify")["damages"] == [], "what was lost is out of the store"


def test_only_what_nothing_needs_goes_and_only_when_that_is_asked_for(shop: Shop) -> None:
    name = f"model-{os.urandom(4).hex()}"
    registered, data, planned, cached, of_run, kernels, loose = (shop.tree() for _ in range(7))
    run_id = mlflow_runs.start_parent_run(shop.settings, name)
    mlflow_runs.finish_run(shop.settings, run_id, "FINISHED")
    model_registry.register(shop.settings, name, registered, run_id, {}, lineage=Lineage(data=(data,)))
    recipe = RunConfig(name="toy").model_dump(mode="json") | {"note": planned.uri}
    schedule = {"name": f"s-{os.urandom(4).hex()}", "pipeline": "retraining", "cron": "0 2 * * *", "time_zone": "UTC"}
    Schedules(shop.store).create(Schedule.model_validate(schedule | {"recipe": recipe, "settled_s": 0.0}))
    keep(shop.home, "kept", cached.sha256, cached.uri)
    shop.store.put_json(f"kernels/{os.urandom(8).hex()}.json", kernels.model_dump(mode="json"))
    finished, going_on = f"finished-{os.urandom(4).hex()}", f"going-on-{os.urandom(4).hex()}"
    ended, live = shop.checkpoint(finished), shop.checkpoint(going_on)
    model = shop.tree("checkpoint", run_key=finished)
    _, manifest_file = keep(shop.home, "checkpoint", model.sha256, model.uri)
    model.write(manifest_file)
    shop.store.put_json(scaled := f"scaling/{finished}/2-8.json", {})
    run = shop.runs / "20261127-070000-toy"
    of_run.write(run / "artifacts" / "report.json")
    old_run = make_old(of_run.write(shop.runs / "20260101-070000-toy" / "artifacts" / "x.json").parents[1])
    mine = make_old(of_run.write(shop.runs / "my-notes" / "x.json").parent)

    found = shop.command("gc", "--days", "30")
    assert {ended.sha256, f"checkpoints/{finished}/00000001.json", str(old_run)} <= shop.names(found)
    assert not shop.names(found) & {loose.sha256, live.sha256, str(run), str(mine)}, "too young, or no run"
    everything = shop.names(shop.command("gc", "--days", "0"))
    assert {loose.sha256, scaled} <= everything
    assert not everything & {manifest.sha256 for manifest in (registered, data, planned, kernels)}
    for manifest in (registered, data, planned, cached, of_run, loose, model, ended, live):
        shop.store.verify_tree(manifest)  # nothing was removed yet

    assert shop.command("gc", "--days", "30", "--delete")["deleted"]
    for manifest in (registered, data, planned, cached, of_run, loose, model, live):
        shop.store.verify_tree(manifest)
    assert shop.store.list(ended.uri.split("/", 3)[3]) == [] and not old_run.exists() and run.exists() and mine.exists()
    assert shop.store.list(f"checkpoints/{finished}/") == [] and len(shop.store.list(f"checkpoints/{going_on}/")) == 1
    assert not shop.names(shop.command("gc", "--days", "30")) & {ended.sha256, str(old_run)}
    Schedules(shop.store).delete(schedule["name"])  # other tests of this store list schedules


def stored_after_its_outcome(store: ObjectStore, run_key: str) -> bool:
    """Store the checkpoint's pointer again; whether the store's clock, which may count seconds, calls it newer."""
    pointer, outcome = f"checkpoints/{run_key}/00000001.json", f"pretraining/{run_key}/outcome.json"
    found = store.get_json(pointer)
    assert found is not None
    store.put_json(pointer, found[0])
    return store.entries(pointer)[pointer].modified_s > store.entries(outcome)[outcome].modified_s


@pytest.mark.parametrize("again", [False, True])
def test_checkpoints_of_a_training_that_is_done_again_stay(shop: Shop, again: bool) -> None:
    """Its outcome is that of the run before: a step whose processes alone were changed has the same key."""
    run_key = f"again-{os.urandom(4).hex()}"
    tree = shop.checkpoint(run_key)
    shop.store.put_json(f"pretraining/{run_key}/outcome.json", {})
    if again:
        wait_until(lambda: stored_after_its_outcome(shop.store, run_key))
    found = shop.names(shop.command("gc", "--days", "30"))
    assert (tree.sha256 in found, f"checkpoints/{run_key}/00000001.json" in found) == (not again, not again)


def test_long_sections_of_recipes_stay_whatever_their_age(shop: Shop) -> None:
    """A run that waits or goes on elsewhere, and a schedule of a cluster, name them where nothing here can look."""
    section = {"paths": [f"{os.urandom(8).hex()}/{number}.txt" for number in range(400)]}
    (digest,) = long_sections.shortened(section, lambda: shop.store).values()
    reference = json.dumps({"data": {"stored_section": digest}})
    assert not {name for name in shop.names(shop.command("gc", "--days", "0", "--delete")) if digest in name}
    assert json.loads(long_sections.whole(reference, shop.store)) == {"data": section}


def test_the_latest_run_and_a_home_in_use_are_left_alone(shop: Shop) -> None:
    latest = make_old(shop.tree().write(shop.runs / "20260101-070000-toy" / "artifacts" / "x.json").parents[1])
    (shop.runs / "latest").symlink_to(latest.name)
    assert str(latest) not in shop.names(shop.command("gc"))
    from flashslm.launch.processes import LaunchError, exclusive

    with exclusive(shop.home / "kfp" / "lock"):
        refused = CliRunner().invoke(app, ["store", "gc", "--home", str(shop.home)])
    assert isinstance(refused.exception, LaunchError) and "another run uses" in str(refused.exception)
