"""JobSpec: one section per stage, in the order in which the stages run."""

from typing import Any, Literal

from pydantic import Field, ValidationInfo, model_validator

from retort.errors import did_you_mean
from retort.spec import azure
from retort.spec.cluster import Cluster
from retort.spec.curate import ConsultedModel, Curate
from retort.spec.evaluate import Evaluate
from retort.spec.expand import Expand
from retort.spec.export import Export, role_of
from retort.spec.flat import expand, is_flat
from retort.spec.generate import Generate
from retort.spec.prepare import Prepare
from retort.spec.report import Release, Report
from retort.spec.section import Section, knob
from retort.spec.student import FromTeacher
from retort.spec.sweep import Sweep
from retort.spec.train import Loss, Train

StageName = Literal[
    "prepare",
    "expand",
    "generate",
    "curate",
    "cut",
    "train",
    "export",
    "evaluate",
    "report",
    "release",
]
STAGES: tuple[StageName, ...] = (
    "prepare",
    "expand",  # only where a model writes further prompts
    "generate",
    "curate",
    "cut",  # only where the student is cut from its teacher
    "train",
    "export",
    "evaluate",
    "report",
    "release",
)
# The context in which a stage's child reads its job again.
DERIVED = "derived"
# A control is the same base on the same rows with the same budget, by plain fine-tuning on a text.
CONTROLS: dict[str, Literal["teacher", "expected"]] = {"fine_tuning": "teacher", "gold": "expected"}
# Controls of another kind learn as the student does: without the rows of one of several teachers,
# or from random weights.
WITHOUT, RANDOM_START = "without_", "random_start"
WITHOUT_LOSS = f"{WITHOUT}loss_"
# Two go on from the student before its rounds, from stored rows: as many steps, or as long.
OFFLINE_STEPS, OFFLINE_COST = "offline_steps", "offline_cost"
ROUND_CONTROLS = (OFFLINE_STEPS, OFFLINE_COST)


def training_of(role: str) -> str:
    """Returns the name of the training that makes a role's model: train, train-fine_tuning ..."""
    return "train" if role == "student" else f"train-{role}"


def capture_of(teacher: str) -> str:
    """Returns the name of the capture of one of several teachers: generate-math."""
    return f"generate-{teacher}"


def export_of(role: str) -> str:
    """Returns the name of the export that makes a role's model: export-gguf-q4_0."""
    return f"export-{role}"


def evaluation_of(role: str) -> str:
    """Returns the name of the evaluation of an exported student: evaluate-gguf-q4_0."""
    return f"evaluate-{role}"


