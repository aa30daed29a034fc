"""The words with which models refuse a request: a curated list with few false positives.

A shop's "I'm sorry, but we don't ship there" is an answer. A refusal speaks of the model itself or
of the request as such.
"""

import re

from retort.data import text_stats

READ_CHARACTERS = 400
CANNOT = (
    r"(?:can ?not(?: and will not)?|can't(?: and won't)?|won't(?: be able to)?"
    r"|will not(?: be able to)?|(?:am|'m) (?:not able|unable|not going) to"
    r"|(?:must|have to|need to) (?:respectfully |politely )?decline to)"
)
THIS_REQUEST = r"(?:this|that|your|such|the) (?:\w+ ){0,2}?(?:request|question|prompt|task|query)"
# "I can't help but notice" and "I can't provide a refund" refuse no request of the user.
REFUSED = (
    r"(?:(?:assist|help|comply)\b(?! but\b)|(?:continue|proceed|engage) (?:with|in)\b"
    r"|(?:fulfill?|complete|process|respond to|answer|satisfy|accommodate) "
    rf"{THIS_REQUEST}"
    r"|(?:provide|create|generate|write|produce|give|offer|share|discuss|support|do|promote"
    r"|participate in)(?: you| with)* (?:that\b|this\b|such\b|any\b|explicit|harmful|illegal"
    r"|offensive|hateful|sexual|violent|dangerous|inappropriate|medical|legal|financial|personal"
    r"|content|instructions|information (?:on|about) (?:how|illegal|harmful)))"
)
SORRY = (
    r"(?:(?:i'm|i am|we're|we are) (?:(?:really|very|so|truly|deeply) )?(?:sorry|afraid)|sorry"
    r"|i apologi[sz]e|(?:my )?apologies|unfortunately|regrettably)(?: for (?:any|the) \w+)?"
)
MODEL = (
    r"(?:an? |your )(?:ai|artificial intelligence|(?:large )?language model|llm)"
    r"(?: (?:assistant|language model|model|system|chatbot))*"
)
CANNOT_AS_MODEL = (
    r"(?:cannot|can't|can not|unable to|not able to|don't have|do not have|must decline"
    r"|not programmed|not capable|not appropriate)"
)
OPENING = rf"(?:{SORRY}[,.;:!]? )?(?:(?:but|however),? )?"
PATTERNS = (
    rf"{OPENING}(?:as {MODEL},? )?(?:i|we) ?{CANNOT} {REFUSED}",
    rf"{OPENING}as {MODEL}(?:,| (?:i|developed|created|trained|designed|made|built)\b)"
    rf"[^.!?]*?\b{CANNOT_AS_MODEL}\b",
    rf"{OPENING}(?:i'm|i am) (?:just |only )?{MODEL}\b[^.!?]*?\b{CANNOT_AS_MODEL}\b",
    rf"{OPENING}i (?:must|have to|need to) (?:\w+ly )?decline\b",
    rf"{OPENING}i(?:'m| am) not comfortable (?:with|helping|providing|answering|discussing)\b",
    r"(?:this|your) (?:request|prompt|question) (?:violates|goes against|is against)\b",
    r"(?:it is|it's|it would be) (?:not appropriate|inappropriate|unethical|not ethical) for me\b",
    r"es tut mir leid,? (?:aber )?(?:(?:da(?:bei|s) )?kann ich|ich kann)\b[^.!?]*\bnicht\b",
    r"(?:je suis )?désolée?,? (?:mais )?je ne (?:peux|suis)\b[^.!?]*\bpas\b[^.!?]*"
    r"\b(?:aider|répondre|fournir)",
    r"lo siento,? (?:pero )?no puedo (?:ayudar|proporcionar|cumplir|responder)",
    r"(?:很?抱歉|对不起),?\s?但?(?:作为.{0,12},)?我?(?:无法|不能|没法)(?:回答|提供|协助|帮助|满足|完成)",
)
REFUSALS = re.compile("|".join(PATTERNS))


def refuses(text: str) -> bool:
    """Whether a text begins with a refusal."""
    beginning = text_stats.fold(text[:READ_CHARACTERS]).lstrip("\"'*_># ")
    return REFUSALS.match(beginning) is not None
