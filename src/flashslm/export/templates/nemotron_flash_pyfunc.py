"""Loads this model for MLflow: `mlflow.pyfunc.load_model("models:/NAME@champion").predict([{"text": "def main"}])`."""

from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


class TextContinuation:
    """Continues texts greedily, on the GPU if there is one."""

    def __init__(self, directory: str):
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=True)
        model = AutoModelForCausalLM.from_pretrained(directory, trust_remote_code=True, dtype="auto")
        self.model = model.to(device).eval()

    def predict(self, model_input: Any, params: dict[str, Any] | None = None) -> list[str]:
        """What follows each text of the column `text`; `max_new_tokens` is the number of tokens of each at most."""
        max_new_tokens = int((params or {}).get("max_new_tokens", 32))
        return [self._continued(str(text), max_new_tokens) for text in model_input["text"]]

    def _continued(self, text: str, max_new_tokens: int) -> str:
        inputs = self.tokenizer(text, return_tensors="pt").to(self.model.device)
        given = inputs["input_ids"].shape[1]
        with torch.inference_mode():
            tokens = self.model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
        return str(self.tokenizer.decode(tokens[0, given:], skip_special_tokens=True))


def _load_pyfunc(path: str) -> TextContinuation:
    """MLflow calls this with the model's directory."""
    return TextContinuation(path)
