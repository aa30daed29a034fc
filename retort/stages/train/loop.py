"""The training loop: the effect of every knob, in the order in which it happens.

Losses are sums; each optimizer step divides once by its supervised tokens, so micro-batches,
processes and checkpoints change nothing. Before the first step a run checks that each loss has a
gradient. Every process runs this file on its part of each step; the first one alone writes and
reports.
"""

# B batch, T time, N supervised tokens, V vocabulary, L terms of the objective
import contextlib
import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from retort import processes
from retort.data import encoding
from retort.engines.transformers import end_ids
from retort.errors import StageError
from retort.events import Reporter
from retort.processes import interrupts
from retort.processes.libraries import lean_imports, stay_offline
from retort.records import JsonObject
from retort.spec import Loss
from retort.stages.stage import Stage, from_arguments
from retort.stages.train import batches, checkpoint, on_policy, training_rows
from retort.stages.train.batches import Batch, TrainingItem
from retort.stages.train.curve import Curve
from retort.stages.train.distributed import Ranks, accumulating, join, whole
from retort.stages.train.features import FeatureObjective, feature_terms
from retort.stages.train.head import Sums, Term
from retort.stages.train.objective import (
    Objective,
    packs_exactly,
    term_of,
    terms_of,
    trusted_head,
)
from retort.stages.train.optimizer import lr_factor, optimizer_of
from retort.stages.train.student import open_student, save_student
from retort.stages.train.teacher import InMemory, LiveTeacher, open_teacher
from retort.store import model_folder

# The number of coming steps whose rows a teacher behind an endpoint is asked for.
AHEAD = 8
# The number of training rows among which a label is looked for, to check a loss over labels.
PROBE_ROWS = 10_000


def fit(arguments: JsonObject, report: Reporter) -> JsonObject:
    """Trains the student and writes `student/`; returns the stage's facts."""
    stage = from_arguments(arguments, report)
    knobs = stage.spec.train
    ranks = join(knobs)
    stay_offline(stage.spec.base)
    report.note(f"training on {ranks}, {torch.get_num_threads()} threads")
    torch.manual_seed(knobs.seed)
    base = model_folder.check(stage.spec.base, "train.student")
    # No device need hold all of a student that is sharded.
    device = "cpu" if ranks.layout.shards else ranks.device
    with lean_imports():
        model = open_student(knobs, device)
        tokenizer = encoding.load_tokenizer(stage.spec.base)
    ends = end_ids(model, tokenizer)
    of_round = on_policy.open_round(stage, base, ends)
    data = of_round.data if of_round else training_rows.build(stage, base, ends)
    if ranks.is_first:
        stage.out.write("mask_audit.txt", training_rows.audit(data.train, tokenizer).encode())
    trainer = _trainer(stage, model, ranks, data)
    if of_round:
        last = of_round.run(trainer)
    else:
        on_policy.goes_on(stage, trainer)
        with contextlib.closing(trainer.teacher) if trainer.teacher else contextlib.nullcontext():
            last = trainer.run(data) | trainer.of_teachers(data)
    weights = checkpoint.trained(model) if ranks.layout.shards else None
    if of_round:
        of_round.save(trainer, last, weights, ranks.is_first)
    elif ranks.is_first:
        save_student(stage, model, base, weights)
    return {
        "num_train": len(data.train),
        "num_validation": len(data.validation),
        "num_too_long": data.num_too_long,
        "share_known": data.by_bytes.share_known,
        "share_aligned": data.by_bytes.share_aligned,
        "num_steps": trainer.last_step,
        "seconds_per_step": trainer.seconds_per_step,
        "device": ranks.device,
        "num_processes": ranks.size,
        "template_sha256": model_folder.template_sha256(base),
        **last,
        "warnings": [*data.warnings, *last["warnings"]],
    }


