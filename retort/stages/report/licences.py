"""What is known of a model's licence, and whether it lets others learn from its answers.

It is read from the model's own folder where that says it, else known by the family's name. It is a
hint, never advice: licences change, and their owners decide. Nothing is downloaded.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import orjson
import yaml

from retort.metrics.comparison.content import Licence

Distillation = Literal["allowed", "forbidden", "unknown"]
CHECK = "As far as known; check it."
MOST_CHARACTERS = 20_000
FIRST_LINES = 40


@dataclass(frozen=True)
class Terms:
    """What a licence says of learning from a model's answers, and where it can be read."""

    distillation: Distillation
    note: str
    url: str = ""


FREE = Terms("allowed", "A free licence without terms on what is made of the model's answers.")
NO_COMMERCE = Terms(
    "unknown", "Neither the model nor what is made with it may be used commercially."
)
LLAMA_EARLY = Terms(
    "unknown",
    "Its answers may improve no other language model than Llamas of this licence.",
    "https://www.llama.com/llama3/license/",
)
LLAMA = Terms(
    "allowed",
    "A student that learned from it must have a name that begins with Llama, must be distributed "
    "under the same licence, and its pages say Built with Llama.",
    "https://www.llama.com/llama3_1/license/",
)
GEMMA = Terms(
    "allowed",
    "A model that learned from its answers is a derivative: the Gemma terms and their use policy "
    "go with it.",
    "https://ai.google.dev/gemma/terms",
)
QWEN = Terms(
    "allowed",
    "A distributed model that learned from it says Built with Qwen or Improved using Qwen; large "
    "services need a licence of their own.",
    "https://huggingface.co/Qwen/Qwen2.5-72B-Instruct/blob/main/LICENSE",
)
DEEPSEEK = Terms(
    "allowed",
    "Its owner allows distillation explicitly.",
    "https://github.com/deepseek-ai/DeepSeek-R1",
)
OPENAI = Terms(
    "forbidden",
    "Answers may not be used to develop models that compete with OpenAI's.",
    "https://openai.com/policies/services-agreement/",
)
ANTHROPIC = Terms(
    "forbidden",
    "The service may not be used to train competing models, unless Anthropic approves.",
    "https://www.anthropic.com/legal/commercial-terms",
)
GEMINI = Terms(
    "forbidden",
    "The service may not be used to develop models that compete with it.",
    "https://ai.google.dev/gemini-api/terms",
)
UNKNOWN = Terms("unknown", "The terms of this licence are not known here.")
NOTHING = Terms("unknown", "No licence was found.")

# By the identifier that a model card gives, in lower case.
BY_LICENCE: tuple[tuple[str, Terms], ...] = (
    (r"(apache-2\.0|mit|bsd(-.*)?|isc|unlicense|cc0-1\.0|cc-by-(sa-)?\d\.\d|zlib)", FREE),
    (r"(llama2|llama-?3|llama3\.0)", LLAMA_EARLY),
    (r"llama-?(3\.[123]|4).*", LLAMA),
    (r"gemma.*", GEMMA),
    (r"(qwen-research|tongyi-qianwen-research|mrl|mnpl.*|mistral-ai-research.*)", NO_COMMERCE),
    (r"cc-by-nc.*", NO_COMMERCE),
    (r"(qwen|tongyi-qianwen)(-.*)?", QWEN),
    (r"deepseek.*", DEEPSEEK),
)
# By the name of the model or its folder: a model at an endpoint is known by nothing else.
BY_NAME: tuple[tuple[str, str, Terms], ...] = (
    (r"gpt-oss", "apache-2.0", FREE),
    (r"(gpt-?[345]|chatgpt|o[134](-|$)|davinci)", "OpenAI's terms", OPENAI),
    (r"claude", "Anthropic's terms", ANTHROPIC),
    (r"gemini", "Google's terms", GEMINI),
    (r"deepseek-(r1|v3)", "mit", DEEPSEEK),
    (r"(meta-)?llama-?2", "llama2", LLAMA_EARLY),
    (r"(?:meta-)?llama-?(3\.[123]|4)", r"llama\1", LLAMA),
    (r"(meta-)?llama-?3", "llama3", LLAMA_EARLY),
    (r"gemma", "gemma", GEMMA),
    (r"phi-?[34]", "mit", FREE),
    (r"qwen2\.5-3b", "qwen-research", NO_COMMERCE),
    (r"(qwen2\.5-72b|qwen2-72b|qwen1\.5)", "qwen", QWEN),
    (r"(qwen2|qwen3|qwq)", "apache-2.0", FREE),
    (r"(mistral-7b|mixtral|mistral-nemo|mistral-small|ministral-3)", "apache-2.0", FREE),
    (r"smollm", "apache-2.0", FREE),
)
# By what the first lines of a licence file hold; the first that does names it.
BY_TEXT: tuple[tuple[str, str], ...] = (
    (r"llama (2|3|3\.\d|4) community license", r"llama\1"),
    (r"gemma terms of use", "gemma"),
    (r"qwen research license", "qwen-research"),
    (r"(qwen|tongyi qianwen) license", "qwen"),
    (r"mistral ai research license", "mrl"),
    (r"deepseek license", "deepseek"),
    (r"noncommercial", "cc-by-nc"),
    (r"apache license", "apache-2.0"),
    (r"\bmit license", "mit"),
)


