"""Text that a model has not been trained on, by the digests that its data sets hold."""

import sys
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flashslm.config import DataConfig
from flashslm.data.bad_rows import BadRows
from flashslm.data.documents import DIGEST_BYTES, document_digest
from flashslm.data.duplicates import DIGESTS_FILE
from flashslm.data.file_formats import Document
from flashslm.data.sources import limit_bytes, read_documents


def seen_digests(directory: Path) -> set[bytes]:
    """What a prepared data set holds, validation included. Raises ValueError for one made before digests were kept."""
    file = directory / DIGESTS_FILE
    if not file.is_file():
        raise ValueError(
            f"a data set of the champion does not say which documents it holds (no {DIGESTS_FILE}): it was prepared by "
            "an older version; train a new champion with design_and_train"
        )
    content = file.read_bytes()
    return {content[i : i + DIGEST_BYTES] for i in range(0, len(content), DIGEST_BYTES)}


@dataclass
class UnseenText:
    """Iterate once over the source's documents that are not in `seen`, at most `max_bytes` of them; then the counts."""

    config: DataConfig
    seed: int
    seen: Collection[bytes]
    s3_client: Any = None
    documents: int = 0
    seen_documents: int = 0
    bad_rows: BadRows = field(init=False)

    def __post_init__(self) -> None:
        self.bad_rows = BadRows(self.config.max_bad_rows_fraction)

    def __iter__(self) -> Iterator[Document]:
        limit = self.config.max_bytes
        # the limit is one of new text; any limit at all makes the order of the standard library a shuffled one
        whole = self.config.model_copy(update={"max_bytes": sys.maxsize if limit else 0})
        unseen = self._unseen(read_documents(whole, self.seed, self.s3_client, self.bad_rows))
        return limit_bytes(unseen, limit) if limit else unseen

    def _unseen(self, documents: Iterable[Document]) -> Iterator[Document]:
        for document in documents:
            if not document.text.strip():
                continue
            self.documents += 1
            if document_digest(document.text)[:DIGEST_BYTES] in self.seen:
                self.seen_documents += 1
            else:
                yield document
