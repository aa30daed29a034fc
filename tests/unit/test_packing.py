"""Packing: items that share a row learn what they learn alone, in every family, and little is lost.

Compared with items one by one, each a batch without padding. The models are tiny and random.
"""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from retort import losses
from retort.data.encoding import EncodedRow, encode
from retort.events import Event, Reporter
from retort.spec import build
from retort.stages.stage import Stage
from retort.stages.train import batches
from retort.stages.train.batches import TrainingItem, collate, micro_batches
from retort.stages.train.head import Head, Term
from retort.stages.train.loop import fit
from retort.stages.train.objective import Objective, agreement, last_hidden, trusted_head
from retort.stages.train.training_rows import build as build_rows
from retort.store import Folder, model_folder
from retort.store.signals import captured
from tests.stages.test_objective import FAMILIES, tiny
from tests.support import zoo
from tests.support.tiny import save_model
from tests.support.training import job, made

VOCABULARY, K = 60, 4
LENGTHS = (15, 17, 9, 5, 6, 1, 11)  # two rows of 33: the tail of one is padding
TERMS = [
    Term("cross_entropy", losses.cross_entropy, 0.2),
    Term("forward_kl", losses.forward_kl, 0.5),
    Term("jsd", partial(losses.jsd, temperature=2.0), 0.3),
    Term("label_distribution", losses.label_distribution, 0.4),
    Term("agreement", agreement, 0.0),
]


