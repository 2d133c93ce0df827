from hypothesis import given
from hypothesis import strategies as st
from tiny_policies import rows_of, samples_of

from llamarl.training.balance import deal_out

# golden


def test_the_largest_group_goes_first_each_to_the_share_with_fewest_tokens():
    # packed tokens: 3 + 12 = 15, 6 + 7 = 13, 1 + 9 = 10, 9 + 6 = 15: 0 and 3 part, then 1 joins 0 and 2 joins 3
    samples = samples_of([(3, [4, 1, 7]), (6, [2, 5]), (1, [3, 3, 3]), (9, [6])])
    groups = [sample.group for sample in samples]
    assert deal_out(rows_of(samples), groups, 2) == [[0, 1, 2, 3, 4], [5, 6, 7, 8]]
    assert deal_out(rows_of(samples), groups, 1) == [list(range(9))]


def test_a_group_is_parted_where_there_are_fewer_than_shares_unless_it_must_not_be():
    samples = samples_of([(3, [4, 4])])
    assert deal_out(rows_of(samples), [0, 0], 2) == [[0], [1]]
    assert deal_out(rows_of(samples), [0, 0], 2, are_together=True) == [[0, 1], []]


# invariance


@given(
    st.lists(st.tuples(st.integers(1, 9), st.lists(st.integers(1, 9), min_size=1, max_size=4)), min_size=1, max_size=9),
    st.integers(1, 5),
)
def test_every_row_is_in_one_share_and_groups_stay_together(shape, num_shares):
    samples = samples_of(shape)
    groups = [sample.group for sample in samples]
    shares = deal_out(rows_of(samples), groups, num_shares)
    assert sorted(index for share in shares for index in share) == list(range(len(samples)))
    assert len(shares) == num_shares
    if len(shape) >= num_shares:
        assert all(shares) and sum(len({groups[i] for i in share}) for share in shares) == len(shape)
