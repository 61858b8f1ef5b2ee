"""What launches want of KFP: pipelines and their versions, experiments, runs."""

import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

from flashslm.launch.kfp.api import Connection, KfpError, NotFound, Unavailable
from flashslm.launch.kfp.cluster_pass import ClusterPackage

_PAGE = 100


class KfpClient:
    """Objects of one KFP installation; `namespace` counts where it serves several users."""

    def __init__(self, connection: Connection, namespace: str):
        import kfp_server_api as api

        self.connection = connection
        self._namespace = namespace
        self.pipelines = api.PipelineServiceApi(connection.client)
        self.uploads = api.PipelineUploadServiceApi(connection.client)
        self.experiments = api.ExperimentServiceApi(connection.client)
        self.runs = api.RunServiceApi(connection.client)
        self.recurring_runs = api.RecurringRunServiceApi(connection.client)
        self._health = api.HealthzServiceApi(connection.client)

    @cached_property
    def namespace(self) -> str:
        """The namespace of every object, or an empty string: an installation for one user refuses any."""
        multi_user = self.connection.call(self._health.healthz_service_get_healthz).multi_user
        return self._namespace if multi_user else ""

    @property
    def _in_namespace(self) -> dict[str, str]:
        return {"namespace": self.namespace} if self.namespace else {}

    def publish(self, package: ClusterPackage) -> Any:
        """The V2beta1PipelineVersion of a package, uploaded unless it is there."""
        import kfp_server_api as api

        body = api.V2beta1Pipeline(
            name=package.name, display_name=package.name, description=package.description, **self._in_namespace
        )
        create = self.pipelines.pipeline_service_create_pipeline
        pipeline = self.connection.create(lambda: self.pipeline(package.name), create, pipeline=body)
        with tempfile.TemporaryDirectory(prefix="flashslm-upload-") as directory:
            file = Path(directory) / "pipeline.yaml"
            file.write_text(package.text(), encoding="utf-8")
            return self.connection.create(
                lambda: self._version(pipeline.pipeline_id, package.version),
                self.uploads.upload_pipeline_version,
                str(file),
                name=package.version,
                pipelineid=pipeline.pipeline_id,
            )

    def pipeline(self, name: str) -> Any:
        """The V2beta1Pipeline of that name, or None."""
        method = self.pipelines.pipeline_service_get_pipeline_by_name
        try:
            return self.connection.call(method, name, **self._in_namespace)
        except NotFound:
            return None

    def _version(self, pipeline_id: str, name: str) -> Any:
        method = self.pipelines.pipeline_service_list_pipeline_versions
        return self._only("version", name, self._listed(method, "pipeline_versions", name, pipeline_id=pipeline_id))

    def experiment(self, name: str) -> Any:
        """The V2beta1Experiment of that name, made unless it is there."""
        import kfp_server_api as api

        list_method = self.experiments.experiment_service_list_experiments
        return self.connection.create(
            lambda: self._only(
                "experiment", name, self._listed(list_method, "experiments", name, **self._in_namespace)
            ),
            self.experiments.experiment_service_create_experiment,
            experiment=api.V2beta1Experiment(display_name=name, **self._in_namespace),
        )

    def start(self, version: Any, experiment: Any, name: str, arguments: dict[str, Any], service_account: str) -> Any:
        """Start a V2beta1Run of a version. The name must be its own: it tells whether a lost answer meant a run."""
        import kfp_server_api as api

        reference = api.V2beta1PipelineVersionReference(
            pipeline_id=version.pipeline_id, pipeline_version_id=version.pipeline_version_id
        )
        run = api.V2beta1Run(
            display_name=name,
            experiment_id=experiment.experiment_id,
            pipeline_version_reference=reference,
            runtime_config=api.V2beta1RuntimeConfig(parameters=arguments),
            service_account=service_account or None,
        )
        method, inside = self.runs.run_service_list_runs, {"experiment_id": experiment.experiment_id}
        return self.connection.create(
            lambda: self._only("run", name, self._listed(method, "runs", name, **inside)),
            self.runs.run_service_create_run,
            run=run,
        )

    def run(self, run_id: str) -> Any:
        """One V2beta1Run with its tasks; NotFound if there is none."""
        return self.connection.call(self.runs.run_service_get_run, run_id)

    def specification(self, run: Any) -> dict[str, Any]:
        """The PipelineSpec that a V2beta1Run runs, from the run itself or from its version."""
        found = run.pipeline_spec
        if not found:
            reference = run.pipeline_version_reference
            method = self.pipelines.pipeline_service_get_pipeline_version
            found = self.connection.call(method, reference.pipeline_id, reference.pipeline_version_id).pipeline_spec
        return dict(found.get("pipeline_spec", found))

    def workflow(self, run_id: str) -> dict[str, Any] | None:
        """Argo's workflow of a run, which only the older API serves; None where that is not served or not allowed."""
        try:
            answer = self.connection.get(f"/apis/v1beta1/runs/{run_id}")
        except Unavailable:
            raise
        except KfpError:
            return None
        manifest = (answer.get("pipeline_runtime") or {}).get("workflow_manifest")
        return dict(json.loads(manifest)) if manifest else None

    def pod_log(self, run_id: str, pod: str) -> str:
        """What a pod of a run has written; also after the pod is gone, where KFP archives logs."""
        return self.connection.get_text(f"/apis/v1alpha1/runs/{run_id}/nodes/{pod}/log")

    def latest_runs(self, limit: int) -> list[Any]:
        """The newest runs first."""
        options = {"sort_by": "created_at desc", "page_size": limit} | self._in_namespace
        return list(self.connection.call(self.runs.run_service_list_runs, **options).runs or [])

    def cancel(self, run_id: str) -> None:
        self.connection.call(self.runs.run_service_terminate_run, run_id)

    def run_url(self, run_id: str) -> str:
        """The run's page in KFP's UI."""
        return f"{self.connection.host}/#/runs/details/{run_id}"

    def schedules(self, name: str = "") -> list[Any]:
        """The V2beta1RecurringRuns of a name, or all."""
        method = self.recurring_runs.recurring_run_service_list_recurring_runs
        return list(self._listed(method, "recurring_runs", name, **self._in_namespace))

    def schedule(self, name: str) -> Any:
        """The V2beta1RecurringRun of that name, or None."""
        return self._only("schedule", name, iter(self.schedules(name)))

    def latest_run_of(self, schedule: Any) -> Any:
        """The newest V2beta1Run that a V2beta1RecurringRun started, or None among the newest of its experiment."""
        options = {"sort_by": "created_at desc", "page_size": _PAGE, "experiment_id": schedule.experiment_id}
        runs = self.connection.call(self.runs.run_service_list_runs, **options).runs or []
        return next((run for run in runs if run.recurring_run_id == schedule.recurring_run_id), None)

    def create_schedule(self, wanted: Any) -> Any:
        """The V2beta1RecurringRun of the wanted one's name, made unless it is there."""
        method = self.recurring_runs.recurring_run_service_create_recurring_run
        return self.connection.create(lambda: self.schedule(wanted.display_name), method, recurring_run=wanted)

    def set_schedule_enabled(self, schedule_id: str, enabled: bool) -> None:
        api = self.recurring_runs
        enable, disable = (
            api.recurring_run_service_enable_recurring_run,
            api.recurring_run_service_disable_recurring_run,
        )
        self.connection.call(enable if enabled else disable, schedule_id)

    def delete_schedule(self, schedule_id: str) -> None:
        """Remove it; it is not an error if it is gone already (after a lost answer)."""
        with suppress(NotFound):
            self.connection.call(self.recurring_runs.recurring_run_service_delete_recurring_run, schedule_id)

    def _listed(self, method: Callable[..., Any], field: str, name: str, **options: Any) -> Iterator[Any]:
        """Every object of a listing, page by page; with a name only those that are called so."""
        if name:
            same = {"operation": "EQUALS", "key": "display_name", "string_value": name}
            options["filter"] = json.dumps({"predicates": [same]})
        token = ""
        while True:
            page = self.connection.call(method, page_size=_PAGE, page_token=token, **options)
            yield from getattr(page, field) or []
            if not (token := page.next_page_token or ""):
                return

    def _only(self, kind: str, name: str, found: Iterator[Any]) -> Any:
        objects = list(found)
        if len(objects) > 1:
            host = self.connection.host
            raise KfpError(f"KFP at {host} has {len(objects)} objects '{name}' ({kind}): delete all but one")
        return objects[0] if objects else None
