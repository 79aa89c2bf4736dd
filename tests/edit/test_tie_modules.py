"""`tie` and `untie` in whole modules: every mention of a tensor follows its path, and what cannot is noted."""

from __future__ import annotations

import functools
import random
import zipfile
from collections import ChainMap, OrderedDict, UserDict, UserList, deque
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from helpers import rezipped
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from verb_files import opened, same, saved

from paramctl.edit.init import init
from paramctl.edit.report import Edit
from paramctl.edit.set import set as set_values
from paramctl.edit.tie import tie, untie
from paramctl.errors import Unsupported
from paramctl.files import targets
from paramctl.formats import opening, saving
from paramctl.formats.pickles import reader, writer

STALE = "the optimizer state in this file still belongs to the old values"


class Box(nn.Module):
    """Takes any attributes."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__()
        for name, value in attributes.items():
            setattr(self, name, value)


def box(**attributes: Any) -> Any:
    """A Box, as what a person's own module is to a type checker."""
    return Box(**attributes)


class Pair(NamedTuple):
    first: Any
    second: Any


class Items(list[Any]):
    pass


class Names(dict[Any, Any]):
    pass


class Slotted:
    __slots__ = ("w",)

    def __init__(self, w: torch.Tensor) -> None:
        self.w = w


def weight(*values: float) -> nn.Parameter:
    return nn.Parameter(torch.tensor(values, dtype=torch.float32))


def written(folder: Path, edit: Edit) -> Any:
    """The edited checkpoint, written by paramctl and loaded by torch."""
    path = folder / "out.pt"
    saving.save(edit.checkpoint, targets.NewFile(path, True))
    return torch.load(path, weights_only=False)


# --- what follows --------------------------------------------------------------------------------

HOLDERS: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
    "itself": (lambda w: (w, 0), lambda held: held[0]),
    "list": (lambda w: [1, [w]], lambda held: held[1][0]),
    "dict": (lambda w: {"k": w}, lambda held: held["k"]),
    "key": (lambda w: {w: 1}, lambda held: next(iter(held))),
    "key of a key": (lambda w: {(w, 2): 1}, lambda held: next(iter(held))[0]),
    "set": (lambda w: {w}, lambda held: next(iter(held))),
    "frozenset": (lambda w: frozenset([w]), lambda held: next(iter(held))),
    "named tuple": (lambda w: Pair(1, w), lambda held: held.second),
    "deque": (lambda w: deque([w]), lambda held: held[0]),
    "subclass of list": (lambda w: Items([w]), lambda held: held[0]),
    "subclass of dict": (lambda w: Names(k=w), lambda held: held["k"]),
    "OrderedDict": (lambda w: OrderedDict(k=w), lambda held: held["k"]),
    "ChainMap": (lambda w: ChainMap({"k": w}), lambda held: held["k"]),
    "UserDict": (lambda w: UserDict(k=w), lambda held: held["k"]),
    "UserList": (lambda w: UserList([w]), lambda held: held[0]),
    "namespace": (lambda w: SimpleNamespace(w=w), lambda held: held.w),
    "slots": (Slotted, lambda held: held.w),
    "partial": (lambda w: functools.partial(torch.add, w), lambda held: held.args[0]),
    "partial's keywords": (lambda w: functools.partial(torch.add, other=w), lambda held: held.keywords["other"]),
    "unregistered module": (lambda w: [box(w=w)], lambda held: held[0].w),
    "names of a module's own": (lambda w: {"_parameters": [w], "_modules": 1}, lambda held: held["_parameters"][0]),
    "bound method": (lambda w: SimpleNamespace(f=box(w=w).train), lambda held: held.f.__self__.w),
    "optimizer": (lambda w: torch.optim.SGD([w]), lambda held: held.param_groups[0]["params"][0]),
}


@pytest.mark.parametrize("holder", HOLDERS)
@pytest.mark.parametrize("where", ["own", "around"])
def test_whatever_holds_a_tensor_of_a_module_follows(tmp_path: Path, holder: str, where: str) -> None:
    hold, held = HOLDERS[holder]
    net = box(a=box(w=weight(1, 2)), b=box(w=weight(3, 4)))
    (net.b if where == "own" else net).extra = hold(net.b.w)
    edit = tie(opened(tmp_path, net), "a.w", "b.w")
    assert edit.notes == ()
    after: Any = written(tmp_path, edit)
    assert held((after.b if where == "own" else after).extra) is after.b.w is after.a.w
    assert same(after.a.w, net.a.w)


