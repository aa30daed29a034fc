"""Saves what OpenAI will not keep of a fine-tune: fetch.py FINE_TUNING_JOB [EVAL] [--to FOLDER]

The job's training rows become data/fine_tune.jsonl, the completions that were stored of its model
data/stored.jsonl, and the eval graders.json. The client reads OPENAI_API_KEY and OPENAI_BASE_URL.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

from openai import OpenAI


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("job", help="id of the fine-tuning job: ftjob-...")
    parser.add_argument("eval", nargs="?", help="id of the eval, while its API answers: eval_...")
    parser.add_argument("--to", type=Path, default=Path(__file__).parent)
    given = parser.parse_args()
    client, data = OpenAI(), given.to / "data"
    data.mkdir(parents=True, exist_ok=True)
    if given.eval:
        found = client.evals.retrieve(given.eval).to_json()
        (given.to / "graders.json").write_text(found, encoding="utf-8")
    job = client.fine_tuning.jobs.retrieve(given.job)
    client.files.content(job.training_file).write_to_file(data / "fine_tune.jsonl")
    with (data / "stored.jsonl").open("w", encoding="utf-8") as stream:
        for number, row in enumerate(stored(client, str(job.fine_tuned_model)), start=1):
            stream.write(json.dumps(row) + "\n")
            print(f"\r{number:,} stored completions", end="", flush=True)
    print(f"\n{job.fine_tuned_model} is generate.teacher in job.yaml")


def stored(client: OpenAI, model: str) -> Iterator[dict]:
    """Yields the stored completions of a model, each with the messages that asked for it."""
    for completion in client.chat.completions.list(model=model, limit=100):
        asked = client.chat.completions.messages.list(completion.id, limit=100)
        messages = [{"role": turn.role, "content": turn.content} for turn in asked]
        yield {**completion.to_dict(mode="json"), "input": messages}


if __name__ == "__main__":
    main()
