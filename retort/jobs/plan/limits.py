"""What holds the student back: data, loss, epochs, or its size; each judged by what was measured,
and each says how."""

import numpy as np

from retort import metrics
from retort.jobs.plan.shapes import Limit, Verdict
from retort.jobs.trials import Trial
from retort.metrics.comparison import formatting as show
from retort.metrics.comparison.shapes import Difference
from retort.metrics.kinds import lower_is_better
from retort.metrics.learning_curve import Band, LearningCurve

# The last passes among which a further fall of the validation loss is looked for, and how far it
# falls there at least where the student is not done.
LAST_PASSES, FALL = 0.1, 0.01
# Data is no limit where the band of what a doubling gains ends below so many least gains.
SURE = 4
# How much higher the loss is on validation where the student knows its own rows better.
KNOWS_BETTER = 0.1


def of_data(curve: LearningCurve, least: float, metric: str) -> Limit:
    """Judges the number of examples, by the expected gain of twice as many."""
    gain = curve.gain(2 * curve.size)
    verdict: Verdict = "unclear"
    if gain.value < least and gain.high < SURE * least:
        verdict = "no"
    elif gain.value >= least and gain.low > 0:
        verdict = "yes"
    return Limit("data", verdict, f"twice as many examples: {in_words(gain, metric)}")


def of_loss(student: Trial, other: Trial | None, distils: bool) -> Limit:
    """Judges the loss, by the same student with the other kind of loss on the same examples."""
    if other is None:
        return Limit("loss", "unclear", "no signal is stored, so there is no other loss to try")
    metric, how = student.metric, (2000, 0)
    found = Difference.of(metrics.difference(metric, student.statistics, other.statistics, *how))
    is_worse = found.outcome == ("above" if lower_is_better(metric) else "below")
    names = ("this loss", "plain fine-tuning") if distils else ("fine-tuning", "distillation")
    reason = (
        f"{names[0]} against {names[1]} on {student.num_train:,} rows: "
        f"{show.difference(found, metric, with_interval=True)}{show.unit(metric)}"
    )
    if is_worse:
        return Limit("loss", "yes", f"{reason}; {names[1]} is better")
    return Limit("loss", "unclear" if found.outcome == "unclear" else "no", reason)


def of_epochs(whole: Trial) -> Limit:
    """Judges the passes, by the validation loss of the whole training. Its step size falls, which
    hides what a longer training would gain."""
    losses, name = whole.validation_losses, "epochs"
    if len(losses) < 2:
        return Limit(name, "unclear", "there is one validation loss; train for two passes or more")
    best = int(np.argmin(losses)) + 1
    if best < len(losses):
        text = f"validation loss is lowest after pass {best} of {len(losses)}"
        return Limit(name, "no", text)
    since = max(1, round(LAST_PASSES * len(losses)))
    fall = (losses[-1 - since] - losses[-1]) / abs(losses[-1])
    last = "the last pass" if since == 1 else f"the last {since} passes"
    text = f"validation loss falls by {fall:.1%} in {last} of {len(losses)}"
    return Limit(name, "yes" if fall >= FALL else "no", text)


def of_size(whole: Trial, gap: Band, least: float, metric: str) -> Limit:
    """Judges the student's size: by what no number of examples is expected to close to the teacher
    (`gap`), and by whether it knows its own rows better than others. No other student is trained.
    """
    name = "student size"
    far = f"{_points(gap, metric)} below the teacher with any number of examples"
    if gap.value < least:
        return Limit(name, "no", far)
    trained = [each["loss"] for each in whole.curve if "loss" in each]
    losses = whole.validation_losses
    if not (trained and losses):
        return Limit(name, "unclear", far)
    own = float(np.mean(trained[-max(1, len(trained) // 4) :]))
    above = losses[-1] / own - 1 if own > 0 else float("inf")
    against = f"{far}; its loss on validation is {above:+.0%} of that in training"
    if above >= KNOWS_BETTER:
        return Limit(name, "unclear", f"{against}: it knows its own rows better")
    verdict: Verdict = "yes" if gap.low > 0 else "unclear"
    return Limit(name, verdict, f"{against}: it cannot hold even these")


def in_words(gain: Band, metric: str) -> str:
    """Returns a gain with its band: +2.1 points (+0.6 to +3.8)."""
    ends = f"{show.gap(gain.low, metric)} to {show.gap(gain.high, metric)}"
    return f"{show.gap(gain.value, metric)}{show.unit(metric)} ({ends})"


def _points(gap: Band, metric: str) -> str:
    ends = f"{show.gap(gap.low, metric)} to {show.gap(gap.high, metric)}"
    return f"{show.size(gap.value, metric)}{show.unit(metric)} ({ends})"
