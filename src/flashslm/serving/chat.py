"""Messages as one prompt, by the chat template of the exported tokenizer."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import TemplateError

from flashslm.export.files import read_object
from flashslm.export.text_model import TextModel
from flashslm.serving.protocol import ApiError, Message


class ChatTemplate:
    """The template of a directory. transformers, which renders it in a sandbox, is loaded only where there is one."""

    def __init__(self, text_model: TextModel) -> None:
        self.text_model = text_model
        self.tokenizer = _tokenizer_with_template(text_model.directory)

    def render(self, messages: Sequence[Message]) -> str:
        """The prompt's text. Raises ApiError 400 where the tokenizer lacks a template or its template refuses them."""
        if self.tokenizer is None:
            raise ApiError(
                400,
                "this model's tokenizer has no chat template (chat_template.jinja): use /v1/completions",
                "no_chat_template",
            )
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    [message.plain() for message in messages], tokenize=False, add_generation_prompt=True
                )
            )
        except TemplateError as error:
            raise ApiError(
                400, f"the chat template refuses these messages: {error}", "invalid_value", param="messages"
            ) from error

    def encode(self, text: str) -> list[int]:
        """The ids of a rendered prompt."""
        ids = self.text_model.encode(text)
        return ids[1:] if ids[1:2] == ids[:1] else ids  # most templates begin with the first token themselves


def _tokenizer_with_template(directory: Path) -> Any:
    """The tokenizer of transformers, None without a template."""
    configured = directory / "tokenizer_config.json"
    in_config = configured.is_file() and read_object(configured).get("chat_template")
    if not in_config and not (directory / "chat_template.jinja").is_file():
        return None
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast.from_pretrained(str(directory), local_files_only=True)
