"""What a damaged file of a store belongs to, and how it is made again."""

from retort.errors import DamagedError
from retort.store.urls import public


def damaged(path: str, cause: str) -> DamagedError:
    """Returns the error for a file that is not what was written: its path, what it belongs to, and
    the one command that makes it again."""
    return DamagedError(public(f"{path} is damaged: {cause}. {_remedy(path)}"))


def _remedy(path: str) -> str:
    parts = path.split("/")
    for index in reversed(range(len(parts) - 1)):
        store = "/".join(parts[:index])
        match parts[index:]:
            case ["artifacts", stage, _, "scratch", *_]:
                return f"A run of {stage} that was killed left it"
            case ["artifacts", stage, name, *_]:
                return (
                    f"It belongs to the artifact {name} of {stage}; `retort run SPEC --store "
                    f"{store} --force {stage}` makes it again"
                )
            case ["ledger", name, "segments", _]:
                return (
                    f"It holds paid answers of the ledger {name}. Put it back from a backup, or "
                    f"keep what can be read by `retort verify --all --repair --store {store}`: the "
                    "next run asks only for the rest again"
                )
            case ["ledger" | "jobs" | "leases", *_]:
                return "Remove this file; the next run writes it again"
    return "Put it back from a backup, or remove it and run again"
