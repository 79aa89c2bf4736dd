"""Check whether a checkpoint is sound (integrity), its values plausible (health), and loading it harmless (safety)."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import NamedTuple

from paramctl.check import integrity
from paramctl.check.health import health
from paramctl.check.safety import DANGEROUS, PickleVerdicts, judge_pickles, no_pickles, told
from paramctl.check.shard_index_check import ShardSummary, index_mismatches, unlisted_shards, untied_embeddings
from paramctl.errors import FileError, FormatError, TwoReadings, Unsupported
from paramctl.files.sources import Source, open_source
from paramctl.findings import GROUPS, NOT_READ, Finding, Group
from paramctl.formats import opening, registry
from paramctl.formats.pickles.verdict import Safety
from paramctl.formats.protocol import AnyFormat
from paramctl.formats.set_index import SetIndex, why_unsafe
from paramctl.model.checkpoint import Checkpoint
from paramctl.progress import ProgressCallback, ignore


class Report(NamedTuple):
    """The findings of a checkpoint, and how much was checked.

    `file` is the file that was opened, or the index of a folder; `safety` has an entry for each pickle, by file and
    record.
    """

    file: str
    findings: tuple[Finding, ...]
    safety: tuple[tuple[str, Safety], ...]
    tensors: int
    files: int


class _Checked(NamedTuple):
    """The findings of one file, and its checkpoint, if it can be read."""

    findings: list[Finding]
    safety: list[tuple[str, Safety]]
    checkpoint: Checkpoint | None


def check(name: str, only: Collection[Group] = GROUPS, on_progress: ProgressCallback = ignore) -> Report:
    """Check the file `name` (`-`: standard input), the index of a sharded set, or a folder with one.

    Every byte is read. A file that contradicts its format, or has an unsupported one, is a finding too, whatever `only`
    says. Raises FileError if there is no file.
    """
    name = opening.locate(name)
    opening.recover(name, on_progress)
    return check_source(open_source(name, on_progress), only, on_progress)


def check_source(source: Source, only: Collection[Group] = GROUPS, on_progress: ProgressCallback = ignore) -> Report:
    """Check an open file, or the index of a set. Raises the same errors as `check`."""
    try:
        index = _index_of(source)
    except FormatError as error:
        return Report(source.name, (Finding("error", "integrity", "unreadable", None, error.what),), (), 0, 1)
    if index:
        report = _check_set(source, index, only, on_progress)
    else:
        found = _check_one(source, only, on_progress)
        tensors = len(found.checkpoint.params) if found.checkpoint else 0
        files = max(len(found.checkpoint.sources), 1) if found.checkpoint else 1
        report = Report(source.name, tuple(found.findings), tuple(found.safety), tensors, files)
    _unchanged(source)
    return report


def _index_of(source: Source) -> SetIndex | None:
    """Return the index of a set whose files can be read alone; None for any other file. Raises FormatError."""
    whole = registry.as_set(registry.of(source))
    return whole.index(source) if whole else None


def _check_one(
    source: Source, only: Collection[Group], on_progress: ProgressCallback, *, is_shard: bool = False
) -> _Checked:
    """Return the findings of one file; a shard is read alone, not as its set."""
    form = (registry.single if is_shard else registry.of)(source) if source.size else None
    loading = judge_pickles(source, form) if "safety" in only else no_pickles()
    try:
        found = _read(source, only, on_progress, is_shard)
    except Exception as error:  # noqa: BLE001 - whatever the listing raises, the verdict on the pickles is given
        why = _unreadable(error)
        apart = [*_apart(source, form, on_progress)]  # which may say of one file what was said of them all
        found = _Checked(apart if why.what in {one.what for one in apart} else [why, *apart], [], None)
    return _Checked([*found.findings, *_pickle_findings(loading, found, only)], loading.pickles, found.checkpoint)


def _read(source: Source, only: Collection[Group], on_progress: ProgressCallback, is_shard: bool) -> _Checked:
    """Return the findings that come from reading a file. Raises FormatError if it cannot be listed."""
    checkpoint = (registry.read_single if is_shard else registry.read)(source)
    findings: list[Finding] = []
    try:
        for finding in _content_findings(checkpoint, only, on_progress, is_shard):
            findings.append(finding)  # one by one: what comes before an error was found all the same
    except Exception as error:  # noqa: BLE001 - as above
        findings.append(_unreadable(error))
    return _Checked(findings, [], checkpoint)


def _pickle_findings(loading: PickleVerdicts, found: _Checked, only: Collection[Group]) -> Iterator[Finding]:
    """Yield the findings about a file's pickles, unless reading the file reported the same."""
    if found.checkpoint is not None:
        if all(finding.rule != "checksum" for finding in found.findings):  # which says why a pickle is damaged
            yield from loading.damaged
        if "integrity" not in only or all(finding.level == "note" for finding in found.findings):
            yield from loading.unread
    yield from loading.findings


