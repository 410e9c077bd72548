"""What is sent is read off a compiled program, and reckoned in rings."""

import pytest

from encoders.costs.communication import (
    DEVICES_PER_NODE,
    LINK_BANDWIDTHS,
    Collective,
    compute_step_seconds,
    parse_collectives,
    parse_group_size,
)

PROGRAM = """\
HloModule jit_train_step, is_scheduled=true

%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%a, %b)
}

%turn (param: (s32[], f32[6,5])) -> (s32[], f32[6,5]) {
  %reduced = (f32[6,5]{1,0}, /*index=1*/bf16[7]{0}) all-reduce(%x, %y), channel_id=1, replica_groups=[2,4]<=[8], \
to_apply=%add, metadata={op_name="jit(train_step)/up/dot_general"}
  ROOT %tuple = (s32[], f32[6,5]{1,0}) tuple(%i, %z)
}

%again (param: (s32[], f32[6,5])) -> pred[] {
  ROOT %less = pred[] compare(%i, %n), direction=LT
}

ENTRY %main (state: f32[6,5]) -> f32[12,5] {
  %loop = (s32[], f32[6,5]{1,0}) while(%start), condition=%again, body=%turn, \
backend_config={"known_trip_count":{"n":"3"}}
  ROOT %whole = f32[12,5]{1,0} all-gather(%part), replica_groups={{0,1},{2,3}}, dimensions={0}
}
"""


def test_a_collective_in_a_loop_counts_as_often_as_the_loop_turns():
    assert list(parse_collectives(PROGRAM)) == [
        Collective("all-reduce", (("f32", (6, 5)), ("bf16", (7,))), 4, 3, "jit(train_step)/up/dot_general"),
        Collective("all-gather", (("f32", (12, 5)),), 2, 1, ""),
    ]


def test_bytes_sent_in_a_ring():
    reduced, whole = parse_collectives(PROGRAM)
    assert reduced.array_bytes == 6 * 5 * 4 + 7 * 2 and reduced.sent_bytes == 3 * 134 * 2 * 3 / 4
    assert whole.sent_bytes == 12 * 5 * 4 / 2
    part = Collective("reduce-scatter", (("f32", (6, 5)),), 4, 1, "")  # 120 bytes remain of 480
    assert part.sent_bytes == 480 * 3 / 4


@pytest.mark.parametrize(
    "written, count",
    [
        ("replica_groups={{0,2,4},{1,3,5}}", 3),
        ("replica_groups=[2,4]<=[2,2,2]T(1,0,2)", 4),
        ("replica_groups=mesh['a'=2,'b'=1,'c'=3] {'a','c'}", 6),
        ("source_target_pairs={{0,1},{1,0}}", 2),
    ],
)
def test_the_ways_in_which_groups_are_written(written, count):
    assert parse_group_size(written) == count


def test_eights_send_nothing_while_there_is_one_and_twice_its_eighth_when_there_are_many():
    gradients, (_, bandwidth) = 800.0, LINK_BANDWIDTHS["NVLink"]
    sent = 2 * 7 / 8 * gradients  # by a device of eight
    assert compute_step_seconds(0.0, sent, DEVICES_PER_NODE, "NVLink") == 0
    assert compute_step_seconds(0.0, sent, 4 * DEVICES_PER_NODE, "NVLink") * bandwidth == pytest.approx(
        2 * 3 / 4 * gradients / DEVICES_PER_NODE
    )
