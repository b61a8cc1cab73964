"""Training on many processes: one row of devices over all of them, tables dealt out by rows, batches by examples.

Every process runs the same program on the same data. What a step computes is one compiled program over arrays that
reach over all devices; XLA parts the work, and the runtime's collectives (gloo on CPUs, NCCL on GPUs) carry what has to
be carried: the rows that a batch reads and their gradients, never a table. A single process is a row of one device.

The processes find each other by three environment variables, `COORDINATOR`, `PROCESSES` and `PROCESS`. Kubeflow
Trainer's JAX runtime sets them on every node (kubeflow/trainer, pkg/runtime/framework/plugins/jax/jax.go), and so does
`launch`; where they are missing, a process is alone.
"""

import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from numpy.typing import NDArray

from twotower.errors import RecipeError, TrainingError

COORDINATOR, PROCESSES, PROCESS = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
AXIS = "shards"
HEARTBEAT, HEARTBEAT_HERE = 60, 86_400
"""Seconds without a sign of life after which a process counts as dead: between machines, where nobody sees it end, and
on one machine, whose launcher does, and which may have slept."""
MEETING = 600
"""Seconds that a process waits for the others to start: a node may have to pull its image."""
WAITING = 14_400
"""Seconds that processes on CPUs wait for one another within a collective, as while the first one exports and writes:
XLA's own half hour is too short for a large catalogue."""
PIECE = 65_536
"""Rows of a table that each process gives at a time, so that none but the first ever has all of it."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows of a table that this process holds, in its own memory."""

    values: NDArray[Any]
    start: int
    """Where they begin in the table."""
    total: int
    """Rows of the table; what fills it up to a multiple of the devices is in no process's `values`."""

    def copy(self) -> "Rows":
        """The same in memory of its own."""
        return replace(self, values=self.values.copy())


@contextmanager
def joined() -> Iterator[None]:
    """Be one of several processes where the environment says so, from the first until all are done.

    Call before anything is computed, since the devices of all processes are found then.

    Raises:
        TrainingError: the variables contradict each other, the others cannot be met, or no device is left for this one.
    """
    count = _number(PROCESSES, otherwise="1")
    if count == 1:
        yield
        return
    missing = [name for name in (COORDINATOR, PROCESS) if name not in os.environ]
    if missing:
        raise TrainingError(f"{PROCESSES} = {count}, but {' and '.join(missing)} is not set. Set all three, or none.")
    _meet(os.environ[COORDINATOR], count, _number(PROCESS))
    yield
    multihost_utils.sync_global_devices("done")
    jax.distributed.shutdown()


def _number(name: str, *, otherwise: str = "") -> int:
    value = os.environ.get(name, otherwise)
    if not value.isdecimal():
        raise TrainingError(f"{name} = {value!r} in the environment is no number.")
    return int(value)


def _meet(coordinator: str, count: int, process: int) -> None:
    # Among CPUs; GPUs have NCCL by themselves.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    waiting = f"--xla_cpu_collective_timeout_seconds={WAITING}"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {waiting}".strip()
    try:
        jax.distributed.initialize(
            coordinator,
            num_processes=count,
            process_id=process,
            initialization_timeout=MEETING,
            heartbeat_timeout_seconds=HEARTBEAT_HERE if coordinator.startswith("127.0.0.1:") else HEARTBEAT,
        )
    except (RuntimeError, ValueError) as fault:
        reason = str(fault).splitlines()[0]
        raise TrainingError(
            f"process {process} of {count} did not meet the others at {coordinator}: {reason}. Look at their logs."
        ) from fault
    try:
        jax.local_devices()
    except RuntimeError as fault:
        reason = str(fault).splitlines()[0]
        raise TrainingError(
            f"process {process} of {count} finds no device of its own: {reason}. If there are fewer GPUs than "
            "processes, start as many as there are, or train on CPUs: JAX_PLATFORMS=cpu."
        ) from fault


def is_first() -> bool:
    """Whether this process is the one that judges, tells and writes."""
    return jax.process_index() == 0


@contextmanager
def own_place(directory: Path) -> Iterator[Path]:
    """Where a process may write: the directory itself for the first, one that is thrown away for the others."""
    if is_first():
        yield directory
        return
    with tempfile.TemporaryDirectory(prefix="twotower-") as folder:
        yield Path(folder) / directory.name


def agree(decide: Callable[[], Any]) -> Any:
    """What the first process decides, which the others wait for; anything that JSON can hold.

    All processes take part, each at the same point.
    """
    if jax.process_count() == 1:
        return decide()
    text = json.dumps(decide()).encode() if is_first() else b""
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
    room = np.zeros(size, np.uint8)
    room[: len(text)] = np.frombuffer(text, np.uint8)
    return json.loads(np.asarray(multihost_utils.broadcast_one_to_all(room)).tobytes())


def first_alone(make: Callable[[], T]) -> T:
    """What every process makes, the others when the first one has: they find what it has written."""
    if is_first():
        made = make()
        wait_for_all("made")
        return made
    wait_for_all("made")
    return make()


def sees_the_same(directory: Path) -> bool:
    """Whether the directory, which is made, is one for all processes: pods have disks of their own."""
    if jax.process_count() == 1:
        return True
    directory.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        marker = agree(lambda: stack.enter_context(tempfile.NamedTemporaryFile(dir=directory)).name)
        sees = Path(marker).is_file() and Path(marker).parent.samefile(directory)
        return bool(multihost_utils.process_allgather(np.array(sees)).all())


