"""Everything that can fail later, checked now: spec, data, models, store, disk. Loads no model.

Called before every run and by `retort validate`.
"""

import shutil

from retort.errors import StoreError
from retort.jobs import devices
from retort.spec import JobSpec, variants
from retort.stages.curate.check import check as check_curate
from retort.stages.cut.check import check as check_cut
from retort.stages.cut.shape import num_parameters
from retort.stages.evaluate.check import check as check_evaluate
from retort.stages.expand.check import check as check_expand
from retort.stages.export.check import check as check_export
from retort.stages.generate.check import check as check_generate
from retort.stages.prepare.check import check as check_prepare
from retort.stages.train.check import check as check_train
from retort.store import Store

# fp32 weights and the two averages of AdamW in the checkpoint, and the student saved twice
BYTES_PER_PARAMETER = 12 + 2 * 4
BYTES_PER_PARAMETER_OF_CONTROL = 4
MIN_FREE_BYTES = 200_000_000


def check(spec: JobSpec, store: Store) -> list[str]:
    """Returns one line for each thing that was checked and is well, the stages' in their order.

    Raises `SpecError`, `DataError` or `StoreError` for the first that is not.
    """
    return [
        *check_prepare(spec),
        *check_expand(spec),
        *check_generate(spec),
        *check_curate(spec),
        *check_cut(spec, store.is_local),
        *check_train(spec),
        *check_export(spec),
        *check_evaluate(spec),
        *devices.check(spec),
        *_check_sweep(spec),
        *_check_store(spec, store),
    ]


def _check_sweep(spec: JobSpec) -> list[str]:
    if spec.sweep is None:
        return []
    for tried in variants.check(spec):
        check_curate(tried)
        check_train(tried)
    shares = " -> ".join(
        str(spec.sweep.num_at(rung, spec.sweep.trials)) for rung in range(spec.sweep.rungs)
    )
    return [f"sweep: {shares} trials over {', '.join(spec.sweep.over)}; no teacher is asked"]


def _check_store(spec: JobSpec, store: Store) -> list[str]:
    store.probe()
    if not store.is_local:
        return [f"store {store.uri}: can be written"]
    each = BYTES_PER_PARAMETER + BYTES_PER_PARAMETER_OF_CONTROL * len(spec.controls)
    need = MIN_FREE_BYTES + each * num_parameters(spec)
    free = shutil.disk_usage(store.uri).free
    if free < need:
        raise StoreError(
            f"store {store.uri}: {free / 1e9:.1f} GB free, this job needs about {need / 1e9:.1f} "
            "GB; free some, or use --store on another disk"
        )
    return [f"store {store.uri}: can be written, {free / 1e9:.0f} GB free"]
