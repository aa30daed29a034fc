"""Balance: picks, caps and weights against the obvious slow way, and what stays when rows come."""

import hashlib
import itertools
import math
import random
from collections import Counter
from fractions import Fraction

import pytest

from retort.data import balance
from retort.records import Example

ROWS = random.Random(0)
GROUPS = ROWS.choices(["a", "b", "c", "none"], [60, 25, 12, 3], k=2000)
IDS = [f"row-{number}" for number in range(2000)]


def taken(chosen: list[bool], ids: list[str]) -> set[str]:
    return {id for id, keep in zip(ids, chosen, strict=True) if keep}


def rank(id: str) -> bytes:
    """The order in which rows of a group are taken, by the standard library alone."""
    return hashlib.sha256(b"pick:" + id.encode()).digest()


def example(expected=None, options=None, **metadata) -> Example:
    chat = [{"role": "user", "content": "?"}]
    return Example("e", "train", chat, expected, metadata=metadata, options=options)


def test_groups_are_labels_metadata_or_labels_of_closed_answers():
    closed = {"yes": "", "no": ""}
    assert balance.group_of(example("yes"), "label") == "yes"
    assert balance.group_of(example(), "label") == "none"
    assert balance.group_of(example("yes", closed), "auto") == "yes"
    assert balance.group_of(example("42"), "auto") == balance.group_of(example(), "auto") == "all"
    assert balance.group_of(example(None, closed), "auto") == "all"
    assert balance.group_of(example(year=2024), "metadata.year") == "2024"
    assert balance.group_of(example(year=None), "metadata.year") == "none"
    with pytest.raises(ValueError, match=r"metadata\.KEY"):
        balance.group_of(example(), "cluster")


def test_groups_are_counted_largest_first_and_equal_ones_by_name():
    assert list(balance.spread("banana").items()) == [("a", 3), ("n", 2), ("b", 1)]
    assert list(balance.spread("cab")) == ["a", "b", "c"]


@pytest.mark.parametrize("limit", [1, 2, 7, 100, 999, 1999])
def test_a_pick_gives_each_group_its_share_by_the_largest_remainder(limit):
    picked = balance.pick(GROUPS, IDS, limit)
    counts = Counter(g for g, keep in zip(GROUPS, picked, strict=True) if keep)
    sizes = Counter(GROUPS)
    exact = {group: Fraction(size * limit, len(IDS)) for group, size in sizes.items()}
    slow = {group: math.floor(share) for group, share in exact.items()}
    by_remainder = sorted(exact, key=lambda group: exact[group] - slow[group], reverse=True)
    for group in by_remainder[: limit - sum(slow.values())]:
        slow[group] += 1
    assert {group: counts[group] for group in sizes} == slow
    for group, count in slow.items():
        members = sorted((i for i, g in zip(IDS, GROUPS, strict=True) if g == group), key=rank)
        assert taken(picked, IDS) & set(members) == set(members[:count])


def test_a_larger_limit_picks_the_same_rows_and_more():
    picks = [taken(balance.pick(GROUPS, IDS, limit), IDS) for limit in (50, 200, 1000, 1999, 5000)]
    assert [len(pick) for pick in picks] == [50, 200, 1000, 1999, 2000]
    assert all(small < large for small, large in itertools.pairwise(picks))


def test_a_pick_depends_on_no_order_and_hardly_changes_when_rows_are_added():
    before = taken(balance.pick(GROUPS, IDS, 200), IDS)
    order = ROWS.sample(range(2000), 2000)
    shuffled = [IDS[at] for at in order]
    assert taken(balance.pick([GROUPS[at] for at in order], shuffled, 200), shuffled) == before
    more = [*IDS, *(f"new-{number}" for number in range(100))]
    after = taken(balance.pick([*GROUPS, *["a"] * 100], more, 200), more)
    assert len(before - after) < 20


def test_one_group_is_picked_by_hash_too_and_not_from_the_top():
    picked = taken(balance.pick(["all"] * 2000, IDS, 100), IDS)
    assert picked == set(sorted(IDS, key=rank)[:100])
    assert not picked <= set(IDS[:1000])


def test_where_groups_are_more_than_the_limit_no_name_is_preferred():
    names = [f"{number:04}" for number in range(2000)]
    assert taken(balance.pick(names, IDS, 100), IDS) == set(sorted(IDS, key=rank)[:100])
    assert balance.pick([], [], 5) == []
    assert balance.pick(["a"], ["x"], 0) == [False]


def test_a_cap_keeps_the_smallest_hashes_of_each_group_and_all_of_a_small_one():
    kept = taken(balance.cap(GROUPS, IDS, 100), IDS)
    for group, size in Counter(GROUPS).items():
        members = sorted((i for i, g in zip(IDS, GROUPS, strict=True) if g == group), key=rank)
        assert kept & set(members) == set(members[: min(size, 100)])
    assert balance.cap([], [], 3) == []
    assert all(balance.cap(GROUPS, IDS, 2000))


