"""The check of `train` before a run: losses, student, lengths, adapters, live teacher, machines."""

import json
from pathlib import Path

from retort.data import token_bytes
from retort.engines import find_engine, resolve
from retort.errors import SpecError
from retort.plugins import check_function, check_options
from retort.records import JsonObject
from retort.spec import JobSpec, rounds
from retort.spec.train import Lora
from retort.stages.engine_settings import engine_of, model_line, settings_of
from retort.stages.teachers import each_job
from retort.stages.train.layout import layout_of
from retort.store import model_folder


def check(spec: JobSpec) -> list[str]:
    """Returns a line for each successful check. Raises `SpecError` for the first fault."""
    for loss in spec.losses:
        check_function("loss", loss.name, "retort.losses")
        own = type(loss).model_fields
        check_options("loss", loss.name, "retort.losses", loss.options, own)
    student = model_folder.check(spec.base, "train.student")
    objective = " + ".join(f"{loss.weight:g} {loss.name}" for loss in spec.losses)
    lines = [f"objective {objective}"]
    if spec.cut is None:
        lines.append(model_line("train.student", spec.base, student))
    _check_schedule(spec)
    _check_lengths(spec, student)
    if spec.train.lora:
        lines.append(_check_lora(spec, spec.train.lora, student))
    if spec.is_live:
        lines.append(_check_live(spec))
        lines += _check_features(spec, student)
    for name, taught in each_job(spec).items() if spec.distils else ():
        who = f"teacher {name}" if name else "teacher"
        if not engine_of(taught).REMOTE:
            teacher = model_folder.locate(taught.generate.teacher, "generate.teacher")
            lines.append(f"{who} and student {check_pair(spec, teacher, student)}")
        elif spec.uses_signal:
            token_bytes.load(student)
            lines.append(f"the signal of the {who}'s endpoint is learned by bytes")
    return [*lines, *_check_rounds(spec, student), *_check_nodes(spec)]


def _check_rounds(spec: JobSpec, student: Path) -> list[str]:
    """Returns lines on the on-policy rounds. Raises `SpecError` where the teacher cannot score the
    student's answers, or ends its own in another way."""
    knobs = spec.train.on_policy
    if knobs is None:
        return []
    for loss in knobs.losses:
        check_function("loss", loss.name, "retort.losses")
        check_options("loss", loss.name, "retort.losses", loss.options, type(loss).model_fields)
    engine = engine_of(spec)
    if not engine.SCORES:
        raise SpecError(
            "train.on_policy has the teacher score the student's own answers, which "
            f"generate.engine: {spec.generate.engine} does not; use vllm, transformers, or openai "
            "with the address of vLLM's server"
        )
    if spec.cluster.ray:
        raise SpecError(
            "train.on_policy: rounds run on this machine alone; set cluster.ray: null, or take "
            "train.on_policy out"
        )
    positions = _config(student).get("max_position_embeddings")
    if positions and (spec.generate.max_model_len or 0) > positions:
        raise SpecError(
            f"generate.max_model_len: {spec.generate.max_model_len}; in the rounds the student "
            f"answers, too, and takes at most {positions} tokens; set it to at most {positions}"
        )
    if engine.REMOTE:
        engine.check(settings_of(rounds.scores(spec, 1), ""))
    else:
        _check_ends(spec, student)
    asked = rounds.rollouts(spec, 1).generate
    if find_engine(resolve(asked.engine, asked.top_k)).REMOTE:
        raise SpecError(
            f"train.on_policy.engine: {asked.engine} runs no model of a folder, which the student "
            "is; use vllm or transformers"
        )
    lines = [
        f"train.on_policy: {knobs.rounds} rounds of {knobs.prompts:,} prompts; each keeps weights "
        "and optimizer in the store, 12 bytes a parameter"
    ]
    if not (knobs.held_out and spec.prepare.has("validation")):
        lines.append("warning: train.on_policy: without validation rows every round is kept")
    if spec.generate.mode == "score" or spec.train.text == "expected":
        lines.append(
            "warning: train.on_policy: the rows' own answers are learned before the rounds, and "
            "the teacher's distribution in them; the two may disagree"
        )
    return lines


