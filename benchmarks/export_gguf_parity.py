"""A GGUF export against the student it came from: the same ids of texts, the same answers.

`python -m benchmarks.export_gguf_parity FOLDER` exports the model in FOLDER to q8_0, and compares
10,000 texts and the answers to 50 prompts. For SmolLM2, FOLDER comes from examples/real/make.py.
"""

# ruff: noqa: RUF001  (the texts are of many alphabets)
import random
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from retort.data import encoding
from retort.engines import Request, Settings, find_engine
from retort.engines._llama_server import LlamaServer
from retort.stages.export.formats import Student, find_format

RUNTIME = {"max_num_seqs": 4, "kv_cache_gib": 4, "num_threads": None, "device": "cpu"}
MAX_TOKENS, MAX_LENGTH = 48, 1024
CHUNK = 12  # tokens that llama.cpp generates before they are compared
TIE = 0.1

WORDS = (
    "The quick brown fox jumps over 13 lazy dogs. I'll say it's O'Neill's, don't YOU'RE WE'LL",
    "Größe, Übermaß und Straßenbahnhaltestellenüberdachung; naïve café, coöperate, façade",
    "El niño comió 3.141,59 piñas; ¿qué? ¡Ándale! L'été où l'élève hélas s'aperçut",
    "Příliš žluťoučký kůň úpěl ďábelské ódy. Zażółć gęślą jaźń. Árvíztűrő tükörfúrógép",
    "Съешь же ещё этих мягких французских булок, да выпей чаю. Українська мова їхня",
    "Ξεσκεπάζω την ψυχοφθόρα βδελυγμία. Το ελληνικό αλφάβητο, ΆΝΩ και κάτω",
    "敏捷的棕色狐狸跳过了懒狗。二〇二六年十一月二十九日，第３号。漢字かな交じり文",
    "いろはにほへと ちりぬるを。カタカナ・ひらがな、ｱｲｳ ９８７ ー〜",
    "키스의 고유조건은 입술끼리 만나야 하고 특별한 기술은 필요치 않다. ㅋㅋㅋ 한글",
    "نص حكيم له سر قاطع وذو شأن عظيم مكتوب على ثوب أخضر ١٢٣٤ وَالشَّمْسِ",
    "דג סקרן שט בים מאוכזב ולפתע מצא חברה. שָׁלוֹם עֲלֵיכֶם",
    "ऋषियों को सताने वाले दुष्ट राक्षसों का राजा रावण १२३ क्षत्रिय ज्ञान",
    "เป็นมนุษย์สุดประเสริฐเลิศคุณค่า ๑๒๓ กว่าบรรดาฝูงสัตว์เดรัจฉาน น้ำ",
    "আমি বাংলায় গান গাই। தமிழ் மொழி ௧௨ తెలుగు ಕನ್ನಡ മലയാളം ગુજરાતી ਪੰਜਾਬੀ",
    "Tiếng Việt có dấu: ngã, hỏi, nặng. Đặng Thị Ngọc Ánh. Türkçe: İstanbul ılık şğ",
    "ქართული ენა հայերեն አማርኛ ភាសាខ្មែរ မြန်မာ ລາວ བོད་ཡིག සිංහල ᠮᠣᠩᠭᠣᠯ",
    "x² + y³ ≤ ∑ᵢ αᵢ·½ → ∞, ℵ₀ ∈ ℝ, ⅔ ⅷ Ⅻ ①②③ 1½ ²³ ٪ ‰ № ™ © ° µ Ω Å ﬁ ﬀ ǅ",
)
CODE = (
    "def f(x: int=0) -> list[str]:\n    return [f'{i:>3}' for i in range(x)]  # TODO\n\n\n",
    'if (a != b && c->d[0] <= 0x7FFF) { printf("%s\\n", p++); }\t// ok\r\n',
    '{"key": [1, 2.5e-10, null, true], "näme": "\\u00e9\\n", "a/b": {}}',
    "SELECT * FROM t WHERE id IN (SELECT MAX(id) FROM u) AND s LIKE '%a_b%';--x",
    "<div class=\"a-b\" id='c'>&nbsp;&lt;br/&gt;<!-- ... --></div>\n\n  <p>\n",
    "#!/bin/bash\nfor f in *.{c,h}; do echo \"$f\" | sed 's/\\(.*\\)/\\1/g' >> ~/x; done",
    'fn main() { let v: Vec<_> = (0..10).map(|x| x.pow(2)).collect(); println!("{v:?}"); }',
    "\\begin{equation} \\frac{\\partial f}{\\partial x} = \\sum_{i=1}^{n} x_i^{2} \\end{equation}",
    "http://user:pw@example.com:8080/a/b/../c.html?q=1&r=%20#frag www.x.org/~me/ C:\\Dir\\f.txt",
)
SPACES = " \t\n\r\u00a0\u2003\u3000\u200b\u2028\u0085\x0b\x0c"
# Emoji with their joiners, some cut in two; what is left of broken UTF-8; marks without a letter.
ODD = (
    *(
        "😀",
        "👩‍👩‍👧‍👦",
        "👩‍",
        "🏳️‍🌈",
        "🇩🇪",
        "🇩",
        "👍🏽",
        "🏽",
        "❤️",
        "❤",
        "1️⃣",
        "🫠",
        "\U0001f9d1\u200d",
    ),
    *(
        "\ufffd",
        "\ufffd\ufffd",
        "\u0301",
        "\u0e49",
        "\u094d",
        "\ufeff",
        "\u200d",
        "\ufe0f",
        "\u00ad",
    ),
    *("\x00", "\x01", "\x1b[0m", "\x7f", "\x80", "\ufffe", "\U0010ffff", "\ue000", "\U000e0041"),
    *(
        "...",
        "!!!",
        "??",
        "----",
        "====",
        "____",
        "'''",
        '"""',
        "'",
        "’s",
        "''ll",
        "//",
        "/\n",
        "$%^&*",
    ),
    *("0", "00", "123", "1234", "12345678", "1,234.5", "1e5", "٣٤٥", "v1.2.3", "3D", "x86_64"),
    *("'S", "'LL", "'Re", "I'M", "'tis", "ſ", "'ſ", "İ", "ı", "ß", "ẞ", "Ǆ", "ﬃ"),
)


