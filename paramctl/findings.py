"""Define the findings of a check, and how severe they are."""

from __future__ import annotations

from typing import Literal, NamedTuple

Group = Literal["integrity", "health", "safety"]
Level = Literal["error", "warning", "note"]
GROUPS: tuple[Group, ...] = ("integrity", "health", "safety")
NOT_READ = "not-read"  # the rule that says that a check says nothing


class Finding(NamedTuple):
    """One finding: `rule` names its kind for programs, `path` the param it is about, if any.

    An `error` is damage or danger, a `warning` is hardly ever intended, a `note` is worth knowing but nothing is
    wrong. `what` describes it; `file` is given if a checkpoint has several files.
    """

    level: Level
    group: Group
    rule: str
    path: str | None
    what: str
    file: str = ""


def unreadable(what: str, file: str = "") -> Finding:
    """Return a finding about a file, or a part of one, that cannot be read."""
    return Finding("error", "integrity", "unreadable", None, what, file)


# Every rule, and what it looks for: for the help, and for programs that list rules.
RULES: dict[str, str] = {
    "unreadable": "the file contradicts its format, is cut off, or is another file, such as an error page",
    NOT_READ: "a file in an unsupported format: only its pickles were checked",
    "checksum": "bytes do not match the CRC-32 they were saved with",
    "record": "two parts of a zip archive say different things about one record",
    "bomb": "a compressed record that claims to be much more than it is",
    "no-checksums": "an archive without checksums, in which damage cannot be seen",
    "gap": "bytes that belong to nothing",
    "outside": "records of a torch archive that are not in its folder",
    "unused-record": "records of a torch archive that torch does not read",
    "unused-storage": "stored values that no tensor uses",
    "trailing": "bytes after the end of a pickle",
    "dangling-alias": "a tied name whose tensor is not there",
    "untied-copies": "two copies of what should be one tensor, with different values",
    "alike": "several tensors under one name",
    "shard-missing": "a shard that the index names but that is missing or unreadable",
    "no-index": "several files without an index, so that a missing one would not be noticed",
    "shard-unnamed": "a file named like a shard of the set that the index does not list, perhaps left by a write",
    "shard-name": "a shard's name that is not a plain file name beside the index",
    "shard-index": "the index and its shards disagree on where tensors are",
    "total-size": "the index states another size than its tensors have",
    "unread": "values that were not checked",
    "nan": "values that are not a number",
    "infinite": "infinite values",
    "all-zero": "weights that are all zero",
    "constant": "weights that are all the same",
    "denormal": "values so small that they have lost precision, in large numbers",
    "dead-rows": "rows of weights that are all zero",
    "dangerous": "a pickle that runs code of an attacker's choice when it is loaded the unsafe way",
    "unjudged": "a pickle that could not be judged",
    "foreign-code": "a pickle that calls functions of packages when it is loaded the unsafe way",
    "foreign-class": "a pickle that makes objects of classes when it is loaded the unsafe way",
    "weights-only": "what torch.load(weights_only=True) refuses",
}
