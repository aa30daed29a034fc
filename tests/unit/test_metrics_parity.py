"""Metrics against the field's own implementations, on 1,000 random cases each.

Equal means equal bits, but where the order of a sum of floats is not ours: then to 1e-12.
"""

import random
import time
import unicodedata

import numpy as np
import pytest
import sacrebleu
from nltk.stem.porter import PorterStemmer
from rouge_score.rouge_scorer import RougeScorer
from sklearn import config_context
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score
from transformers.data.metrics.squad_metrics import compute_exact, compute_f1, normalize_answer

from retort import metrics
from retort.data.task_types import nli, qa, summarization
from retort.records import Example, Row
from retort.spec import Prepare

NUM_CASES = 1000
PLAIN = (
    "The a an tower, Tower towers Paris paris. 1889 1,889.50 o'clock rainy RAINED raining (rain)"
)
ODD = [
    *("--", "...", "\u201cquoted\u201d", "caf\u00e9", "cafe\u0301", "Stra\u00dfe", "\u0130stanbul"),
    *(
        "\u03a3\u03af\u03c3\u03c5\u03c6\u03bf\u03c2",
        "\u4e2d\u6587",
        "a\u0301",
        "the-end",
        "&quot;",
        "&",
        "%",
    ),
    *("\u00a0", "\u3000", "\U0001f600"),
]
WORDS = [*PLAIN.split(), *ODD]
LABELS = ["red", "green", "blue", "grey", "pink"]


def texts(seed, most=9):
    """Endless texts of some words, one in fifty empty, some of articles or punctuation alone."""
    chosen = random.Random(seed)
    while True:
        words = WORDS[:3] if chosen.random() < 0.05 else WORDS
        length = 0 if chosen.random() < 0.02 else chosen.randint(1, most)
        yield " ".join(chosen.choices(words, k=length))


def related(seed):
    """Endless pairs of an answer and a wanted text that often share words."""
    chosen = random.Random(seed)
    for given, wanted in zip(texts(seed), texts(seed + 1), strict=True):
        if chosen.random() < 0.1:
            yield given, given
        cut = chosen.randint(0, len(wanted))
        yield given if chosen.random() < 0.3 else wanted[:cut] + given, wanted


def example(name="e", **known):
    return Example(name, "test", [{"role": "user", "content": "?"}], **known)


def test_exact_match_and_f1_are_squads_over_all_right_answers():
    chosen, others = random.Random(0), texts(7, 3)
    partial = exact = num = 0
    for given, wanted in related(1):
        golds = [wanted, *(next(others) for _ in range(chosen.randint(0, 2)))]
        fields = {"question": "?", "answer": {"text": golds, "answer_start": [0] * len(golds)}}
        asked = qa.prompt(Row(fields=fields), Prepare(train="train.jsonl"))
        known = example(expected=asked.expected, answers=asked.answers)
        if asked.expected is None:
            assert not any(gold.split() for gold in golds)
            continue
        rights = [gold for gold in golds if normalize_answer(gold)] or [""]  # as SQuAD's get_raw
        f1 = max(compute_f1(gold, given) for gold in rights)
        assert metrics.exact_match(known, given, qa) == max(
            compute_exact(gold, given) for gold in rights
        )
        assert metrics.token_f1(known, given, qa) == f1
        partial, exact, num = partial + (0 < f1 < 1), exact + (f1 == 1), num + 1
        if num == NUM_CASES:
            break
    assert partial > 300
    assert exact > 50


def test_bleu_is_sacrebleus_of_the_corpus():
    chosen, pairs, positive = random.Random(2), related(3), 0
    for _ in range(NUM_CASES):
        corpus = [next(pairs) for _ in range(chosen.randint(1, 8))]
        corpus = [(given, wanted) for given, wanted in corpus if wanted.strip()] or [("x", "x")]
        examples = [example(str(i), expected=wanted) for i, (_, wanted) in enumerate(corpus)]
        answers = {str(i): given for i, (given, _) in enumerate(corpus)}
        found = {e.id: metrics.bleu(e, answers[e.id], summarization) for e in examples}
        value = sacrebleu.corpus_bleu([g for g, _ in corpus], [[w for _, w in corpus]]).score
        assert metrics.interval("bleu", found, 2, 0)["value"] == value
        positive += 0 < value < 100
    assert positive > 500


