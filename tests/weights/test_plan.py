import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from layouts import layouts, shards

from llamarl.core.errors import WeightSyncError
from llamarl.core.shards import Region, Shard
from llamarl.functional.shards import view_region
from llamarl.weights.layout import layout_of, whole_layout
from llamarl.weights.plan import build_plan

PAIRS = [
    (source, target)
    for source in (("full", 1), ("full", 2), ("fsdp", 2), ("fsdp", 4), ("tp", 2))
    for target in (("full", 1), ("tp", 2))
]


def moves(plan) -> list[tuple]:
    return [(m.name, m.source, m.destination, m.region.offset, m.region.shape, m.num_bytes) for m in plan.moves]


# golden


def test_golden_plan_from_rows_to_columns():
    """[5, 4] in float32: rank 0 has rows 0 to 2, rank 1 rows 3 and 4; ranks 2 and 3 want two columns each."""
    sources = {0: {"w": shards((5, 4), 2, 0)[0]}, 1: {"w": shards((5, 4), 2, 0)[1]}}
    targets = {2: {"w": shards((5, 4), 2, 1)[0]}, 3: {"w": shards((5, 4), 2, 1)[1]}}
    plan = build_plan(sources, targets)
    assert moves(plan) == [
        ("w", 0, 2, (0, 0), (3, 2), 24),  # 3 x 2 elements of 4 bytes
        ("w", 1, 2, (3, 0), (2, 2), 16),
        ("w", 0, 3, (0, 2), (3, 2), 24),
        ("w", 1, 3, (3, 2), (2, 2), 16),
    ]
    assert plan.bytes_by_source == {0: 48, 1: 32}
    assert [m.destination for m in plan.sent_by(1)] == [2, 3]
    assert [m.source for m in plan.received_by(3)] == [0, 1]


def test_golden_plan_where_replicas_overlap_in_part():
    """Rank 0 has elements 0 to 5, rank 1 elements 4 to 9: 4 and 5 lie on both, and rank 1 has less to send alone."""
    sources = {
        0: {"w": Shard((10,), Region((0,), (6,)), "float32")},
        1: {"w": Shard((10,), Region((4,), (6,)), "float32"), "v": Shard.whole((1,), "float32")},
    }
    plan = build_plan(sources, {2: {"w": Shard.whole((10,), "float32")}})
    assert moves(plan) == [
        ("w", 0, 2, (0,), (4,), 16),
        ("w", 0, 2, (4,), (2,), 8),  # both had 16 bytes to send: the first takes it
        ("w", 1, 2, (6,), (4,), 16),
    ]


def test_golden_shares_of_replicas_bring_the_least_loaded_to_one_level():
    """16384 rows of 4 bytes on two replicas, of which rank 0 must also send 32768 bytes that only it has.

    98304 bytes in all, 49152 for each: 16384 bytes (4096 rows) of the replica from rank 0, the rest from rank 1.
    """
    big, own = Shard.whole((16384,), "float32"), Shard.whole((8192,), "float32")
    plan = build_plan({0: {"own": own, "big": big}, 1: {"big": big}}, {2: {"big": big, "own": own}})
    assert plan.bytes_by_source == {0: 49152, 1: 49152}
    assert moves(plan)[1:] == [("big", 1, 2, (0,), (12288,), 49152), ("big", 0, 2, (12288,), (4096,), 16384)]


# properties


@st.composite
def boxes(draw, shape: tuple[int, ...]):
    starts = [draw(st.integers(0, size)) for size in shape]
    return Region(tuple(starts), tuple(draw(st.integers(0, size - a)) for a, size in zip(starts, shape, strict=True)))


@st.composite
def random_layouts(draw):
    """Tensors of 0 to 3 dimensions; sources of arbitrary overlapping boxes, one of which may be whole."""
    shapes = draw(st.lists(st.lists(st.integers(1, 6), max_size=3).map(tuple), min_size=1, max_size=3))

    def side(first: int) -> dict:
        return {
            first + rank: {f"t{i}": Shard(shape, draw(boxes(shape)), "float32") for i, shape in enumerate(shapes)}
            for rank in range(draw(st.integers(1, 4)))
        }

    return shapes, side(0), side(10)


