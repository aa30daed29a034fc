"""Sharing: several processes, on one machine or many, answer the examples of one job.

The examples are cut into ranges, a process leases the next free one when it has room, and all add
to one ledger; a range whose holder is gone is leased again, and of its rows only those are asked
that the ledger lacks. Note: no process assigns work to others. The job's own process leads, which
means no more than that it looks after what is left until all is done.
"""

from collections.abc import Iterator
from typing import Any

from retort.errors import StageError
from retort.records import Example
from retort.store import Folder
from retort.store.leases import Holder, LeaseState

# The last range of each is what the others wait for: about 3% of the work.
RANGES_PER_PROCESS = 32
PLAN, LEAD = "plan.json", "lead"
WORST_FIRST: tuple[LeaseState, ...] = ("free", "held", "done")


class Share:
    """What this process does of the whole. Use as a context: it holds its leases while it lasts.

    `folder` is the meeting place of one attempt at the stage; `leads` is true for the process of
    the job itself.
    """

    def __init__(self, folder: Folder, leads: bool):
        self.folder, self.leads = folder, leads
        self.holder = Holder(folder)
        self._mine: set[int] = set()
        self._num_ranges = self._size = 0

    def __enter__(self) -> "Share":
        self.holder.__enter__()
        if self.leads:
            self.holder.take(LEAD)
        else:
            self._read()
        return self

    def __exit__(self, *error: Any) -> None:
        self.holder.__exit__(*error)

    def open(self, num_examples: int, num_processes: int) -> bool:
        """Lays out the ranges; returns whether this is the first to do so in this attempt."""
        ranges = min(num_examples, RANGES_PER_PROCESS * num_processes)
        size = -(-num_examples // ranges)
        plan = {"num_ranges": -(-num_examples // size), "size": size}
        is_first = not self.folder.has(PLAN)
        if is_first:
            self.folder.write_json(PLAN, plan)
        self._read()
        return is_first

    def rows(self, examples: Iterator[Example]) -> Iterator[Example]:
        """Yields the examples of ranges that are free, each leased as it is come to.

        Of a process that only helps, none after the one that leads is gone.
        """
        current, taken = -1, False
        for index, example in enumerate(examples):
            number = index // self._size
            if number != current:
                current, taken = number, self._take(number)
            if taken:
                yield example

    def left(self) -> LeaseState:
        """Returns what is left when nothing free was found: `held` by others, `free` because a
        holder was lost since, or `done`. Who only helps never waits: for it all is done."""
        if not self.leads:
            return "done"
        others = {state for number, state in self._states().items() if number not in self._mine}
        return next((state for state in WORST_FIRST if state in others), "done")

    def has_room(self) -> bool:
        """Whether a range is free, and somebody leads."""
        leads = self.leads or self.holder.states([LEAD])[LEAD] == "held"
        return leads and "free" in self._states().values()

    def finish(self) -> None:
        """All that this process leased is answered and committed."""
        self.holder.finish()

    def told(self, name: str) -> float:
        """Returns the sum of what the others last told under a name."""
        return float(sum(told.get(name, 0) for told in self.holder.others()))

    def _states(self) -> dict[int, LeaseState]:
        names = [str(number) for number in range(self._num_ranges)]
        return {int(name): state for name, state in self.holder.states(names).items()}

    def _take(self, number: int) -> bool:
        if number in self._mine:
            return False
        if not self.leads and self.holder.states([LEAD])[LEAD] != "held":
            return False
        if self.holder.take(str(number)):
            self._mine.add(number)
            return True
        return False

    def _read(self) -> None:
        if not self.folder.has(PLAN):
            raise StageError(
                f"nothing to share lies in {self.folder.uri}: the job has ended, or this worker "
                "does not see its store; replicas on other machines need a store that all see, "
                "s3://bucket/prefix or a folder that is mounted everywhere"
            )
        plan = self.folder.read_json(PLAN)
        self._num_ranges, self._size = plan["num_ranges"], plan["size"]
