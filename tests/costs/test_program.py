"""What a step sends and takes is read off a compiled program."""

import pytest

from encoders.costs.program import (
    Collective,
    count_unknown_cycles,
    parse_collectives,
    parse_group_size,
    sum_cycles_by_part,
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


# As the compiler for TPUs writes it: no number of turns, estimates, and collectives in pieces of one channel.
TPU_PROGRAM = """\
HloModule jit_train_step, is_scheduled=true

%add (a: bf16[], b: bf16[]) -> bf16[] {
  ROOT %sum = bf16[] add(%a, %b)
}

%all-reduce-scatter.1 (a: bf16[8,4]) -> bf16[2,4] {
  ROOT %sum = bf16[8,4]{1,0} all-reduce(%a), channel_id=3, replica_groups=[1,4]<=[4], to_apply=%add
}

%product (a: bf16[8,4]) -> bf16[8,4] {
  ROOT %inner = bf16[8,4]{1,0} convolution(%a, %b), metadata={op_name="jit(train_step)/jvp(M)/encoder/while/body/x"}, \
backend_config={"estimated_cycles":"999"}
}

%again (param: (s32[], bf16[8,4])) -> pred[] {
  %bound = s32[]{:T(128)} constant(12)
  ROOT %less = pred[]{:T(512)} compare(%i, %bound), direction=LT, backend_config={"estimated_cycles":"7"}
}

%turn (param: (s32[], bf16[8,4])) -> (s32[], bf16[8,4]) {
  %up = bf16[8,4]{1,0} fusion(%x), calls=%product, \
metadata={op_name="jit(train_step)/jvp(M)/encoder/while/body/layers/transform/up/dot_general"}, \
backend_config={"estimated_cycles":"100"}
  %kept = bf16[12,8,4]{1,0} fusion(%x), \
metadata={op_name="jit(train_step)/jvp(M)/encoder/while/body/dynamic_update_slice"}, \
backend_config={"estimated_cycles":"10"}
  %begun = bf16[8,8]{1,0} all-gather(%x), channel_id=9, replica_groups=[2,2]<=[4]
  %ended = bf16[8,8]{1,0} all-gather(%begun), channel_id=9, replica_groups=[2,2]<=[4]
}

ENTRY %main (state: bf16[8,4]) -> bf16[8,4] {
  %loop = (s32[], bf16[8,4]{1,0}) while(%start), condition=%again, body=%turn
  %unknown = f32[8,4]{1,0} fusion(%g), backend_config={"estimated_cycles":"9223372036854775807"}
  %send = (bf16[4,8]{1,0}, u32[], token[]) send(%x, %after), channel_id=2, is_host_transfer=true, \
frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime"}
  %shares = bf16[2,4]{1,0} fusion(%g), kind=kCustom, calls=%all-reduce-scatter.1
  %moments = f32[8,4]{1,0} fusion(%g), metadata={op_name="jit(train_step)/mul"}, backend_config={"estimated_cycles":"5"}
  ROOT %copy = bf16[8,4]{1,0} copy(%y), backend_config={"estimated_cycles":"3"}
}
"""


def test_cycles_are_those_of_all_turns_and_a_fusion_counts_once_for_its_part():
    assert sum_cycles_by_part(TPU_PROGRAM) == {
        "feed-forward": 1200, "stacked activations": 120, "optimizer": 5, "copies": 3
    }  # fmt: skip
    assert not sum_cycles_by_part(PROGRAM)
    assert count_unknown_cycles(TPU_PROGRAM) == 1


def test_a_collective_in_pieces_counts_once_and_one_that_scatters_sends_half_of_an_all_reduce():
    gathered, sent, scattered = parse_collectives(TPU_PROGRAM)
    assert sent == Collective("network send", (("bf16", (4, 8)),), 2, 1, "") and sent.sent_bytes == 64
    assert gathered == Collective("all-gather", (("bf16", (8, 8)),), 2, 12, "")
    assert scattered == Collective("all-reduce-scatter", (("bf16", (8, 4)),), 4, 1, "")
    assert scattered.sent_bytes == 8 * 4 * 2 * 3 / 4
