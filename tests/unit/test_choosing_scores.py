"""Scores of rows: by hand on few rows, and kinds of rows that are taken in their proportions."""

import numpy as np
import pytest
from scipy import sparse

from retort.jobs.choosing import scores
from retort.jobs.choosing.asking import entropy
from retort.store.signals import captured


def unit(*rows: tuple[float, ...]) -> sparse.csr_array:
    found = np.array(rows, dtype=np.float64)
    return sparse.csr_array(found / np.linalg.norm(found, axis=1, keepdims=True))


def test_rows_are_near_by_the_square_of_their_cosine():
    near = scores.nearness(unit((1, 0)), unit((1, 0), (1, 1), (0, 1)))
    assert near[0] == pytest.approx([1, 0.5, 0])
    assert scores.crowd(unit((1, 0), (0, 1)), unit((1, 0), (1, 1))) == pytest.approx([1.5, 0.5])


def test_a_sketch_is_of_runs_of_words_that_others_have_too_by_how_rare_they_are():
    texts = ["Ann has 5 red cups", "Ann has 19 red hats", "Bob has none", "red red red"]
    # Shared: ann, ann has, has, has 0, ann has 0, 0, 0 red, has 0 red: of two; has, red: of three.
    of_two, of_three = np.log(4 / 2), np.log(4 / 3)
    first = scores.sketches(texts)[[0]].toarray()[0]
    values = [of_two] * 7 + [of_three] * 2
    assert sorted(first[first > 0]) == pytest.approx(sorted(np.array(values) / norm(values)))
    near = scores.nearness(scores.sketches(texts), scores.sketches(texts))
    assert near[0, 1] == pytest.approx(1) and near[0, 0] == pytest.approx(1)
    assert near[0, 2] == pytest.approx(of_three**2 / norm(values) ** 2)
    lonely = scores.sketches(["?", "one"])
    assert list(scores.crowd(lonely, lonely)) == [0, 0] and scores.sketches([]).shape == (0, 0)


def norm(values: list[float]) -> float:
    return float(np.linalg.norm(values))


def test_disagreement_is_that_of_near_rows_and_the_mean_where_none_is():
    known, wrong = unit((1, 0, 0), (0, 1, 0)), np.array([1.0, 0.0])
    found = scores.disagreement(unit((1, 0, 0), (0, 1, 0), (0, 0, 1)), known, wrong)
    assert found == pytest.approx([(1 + 0.5) / 2, 0.5 / 2, 0.5])


def test_ranks_count_equal_values_half():
    assert scores.ranks(np.array([3.0, 1.0, 3.0, 9.0])) == pytest.approx([0.5, 0.125, 0.5, 0.875])


def test_the_entropy_is_the_mean_over_tokens_with_the_rest_as_one_more():
    chances = np.array([[0.5, 0.25], [0.9, 0.1]], dtype=np.float32)
    ids = np.zeros((2, 2), dtype=np.int32)
    ids[:, 1] = 1
    signal = captured(ids, np.log(chances), ids[:, 0], np.log(chances[:, 0]))
    first = -(0.5 * np.log(0.5) + 2 * 0.25 * np.log(0.25))
    second = -(0.9 * np.log(0.9) + 0.1 * np.log(0.1))
    assert entropy(signal) == pytest.approx((first + second) / 2, abs=1e-4)
    assert entropy(None) is None


def kinds(number: dict[str, int]) -> tuple[list[str], sparse.csr_array]:
    """Rows of kinds, each a direction with a little noise."""
    random = np.random.default_rng(0)
    names = [name for name, count in number.items() for _ in range(count)]
    order = random.permutation(len(names))
    axes = {name: np.eye(8)[at] for at, name in enumerate(number)}
    rows = [axes[names[at]] + abs(random.normal(0, 0.05, 8)) for at in order]
    return [names[at] for at in order], unit(*map(tuple, rows))


def test_a_kind_is_chosen_by_its_score_and_not_as_often_as_the_pool_repeats_it():
    names, places = kinds({"easy": 900, "hard": 60})
    of_kind = {"easy": 0.2, "hard": 0.8}
    worth = np.array([of_kind[name] for name in names])
    chosen, values = zip(*scores.pick(worth, places, places[:0], 60), strict=True)
    num_hard = sum(names[row] == "hard" for row in chosen)
    # 0.8 x 60^0.5 to 0.2 x 900^0.5 is about one to one; at random there would be 4.
    assert 25 <= num_hard <= 35
    assert len(set(chosen)) == 60 and list(values) == sorted(values, reverse=True)


def test_what_is_answered_already_is_chosen_less():
    names, places = kinds({"one": 200, "two": 200})
    known = places[[name == "one" for name in names]][:100]
    chosen = scores.pick(np.ones(400), places, known, 80)
    assert sum(names[row] == "two" for row, _ in chosen) == 80


def test_a_row_like_no_other_comes_after_kinds_that_are_often_asked():
    names, places = kinds({"usual": 300, "odd": 1})
    order = [names[row] for row, _ in scores.pick(np.ones(301), places, places[:0], 30)]
    assert order.index("odd") > 5
