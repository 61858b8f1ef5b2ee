"""Loss, perplexity and bits per byte of a split."""

import math

import torch

from flashslm.data.loader import IGNORE_INDEX, TokenLoader
from flashslm.models.hybrid import HybridLM

_MAX_NATS = 709.0  # a model that diverged may lose more; its perplexity stays a number that can be compared


@torch.inference_mode()
def evaluate_perplexity(
    model: HybridLM, loader: TokenLoader, max_tokens: int = 0, isolate_documents: bool = False
) -> dict[str, float]:
    """Mean loss over the first `max_tokens` predictions of the split (0 = all of it), by a loader of a single rank.

    The stream is cut into windows of the loader's sequence length that share no prediction: each token after the
    stream's first is predicted exactly once, from the tokens before it in its window (and after its document's start
    with `isolate_documents`). Bits per byte divides by the size of the text in UTF-8, so it compares models with
    different tokenizers; the end-of-document predictions are part of the numerator.
    """
    total_nats, tokens = 0.0, 0
    limit = max_tokens or loader.num_tokens
    for batch in loader.sequential():
        counted_BT = batch.targets_BT != IGNORE_INDEX
        counted_BT &= counted_BT.flatten().cumsum(0).view_as(counted_BT) <= limit - tokens
        targets_BT = torch.where(counted_BT, batch.targets_BT, IGNORE_INDEX)
        on_device = batch._replace(targets_BT=targets_BT).to(model.embedding.weight.device)
        documents_BT = on_device.documents_BT if isolate_documents else None
        count = int(counted_BT.sum())
        total_nats += float(model.loss(on_device.tokens_BT, on_device.targets_BT, documents_BT)) * count
        tokens += count
        if tokens == limit:
            break
    loss_nats = total_nats / tokens
    return {
        "test/loss_nats": loss_nats,
        "test/perplexity": math.exp(min(loss_nats, _MAX_NATS)),
        "test/bits_per_byte": total_nats / math.log(2) / loader.bytes_predicted(tokens),
        "test/tokens": tokens,
    }
