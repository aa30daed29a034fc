"""Exact and near duplicates, and leaks of held-out texts, among up to millions of texts.

Texts are added one by one, and only hashes of their words are kept. Similar texts that differ in a
number, a negation or a short last line ask different things and are no duplicates.
"""

from retort.data.duplicates.pairs import DuplicatePair, find_duplicates, find_leaks
from retort.data.duplicates.texts import Texts
from retort.data.duplicates.words import normal_words

__all__ = ["DuplicatePair", "Texts", "find_duplicates", "find_leaks", "normal_words"]
