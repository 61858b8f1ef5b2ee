"""The platform section: what the steps of a run ask of a cluster."""

from collections import Counter
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo

from pydantic import BeforeValidator, Field, field_validator, model_validator

from flashslm.config.section import DNS_LABEL, DNS_SUBDOMAIN_OR_NONE, Section
from flashslm.config.steps import GPU_STEPS, MULTI_NODE_STEPS, STEP_SECTIONS


def _quantity(value: Any) -> Any:
    """YAML reads a bare 8 as a number."""
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


_CPU = r"^([1-9][0-9]*(\.[0-9]+)?|0?\.[0-9]+|[1-9][0-9]*m)$"
_CpuText = Annotated[str, Field(pattern=_CPU)]
Cpu = Annotated[_CpuText, BeforeValidator(_quantity, json_schema_input_type=_CpuText | int | float)]
Memory = Annotated[str, Field(pattern=r"^[1-9][0-9]*(\.[0-9]+)?([KMGTPE]i?|k)?$")]
ObjectName = Annotated[str, Field(pattern=DNS_SUBDOMAIN_OR_NONE)]
SHARED_MEMORY = "shm"  # the volume's name
MountedName = Annotated[str, Field(pattern=rf"^$|{DNS_LABEL}")]  # of an object that is a volume of its name in the pod
Image = Annotated[str, Field(pattern=r"^\S*$")]


class Toleration(Section):
    """A taint that a pod may meet on its node."""

    key: str = Field(default="", description="The taint's key; empty: every key.")
    operator: Literal["Exists", "Equal"] = Field(default="Exists", description="Whether the value counts.")
    value: str = Field(default="", description="The taint's value; operator 'Equal' only.")
    effect: Literal["", "NoSchedule", "PreferNoSchedule", "NoExecute"] = Field(
        default="", description="The taint's effect; empty: every effect."
    )

    @model_validator(mode="after")
    def _operator_fits(self) -> "Toleration":
        """As Kubernetes has it, which would refuse the pod."""
        if self.operator == "Exists" and self.value:
            raise ValueError(f"value is '{self.value}' and operator 'Exists', which reads none: give operator 'Equal'")
        if self.operator == "Equal" and not self.key:
            raise ValueError("operator 'Equal' needs a key: give it, or operator 'Exists' for every key")
        return self


class GpuType(Section):
    """A kind of GPU node: the resource a pod asks for and the nodes it may use."""

    resource: str = Field(default="nvidia.com/gpu", description="The resource that a pod asks for.")
    node_selector: dict[str, str] = Field(default_factory=dict, description="Labels of the nodes.")
    tolerations: tuple[Toleration, ...] = Field(
        default=(Toleration(key="nvidia.com/gpu", effect="NoSchedule"),), description="Taints of the nodes."
    )


class StepResources(Section):
    """What a pod gets; requests equal limits, so that no neighbour slows a measurement down."""

    cpu: Cpu = Field(default="2", description="CPU cores.")
    memory: Memory = Field(default="8Gi", description="Memory.")
    gpus: int = Field(default=0, ge=0, description="GPUs.")
    gpu_type: str = Field(default="", description="A name in platform.gpu_types; empty: any node with nvidia.com/gpu.")
    shared_memory: Memory | Literal[""] = Field(
        default="", description="/dev/shm, which counts against memory; empty: the engine's own (64Mi)."
    )
    timeout_s: int = Field(default=86_400, ge=60, description="Seconds per attempt; on a cluster per pod.")
    image: Image = Field(default="", description="Container image; empty: platform.image.")


class GpuStepResources(StepResources):
    """The same with what a step of GPU_STEPS needs."""

    cpu: Cpu = Field(default="8", description="CPU cores.")
    memory: Memory = Field(default="64Gi", description="Memory.")
    gpus: int = Field(default=1, ge=0, description="GPUs.")
    shared_memory: Memory | Literal[""] = Field(default="16Gi", description="/dev/shm, which counts against memory.")


class StepOverride(Section):
    """Where one step differs from the others of its kind; null = as they."""

    cpu: Cpu | None = Field(default=None, description="CPU cores.")
    memory: Memory | None = Field(default=None, description="Memory.")
    gpus: int | None = Field(default=None, ge=0, description="GPUs.")
    gpu_type: str | None = Field(default=None, description="A name in platform.gpu_types.")
    shared_memory: Memory | Literal[""] | None = Field(
        default=None, description="/dev/shm, which counts against memory."
    )
    timeout_s: int | None = Field(default=None, ge=60, description="Seconds per attempt; on a cluster per pod.")
    image: Image | None = Field(default=None, description="Container image.")


