"""How alike two texts are, from 0 to 1: the evaluation metrics of text_similarity graders.

OpenAI names the metrics and, of one, the library; how it cuts texts into words is not documented.
"""

from typing import Any, Literal

from retort.metrics import rouge

Metric = Literal[
    "fuzzy_match",
    "bleu",
    "gleu",
    "meteor",
    "cosine",
    "rouge_1",
    "rouge_2",
    "rouge_3",
    "rouge_4",
    "rouge_5",
    "rouge_l",
]


def check(metric: Metric) -> None:
    """Raises `ValueError` for a metric that cannot be computed here."""
    if metric == "cosine":
        raise ValueError(
            "cosine compares embeddings of OpenAI's text-embedding-3-large, which Retort does not "
            "ask; use rouge_l or fuzzy_match in its place, or a score_model grader"
        )
    if metric == "meteor" and not _has_wordnet():
        raise ValueError(
            "meteor needs WordNet's synonyms, which are not on this machine; run python -m "
            "nltk.downloader wordnet, or use rouge_l in its place"
        )


def similarity(metric: Metric, given: str, wanted: str) -> float:
    """Returns how alike a text is to a reference."""
    if metric == "fuzzy_match":
        from rapidfuzz import fuzz, utils

        return fuzz.WRatio(given, wanted, processor=utils.default_process) / 100
    if metric == "bleu":
        from sacrebleu import sentence_bleu

        return float(sentence_bleu(given, [wanted]).score) / 100
    if metric == "rouge_l":
        return rouge.rouge_l(wanted, given)
    if metric.startswith("rouge_"):
        return rouge.rouge_n(wanted, given, int(metric[-1]))
    if metric == "gleu":
        from nltk.translate.gleu_score import sentence_gleu as score
    else:
        from nltk.translate.meteor_score import meteor_score as score
    words, others = _words(given), _words(wanted)
    return float(score([others], words)) if words and others else float(words == others)


def _words(text: str) -> list[str]:
    from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

    tokenizer: Any = Tokenizer13a()
    return str(tokenizer(text)).split()


def _has_wordnet() -> bool:
    import nltk

    for name in ("corpora/wordnet", "corpora/wordnet.zip"):
        try:
            nltk.data.find(name)
        except LookupError:
            continue
        return True
    return False
