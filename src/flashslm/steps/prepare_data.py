"""prepare_data: one worker's pieces of the text to tokens. A piece that is finished is never made again."""

from pathlib import Path
from typing import Any

import numpy as np

from flashslm.data.bad_rows import BadRows
from flashslm.data.contamination import FORBIDDEN_FILE, ForbiddenRuns
from flashslm.data.encoding import TextEncoder
from flashslm.data.pieces import PieceSettings, prepare_piece
from flashslm.data.plan import PLAN_FILE, DataPlan, Piece, read_piece
from flashslm.data.tokenizer import read_tokenizer
from flashslm.infra.process.interrupts import keeping
from flashslm.infra.storage.object_store import Manifest
from flashslm.steps.context import StepContext

KIND = "piece"
MARKERS = "preparation/"  # an object for each finished piece, which names its tree


def run(context: StepContext) -> dict[str, Any]:
    """Outputs `pieces`: by number, the trees of this worker's pieces. The marker of a piece is written last."""
    planned = context.fetch("plan")
    plan = DataPlan.model_validate_json((planned / PLAN_FILE).read_text(encoding="utf-8"))
    mine = plan.of_worker(int(context.parameters["worker"]), context.config.data.workers)
    shared = _shared_settings(context, plan, planned)
    made, found = dict[str, Any](), 0
    with keeping(lambda: f"stopped after {len(made)} of {len(mine)} pieces, which are kept"):
        for done, piece in enumerate(mine, start=1):
            key = _marker(context, plan, piece)
            finished = _finished(context, key)
            found += finished is not None
            made[str(piece.number)] = (finished or _prepare(context, shared, piece, key)).model_dump(mode="json")
            context.events.emit("progress", f"{done} of {len(mine)} pieces, {found} of them made before")
    # As metadata too: the trees are kept as long as this output, and missed with it.
    context.publish_json("pieces", {"pieces.json": made}, {"parts": list(made.values())})
    return {"pieces": len(mine), "summary": f"{len(mine)} piece(s), {found} of them made before"}


def _marker(context: StepContext, plan: DataPlan, piece: Piece) -> str:
    code = context.parameters.get("code_digest", "")
    return f"{MARKERS}{piece.key(context.config.data, context.config.seed, plan.shared_sha256, code)}.json"


def _finished(context: StepContext, key: str) -> Manifest | None:
    """The tree of a piece that was made before, if it is still there."""
    found = context.store.get_json(key)
    manifest = Manifest.model_validate(found[0]) if found else None
    return manifest if manifest and context.store.list(context.store.index_key(manifest)) else None


def _shared_settings(context: StepContext, plan: DataPlan, planned: Path) -> PieceSettings:
    forbidden = ForbiddenRuns(np.fromfile(planned / FORBIDDEN_FILE, dtype="<u8").astype(np.uint64))
    encoder = TextEncoder(read_tokenizer(planned / "tokenizer"))
    return PieceSettings(context.config.data, encoder, plan.end_of_document_id, forbidden)


def _prepare(context: StepContext, shared: PieceSettings, piece: Piece, key: str) -> Manifest:
    config = context.config

    def say(sentence: str) -> None:
        context.events.emit("progress", f"piece {piece.number}: {sentence}")

    with context.scratch() as directory:
        bad_rows = BadRows(config.data.max_bad_rows_fraction)
        text = read_piece(config.data, piece, config.seed, bad_rows, context.store.client)
        prepare_piece(shared, text, bad_rows, directory / KIND, say)
        manifest = context.store.put_tree(directory / KIND, KIND)
    context.store.put_json(key, manifest.model_dump(mode="json"))
    return manifest
