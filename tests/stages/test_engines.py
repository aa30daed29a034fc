"""Engines on real tiny models: the signal is the model's own, each request is answered once."""

import json
from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM

from retort import processes
from retort.data.encoding import load_tokenizer, render
from retort.engines import Request, Settings, find_engine, resolve
from retort.engines._kv_cache import cache_bytes
from retort.errors import SpecError
from retort.events import SILENT
from tests.support import child_functions
from tests.support.tiny import save_model

TOP_K = 5
CHATS = {f"q{i}": f"{i} + {3 * i} = ?" for i in range(11)} | {"long": "1 + " * 30}


@pytest.fixture(scope="module", params=["vllm", "transformers"])
def answered(request, tmp_path_factory):
    """All chats answered by an engine in a child process: the model, and what came back."""
    folder = tmp_path_factory.mktemp("engine")
    model = save_model(folder / "model", seed=3)
    settings = {
        "model": str(model),
        "temperature": 0.0,
        "top_p": 1.0,
        "max_tokens": 9,
        "max_model_len": 64,
        "top_k": TOP_K,
        "dtype": "float32",
        "seed": 0,
        "runtime": {
            "device": "cpu",
            "max_num_seqs": 4,
            "tensor_parallel_size": 1,
            "pipeline_parallel_size": 1,
            "gpu_memory_utilization": 0.5,
            "kv_cache_gib": 1,
            "distributed_executor": "auto",
        },
    }
    arguments = {"engine": request.param, "settings": settings, "chats": CHATS}
    runtime = {"timeout_seconds": 300.0, "num_threads": 1}
    found = processes.run(
        child_functions.answer_and_time, arguments, SILENT, folder / "log", runtime
    )
    return model, found


def test_a_request_alone_is_timed_to_its_first_token_and_to_its_end(answered):
    found = answered[1]
    assert set(found["timed"]) == set(CHATS)
    assert found["timed"].pop("long")["first_token_seconds"] is None
    for key, timing in found["timed"].items():
        assert 0 < timing["first_token_seconds"] <= timing["whole_seconds"]
        if len(found["answers"][key]["token_ids"]) > 5:
            assert timing["first_token_seconds"] < timing["whole_seconds"]


def test_what_is_timed_or_forgotten_changes_no_answer(answered):
    found = answered[1]
    before = {key: answer["token_ids"] for key, answer in found["answers"].items()}
    assert sum(found["after"][key] != ids for key, ids in before.items()) <= 1  # a tie of two ids


def test_a_start_on_a_cpu_compiles_nothing_and_imports_nothing_unused(answered):
    assert answered[1]["start"] == {"num_compiled": 0, "imported": []}


@pytest.mark.parametrize(
    ("config", "wanted"),
    [
        # 2 (keys, values) * 3 layers * 4 heads of 16; 5 sequences of 3 blocks, and one; a quarter
        # to spare
        ({"num_key_value_heads": 4, "head_dim": 16}, 2 * 3 * 4 * 16 * 2 * 128 * 16 * 1.25),
        ({}, 2 * 3 * 8 * 8 * 2 * 128 * 16 * 1.25),
        ({"mamba_d_state": 16}, 1 << 30),
        ({"layer_types": ["linear_attention", "full_attention"]}, 1 << 30),
        ({"num_hidden_layers": 1 << 20}, 1 << 30),
        ({"num_hidden_layers": None}, 1 << 30),
    ],
)
def test_memory_for_keys_is_what_all_sequences_can_take_at_most(tmp_path, config, wanted):
    plain = {"num_hidden_layers": 3, "num_attention_heads": 8, "hidden_size": 64}
    (tmp_path / "config.json").write_text(json.dumps({**plain, **config}))
    runtime = {"kv_cache_gib": 1, "max_num_seqs": 5}
    settings = Settings(str(tmp_path), 0.0, 1.0, 9, 257, 0, "auto", 0, runtime)
    assert cache_bytes(settings, "bfloat16") == wanted
    assert cache_bytes(settings, "float32") == min(2 * wanted, 1 << 30)


def test_every_request_is_answered_once_and_a_prompt_too_long_fails_alone(answered):
    answers = answered[1]["answers"]
    assert set(answers) == set(CHATS)
    assert answers["long"]["finish_reason"] == "prompt_too_long"
    assert answers["long"]["token_ids"] == []
    others = [a for key, a in answers.items() if key != "long"]
    assert all(a["finish_reason"] in ("stop", "length") and a["token_ids"] for a in others)


