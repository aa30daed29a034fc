"""A student cut from its teacher: what stays is what the teacher computes with it, in each family,
and the layers that stay are those that are missed most."""

import itertools
import math

import pytest
import torch
from transformers import AutoModelForCausalLM

from retort.errors import SpecError
from retort.events import SILENT
from retort.losses import Target
from retort.spec import recipes
from retort.stages.cut import layers, width
from retort.stages.cut.check import check
from retort.stages.cut.rows import Batch
from retort.stages.cut.shape import DEPTH_ALONE, FAMILIES, num_parameters, plan_of
from retort.stages.cut.writing import save
from retort.store import model_folder
from tests.support.cutting import CLASSES, NUM_LAYERS, ids_of, job_of, logits_of, save_teacher

KEPT = [0, 2, 4]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A function that gives a family's teacher, written once."""
    folder, known = tmp_path_factory.mktemp("teachers"), {}

    def of(family):
        if family not in known:
            shape = {"num_hidden_layers": NUM_LAYERS}
            known[family] = save_teacher(family, folder / family, **shape)
        return known[family]

    return of


def loaded(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def batch_of(model, ids, top_k=8):
    """A batch whose signal is the model's own: of each row the last six tokens are the answer."""
    rows, times = torch.meshgrid(
        torch.arange(len(ids)), torch.arange(ids.shape[1] - 7, ids.shape[1] - 1), indexing="ij"
    )
    rows, times = rows.flatten(), times.flatten()
    logprobs = torch.log_softmax(logits_of(model, ids)[rows, times], dim=-1)
    top = logprobs.topk(top_k)
    tail = torch.log1p(-top.values.exp().sum(1))
    labels = ids[rows, times + 1]
    return Batch(ids, torch.ones_like(ids) > 0, rows, times, target_of(labels, top, tail))


def target_of(labels, top, tail):
    return Target(labels, top.indices, top.values, tail)


def teacher_of(folder, seeds=(0, 1)):
    model = loaded(folder)
    at = FAMILIES[model.config.model_type]
    return layers.Teacher(model, at, [batch_of(model, ids_of(seed)) for seed in seeds])


@pytest.mark.parametrize("family", CLASSES)
def test_fewer_layers_compute_what_the_teacher_does_without_the_others(family, saved, tmp_path):
    plan = plan_of(job_of(saved(family), {"layers": len(KEPT)}))
    teacher = loaded(saved(family))
    save(tmp_path, loaded(saved(family)), plan, KEPT, None)
    for number, layer in enumerate(teacher.get_submodule(plan.layers_at)):
        if number not in KEPT:
            layer.register_forward_hook(lambda module, inputs, out: inputs[0])
    assert torch.equal(logits_of(loaded(tmp_path), ids_of()), logits_of(teacher, ids_of()))
    size = model_folder.size(tmp_path)["parameters"]
    # Layers of DeepSeek differ in size, and the largest are counted.
    assert size <= plan.parameters_after < plan.parameters
    assert size == plan.parameters_after or family == "deepseek-v3"


NARROW = {
    "gemma": {"hidden_size": 48, "intermediate_size": 40, "num_attention_heads": 2},
    "gemma-2": {"hidden_size": 32, "intermediate_size": 40, "num_attention_heads": 2},
    "gemma-3": {"hidden_size": 96, "intermediate_size": 40, "num_attention_heads": 1},
    "granite": {"hidden_size": 32, "intermediate_size": 40, "num_attention_heads": 2},
    "llama-3.1": {"hidden_size": 128, "intermediate_size": 40, "num_attention_heads": 2},
    "mistral": {"hidden_size": 96, "intermediate_size": 40, "num_attention_heads": 1},
    "phi-3-mini-4k": {"hidden_size": 96, "intermediate_size": 40, "num_attention_heads": 1},
    "phi-4-mini": {"hidden_size": 256, "intermediate_size": 40, "num_attention_heads": 2},
    "qwen2.5": {"hidden_size": 128, "intermediate_size": 40, "num_attention_heads": 1},
    "qwen3": {"hidden_size": 96, "intermediate_size": 40, "num_attention_heads": 1},
    "smollm3": {"hidden_size": 48, "intermediate_size": 40, "num_attention_heads": 2},
}


@pytest.mark.parametrize("family", NARROW)
def test_a_narrower_student_is_a_model_that_loads_and_runs(family, saved, tmp_path):
    narrow = NARROW[family]
    plan = plan_of(job_of(saved(family), {"layers": len(KEPT), "width": narrow}))
    teacher = teacher_of(saved(family), seeds=(0,))
    axes = width.indices(teacher, KEPT, plan.teacher, plan.student)
    save(tmp_path, teacher.model, plan, KEPT, axes)
    student = loaded(tmp_path)
    config = student.config
    assert {name: getattr(config, name) for name in narrow} == narrow
    assert config.head_dim == plan.teacher.head_size and config.num_hidden_layers == len(KEPT)
    logits = logits_of(student, ids_of())
    assert logits.isfinite().all() and logits.std() > 0
    assert model_folder.size(tmp_path)["parameters"] == plan.parameters_after
    head, embedding = student.get_output_embeddings(), student.get_input_embeddings()
    assert (head.weight is embedding.weight) == config.tie_word_embeddings


def idle_rows(module, rows):
    """Makes a layer give zeros at these rows."""
    with torch.no_grad():
        module.weight[rows] = 0
        if module.bias is not None:
            module.bias[rows] = 0


def same_without(folder, model, width_knobs):
    """Asserts that a teacher, part of which gives zeros, is the student without that part."""
    model.save_pretrained(folder)
    plan = plan_of(job_of(folder, {"width": width_knobs}))
    teacher, kept = teacher_of(folder, seeds=(0,)), list(range(plan.teacher.layers))
    axes = width.indices(teacher, kept, plan.teacher, plan.student)
    before = logits_of(teacher.model, ids_of(5))
    save(folder / "cut", teacher.model, plan, kept, axes)
    student = loaded(folder / "cut")
    assert student.num_parameters() < teacher.model.num_parameters()
    assert torch.allclose(logits_of(student, ids_of(5)), before, atol=1e-5)
    return plan.student


@pytest.mark.parametrize("family", ["granite", "phi-4-mini", "smollm3"])
def test_the_channels_that_go_are_those_that_do_nothing(family, saved, tmp_path):
    model = loaded(saved(family))
    for number, layer in enumerate(model.model.layers):
        idle = torch.randperm(96, generator=torch.Generator().manual_seed(number))[:48]
        fused = getattr(layer.mlp, "gate_up_proj", None)
        idle_rows(fused or layer.mlp.up_proj, idle + 96 * (fused is not None))
    assert same_without(tmp_path, model, {"intermediate_size": 48}).channels == 48


@pytest.mark.parametrize("family", ["granite", "phi-3-mini-4k"])
def test_of_groups_that_go_whole_the_idle_ones_go(family, tmp_path):
    shape = {"hidden_size": 96, "num_attention_heads": 6, "num_key_value_heads": 6, "head_dim": 16}
    model = loaded(save_teacher(family, tmp_path, num_hidden_layers=2, **shape))
    for layer, idle in zip(model.model.layers, ([0, 2, 3, 5], [1, 2, 4, 5]), strict=True):
        fused = getattr(layer.self_attn, "qkv_proj", None)
        rows = torch.cat([torch.arange(16) + head * 16 for head in idle])
        idle_rows(fused or layer.self_attn.v_proj, rows + 2 * 96 * (fused is not None))
    student = same_without(tmp_path, model, {"num_attention_heads": 2})
    assert (student.heads, student.groups) == (2, 2)


def test_of_each_group_the_idle_heads_go(tmp_path):
    """Two groups of three heads: a head is idle where the output does not read it."""
    shape = {"num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 16}
    folder = save_teacher("granite", tmp_path, num_hidden_layers=2, **shape)
    with pytest.raises(SpecError, match=r"2 key-value heads with 3 heads each, .* 2, 3, 4, 6"):
        plan_of(job_of(folder, {"width": {"num_attention_heads": 5}}))
    after = plan_of(job_of(folder, {"width": {"num_attention_heads": 4}}))
    sums = torch.tensor([3.0, 1.0, 2.0, 6.0, 9.0, 7.0])
    found = width._heads(sums, after.teacher, after.student)
    heads = [number // 16 for number in found["query"].tolist()[::16]]
    assert heads == [0, 2, 4, 5] and len(found["key"]) == 32
    whole = plan_of(job_of(folder, {"width": {"num_attention_heads": 3}})).student
    found = width._heads(sums, after.teacher, whole)
    assert found["query"].tolist() == list(range(48, 96)) and whole.groups == 1
    assert found["key"].tolist() == list(range(16, 32))
    assert found["query_key_value"].tolist() == [*range(48, 96), *range(112, 128), *range(144, 160)]


def kl_by_hand(model, batch):
    """The KL over the stored ids and the tail, in plain Python."""
    logprobs = torch.log_softmax(
        logits_of(model, batch.input_ids_BT)[batch.rows_N, batch.times_N].double(), dim=-1
    )
    total, target = 0.0, batch.target
    for row, ids, stored, tail in zip(
        logprobs, target.ids_NK, target.logprobs_NK, target.tail_N, strict=True
    ):
        own = row[ids].tolist()
        rest = math.log(1 - sum(map(math.exp, own)))
        for p, q in zip([*stored.tolist(), tail.item()], [*own, rest], strict=True):
            total += math.exp(p) * (p - q)
    return total / len(target.labels_N)


@pytest.mark.parametrize("family", ["llama-3.1", "gemma-3", "gpt-2"])
def test_one_layer_that_goes_is_the_best_of_all_and_the_kl_is_the_students(family, saved, tmp_path):
    folder = saved(family)
    teacher = teacher_of(folder)
    (removal,) = layers.remove_greedily(teacher, NUM_LAYERS - 1, SILENT)
    each = {n: teacher.kl([k for k in range(NUM_LAYERS) if k != n]) for n in range(NUM_LAYERS)}
    assert removal.layer == min(each, key=lambda n: each[n])
    assert removal.kl == each[removal.layer]
    assert abs(removal.kl_before) < 1e-6
    kept = [k for k in range(NUM_LAYERS) if k != removal.layer]
    plan = plan_of(job_of(folder, {"layers": NUM_LAYERS - 1}))
    save(tmp_path, loaded(folder), plan, kept, None)
    student = loaded(tmp_path)
    by_hand = sum(kl_by_hand(student, batch) for batch in teacher.batches) / len(teacher.batches)
    assert removal.kl == pytest.approx(by_hand, rel=1e-4)


@pytest.mark.parametrize("family", ["llama-3.1", "qwen2.5", "phi-4-mini", "gemma-2", "deepseek-v3"])
@pytest.mark.parametrize("number", [1, 2, 3])
def test_the_chosen_layers_are_never_worse_than_those_of_the_two_habits(family, number, saved):
    teacher = teacher_of(saved(family))
    choice = layers.choose(teacher, number, "kl", SILENT)
    assert len(choice.layers) == number == NUM_LAYERS - len(choice.removals)
    assert choice.kl[choice.by] == min(choice.kl[name] for name in choice.kl if name != "teacher")
    assert choice.kl[choice.by] == teacher.kl(choice.layers)
    every = itertools.combinations(range(NUM_LAYERS), number)
    assert choice.kl[choice.by] >= min(teacher.kl(kept) for kept in every)
    quick = layers.choose(teacher, number, "block_influence", SILENT)
    assert quick.kl["block_influence"] == choice.kl["block_influence"] and not quick.removals
    ranked = sorted(range(NUM_LAYERS), key=lambda n: choice.block_influence[n])
    assert set(quick.layers) == {*ranked[NUM_LAYERS - number :]}


def test_block_influence_is_one_minus_the_cosine_of_a_layers_ends(saved):
    teacher = teacher_of(saved("qwen3"), seeds=(3,))
    ids = teacher.batches[0].input_ids_BT
    with torch.inference_mode():
        states = teacher.model(ids, output_hidden_states=True, use_cache=False).hidden_states
    ours = layers.block_influence(teacher)
    for number in range(NUM_LAYERS - 1):  # the last one is after the norm
        one, other = states[number].double(), states[number + 1].double()
        cosine = (one * other).sum(-1) / (one.norm(dim=-1) * other.norm(dim=-1))
        assert ours[number] == pytest.approx(1 - cosine.mean().item(), rel=1e-4)


def test_a_share_of_parameters_leaves_as_many_layers_as_fit(saved):
    folder = saved("llama-3.1")
    sizes = [plan_of(job_of(folder, {"layers": n})).parameters_after for n in range(1, 6)]
    assert sizes == sorted(sizes) and sizes[-1] == model_folder.size(folder)["parameters"]
    for number, size in enumerate(sizes[:-1], start=1):
        for share, layers_left in (
            (size / sizes[-1], number),
            (size / sizes[-1] - 1e-6, number - 1),
        ):
            if layers_left:
                spec = job_of(folder, {"parameters": share})
                assert plan_of(spec).student.layers == layers_left
                assert num_parameters(spec) == sizes[layers_left - 1]
    narrow = job_of(folder, {"parameters": 0.3, "width": {"intermediate_size": 16}})
    assert num_parameters(narrow) <= 0.3 * sizes[-1]


@pytest.mark.parametrize(
    ("family", "knobs", "words"),
    [
        ("llama-3.1", {"layers": 6}, r"layers: 6; the teacher has 5; give fewer"),
        ("llama-3.1", {"parameters": 0.01}, r"0\.01; one layer and all that is no layer have 0\."),
        ("llama-3.1", {"width": {"hidden_size": 1024}}, r"hidden_size: 1024; the teacher has 512"),
        (
            "qwen2.5",
            {"width": {"hidden_size": 192}},
            r"heads: 2 they would not: .* hidden_size: 256",
        ),
        ("gpt-2", {"width": {"hidden_size": 64}}, "the family gpt2 can be cut in depth alone"),
        (
            "phi-4-mini",
            {"width": {"hidden_size": 192}},
            "transformers refuses this shape of a phi3",
        ),
    ],
)
def test_what_a_teacher_does_not_contain_is_refused_before_a_run(family, knobs, words, saved):
    with pytest.raises(SpecError, match=words):
        check(job_of(saved(family), knobs), True)


def test_a_family_that_cannot_be_cut_is_refused_by_name(saved, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "mamba", "num_hidden_layers": 4}')
    with pytest.raises(SpecError, match=r"the family mamba of .* cannot be cut; .* gemma, gemma2"):
        check(job_of(tmp_path, {"layers": 2}), True)
    line = check(job_of(saved("qwen3"), {"layers": 2}), True)[0]
    assert "qwen3, layers 5 -> 2; " in line
    assert check(job_of("x", {}, train={"student": "y"}), True) == []


def test_a_teacher_without_weights_here_or_without_a_signal_is_refused(saved):
    at = {"teacher": "gpt-4o", "engine": "openai", "top_k": 16}
    with pytest.raises(SpecError, match="the teacher gpt-4o is at an endpoint"):
        check(job_of("x", {"layers": 2}, generate=at), True)
    with pytest.raises(SpecError, match="org/name is no folder of this machine"):
        check(job_of("org/name", {"layers": 2}), True)
    with pytest.raises(SpecError, match=r"Ray cluster .* shared disk"):
        check(job_of(saved("qwen3"), {"layers": 2}, cluster={"ray": "auto"}), False)
    with pytest.raises(SpecError, match=r"generate\.top_k is 0"):
        job_of("x", {"layers": 2}, generate={"teacher": "x", "top_k": 0})
    two = {"teachers": {"a": {"teacher": "x"}, "b": {"teacher": "y"}}, "route": "metadata.k"}
    with pytest.raises(SpecError, match=r"cuts the one teacher, and .* has a, b"):
        job_of("x", {"layers": 2}, generate=two)


@pytest.mark.parametrize(
    ("train", "words"),
    [
        ({"student": {"from_teacher": {}}}, "nothing would be cut"),
        ({"student": {"from_teacher": {"layers": 2, "parameters": 0.5}}}, "keep one"),
        ({"student": {"from_teacher": {"layer": 2}}}, r"unknown key \(did you mean 'layers'"),
        ({"student": {"from_teachers": {"layers": 2}}}, "did you mean 'from_teacher'"),
        ({"student": {"from_teacher": {"layers": 0}}}, r"layers: .* greater than or equal to 1"),
        ({"student": ["x"]}, "train.student"),
        ({"student": "x", "controls": ["random_start"], "lora": {"rank": 4}}, "adapters beside"),
        ({"student": "x", "controls": ["random_start"], "start": "random"}, "with itself"),
    ],
)
def test_a_wrong_knob_is_explained(train, words):
    with pytest.raises(SpecError, match=words) as caught:
        job_of("x", {"layers": 2}, train=train)
    assert len(str(caught.value).splitlines()) <= 3


def test_a_cut_is_a_recipe_of_its_own_and_the_random_start_a_training_beside_it():
    spec = job_of(
        "x",
        {"layers": 2},
        train={"student": {"from_teacher": {"layers": 2}}, "controls": ["random_start"]},
    )
    digests = {"generate.teacher": "t", "train.student": "unused"}
    made = recipes(spec, digests)
    assert list(made)[:6] == ["prepare", "generate", "curate", "cut", "train", "train-random_start"]
    assert made["cut"].ingredients["sources"] == {"generate.teacher": "t"}
    reads = [name for name, recipe in made.items() if "cut" in recipe.inputs]
    assert reads == ["train", "train-random_start", "evaluate", "report"]
    assert made["train-random_start"].ingredients["knobs"]["start"] == "random"
    other = recipes(job_of("x", {"layers": 3}), digests)
    changed = {name for name in other if other[name].name != made[name].name}
    assert changed == {"cut", "train", "evaluate", "report", "release"}
    plain = recipes(job_of("x", {}, train={"student": "y"}), digests)
    assert "cut" not in plain and all("cut" not in recipe.inputs for recipe in plain.values())


def test_every_family_is_tested():
    kinds = {CLASSES[name][0].model_type for name in CLASSES}
    assert kinds == set(FAMILIES)
    assert {CLASSES[name][0].model_type for name in NARROW} == set(FAMILIES) - set(DEPTH_ALONE)
