"""HybridLM as a model of lm-evaluation-harness. Import this module only where tasks are run: it needs an extra."""

import json
from collections import defaultdict
from typing import Any

from flashslm.evaluation.loglikelihood import Pair, log_likelihoods
from flashslm.evaluation.request_encoding import RequestEncoder, TextEnds
from flashslm.evaluation.scoring import Scorer
from flashslm.evaluation.task_metrics import DEFAULT_NEW_TOKENS
from flashslm.inference.continuous import ContinuousBatch
from flashslm.inference.sampling import Sampling
from flashslm.inference.stops import StopStrings
from flashslm.models.hybrid import HybridLM

try:
    from lm_eval.api.model import TemplateLM
except ImportError as error:
    raise ImportError("lm-eval tasks need lm_eval: pip install 'flashslm[evaluation]'") from error

GENERATED_TOGETHER = 32  # texts


class HybridLMAdapter(TemplateLM):
    """Every text begins with the end-of-document token, as every document does in training, or with that of `ends`.

    Longer inputs than the model has positions for lose their beginning.
    """

    def __init__(
        self, model: HybridLM, tokenizer: Any, batch_size: int = GENERATED_TOGETHER, ends: TextEnds | None = None
    ):
        super().__init__()
        self.model, self.tokenizer, self.batch_size = model, tokenizer, batch_size
        self.scorer = Scorer(model)
        self._end_of_document = int(tokenizer.eos_token_id)  # slow to ask for, and asked for with every text
        self.ends = ends or TextEnds(self._end_of_document, {self._end_of_document})
        self.encoder = RequestEncoder(tokenizer)
        self.max_length = model.architecture.max_position_embeddings - model.architecture.num_meta_tokens

    @property
    def eot_token_id(self) -> int:
        return self._end_of_document

    @property
    def prefix_token_id(self) -> int:
        return self.ends.begin_id

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        ids = self.encoder.ids(string)
        return ids if add_special_tokens is False else [self.prefix_token_id, *ids]

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """(nats, is it the greedy choice) of each request's continuation, as the harness asks for them."""
        with self.encoder.encoded_together(request.args for request in requests):
            scored: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=True)
            return scored

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Nats of whole texts, each token predicted once; long ones in windows of `max_length`."""
        from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

        pairs, owners = [], []
        with self.encoder.encoded_together(("", request.args[0]) for request in requests):
            texts = [self.tok_encode(request.args[0], add_special_tokens=False) for request in requests]
        for owner, ids in enumerate(texts):
            for window in get_rolling_token_windows(ids, self.prefix_token_id, self.max_length, context_len=1):
                pairs.append((("", ""), *make_disjoint_window(window)))
                owners.append(owner)
        totals = [0.0] * len(requests)
        for owner, (nats, _) in zip(owners, self._loglikelihood_tokens(pairs), strict=True):
            totals[owner] += nats
        return totals

    def _loglikelihood_tokens(self, requests: list[Any], **_: Any) -> list[tuple[float, bool]]:
        """(log-probability, is it the greedy choice) of each (texts, context ids, continuation ids)."""
        pairs = [Pair(list(context), list(continuation)) for _, context, continuation in requests]
        return log_likelihoods(self.scorer, pairs, self.max_length)

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Continue each context until a stop string, the end of the document or the number of tokens that is asked for.

        Arguments mean what the harness makes of them: `max_new_tokens` and its other names, `until` as one text, a list
        or null, a temperature with or without `do_sample`.
        """
        groups: dict[str, list[int]] = defaultdict(list)
        for index, request in enumerate(requests):
            groups[json.dumps(_generation_arguments(request.args[1]), sort_keys=True)].append(index)
        texts = [""] * len(requests)
        for settings, indices in groups.items():
            generated = self._generate([requests[i].args[0] for i in indices], json.loads(settings))
            for index, text in zip(indices, generated, strict=True):
                texts[index] = text
        return texts

    def _generate(self, contexts: list[str], settings: dict[str, Any]) -> list[str]:
        """Prompts of any lengths by continuous batching."""
        new_tokens = settings["max_gen_toks"]
        if new_tokens >= self.max_length:
            raise ValueError(
                f"max_gen_toks {new_tokens} leaves no positions for a prompt: below {self.max_length} is allowed"
            )
        prompts = [self.tok_encode(context)[new_tokens - self.max_length :] for context in contexts]
        longest = max(map(len, prompts)) + new_tokens
        rows, sampling = min(self.batch_size, len(prompts)), Sampling(**settings["sampling"])
        stops = StopStrings(self.tokenizer, settings["until"], self.ends.end_ids)
        batch = ContinuousBatch(self.model, rows, longest, sampling)
        return [stops.text(ids) for ids in batch.generate(prompts, new_tokens, stops.has_ended)]


def _generation_arguments(given: dict[str, Any]) -> dict[str, Any]:
    """`max_gen_toks`, `until` (stop texts) and `sampling` (the fields of Sampling) by the harness's own rules.

    An empty stop text stops nothing.
    """
    from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs

    settings: dict[str, Any] = dict(normalize_gen_kwargs(given, DEFAULT_NEW_TOKENS))
    stops = handle_stop_sequences([stop for stop in settings["until"] if stop], eos=None)
    sampling = {"temperature": float(settings.get("temperature") or 0.0) if settings["do_sample"] else 0.0}
    sampling |= {name: settings[name] for name in ("top_k", "top_p") if settings.get(name) is not None}
    return {"max_gen_toks": settings["max_gen_toks"], "until": stops, "sampling": sampling}