@pytest.mark.parametrize("holder", HOLDERS)
def test_only_the_use_that_is_named_gets_what_it_holds_anew(tmp_path: Path, holder: str) -> None:
    hold, held = HOLDERS[holder]
    shared = box(w=weight(1, 2))
    shared.extra = hold(shared.w)
    after: Any = written(tmp_path, untie(opened(tmp_path, box(x=shared, y=shared)), "y.w"))
    assert held(after.y.extra) is after.y.w
    assert held(after.x.extra) is after.x.w
    assert after.x.w is not after.y.w


def test_what_a_copy_holds_twice_it_holds_twice_still(tmp_path: Path) -> None:
    shared = box(w=weight(1, 2))
    held = [shared.w]
    shared.pair = (held, held)
    after: Any = written(tmp_path, untie(opened(tmp_path, box(x=shared, y=shared)), "y.w"))
    assert after.y.pair[0] is after.y.pair[1] and after.y.pair[0][0] is after.y.w
    assert after.x.pair[0] is after.x.pair[1] and after.x.pair[0][0] is after.x.w


def test_what_holds_itself_and_its_module_holds_the_copy(tmp_path: Path) -> None:
    shared = box(w=weight(1, 2))
    shared.extra = [shared.w]
    shared.extra += [shared.extra, SimpleNamespace(owner=shared)]
    after: Any = written(tmp_path, untie(opened(tmp_path, box(x=shared, y=shared)), "y.w"))
    for module in (after.x, after.y):
        assert module.extra[0] is module.w and module.extra[1] is module.extra and module.extra[2].owner is module


def test_a_list_of_two_modules_stays_as_it_is_for_the_one_that_is_not_named(tmp_path: Path) -> None:
    w = weight(1, 2)
    held = [w]
    edit = untie(opened(tmp_path, box(a=box(w=w, ws=held), b=box(w=w, ws=held))), "a.w")
    after: Any = written(tmp_path, edit)
    assert after.a.ws[0] is after.a.w and after.b.ws[0] is after.b.w and after.a.w is not after.b.w


def test_a_list_of_all_modules_stays_one_where_no_path_names_the_old_tensor(tmp_path: Path) -> None:
    net = box(a=box(w=weight(1)), b=box(w=weight(2)), c=box(w=weight(3)))
    net.a.all = net.b.all = net.c.all = [net.a.w, net.b.w, net.c.w]
    after: Any = written(tmp_path, tie(opened(tmp_path, net), "a", "b", "c"))
    assert after.a.all is after.b.all is after.c.all
    assert all(held is after.a.w for held in after.a.all)


def test_around_a_tensor_that_stays_under_another_path_nothing_moves(tmp_path: Path) -> None:
    w = weight(1, 2)
    net = box(a=box(w=w), b=box(w=w))
    net.extra = [w]
    edit = untie(opened(tmp_path, net), "b.w")
    after: Any = written(tmp_path, edit)
    assert edit.notes == () and after.extra[0] is after.a.w is not after.b.w


def test_a_key_that_would_push_another_out_is_left_and_noted(tmp_path: Path) -> None:
    net = box(a=weight(1), b=weight(2))
    net.counts = {net.a: "of a", net.b: "of b"}
    edit = tie(opened(tmp_path, net), "a", "b")
    assert edit.notes == ("the file still holds tensors that no path names, at counts",)
    assert list(written(tmp_path, edit).counts.values()) == ["of a", "of b"]


# --- what is left ----------------------------------------------------------------------------------


def test_what_other_modules_hold_is_left_and_noted(tmp_path: Path) -> None:
    net = box(a=box(w=weight(1)), b=box(w=weight(2)), c=box(w=weight(3)), act=nn.ReLU())
    net.c.extra, net.act.extra = {"k": [net.b.w]}, (net.b.w,)
    edit = tie(opened(tmp_path, net), "a.w", "b.w")
    assert edit.notes == ("the file still holds tensors that no path names, at act.extra.0, c.extra.k.0",)
    after: Any = written(tmp_path, edit)
    assert same(after.c.extra["k"][0], net.b.w) and after.c.extra["k"][0] is after.act.extra[0]


def trained(optimizer: Callable[..., torch.optim.Optimizer]) -> dict[str, Any]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    moved = optimizer(net.parameters())
    net(torch.ones(1, 2)).sum().backward()
    moved.step()
    return {"m": net, "o": moved}


def test_an_optimizer_object_keeps_what_it_holds_and_is_noted(tmp_path: Path) -> None:
    made = trained(torch.optim.Adam)
    edit = tie(opened(tmp_path, made), "m.0", "m.1")
    assert edit.notes == (
        STALE,
        "the file still holds tensors that no path names, at "
        "o.state, o.param_groups.0.params.2, o.param_groups.0.params.3",
    )
    after: Any = written(tmp_path, edit)
    held = after["o"].param_groups[0]["params"]
    assert held[0] is after["m"][0].weight is after["m"][1].weight
    assert same(held[2], made["m"][1].weight) and len(after["o"].state) == 4


