"""`retort serve NAME`: a registered student, or one of its exports, as a server of OpenAI's API."""

import argparse
from typing import Any

from flows.commands.options import DONE, FAILED, on_store, open_store, say


def add(commands: Any, on_spec: argparse.ArgumentParser) -> None:
    """Adds the command. It is about a registered model, and takes no SPEC."""
    it = commands.add_parser("serve", help="serve a student, or one of its exports, until Ctrl-C")
    it.add_argument("name", metavar="NAME", help="NAME, NAME@champion, NAME/VERSION, job or folder")
    it.add_argument("--format", metavar="FORMAT", help="an export, such as gguf:q4_0")
    it.add_argument(
        "--host", default="127.0.0.1", help="address to listen at (default: %(default)s)"
    )
    it.add_argument("--port", type=int, default=8000, help="port (default: %(default)s)")
    on_store(it)
    it.set_defaults(command=run)


def run(options: argparse.Namespace) -> int:
    """`retort serve`: starts the server, says where it is, and ends it when asked to."""
    from retort.jobs import serve
    from retort.jobs.finding import find

    address = serve.Address(options.name, options.host, options.port)
    serve.check(address)
    found = find(open_store(options), options.name)
    with (
        serve.folder_of(found.address, options.format) as folder,
        serve.serving(folder, options.format, address) as process,
    ):
        say(f"ready: {found.label}{f', {options.format}' if options.format else ''}")
        say(f"OPENAI_BASE_URL={address.url}; model {address.name}; Ctrl-C ends it")
        code = process.wait()
    return DONE if code == 0 else FAILED
