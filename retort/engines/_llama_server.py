"""llama.cpp's own server in this process, from the package xllamacpp, asked over loopback.

Its address takes a random key, so that no other program can use it. It is asked over HTTP since
only that way returns the ids of an answer.
"""

import contextlib
import http.client
import json
import secrets
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retort.errors import SpecError
from retort.records import JsonObject, Message


@dataclass(frozen=True)
class Completion:
    """What the server generates from ids, and why it ended: `eos`, `limit` or `word`.

    `logprobs` has for each token its top tokens, as the server writes them; tokens that end amid a
    character are missing there.
    """

    token_ids: list[int]
    stop_type: str
    logprobs: list[JsonObject]


class LlamaServer:
    """A loaded GGUF file; `num_slots` sequences of `context` tokens are answered at a time."""

    def __init__(
        self,
        path: Path,
        *,
        num_slots: int = 1,
        context: int = 256,
        num_threads: int = 1,
        is_exact: bool = False,
    ):
        import xllamacpp

        self._key = secrets.token_hex(16)
        params = xllamacpp.CommonParams()
        params.model.path = str(path)
        params.n_parallel, params.n_ctx = num_slots, num_slots * context
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = num_threads
        params.api_keys, params.ui, params.endpoint_slots = [self._key], False, False
        params.fit_params, params.cache_ram_mib, params.verbosity = False, 0, -1
        if is_exact:  # keys and values, too, are kept in single precision
            params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
            params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        handlers = {kind: signal.getsignal(kind) for kind in (signal.SIGINT, signal.SIGTERM)}
        try:
            self._server: Any = xllamacpp.Server(params)
        except RuntimeError as error:
            raise SpecError(f"llama.cpp cannot load {path}: {error}") from None
        finally:
            # The server takes the process's signals for itself; outside the main thread none can.
            for kind, handler in handlers.items():
                with contextlib.suppress(ValueError, TypeError):
                    signal.signal(kind, handler)
        self._address = self._server.listening_address.removeprefix("http://")

    def tokenize(self, text: str) -> list[int]:
        """Returns a text's ids, without marks of beginning and end; special tokens are read."""
        body = {"content": text, "add_special": False, "parse_special": True}
        ids: list[int] = self._post("/tokenize", body)["tokens"]
        return ids

    def render(self, chat: list[Message]) -> str:
        """Returns a chat as the file's own template writes it, up to the start of the answer."""
        text: str = self._post("/apply-template", {"messages": chat})["prompt"]
        return text

    def complete(self, ids: list[int], num_tokens: int, **knobs: Any) -> Completion:
        """Returns what follows some ids. Raises `ValueError` with the server's refusal."""
        body = {"prompt": ids, "n_predict": num_tokens, "return_tokens": True, **knobs}
        found = self._post("/completion", {"cache_prompt": False, **body})
        logprobs = found.get("completion_probabilities") or []
        return Completion(found["tokens"], found["stop_type"], logprobs)

    def close(self) -> None:
        """Ends the server and frees the model."""
        self._server = None

    def _post(self, place: str, body: JsonObject) -> JsonObject:
        connection = http.client.HTTPConnection(self._address)
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {self._key}"}
        with contextlib.closing(connection):
            connection.request("POST", place, json.dumps(body), headers)
            reply = connection.getresponse()
            found: JsonObject = json.loads(reply.read())
        if reply.status != 200:
            raise ValueError(f"llama.cpp refuses a request: {found.get('error', found)}")
        return found