def wait_for_all(what: str) -> None:
    """Go on when every process has come this far."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)


@cache
def _mesh() -> Mesh:
    # By process, so that a process's rows lie side by side.
    return Mesh(np.array(sorted(jax.devices(), key=lambda device: (device.process_index, device.id))), (AXIS,))


def everywhere() -> NamedSharding:
    """The same on every device."""
    return NamedSharding(_mesh(), PartitionSpec())


def by_rows() -> NamedSharding:
    """An even share of the rows on each device."""
    return NamedSharding(_mesh(), PartitionSpec(AXIS))


def by_examples() -> NamedSharding:
    """`[steps, examples]`: of each step an even share of the examples on each device."""
    return NamedSharding(_mesh(), PartitionSpec(None, AXIS))


def refuse_uneven(batch_size: int) -> None:
    """Refuse a batch that cannot be dealt out evenly: filling it up would change what is learned.

    Raises:
        RecipeError: `batch_size` is no multiple of the devices.
    """
    if batch_size % _mesh().size:
        raise RecipeError(
            f"train.batch_size: batches of {batch_size:,} cannot be dealt out evenly to {_mesh().size} devices of "
            f"{jax.process_count()} processes. Take a multiple of {_mesh().size}."
        )


def replicate(tree: Any) -> Any:
    """Arrays of this process, the same in all, as arrays that are whole on every device."""

    def whole(values: Any) -> Array:
        here = [jax.device_put(values, device) for device in everywhere().addressable_devices]
        return jax.make_array_from_single_device_arrays(np.shape(values), everywhere(), here)

    return jax.tree.map(whole, tree)


def deal_rows(table: Any) -> Array:
    """A whole table that each process has -> its rows dealt out, zeros filling it up; copies no more than its own."""
    if isinstance(table, Array) and _mesh().size == 1:
        whole: Array = jax.device_put(table, by_rows())  # Where it lies.
        return whole
    values = np.asarray(table)
    return _deal(Rows(values, 0, len(values)))


def dealt_shape(table: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    """What `deal_rows` makes of such a table, without any."""
    rows, *others = table.shape
    return jax.ShapeDtypeStruct((_filled(rows), *others), table.dtype, sharding=by_rows())


def deal_examples(values: NDArray[Any]) -> Array:
    """`[steps, n]` of a plan, its examples dealt out; zeros fill it up to a multiple of the devices."""
    missing = -values.shape[1] % _mesh().size
    filled = np.pad(values, ((0, 0), (0, missing))) if missing else values
    return _spread(filled, by_examples() if filled.shape[1] else everywhere())


def take_home(array: Array, *, rows: int | None = None) -> Any:
    """An array as this process's memory holds it, until the next step writes into it.

    Args:
        array: Dealt out by rows, or whole on every device.
        rows: Rows of the table without what fills it up; None for an array that is whole.
    """
    if rows is None:
        return np.asarray(array.addressable_data(0))
    shards = sorted(array.addressable_shards, key=lambda shard: shard.index[0].start or 0)
    start = shards[0].index[0].start or 0
    parts = [np.asarray(shard.data) for shard in shards]
    own = np.concatenate(parts) if parts[1:] else parts[0]
    return Rows(own[: max(rows - start, 0)], min(start, rows), rows)


def bring_back(kept: Any) -> Array:
    """The array again that `take_home` copied."""
    return _deal(kept) if isinstance(kept, Rows) else _spread(np.array(kept), everywhere())


def gather_tables(tables: Mapping[str, Rows]) -> dict[str, Array]:
    """The whole tables in the first process, from the rows that each holds; none in the others."""
    gathered = {}
    for name, own in tables.items():
        table = own.values if jax.process_count() == 1 else _gather(own)
        if table is not None:
            gathered[name] = jnp.asarray(table)
    return gathered


def _gather(own: Rows) -> NDArray[Any] | None:
    """The whole table in the first process's own memory; None in the others."""
    share, width = _filled(own.total) // jax.process_count(), own.values.shape[1:]
    whole = np.empty((share * jax.process_count(), *width), own.values.dtype) if is_first() else None
    for start in range(0, share, PIECE):
        size = min(PIECE, share - start)
        piece = own.values[start : start + size]
        filled = np.pad(piece, ((0, size - len(piece)), (0, 0)))
        parts = multihost_utils.process_allgather(filled)
        if whole is not None:
            for number, part in enumerate(parts):
                whole[number * share + start : number * share + start + size] = part
    return None if whole is None else whole[: own.total]


def _filled(rows: int) -> int:
    """Rows of a table that is filled up to a multiple of the devices."""
    return -(-rows // _mesh().size) * _mesh().size


def _deal(own: Rows) -> Array:
    """Rows of this process, or the whole table, as a table over all."""
    shape = (_filled(own.total), *own.values.shape[1:])

    def share(index: Any) -> NDArray[Any]:
        start, stop, _ = index[0].indices(shape[0])
        found = np.array(own.values[max(start - own.start, 0) : max(stop - own.start, 0)])
        missing = stop - start - len(found)
        return np.pad(found, ((0, missing), (0, 0))) if missing else found  # Without any, it would copy all the same.

    return jax.make_array_from_callback(shape, by_rows(), share)


def _spread(values: NDArray[Any], sharding: NamedSharding) -> Array:
    return jax.make_array_from_callback(values.shape, sharding, lambda index: values[index])