def _trainer(stage: Stage, model: Any, ranks: Ranks, data: training_rows.TrainingData) -> "Trainer":
    """Returns the trainer of a model; what its head and packing may do is tried on one item."""
    base = model_folder.locate(stage.spec.base, "train.student")
    # Ids past the tokenizer's are padding of the embedding: never a target, never normalised over.
    vocabulary = min(model_folder.token_map(base)[1], model.config.vocab_size)
    probe = batches.collate(data.train[:1], "cpu" if ranks.layout.shards else ranks.device)
    head, note = trusted_head(model, vocabulary, probe.input_ids_BT)
    stage.report.note(note)
    packs = stage.spec.train.runtime.packing
    if packs:
        packs, note = packs_exactly(model, probe.input_ids_BT)
        stage.report.note(note)
    teacher = None
    if stage.spec.is_live:
        teacher = open_teacher(stage, vocabulary, ranks.device, data.by_bytes.live)
    objective = Objective(
        model, head, terms_of(stage.spec), vocabulary, teacher.head if teacher else None
    )
    if stage.spec.compares_features:
        assert isinstance(teacher, InMemory)  # `check` refuses another
        packs = packs and teacher.packs  # both have the same rows, then
        terms, seed = feature_terms(stage.spec), stage.spec.train.seed
        objective = FeatureObjective(objective, terms, teacher.model, seed)
    return Trainer(stage, objective, ranks, teacher, packs)


