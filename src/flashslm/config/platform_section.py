"""The platform section: what the steps of a run ask of a cluster."""

from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo

from pydantic import BeforeValidator, Field, field_validator, model_validator

from flashslm.config.section import DNS_LABEL, DNS_SUBDOMAIN_OR_NONE, Section
from flashslm.config.steps import GPU_STEPS, MULTI_NODE_STEPS, STEP_SECTIONS


def _quantity(value: Any) -> Any:
    """YAML reads a bare 8 as a number."""
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


Cpu = Annotated[str, BeforeValidator(_quantity), Field(pattern=r"^([1-9][0-9]*(\.[0-9]+)?|0?\.[0-9]+|[1-9][0-9]*m)$")]
Memory = Annotated[str, Field(pattern=r"^[1-9][0-9]*(\.[0-9]+)?([KMGTPE]i?|k)?$")]
ObjectName = Annotated[str, Field(pattern=DNS_SUBDOMAIN_OR_NONE)]
Image = Annotated[str, Field(pattern=r"^\S*$")]


class Toleration(Section):
    """A taint that a pod may meet on its node."""

    key: str = ""
    operator: Literal["Exists", "Equal"] = "Exists"
    value: str = ""
    effect: Literal["", "NoSchedule", "PreferNoSchedule", "NoExecute"] = ""


class GpuType(Section):
    """A kind of GPU node: the resource a pod asks for and the nodes it may use."""

    resource: str = "nvidia.com/gpu"
    node_selector: dict[str, str] = Field(default_factory=dict)
    tolerations: tuple[Toleration, ...] = (Toleration(key="nvidia.com/gpu", effect="NoSchedule"),)


class StepResources(Section):
    """What a pod gets; requests equal limits, so that no neighbour slows a measurement down."""

    cpu: Cpu = "2"
    memory: Memory = "8Gi"
    gpus: int = Field(default=0, ge=0)
    gpu_type: str = ""  # a name in platform.gpu_types; "" = any node with nvidia.com/gpu
    shared_memory: Memory | Literal[""] = ""  # /dev/shm, counts against memory; "" = the engine's own (64Mi)
    timeout_s: int = Field(default=86_400, ge=60)  # of one attempt
    image: Image = ""  # "" = platform.image


class GpuStepResources(StepResources):
    """The same with what a step of GPU_STEPS needs."""

    cpu: Cpu = "8"
    memory: Memory = "64Gi"
    gpus: int = Field(default=1, ge=0)
    shared_memory: Memory | Literal[""] = "16Gi"


class StepOverride(Section):
    """Where one step differs from the others of its kind; null = as they."""

    cpu: Cpu | None = None
    memory: Memory | None = None
    gpus: int | None = Field(default=None, ge=0)
    gpu_type: str | None = None
    shared_memory: Memory | Literal[""] | None = None
    timeout_s: int | None = Field(default=None, ge=60)
    image: Image | None = None


class PlatformConfig(Section):
    """How steps run on a cluster and how often they are retried anywhere."""

    retries: int = Field(default=2, ge=0)
    patience_s: int = Field(default=900, ge=0)  # a step waits so long for an object store or database that is away
    namespace: str = Field(default="kubeflow", pattern=DNS_LABEL)
    service_account: ObjectName = ""  # "" = the installation's own
    image: Image = ""  # "" = the one in components/images.py; a digest (name@sha256:...) keeps caching honest
    image_pull_secret: ObjectName = ""
    cpu_steps: StepResources = StepResources()
    gpu_steps: GpuStepResources = GpuStepResources()
    steps: dict[str, StepOverride] = Field(default_factory=dict)
    gpu_types: dict[str, GpuType] = Field(default_factory=dict)
    nodes: int = Field(default=1, ge=1)  # that a step of MULTI_NODE_STEPS trains on, each with the step's resources
    training_runtime: str = Field(default="flashslm-torch", pattern=DNS_LABEL)  # of Kubeflow Trainer; with nodes > 1
    # Names in the namespace; their keys are the variables of the environment contract. "" = none.
    config_map: ObjectName = "flashslm"
    s3_secret: ObjectName = "flashslm-s3"
    mlflow_secret: ObjectName = "flashslm-mlflow"
    database_secret: ObjectName = "flashslm-database"
    hook_secret: ObjectName = ""  # of gate.promotion_hook.url; only register_model reads it
    deadline_s: int = Field(default=0, ge=0)  # of a whole run; 0 = none
    ttl_s: int = Field(default=7 * 86_400, ge=0)  # pods and workflow go so long after a run's end; 0 = never
    cron_time_zone: str = "UTC"  # the installation's CRON_SCHEDULE_TIMEZONE

    @field_validator("cron_time_zone")
    @classmethod
    def _is_time_zone(cls, name: str) -> str:
        try:
            ZoneInfo(name)
        except (ValueError, OSError, KeyError):  # ZoneInfoNotFoundError is a KeyError
            raise ValueError("no such time zone: give an IANA name such as Europe/Berlin") from None
        return name

    @model_validator(mode="after")
    def _names_are_known(self) -> "PlatformConfig":
        unknown = sorted(set(self.steps) - set(STEP_SECTIONS))
        problems = [f"steps: {', '.join(unknown)} unknown; allowed: {', '.join(STEP_SECTIONS)}"] if unknown else []
        wanted = {self.cpu_steps.gpu_type, self.gpu_steps.gpu_type, *(o.gpu_type or "" for o in self.steps.values())}
        if unknown := sorted(wanted - {""} - set(self.gpu_types)):
            known = ", ".join(sorted(self.gpu_types)) or "none"
            problems.append(f"gpu_type: {', '.join(unknown)} not in gpu_types; there are: {known}")
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def pod_resources(self, step: str) -> StepResources:
        """What the step's own pod gets: little for one that only watches the pods of its TrainJob."""
        own = self.resources(step)
        if self.has_train_job(step):
            return self.cpu_steps.model_copy(update={"timeout_s": own.timeout_s, "image": own.image})
        return own

    def has_train_job(self, step: str) -> bool:
        """Whether the step's work is done by a TrainJob's pods."""
        return step in MULTI_NODE_STEPS and self.nodes > 1

    def resources(self, step: str) -> StepResources:
        """What the work of `step` gets: that of its kind, with its own differences."""
        base = self.gpu_steps if step in GPU_STEPS else self.cpu_steps
        own = self.steps.get(step, StepOverride())
        return base.model_copy(update=own.model_dump(exclude_none=True))