def make_texts(count: int, specials: Sequence[str], seed: int = 0) -> list[str]:
    """Returns texts of many languages, code, white space, emoji, what broken UTF-8 leaves, and
    special tokens spelled out, whole and in part."""
    draw = random.Random(seed)
    return [_text(draw, specials) for _ in range(count)]


def _text(draw: random.Random, specials: Sequence[str]) -> str:
    parts = []
    for _ in range(draw.randint(1, 6)):
        kind = draw.random()
        if kind < 0.4:
            parts.append(_piece(draw, draw.choice(WORDS)))
        elif kind < 0.55:
            parts.append(_piece(draw, draw.choice(CODE)))
        elif kind < 0.7:
            parts.append("".join(draw.choices(SPACES, k=draw.randint(1, 5))))
        elif kind < 0.75:
            parts.append(" " * draw.randint(1, 20) + "\n" * draw.randint(0, 4))
        elif kind < 0.9 or not specials:
            parts.append(draw.choice(ODD))
        elif kind < 0.97:
            parts.append(draw.choice(specials))
        else:
            special = draw.choice(specials)
            parts.append(special[: draw.randint(1, len(special))])
        parts.append(draw.choice(("", "", " ")))
    return "".join(parts)


def _piece(draw: random.Random, text: str) -> str:
    """Returns a part of a text that begins and ends anywhere, at times in capitals."""
    start = draw.randrange(len(text))
    piece = text[start : start + draw.randint(1, 40)]
    return piece.upper() if draw.random() < 0.1 else piece


def differing_texts(folder: Path, kind: str, out: Path, texts: list[str]) -> list[str]:
    """Returns the texts of which an export's runtime makes other ids than the student's tokenizer;
    all of them where the runtime reads no text."""
    found = find_format(kind)[0].token_ids(out, texts)
    if found is None:
        return texts
    tokenizer = encoding.load_tokenizer(str(folder))
    wanted = tokenizer(texts, add_special_tokens=False)["input_ids"]
    return [t for t, ours, theirs in zip(texts, wanted, found, strict=True) if ours != theirs]


