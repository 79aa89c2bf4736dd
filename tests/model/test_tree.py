"""The tree of a checkpoint: nesting, totals, folding, order."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from paramctl.model import tree
from paramctl.model.checkpoint import Checkpoint, Entry, Leaf, Module, Param, Storage, contiguous
from paramctl.model.dtypes import BY_NAME
from paramctl.model.tree import Fold, Node, Scalar, Tensor, Totals

_KEYS = count()


def param(path: str, *shape: int, storage: str = "", offset: int = 0, dtype: str = "float32") -> Param:
    key = storage or f"own {next(_KEYS)}"
    return Param(path, "parameter", BY_NAME[dtype], shape, contiguous(shape), key, offset)


def checkpoint(*entries: Entry, modules: dict[str, Module] | None = None) -> Checkpoint:
    keys = {str(entry.storage) for entry in entries if isinstance(entry, Param)}
    return Checkpoint("torch-zip", "x.pt", entries, {key: Storage((), 1 << 20) for key in keys}, modules=modules or {})


def outline(node: Node, folds: tree.Folds | None = None) -> list[str]:
    """The tree as indented names, with the totals of layers."""
    out = []
    for child in folds.children(node) if folds else node.children:
        inner = child.first if isinstance(child, Fold) else child
        if isinstance(inner, Node):
            times = f" ×{child.blocks}" if isinstance(child, Fold) else ""
            out.append(f"{child.name}{times} {inner.numel} {inner.nbytes}")
            out += [f"  {line}" for line in outline(inner, folds)]
        else:
            out.append(child.name)
    return out


def test_paths_become_nested_layers_with_totals() -> None:
    root = tree.build(checkpoint(param("0.weight", 8, 4), param("0.bias", 8), param("2.weight", 1, 8), param("top", 3)))
    assert outline(root) == ["0 40 160", "  weight", "  bias", "2 8 32", "  weight", "top"]
    assert (root.numel, root.nbytes) == (51, 204)


def test_layers_keep_the_place_where_they_first_were() -> None:
    root = tree.build(checkpoint(param("b.x", 1), param("a.x", 1), param("b.y", 1)))
    assert outline(root) == ["b 2 8", "  x", "  y", "a 1 4", "  x"]


def test_a_name_that_is_layer_and_tensor_shows_both() -> None:
    root = tree.build(checkpoint(param("a", 3), param("a.b", 2)))
    assert outline(root) == ["a", "a 2 8", "  b"]


def test_paths_that_print_alike_are_all_there() -> None:
    root = tree.build(checkpoint(param("a.b", 3), param("a.b", 2)))
    assert outline(root) == ["a 5 20", "  b", "  b"]


def test_a_bare_tensor_has_no_name() -> None:
    assert outline(tree.build(checkpoint(param("", 3)))) == [""]


def test_empty_names_are_names() -> None:
    assert outline(tree.build(checkpoint(param(".", 3), param("a..b", 1)))) == [
        " 3 12", "  ", "a 1 4", "   1 4", "    b"
    ]  # fmt: skip


def test_scalars_are_leaves_in_their_place() -> None:
    root = tree.build(checkpoint(Leaf("epoch", 12), param("w", 1), Leaf("opt.lr", 0.1)))
    assert outline(root) == ["epoch", "w", "opt 0 0", "  lr"]
    assert root.children[0] == Scalar("epoch", 12, False)


def test_layers_without_params_have_the_place_the_file_gives_them() -> None:
    modules = {
        name: Module(kind, kind) for name, kind in (("", "Net"), ("0", "A"), ("1", "ReLU"), ("2", "B"), ("3", "D"))
    }
    root = tree.build(checkpoint(param("own", 1), param("0.w", 1), param("2.w", 1), modules=modules))
    assert outline(root) == ["own", "0 1 4", "  w", "1 0 0", "2 1 4", "  w", "3 0 0"]
    assert root.module == Module("Net", "Net")


def within(node: Node) -> Iterator[Node]:
    """A layer and all those under it."""
    yield node
    for child in node.children:
        if isinstance(child, Node):
            yield from within(child)


def test_what_is_tied_counts_once_in_every_layer_above_both() -> None:
    root = tree.build(
        checkpoint(
            param("m.a.w", 10, storage="s"),
            param("m.b.w", 10, storage="s"),
            param("m.b.v", 10, storage="s"),
            param("n.w", 10, storage="s"),
            param("n.x", 1),
        )
    )
    assert outline(root) == [
        "m 10 40",
        "  a 10 40",
        "    w",
        "  b 10 40",
        "    w",
        "    v",
        "n 11 44",
        "  w",
        "  x",
    ]
    assert root.numel == 11
    tensors = [child for node in (root, *root.below) for child in node.children if isinstance(child, Tensor)]
    assert {tensor.param.path: tensor.look.tied_to for tensor in tensors} == {
        "m.a.w": None,
        "m.b.w": "m.a.w",
        "m.b.v": "m.a.w",
        "n.w": "m.a.w",
        "n.x": None,
    }


def test_totals_count_ties_once_and_empty_tensors_never_as_ties() -> None:
    entries = (
        param("a", 5, storage="s"),
        param("b", 5, storage="s"),
        param("c", 0, storage="s"),
        param("d", 0, storage="s"),
    )
    assert tree.totals(checkpoint(*entries)) == Totals(4, 3, 5, 20)
    assert tree.totals(checkpoint(*entries), {1}) == Totals(1, 1, 5, 20)


def test_chosen_params_alone_make_the_tree_and_its_totals() -> None:
    saved = checkpoint(param("a.w", 5, storage="s"), Leaf("epoch", 1), param("b.w", 5, storage="s"), param("c.w", 1))
    root = tree.build(saved, {2, 1})
    assert outline(root) == ["b 5 20", "  w", "c 1 4", "  w"]
    assert root.numel == 6


def test_equal_blocks_fold_by_their_numbers_not_their_order() -> None:
    blocks = [param(f"layers.{i}.w", 2) for i in (0, 1, 10, 2, 3, 5, 6)]
    root = tree.build(checkpoint(*blocks))
    assert outline(root, tree.Folds(root)) == [
        "layers 14 56", "  0–3 ×4 2 8", "    w", "  10 2 8", "    w", "  5–6 ×2 2 8", "    w"
    ]  # fmt: skip


def test_blocks_fold_whatever_the_order_of_their_parts() -> None:
    names = ["attn.q", "attn.k", "mlp.up", "mlp.down", "norm"]
    rng = Random(3)
    blocks = [param(f"layers.{i}.{name}.w", 2) for i in range(6) for name in rng.sample(names, len(names))]
    rng.shuffle(blocks)
    root = tree.build(checkpoint(*blocks, param("layers.6.attn.q.w", 2)))
    (layers,) = tree.Folds(root).children(root)
    assert isinstance(layers, tree.Node)
    folded = tree.Folds(root).children(layers)
    assert sorted(child.blocks if isinstance(child, tree.Fold) else 1 for child in folded) == [1, 6]


def test_blocks_fold_whose_names_end_in_a_number() -> None:
    """Behind a sign that parts it from the rest, which must be the same."""
    names = ["block 0", "block 1", "expert_7", "block_2", "block-2", "expert_8", "fc1", "fc2", "a_b_1", "a_c_2", "up_", "_1"]
    root = tree.build(checkpoint(*(param(f"{name}.w", 2) for name in names)))
    shown = [line for line in outline(root, tree.Folds(root)) if line[0] != " "]
    alone = ["block_2", "block-2", "fc1", "fc2", "a_b_1", "a_c_2", "up_", "_1"]
    assert shown == [f"{name} 2 8" for name in ("block 0–1 ×2", "expert_7–8 ×2", *alone)]


def test_blocks_that_differ_do_not_fold() -> None:
    different: dict[str, tuple[Entry, ...]] = {
        "shape": (param("0.w", 2), param("1.w", 3)),
        "dtype": (param("0.w", 2), param("1.w", 2, dtype="float16")),
        "name": (param("0.w", 2), param("1.v", 2)),
        "tie": (param("0.w", 2, storage="s"), param("1.w", 2, storage="s")),
        "scalar": (Leaf("0.w", 2), Leaf("1.w", 3)),
        "type of scalar": (Leaf("0.w", 1), Leaf("1.w", True)),
        "unhashable": (Leaf("0.w", [1]), Leaf("1.w", [1])),
        "leading zero": (param("0.w", 2), param("01.w", 2)),
        "not a number": (param("²0.w", 2), param("²1.w", 2)),
    }
    for why, entries in different.items():
        root = tree.build(checkpoint(*entries))
        assert not [child for child in tree.Folds(root).children(root) if isinstance(child, Fold)], why


def test_blocks_of_different_classes_do_not_fold() -> None:
    modules = {"0": Module("A", "A"), "1": Module("B", "B"), "2": Module("B", "B")}
    root = tree.build(checkpoint(*(param(f"{i}.w", 2) for i in range(3)), modules=modules))
    assert outline(root, tree.Folds(root)) == ["0 2 8", "  w", "1–2 ×2 2 8", "  w"]


def test_tensors_never_fold() -> None:
    root = tree.build(checkpoint(*(param(f"weights.{i}", 2) for i in range(3))))
    assert outline(root, tree.Folds(root)) == ["weights 6 24", "  0", "  1", "  2"]


def test_sorting_is_natural_all_the_way_down() -> None:
    root = tree.build(checkpoint(param("l.10.w", 1), param("l.2.w", 1), param("l.2.b", 1), param("a", 1)))
    tree.sort(root)
    assert outline(root) == ["a", "l 3 12", "  2 2 8", "    b", "    w", "  10 1 4", "    w"]


def test_three_thousand_dots_are_no_three_thousand_layers() -> None:
    path = ".".join(["x"] * 3000)
    root = tree.build(checkpoint(param(path, 1)))
    layers = [root, *root.below]
    assert len(layers) == tree.DEPTH + 1
    (leaf,) = layers[-1].children
    assert leaf.name == ".".join(["x"] * (3000 - tree.DEPTH))


names = st.lists(st.sampled_from(["a", "b", "0", "1", ""]), min_size=1, max_size=4).map(".".join)


@given(st.lists(st.tuples(names, st.sampled_from(["", "s", "t"])), max_size=12))
def test_every_layer_counts_what_its_unique_params_hold(rows: list[tuple[str, str]]) -> None:
    saved = checkpoint(*(param(path, 2, storage=storage) for path, storage in rows))
    root = tree.build(saved)
    assert (root.numel, root.nbytes) == tree.totals(saved)[2:]
    for node in (root, *root.below):
        under = [child.param.view for each in within(node) for child in each.children if isinstance(child, Tensor)]
        assert node.numel == 2 * len(set(under))
