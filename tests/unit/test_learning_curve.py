"""The curve through learning curves: known ones are found, little data is said to be little."""

import numpy as np
import pytest

from retort.metrics.learning_curve import Band, error_of, errors_of, fit, speeds_up

SIZES = [64, 128, 256, 512, 1024]
V = 2000


def students(errors: list[float], seed: int = 0) -> list[dict[str, list[float]]]:
    """Right and wrong answers: what is hard for one student is hard for all."""
    hard = np.random.default_rng(seed).permutation(V) / V
    return [{str(i): [float(hard[i] >= error), 1.0] for i in range(V)} for error in errors]


def curve_of(error, sizes=SIZES, teacher=None):
    made = students([error(n) for n in sizes])
    own = None if teacher is None else errors_of("accuracy", students([teacher]), 0)[:, 0]
    return fit("accuracy", sizes, errors_of("accuracy", made, 0), teacher_R=own)


def power(floor: float, drop: float, exponent: float):
    return lambda n: floor + drop * (n / 64) ** -exponent


@pytest.mark.parametrize("law", [(0.0, 0.6, 0.5), (0.1, 0.5, 0.6), (0.05, 0.4, 0.3)])
def test_what_comes_with_more_examples_is_within_the_band_and_near_its_middle(law):
    error = power(*law)
    curve = curve_of(error)
    for times in (2, 4):
        said = curve.error(1024 * times)
        assert said.low <= error(1024 * times) <= said.high
        assert abs(said.value - error(1024 * times)) < 0.015
        gain = curve.gain(1024 * times)
        assert gain.low <= error(1024) - error(1024 * times) <= gain.high


@pytest.mark.parametrize("known", [300, 1000])
def test_a_student_that_knows_something_gains_more_with_each_doubling_and_that_is_foretold(known):
    def error(n: int) -> float:
        return 0.6 * ((n + known) / (64 + known)) ** -0.8

    curve = curve_of(error)
    for times in (2, 4):
        said = curve.error(1024 * times)
        assert said.low <= error(1024 * times) <= said.high
        assert abs(said.value - error(1024 * times)) < 0.025 * times


def test_the_end_of_a_curve_is_looked_for_around_the_teachers_error():
    def error(n: int) -> float:
        return 0.05 + 0.25 * ((n + 700) / 764) ** -1.2

    alone, beside, bad = curve_of(error), curve_of(error, teacher=0.05), curve_of(error, teacher=1)
    came = error(4096)
    assert abs(beside.error(4096).value - came) < abs(alone.error(4096).value - came)
    assert bad.gain(4096).value < alone.gain(4096).value < beside.gain(4096).value


@pytest.mark.parametrize("teacher", [0.0, 0.1, 0.5])
def test_a_teacher_does_not_hide_where_a_student_ends(teacher):
    """One that is too small for the task, or one that is better than its teacher."""
    error = power(0.2, 0.4, 0.8)
    curve = curve_of(error, teacher=teacher)
    for times in (2, 4):
        said = curve.error(1024 * times)
        assert said.low <= error(1024 * times) <= said.high
        assert abs(said.value - error(1024 * times)) < 0.0125 * times


def test_a_curve_that_ended_promises_nothing_and_none_rises():
    ended = curve_of(lambda n: 0.2)
    assert ended.gain(8 * 1024).value < 0.02
    rising = curve_of(lambda n: 0.2 + n / 1e5)
    assert rising.gain(4096).value >= 0
    assert (rising.errors(4096) <= rising.errors(1024)).all()


def test_a_student_that_has_only_begun_to_learn_is_told_from_one_that_levels_off():
    levels_off = power(0.1, 0.5, 0.5)
    assert not speeds_up(SIZES, [levels_off(n) for n in SIZES])
    assert speeds_up(SIZES, [0.99, 0.97, 0.92, 0.8, 0.5])
    assert not speeds_up(SIZES, [0.5, 0.502, 0.5, 0.495, 0.49])


def test_fewer_sizes_fewer_examples_and_further_ahead_are_less_sure():
    error = power(0.1, 0.5, 0.5)
    few, many = curve_of(error, [512, 1024]), curve_of(error)

    def width(band: Band) -> float:
        return band.high - band.low

    assert width(few.error(4096)) > width(many.error(4096))
    assert width(many.error(8192)) > width(many.error(2048))
    small = [
        {key: own[key] for key in list(own)[:100]} for own in students([error(n) for n in SIZES])
    ]
    wide = fit("accuracy", SIZES, errors_of("accuracy", small, 0))
    assert width(wide.error(4096)) > width(many.error(4096))
    with pytest.raises(ValueError, match="two sizes"):
        curve_of(error, [1024])


def test_errors_are_paired_over_the_examples_that_all_have_in_any_order():
    one, other = students([0.3, 0.3])
    shuffled = dict(reversed(list(other.items())))
    apart = {**{f"more-{i}": [0.0, 1.0] for i in range(50)}, **shuffled}
    errors = errors_of("accuracy", [one, apart], 0)
    assert np.array_equal(errors[:, 0], errors[:, 1])
    assert abs(errors.mean() - 0.3) < 0.01


def test_an_error_is_the_distance_to_the_best_a_metric_can_be():
    values = np.array([0.25, 1.0])
    assert error_of("accuracy", values).tolist() == [0.75, 0.0]
    assert error_of("judge", values + 1).tolist() == [3.75, 3.0]
    assert error_of("perplexity", values).tolist() == values.tolist()
    assert error_of("own.metric:score", values).tolist() == [-0.25, -1.0]
