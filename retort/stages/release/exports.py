"""The exported students of a release: those that passed, each with its card and its digests."""

import hashlib
import re
from pathlib import Path

from markupsafe import Markup

from retort.metrics.comparison import formatting, pages
from retort.metrics.comparison.shapes import ExportedStudent, ReportContent
from retort.metrics.comparison.tables import EXPORT_CAPTION, exports
from retort.spec import export_of
from retort.stages.release.model_card import front_matter
from retort.stages.stage import Stage

FOLDER, SUMS, CARD, MODELFILE = "exports", "SHA256SUMS", "README.md", "Modelfile"


def add_exports(stage: Stage, content: ReportContent) -> dict[str, list[str]]:
    """Copies each exported student that passed into the release; returns their formats, and those
    whose runtime cannot read the tokenizer, so that they take ids alone."""
    passed = {role: export for role, export in content.exports.items() if export.check.passed}
    for role, export in passed.items():
        place = f"{FOLDER}/{role}"
        texts = {CARD: export_card(stage, content, role)}
        if export.format.startswith("gguf:"):
            texts[MODELFILE] = "FROM ./model.gguf\nPARAMETER temperature 0\n"
        with stage.input(export_of(role)).local_copy("model") as folder:
            stage.out.put_tree(folder, place)
            texts[SUMS] = _sums(folder)
        for name, text in texts.items():
            stage.out.write(f"{place}/{name}", text.encode())
    by_ids = [e for e in passed.values() if not e.facts.get("tokenizer", {}).get("is_read", True)]
    return {
        "exports": [export.format for export in passed.values()],
        "exports_by_ids": [export.format for export in by_ids],
    }


def export_card(stage: Stage, content: ReportContent, role: str) -> str:
    """Returns an export's card: its scores beside the student's, and how a runtime loads it."""
    export: ExportedStudent = content.exports[role]
    spec = stage.spec
    return pages.markdown(
        "retort.stages.release",
        "export_card.md.jinja",
        content=content,
        spec=spec,
        export=export,
        kind=export.format.partition(":")[0],
        slug=re.sub(r"[^a-z0-9._-]+", "-", f"{spec.name}-{role}".lower()),
        front=Markup(front_matter(spec, content, "quantized")),
        table=exports(content, (role,)),
        caption=EXPORT_CAPTION,
        tokenizer=export.facts.get("tokenizer", {}),
        longest=export.model.max_model_len,
        show=formatting,
    )


def _sums(folder: Path) -> str:
    """Returns the digests of an export's files, as `sha256sum` writes them."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    lines = []
    for path in files:
        with path.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        lines.append(f"{digest}  {path.relative_to(folder)}\n")
    return "".join(lines)