def test_a_split_by_hash_is_even_stable_and_says_nothing_about_the_pick():
    shares = {id: balance.share(id) for id in IDS}
    assert all(0 <= share < 1 for share in shares.values())
    held_out = {id for id, share in shares.items() if share < 0.25}
    assert abs(len(held_out) - 500) < 4 * math.sqrt(2000 * 0.25 * 0.75)
    digest = hashlib.sha256(b"split:row-7").digest()
    assert shares["row-7"] == pytest.approx(int.from_bytes(digest) / 2**256)
    picked = taken(balance.pick(["all"] * 2000, IDS, 1000), IDS)
    assert abs(len(picked & held_out) - 250) < 50
    assert 0 <= balance.share("\ud800") < 1


def test_the_last_hash_is_still_below_one(monkeypatch):
    class Last:
        def digest(self) -> bytes:
            return b"\xff" * 32

    monkeypatch.setattr(balance.hashlib, "sha256", lambda data: Last())
    assert balance.share("x") < 1


def test_weights_show_groups_as_often_as_the_largest_or_in_equal_shares():
    def totals(mode) -> dict[str, float]:
        found: Counter[str] = Counter()
        for group, weight in zip(GROUPS, balance.weights(GROUPS, mode), strict=True):
            found[group] += weight
        return dict(found)

    largest, num_groups = max(Counter(GROUPS).values()), len(set(GROUPS))
    assert totals("none") == Counter(GROUPS)
    assert totals("oversample") == pytest.approx(dict.fromkeys(totals("none"), largest))
    assert totals("weights") == pytest.approx(dict.fromkeys(totals("none"), 2000 / num_groups))
    assert min(balance.weights(GROUPS, "oversample")) == 1
    assert balance.weights([], "weights") == []


def topics(num_rows: int) -> tuple[list[str], list[int]]:
    """Texts of four topics: a third of each text's words tell which."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["".join(ROWS.choices(letters, k=7)) for _ in range(900)]
    planted = ROWS.choices(range(4), [4, 3, 2, 1], k=num_rows)
    texts = [
        " ".join(
            ROWS.choices(words[:500], k=20)
            + ROWS.choices(words[500 + 100 * topic : 600 + 100 * topic], k=10)
        )
        for topic in planted
    ]
    return texts, planted


def test_clusters_find_planted_topics_and_are_named_by_words_of_theirs():
    texts, planted = topics(1500)
    found, names = balance.clusters(texts, 4)
    assert list(balance.spread(found)) == names
    pairs = Counter(zip(found, planted, strict=True))
    assert sum(count for _, count in pairs.items()) == 1500
    assert sum(max(pairs[name, topic] for topic in range(4)) for name in names) > 1480
    for name in names:
        words = name.removeprefix("cluster: ").split()
        assert len(words) == 3
        inside = [text for text, group in zip(texts, found, strict=True) if group == name]
        outside = [text for text, group in zip(texts, found, strict=True) if group != name]
        for word in words:
            share = [sum(word in text for text in side) / len(side) for side in (inside, outside)]
            assert share[0] > 10 * share[1]


def test_clusters_are_the_same_each_time_and_do_not_need_to_see_every_row(monkeypatch):
    texts, planted = topics(1200)
    found = balance.clusters(texts, 4)
    assert balance.clusters(texts, 4) == found
    monkeypatch.setattr(balance, "FITTED_ROWS", 400)
    monkeypatch.setattr(balance, "CHUNK_ROWS", 500)
    sampled, names = balance.clusters(texts, 4)
    assert len(sampled) == 1200
    pairs = Counter(zip(sampled, planted, strict=True))
    assert sum(max(pairs[name, topic] for topic in range(4)) for name in names) > 1100


@pytest.mark.parametrize(
    ("texts", "names"),
    [
        ([], []),
        (["hello"], ["cluster: hello"]),
        (["hello there"] * 5, ["cluster: hello"]),
        (["1 2 3", "", "..."], ["cluster: no words"]),
        (["red apple", "blue sea"], ["cluster: apple red", "cluster: blue sea"]),
    ],
)
def test_few_equal_or_empty_texts_make_fewer_clusters(texts, names):
    found, listed = balance.clusters(texts, 8)
    assert len(found) == len(texts)
    assert sorted(listed) == sorted(set(found)) == names


def test_what_a_user_says_is_what_an_example_is_clustered_by():
    chat = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": None},
        {"role": "user", "content": "two"},
    ]
    assert balance.text_of(Example("e", "train", chat)) == "one\ntwo"