def test_the_moments_of_an_optimizer_object_are_stale(tmp_path: Path) -> None:
    checkpoint = opened(tmp_path, trained(torch.optim.Adam))
    assert init(checkpoint, ["m.0"], ["ones"], seed=1).notes == (STALE,)
    assert set_values(checkpoint, "m.0.bias = 3").notes == (STALE,)
    plain = opened(tmp_path, trained(torch.optim.SGD))  # has no moments
    assert init(plain, ["m.0"], ["ones"], seed=1).notes == ()


def test_a_list_beside_the_module_that_the_module_holds_too_stays_for_who_is_not_named(tmp_path: Path) -> None:
    net = box(a=weight(1), b=weight(2))
    net.extra = [net.b]
    edit = tie(opened(tmp_path, {"m": net, "beside": SimpleNamespace(held=net.extra)}), "m.a", "m.b")
    assert edit.notes == ("the file still holds tensors that no path names, at beside.held.0",)
    after: Any = written(tmp_path, edit)
    assert after["m"].extra[0] is after["m"].b is after["m"].a and same(after["beside"].held[0], net.b)


def test_a_dict_and_modules_in_it_may_hold_each_other(tmp_path: Path) -> None:
    made: dict[str, Any] = {"m": box(a=weight(1), b=weight(2)), "list": [weight(3)]}
    made["m"].__dict__["run"] = made
    made["m"].extra = [made["m"].b]
    after: Any = written(tmp_path, tie(opened(tmp_path, made), "m.a", "m.b"))
    assert after["m"].extra[0] is after["m"].a and after["m"].run is after


def test_copies_without_end_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("paramctl.formats.pytorch.edits.COPIED", 1000)
    ws = [weight(i) for i in range(400)]
    net: Any = nn.ModuleList([box(w=w, all=ws) for w in ws for _ in range(2)])
    edit = untie(opened(tmp_path, net), "**")
    with pytest.raises(Unsupported) as caught:
        written(tmp_path, edit)
    assert str(caught.value) == "its modules share their parts so often that copies of them would not end"


def test_as_many_ties_as_modules_keep_the_list_that_all_hold(tmp_path: Path) -> None:
    net: Any = nn.ModuleList([box(w=weight(i)) for i in range(1000)])
    ws = [module.w for module in net]
    for module in net:
        module.all = ws
    after: Any = written(tmp_path, tie(opened(tmp_path, net), *map(str, range(1000))))
    assert all(module.all is after[0].all and module.w is after[0].w for module in after)
    assert all(w is after[0].w for w in after[0].all)


def test_what_lies_deep_follows(tmp_path: Path) -> None:
    """Deeper than Python could load it: nothing recurses."""
    path = saved(tmp_path, box(a=weight(1), b=weight(2)))
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    name = next(name for name in records if name.endswith("/data.pkl"))
    root = reader.read(records[name]).root
    held: Any = root.state.get("_parameters").get("b")
    for _ in range(50_000):
        held = [held]
    root.state.pairs.append(("extra", held))
    path = rezipped(tmp_path / "deep.pt", records | {name: writer.write(root, 2)})
    edit = tie(opening.open(str(path)), "a", "b")
    assert edit.notes == ()
    saving.save(edit.checkpoint, targets.NewFile(tmp_path / "out.pt", True))
    with zipfile.ZipFile(tmp_path / "out.pt") as archive:
        state = reader.read(archive.read(name)).root.state
    held = state.get("extra")
    while isinstance(held, list):
        (held,) = held
    assert held is state.get("_parameters").get("b") is state.get("_parameters").get("a")


# --- laws ------------------------------------------------------------------------------------------


def registered(net: nn.Module) -> dict[str, nn.Module]:
    return dict(net.named_modules(remove_duplicate=False))


def listed(net: nn.Module) -> dict[str, torch.Tensor]:
    return dict(net.named_parameters(remove_duplicate=False))


def mentions(module: nn.Module, stop: set[int]) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Every object that a module's attributes reach, in order, with the way to it; not through `stop`."""
    own = ("_parameters", "_buffers", "_modules")
    todo: list[tuple[tuple[Any, ...], Any]] = [((k,), v) for k, v in vars(module).items() if k not in own]
    while todo:
        way, held = todo.pop()
        if isinstance(held, torch.Tensor | list | dict | set | frozenset | tuple) or hasattr(held, "__dict__"):
            yield way, held
        if len(way) > 8 or id(held) in stop or isinstance(held, torch.Tensor | type):
            continue
        if isinstance(held, dict):
            todo += [((*way, i, "key"), key) for i, key in enumerate(held)]
            todo += [((*way, i), value) for i, value in enumerate(held.values())]
        elif isinstance(held, list | tuple | deque):
            todo += [((*way, i), value) for i, value in enumerate(held)]
        elif isinstance(held, set | frozenset) and len(held) == 1:
            todo += [((*way, 0), value) for value in held]
        elif isinstance(held, functools.partial):
            todo += [((*way, "args"), held.args), ((*way, "keywords"), held.keywords)]
        elif isinstance(held, Slotted):
            todo.append(((*way, "w"), held.w))
        if hasattr(held, "__dict__"):
            todo += [((*way, name), value) for name, value in vars(held).items()]


