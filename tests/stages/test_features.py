"""Hidden states and attention's relations as losses of trainings, in families and processes."""

import copy
from functools import partial
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import nn

from retort.errors import SpecError
from retort.events import Event, Reporter
from retort.losses import Target, forward_kl
from retort.spec import Loss, build
from retort.stages.stage import Stage
from retort.stages.train import features
from retort.stages.train.check import check
from retort.stages.train.features import FeatureObjective
from retort.stages.train.head import Term
from retort.stages.train.objective import Objective
from tests.stages.test_ranks import assert_same_run, config, run
from tests.stages.test_train import CutError, same, train
from tests.support.tiny import save_model
from tests.support.training import job, made

LOSSES: list[dict[str, Any]] = [
    {"name": "forward_kl"},
    {"name": "hidden_states", "weight": 0.5},
    {"name": "attention_relations", "weight": 0.1},
]
NAMES = ("hidden_states", "attention_relations")


@pytest.fixture(scope="module")
def ready(tmp_path_factory) -> Stage:
    """A train stage with a live teacher of twice the student's width and layers."""
    folder = tmp_path_factory.mktemp("features")
    teacher = save_model(folder / "teacher", hidden=64, seed=1)
    student = save_model(folder / "student", hidden=32, layers=1, seed=2)
    knobs = {"teacher": "live", "losses": LOSSES, "learning_rate": 1e-2, "num_epochs": 3}
    raw = job(folder, teacher, student)
    raw["train"] |= {**knobs, "runtime": {"num_threads": 1}}
    return made(raw, folder)


def test_a_run_that_was_cut_off_ends_where_an_undisturbed_one_does_with_its_projectors(
    ready, tmp_path
):
    def cut(event: Event) -> None:
        if event["kind"] == "progress" and event["done"] == 4:
            raise CutError

    runtime = {"checkpoint_seconds": 0, "num_threads": 1}
    with pytest.raises(CutError):
        train(ready, tmp_path / "cut", Reporter(cut), runtime=runtime)
    stored = load_file(tmp_path / "cut/scratch/step-000000003.safetensors")
    # The student's only layer learns from the teacher's second and last, 64 wide.
    assert stored["model.projectors.0.weight"].shape == (64, 32)
    assert stored["optimizer.projectors.0.weight.exp_avg"].abs().max() > 0
    said: list[Event] = []
    resumed = train(ready, tmp_path / "cut", runtime=runtime)
    whole = train(ready, tmp_path / "whole", Reporter(said.append))
    assert same(resumed, whole)
    base = load_file(f"{ready.spec.train.student}/model.safetensors")
    assert set(whole) == set(base) and not any("projector" in name for name in whole)
    curve = [event["values"] for event in said if event["kind"] == "metrics"]
    for name in NAMES:
        assert curve[-1][name] < curve[0][name]
        assert curve[-1][f"{name}_gradient_norm"] > 0
        assert curve[-1][f"validation_{name}"] > 0
    weighted = sum(loss.get("weight", 1.0) * curve[-1][loss["name"]] for loss in LOSSES)
    assert curve[-1]["loss"] == pytest.approx(weighted)
    # Without them another student comes out.
    assert not same(whole, train(ready, tmp_path / "plain", losses=LOSSES[:1]))


@pytest.mark.parametrize(
    "changed",
    [
        {"runtime": {"micro_batch_tokens": 1}},
        {"runtime": {"packing": True}},
        {"gradient_checkpointing": True},
    ],
    ids=["split", "packed", "checkpointed"],
)
def test_what_saves_memory_or_time_changes_nothing_that_is_learned(ready, tmp_path, changed):
    whole = train(ready, tmp_path / "whole")
    said: list[Event] = []
    other = train(ready, tmp_path / "other", Reporter(said.append), **changed)
    if "packing" in changed.get("runtime", {}):
        assert any("packed: items that share" in event.get("text", "") for event in said)
    for name, tensor in whole.items():
        torch.testing.assert_close(tensor, other[name], rtol=1e-3, atol=2e-4)