class Words:
    """The tokenizer of a scorer that sees the words of every script, made of Python's own."""

    def tokenize(self, text):
        found, before = [], ""
        for char in unicodedata.normalize("NFC", text).lower():
            kind = unicodedata.category(char)
            part = char if kind[0] in "LM" or kind == "Nd" else " "
            is_han = "CJK UNIFIED" in unicodedata.name(char, "")
            if part != " " and (before == " " or not before or is_han or before == "han"):
                found.append("")
            found[-1:] = [found[-1] + part] if part != " " else found[-1:]
            before = " " if part == " " else "han" if is_han else part
        stem = PorterStemmer().stem
        return [stem(word) if word.isascii() and len(word) > 3 else word for word in found]


def test_rouge_is_rouge_scores_with_stemming_on_the_words_of_every_script():
    kinds = {"rouge_1": "rouge1", "rouge_2": "rouge2", "rouge_l": "rougeL"}
    scorer = RougeScorer([*kinds.values()], use_stemmer=True)
    of_words = RougeScorer([*kinds.values()], tokenizer=Words())
    pairs, num_partial, num_ascii = related(4), 0, 0
    for _ in range(NUM_CASES):
        given, wanted = next(pairs)
        letters = [char for char in given + wanted if char.isalnum() or not char.isascii()]
        is_ascii = all(char.isascii() for char in letters)
        value = (scorer if is_ascii else of_words).score(wanted, given)
        for name, kind in kinds.items():
            metric = getattr(metrics, name)
            assert metric(example(expected=wanted), given, summarization) == value[kind].fmeasure
        num_partial += 0 < value["rouge2"].fmeasure < value["rougeL"].fmeasure < 1
        num_ascii += is_ascii
    assert num_partial > 100 and 100 < num_ascii < 900
    assert metrics.rouge_l(example(expected="It rained"), "it rains", summarization) == 1.0


SUMMARIES = {
    "zh": ("市长周三为新图书馆揭幕。", "市长周五关闭了旧码头。"),
    "zh with digits": ("2021年市长为5座图书馆揭幕", "2021年总督走访了5家工厂"),
    "ja": ("市長は水曜日に新しい図書館を開いた。", "知事は金曜日に古い港を閉めた。"),
    "ko": ("시장은 수요일에 새 도서관을 열었다.", "지사는 금요일에 낡은 항구를 닫았다."),
    "th": ("นายกเทศมนตรีเปิดห้องสมุดใหม่ในวันพุธ", "ผู้ว่าราชการปิดท่าเรือเก่าเมื่อวันศุกร์"),
    "ru": ("Мэр открыл новую библиотеку в среду.", "Губернатор закрыл старый порт."),
    "el": ("Ο δήμαρχος άνοιξε νέα βιβλιοθήκη.", "Η κυβέρνηση έκλεισε παλιό λιμάνι."),
    "ar": ("افتتح العمدة المكتبة الجديدة يوم الأربعاء.", "أغلق المحافظ الميناء القديم."),
    "he": ("ראש העיר פתח ספרייה חדשה ביום רביעי.", "המושל סגר את הנמל הישן."),
    "hi": ("महापौर ने बुधवार को नया पुस्तकालय खोला।", "राज्यपाल ने शुक्रवार को बंदरगाह बंद किया।"),
    "ta": ("மேயர் புதிய நூலகத்தைத் திறந்தார்.", "ஆளுநர் பழைய துறைமுகத்தை மூடினார்."),
    "my": ("မြို့တော်ဝန်က စာကြည့်တိုက်သစ်ကို ဖွင့်ခဲ့သည်။", "အစိုးရက ဆိပ်ကမ်းဟောင်းကို ပိတ်ခဲ့သည်။"),
    "fr": ("Le maire a inauguré l'école rénovée à Orléans.", "Un évêque fête Noël."),
}