class JobSpec(Section):
    """One distillation job. The flat form of a few familiar keys is accepted as shorthand."""

    name: str = Field(
        description="Name of the job, of its runs and of the released model. [name]",
        json_schema_extra={"unit": "name"},
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$",
    )
    prepare: Prepare = knob(..., "section", "Rows to examples.")
    expand: Expand | None = knob(None, "section", "Examples to more examples.")
    generate: Generate = knob(..., "section", "Examples to teacher responses.")
    curate: Curate = knob(Curate(), "section", "Responses to kept responses.")
    train: Train = knob(..., "section", "Kept responses to a student.")
    export: Export = knob(Export(), "section", "Student to files for other runtimes.")
    evaluate: Evaluate = knob(Evaluate(), "section", "Models to scores.")
    report: Report = knob(Report(), "section", "Scores to a report and a verdict.")
    release: Release = knob(Release(), "section", "Student to a registered model.")
    cluster: Cluster = knob(Cluster(), "section", "Ray, where one machine is not enough.")
    sweep: Sweep | None = knob(None, "section", "What `retort sweep` tries.")

    @model_validator(mode="before")
    @classmethod
    def _accept_other_forms(cls, raw: Any) -> Any:
        if not isinstance(raw, dict):
            return raw
        if azure.is_azure(raw):
            return azure.expand(raw, None, None).sections
        return expand(raw).sections if is_flat(raw) else raw

    @model_validator(mode="after")
    def _sections_fit(self, info: ValidationInfo) -> "JobSpec":
        """Checks what no section can see alone: of a job that somebody wrote, not of one that is
        derived from it, such as a control's, of which a stage reads some sections only."""
        if info.context != DERIVED:
            self._signal_losses_need_a_signal()
            self._controls_are_others()
            self._controls_leave_out_teachers()
            self._a_cut_reads_one_signal()
            self._random_weights_all_train()
            self._one_teacher_is_live()
            self._rounds_need_a_signal()
            self._best_needs_a_judge()
            self._a_bound_of_kl_needs_the_kl()
        return self

    def _signal_losses_need_a_signal(self) -> None:
        if self.train.teacher == "live":
            return
        rewritten = self.curate.rationale != "keep"
        for index, loss in enumerate(self.train.losses):
            where = f"train.losses[{index}] is {loss.name}, which needs the teacher's signal, "
            if loss.name == "cross_entropy":
                continue
            if loss.compares_features:
                raise ValueError(
                    f"train.losses[{index}] is {loss.name}, which compares the insides of teacher "
                    "and student, but train.teacher: stored keeps only what the teacher gave out; "
                    "set train.teacher: live, with a teacher in memory, or drop the loss"
                )
            if self.generate.top_k == 0:
                raise ValueError(
                    f"{where}but generate.top_k is 0; set generate.top_k to 16, drop the loss, or "
                    "set train.teacher: live"
                )
            if rewritten:
                raise ValueError(
                    f"{where}but curate.rationale: {self.curate.rationale} has the student learn "
                    "another text than the teacher wrote; set it to keep, drop the loss, or set "
                    "train.teacher: live"
                )
            if self.train.text == "expected":
                raise ValueError(
                    f"{where}but train.text: expected has the student learn another text than the "
                    "teacher wrote; drop the loss, or set train.teacher: live"
                )

    def _controls_are_others(self) -> None:
        learns = {loss.name for loss in self.losses if loss.weight > 0}
        for control in self.controls:
            if control not in CONTROLS:
                continue
            if learns == {"cross_entropy"} and self.train.text == CONTROLS[control]:
                raise ValueError(
                    f"train.controls: {control} would compare the student with itself, for "
                    f"train.losses is cross_entropy alone and train.text: {self.train.text}; take "
                    f"{control} out of train.controls, or add a loss such as forward_kl"
                )
        if self.report.gate.beat_fine_tuning and "fine_tuning" not in self.controls:
            raise ValueError(
                "report.gate.beat_fine_tuning compares the student with plain fine-tuning, which "
                "this job does not train; add fine_tuning to train.controls, or take it out"
            )

    def _controls_leave_out_teachers(self) -> None:
        route = self.generate.route
        known = [] if route is None or route.by == "all" else list(route.order)
        allowed = [*CONTROLS, RANDOM_START, *(f"{WITHOUT}{name}" for name in known)]
        allowed += ROUND_CONTROLS if self.train.on_policy else ()
        allowed += [f"{WITHOUT_LOSS}{name}" for name in self._losses_to_leave_out]
        if unknown := [name for name in self.train.controls if name not in allowed]:
            raise ValueError(
                f"train.controls: {unknown[0]} is no control{did_you_mean(unknown[0], allowed)}; "
                f"allowed: {', '.join(allowed)}"
            )
        if self.train.without_teacher not in (None, *known):
            raise ValueError(
                f"train.without_teacher: {self.train.without_teacher} is none of several teachers "
                f"that answer rows of their own ({', '.join(known) or 'there are none'})"
            )

    @property
    def _losses_to_leave_out(self) -> list[str]:
        """The objective's own losses, of which others remain where one is left out."""
        names = [loss.name for loss in self.train.losses if loss.weight > 0]
        return [name for name in names if {*names} - {name} and not {*name} & {*":."}]

    def _a_cut_reads_one_signal(self) -> None:
        where = "train.student.from_teacher"
        if self.cut and self.generate.top_k == 0:
            raise ValueError(
                f"{where} measures what matters by the teacher's signal, and generate.top_k is 0; "
                "set it to 16, or name a base in train.student"
            )
        if self.cut and self.generate.teachers:
            raise ValueError(
                f"{where} cuts the one teacher, and generate.teachers has "
                f"{', '.join(self.generate.teachers)}; name one in generate.teacher, or a base in "
                "train.student"
            )

    def _random_weights_all_train(self) -> None:
        is_random = self.train.start == "random" or RANDOM_START in self.train.controls
        if is_random and self.train.lora:
            raise ValueError(
                "train.lora trains adapters beside the base's weights, which are random in "
                f"{RANDOM_START} (train.start); remove one of the two"
            )
        if self.train.start == "random" and RANDOM_START in self.train.controls:
            raise ValueError(
                f"train.controls: {RANDOM_START} would compare the student with itself, for "
                "train.start is random; remove one of the two"
            )

    def _one_teacher_is_live(self) -> None:
        names = list(self.generate.teachers)
        if len(names) > 1 and self.is_live:
            raise ValueError(
                "train.teacher: live has one teacher answer while the student learns, and "
                f"generate.teachers has {', '.join(names)}; set train.teacher: stored, or name the "
                "one model in generate.teacher"
            )

    def _rounds_need_a_signal(self) -> None:
        own = self.train.on_policy
        if own is None:
            return
        where = "train.on_policy has the teacher score the student's own answers, "
        if len(self.generate.teachers) > 1:
            raise ValueError(
                f"{where}and generate.teachers has several; name the one model in generate.teacher"
            )
        if self.generate.top_k == 0:
            raise ValueError(f"{where}but generate.top_k is 0; set it to 16")
        if self.generate.reasoning != "none" or self.generate.instruction:
            raise ValueError(
                f"{where}and the teacher was told what the student is not (generate.reasoning or "
                "generate.instruction), so that it would judge answers it never gave; take it out"
            )
        if self.curate.rationale != "keep":
            raise ValueError(
                f"{where}but curate.rationale: {self.curate.rationale} has the student learn "
                "another text than the teacher wrote; set it to keep"
            )
        names = {loss.name for loss in own.losses if loss.weight}
        if names == {"cross_entropy"} or "label_distribution" in names:
            raise ValueError(
                "train.on_policy.losses compare the distributions of student and teacher, such as "
                "forward_kl or reverse_kl; cross_entropy alone would teach the student what it "
                "wrote, and its answers have no labels"
            )
        for index, loss in enumerate(own.losses):
            if loss.compares_features:
                raise ValueError(
                    f"train.on_policy.losses[{index}] is {loss.name}, which compares the insides "
                    "of both models, and the scores are distributions alone; drop the loss"
                )
        if own.losses and not any(loss.weight for loss in own.losses):
            raise ValueError("train.on_policy.losses: every loss has weight 0")

    def _best_needs_a_judge(self) -> None:
        route = self.generate.route
        if route and route.by == "best_judged" and self.curate.judge is None:
            raise ValueError("generate.route: best_judged needs curate.judge; name a model there")

    def _a_bound_of_kl_needs_the_kl(self) -> None:
        if self.report.gate.export.max_kl is not None and not self.evaluate.likelihood:
            raise ValueError(
                "report.gate.export.max_kl bounds what evaluate.likelihood: false leaves "
                "unmeasured; set that to true, or take max_kl out"
            )

    @property
    def cut(self) -> FromTeacher | None:
        """How the student is cut from its teacher; None where its base is given."""
        student = self.train.student
        return None if isinstance(student, str) else student.from_teacher

    @property
    def base(self) -> str:
        """The student before it learned: a folder or hub id. Of one that is cut from its teacher it
        is the teacher, whose tokenizer and family it has; `placed` replaces it for training."""
        student = self.train.student
        return student if isinstance(student, str) else self.generate.teacher

    def based_on(self, model: str) -> "JobSpec":
        """Returns the job whose student begins as another model."""
        return self.model_copy(update={"train": self.train.model_copy(update={"student": model})})

    @property
    def registered_name(self) -> str:
        """The name under which the job's students are registered."""
        return self.release.registered_model or self.name

    @property
    def controls(self) -> tuple[str, ...]:
        """The job's controls, each once, in the order in which they are trained."""
        plain = [name for name in CONTROLS if name in self.train.controls]
        return (*plain, *dict.fromkeys(n for n in self.train.controls if n not in CONTROLS))

    @property
    def consulted_models(self) -> dict[str, ConsultedModel]:
        """The writer of prompts, the judges and the second teacher, by their knobs."""
        graders = self.evaluate.graders
        found = {
            "expand.writer": self.expand.writer if self.expand else None,
            "curate.judge": self.curate.judge,
            "curate.second_teacher": self.curate.second_teacher,
            "evaluate.judge": self.evaluate.judge,
            "evaluate.graders.judge": graders.judge if graders else None,
        }
        return {where: who for where, who in found.items() if who is not None}

    @property
    def roles(self) -> tuple[str, ...]:
        """Which models are compared."""
        return ("teacher", "base", "student", *self.controls)

    @property
    def exports(self) -> dict[str, str]:
        """The exported students: each one's format by its role, such as gguf-q4_0."""
        return {role_of(name): name for name in self.export.formats}

    def taught_by(self, teacher: str) -> "JobSpec":
        """Returns the job as it is for one of several teachers, which then is the teacher."""
        return self.model_copy(update={"generate": self.generate.taught_by(teacher)})

    def exporting(self, *formats: str) -> "JobSpec":
        """Returns the job that exports its student to these formats alone."""
        return self.model_copy(
            update={"export": self.export.model_copy(update={"formats": formats})}
        )

    def control(self, name: str) -> "JobSpec":
        """Returns the job whose student is this one's control of that name."""
        if name.startswith(WITHOUT_LOSS):
            kept = tuple(x for x in self.losses if x.name != name.removeprefix(WITHOUT_LOSS))
            fewer = {"controls": (), "losses": kept, "on_policy": None}
            return self.model_copy(update={"train": self.train.model_copy(update=fewer)})
        if name.startswith(WITHOUT):
            teacher = name.removeprefix(WITHOUT)
            less = {"controls": (), "without_teacher": teacher, "on_policy": None}
            return self.model_copy(update={"train": self.train.model_copy(update=less)})
        if name == RANDOM_START:
            begins = {"controls": (), "start": "random", "on_policy": None}
            return self.model_copy(update={"train": self.train.model_copy(update=begins)})
        plain = {
            "losses": (Loss(name="cross_entropy"),),
            "teacher": "stored",
            "text": CONTROLS[name],
            "controls": (),
            "on_policy": None,
        }
        return self.model_copy(update={"train": self.train.model_copy(update=plain)})

    @property
    def losses(self) -> tuple[Loss, ...]:
        """The objective with its default filled in."""
        if self.train.losses:
            return self.train.losses
        own_text = self.curate.rationale == "keep" and self.train.text == "teacher"
        stored = self.generate.top_k > 0 and own_text
        if self.train.teacher == "stored" and not stored:
            return (Loss(name="cross_entropy"),)
        return (Loss(name="cross_entropy", weight=0.2), Loss(name="forward_kl", weight=0.8))

    @property
    def distils(self) -> bool:
        """Whether any term of the objective reads the teacher's distribution."""
        return any(loss.name != "cross_entropy" for loss in self.losses)

    @property
    def compares_features(self) -> bool:
        """Whether any term of the objective compares the insides of teacher and student."""
        return any(loss.compares_features and loss.weight > 0 for loss in self.losses)

    @property
    def uses_signal(self) -> bool:
        """Whether the student learns from the stored signal."""
        return self.distils and self.train.teacher == "stored"

    @property
    def is_live(self) -> bool:
        """Whether the teacher answers while the student trains."""
        return self.distils and self.train.teacher == "live"