def zoo_model(family: str, **more) -> nn.Module:
    _, config_class, shape = zoo.FAMILIES[family]
    config = config_class(
        **{"num_hidden_layers": 2, "intermediate_size": 256, **shape, **more},
        vocab_size=64,
        **{"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "initializer_range": 0.1},
    )
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


def open_model(family: str) -> nn.Module:
    """A model in training without dropout, which would draw other places in other shapes."""
    model = tiny(family) if family in FAMILIES else zoo_model(family)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model.train()


def items_of(lengths, seed: int = 0, signals: bool = True) -> list[TrainingItem]:
    """Items with a signal, every other one with labels of a closed set at its second answer."""
    random, items = np.random.default_rng(seed), []
    for index, length in enumerate(lengths):
        ids = random.integers(3, VOCABULARY, length + 1).tolist()
        asked = 1 if length == 1 else int(random.integers(1, length))
        row = replace(encode(str(index), ids[:asked], ids[asked:]), choices=(0, []))
        if index % 2 and len(ids) - asked > 1:
            row = replace(row, choices=(1, [ids[asked + 1], *{5, 7, 9} - {ids[asked + 1]}]))
        answer = np.array(ids[asked:], dtype=np.int32)
        top = np.stack([random.permutation(VOCABULARY)[:K] for _ in answer]).astype(np.int32)
        logprobs = np.log(random.dirichlet(np.ones(K + 1), len(answer))[:, :K]).astype(np.float32)
        items.append((row, captured(top, logprobs, answer, logprobs[:, 0]) if signals else None))
    return items


def learned(objective: Objective, parts: list[batches.Batch]) -> tuple[Tensor, Tensor]:
    """The terms' sums over all the batches, and the whole gradient."""
    objective.zero_grad()
    values = []
    for batch in parts:
        places = (batch.rows_N, batch.times_N)
        sums = objective(
            batch.input_ids_BT,
            batch.attention_mask_BT,
            places,
            batch.target,
            position_ids_BT=batch.position_ids_BT,
        )
        sums.total_.backward()
        values.append(sums.values_L)
    gradients = [p.grad.flatten() for p in objective.parameters() if p.grad is not None]
    return torch.stack(values).sum(0), torch.cat(gradients).clone()


def check_equal(
    objective: Objective, items: list[TrainingItem], others: list[batches.Batch]
) -> None:
    alone = learned(objective, [collate([item], "cpu") for item in items])
    for other in others:
        found = learned(objective, [other])
        torch.testing.assert_close(found[0], alone[0], rtol=1e-5, atol=1e-5)
        assert (found[1] - alone[1]).norm() <= 1e-5 * alone[1].norm()


@pytest.mark.parametrize("family", [*FAMILIES, *zoo.FAMILIES])
def test_packed_rows_give_the_losses_and_gradients_of_unpacked_ones(family):
    model, items = open_model(family), items_of(LENGTHS)
    packed, padded = collate(items, "cpu", packed=True), collate(items, "cpu")
    assert packed.input_ids_BT.shape == (2, 33) and (packed.position_ids_BT[:, -1] == 0).any()
    assert padded.position_ids_BT is None and padded.attention_mask_BT is None
    head, _ = trusted_head(model, VOCABULARY, packed.input_ids_BT)
    assert head is not None
    for way in (head, None):
        check_equal(Objective(model, way, TERMS, VOCABULARY), items, [packed, padded])


def test_stretched_positions_are_chosen_by_the_longest_item_and_not_by_the_row():
    """Phi-3 takes its long factors past so many tokens of an item: 20 or 16 here, rows of 33."""
    for number, differ in ((20, False), (16, True)):
        rope = {"original_max_position_embeddings": number}
        model, items = zoo_model("phi-3-mini-128k", **rope), items_of(LENGTHS)
        padded, packed = collate(items, "cpu"), collate(items, "cpu", packed=True)
        assert packed.input_ids_BT.shape[1] > 20
        head, _ = trusted_head(model, VOCABULARY, padded.input_ids_BT)
        objective = Objective(model, head, TERMS, VOCABULARY)
        found, own = learned(objective, [packed]), learned(objective, [padded])
        torch.testing.assert_close(found[0], own[0], rtol=1e-5, atol=1e-5)
        alone = learned(objective, [collate([item], "cpu") for item in items])
        assert torch.allclose(alone[0], own[0], rtol=1e-4) != differ


def test_the_tokens_of_one_item_move_no_hidden_state_of_another():
    model, items = tiny("Llama").eval(), items_of(LENGTHS)
    other = replace(items[1][0], input_ids=[5] * LENGTHS[1])
    first = collate(items, "cpu", packed=True)
    second = collate([items[0], (other, items[1][1]), *items[2:]], "cpu", packed=True)
    with torch.no_grad():
        was, now = (
            last_hidden(model, batch.input_ids_BT, None, batch.position_ids_BT)
            for batch in (first, second)
        )
    moved_BT = (was != now).any(dim=-1)
    assert moved_BT[0, :17].any() and not moved_BT[0, 17:].any() and not moved_BT[1].any()


def test_a_live_teachers_logits_are_made_with_and_without_the_students_head():
    model, teacher = tiny("Llama"), nn.Linear(12, 64, bias=False)
    batch = collate(items_of(LENGTHS, signals=False), "cpu", packed=True)
    hidden_NH = torch.randn(len(batch.rows_N), 12, generator=torch.Generator().manual_seed(3))
    logits_NV = teacher(hidden_NH)[:, :VOCABULARY].detach()
    live = replace(batch, target=replace(batch.target, teacher_hidden_NH=hidden_NH))
    dense = replace(batch, target=replace(batch.target, teacher_logits_NV=logits_NV))
    head, _ = trusted_head(model, VOCABULARY, batch.input_ids_BT)
    expected = learned(Objective(model, None, TERMS, VOCABULARY), [dense])
    for way in (head, None):
        objective = Objective(model, way, TERMS, VOCABULARY, Head(teacher, VOCABULARY))
        found = learned(objective, [live])
        torch.testing.assert_close(found[0], expected[0], rtol=1e-5, atol=1e-5)
        assert (found[1] - expected[1]).norm() <= 1e-5 * expected[1].norm()
    assert teacher.weight.grad is None


def tokens_of(batch: batches.Batch) -> list[tuple[list[int], list[int], list[int]]]:
    """Ids, positions and labels of each item, cut out of the rows where positions begin anew."""
    labels = torch.full_like(batch.input_ids_BT, -100)
    labels[batch.rows_N, batch.times_N] = batch.target.labels_N
    ids, found, items = batch.input_ids_BT, [], iter(batch.items)
    for number, positions in enumerate(batch.position_ids_BT):
        at = 0
        while at < len(positions) and ids[number, at] != 0:  # 0 is padding: no item has it
            end = at + len(next(items)[0].input_ids)
            cut = (ids[number, at:end], positions[at:end], labels[number, at:end])
            found.append(tuple(part.tolist() for part in cut))
            at = end
        assert (ids[number, at:] == 0).all() and (positions[at:] == 0).all()
    return found


@pytest.mark.parametrize("seed", range(4))
def test_no_token_is_lost_doubled_or_moved_and_no_part_is_larger_than_allowed(seed):
    lengths = np.random.default_rng(seed).geometric(1 / 20, 60)
    items, seen = items_of(lengths, seed), []
    parts = list(micro_batches(items, 200, packed=True))
    assert [item for part in parts for item in part] == items
    for part in parts:
        batch = collate(part, "cpu", packed=True)
        assert batch.input_ids_BT.numel() <= 200 or len(part) == 1
        if batch.position_ids_BT is None:
            assert len(batch.input_ids_BT) == len(part)
            continue
        rows: list[EncodedRow] = [row for row, _ in batch.items]
        assert {row.id for row in rows} == {row.id for row, _ in part}
        expected = [(r.input_ids, list(range(len(r.input_ids))), r.labels) for r in rows]
        assert tokens_of(batch) == expected
        signals = [signal for _, signal in batch.items]
        assert np.array_equal(batch.target.ids_NK, np.concatenate([s.ids_TK for s in signals]))
        assert torch.equal(
            batch.target.labels_N,
            torch.from_numpy(np.concatenate([s.target_ids_T for s in signals])).long(),
        )
        seen.append(len(part))
    assert sum(seen) > 30


def padded_tokens(items: list[TrainingItem], most: int, packed: bool) -> int:
    parts = micro_batches(items, most, packed)
    return sum(collate(part, "cpu", packed).input_ids_BT.numel() for part in parts)


@pytest.mark.parametrize("order", ["shuffled", "by length"])
def test_long_tailed_lengths_leave_little_padding_and_never_more_than_without_packing(order):
    lengths = np.random.default_rng(1).geometric(1 / 100, 128)
    lengths = np.sort(lengths) if order == "by length" else lengths
    items, tokens = items_of(lengths, signals=False), int(lengths.sum())
    packed, padded = (padded_tokens(items, 4096, way) for way in (True, False))
    assert packed <= 1.12 * tokens
    assert packed <= padded
    if order == "shuffled":
        assert padded > 2 * tokens


def test_a_long_item_among_short_ones_does_not_make_their_rows_wide():
    """Packed together they would be few tokens, and mostly attention to others that is masked."""
    items = items_of([50] * 31 + [2000], signals=False)
    parts = list(micro_batches(items, 8192, packed=True))
    assert [len(part) for part in parts] == [31, 1]
    assert collate(parts[0], "cpu", packed=True).input_ids_BT.shape[1] <= 150


def test_items_of_one_length_are_not_packed_and_an_empty_step_has_no_parts():
    batch = collate(items_of([8] * 5), "cpu", packed=True)
    assert batch.input_ids_BT.shape == (5, 8) and batch.position_ids_BT is None
    assert list(micro_batches([], 100, packed=True)) == []
    assert list(micro_batches([], 100)) == []


def test_an_item_with_nothing_to_learn_gives_an_empty_target_of_every_kind():
    row, signal = items_of([6])[0]
    blank = replace(row, labels=[-100] * 6, first=6)
    none = type(signal)(*(column[:0] for column in vars(signal).values()))
    target = collate([(blank, none)], "cpu", packed=True).target
    assert target.ids_NK.shape == (0, K) and target.choices_NC.shape == (0, 1)


@pytest.fixture(scope="module")
def ready(tmp_path_factory) -> Stage:
    """A train stage on sums whose worked answers are of very different lengths."""
    folder = tmp_path_factory.mktemp("packing")
    teacher, student = (
        save_model(folder / name, hidden=32, layers=1, seed=seed)
        for seed, name in enumerate(("teacher", "student"))
    )
    raw = job(folder, teacher, student, num_epochs=3, learning_rate=1e-3)
    for name in ("train", "validation"):
        path = folder / f"{name}.jsonl"
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        for index, line in enumerate(lines):
            line["answer"] += " so it is" * (index * index % 7)
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return made(raw, folder)


def curve_of(stage: Stage, out: Path, **knobs) -> tuple[list[dict], list[str]]:
    """What a training says: its metrics, and its notes."""
    said: list[Event] = []
    raw = stage.spec.model_dump(mode="json")
    raw["train"] |= knobs
    stage = replace(stage, spec=build(raw), out=Folder(str(out)))
    fit(stage.arguments(), Reporter(said.append))
    return (
        [event["values"] for event in said if event["kind"] == "metrics"],
        [event["text"] for event in said if event["kind"] == "note"],
    )


@pytest.mark.parametrize("most", [8192, 400])
def test_a_whole_run_that_packs_has_the_losses_of_one_that_does_not(ready, tmp_path, most):
    data = build_rows(ready, model_folder.check(ready.spec.train.student, "train.student"), [2])
    for items in (data.train, data.validation):
        part = next(micro_batches(items, most, packed=True))
        assert collate(part, "cpu", packed=True).position_ids_BT is not None
    curves = []
    for packing in (False, True):
        runtime = {"packing": packing, "micro_batch_tokens": most}
        curve, notes = curve_of(ready, tmp_path / str(packing), runtime=runtime)
        assert any(note.startswith("packed: ") for note in notes) == packing
        curves.append(curve)
    assert len(curves[0]) == 3
    for plain, packed in zip(*curves, strict=True):
        for name in ("loss", "cross_entropy", "forward_kl", "validation_loss", "gradient_norm"):
            assert packed[name] == pytest.approx(plain[name], rel=1e-5), name