def of(model: str) -> Licence:
    """Returns what is known of a model's licence; never raises.

    `model` is a folder, a hub id or the name of a model at an endpoint.
    """
    folder = _folder(model)
    for source, found in (_card(folder), _file(folder)) if folder else ():
        if found:
            return _licence(found, f"{source} of the model", _terms(found))
    for source, name in (("its name", model), ("config.json of the model", _origin(folder))):
        for pattern, licence, terms in BY_NAME:
            if match := re.match(pattern, Path(name).name, re.IGNORECASE):
                return _licence(match.expand(licence), f"{source}: {Path(name).name}", terms)
    return _licence(None, "nothing", NOTHING)


def _licence(name: str | None, source: str, terms: Terms) -> Licence:
    where = f" {terms.url}" if terms.url else ""
    return Licence(name, source, terms.distillation, f"{terms.note}{where} {CHECK}")


def _terms(licence: str) -> Terms:
    """Returns what is known of a licence by its identifier."""
    for pattern, terms in BY_LICENCE:
        if re.fullmatch(pattern, licence.lower()):
            return terms
    return UNKNOWN


def _folder(model: str) -> Path | None:
    """Returns the model's folder on this machine, if it has one: given, or in the hub's cache."""
    if model and Path(model).is_dir():  # no name at all is no name of this folder
        return Path(model)
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", model):
        return None
    from huggingface_hub import try_to_load_from_cache

    for name in ("README.md", "LICENSE", "config.json"):
        found = try_to_load_from_cache(model, name)
        if isinstance(found, str):
            return Path(found).parent
    return None


def _card(folder: Path) -> tuple[str, str | None]:
    """Returns the licence that the front matter of the model's card names."""
    text = _text(folder / "README.md")
    match = re.match(r"---\s*\n(.*?)\n---\s*(\n|$)", text, re.DOTALL)
    try:
        front = yaml.safe_load(match[1]) if match else None
    except yaml.YAMLError:
        front = None
    front = front if isinstance(front, dict) else {}
    named = front.get("license")
    if named in (None, "other", "unknown"):
        named = front.get("license_name")
    named = named[0] if isinstance(named, list) and named else named
    return "README.md", str(named).strip() if named else None


def _file(folder: Path) -> tuple[str, str | None]:
    """Returns the licence whose text a file of the folder begins with."""
    for path in sorted(folder.glob("LICEN[SC]E*")):
        beginning = " ".join(" ".join(_text(path).splitlines()[:FIRST_LINES]).lower().split())
        for pattern, licence in BY_TEXT:
            if match := re.search(pattern, beginning):
                return path.name, match.expand(licence)
    return "LICENSE", None


def _origin(folder: Path | None) -> str:
    """Returns where a folder's configuration says that the model came from."""
    try:
        config = orjson.loads(_text(folder / "config.json")) if folder else {}
    except orjson.JSONDecodeError:
        return ""
    return str(config.get("_name_or_path") or "") if isinstance(config, dict) else ""


def _text(path: Path) -> str:
    """Returns the beginning of a text file; nothing where there is none that can be read."""
    try:
        with path.open(encoding="utf-8", errors="replace") as stream:
            return stream.read(MOST_CHARACTERS)
    except OSError:
        return ""