def test_adapters_learn_in_bf16_from_them_alone(ready, tmp_path):
    said: list[Event] = []
    knobs = {"lora": {"rank": 8}, "dtype": "bfloat16", "losses": LOSSES[1:], "num_epochs": 6}
    train(ready, tmp_path, Reporter(said.append), **knobs)
    curve = [event["values"] for event in said if event["kind"] == "metrics"]
    for name in NAMES:
        assert curve[-1][f"validation_{name}"] < curve[0][f"validation_{name}"]


@pytest.fixture(scope="module")
def alone(ready, tmp_path_factory):
    out = tmp_path_factory.mktemp("alone") / "out"
    return out, run(ready, out, {})


@pytest.mark.parametrize("way", ["ddp", "fsdp2"])
def test_two_processes_learn_from_them_what_one_does(ready, alone, tmp_path, way):
    several = {"num_processes": 2} if way == "ddp" else {"accelerate_config": config(tmp_path)}
    assert alone[1][-1]["hidden_states"] > 0
    assert_same_run(alone, (tmp_path / "two", run(ready, tmp_path / "two", several)))


def tiny(family: str, **more) -> nn.Module:
    """A random model of a family, with grouped queries where it has them."""
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 2, "num_key_value_heads": 1, **more}
    if family == "GPT2":
        sizes = {"n_embd": 16, "n_layer": 2, "n_head": 2}
    if family == "Qwen3":
        sizes["head_dim"] = 8
    maker = getattr(transformers, f"{family}Config")
    torch.manual_seed(0)
    settings = maker(vocab_size=64, bos_token_id=1, eos_token_id=2, pad_token_id=0, **sizes)
    model = transformers.AutoModelForCausalLM.from_config(settings, attn_implementation="eager")
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    return model.eval()


@pytest.mark.parametrize("family", ["Llama", "Qwen3", "Phi3", "GPT2", "Gemma2"])
def test_a_perfect_student_of_each_family_pays_nothing_and_another_something(family):
    student = tiny(family)
    teacher, losses = copy.deepcopy(student), [Loss(name=name) for name in NAMES]
    makers = (features._hidden_states, features._attention_relations)
    terms = [make(loss, student, teacher) for make, loss in zip(makers, losses, strict=True)]
    plain = Objective(student, None, [Term("forward_kl", forward_kl)], 64)
    objective = FeatureObjective(plain, terms, teacher, seed=0)
    assert not list(objective.projectors)
    ids = torch.randint(3, 60, (2, 9))
    places = (torch.tensor([0, 0, 1]), torch.tensor([4, 5, 8]))

    def values() -> list[float]:
        with torch.no_grad(), objective.teacher.recording() as states:
            logits = teacher(ids).logits[places]
        target = Target(torch.zeros(3, dtype=torch.long), teacher_logits_NV=logits)
        return objective(ids, None, places, target, states=states).values_L.tolist()

    assert values() == pytest.approx([0, 0, 0], abs=1e-5)
    for tap, _ in terms[1].taps:
        layer = student.get_submodule(tap.module)
        weight = layer.weight.T if family == "GPT2" else layer.weight
        kept = weight.data.clone()
        weight.data[tap.start : tap.end] += 0.5 * torch.randn_like(weight[tap.start : tap.end])
        found = values()
        assert found[2] > 1e-3 and found[1] > 1e-4
        weight.data.copy_(kept)
    assert values() == pytest.approx([0, 0, 0], abs=1e-5)


