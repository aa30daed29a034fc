"""Drift: prompts from one source are hardly ever called different, a new topic always."""

import random

import numpy as np
import pytest

from retort.jobs.shadow import ALARM, Sample, drift_of
from retort.records import Example
from retort.spec.prepare import Deduplicate

SPOKEN_OF = """
bank: card account transfer loan rate branch fee balance iban deposit
shop: order parcel refund size colour voucher basket delivery return stock
travel: flight visa hotel luggage boarding train seat passport delay gate
new: vaccine dose fever nurse clinic allergy symptom insulin cough rash
plain: please could you tell me how my the a is not when i want to can about for it this
"""
TOPICS = {
    name: words.split()
    for name, _, words in (line.partition(":") for line in SPOKEN_OF.strip().splitlines())
}
PLAIN = TOPICS.pop("plain")


def example(chosen: random.Random, number: int, topic: str) -> Example:
    words = chosen.choices(PLAIN, k=chosen.randint(5, 14)) + chosen.choices(TOPICS[topic], k=4)
    words.append(str(chosen.randint(1, 10**6)))
    chosen.shuffle(words)
    content = " ".join(words)
    return Example(f"e{number}", "test", [{"role": "user", "content": content}])


def prompts(seed: int, number: int, share_of_new: float = 0.0) -> list[Example]:
    chosen = random.Random(seed)
    known = ["bank", "shop", "travel"]
    return [
        example(chosen, at, "new" if chosen.random() < share_of_new else chosen.choice(known))
        for at in range(number)
    ]


def test_few_windows_of_the_training_s_own_prompts_are_alarms_and_p_is_uniform():
    training = prompts(0, 400)
    found = [drift_of(training, prompts(seed, 100), Deduplicate(), seed) for seed in range(1, 21)]
    p_values = np.array([each.p_value for each in found])
    assert not any(each.is_alarm for each in found)
    # One training sample is common to all windows, so p is uniform only about.
    assert (p_values <= 0.1).mean() <= 0.3 and (p_values <= 0.5).mean() == pytest.approx(
        0.5, abs=0.3
    )


def test_a_new_topic_is_an_alarm_and_named_by_its_words_and_prompts():
    training, window = prompts(0, 600), prompts(1, 200, share_of_new=0.2)
    found = drift_of(training, window, Deduplicate(), 7)
    assert found.is_alarm and found.p_value == 1 / 2000 and found.p_value <= ALARM
    assert {word.word for word in found.words} <= set(TOPICS["new"])
    assert all(word.training == 0 and word.window > 0.03 for word in found.words)
    assert 0.1 < found.new_share < 0.3
    by_id = {e.id: e.messages[0]["content"].split() for e in window}
    assert all(set(TOPICS["new"]) & set(by_id[one]) for one in found.new_prompts)
    again = drift_of(training, window, Deduplicate(), 7)
    assert again == found


def test_longer_prompts_of_the_same_words_are_an_alarm_too():
    long = [
        Example(e.id, "test", [{"role": "user", "content": f"{e.messages[0]['content']} " * 6}])
        for e in prompts(3, 150)
    ]
    assert drift_of(prompts(0, 600), long, Deduplicate(), 0).is_alarm


def often(window: list[Example], prompt: Example) -> list[Example]:
    return [*window, *(Example(f"r{n}", "test", prompt.messages) for n in range(100))]


def test_a_prompt_of_the_training_may_come_often_and_a_new_one_may_not():
    training, window = prompts(0, 600), prompts(2, 100)
    plain = drift_of(training, window, Deduplicate(), 0)
    known = drift_of(training, often(window, training[599]), Deduplicate(), 0)
    assert (plain.p_value, plain.num_known) == (known.p_value, known.num_known - 100)
    new = prompts(5, 1, share_of_new=1.0)[0]
    assert drift_of(training, often(window, new), Deduplicate(), 0).is_alarm
    # Where training kept its copies, how often a prompt comes is compared too.
    kept = Deduplicate(exact=False, near=False)
    assert drift_of(training, often(window, training[599]), kept, 0).is_alarm
    same = drift_of(often(training, training[599]), often(window, training[599])[:110], kept, 0)
    assert not same.is_alarm


def test_a_window_of_known_prompts_alone_is_no_drift():
    training = prompts(0, 100)
    found = drift_of(training, training[:40], Deduplicate(), 0)
    assert (found.p_value, found.num_known, found.new_share) == (1.0, 40, 0.0)


def test_too_few_prompts_are_said_to_be_few():
    with pytest.raises(ValueError, match="the window has 20 prompts, and drift needs 30"):
        drift_of(prompts(0, 100), prompts(1, 20), Deduplicate(), 0)


def turns(number: int) -> list[Example]:
    """Of each of so many conversations a request more than of the one before."""
    return [
        Example(f"{c}.{t}", "test", [], metadata={"conversation": f"c{c}"})
        for c in range(number)
        for t in range(c + 1)
    ]


def test_a_sample_has_one_request_of_a_conversation_whatever_the_order_of_the_log():
    every = turns(40)
    sample = Sample(15, seed=1).add_all(every).examples()
    assert len({e.metadata["conversation"] for e in sample}) == len(sample) == 15
    shuffled = random.Random(0).sample(every, len(every))
    assert Sample(15, seed=1).add_all(shuffled).examples() == sample
    assert Sample(15, seed=2).add_all(every).examples() != sample
    assert Sample(10, seed=1).add_all(every).examples() == sample[:10]
    # Long conversations are no likelier than short ones.
    taken = [e for seed in range(200) for e in Sample(10, seed).add_all(every).examples()]
    early = sum(int(e.id.split(".")[0]) < 20 for e in taken)
    assert early / len(taken) == pytest.approx(0.5, abs=0.05)