def test_the_signal_is_what_a_plain_forward_gives_for_the_very_ids(answered):
    folder, found = answered
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = load_tokenizer(str(folder))
    for key, answer in found["answers"].items():
        if key == "long":
            continue
        (prompt,) = render(tokenizer, [[{"role": "user", "content": CHATS[key]}]])
        ids, signal = answer["token_ids"], answer["signal"]
        with torch.inference_mode():
            logits = model(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1]
        logprobs = torch.log_softmax(logits, dim=-1)
        assert signal["target_ids_T"] == ids
        chosen = logprobs[range(len(ids)), ids]
        assert torch.allclose(torch.tensor(signal["target_logprobs_T"]), chosen, atol=1e-3)
        top = torch.tensor(signal["ids_TK"])
        assert top.shape == (len(ids), TOP_K)
        stored = torch.tensor(signal["logprobs_TK"])
        assert torch.allclose(stored, logprobs.gather(1, top), atol=1e-3)
        assert torch.allclose(stored, logprobs.topk(TOP_K).values, atol=1e-3)


def test_greedy_answers_are_the_models_own_choices(answered):
    answers = [a for key, a in answered[1]["answers"].items() if key != "long"]
    picked = [
        a["signal"]["ids_TK"][t][0] == i for a in answers for t, i in enumerate(a["token_ids"])
    ]
    assert sum(picked) >= 0.98 * len(picked)


def test_a_finished_answer_ends_with_the_end_token_it_was_scored_on(answered):
    for answer in answered[1]["answers"].values():
        if answer["finish_reason"] == "stop":
            assert answer["token_ids"][-1] == 2
            assert answer["token_ids"].count(2) == 1


def test_a_continued_answer_begins_with_what_was_there_and_signals_only_the_rest(answered):
    found = answered[1]
    assert found["cut"]
    for key, (ids, signal) in found["continued"].items():
        start = found["cut"][key][0]
        assert ids[: len(start)] == start
        assert signal["target_ids_T"] == ids[len(start) :]
        assert len(ids) <= 9
    whole = [found["answers"][key]["token_ids"] for key in found["continued"]]
    same = [a == b[0] for a, b in zip(whole, found["continued"].values(), strict=True)]
    assert sum(same) >= len(same) - 1  # a tie may fall either way


def test_scoring_gives_the_signal_that_generating_gave(answered):
    found = answered[1]
    assert set(found["scored"]) == set(found["continued"])
    for key, (ids, signal) in found["scored"].items():
        assert signal["target_ids_T"] == ids == found["continued"][key][0]
        generated = found["cut"][key][1]["logprobs_TK"] + found["continued"][key][1]["logprobs_TK"]
        assert torch.allclose(
            torch.tensor(signal["logprobs_TK"]), torch.tensor(generated), atol=1e-3
        )


def test_an_engine_that_gives_no_signal_is_refused_where_one_is_asked_for():
    assert resolve("echo", 0) == "echo"
    with pytest.raises(SpecError, match="gives no signal"):
        resolve("echo", 16)
    with pytest.raises(
        SpecError, match="anthropic, echo, llamacpp, onnx, openai, transformers, vllm"
    ):
        find_engine("nothing")


def test_a_sample_of_transformers_is_that_of_its_seed_whatever_is_beside_it(tmp_path):
    model = save_model(tmp_path / "model", hidden=32, seed=3)
    runtime = {"device": "cpu", "max_num_seqs": 8}
    settings = Settings(str(model), 1.0, 1.0, 9, 64, 0, "float32", 0, runtime)
    chats = [[{"role": "user", "content": f"What is {n} plus {n}?"}] for n in range(6)]
    requests = [Request(str(n), chat, seed=70 + n) for n, chat in enumerate(chats)]

    def answers(asked):
        engine = find_engine("transformers").open_engine(settings)
        return {answer.id: answer.raw["token_ids"] for answer in engine.generate(asked)}

    together, alone = answers(requests), {}
    for request in reversed(requests):
        alone |= answers([request])
    assert together == alone
    assert answers([replace(requests[0], seed=5)])["0"] != together["0"]


def test_what_a_text_is_scored_with_does_not_depend_on_what_else_is_scored(tmp_path):
    runtime = {"device": "cpu", "max_num_seqs": 4}
    folder = str(save_model(tmp_path / "model", seed=3))
    engine = find_engine("transformers").open_engine(
        Settings(folder, 0.0, 1.0, 9, 64, TOP_K, "float32", 0, runtime)
    )
    texts = [f"{i} + {3 * i} = {'1' * (i % 7)}" for i in range(150)]
    requests = [
        Request(str(i), [{"role": "user", "content": text[:5]}], response=text)
        for i, text in enumerate(texts)
    ]
    scored = {answer.id: answer for answer in engine.score(requests)}
    assert len(scored) == len(requests)
    assert engine.steps < 20  # many at once
    for some in (requests[:1], requests[40:43], requests[::-3]):
        again = list(engine.score(some))
        assert len(again) == len(some)
        for answer in again:
            own = scored[answer.id]
            assert answer.raw == own.raw
            for name in vars(own.signal):
                assert (getattr(answer.signal, name) == getattr(own.signal, name)).all()
