"""plan_data: the source in pieces, and the tokenizer of all of them."""

from typing import Any

from flashslm.data.contamination import FORBIDDEN_FILE, forbidden_ngrams
from flashslm.data.plan import PLAN_FILE, DataPlan
from flashslm.data.prepare import plan_with_tokenizer
from flashslm.infra.storage.object_store import hash_tree, tree_digest
from flashslm.steps.context import StepContext


def run(context: StepContext) -> dict[str, Any]:
    """Outputs `plan`: plan.json, tokenizer/, and the runs of words that no document may hold."""
    config, client = context.config, context.store.client
    with context.scratch() as directory:
        tokenizer = directory / "tokenizer"
        pieces, end_id = plan_with_tokenizer(config.data, config.seed, tokenizer, client)
        forbidden = forbidden_ngrams(config.data.decontaminate_against, client)
        (directory / FORBIDDEN_FILE).write_bytes(forbidden.astype("<u8").tobytes())
        plan = DataPlan(pieces=pieces, end_of_document_id=end_id, shared_sha256=tree_digest(hash_tree(directory)))
        (directory / PLAN_FILE).write_text(plan.model_dump_json(indent=1), encoding="utf-8")
        context.publish("plan", directory, {"pieces": len(pieces)})
    read_bytes = sum(file.bytes for piece in pieces for file in piece.files)
    of_files = f" of {read_bytes / 1e6:,.1f} MB in files" if read_bytes else ""
    return {"pieces": len(pieces), "summary": f"{len(pieces)} piece(s){of_files}"}
