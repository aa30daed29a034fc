"""Every family of the zoo generates through vLLM, and its signal is what a plain forward gives."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from retort import processes
from retort.data.encoding import load_tokenizer, render_one
from retort.events import SILENT
from tests.support import child_functions
from tests.support.zoo import FAMILIES, save_family

TOP_K = 5
MAX_TOKENS = 12
CHATS = {"short": "Hi", "sum": "Leo has 7 books and buys 5. How many?", "long": "Ben has 9. " * 20}
SETTINGS = {
    "temperature": 1.0,
    "top_p": 1.0,
    "max_tokens": MAX_TOKENS,
    "top_k": TOP_K,
    "dtype": "float32",
    "seed": 0,
    "runtime": {
        "max_num_seqs": 4,
        "tensor_parallel_size": 1,
        "pipeline_parallel_size": 1,
        "gpu_memory_utilization": 0.5,
        "kv_cache_gib": 1,
        "distributed_executor": "auto",
    },
}


def answer_each(report, models: list) -> list:
    """Answers the chats with one (folder, max_model_len) after another, all in this process: that
    saves vLLM's start. vLLM keeps rope tables for a whole process, by what two models may share
    that differ in their length: each model makes its own here, as in a process of its own."""
    from vllm.model_executor.layers import rotary_embedding

    found = []
    for model, length in models:
        rotary_embedding._ROPE_DICT.clear()
        settings = {**SETTINGS, "model": model, "max_model_len": length}
        found.append(child_functions.answer_all(report, "vllm", settings, CHATS)["answers"])
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("zoo")


@pytest.fixture(scope="module")
def answered(folder):
    """What vLLM answered with each family, and with one that is given its longer context."""
    models = [(str(save_family(name, folder)), 256) for name in FAMILIES]
    models.append((str(folder / "phi-3-mini-128k"), 5000))
    runtime = {"timeout_seconds": 300.0, "num_threads": 1}
    answers = processes.run(answer_each, {"models": models}, SILENT, folder / "log", runtime)
    return dict(zip([*FAMILIES, "longer context"], answers, strict=True))


def difference(model, tokenizer, answers: dict) -> float:
    """The largest difference of any log-probability of a signal from a plain forward's."""
    largest = 0.0
    assert set(answers) == set(CHATS)
    for key, answer in answers.items():
        prompt = render_one(tokenizer, [{"role": "user", "content": CHATS[key]}])
        ids, signal = answer["token_ids"], answer["signal"]
        assert len(ids) == MAX_TOKENS or ids[-1] == tokenizer.eos_token_id
        assert signal["target_ids_T"] == ids
        with torch.inference_mode():
            logits = model(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1]
        logprobs = torch.log_softmax(logits, dim=-1)
        top, stored = torch.tensor(signal["ids_TK"]), torch.tensor(signal["logprobs_TK"])
        for ours, plain in (
            (stored, logprobs.gather(1, top)),
            (stored, logprobs.topk(TOP_K).values),
            (torch.tensor(signal["target_logprobs_T"]), logprobs[range(len(ids)), ids]),
        ):
            assert ours.shape == plain.shape
            largest = max(largest, float((ours - plain).abs().max()))
    return largest


@pytest.mark.parametrize("family", FAMILIES)
def test_a_familys_signal_is_what_a_plain_forward_gives_for_the_very_ids(answered, folder, family):
    model = AutoModelForCausalLM.from_pretrained(folder / family, dtype=torch.float32).eval()
    tokenizer = load_tokenizer(str(folder / family))
    assert difference(model, tokenizer, answered[family]) < 1e-3


def test_phi_with_room_for_its_longer_context_has_the_long_factors_in_short_chats_too(
    answered, folder
):
    """transformers goes by the length of the chat, vLLM by max_model_len: above 4096 the signal of
    a short chat is that of another function than the student will compute."""
    place = folder / "phi-3-mini-128k"
    tokenizer = load_tokenizer(str(place))
    plain = AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32).eval()
    assert difference(plain, tokenizer, answered["longer context"]) > 0.1
    config = AutoConfig.from_pretrained(place)
    config.rope_parameters["short_factor"] = config.rope_parameters["long_factor"]
    long = AutoModelForCausalLM.from_pretrained(place, config=config, dtype=torch.float32).eval()
    assert difference(long, tokenizer, answered["longer context"]) < 1e-3
