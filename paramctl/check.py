"""Whether a checkpoint is sound (integrity), its values plausible (health), and loading it harmless (safety)."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from paramctl import formats
from paramctl.checkpoint import Checkpoint
from paramctl.errors import FormatError, ParamctlError, some
from paramctl.findings import GROUPS, Finding, Group, Level
from paramctl.formats import Format, pickles, shard_index
from paramctl.formats.pickle_safety import Safety, Use, inspect
from paramctl.formats.shard_index import Index
from paramctl.health import health
from paramctl.sources import STDIN, Source, open_source
from paramctl.watch import Watch, nobody

BARE = 5  # pickles that a torch file from before 1.6 begins with
MAX_PICKLE = 256 << 20  # bytes
EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "word_embeddings.weight", "shared.weight", "embed_in.weight")
HEADS = ("lm_head.weight", "embed_out.weight", "decoder.weight", "output.weight")


class Report(NamedTuple):
    """What was found in a checkpoint, and in how much: `safety` is told of each pickle, by file and record."""

    findings: tuple[Finding, ...]
    safety: tuple[tuple[str, Safety], ...]
    tensors: int
    files: int


def check(name: str, only: Collection[Group] = GROUPS, watch: Watch = nobody) -> Report:
    """Check the file `name` (`-`: standard input), the index of a sharded set, or a folder with one.

    Every byte is read. What cannot be read because it contradicts its format is a finding like others.
    Raises FileError where there is no file, or one of a kind that is not read.
    """
    if name != STDIN and Path(name).is_dir():
        name = str(shard_index.inside(Path(name)))
    formats.recover(name, watch)
    source = open_source(name, watch)
    if shard_index.recognises(source):
        return _check_set(source, only, watch)
    return _check_one(source, only, watch)


def _check_one(source: Source, only: Collection[Group], watch: Watch, file: str = "") -> Report:
    """The report on one file."""
    form = formats.of(source) if source.size else None
    safety: list[tuple[str, Safety]] = []
    findings: list[Finding] = []
    tensors = 0
    try:
        checkpoint = formats.read(source)
        tensors = len(checkpoint.params)
        findings += _sound(checkpoint, only, watch)
    except FormatError as error:
        if form is None and not dangerous(source):
            raise
        findings.append(Finding("error", "integrity", "unreadable", None, _whole(error)))
    if "safety" in only:
        for part, data in _code(source, form):
            try:
                safety.append((part, inspect(data)))
                findings += safety_findings(safety[-1][1])
            except FormatError as error:
                if error.hint:
                    findings.append(Finding("error", "safety", "dangerous", None, _whole(error)))
    source.check_unchanged("what was found may not be true of it")
    return Report(tuple(one._replace(file=file) for one in findings), tuple(safety), tensors, 1)


def _whole(error: ParamctlError) -> str:
    return f"{error.what}; {error.hint}" if error.hint else error.what


def _sound(checkpoint: Checkpoint, only: Collection[Group], watch: Watch) -> Iterator[Finding]:
    """What is wrong with the bytes and the values of a file that can be read."""
    damaged: set[str] = set()
    if "integrity" in only:
        for finding in formats.BY_NAME[checkpoint.format].audit(checkpoint, watch):
            if finding.level == "error" or finding.rule == "bomb":
                damaged.update(_storages(checkpoint, finding.path))
            yield finding
        yield from _names(checkpoint)
        yield from _copies(checkpoint, damaged)
    if "health" in only:
        yield from health(checkpoint, watch, damaged=damaged, trust="integrity" in only)


def _storages(checkpoint: Checkpoint, path: str | None) -> Iterator[str]:
    for param in checkpoint.params:
        if path is not None and param.path == path:
            yield from (str(part.storage) for part in (param, *param.components))


# --- integrity ---------------------------------------------------------------------------------


def _names(checkpoint: Checkpoint) -> Iterator[Finding]:
    """Paths that print alike: whoever edits by path cannot tell them apart."""
    alike = [label for label in checkpoint.labels if "#" in label]
    seen = {param.path for param in checkpoint.params}
    twice = [label for label in alike if label not in seen]
    if twice:
        what = f"{len(twice):,} tensors have a path that another one has too: {some(twice)}"
        yield Finding("note", "integrity", "alike", None, what)


def _copies(checkpoint: Checkpoint, damaged: set[str]) -> Iterator[Finding]:
    """Pairs that the file, or the configuration beside it, says are one tensor, and that differ."""
    from paramctl.equal import same_values

    params = checkpoint.params
    for a, b, who in _declared_ties(checkpoint):
        one, other = params[a], params[b]
        tied = checkpoint.tied_to.get(a, a) == checkpoint.tied_to.get(b, b)
        if tied or damaged & {str(one.storage), str(other.storage)}:
            continue
        alike = (one.dtype, one.shape) == (other.dtype, other.shape)
        if not alike or not same_values(checkpoint, a, b):
            what = f"and {other.path} are copies of one tensor, says {who}, and hold different values"
            yield Finding("error", "integrity", "untied-copies", one.path, what)


def _declared_ties(checkpoint: Checkpoint) -> Iterator[tuple[int, int, str]]:
    """Positions of two params that are said to be one tensor, and what says so."""
    from paramctl.formats.companions import CONFIG, ties_embeddings

    at = {param.path: i for i, param in enumerate(checkpoint.params)}
    for key, text in checkpoint.metadata.items():
        if key in at and text in at and key != text:
            yield at[key], at[text], "the file's metadata"
    inputs, outputs = (
        [i for path, i in at.items() if path.endswith(ends) and checkpoint.params[i].kind != "optimizer"]
        for ends in (EMBEDDINGS, HEADS)
    )
    if len(inputs) == len(outputs) == 1 and any(map(ties_embeddings, checkpoint.sources)):
        yield outputs[0], inputs[0], f"the {CONFIG} beside it"


# --- safety ------------------------------------------------------------------------------------


def safety_findings(safety: Safety) -> Iterator[Finding]:
    """What to know before a pickle is loaded; what does the same is said once, with every name."""
    alike: dict[tuple[Level, str, str], list[str]] = {}
    for use in safety.uses:
        alike.setdefault((*_judged(use), use.does), []).append(use.name)
    for (level, rule, does), names in alike.items():
        each = "each " if len(names) > 1 else ""
        yield Finding(level, "safety", rule, None, f"the pickle names {', '.join(names)}; {each}{does}")
    if safety.refusal:
        what = f"torch.load(weights_only=True) refuses it: {safety.refusal}"
        yield Finding("note", "safety", "weights-only", None, what)


def _code(source: Source, form: Format | None) -> Iterator[tuple[str, bytes]]:
    """The pickles in a file that would be carried out, as far as they can be found."""
    try:
        yield from (form.code(source) if form else _bare(source))
    except FormatError:
        return  # of an archive that cannot be read, which is a finding already


def _bare(source: Source) -> Iterator[tuple[str, bytes]]:
    """The pickles that a file begins with, one behind the other, as torch wrote them before it wrote archives."""
    data = source.read(0, min(source.size, MAX_PICKLE))
    at = 0
    for number in range(BARE):
        if data[at : at + 1] != b"\x80":
            return
        yield f"pickle {number + 1}", data[at:]
        at = pickles.read(data, at).end


def dangerous(source: Source) -> bool:
    """Whether a file of no format that is read begins with pickles that would do harm."""
    if source.read(0, min(source.size, 1)) != b"\x80":
        return False
    for _, data in _code(source, None):
        try:
            found = any(use.danger == "dangerous" for use in inspect(data).uses)
        except FormatError as error:
            found = bool(error.hint)
        if found:
            return True
    return False


def _judged(use: Use) -> tuple[Level, str]:
    """How much it matters what a pickle names, and the rule it falls under."""
    if use.danger == "dangerous":
        return "error", "dangerous"
    is_class = use.name.rpartition(".")[2][:1].isupper()
    if use.danger == "known" or is_class:
        return "note", "foreign-class"
    return "warning" if use.called else "note", "foreign-code"


# --- sharded sets ------------------------------------------------------------------------------


def _check_set(source: Source, only: Collection[Group], watch: Watch) -> Report:
    """The report on an index and all its shards."""
    try:
        index = shard_index.read(source)
    except FormatError as error:
        return Report((Finding("error", "integrity", "unreadable", None, error.what),), (), 0, 1)
    findings: list[Finding] = []
    safety: list[tuple[str, Safety]] = []
    where: dict[str, set[str]] = {}
    tensors = nbytes = files = 0
    for name in index.shards:
        if why := shard_index.why_unsafe(name):
            findings.append(Finding("error", "integrity", "shard-name", None, f"shard {name!r} {why}"))
            continue
        try:
            shard = open_source(str(index.folder / name), watch)
            report = _check_one(shard, only, watch, name)
            files += 1
        except ParamctlError as error:
            rule = "unreadable" if isinstance(error, FormatError) else "shard-missing"
            findings.append(Finding("error", "integrity", rule, None, error.what, name))
            continue
        findings += report.findings
        safety += ((f"{name}: {part}", found) for part, found in report.safety)
        tensors += report.tensors
        if not any(finding.rule == "unreadable" for finding in report.findings):
            listed = formats.read(shard)
            own = [param for i, param in enumerate(listed.params) if i not in listed.tied_to]
            where[name] = {param.path for param in own}
            nbytes += sum(param.nbytes for param in own)
    if "integrity" in only:
        findings += _against(index, where, nbytes)
    return Report(tuple(findings), tuple(safety), tensors, files)


def _against(index: Index, where: dict[str, set[str]], nbytes: int) -> Iterator[Finding]:
    """What the index says of its shards that is not so."""
    for name, held in where.items():
        named = {path for path, shard in index.weight_map.items() if shard == name}
        for paths, what in (
            (sorted(named - held), "the index says it holds {}, and it does not"),
            (sorted(held - named), "it holds {}, which the index does not say"),
        ):
            if paths:
                yield Finding("error", "integrity", "shard-index", None, what.format(some(paths)), name)
    if len(where) == len(index.shards) and index.total_size not in (None, nbytes):
        what = f"the index claims {index.total_size:,} bytes of tensors, and there are {nbytes:,}"
        yield Finding("warning", "integrity", "total-size", None, what)


def worst(findings: Iterable[Finding]) -> bool:
    """Whether anything was found that is more than a note."""
    return any(finding.level != "note" for finding in findings)

