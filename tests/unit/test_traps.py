"""Every trap of distillation with the tests that hold it, and the tests that stand nowhere else.

Each of the tests named here fails when its trap is sprung; it was seen to.
"""

import ast

import pytest
import torch
from tokenizers.processors import TemplateProcessing

from retort import losses
from retort.data import encoding
from retort.losses import Target
from retort.metrics.comparison.shapes import Comparison, Difference, MeasuredModel
from retort.plugins import function_names
from retort.records import Decision, Response
from retort.spec import Gate
from retort.spec.train import FEATURE_LOSSES
from retort.stages.report.gate import judge
from retort.stages.train import training_rows
from retort.stages.train.batches import collate
from retort.stages.train.head import Head, losses_of
from tests.conftest import ROOT
from tests.support.tiny import make_tokenizer
from tests.support.zoo import save_family
from tests.unit.test_head import TERMS, V, case

# The traps in the order of the design's list. (run): a run itself refuses, or says it aloud.
TRAPS: dict[str, tuple[str, ...]] = {
    "a signal one token off (run)": (
        "test_traps_in_runs.py::test_a_run_refuses_distributions_that_moved_beneath_their_tokens",
        "test_traps_in_runs.py::test_signals_that_moved_are_refused",
        "test_traps_in_runs.py::test_parity_notices_distributions_that_moved_beneath_their_tokens",
        "test_signals.py::test_a_signal_shifted_by_one_is_refused",
        "test_signals.py::test_a_signal_whose_log_probability_does_not_match_is_refused",
        "test_engines.py::test_the_signal_is_what_a_plain_forward_gives_for_the_very_ids",
    ),
    "rows joined by a counter or a salted hash": (
        "test_traps_in_runs.py::test_text_and_signal_are_joined_by_id_in_whatever_order_they_stand",
        "test_traps.py::test_no_id_is_a_salted_hash",
    ),
    "the prompt masked by the longest of the batch": (
        "test_signals.py::test_a_padded_batch_keeps_each_signal_beside_its_label",
    ),
    "text and signal of two generations": (
        "test_traps_in_runs.py::test_signals_that_moved_are_refused",
        "test_generate.py::test_the_signal_of_a_continued_answer_belongs_to_its_ids",
        "test_engines.py::test_scoring_gives_the_signal_that_generating_gave",
    ),
    "the teacher's text tokenized again": (
        "test_traps.py::test_the_teachers_own_ids_are_learned_where_tokenizers_agree",
        "test_translation.py::test_chunks_spell_the_same_bytes_on_both_sides",
    ),
    "padding of the vocabulary": (
        "test_families.py::test_a_family_learns_and_its_saved_student_is_the_one_that_learned",
        "test_train.py::test_ids_past_the_tokenizers_are_sliced_off_and_never_trained",
        "test_head.py::test_any_chunk_gives_the_values_and_gradients_of_float64",
        "test_cli.py::test_a_tokenizer_that_changes_the_text_is_refused_where_a_signal_is_asked_for",
    ),
    "a temperature without its square": (
        "test_losses.py::test_the_gradient_keeps_its_size_in_the_temperature",
        "test_losses.py::test_value_and_gradient_agree_with_float64",
    ),
    "a temperature on a top k whose tail is unknown": (
        "test_traps.py::test_every_loss_says_what_it_assumes_of_the_tail",
        "test_losses.py::test_a_stored_signal_of_all_ids_or_all_but_one_is_the_dense_teacher",
        "test_head.py::test_a_live_teachers_logits_are_made_chunk_by_chunk",
    ),
    "a renormalised top k: mass in the tail is free (run)": (
        "test_losses.py::test_mass_in_the_tail_is_not_free",
        "test_traps.py::test_only_the_teachers_own_probabilities_are_at_rest",
        "test_traps_in_runs.py::test_the_teachers_mass_in_the_top_k_is_logged_and_little_of_it_is_"
        "an_alarm",
    ),
    "a clamped sum: a dead gradient": (
        "test_traps.py::test_a_student_above_the_teacher_at_every_stored_id_pays_and_moves",
        "test_losses.py::test_a_tail_of_1e_7_keeps_its_value_and_its_gradient",
    ),
    "raw top-k logits without their normaliser": (
        "test_signals.py::test_the_tail_is_what_the_top_k_leaves",
        "test_signal_format.py::test_a_target_has_its_own_log_probability_wherever_it_stands",
        "test_signal_format.py::test_the_error_stays_within_its_bound_and_the_whole_is_one",
    ),
    # Ids drawn by importance, or a k by mass, are not offered: the bucket leaves no bias to mend.
    "a biased top k": ("test_traps.py::test_only_the_teachers_own_probabilities_are_at_rest",),
    "a reverse KL that is infinite where ids are missing": (
        "test_loss_edges.py::test_extreme_logits_and_a_certain_teacher_give_finite_numbers",
        "test_losses.py::test_value_and_gradient_agree_with_float64",
    ),
    "bf16 logarithms, mixtures of probabilities": (
        "test_losses.py::test_value_and_gradient_agree_with_float64",
        "test_loss_edges.py::test_extreme_logits_and_a_certain_teacher_give_finite_numbers",
        "test_head.py::test_any_chunk_gives_the_values_and_gradients_of_float64",
        "test_head.py::test_under_bf16_autocast_the_gradients_stay_within_two_percent",
    ),
    "minus infinity times zero": (
        "test_loss_edges.py::test_ids_that_both_sides_exclude_with_minus_infinity_change_nothing",
    ),
    "every token masked": (
        "test_loss_edges.py::test_no_token_at_all_is_a_zero_that_can_be_differentiated",
        "test_head.py::test_no_token_gives_a_zero_whose_gradient_is_zero",
        "test_traps_in_runs.py::test_a_run_without_a_supervised_token_is_refused_and_a_step_"
        "without_one_is_no_nan",
    ),
    "means of means": (
        "test_traps_in_runs.py::test_a_step_of_sixteen_rows_is_that_of_sixteen_micro_batches_of_one",
        "test_losses.py::test_a_batch_is_the_sum_of_its_tokens",
        "test_ranks.py::test_two_processes_learn_what_one_does",
    ),
    "a divergence that is not zero for a perfect student": (
        "test_losses.py::test_a_perfect_student_pays_nothing_and_is_not_moved",
    ),
    "the wrapped model passed by": (
        "test_objective.py::test_two_processes_under_ddp_and_fsdp_learn_what_one_does",
        "test_ranks.py::test_a_student_sharded_by_fsdp2_learns_what_a_whole_one_does",
    ),
    "a frozen or tied head": (
        "test_traps.py::test_a_frozen_head_costs_a_product_less",
        "test_head.py::test_a_tied_head_gets_the_gradient_of_both_its_uses_once",
        "test_head.py::test_a_model_held_in_bf16_adds_its_gradient_up_in_fp32",
    ),
    "padding that is the end token: answers never stop (run)": (
        "test_traps.py::test_the_end_is_learned_where_padding_is_the_same_token",
        "test_traps_in_runs.py::test_each_answer_ends_with_the_one_end_token_and_the_audit_shows_"
        "it",
        "test_traps_in_runs.py::test_an_answer_with_two_end_tokens_or_none_is_not_learned_from",
        "test_signals.py::test_there_is_one_end_token_however_the_engine_gave_it",
        "test_signals.py::test_the_audit_shows_what_is_read_and_what_is_learned",
    ),
    "a capture that runs past the end": (
        "test_traps.py::test_no_capture_runs_past_the_end",
        "test_traps_in_runs.py::test_answers_end_at_their_end_token_and_only_those_are_whole",
    ),
    "two tokens that begin": (
        "test_traps.py::test_a_tokenizer_that_adds_its_own_begin_does_not_add_a_second",
    ),
    "another template at capture, training or evaluation (run)": (
        "test_traps_in_runs.py::test_a_manifest_of_another_template_is_refused",
        "test_traps_in_runs.py::test_a_student_is_not_asked_in_another_form_than_it_learned",
        "test_traps_in_runs.py::test_a_prompt_that_is_rendered_otherwise_than_at_capture_is_said",
    ),
    "packed rows that see one another": (
        "test_packing.py::test_packed_rows_give_the_losses_and_gradients_of_unpacked_ones",
    ),
    "a teacher in training mode or another precision (run)": (
        "test_traps_in_runs.py::test_a_teacher_with_dropout_gives_what_it_gives_without",
        "test_generate.py::test_parity_notices_a_signal_of_another_model",
        "test_generate.py::test_the_signal_of_a_continued_answer_belongs_to_its_ids",
        "test_live_teacher.py::test_the_teacher_has_no_dropout_no_gradient_and_its_own_precision",
    ),
    "distillation silently off (run)": (
        "test_train.py::test_a_loss_that_moves_nothing_is_refused_before_training",
        "test_traps_in_runs.py::test_a_run_without_a_supervised_token_is_refused_and_a_step_"
        "without_one_is_no_nan",
    ),
    "answers cut off, learned as if whole": (
        "test_azure_defects.py::test_4_a_truncated_answer_is_not_learned_from",
        "test_generate.py::test_a_cut_answer_is_continued_and_equals_an_uncut_one",
    ),
    "a student worse than its base or than plain fine-tuning": (
        "test_traps.py::test_a_student_that_lost_is_refused",
        "test_controls.py::test_the_report_shows_a_student_that_is_below_a_control_and_says_what_"
        "to_do",
    ),
    # Nothing is quantized or exported yet; the issue that exports a student scores what it exports.
    "an exported, quantized model that nobody scored": (),
}
NOT_YET = ("an exported, quantized model that nobody scored",)