def _check_ends(spec: JobSpec, student: Path) -> None:
    """Raises `SpecError` where the teacher ends an answer in another way than the student."""
    teacher = model_folder.locate(spec.generate.teacher, "generate.teacher")
    check_pair(spec, teacher, student)
    ends, own = _end_ids(teacher), _end_ids(student)
    alike = model_folder.token_map(teacher)[0] == model_folder.token_map(student)[0]
    if alike and ends and own and not ends & own:
        raise SpecError(
            f"train.on_policy: the teacher ends an answer with the token {sorted(ends)}, the "
            f"student with {sorted(own)}, so that it would be taught never to end; give both the "
            "same eos_token_id in generation_config.json"
        )


def _end_ids(folder: Path) -> set[int]:
    """Returns the ids that end an answer of a model, as far as its small files say."""
    for name in ("generation_config.json", "config.json"):
        path = folder / name
        if path.is_file():
            found = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id")
            if found is not None:
                return {*found} if isinstance(found, list) else {found}
    return set()


def _check_schedule(spec: JobSpec) -> None:
    """Raises `SpecError` for knobs of the schedule that could never take effect."""
    knobs = spec.train
    if knobs.early_stopping and not spec.prepare.has("validation"):
        raise SpecError(
            "train.early_stopping: needs a validation loss, but there are no validation rows; set "
            "prepare.validation_ratio: 0.1, or remove train.early_stopping"
        )
    if knobs.schedule == "constant" and knobs.min_learning_rate_ratio:
        raise SpecError(
            f"train.min_learning_rate_ratio: {knobs.min_learning_rate_ratio:g} is where a decay "
            "ends, but train.schedule: constant has none; set schedule: cosine or linear, or "
            "remove min_learning_rate_ratio"
        )


def _check_lengths(spec: JobSpec, student: Path) -> None:
    """Raises `SpecError` for lengths beyond the student's positions."""
    positions = _config(student).get("max_position_embeddings")
    default = type(spec.train).model_fields["max_length"].default
    for name, length in (
        ("train.max_length", spec.train.max_length if spec.train.max_length != default else 0),
        ("evaluate.max_model_len", spec.evaluate.max_model_len or 0),
    ):
        if positions and length > positions:
            raise SpecError(
                f"{name}: {length}; the student takes at most {positions} tokens; set it to at "
                f"most {positions}"
            )


def _check_lora(spec: JobSpec, lora: Lora, folder: Path) -> str:
    """Returns a line on the adapters. Raises `SpecError` for layers that the student has not."""
    if lora.quantize == "nf4" and spec.train.runtime.device == "cpu":
        raise SpecError(
            "train.lora.quantize: nf4 needs a CUDA device, but train.runtime.device is cpu; set "
            "quantize: none, or device: cuda"
        )
    if lora.target_modules:
        import torch
        import transformers

        from retort.stages.train import student

        config = transformers.AutoConfig.from_pretrained(folder)
        with torch.device("meta"):  # its layers without its weights
            model = transformers.AutoModelForCausalLM.from_config(config)
        student._check_targets(model, lora.target_modules)
    layers = ", ".join(lora.target_modules) or "every linear layer but the head"
    return f"train.lora: adapters of rank {lora.rank} on {layers}"


def _config(folder: Path) -> JsonObject:
    config: JsonObject = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return {**config, **(config.get("text_config") or {})}


def _check_live(spec: JobSpec) -> str:
    """Returns a line on the teacher that is asked while the student learns."""
    from retort.stages.train.endpoint_teacher import is_remote

    if is_remote(spec):
        where = f"its endpoint, {spec.train.live_top_k} log-probabilities a token"
    else:
        where = "memory beside it"
    return f"train.teacher: live; the teacher is asked while the student learns, in {where}"