def answers(engine: str, model: Path, prompts: list[str]) -> list[list[int]]:
    """Returns an engine's greedy answers."""
    settings = Settings(
        model=str(model),
        temperature=0.0,
        top_p=1.0,
        max_tokens=MAX_TOKENS,
        max_model_len=MAX_LENGTH,
        top_k=0,
        dtype="float32",
        seed=0,
        runtime=RUNTIME,
    )
    requests = [
        Request(str(index), [{"role": "user", "content": prompt}])
        for index, prompt in enumerate(prompts)
    ]
    found = {a.id: a.raw for a in find_engine(engine).open_engine(settings).generate(requests)}
    return [found[request.id]["token_ids"] for request in requests]


def common(one: list[int], other: list[int]) -> int:
    """Returns how many ids two answers share from their beginning."""
    pairs = zip(one, other, strict=False)
    return next((place for place, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def disagreements(server: LlamaServer, prompt: list[int], answer: list[int]) -> dict[int, int]:
    """Returns where llama.cpp, given an answer up to there, chooses another token, and which."""
    found, place = {}, 0
    while place < len(answer):
        most = min(CHUNK, len(answer) - place)
        greedy = {"temperature": 0, "samplers": ["temperature"], "cache_prompt": True}
        ids = server.complete(prompt + answer[:place], most, **greedy).token_ids
        same = common(ids, answer[place:])
        place += same
        if same < len(ids):
            found[place], place = ids[same], place + 1
    return found


def agreement(folder: Path, out: Path, prompts: list[str]) -> tuple[float, float]:
    """Returns the share of the tokens of transformers' greedy answers that llama.cpp would choose,
    too, given what stands before each: of all, and of all but ties. In a tie the model itself in
    single precision prefers its token by less than `TIE` nats."""
    import torch
    from transformers import AutoModelForCausalLM

    tokenizer = encoding.load_tokenizer(str(folder))
    chats: list[Any] = [[{"role": "user", "content": prompt}] for prompt in prompts]
    wanted = answers("transformers", folder, prompts)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    num_others = num_ties = 0
    with LlamaServer(out / "model.gguf", context=MAX_LENGTH) as server:
        for prompt, answer in zip(encoding.render(tokenizer, chats), wanted, strict=True):
            others = disagreements(server, prompt, answer)
            with torch.inference_mode():
                logits = model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
            gaps = [float(logits[t, answer[t]] - logits[t, other]) for t, other in others.items()]
            num_others, num_ties = num_others + len(gaps), num_ties + sum(g < TIE for g in gaps)
    whole = sum(map(len, wanted))
    return 1 - num_others / whole, 1 - (num_others - num_ties) / (whole - num_ties)


def measure(folder: Path, kind: str, prompts: list[str], num_texts: int) -> dict[str, Any]:
    """Returns what an export of a model folder shares with the model itself."""
    tokens = encoding.load_tokenizer(str(folder)).added_tokens_decoder.values()
    texts = make_texts(num_texts, [token.content for token in tokens])
    with tempfile.TemporaryDirectory() as scratch:
        module, quantization = find_format(kind)
        module.check(folder, quantization)
        facts = module.write(Student(folder), quantization, Path(scratch))
        differing = differing_texts(folder, kind, Path(scratch), texts)
        of_all, of_others = agreement(folder, Path(scratch), prompts)
    return {
        **facts,
        "num_differing_texts": len(differing),
        "differing_texts": differing[:10],
        "agreement": of_all,
        "agreement_without_ties": of_others,
    }


def main() -> None:
    """Prints what the export of one folder shares with it."""
    subjects = ["rain", "bread", "a clock", "the moon", "a bridge"]
    subjects += ["tea", "iron", "a river", "sleep", "salt"]
    forms = (
        "What is {} made of?",
        "Write a short story about {}.",
        "Explain {} to a child.",
        "List three facts about {}.",
        "Translate '{}' into French and Spanish.",
    )
    prompts = [form.format(subject) for subject in subjects for form in forms]
    for name, value in measure(Path(sys.argv[1]), "gguf:q8_0", prompts, 10_000).items():
        print(f"{name}: {value}")


if __name__ == "__main__":
    main()
