"""Writes one export of the student, in a process that loads the libraries of its format."""

import tempfile
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

from retort.data import encoding
from retort.events import Reporter
from retort.processes.libraries import lean_imports
from retort.records import JsonObject, Message
from retort.stages.export import texts
from retort.stages.export.formats import FormatModule, Importance, Student, find_format
from retort.stages.stage import Stage, from_arguments
from retort.store import model_folder

MODEL = "model"
# What a runtime loads; the rest of an export's folder is configuration and tokenizer.
WEIGHTS = (".gguf", ".onnx", ".data", ".safetensors")
SHOWN_CHARACTERS = 60
OTHER_IDS = "the runtime's tokenizer gives other ids than the student's for"


def write(arguments: JsonObject, report: Reporter) -> JsonObject:
    """Writes the folder `model/` of the stage's artifact; returns the stage's facts."""
    stage = from_arguments(arguments, report)
    (name,) = stage.spec.export.formats
    module, quantization = find_format(name)
    with stage.input("train").local_copy("student") as folder, lean_imports():
        report.progress(0, 3, "steps", "importance")
        student = Student(folder, _importance(stage, module, quantization, folder))
        with tempfile.TemporaryDirectory(prefix="retort-export-") as scratch:
            out = Path(scratch)
            report.progress(1, 3, "steps", f"writing {name}")
            facts = module.write(student, quantization, out)
            report.progress(2, 3, "steps", "tokenizer")
            tokenizer = compared_tokenizers(module, folder, out, texts.of_job(stage))
            template = compared_templates(module, folder, out, texts.chats_of_job(stage))
            weights = [path for path in out.rglob("*") if path.suffix in WEIGHTS]
            size = sum(path.stat().st_size for path in weights)
            stage.out.put_tree(out, MODEL)
        report.progress(3, 3, "steps", "")
        return {
            **facts,
            "format": name,
            "engine": module.ENGINE,
            "parameters": model_folder.size(folder)["parameters"],
            "weights_bytes": size,
            "tokenizer": tokenizer,
            "template": template,
        }


def _importance(stage: Stage, module: FormatModule, quantization: str, folder: Path) -> Importance:
    if not stage.spec.export.importance or quantization not in module.WEIGHS:
        return {}
    from retort.stages.export.importance import measured

    return measured(stage, folder)


def compared_tokenizers(
    module: FormatModule, folder: Path, out: Path, own: Iterable[str]
) -> JsonObject:
    """Returns whether the runtime reads the student's tokenizer itself, on how many texts the two
    were compared, how many of them they cut into other tokens, and the first of these: of all, and
    of the job's own."""
    tokenizer = encoding.load_tokenizer(str(folder))
    jobs = list(islice(own, texts.MOST_OWN))
    some = texts.of_all_kinds(jobs, list(tokenizer.all_special_tokens))
    theirs = module.token_ids(out, some)
    if theirs is None:
        return {"is_read": False, "num_texts": 0, "difference": None}
    ours = tokenizer(some, add_special_tokens=False)["input_ids"]
    pairs = zip(some, ours, theirs, strict=True)
    differs = [list(ids) != list(found) for _, ids, found in pairs]
    first, first_own = (
        next((text for text, is_other in zip(part, differs, strict=False) if is_other), None)
        for part in (some, some[: len(jobs)])
    )
    return {
        "is_read": True,
        "num_texts": len(some),
        "num_differing": sum(differs),
        "difference": first and f"{OTHER_IDS} {_shown(first)}",
        "own_difference": first_own and f"{OTHER_IDS} {_shown(first_own)}",
    }


def compared_templates(
    module: FormatModule, folder: Path, out: Path, chats: list[list[Message]]
) -> JsonObject:
    """Returns on how many of the job's chats the runtime's rendering was compared with the
    student's, and what the first was that the two write otherwise."""
    tokenizer = encoding.load_tokenizer(str(folder))
    ids = encoding.render_each(tokenizer, chats, [None] * len(chats))
    # A chat that the template refuses is asked nowhere.
    chats = [chat for chat, found in zip(chats, ids, strict=True) if not isinstance(found, str)]
    ours = encoding.render_texts(tokenizer, chats)
    try:
        theirs = module.prompts(out, chats)
    except Exception as error:  # a runtime's own engine of templates may refuse this one
        return {"num_chats": len(chats), "difference": f"the runtime cannot render a chat: {error}"}
    if theirs is None:
        return {"num_chats": 0, "difference": None}
    pairs = zip(ours, theirs, strict=True)
    other = next((own for own, found in pairs if own != found), None)
    difference = (
        other and f"the runtime renders otherwise what the student reads as {_shown(other)}"
    )
    return {"num_chats": len(chats), "difference": difference}


def _shown(text: str) -> str:
    whole = ascii(text)
    return whole if len(whole) <= SHOWN_CHARACTERS else f"{whole[:SHOWN_CHARACTERS]}..."