def names_in(name: str) -> set[str]:
    """The names of the tests in a file of tests."""
    (path,) = (ROOT / "tests").glob(f"*/{name}")
    tree = ast.parse(path.read_text())
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_every_trap_is_held_by_tests_that_are_there():
    for trap, held_by in TRAPS.items():
        assert held_by or trap in NOT_YET, trap
        for test in held_by:
            file, _, name = test.partition("::")
            assert name in names_in(file), test


def test_no_id_is_a_salted_hash():
    for path in (ROOT / "retort").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            assert getattr(node, "id", None) != "hash", f"{path}:{node.lineno}"


def test_no_capture_runs_past_the_end():
    paths = [*(ROOT / "retort").rglob("*.py"), *(ROOT / "tasks").rglob("*.py")]
    assert len(paths) > 50
    assert not [path for path in paths if "ignore_eos" in path.read_text()]


def test_the_teachers_own_ids_are_learned_where_tokenizers_agree(tmp_path):
    tokenizer = encoding.load_tokenizer(str(save_family("qwen3", tmp_path)))
    text = "seven books"
    whole = tokenizer(text)["input_ids"]
    spelled = [i for letter in text for i in tokenizer(letter)["input_ids"]]
    assert spelled != whole and tokenizer.decode(spelled) == text
    response, decision = Response("r", text, spelled, "stop", 1, 1), Decision("r", True)
    assert training_rows.learned(tokenizer, response, decision, own_ids=True)[1] == spelled
    assert training_rows.learned(tokenizer, response, decision, own_ids=False)[1] == whole


