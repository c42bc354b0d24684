"""What goes into the store comes out, bit for bit."""

import dataclasses
import math
import struct
import zlib
from types import MappingProxyType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reward.types import Score
from rlsf.errors import RunDirError
from rlsf.experience import Group
from rlsf.replay.codec import check_group, decode, encode
from tests.replay_groups import make_group

FLOATS = st.floats(allow_nan=False, allow_infinity=False)
ANY_TEXT = st.text(st.characters(categories=["L", "M", "N", "P", "S", "Z", "C"]))  # C: controls, NUL, lone surrogates
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | FLOATS | ANY_TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(ANY_TEXT, inner, max_size=3),
    max_leaves=8,
)


def round_trip(group: Group) -> Group:
    return decode(encode(group), group_id=group.id, task=group.task, iteration=group.iteration, priority=group.priority)


def bits(values: tuple[float, ...]) -> list[bytes]:
    return [struct.pack("<d", value) for value in values]


@settings(deadline=None, max_examples=150)
@given(logprobs=st.lists(FLOATS, max_size=20).map(tuple), text=ANY_TEXT, reward=st.none() | FLOATS, evidence=JSON)
def test_a_group_comes_back_bit_for_bit(logprobs, text, reward, evidence):
    group = make_group("g", logprobs=logprobs, text=text, rewards=(reward, 0.5), evidence={"of any kind": evidence})
    restored = round_trip(group)
    assert restored == group
    first = restored.experiences[0]
    assert bits(first.rollout.logprobs) == bits(logprobs)
    assert first.reference_logprobs is not None and bits(first.reference_logprobs) == bits(logprobs)


def test_the_smallest_floats_and_the_sign_of_zero_survive():
    logprobs = (-0.0, 0.0, -5e-324, -2.2250738585072014e-308, -1.7976931348623157e308, -0.1, math.nextafter(-0.1, 0))
    first = round_trip(make_group("g", logprobs=logprobs)).experiences[0]
    assert bits(first.rollout.logprobs) == bits(logprobs)


def test_chat_prompts_and_rollouts_with_other_prompt_tokens_survive():
    group = make_group("g")
    group = dataclasses.replace(
        group,
        prompt=dataclasses.replace(
            group.prompt, content=({"role": "system", "content": "Be brief."}, {"role": "user", "content": "1 + 1?"})
        ),
        experiences=(
            group.experiences[0],
            dataclasses.replace(
                group.experiences[1],
                rollout=dataclasses.replace(group.experiences[1].rollout, prompt_ids=(9, 9)),
                reference_logprobs=None,
            ),
        ),
    )
    assert round_trip(group) == group


def test_read_only_mappings_are_stored():
    group = make_group("g", evidence=MappingProxyType({"votes": MappingProxyType({"2": 5})}))  # type: ignore[arg-type]
    assert round_trip(group).experiences[0].score.evidence == {"votes": {"2": 5}}


@pytest.mark.parametrize("value", [math.nan, math.inf, object(), {1, 2}, b"bytes"])
def test_what_is_no_json_is_refused_with_the_rollout(value):
    with pytest.raises(ValueError, match=r"group 'g': rollout 'g:0' cannot be stored as JSON"):
        encode(make_group("g", evidence={"bad": value}))


def test_a_nan_log_probability_is_refused():
    with pytest.raises(ValueError, match="rollout 'g:0' cannot be stored as JSON"):
        encode(make_group("g", logprobs=(-1.0, math.nan)))


def with_second(group: Group, **changes: object) -> Group:
    first, second = group.experiences
    return dataclasses.replace(group, experiences=(first, dataclasses.replace(second, **changes)))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("group", "message"),
    [
        (dataclasses.replace(make_group("g"), experiences=()), "group 'g' has no experiences"),
        (make_group("g", priority=-1.0), "group 'g': priority -1.0"),
        (make_group("g", priority=math.nan), "group 'g': priority nan"),
        (make_group("g", priority=math.inf), "group 'g': priority inf"),
        (with_second(make_group("g"), task="other"), "differ in task"),
        (with_second(make_group("g"), iteration=9), "differ in iteration"),
        (with_second(make_group("g"), priority=0.5), "differ in priority"),
        (with_second(make_group("g"), reference_logprobs=(-1.0,)), "2 completion tokens but 1 reference_logprobs"),
        (make_group("g\ud800"), "not valid Unicode"),
    ],
)
def test_a_broken_group_is_refused(group, message):
    with pytest.raises(ValueError, match=message):
        check_group(group)


@pytest.mark.parametrize("labels", [{"reference": "2"}, {"grading": {"entry": 1}}])
def test_labels_never_reach_the_store(labels):
    group = make_group("g")
    group = dataclasses.replace(group, prompt=dataclasses.replace(group.prompt, **labels))
    with pytest.raises(ValueError, match="carries labels"):
        check_group(group)


def test_a_payload_from_before_completions_could_be_constrained_is_read():
    group = make_group("g")
    old = zlib.decompress(encode(group)).replace(b',"json_schema":null', b"")
    assert b"json_schema" not in old
    assert decode(zlib.compress(old), group_id="g", task="sums", iteration=1, priority=1.0) == group


def test_a_damaged_payload_is_named():
    payload = bytearray(encode(make_group("g")))
    payload[len(payload) // 2] ^= 1
    with pytest.raises(RunDirError, match="payload of group 'g' is damaged"):
        decode(bytes(payload), group_id="g", task="sums", iteration=1, priority=1.0)


def test_scores_without_an_opinion_survive():
    group = make_group("g", rewards=(None, None))
    assert [experience.score for experience in round_trip(group).experiences] == [
        Score(None, {"majority": 1.0}, {}),
        Score(None, {"majority": 1.0}, {}),
    ]