def any_net(seed: int) -> nn.Module:
    """Modules within modules, used more than once, with tensors and one another in all kinds of attributes."""
    r = random.Random(seed)
    made: list[nn.Module] = []

    def module(depth: int) -> nn.Module:
        if made and r.random() < 0.2:
            return r.choice(made)
        new = Box(w=weight(len(made), r.random()))
        if r.random() < 0.3:
            new.v = weight(len(made), r.random())
        for i in range(r.randint(0, 2) if depth else 0):
            new.add_module(f"m{i}", module(depth - 1))
        made.append(new)
        return new

    net = Box(w=weight(99, 99))
    for i in range(r.randint(2, 3)):
        net.add_module(f"c{i}", module(2))
    if r.random() < 0.4:
        made[0].w = made[-1].w
    everything = [*registered(net).values()]
    pool: list[Any] = []
    for _ in range(r.randint(1, 6)):
        owner = r.choice(everything)
        inside = [*listed(owner).values()]

        def held(depth: int, inside: list[Any] = inside) -> Any:
            if depth == 0 or r.random() < 0.3:
                return r.choice(inside if r.random() < 0.9 else [*listed(net).values(), *everything])
            if pool and r.random() < 0.25:
                return r.choice(pool)
            kind = r.choice([*HOLDERS])
            if kind in ("optimizer", "key", "key of a key", "set", "frozenset", "bound method") or "module" in kind:
                pool.append(HOLDERS[kind][0](r.choice(inside)))
            else:
                pool.append(HOLDERS[kind][0](held(depth - 1)))
            return pool[-1]

        owner.__dict__[f"extra{r.randint(0, 4)}"] = (held(3),)
    return net


def check_laws(folder: Path, seed: int) -> None:
    """Ties or unties something of `any_net(seed)`, and checks what torch then loads."""
    net = any_net(seed)
    r = random.Random(-seed)
    before = listed(net)
    if r.random() < 0.5:
        first, moved = r.sample(sorted(before), 2)
        edit = tie(opened(folder, net), first, moved)
    else:
        moved = r.choice(sorted(before))
        edit = untie(opened(folder, net), moved)
    loaded: Any = written(folder, edit)
    after = listed(loaded)
    assert list(after) == list(before)
    old, others = before[moved], [path for path in before if path != moved]
    # Every other path is tied as it was, and the one that moved to the first alone or to nothing.
    assert all((after[a] is after[b]) == (before[a] is before[b]) for a in others for b in others)
    stays = any(before[path] is old for path in others)
    stop, stop_after = ({id(m) for m in registered(n).values()} for n in (net, loaded))
    left = 0
    for path, module in registered(net).items():
        start = f"{path}." if path else ""
        held_after = dict(mentions(registered(loaded)[path], stop_after))
        direct = [p for p in before if p.rpartition(".")[0] == path]
        ids: dict[int, int] = {}
        for way, was in mentions(module, stop):
            if way not in held_after and not isinstance(was, torch.Tensor):
                continue  # an optimizer makes some of its attributes anew
            now = held_after[way]
            if edit.changed and not isinstance(was, tuple):  # what was one object is one, and what was two is two
                assert ids.setdefault(id(was), id(now)) == id(now) or was is old, (path, way)
            if not isinstance(was, torch.Tensor):
                continue
            assert isinstance(now, torch.Tensor)
            inside = [p for p in direct if before[p] is was] or [p for p in before if p.startswith(start) and before[p] is was]
            if inside:
                assert any(after[p] is now for p in inside), (path, way)
            elif was is not old:
                assert any(after[p] is now for p in others if before[p] is was) or moved not in others, (path, way)
            elif not any(after[p] is now for p in after):
                left += 1
    assert bool(edit.notes) == bool(left and not stays) or not edit.changed, (edit.notes, left)


@given(st.integers(0, 1 << 30))
@settings(max_examples=100, deadline=None)
def test_every_mention_follows_its_module(seed: int) -> None:
    with TemporaryDirectory() as folder:
        check_laws(Path(folder), seed)
