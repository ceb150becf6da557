"""Of a program whose collectives are known, in text as XLA writes it."""

from jopd.planning.hlo import Collective, decode_loop

# A loop over tokens with one over layers inside; the collectives outside both, once a token, once a
# layer, inside a called computation, and in the condition; one is started and awaited.
TEXT = """\
HloModule jit_rollout, is_scheduled=true

%sum (a: f32[], b: f32[]) -> f32[] {
  ROOT %add = f32[] add(%a, %b)
}

%called (p: bf16[4,8]) -> bf16[4,8] {
  ROOT %all-reduce.9 = bf16[4,8]{1,0} all-reduce(%p), to_apply=%sum
}

%layer_body (s: (s32[], f32[4])) -> (s32[], f32[4]) {
  %all-gather.1 = f32[8,128]{1,0:T(8,128)} all-gather(%w), dimensions={1}
  %x = bf16[4,8] call(%y), to_apply=%called
  ROOT %t = (s32[], f32[4]) tuple(%i, %z)
}

%layer_condition (s: (s32[], f32[4])) -> pred[] {
  ROOT %lt = pred[] compare(%i, %n), direction=LT
}

%token_body (s: (s32[], f32[4])) -> (s32[], f32[4]) {
  %while.2 = (s32[], f32[4]) while(%s), condition=%layer_condition, body=%layer_body
  %start = (f32[2,16]{1,0}, f32[16,16]{1,0}) all-gather-start(%v), dimensions={0}
  %done = f32[16,16]{1,0} all-gather-done(%start)
  ROOT %t = (s32[], f32[4]) tuple(%i, %z)
}

%token_condition (s: (s32[], f32[4])) -> pred[] {
  ROOT %any = pred[] all-reduce(%mine), to_apply=%or
}

ENTRY %main (p: f32[4]) -> f32[4] {
  %all-gather.7 = f32[1024]{0} all-gather(%p), dimensions={0}
  %prefill = (s32[], f32[4]) while(%s), condition=%layer_condition, body=%layer_body
  %while.3 = (s32[], f32[4]) while(%s), condition=%token_condition, body=%token_body
  ROOT %r = f32[4] get-tuple-element(%while.3), index=1
}
"""


def test_what_every_token_waits_for_largest_first():
    assert decode_loop(TEXT) == [
        Collective("all-gather", 8 * 128 * 4, 1),
        Collective("all-gather", 16 * 16 * 4, 0),
        Collective("all-reduce", 4 * 8 * 2, 1),
        Collective("all-reduce", 1, 0),
    ]


def test_layers_that_are_no_loop():
    """A model of one layer: the loop over tokens has none inside."""
    unrolled = TEXT
    for loop in ("%while.2 =", "%prefill ="):
        line = next(line for line in TEXT.splitlines() if loop in line)
        unrolled = unrolled.replace(line, "  %layer = f32[4] add(%a, %b)")
    assert [it.bytes for it in decode_loop(unrolled)] == [16 * 16 * 4, 1]


def test_a_program_without_a_loop_has_none():
    assert decode_loop(TEXT.replace(" while(", " f(")) == []
