"""Needle retrieval: a key and its value stand once in a long text; asked for the key at the end, is the value there?

Keys and values are random vocabulary tokens, so nothing but recall finds them and no instruction has to be understood.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flashslm.data.loader import TokenLoader
from flashslm.evaluation.batching import pad_rows
from flashslm.evaluation.items import MetricItems, accuracy_items, identity
from flashslm.evaluation.scoring import Scorer
from flashslm.inference.engine import DecodeEngine
from flashslm.models.hybrid import HybridLM

KEY_TOKENS = 4
VALUE_TOKENS = 4
OTHER_VALUES = 15  # random values the true one is ranked against: the chance to come first is 1/16
DEPTH_PARTS = 8  # of a text, for the shares by the needle's depth
HAYSTACK_TOKENS = 4_000_000  # of the split; more would only cost memory


@dataclass(frozen=True)
class Needles:
    """Prompts [S, T] that end with the key, the values [S, V] to recall, as many [S, R, V] that were never shown."""

    prompts_ST: Tensor
    values_SV: Tensor
    others_SRV: Tensor
    num_candidates: int  # tokens that keys and values are drawn from


def evaluate_needle(
    model: HybridLM, loader: TokenLoader, length: int, samples: int, seed: int, batch_size: int = 8
) -> tuple[dict[str, Any], dict[str, MetricItems]]:
    """Retrieval at `length` tokens, prompt and value together; the same seed gives the same needles.

    `accuracy`: greedy decoding gives the whole value (`chance_accuracy` by guessing). `ranked_first`: the value's
    log-probability exceeds that of 15 random values (`chance` = 1/16), and `margin_nats` is the mean gap per token;
    they grade a model too weak for an exact match. All log-probabilities are taken after the true value's earlier
    tokens. Returns the three metrics by needle, and before them what was asked, with `ranked_first_by_depth`: shares of
    at most 8 equal parts of the text, from its beginning.
    """
    needles = plant_needles(loader, length, samples, seed)
    batch_size = min(batch_size, samples)
    engine = DecodeEngine(model, batch_size, length)
    hits, firsts, margins = [], [], []
    for rows in torch.arange(samples).split(batch_size):
        prompts_ST, values_SV = needles.prompts_ST[rows], needles.values_SV[rows]
        generated_SV = engine.generate(pad_rows(prompts_ST, batch_size), VALUE_TOKENS)[: len(rows)].cpu()
        hits.append((generated_SV == values_SV).all(dim=1))
        true_S, others_SR = score_values(model, prompts_ST, values_SV, needles.others_SRV[rows])
        firsts.append(true_S > others_SR.amax(dim=1))
        margins.append((true_S - others_SR.mean(dim=1)) / VALUE_TOKENS)
    facts = {
        "length": length,
        "samples": samples,
        "chance_accuracy": needles.num_candidates**-VALUE_TOKENS,
        "chance": 1 / (1 + OTHER_VALUES),
        "ranked_first_by_depth": by_depth(torch.cat(firsts)),
    }
    sha256 = identity(needles.prompts_ST.numpy().tobytes(), needles.values_SV.numpy().tobytes())
    return facts, {
        "accuracy": accuracy_items(torch.cat(hits).tolist(), sha256),
        "ranked_first": accuracy_items(torch.cat(firsts).tolist(), sha256),
        "margin_nats": MetricItems(totals=tuple(torch.cat(margins).tolist()), items_sha256=sha256),
    }


def by_depth(found_S: Tensor) -> list[float]:
    """Shares of samples in the order of their depths, as `plant_needles` makes them, in at most 8 equal parts."""
    return [float(part.double().mean()) for part in found_S.tensor_split(min(DEPTH_PARTS, len(found_S)))]


def plant_needles(loader: TokenLoader, length: int, samples: int, seed: int) -> Needles:
    """Cut haystacks from the split, put one needle (key, value) into each, end with the key.

    Depths are spread evenly, one random place in each of `samples` equal parts. Document ends are taken out of the
    haystack: they would tell a model to forget the needle. Raises ValueError when the split or `length` is too short.
    """
    hay = length - 1 - 2 * (KEY_TOKENS + VALUE_TOKENS)
    tokens = loader.tokens(0, max(HAYSTACK_TOKENS, 2 * length))
    text = tokens[tokens != loader.end_of_document_id]
    if hay < 1 or len(text) < hay:
        raise ValueError(
            f"needle length {length} needs {max(hay, 1)} tokens of text around the needle, the split has {len(text)}: "
            f"allowed lengths are {length - hay + 1} to {len(text) + length - hay}; change evaluation.needle_lengths"
        )
    generator = torch.Generator().manual_seed(seed)
    candidates = text.unique()

    def draw(*shape: int) -> Tensor:
        tokens: Tensor = candidates[torch.randint(len(candidates), shape, generator=generator)]
        return tokens

    key_SK, value_SV = draw(samples, KEY_TOKENS), draw(samples, VALUE_TOKENS)
    starts_S = torch.randint(len(text) - hay + 1, (samples,), generator=generator)
    depths_S = ((torch.arange(samples) + torch.rand(samples, generator=generator)) / samples * (hay + 1)).long()
    begin = torch.tensor([loader.end_of_document_id])
    prompts = []
    for key, value, start, depth in zip(key_SK, value_SV, starts_S.tolist(), depths_S.tolist(), strict=True):
        before, after = text[start : start + depth], text[start + depth : start + hay]
        prompts.append(torch.cat([begin, before, key, value, after, key]))
    return Needles(torch.stack(prompts), value_SV, draw(samples, OTHER_VALUES, VALUE_TOKENS), len(candidates))


@torch.inference_mode()
def score_values(model: HybridLM, prompts_ST: Tensor, values_SV: Tensor, others_SRV: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities in nats: of the values [S], and of the others [S, R] token by token in the values' place."""
    tokens_ST = torch.cat([prompts_ST, values_SV[:, :-1]], dim=1)
    hidden_SVD = Scorer(model).last_hidden(tokens_ST, values_SV.shape[1])
    log_probs_SVW = model.logits(hidden_SVD).float().log_softmax(dim=-1).cpu()
    true_SV = log_probs_SVW.gather(2, values_SV[:, :, None])[:, :, 0]
    others_SVR = log_probs_SVW.gather(2, others_SRV.transpose(1, 2))
    return true_SV.sum(dim=1), others_SVR.sum(dim=1)