@settings(max_examples=200, deadline=None)
@given(random_layouts())
def test_every_element_arrives_once_or_the_plan_names_what_is_missing(case):
    shapes, sources, targets = case
    held = {name: torch.zeros(shape, dtype=torch.bool) for name, shape in ((f"t{i}", s) for i, s in enumerate(shapes))}
    for layout in sources.values():
        for name, shard in layout.items():
            view_region(held[name], Shard.whole(shard.global_shape, "bool"), shard.region).fill_(True)
    missing = any(
        not view_region(held[name], Shard.whole(shard.global_shape, "bool"), shard.region).all()
        for layout in targets.values()
        for name, shard in layout.items()
    )
    if missing:
        with pytest.raises(WeightSyncError, match=r"no source holds t\d\["):
            build_plan(sources, targets)
        return
    plan = build_plan(sources, targets)
    counts = {
        (rank, name): torch.zeros(shard.region.shape, dtype=torch.int64)
        for rank, layout in targets.items()
        for name, shard in layout.items()
    }
    for move in plan.moves:
        assert move.region.intersect(sources[move.source][move.name].region) == move.region
        view_region(counts[move.destination, move.name], targets[move.destination][move.name], move.region).add_(1)
    assert all((count == 1).all() for count in counts.values())
    assert sum(plan.bytes_by_source.values()) == 4 * sum(count.numel() for count in counts.values())


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(2, 60), min_size=1, max_size=8), st.integers(2, 6))
def test_replicas_share_what_is_to_send(sizes, ranks):
    layout = {f"t{i}": Shard.whole((size, 512), "float32") for i, size in enumerate(sizes)}
    loads = build_plan(dict.fromkeys(range(ranks), layout), {9: layout}).bytes_by_source
    row = 512 * 4
    # A cell is cut at rows, and one under 4 KiB not at all.
    assert max(loads.values()) - min([*loads.values(), *[0] * (ranks - len(loads))]) <= max(4096, 2 * row)


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_the_layouts_of_training_and_generation(source, target):
    sources, targets = layouts(*source), layouts(*target, first=10)
    plan = build_plan(sources, targets)
    model = sum(math.prod(s.global_shape) * 4 for s in sources[0].values())
    wanted = sum(shard.region.numel * 4 for layout in targets.values() for shard in layout.values())
    assert sum(plan.bytes_by_source.values()) == wanted <= 1.1 * model
    assert build_plan(sources, targets) == plan


# tensors


def test_plain_tensors_are_whole():
    layout = layout_of({"a": torch.nn.Parameter(torch.zeros(3, 2)), "s": torch.tensor(1.0).bfloat16()})
    assert layout == {"a": Shard((3, 2), Region((0, 0), (3, 2)), "float32"), "s": Shard((), Region((), ()), "bfloat16")}


# rejects


def test_what_no_source_holds_is_named():
    half = {0: {"w": shards((4, 2), 2, 0)[0]}}
    with pytest.raises(WeightSyncError, match=r"no source holds w\[2:4, 0:2\], which destination 7 needs"):
        build_plan(half, {7: {"w": Shard.whole((4, 2), "float32")}})
    with pytest.raises(WeightSyncError, match="no tensor 'lora' among the 1 published"):
        build_plan(half, {7: {"lora": Shard.whole((4, 2), "float32")}})


def test_shapes_that_differ_are_named():
    a, b = Shard.whole((4, 2), "float32"), Shard.whole((4, 3), "float32")
    with pytest.raises(WeightSyncError, match=r"'w' is float32 \[4, 2\] at its sources and float32 \[4, 3\] on destin"):
        build_plan({0: {"w": a}}, {7: {"w": b}})
    with pytest.raises(WeightSyncError, match=r"'w' is float32 \[4, 2\] elsewhere and float32 \[4, 3\] on rank 1"):
        whole_layout({0: {"w": a}, 1: {"w": b}})
