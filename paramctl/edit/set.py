"""Set values directly: `0.weight[0, 0] = 42`, `0.weight += 1`, `2.bias = @bias.npy`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from paramctl.edit.arithmetic import check_value, new_elements
from paramctl.edit.assignment import Assignment, Value, parse_all
from paramctl.edit.guards import check_editable
from paramctl.edit.optimizer_reset import update_optimizers
from paramctl.edit.report import Change, Edit
from paramctl.errors import UsageError
from paramctl.files.content import Buffer, Computed, Content, read
from paramctl.files.sources import Spool
from paramctl.model.checkpoint import Checkpoint, Storage
from paramctl.model.sharing import also_tied
from paramctl.values.arrays import NewValues, encode, narrow, read_index, with_values

_Batch = Mapping[int, list[Assignment]]  # statements by the param that they change, or the first of its ties


def set(checkpoint: Checkpoint, *statements: str, reset_optimizer: bool = False) -> Edit:
    """Apply statements `PATH[INDEX] (= | += | -= | *= | /=) VALUE` in order.

    PATH may be a pattern, which stands for each param that it names. VALUE is a number, `@file.npy`, or another
    PATH; its shape broadcasts as in numpy. Narrow floats are computed in float32, as torch does, and rounded once.
    With `reset_optimizer` the optimizer state of the changed params is reset. Raises UsageError if a statement cannot
    apply.
    """
    if not statements:
        raise UsageError("nothing to set", hint="say for example '0.weight[0,0] = 42'")
    assignments = [step for text in statements for step in parse_all(checkpoint, text)]
    targets = dict.fromkeys(step.at for step in assignments)
    for at in targets:
        check_editable(checkpoint, [at], [at], "give it bytes of its own with 'paramctl untie' first")
    also = {at: also_tied(checkpoint, at) for at in targets}
    *earlier, last = _batches(checkpoint, assignments)
    edited = _applied(checkpoint, earlier) if earlier else checkpoint
    edited = edited.with_storages(_changed_storages(edited, last))
    changes = [Change(checkpoint.labels[step.at], step.how, also=also[step.at]) for step in assignments]
    edited, moments, notes = update_optimizers(checkpoint, edited, targets, reset_optimizer)
    return Edit(edited, (*changes, *moments), notes=notes)


def _batches(checkpoint: Checkpoint, steps: Sequence[Assignment]) -> Iterator[_Batch]:
    """Yield the statements in order, in batches whose statements read nothing that the same batch changes.

    A changed param shares bytes only with its ties.
    """
    tied = checkpoint.tied_to
    batch: dict[int, list[Assignment]] = {}
    for step in steps:
        if step.value.param is not None and tied.get(step.value.param, step.value.param) in batch:
            yield batch
            batch = {}
        batch.setdefault(tied.get(step.at, step.at), []).append(step)
    yield batch


def _applied(checkpoint: Checkpoint, batches: Sequence[_Batch]) -> Checkpoint:
    """Return the checkpoint after some batches; results are spooled, so that nothing is computed twice."""
    results = Spool("what the statements made")
    for batch in batches:
        changed = _changed_storages(checkpoint, batch)
        kept = {key: _spooled_storage(storage, checkpoint.storages[key], results) for key, storage in changed.items()}
        checkpoint = checkpoint.with_storages(kept)
    return checkpoint


def _spooled_storage(storage: Storage, before: Storage, results: Spool) -> Storage:
    """Return the storage with its computed parts spooled."""
    known = {id(part) for part in before.content}
    content = (part if id(part) in known else _spooled_part(part, results) for part in storage.content)
    return storage._replace(content=tuple(content))


def _spooled_part(part: Content, results: Spool) -> Content:
    """Return a part, spooled if it is computed."""
    if not isinstance(part, Computed):
        return part
    read_back = results.keep(memoryview(read((part,), 0, part.nbytes)))
    return Computed(part.nbytes, lambda: (read_back(),))


def _changed_storages(checkpoint: Checkpoint, batch: _Batch) -> dict[str, Storage]:
    """Return the storages that a batch changes. Raises FormatError if the values it reads are corrupt."""
    all_steps = (step for steps in batch.values() for step in steps)
    for key in dict.fromkeys(str(step.target.storage) for step in all_steps if step.op != "="):
        checkpoint.storages[key].check(key)
    changes: dict[str, list[NewValues]] = {}
    for at, steps in batch.items():
        change = _new_values(checkpoint, at, steps)
        if change.view.numel:
            changes.setdefault(str(change.view.storage), []).append(change)
    return {key: with_values(checkpoint.storages[key], *made) for key, made in changes.items()}


def _new_values(checkpoint: Checkpoint, index: int, steps: list[Assignment]) -> NewValues:
    """Return the elements of a param that its statements change, and the function that computes them."""
    param = checkpoint.params[index]
    view = steps[0].target if len(steps) == 1 else param
    itself = view.nbytes if len(steps) > 1 or steps[0].op != "=" else 0
    reads = itself + sum(_bytes_read(checkpoint, step.value) for step in steps)

    def make() -> Buffer:
        if len(steps) == 1:
            old = None if steps[0].op == "=" else read_index(checkpoint, view, ())
            return encode(new_elements(checkpoint, steps[0], old), view.dtype)
        values = read_index(checkpoint, param, ())
        for step in steps:
            values[step.part] = new_elements(checkpoint, step, values[step.part])
        return encode(values, param.dtype)

    if not view.numel:
        return NewValues(view, make)
    for step in steps:
        check_value(step, param.dtype)
    if param.dtype.category != "float" and any(step.op != "=" or step.value.param is not None for step in steps):
        make()  # what does not fit must be refused before anything is written
    return NewValues(view, make, reads)


def _bytes_read(checkpoint: Checkpoint, value: Value) -> int:
    """Return the bytes of the checkpoint that are read for the right side."""
    return 0 if value.param is None else narrow(checkpoint.params[value.param], value.part).nbytes