def _check_features(spec: JobSpec, student: Path) -> list[str]:
    """Returns a line for each loss over hidden states or attention. Raises `SpecError` where the
    models or the options do not allow it."""
    from retort.stages.train.endpoint_teacher import is_remote

    losses = [loss for loss in spec.losses if loss.compares_features]
    for index, loss in enumerate(losses):
        where = f"train.losses: {loss.name} compares the insides of both models"
        if is_remote(spec):
            raise SpecError(
                f"{where}, but the teacher is at an endpoint, which shows none; load it in memory "
                "(generate.engine: transformers or vllm), or take the loss out"
            )
        teacher = model_folder.locate(spec.generate.teacher, "generate.teacher")
        if model_folder.token_map(teacher) != model_folder.token_map(student):
            raise SpecError(
                f"{where} token by token, but {teacher} and {student} have different tokenizers; "
                "take the loss out, or take a student of the same family"
            )
        if loss.temperature != 1 or loss.name in [other.name for other in losses[:index]]:
            raise SpecError(f"{where}; it has no temperature, and is named once at most")
    if not spec.compares_features:
        return []
    from retort.stages.train.features import feature_terms

    return [str(term) for term in feature_terms(spec)]


def check_pair(spec: JobSpec, teacher: Path, student: Path) -> str:
    """Returns what teacher and student have, so that it can read the other's distribution.

    Raises `SpecError` where it cannot: their tokens cannot be compared by bytes, they share a token
    map and not their chat template, or the signal would be the whole vocabulary.
    """
    (teacher_map, size), (student_map, _) = (
        model_folder.token_map(teacher),
        model_folder.token_map(student),
    )
    text_alone = "train.losses: [{name: cross_entropy}]" if spec.is_live else "generate.top_k: 0"
    way_out = (
        f"the student cannot learn from the teacher's signal; set {text_alone} to learn from its "
        "text alone, or take a student of the same family"
    )
    if spec.uses_signal and spec.generate.top_k >= size:
        raise SpecError(
            f"generate.top_k: {spec.generate.top_k} is not below the vocabulary's {size} tokens"
        )
    if teacher_map != student_map:
        try:
            theirs, ours = token_bytes.load(teacher), token_bytes.load(student)
        except SpecError as error:
            raise SpecError(f"{error}; so {way_out}") from None
        known = {*filter(None, ours.spelled)}
        shared = sum(spelled in known for spelled in theirs.spelled)
        return (
            f"have different tokenizers ({shared:,} of the teacher's {size:,} "
            "tokens are the student's too): the signal is learned by bytes, with chunk_likelihood "
            "and every loss that compares distributions"
        )
    if model_folder.template_sha256(teacher) != model_folder.template_sha256(student):
        raise SpecError(f"{teacher} and {student} have different chat templates, so {way_out}")
    if any(loss.name == "chunk_likelihood" for loss in spec.losses):
        raise SpecError(
            "train.losses: chunk_likelihood is for a teacher with another tokenizer, and this one "
            "has the student's; name forward_kl, which learns from every token"
        )
    return "share their token map and chat template"


def _check_nodes(spec: JobSpec) -> list[str]:
    """Returns a line where the student trains on several nodes. Raises `SpecError` where no cluster
    has them."""
    layout = layout_of(spec.train)
    if layout.num_nodes == 1:
        return []
    if not spec.cluster.ray:
        raise SpecError(
            f"train.runtime.num_nodes: {layout.num_nodes}; several nodes are those of a Ray "
            "cluster; set cluster.ray: auto or HOST:PORT, or num_nodes: 1"
        )
    return [f"train.runtime.num_nodes: {layout.num_nodes} nodes of the Ray cluster"]