@pytest.mark.parametrize(
    "name", sorted({*function_names("retort.losses")} - {"cross_entropy", *FEATURE_LOSSES})
)
def test_every_loss_says_what_it_assumes_of_the_tail(name):
    said = " ".join(getattr(losses, name).__doc__.split())
    assert "The tail at T != 1: as one token" in said or "No tail is needed" in said
    assert "tempered as if they were one token: an approximation" in " ".join(
        losses.__doc__.split()
    )


DIVERGENCES = [losses.forward_kl, losses.reverse_kl, losses.jsd, losses.skewed_forward_kl,
               losses.skewed_reverse_kl, losses.adaptive_kl]  # fmt: skip


def gradient(loss, probabilities: list[float], target: Target) -> tuple[float, torch.Tensor]:
    leaf = torch.tensor([probabilities]).log().requires_grad_()
    value = loss(leaf, target)
    value.backward()
    return value.item(), leaf.grad[0]


def stored(first: float, second: float, tail: float) -> Target:
    """A teacher of two stored ids, 0 and 1, of a vocabulary of five."""
    ids, logprobs = torch.tensor([[0, 1]]), torch.tensor([[first, second]]).log()
    return Target(ids[:, 0], ids, logprobs, torch.tensor([tail]).log())


@pytest.mark.parametrize("loss", DIVERGENCES)
def test_only_the_teachers_own_probabilities_are_at_rest(loss):
    target = stored(0.6, 0.2, 0.2)
    value, slope = gradient(loss, [0.6, 0.2, 0.1, 0.06, 0.04], target)
    assert value == pytest.approx(0, abs=1e-6) and slope.abs().max() < 1e-6
    # What a renormalised top k teaches: its mass is 1, the tail is nothing.
    value, slope = gradient(loss, [0.74, 0.24, 0.01, 0.005, 0.005], target)
    assert value > 1e-2 and slope[:2].sum() > 1e-2 and slope[2:].sum() < -1e-2


