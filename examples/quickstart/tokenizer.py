"""The quickstart's tokenizer: about 130 whole words, single digits, and a chat template.

Words and marks carry the space before them, and the one after them where a digit follows; so
digits carry none, few tokens are spaces, and joined tokens are the exact text.
"""

from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from world import Problem

SPECIALS = ["<pad>", "<unk>", "<bos>", "<system>", "<user>", "<assistant>", "<end>"]
PIECE = r"\d| ?(?:[A-Za-z]+|####|[^A-Za-z\d ])(?: (?=\d))?| "

# The only place that writes a BOS; an assistant turn closes with exactly one end token.
CHAT_TEMPLATE = (
    "{{ '<bos>' }}{% for message in messages %}"
    "{{ '<' + message['role'] + '>' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ '<end>' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)


def make_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """A word-level tokenizer whose vocabulary is the special tokens and every piece of `texts`."""
    splitter = pre_tokenizers.Split(Regex(PIECE), behavior="isolated")
    pieces = {piece for text in texts for piece, _ in splitter.pre_tokenize_str(text)}
    vocabulary = {token: index for index, token in enumerate([*SPECIALS, *sorted(pieces)])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = splitter
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token="<bos>",
        eos_token="<end>",
        additional_special_tokens=["<system>", "<user>", "<assistant>"],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        padding_side="left",
        model_max_length=256,
    )


def encode_problem(
    tokenizer: PreTrainedTokenizerFast,
    problem: Problem,
) -> tuple[list[int], list[int]]:
    """Ids of the rendered prompt, and of the solution with its one end token."""
    turns = [{"role": "user", "content": problem.question}]
    prompt = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    turns.append({"role": "assistant", "content": problem.solution})
    whole = tokenizer.apply_chat_template(turns, tokenize=False)
    prompt_ids = tokenizer(prompt)["input_ids"]
    return prompt_ids, tokenizer(whole)["input_ids"][len(prompt_ids) :]