class PlatformConfig(Section):
    """How steps run on a cluster and how often they are retried anywhere."""

    retries: int = Field(default=2, ge=0, description="Further attempts of a step that failed, on a cluster and here.")
    patience_s: int = Field(
        default=900,
        ge=0,
        description="Seconds that a step waits for an object store, study database or model registry that is away.",
    )
    data_cache_bytes: int = Field(
        default=32_000_000_000,
        gt=0,
        description="Bytes of data sets that a machine keeps while models train on them; what was not used for longest "
        "goes first and is fetched again when it is needed.",
    )
    variants_at_once: int = Field(
        default=2,
        ge=1,
        description="Variants of the ablation that a run on this machine pretrains at the same time: those that share "
        "a GPU need its memory together, and their step times cannot be compared. On a cluster each has its own.",
    )
    namespace: str = Field(default="kubeflow", pattern=DNS_LABEL, description="The namespace that runs belong to.")
    service_account: ObjectName = Field(default="", description="Of the pods; empty: the installation's own.")
    image: Image = Field(
        default="",
        description="Container image of every step; empty: the one in components/images.py. A digest "
        "(name@sha256:...) keeps caching honest.",
    )
    image_pull_secret: ObjectName = Field(
        default="", description="Secret with the image registry's credentials; empty: none."
    )
    cpu_steps: StepResources = StepResources()
    gpu_steps: GpuStepResources = GpuStepResources()
    steps: dict[str, StepOverride] = Field(default_factory=dict, description="Resources of single steps, by name.")
    gpu_types: dict[str, GpuType] = Field(default_factory=dict, description="Kinds of GPU nodes, by a name of yours.")
    nodes: int = Field(
        default=1,
        ge=1,
        description="Nodes that a step of MULTI_NODE_STEPS trains on, each with the step's resources.",
    )
    training_runtime: str = Field(
        default="flashslm-torch", pattern=DNS_LABEL, description="The runtime of Kubeflow Trainer; with several nodes."
    )
    queue: ObjectName = Field(
        default="",
        description="LocalQueue of Kueue in which the TrainJob waits until all its nodes are free; empty: none.",
    )
    config_map: MountedName = Field(
        default="flashslm", description="ConfigMap whose keys are variables of the environment contract; empty: none."
    )
    s3_secret: MountedName = Field(default="flashslm-s3", description="Secret of the same kind, for S3; empty: none.")
    mlflow_secret: MountedName = Field(default="flashslm-mlflow", description="The same for MLflow.")
    database_secret: MountedName = Field(default="flashslm-database", description="The same for the studies' database.")
    hook_secret: MountedName = Field(
        default="", description="Secret with gate.promotion_hook.url; only register_model reads it. Empty: none."
    )
    deadline_s: int = Field(default=0, ge=0, description="Seconds for a whole run; 0: no limit.")
    ttl_s: int = Field(
        default=7 * 86_400,
        ge=0,
        description="Seconds after a run's end when its pods and workflow are removed; 0: never.",
    )
    cron_time_zone: str = Field(default="UTC", description="The installation's CRON_SCHEDULE_TIMEZONE, an IANA name.")

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
        objects = [self.config_map, self.s3_secret, self.mlflow_secret, self.database_secret, self.hook_secret]
        used = Counter([SHARED_MEMORY, *filter(None, objects)])
        if twice := [name for name, count in used.items() if count > 1]:
            problems.append(
                f"{', '.join(twice)} names two volumes of a pod: give each ConfigMap and Secret its own name"
            )
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def pod_resources(self, step: str) -> StepResources:
        """What the step's own pod gets: little for one that only watches the pods of its TrainJob."""
        own = self.resources(step)
        if self.has_train_job(step):
            return StepResources(cpu="500m", memory="1Gi", timeout_s=own.timeout_s, image=own.image)
        return own

    def has_train_job(self, step: str) -> bool:
        """Whether the step's work is done by a TrainJob's pods."""
        return step in MULTI_NODE_STEPS and self.nodes > 1

    def resources(self, step: str) -> StepResources:
        """What the work of `step` gets: that of its kind, with its own differences."""
        base = self.gpu_steps if step in GPU_STEPS else self.cpu_steps
        own = self.steps.get(step, StepOverride())
        return base.model_copy(update=own.model_dump(exclude_none=True))
