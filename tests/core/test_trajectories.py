import pickle
from array import array
from dataclasses import replace

import pytest

from llamarl.core.errors import DataError
from llamarl.core.records import (
    Completion,
    Origin,
    Support,
    TrainSample,
    Trajectory,
    join_turns,
    pack_ids,
    pack_numbers,
    text_completion,
)

QUESTION = Trajectory.sampled((1, 2), (5, 6, 7), (-0.5, -1.0, -0.25), (3, 3, 4))
# The environment says 8 9, and the policy answers 4.
ANSWER = Trajectory.sampled((1, 2, 5, 6, 7, 8, 9), (4,), (-2.0,), (4,), "length")


# golden


def test_one_turn() -> None:
    assert QUESTION.turns == ((0, 3),) and QUESTION.response_length == 3
    assert QUESTION.response_ids.tolist() == [5, 6, 7] and QUESTION.prompt_ids.tolist() == [1, 2]
    assert QUESTION.versions == ((3, 2), (4, 1)) and QUESTION.oldest_version == 3
    assert QUESTION.origin is Origin.POLICY


def test_a_dialogue_is_one_trajectory_whose_given_tokens_are_no_response() -> None:
    whole = join_turns([QUESTION, ANSWER])
    assert whole.prompt_ids.tolist() == [1, 2] and whole.token_ids.tolist() == [5, 6, 7, 8, 9, 4]
    assert whole.turns == ((0, 3), (5, 6)) and whole.response_ids.tolist() == [5, 6, 7, 4]
    assert whole.logprobs.tolist() == [-0.5, -1.0, -0.25, -2.0] and whole.versions == ((3, 2), (4, 2))
    assert whole.response_length == 4 and whole.finish_reason == "length"
    assert join_turns([QUESTION]) == QUESTION


def test_the_supports_of_turns_are_joined_and_a_turn_without_one_was_drawn_from_all() -> None:
    cut = replace(QUESTION, support=Support(array("i", [5, 9, 6, 7, 8]), array("i", [2, 1, 2])))
    whole = join_turns([cut, ANSWER])
    assert whole.support == Support(array("i", [5, 9, 6, 7, 8]), array("i", [2, 1, 2, 0]))
    assert join_turns([QUESTION, ANSWER]).support is None and cut.as_given().support is None


def test_a_given_response_has_no_log_probs_and_no_versions() -> None:
    given = Trajectory.given((1, 2), (5, 6, 7))
    assert given == QUESTION.as_given()
    assert (given.origin, len(given.logprobs), given.versions) == (Origin.GIVEN, 0, ())
    assert text_completion("yes", "length").finish_reason == "length" and not text_completion("yes").token_ids


def test_a_loss_mask_leaves_tokens_out() -> None:
    assert TrainSample(QUESTION, 1.0).num_trained == 3
    assert TrainSample(QUESTION, 1.0, loss_mask=array("b", [1, 0, 1])).num_trained == 2


# invariance


def test_records_survive_a_process_border_and_compare_by_value() -> None:
    completion = Completion(join_turns([QUESTION, ANSWER]), "text")
    again = pickle.loads(pickle.dumps(completion))
    assert again == completion and again is not completion
    assert again != replace(completion, trajectory=replace(completion.trajectory, finish_reason="stop"))


def test_completions_of_one_prompt_share_it() -> None:
    prompt = pack_ids(range(1000))
    four = [Trajectory.sampled(prompt, (i,), (-1.0,), (0,)) for i in range(4)]
    assert all(trajectory.prompt_ids is prompt for trajectory in four)
    assert len(pickle.dumps(four)) < 4 * 1000 + 1000  # once, not four times


def test_numbers_that_a_model_computed_are_kept_exactly() -> None:
    import numpy as np

    computed = np.log(np.random.default_rng(0).random(1000, dtype=np.float32))
    assert pack_numbers(computed.tolist()).tolist() == computed.tolist()


# rejects


def test_numbers_must_fit_the_tokens() -> None:
    with pytest.raises(ValueError, match="2 response tokens of origin policy, 1 logprobs and 2 versions"):
        Trajectory.sampled((1,), (2, 3), (-1.0,), (0, 0))
    with pytest.raises(ValueError, match="3 response tokens of origin given, 3 logprobs and 3 versions"):
        replace(QUESTION, origin=Origin.GIVEN)
    with pytest.raises(ValueError, match=r"TrainSample.advantages: 2 values for 3 response tokens"):
        TrainSample(QUESTION, array("f", [1.0, 2.0]))
    with pytest.raises(ValueError, match=r"TrainSample.loss_mask: 1 values for 3 response tokens"):
        TrainSample(QUESTION, 1.0, loss_mask=array("b", [1]))


@pytest.mark.parametrize("turns", [((1, 3),), ((0, 2),), ((0, 2), (1, 3)), ((0, 4),)])
def test_turns_ascend_from_the_first_token_to_the_last(turns) -> None:
    with pytest.raises(ValueError, match=r"Trajectory.turns=.* must ascend from 0 to the 3 token_ids"):
        replace(QUESTION, turns=turns)


def test_turns_join_only_where_each_prompt_holds_all_before_it() -> None:
    with pytest.raises(DataError, match="turn 1: its prompt of 7 tokens does not begin with the 5 tokens before it"):
        join_turns([QUESTION, replace(ANSWER, prompt_ids=pack_ids((1, 2, 5, 6, 0, 8, 9)))])


def test_a_support_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="counts add up to 3, but there are 2 ids"):
        Support(array("i", [5, 6]), array("i", [3]))
    with pytest.raises(ValueError, match="of 1 tokens, but 3 were sampled"):
        replace(QUESTION, support=Support(array("i", [5]), array("i", [1])))
