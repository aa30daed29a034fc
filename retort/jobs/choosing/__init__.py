"""Which of many unlabelled prompts to pay the teacher for."""

from retort.jobs.choosing.choose import Choice, ChooseRequest, beside, choose

__all__ = ["Choice", "ChooseRequest", "beside", "choose"]
