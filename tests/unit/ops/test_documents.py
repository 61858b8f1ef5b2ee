import torch

from flashslm.ops.documents import chunk_documents, document_starts, positions_in_document

DOCUMENTS_BT = torch.tensor([[0, 0, 0, 2, 2, 5], [1, 2, 3, 3, 3, 3]])


def test_starts_and_positions():
    assert document_starts(DOCUMENTS_BT).int().tolist() == [[1, 0, 0, 1, 0, 1], [1, 1, 1, 0, 0, 0]]
    assert positions_in_document(DOCUMENTS_BT).tolist() == [[0, 1, 2, 0, 1, 0], [0, 0, 0, 1, 2, 3]]


def test_chunks_of_four():
    """The second chunk is padded with its last document; the first counts as carried only for its first document."""
    chunks = chunk_documents(DOCUMENTS_BT, 4)
    assert chunks.carried.int().tolist() == [[[1, 1, 1, 0], [1, 0, 0, 0]], [[1, 0, 0, 0], [1, 1, 1, 1]]]
    assert chunks.last.int().tolist() == [[[0, 0, 0, 1], [0, 1, 1, 1]], [[0, 0, 1, 1], [1, 1, 1, 1]]]
    assert chunks.first.tolist() == [[[0, 0, 0, 3], [0, 1, 1, 1]], [[0, 1, 2, 2], [0, 0, 0, 0]]]
    assert chunks.kept.tolist() == [[False, False], [False, True]]
    assert chunks.same[0, 0].int().tolist() == [[1, 1, 1, 0], [1, 1, 1, 0], [1, 1, 1, 0], [0, 0, 0, 1]]