@pytest.mark.parametrize("family", ["Phi3", "GPT2"])
def test_of_one_projection_the_right_parts_are_queries_keys_and_values(family):
    model, ids = tiny(family), torch.randint(3, 60, (1, 6))
    attentions = partial(model, ids, output_attentions=True)
    queries, keys, values = features._projections(model, features._blocks(model)[1])
    layer = model.get_submodule(queries.module)
    weight = layer.weight.T if family == "GPT2" else layer.weight
    before = attentions()
    with torch.no_grad():
        weight[values.start : values.end] *= 3
    after = attentions()
    # Values change what is read, not where; and without queries every token is read alike.
    assert torch.equal(before.attentions[1], after.attentions[1])
    assert not torch.allclose(before.logits, after.logits)
    for tap in (queries, keys):
        kept = weight.data.clone()
        bias = getattr(layer, "bias", None)
        with torch.no_grad():
            weight[tap.start : tap.end] = 0
            if bias is not None:
                bias[tap.start : tap.end] = 0
        even = attentions().attentions[1][0, :, -1]
        torch.testing.assert_close(even, torch.full_like(even, 1 / 6))
        weight.data.copy_(kept)


def refused(ready: Stage, losses: list[dict[str, Any]], **generate: Any) -> str:
    raw = ready.spec.model_dump(mode="json")
    raw["train"]["losses"] = losses
    raw["generate"] |= generate
    with pytest.raises(SpecError) as caught:
        check(build(raw))
    return str(caught.value)


@pytest.mark.parametrize(
    ("loss", "words"),
    [
        ({"layers": [[2, 1]]}, "the student has no layer 2; its layers are 1 to 1, or -1"),
        ({"layers": [[1, 3]]}, "the teacher has no layer 3; its layers are 1 to 2, or -1"),
        ({"layers": [["model.norms", 1]]}, "(did you mean 'model.norm'?)"),
        ({"layers": [[1]]}, "pairs of the student's and the teacher's layer"),
        ({"distance": "cosin"}, "cosin (did you mean 'cosine'?)"),
        ({"temperature": 2.0}, "it has no temperature"),
        ({"heads": 2}, "unknown option 'heads'"),
        ({"name": "attention_relations", "relation_heads": 3}, "one of: 1, 2, 4, 8, 16, 32"),
    ],
)
def test_options_that_no_model_has_are_refused_before_a_run(ready, loss, words):
    assert words in refused(ready, [{"name": "hidden_states", **loss}])


def test_layers_are_named_by_number_or_name_and_said(ready):
    raw = ready.spec.model_dump(mode="json")
    pairs = [[-1, 1], ["model.norm", "model.norm"], ["mlp.down_proj", "layers.1"]]
    raw["train"]["losses"] = [{"name": "hidden_states", "layers": pairs}]
    assert (
        "hidden_states compares model.layers.0 with model.layers.0, model.norm with model.norm, "
        "model.layers.0.mlp.down_proj with model.layers.1"
    ) in check(build(raw))


def test_a_teacher_that_shows_nothing_other_tokens_and_an_unknown_family_are_refused(
    ready, tmp_path
):
    raw = ready.spec.model_dump(mode="json")
    raw["train"]["teacher"] = "stored"
    with pytest.raises(SpecError, match=r"hidden_states, which compares.*set train\.teacher: live"):
        build(raw)
    url = "http://127.0.0.1:9/v1"
    served = {"engine": "openai", "endpoint": url, "teacher": "tiny", "mode": "answer", "top_k": 0}
    found = refused(ready, LOSSES[1:], **served)
    assert "at an endpoint, which shows none; load it in memory" in found
    other = save_model(tmp_path / "other", hidden=64)
    text = (other / "tokenizer.json").read_text()
    (other / "tokenizer.json").write_text(text.replace('"a": 6', '"ä": 6'))
    found = refused(ready, LOSSES[1:], teacher=str(other))
    assert "different tokenizers; take the loss out, or take a student of the same" in found
    compressed = tiny("DeepseekV3", q_lora_rank=8, kv_lora_rank=8)
    with pytest.raises(SpecError, match=r"in model\.layers\.1 of DeepseekV3ForCausalLM"):
        features._attention_relations(Loss(name="attention_relations"), compressed, compressed)
