"""What more of the teacher's answers would be worth: trainings on nested subsets of what is stored,
a learning curve through their validation errors, and what holds the student back.

No teacher is asked and no test example is read. What an earlier plan measured on less data is used
again, and its forecast is shown beside what came.
"""

from retort.jobs.plan.run import plan
from retort.jobs.plan.shapes import Plan

__all__ = ["Plan", "plan"]