def _content_findings(
    checkpoint: Checkpoint, only: Collection[Group], on_progress: ProgressCallback, is_shard: bool
) -> Iterator[Finding]:
    """Yield the findings about the bytes and values of a file that can be read."""
    damaged: set[str] = set()
    if "integrity" in only:
        for finding in registry.BY_NAME[checkpoint.format].audit(checkpoint, on_progress):
            if finding.level == "error" or finding.rule == "bomb":
                damaged.update(_storages(checkpoint, finding.path))
            yield finding
        yield from integrity.duplicate_paths(checkpoint)
        yield from integrity.untied_copies(checkpoint, damaged, is_shard=is_shard)
    if "health" in only:
        yield from health(checkpoint, on_progress, damaged=damaged, trust="integrity" in only)


def _storages(checkpoint: Checkpoint, path: str | None) -> Iterator[str]:
    """Yield the keys of the storages of the param of that path."""
    for param in checkpoint.params:
        if path is not None and param.path == path:
            yield from (str(part.storage) for part in (param, *param.components))


def _check_set(
    source: Source, index: SetIndex, only: Collection[Group], on_progress: ProgressCallback
) -> Report:
    """Return the report on an index and all its shards."""
    findings: list[Finding] = []
    safety: list[tuple[str, Safety]] = []
    shards: list[ShardSummary] = []
    for name in index.shards:
        if why := why_unsafe(name):
            findings.append(Finding("error", "integrity", "shard-name", None, f"shard {name!r} {why}"))
            continue
        try:
            opening.recover(str(index.folder / name), on_progress)
            shard = open_source(str(index.folder / name))
            found = _check_one(shard, only, on_progress, is_shard=True)
        except Exception as error:  # noqa: BLE001 - one bad shard does not end the report on the others
            findings.append(_lost(error)._replace(file=name))
            continue
        _unchanged(shard)
        findings += (finding._replace(file=name) for finding in found.findings)
        safety += ((f"{name}: {part}", pickle) for part, pickle in found.safety)
        shards.append(ShardSummary.of(name, found.checkpoint, found.findings))
    if "integrity" in only:
        findings += index_mismatches(index, shards)
        findings += unlisted_shards(index)
        findings += untied_embeddings(index.folder, shards)
    tensors = sum(shard.tensors for shard in shards) + len(index.aliases)
    return Report(source.name, tuple(findings), tuple(safety), tensors, len(shards))


def _lost(error: Exception) -> Finding:
    """Return the finding about a shard that cannot be opened."""
    if not isinstance(error, FileError) or isinstance(error, FormatError):
        return _unreadable(error)
    return Finding("error", "integrity", "shard-missing", None, f"{error.what}, though the index names it")


def _unchanged(source: Source) -> None:
    """Raise FileError if the file changed while it was checked."""
    try:
        source.check_unchanged("the findings may be out of date")
    except FileError as error:
        error.file = error.file or source.name
        raise


def _unreadable(error: Exception) -> Finding:
    """Return the finding about a file that cannot be read, or not to its end."""
    if isinstance(error, TwoReadings):
        return Finding("error", "safety", DANGEROUS, None, told(error))
    if isinstance(error, Unsupported):
        return Finding("warning", "integrity", NOT_READ, None, told(error))
    return Finding("error", "integrity", "unreadable", None, told(error))


def _apart(source: Source, form: AnyFormat | None, on_progress: ProgressCallback) -> Iterator[Finding]:
    """Yield the findings about the files of a set that cannot be read as one, each for itself."""
    whole = registry.as_set(form)
    try:
        yield from whole.apart(source, on_progress) if whole else ()
    except Exception as error:  # noqa: BLE001 - as above
        yield _unreadable(error)
