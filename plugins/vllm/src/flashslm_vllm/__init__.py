"""vLLM serves an exported directory: what this package adds to vLLM's registries. Importing it needs no vLLM."""

from flashslm.export.hf_config import CLASS_NAME, MODEL_TYPE

RENDERER_MODE = MODEL_TYPE  # the renderer that puts the meta tokens in front, by the name of a tokenizer mode


def register() -> None:
    """Entry point of the group vllm.general_plugins; vLLM calls it in each of its processes, maybe several times."""
    from vllm import ModelRegistry

    if CLASS_NAME in ModelRegistry.get_supported_archs():
        return
    ModelRegistry.register_model(CLASS_NAME, f"flashslm_vllm.model:{CLASS_NAME}")
    _register_configuration()
    _register_renderer()
    _split_graphs_at_the_delta_rule()


def _register_configuration() -> None:
    """Without remote code: the configuration class is the project's own."""
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP
    from vllm.transformers_utils.config import _CONFIG_REGISTRY
    from vllm.transformers_utils.model_arch_config_convertor import MODEL_ARCH_CONFIG_CONVERTORS

    from flashslm.export.templates.configuration_nemotron_flash import NemotronFlashConfig
    from flashslm_vllm.settings import NemotronFlashSettings, NemotronFlashSizes

    _CONFIG_REGISTRY[MODEL_TYPE] = NemotronFlashConfig
    MODEL_ARCH_CONFIG_CONVERTORS[MODEL_TYPE] = NemotronFlashSizes
    MODELS_CONFIG_MAP[CLASS_NAME] = NemotronFlashSettings


def _register_renderer() -> None:
    from vllm.renderers.registry import RENDERER_REGISTRY
    from vllm.tokenizers.registry import TokenizerRegistry

    TokenizerRegistry.register(RENDERER_MODE, "vllm.tokenizers.hf", "CachedHfTokenizer")
    RENDERER_REGISTRY.register(RENDERER_MODE, "flashslm_vllm.renderer", "MetaTokenRenderer")


def _split_graphs_at_the_delta_rule() -> None:
    """Piecewise graphs end before operations with per-request metadata; vLLM lists its own by name."""
    from vllm.config import CompilationConfig

    from flashslm_vllm.names import DELTA_RULE_OP

    if f"vllm::{DELTA_RULE_OP}" not in CompilationConfig._attention_ops:
        CompilationConfig._attention_ops.append(f"vllm::{DELTA_RULE_OP}")
