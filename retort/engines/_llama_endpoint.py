"""llama.cpp's own server over one GGUF export, until it is ended. The key is in the environment."""

import argparse
import os
import signal
from pathlib import Path

from retort.engines._gguf_header import read_header

KEY = "RETORT_SERVE_KEY"
# How many chats are answered at a time, and the longest of them with its answer, in tokens.
NUM_SLOTS, CONTEXT = 4, 4096


def main() -> None:
    """Serves `FOLDER/model.gguf` under the folder's address."""
    import xllamacpp

    flags = argparse.ArgumentParser()
    flags.add_argument("folder", type=Path)
    flags.add_argument("--host", required=True)
    flags.add_argument("--port", type=int, required=True)
    flags.add_argument("--name", required=True)
    given = flags.parse_args()
    params = xllamacpp.CommonParams()
    params.model.path = str(given.folder / "model.gguf")
    context = min(read_header(given.folder / "model.gguf").context, CONTEXT)
    params.n_parallel, params.n_ctx = NUM_SLOTS, NUM_SLOTS * context
    params.hostnames, params.port = [given.host], given.port
    params.model_alias, params.use_jinja = {given.name}, True
    if key := os.environ.get(KEY):
        params.api_keys = [key]
    _server = xllamacpp.Server(params)
    signal.sigwait({signal.SIGTERM, signal.SIGINT})


if __name__ == "__main__":
    main()
