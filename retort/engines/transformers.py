"""The transformers engine: plain batched generation, for machines where vLLM cannot be installed.

Batches are padded on the left; the signal is read from the model's own scores of that batch.
"""

# B batch, T time, V vocabulary, K teacher top-k
import os
import time
from collections.abc import Generator, Iterable, Iterator
from typing import Any

import numpy as np

from retort.data import encoding
from retort.engines import (
    Answer,
    Request,
    Settings,
    Timing,
    cut_at,
    device_of,
    local_raw,
    parse_local,
    render_each,
)
from retort.store.signals import captured

GIVES_SIGNAL = SCORES = CONTINUES = True
REMOTE = False
PENALTIES = False
parse = parse_local

# A request, its prompt's ids, and the ids of its answer that are there already.
DecodingRow = tuple[Request, list[int], list[int]]


def open_engine(settings: Settings) -> "TransformersEngine":
    """Returns an engine with the model loaded in inference mode."""
    if os.path.isdir(settings.model):
        os.environ["HF_HUB_OFFLINE"] = "1"
    return TransformersEngine(settings)


class TransformersEngine:
    """Holds the loaded model; ended with its process. `steps` counts decoded tokens."""

    def __init__(self, settings: Settings):
        import torch
        import transformers

        device = device_of(settings.runtime["device"])
        self.steps = 0
        self._first_at: float | None = None  # when the first token came, on the monotonic clock
        self._torch, self._settings = torch, settings
        self._tokenizer = encoding.load_tokenizer(settings.model)
        self._tokenizer.padding_side = "left"
        if self._tokenizer.pad_token_id is None:
            self._tokenizer.pad_token = self._tokenizer.eos_token
        model = transformers.AutoModelForCausalLM.from_pretrained(
            settings.model, dtype=settings.dtype
        )
        self._model = model.to(device).eval()
        limit = int(getattr(model.config, "max_position_embeddings", 1 << 30))
        self._max_length = min(settings.max_model_len or limit, limit)
        self._end_ids = end_ids(self._model, self._tokenizer)
        torch.manual_seed(settings.seed)
        self.facts = {
            "engine": "transformers",
            "engine_version": transformers.__version__,
            "dtype": str(model.dtype).removeprefix("torch."),
            "max_model_len": self._max_length,
            "vocabulary": int(model.get_output_embeddings().weight.shape[0]),
            "logprobs_mode": "raw_logprobs",
        }

    def generate(self, requests: Iterable[Request | None]) -> Iterator[Answer]:
        """Yields the answers batch by batch, in the order of the requests."""
        incoming, ended = iter(requests), False
        while not ended:
            batch: list[Request] = []
            while len(batch) < self._settings.runtime["max_num_seqs"]:
                request = next(incoming, incoming)
                if request is None or request is incoming:
                    ended = request is incoming
                    break
                batch.append(request)  # type: ignore[arg-type]
            rows = yield from self._fitting(batch)
            if rows:
                yield from self._batch(rows)

    def timed(self, request: Request) -> Timing:
        """Returns how long one request takes alone; no first token where it cannot be asked."""
        self._first_at, started = None, time.monotonic()
        for _ in self.generate([request]):
            pass
        whole_seconds, first_at = time.monotonic() - started, self._first_at
        return Timing(whole_seconds, None if first_at is None else first_at - started)

    def forget(self) -> None:
        """Does nothing: no prompt is kept."""

    def score(self, requests: Iterable[Request | None]) -> Iterator[Answer]:
        """Yields the signal of answers that exist already, one forward pass each."""
        for asked in requests:
            batch = [asked] if asked else []
            for request, prompt, ids in (yield from self._fitting(batch)):
                with self._torch.inference_mode():
                    tokens = self._torch.tensor([prompt + ids], device=self._model.device)
                    logits_TV = self._model(tokens).logits[0, len(prompt) - 1 : -1]
                self.steps += 1
                top = self._top_k(logits_TV[:, None], tokens[:, len(prompt) :])
                text = self._tokenizer.decode(ids, skip_special_tokens=True)
                signal = captured(*(part[0] for part in top))
                yield Answer(request.id, local_raw(prompt, ids, "stop", text), signal)

    def _fitting(self, batch: list[Request]) -> Generator[Answer, None, list[DecodingRow]]:
        """Yields answers for what cannot be asked; returns the rows that can."""
        rows: list[DecodingRow] = []
        for request, prompt in zip(batch, render_each(self._tokenizer, batch), strict=True):
            if isinstance(prompt, str):
                yield Answer(request.id, local_raw([], [], "error", cause=prompt))
                continue
            known = list(request.continues or [])
            if request.response is not None:
                known = encoding.response_ids(self._tokenizer, request.response)
            if len(prompt) + len(known) < self._max_length:
                rows.append((request, prompt, known))
            elif request.continues:
                text = self._tokenizer.decode(known, skip_special_tokens=True)
                yield Answer(request.id, local_raw(prompt, known, "length", text))
            else:
                yield Answer(request.id, local_raw(prompt, [], "prompt_too_long"))
        return rows

    def _batch(self, rows: list[DecodingRow]) -> Iterator[Answer]:
        torch, settings = self._torch, self._settings
        padded = self._tokenizer.pad(
            {"input_ids": [prompt + known for _, prompt, known in rows]}, return_tensors="pt"
        ).to(self._model.device)
        width = padded["input_ids"].shape[1]
        room = [(r.max_tokens or settings.max_tokens) - len(known) for r, _, known in rows]
        greedy = settings.temperature == 0
        sampling = {"temperature": settings.temperature, "top_p": settings.top_p, "top_k": 0}
        ends = {"stop_strings": list(settings.stop), "tokenizer": self._tokenizer}
        with torch.inference_mode():
            out = self._model.generate(
                **padded,
                do_sample=not greedy,
                max_new_tokens=min(max(room), self._max_length - width),
                return_dict_in_generate=True,
                output_logits=settings.top_k > 0,
                pad_token_id=self._tokenizer.pad_token_id,
                stopping_criteria=[self._count],
                **({} if greedy else sampling),
                **(ends if settings.stop else {}),
            )
        new_ids = out.sequences[:, width:].tolist()
        top = self._top_k(out.logits, out.sequences[:, width:]) if settings.top_k else None
        for index, (request, prompt, known) in enumerate(rows):
            ids, reason = self._cut(new_ids[index][: room[index]])
            whole = self._tokenizer.decode([*known, *ids], skip_special_tokens=True)
            text = cut_at(whole, settings.stop)
            reason = "stop" if text != whole else reason
            signal = captured(*(part[index, : len(ids)] for part in top)) if top else None
            yield Answer(request.id, local_raw(prompt, [*known, *ids], reason, text), signal)

    def _count(self, ids_BT: Any, scores: Any, **_: Any) -> Any:
        """Never stops; it is asked after each step, and so can tell that there was one."""
        self.steps += 1
        if self._first_at is None:
            if ids_BT.is_cuda:  # the token is asked for before it is computed
                self._torch.cuda.synchronize()
            self._first_at = time.monotonic()
        return self._torch.zeros(len(ids_BT), dtype=self._torch.bool, device=ids_BT.device)

    def _cut(self, ids: list[int]) -> tuple[list[int], str]:
        """Ends a row at its first end token, which is kept: it is learned too."""
        for index, token in enumerate(ids):
            if token in self._end_ids:
                return ids[: index + 1], "stop"
        return ids, "length"

    def _top_k(self, logits: Any, targets_BT: Any) -> tuple[Any, ...]:
        torch = self._torch
        kept: list[tuple[Any, ...]] = []
        for step, logits_BV in enumerate(logits):
            logprobs_BV = torch.log_softmax(logits_BV.float(), dim=-1)
            values_BK, ids_BK = logprobs_BV.topk(self._settings.top_k, dim=-1)
            target_B1 = targets_BT[:, step : step + 1]
            kept.append(
                (ids_BK, values_BK, target_B1[:, 0], logprobs_BV.gather(1, target_B1)[:, 0])
            )
        ids, values, targets, chosen = (
            torch.stack(part, dim=1).cpu().numpy() for part in zip(*kept, strict=True)
        )
        return ids.astype(np.int32), values, targets.astype(np.int32), chosen


def end_ids(model: Any, tokenizer: Any) -> list[int]:
    """Returns the ids that end an answer, from the generation config and the tokenizer."""
    configured = model.generation_config.eos_token_id
    ids = configured if isinstance(configured, list) else [configured]
    return list(dict.fromkeys(i for i in [*ids, tokenizer.eos_token_id] if i is not None))