class Trainer:
    """Holds the objective with its model, and the optimizer, of one run."""

    def __init__(
        self,
        stage: Stage,
        objective: Objective,
        ranks: Ranks,
        teacher: LiveTeacher | None = None,
        packs: bool = False,
    ):
        self.stage, self.knobs, self.report = stage, stage.spec.train, stage.report
        self.ranks, self.device, self.teacher, self.packs = ranks, ranks.device, teacher, packs
        self.objective = ranks.wrap(objective)
        self.model = objective.model
        # What trains, and is in the checkpoints: the student, and projectors beside it.
        self.features = objective if isinstance(objective, FeatureObjective) else None
        self.learner = self.features or self.model
        self.terms: list[Term] = objective.parts[1]
        self.num_steps, self.last_step, self.seconds_per_step = 0, 0, 0.0
        # What a round or its control sets: the steps, and the factor on the step size.
        self.most_steps: int | None = None
        self.factor: Callable[[int, int], float] = partial(lr_factor, knobs=self.knobs)
        self.optimizer = optimizer_of(self.learner, self.knobs)

    def run(self, data: training_rows.TrainingData) -> JsonObject:
        """Trains to the end, from the newest checkpoint if any; returns the last losses."""
        knobs, out = self.knobs, self.stage.out
        per_epoch = math.ceil(data.num_draws / knobs.batch_size)
        self.num_steps = self.most_steps or per_epoch * knobs.num_epochs
        self.last_step = math.ceil(self.num_steps * (knobs.stop_after or 1))
        begun = checkpoint.resume(out, self.learner, self.optimizer)
        self.ranks.meet(begun)
        if begun:
            self.report.note(f"continuing after step {begun} of {self.num_steps}")
        curve = Curve(out, begun)
        # A loss over labels needs a row that has some.
        first = sorted(
            data.train[:PROBE_ROWS], key=lambda item: not training_rows.has_choices(item[0])
        )
        self._probe = next(batches.micro_batches(first[:16], knobs.runtime.micro_batch_tokens))
        self._check_gradients()
        started = time.monotonic()
        with interrupts.held() as interrupted:
            step = self._passes(data, curve, begun, interrupted)
        made = max(1, step - begun)
        self.seconds_per_step = (time.monotonic() - started) / made
        if knobs.stop_after:
            # A longer training makes no validation in the middle of a pass.
            if self.ranks.is_first:
                curve.write(before=step + (step % per_epoch == 0))
            checkpoint.pause(out, step, self.learner, self.optimizer, self.ranks.is_first)
            self._cool_down(data, curve, step)
        if self.ranks.is_first:
            curve.write()
        best, is_cooled = curve.best_step, bool(knobs.stop_after and knobs.cool_down)
        behind = best is not None and best != curve.records[-1]["step"]
        if knobs.keep == "best" and behind and not is_cooled:
            checkpoint.load_best(out, self.learner)
            self.report.note(f"kept the student after step {best}, of the lowest validation loss")
        self.report.note(curve.outcome())
        for text in curve.warnings():
            self.report.note(f"warning: {text}")
        return {**curve.last(), "best_step": best, "warnings": curve.warnings()}

    def _passes(
        self, data: training_rows.TrainingData, curve: Curve, step: int, interrupted: Sequence[int]
    ) -> int:
        """Makes all steps after `step`; returns the last one. Raises `KeyboardInterrupt` once an
        interrupt's state is saved."""
        knobs, out = self.knobs, self.stage.out
        per_epoch = math.ceil(data.num_draws / knobs.batch_size)
        num_epochs = math.ceil(self.num_steps / per_epoch)
        saved = reported = time.monotonic()
        for epoch in range(step // per_epoch, math.ceil(self.last_step / per_epoch)):
            if knobs.early_stopping and curve.num_stale >= knobs.early_stopping:
                self.report.note(f"stopped early: {curve.num_stale} passes without a lower loss")
                return step
            order = training_rows.steps_of_epoch(data, knobs.batch_size, knobs.seed, epoch)
            first = epoch * per_epoch
            last = min(per_epoch, self.num_steps - first)
            for within in range(step - first, min(last, self.last_step - first)):
                soon = (index for part in order[within : within + AHEAD] for index in part)
                self._expect([data.train[index] for index in soon])
                record = self._step(step, [data.train[index] for index in order[within]])
                step += 1
                end_of_epoch = within + 1 == last
                measures = end_of_epoch or step == self.last_step
                if measures:
                    record |= self._end_of_epoch(data)
                now = time.monotonic()
                if measures or now - reported > 1:
                    reported = now
                    curve.add(step, record)
                    self.report.metrics(record, step)
                    note = f"loss {record['loss']:.4f}, epoch {epoch + 1} of {num_epochs}"
                    self.report.progress(step, self.last_step, "steps", note)
                if knobs.keep == "best" and end_of_epoch and curve.best_step == step:
                    checkpoint.write_best(out, self.learner, self.ranks.is_first)
                due = now - saved > knobs.runtime.checkpoint_seconds and step < self.last_step
                due, stops = self.ranks.agree(due, bool(interrupted))
                if due or stops:
                    saved = now
                    if self.ranks.is_first:
                        curve.write()
                    checkpoint.write(out, step, self.learner, self.optimizer, self.ranks.is_first)
                if stops:
                    self.ranks.meet(step)  # torchrun ends all once one has left
                    raise KeyboardInterrupt
        return step

    def _cool_down(self, data: training_rows.TrainingData, curve: Curve, step: int) -> None:
        """Makes a few more steps with a step size that falls to 0, so that students of different
        step sizes can be compared before their ends (arXiv:2405.18392, section 3)."""
        number = min(math.ceil(step * self.knobs.cool_down), self.num_steps - step)
        if not number:
            return
        begun, at_first = step, self.factor(step, self.num_steps)
        self.factor = lambda at, _: at_first * (1 - (at - begun) / number)
        per_epoch = math.ceil(data.num_draws / self.knobs.batch_size)
        while step < begun + number:
            epoch, within = divmod(step, per_epoch)
            order = training_rows.steps_of_epoch(
                data, self.knobs.batch_size, self.knobs.seed, epoch
            )
            for part in order[within : within + begun + number - step]:
                items = [data.train[index] for index in part]
                self._expect(items)
                record = self._step(step, items)
                step += 1
        record |= self._end_of_epoch(data)
        curve.add(step, record)
        self.report.metrics(record, step)

    def _step(self, step: int, items: list[TrainingItem]) -> dict[str, float]:
        """Makes one optimizer step; returns its losses per supervised token and its norms."""
        started = time.monotonic()
        self.model.train()
        # Seeded by step, so that dropout is the same after a resume.
        torch.manual_seed(self.knobs.seed * 1_000_003 + step)
        num_valid = training_rows.supervised(items)
        # M: the terms, the teacher's mass in its top k, and the tokens of which it is known.
        sums_M = torch.zeros(len(self.terms) + 2, dtype=torch.float64)
        parts = self._parts(items)
        for number, part in enumerate(parts, start=1):
            batch = self._batch(part)
            with accumulating(self.objective, is_last=number == len(parts)):
                sums = self._losses(batch)
                # DDP and FSDP average the processes' gradients; this makes it their sum.
                (sums.total_ * (self.ranks.size / max(num_valid, 1))).backward()
            sums_M[:-2] += sums.values_L.cpu()
            if batch.target.tail_N is not None:
                sums_M[-2:] += _top_k_mass(batch.target.tail_N)
        norm = self._clipped_norm(self.knobs.max_grad_norm)
        if not math.isfinite(norm):
            raise StageError(
                f"the gradient's norm is {norm} at step {step + 1}; lower train.learning_rate "
                f"(now {self.knobs.learning_rate:g})"
            )
        for group in self.optimizer.param_groups:
            group["lr"] = self.knobs.learning_rate * self.factor(step, self.num_steps)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        sums_M = self.ranks.sum(sums_M)
        record = self._record(sums_M[:-2], num_valid, self.terms)
        if sums_M[-1]:
            record["teacher_top_k_mass"] = float(sums_M[-2] / sums_M[-1])
        return record | {
            "gradient_norm": norm,
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            "tokens": float(num_valid),
            "tokens_per_second": num_valid / (time.monotonic() - started),
        }

    def _losses(self, batch: Batch, terms: list[Term] | None = None) -> Sums:
        """Returns the sums of the terms, or of these, over the supervised tokens of a batch."""
        precision: Any = contextlib.nullcontext()
        if self.knobs.dtype == "bfloat16":
            precision = torch.autocast(self.device.split(":")[0], torch.bfloat16)
        with precision:
            sums: Sums = self.objective(
                batch.input_ids_BT,
                batch.attention_mask_BT,
                (batch.rows_N, batch.times_N),
                batch.target,
                terms,
                batch.position_ids_BT,
                *([batch.states] if self.features else []),
            )
        return sums

    def _expect(self, items: list[TrainingItem]) -> None:
        """Tells a teacher behind an endpoint which items come next, so that it is asked ahead."""
        if self.teacher and self.ranks.size == 1:  # several processes each ask for their own
            self.teacher.expect(items)

    def _batch(self, part: list[TrainingItem]) -> Batch:
        """Returns a micro-batch, with a live teacher's distribution in its target."""
        batch = batches.collate(part, self.device, self.packs)
        if self.teacher is None:
            return batch
        if self.features is None:
            return replace(batch, target=self.teacher.targets(batch))
        with self.features.teacher.recording() as states:
            return replace(batch, target=self.teacher.targets(batch), states=states)

    def _parts(self, items: list[TrainingItem]) -> list[list[TrainingItem]]:
        """Returns this process's micro-batches of a step's items; each process has equally many."""
        size, max_tokens = self.ranks.size, self.knobs.runtime.micro_batch_tokens
        shares = [
            list(batches.micro_batches(items[rank::size], max_tokens, self.packs))
            for rank in range(size)
        ]
        mine, most_parts = shares[self.ranks.rank], max(len(share) for share in shares)
        return mine + [[training_rows.blank(items[0])]] * (most_parts - len(mine))

    def _end_of_epoch(self, data: training_rows.TrainingData) -> dict[str, float]:
        """Returns what is measured once a pass: validation, each term's own gradient, memory."""
        record = self._validate(data.validation) if data.validation else {}
        record |= {f"{k}_gradient_norm": v for k, v in self._gradient_norms(self._probe).items()}
        return record | {"peak_memory_bytes": float(processes.peak_memory_bytes())}

    def of_teachers(self, data: training_rows.TrainingData) -> JsonObject:
        """Returns the counts of each teacher's items and the losses on those of validation, where
        several teachers wrote them."""
        counts: Counter[str] = Counter(
            data.teachers[row.id] for row, _ in data.train if data.teachers
        )
        held_out: dict[str, list[TrainingItem]] = {name: [] for name in counts}
        for item in data.validation if data.teachers else ():
            held_out.setdefault(data.teachers[item[0].id], []).append(item)
        found = {
            name: {
                "num_train": counts[name],
                "num_validation": len(items),
                **(self._validate(items) if items else {}),
            }
            for name, items in sorted(held_out.items())
        }
        return {"of_teachers": found} if found else {}

    def validate(self, data: training_rows.TrainingData) -> dict[str, float]:
        """Returns the losses of the validation items; nothing without any."""
        return self._validate(data.validation) if data.validation else {}

    def _validate(self, items: list[TrainingItem]) -> dict[str, float]:
        """Returns the objective and its terms per supervised token of the validation items."""
        self.model.eval()
        terms = list(self.terms)
        if self.knobs.stop_after and "cross_entropy" not in (term.name for term in terms):
            # What trials are compared by that have other losses.
            terms.append(term_of(Loss(name="cross_entropy", weight=0.0)))
        sums_L = torch.zeros(len(terms), dtype=torch.float64)
        self._expect(items)
        with torch.no_grad():
            for part in self._parts(sorted(items, key=lambda item: len(item[0].input_ids))):
                sums_L += self._losses(self._batch(part), terms).values_L.cpu()
        record = self._record(self.ranks.sum(sums_L), training_rows.supervised(items), terms)
        return {f"validation_{k}": v for k, v in record.items()}

    def _record(self, sums_L: Tensor, num_valid: int, terms: list[Term]) -> dict[str, float]:
        """Returns the objective and each of its terms, per supervised token."""
        means = (sums_L / max(num_valid, 1)).tolist()
        loss = sum(term.weight * mean for term, mean in zip(terms, means, strict=True))
        return {"loss": loss} | {t.name: m for t, m in zip(terms, means, strict=True)}

    def _check_gradients(self) -> None:
        """Raises `StageError` for a loss without a gradient: it would do nothing."""
        batch = self._batch(self._probe)
        if not training_rows.supervised(self._probe):
            raise StageError("the first batch has no supervised token; nothing would be learned")
        if batch.target.tail_N is not None:
            total, number = _top_k_mass(batch.target.tail_N).tolist()
            mass = total / max(number, 1)
            if mass < 0.5:
                self.report.note(f"warning: the top k holds only {mass:.0%} of the teacher's mass")
        for name, norm in self._gradient_norms(self._probe).items():
            if not norm > 0:
                raise StageError(
                    f"train.losses: {name} has no gradient on the first batch (norm {norm}), so it "
                    "would change nothing; take it out, or mend the loss"
                )

    def _gradient_norms(self, items: list[TrainingItem]) -> dict[str, float]:
        """Returns the norm of each term's own gradient, per supervised token, unweighted."""
        self.model.train()
        batch, norms = self._batch(items), {}
        for term in (term for term in self.terms if term.weight):
            with accumulating(self.objective, is_last=True):
                total_ = self._losses(batch, [replace(term, weight=1.0)]).total_
                (total_ / max(training_rows.supervised(items), 1)).backward()
            norms[term.name] = self._clipped_norm(float("inf"))
            self.optimizer.zero_grad(set_to_none=True)
        return norms

    def _clipped_norm(self, most: float) -> float:
        """Clips the gradient to an L2 norm of `most`; returns its norm before."""
        return float(whole(torch.nn.utils.clip_grad_norm_(self.learner.parameters(), most)))


def _top_k_mass(tail_N: Tensor) -> Tensor:
    """Returns the mass in the top k, and the number of tokens that have one."""
    mass_N = 1 - tail_N.exp()
    return torch.stack([mass_N.sum(), (mass_N > 0).sum()]).double().cpu()
