"""Public benchmarks of teacher, base and student, by EleutherAI's lm-evaluation-harness.

This process never imports the harness. One child process reads the tasks, then each model runs in a
child of its own. Each result is stored under the digest of model, questions and settings, so that a
killed run continues with what is missing, and the same command again computes nothing.

`benchmarks.json` in a job's folder, which the report shows as `content["benchmarks"]`:
```
{"student": name of the train artifact whose student this is,
 "lm_eval_version", "engine": vllm|transformers, "dtype", "max_length": tokens of prompt and answer,
 "tasks": {task: {"version", "num_fewshot", "limit": int|null, "n": questions,
                  "num_tasks": that it sums up, 1 if no group, "higher_is_better": {metric: bool}}},
 "models": {role: {task: {metric: {"value", "stderr": float|null}}}},
 "differences": {role: {task: {metric: {"value", "low", "high", "n", "p_value",
                                      "mcnemar_p_value" where each is right or wrong}}}},
 "notes": [text], "left_out": [the notes on tasks that a model could not run],
 "keys": {role: {requested task: the result's file in benchmarks/}}}
```
A metric is `acc`, or `exact_match, strict-match` where the task reads answers in several ways. A
task that a model did not run is missing there. A difference is student - role, paired question by
question, of the metrics that are means.
"""

from retort.jobs.benchmark.results import of_student, table
from retort.jobs.benchmark.run import BenchmarkRequest, benchmark

__all__ = ["BenchmarkRequest", "benchmark", "of_student", "table"]