@pytest.mark.parametrize("language", SUMMARIES)
def test_a_summary_agrees_with_itself_and_not_with_another_in_every_script(language):
    summary, other = SUMMARIES[language]
    wanted = example(expected=summary)
    for name in ("rouge_1", "rouge_2", "rouge_l"):
        score = getattr(metrics, name)
        assert score(wanted, summary, summarization) == 1.0
        assert score(wanted, other, summarization) < 0.6
    assert metrics.agreement(wanted, summary, summary, summarization) == 1.0
    assert metrics.agreement(wanted, other, summary, summarization) < 0.6
    assert metrics.length_ratio(wanted, summary, summarization)[0] > 1


def test_rouge_of_long_texts_is_fast_and_right():
    draw = random.Random(8)
    for alphabet in ("abcdefgh", "甲乙丙丁戊己庚辛"):
        one, two = (" ".join(draw.choices(alphabet, k=300)) for _ in range(2))
        expected = RougeScorer(["rougeL"], tokenizer=Words()).score(one, two)["rougeL"].fmeasure
        assert metrics.rouge_l(example(expected=one), two, summarization) == expected
        long = ["".join(draw.choices(alphabet + " ", k=20_000)) for _ in range(2)]
        started = time.process_time()
        assert 0 < metrics.rouge_l(example(expected=long[0]), long[1], summarization) < 1
        assert time.process_time() - started < 3


def test_accuracy_macro_f1_and_confusion_are_scikit_learns():
    chosen, num_unanswered = random.Random(5), 0
    for _ in range(NUM_CASES):
        labels = LABELS[: chosen.randint(2, 5)]
        shares = [5, 3, 1, 1, 1][: len(labels)]
        true = chosen.choices(labels, shares, k=chosen.randint(1, 30))
        given = [chosen.choice([label, *labels, "none"]) for label in true]
        options = {label: label for label in labels}
        examples = [
            example(str(i), expected=label, options=options) for i, label in enumerate(true)
        ]
        answers = {str(i): f"It is {label}." for i, label in enumerate(given)}
        pairs = {e.id: metrics.macro_f1(e, answers[e.id], nli, labels) for e in examples}
        right = [metrics.accuracy(e, answers[e.id], nli) for e in examples]
        places = {label: number for number, label in enumerate([*labels, "none"])}
        both = [np.array([places[label] for label in column]) for column in (true, given)]
        with config_context(skip_parameter_validation=True):
            accuracy = accuracy_score(*both)
            f1 = f1_score(*both, labels=np.unique(both[0]), average="macro", zero_division=0)
            counts = confusion_matrix(*both, labels=[*places.values()])[:-1].tolist()
        assert sum(right) / len(right) == accuracy
        value = metrics.interval("macro_f1", pairs, 2, 0)["value"]
        assert value == pytest.approx(f1, abs=1e-12, rel=0)
        assert metrics.confusion(nli, examples, answers) == {"labels": labels, "counts": counts}
        num_unanswered += "none" in given
    assert num_unanswered > 300


def test_perplexity_and_mean_divergence_are_those_of_all_tokens():
    tokens = np.random.default_rng(6).integers(1, 50, size=(NUM_CASES, 20))
    for row, seed in zip(tokens, range(NUM_CASES), strict=True):
        nats = [np.random.default_rng((seed, i)).gamma(2, 0.5, size=n) for i, n in enumerate(row)]
        found = {str(i): [float(each.sum()), float(len(each))] for i, each in enumerate(nats)}
        mean = np.concatenate(nats).mean()
        for name, value in (("perplexity", np.exp(mean)), ("kl_to_teacher", mean)):
            assert metrics.interval(name, found, 2, 0)["value"] == pytest.approx(value, rel=1e-12)
