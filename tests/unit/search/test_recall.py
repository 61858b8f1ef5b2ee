"""Synthetic tasks against naive twins, and whom they tell apart."""

import pytest
import torch

from flashslm.config import SearchConfig
from flashslm.models.accounting import parameters
from flashslm.search import recall_tasks as tasks
from flashslm.search.recall_score import RecallTest, small_architecture
from flashslm.training.step import TrainStep

GUESSING = 1 / tasks.VALUES


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def naive_recall_targets(row: list[int]) -> list[int]:
    """Walk a row with a dictionary of the pairs so far."""
    known: dict[int, int] = {}
    targets = []
    for key, value in zip(row[::2], row[1::2], strict=True):
        is_pair = key < tasks.KEYS
        targets += [known.get(key, tasks.NO_TARGET) if is_pair else tasks.NO_TARGET, tasks.NO_TARGET]
        known |= {key: value} if is_pair else {}
    return targets


@pytest.mark.parametrize(("rows", "length"), [(1, 16), (7, 34), (5, 64)])
def test_recall_asks_for_values_that_a_dictionary_knows(rows: int, length: int) -> None:
    tokens, targets = tasks.noisy_recall(rows, length, generator())
    assert tokens.shape == targets.shape == (rows, length)
    assert targets.tolist() == [naive_recall_targets(row) for row in tokens.tolist()]


def test_a_key_keeps_its_value_in_a_row_and_has_others_in_other_rows() -> None:
    tokens, targets = tasks.noisy_recall(64, 64, generator())
    keys, values = tokens[:, ::2], tokens[:, 1::2]
    first_key = [set(v[k == 0].tolist()) for k, v in zip(keys, values, strict=True)]
    assert all(len(found) <= 1 for found in first_key) and len(set.union(*first_key)) == tasks.VALUES
    noise = (keys >= tasks.FIRST_NOISE).double().mean()
    assert abs(float(noise) - tasks.NOISE_SHARE) < 0.05 and (targets >= 0).any()


@pytest.mark.parametrize(("rows", "length"), [(1, tasks.MIN_LENGTH), (7, 34), (5, 64)])
def test_copying_asks_for_what_is_not_blank_in_its_order(rows: int, length: int) -> None:
    tokens, targets = tasks.selective_copying(rows, length, generator())
    for row, asked in zip(tokens.tolist(), targets.tolist(), strict=True):
        body, end = row[: -tasks.COPIED], row[-tasks.COPIED :]
        assert end == [tasks.COPY] * tasks.COPIED
        assert asked[-tasks.COPIED :] == [token for token in body if token != tasks.BLANK]
        assert set(asked[: -tasks.COPIED]) <= {tasks.NO_TARGET}


@pytest.mark.parametrize("task", tasks.TASKS.values(), ids=tasks.TASKS.keys())
def test_rows_depend_on_the_generator_alone_and_fit_the_vocabulary(task: tasks.SyntheticTask) -> None:
    first, again, other = (task(3, 32, generator(seed)) for seed in (0, 0, 1))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])
    assert int(first[0].min()) >= 0 and int(first[0].max()) < tasks.VOCAB_SIZE


def make_test(steps: int, seed: int = 0) -> RecallTest:
    return RecallTest(steps, length=16, device="cpu", threads=1, seed=seed)


def test_the_score_is_a_function_of_design_and_seed() -> None:
    first, again, other = (make_test(3, seed).score("DF") for seed in (0, 0, 1))
    assert first.by_task == again.by_task != other.by_task
    assert first.accuracy == sum(first.by_task.values()) / 2


def test_designs_that_differ_in_repeats_alone_share_their_small_model(monkeypatch: pytest.MonkeyPatch) -> None:
    assert small_architecture("(DFMF AFMF)x2 | (DFMF)x3").operators == "DFMFAFMFDFMF"
    assert parameters(small_architecture("(DFMF AFMF)x2 | (DFMF)x3"))["total"] < 1e6
    recall, trained = make_test(2), []
    monkeypatch.setattr(RecallTest, "_train", lambda self, model: trained.append(model.architecture.operators))
    assert recall.score("(DF)x12").by_task == recall.score("DF").by_task and trained == ["DF"]


def test_its_training_follows_the_learning_rate_from_the_first_step(monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[int] = []
    monkeypatch.setattr(TrainStep, "begin", lambda self, number: begun.append(number))
    make_test(3).score("DF")
    assert begun == [0, 1, 2], "steps count from 0: the last of three is number 2"


@pytest.mark.parametrize("length", [14, 17, 4096])
def test_a_length_that_does_not_fit_is_refused(length: int) -> None:
    with pytest.raises(ValueError, match="recall_length"):
        SearchConfig.model_validate({"recall_steps": 5, "recall_length": length})


def test_attention_recalls_and_feed_forward_layers_alone_only_guess(monkeypatch: pytest.MonkeyPatch) -> None:
    """No design of the search is without a mixer, so the block's own are taken away for the second one."""
    recall = make_test(60)
    attention = recall.score("(AF)x2 | AFF")
    plain = small_architecture("(AF)x2 | AFF")
    without = plain.model_copy(update={"operators": plain.operators.replace("A", "F")})
    monkeypatch.setattr("flashslm.search.recall_score.small_architecture", lambda notation: without)
    guessing = recall.score("(AF)x2 | AFF")
    assert max(guessing.by_task.values()) < 1.6 * GUESSING < min(attention.by_task.values())
