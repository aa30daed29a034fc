"""Encoding and signals: one end token, one shift, and no signal beside another token."""

import dataclasses
import math

import numpy as np
import pytest

from retort.data.encoding import IGNORED, encode, render, with_end
from retort.errors import DataError
from retort.stages.train.alignment import aligned
from retort.stages.train.batches import collate
from retort.stages.train.training_rows import audit
from retort.store.signals import Signal, captured, pack, tail_logprob, unpack
from tests.support.tiny import make_tokenizer

PROMPT, RESPONSE = [1, 10, 11, 5], [20, 21, 22, 2]


def signal_for(targets: list[int], k: int = 3) -> Signal:
    ids = np.array([[t, t + 1, t + 2][:k] for t in targets], dtype=np.int32)
    logprobs = np.log(np.tile([0.6, 0.2, 0.1][:k], (len(targets), 1))).astype(np.float32)
    return captured(ids, logprobs, np.array(targets, dtype=np.int32), logprobs[:, 0].copy())


def test_each_label_is_the_next_token_and_the_prompt_is_not_learned():
    row = encode("a", PROMPT, RESPONSE)
    whole = PROMPT + RESPONSE
    assert row.input_ids == whole[:-1]
    for position, label in enumerate(row.labels):
        assert label == (whole[position + 1] if position >= len(PROMPT) - 1 else IGNORED)
    assert row.labels[row.first :] == RESPONSE


def test_there_is_one_end_token_however_the_engine_gave_it():
    for given in ([7, 8], [7, 8, 2], [7, 8, 2, 2]):
        assert with_end(given, [2]) == [7, 8, 2]
    assert with_end([7, 9], [2, 9]) == [7, 9]


def test_there_is_one_bos_and_it_comes_from_the_template():
    (ids,) = render(make_tokenizer(), [[{"role": "user", "content": "hi"}]])
    assert ids.count(1) == 1
    assert ids[0] == 1


def test_an_empty_response_cannot_be_encoded():
    with pytest.raises(DataError, match="example a"):
        encode("a", PROMPT, [])


def test_signals_come_back_by_id_as_they_were_stored():
    stored = {"b": signal_for([1, 2]), "a": signal_for([3]), "ü": signal_for([4, 5, 6])}
    read = unpack(pack(list(stored.items()), vocabulary=100))
    assert set(read) == set(stored)
    for key, signal in stored.items():
        assert np.array_equal(read[key].ids_TK, signal.ids_TK)
        assert np.array_equal(read[key].target_ids_T, signal.target_ids_T)
        for name in ("logprobs_TK", "target_logprobs_T", "tail_T"):
            assert np.allclose(getattr(read[key], name), getattr(signal, name), atol=0.05)


def test_the_tail_is_what_the_top_k_leaves():
    logprobs = np.log(np.array([[0.5, 0.25], [0.9, 0.1 - 1e-13]])).astype(np.float32)
    assert tail_logprob(logprobs)[0] == pytest.approx(math.log(0.25), rel=1e-6)
    assert np.isfinite(tail_logprob(logprobs)).all()


def test_a_signal_shifted_by_one_is_refused():
    row = encode("a", PROMPT, RESPONSE)
    assert aligned(row, signal_for(RESPONSE)) is not None
    with pytest.raises(DataError, match="not the labels"):
        aligned(row, signal_for([*RESPONSE[1:], 9]))
    with pytest.raises(DataError, match="not the labels"):
        aligned(row, signal_for(RESPONSE[:-1]))
    with pytest.raises(DataError, match="no signal"):
        aligned(row, None)


def test_a_signal_whose_log_probability_does_not_match_is_refused():
    row, signal = encode("a", PROMPT, RESPONSE), signal_for(RESPONSE)
    wrong = dataclasses.replace(signal, target_logprobs_T=signal.target_logprobs_T - 0.1)
    with pytest.raises(DataError, match="log-probability"):
        aligned(row, wrong)


def test_a_padded_batch_keeps_each_signal_beside_its_label():
    items = [
        (encode("a", PROMPT, RESPONSE), signal_for(RESPONSE)),
        (encode("b", [1, 5], [30, 2]), signal_for([30, 2])),
    ]
    batch = collate(items, "cpu")
    assert batch.target.labels_N.tolist() == [*RESPONSE, 30, 2]
    assert batch.target.ids_NK[:, 0].tolist() == [*RESPONSE, 30, 2]
    assert batch.attention_mask_BT is None and batch.position_ids_BT is None
    places = zip(batch.rows_N.tolist(), batch.times_N.tolist(), strict=True)
    assert list(places) == [(0, 3), (0, 4), (0, 5), (0, 6), (1, 1), (1, 2)]


def test_the_audit_shows_what_is_read_and_what_is_learned():
    tokenizer = make_tokenizer()
    (prompt,) = render(tokenizer, [[{"role": "user", "content": "1 + 1"}]])
    answer = tokenizer("2", add_special_tokens=False)["input_ids"]
    text = audit([(encode("a", prompt, [*answer, 2]), None)], tokenizer)
    assert "<assistant>'" in text
    assert "['2', '<eos>']" in text
