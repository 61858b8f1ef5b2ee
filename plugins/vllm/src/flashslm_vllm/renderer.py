"""Prompts with the meta tokens in front, as ordinary tokens: for text, chats and token ids alike."""

from dataclasses import replace
from typing import Any

from vllm.renderers.hf import HfRenderer
from vllm.renderers.params import TokenizeParams


class MetaTokenRenderer(HfRenderer):
    """The meta tokens' ids follow those of the text; nothing else may use them."""

    def _tokenize_singleton_prompt(self, prompt: Any, params: TokenizeParams) -> Any:
        return self._with_meta_tokens(super()._tokenize_singleton_prompt(prompt, self._text_limits(params)))

    async def _tokenize_singleton_prompt_async(self, prompt: Any, params: TokenizeParams) -> Any:
        rendered = await super()._tokenize_singleton_prompt_async(prompt, self._text_limits(params))
        return self._with_meta_tokens(rendered)

    @property
    def _first_and_last_id(self) -> tuple[int, int]:
        config = self.model_config.hf_config
        return config.vocab_size, config.vocab_size + config.num_memory_tokens

    def _text_limits(self, params: TokenizeParams) -> TokenizeParams:
        """The positions that the meta tokens leave."""
        first, end = self._first_and_last_id
        total = params.max_total_tokens
        return params if total is None else replace(params, max_total_tokens=total - (end - first))

    def _with_meta_tokens(self, prompt: Any) -> Any:
        first, end = self._first_and_last_id
        text_ids = prompt["prompt_token_ids"]
        if text_ids and max(text_ids) >= first:
            raise ValueError(
                f"token id {max(text_ids)} in a prompt: ids of text end at {first - 1}, meta tokens are added here"
            )
        return {**prompt, "prompt_token_ids": [*range(first, end), *text_ids]}