@pytest.mark.parametrize("loss", DIVERGENCES)
def test_a_student_above_the_teacher_at_every_stored_id_pays_and_moves(loss):
    value, slope = gradient(loss, [0.7, 0.28, 0.01, 0.005, 0.005], stored(0.6, 0.2, 0.2))
    assert value > 1e-2
    assert slope[:2].sum() > 1e-2 and slope[2:].sum() < -1e-2


def test_a_frozen_head_costs_a_product_less():
    costs = []
    for is_trained in (True, False):
        hidden, layer, target = case()
        layer.requires_grad_(is_trained)
        with torch.profiler.profile() as seen:
            losses_of(hidden, Head(layer, V), target, TERMS).total_.backward()
        costs.append(sum(event.count for event in seen.key_averages() if "mm" in event.key))
    assert costs == [3, 2]  # logits, the hidden states' gradient, and that of the weight


@pytest.mark.parametrize(
    ("retention", "gain", "passes"),
    [(0.95, 0.01, True), (0.95, -0.01, False), (0.5, 0.1, False), (None, 0.1, False)],
)
def test_a_student_that_lost_is_refused(retention, gain, passes):
    against = {"base": Difference(gain, gain - 0.1, gain + 0.1)}
    comparison = Comparison("accuracy", retention, gain, differences=against)
    assert judge(MeasuredModel("student", "echo", {}), comparison, Gate()).passed == passes


def test_the_end_is_learned_where_padding_is_the_same_token():
    end = 0  # the id that `collate` pads with
    items = [
        (encoding.encode("a", [5, 6], [7, end]), None),
        (encoding.encode("b", [5, 6, 7, 8, 9], [7, 8, 9, end]), None),
    ]
    learned = collate(items, "cpu").target.labels_N.tolist()
    assert sorted(learned) == sorted([7, end, 7, 8, 9, end])


def test_a_tokenizer_that_adds_its_own_begin_does_not_add_a_second():
    tokenizer = make_tokenizer()
    tokenizer._tokenizer.post_processor = TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[("<bos>", 1), ("<eos>", 2)]
    )
    assert tokenizer("hi")["input_ids"].count(1) == 1
    (ids,) = encoding.render(tokenizer, [[{"role": "user", "content": "hi"}]])
    assert (ids.count(1), ids.count(2)) == (1, 0)
    assert encoding.response_ids(tokenizer, "hi") == [*tokenizer("hi")["input_ids"][1:-1], 2]
    response, decision = Response("r", "hi", [], "stop", 1, 1), Decision("r", True)
    assert training_rows.learned(tokenizer, response, decision, own_ids=True)[1].count(1) == 0
