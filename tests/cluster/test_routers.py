"""What routers do, against the plainest computation of the same."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.cluster.load_order import LoadOrder
from harness.cluster.router import Replicas, RoutedRequest
from harness.cluster.routers.least_loaded import LeastLoaded
from harness.cluster.routers.prefix_aware import PrefixAware
from harness.cluster.routers.round_robin import RoundRobin
from harness.cluster.sent_prefixes import SentPrefixes

PAGE = 2


def replicas(count: int, pool_tokens: int = 1000) -> Replicas:
    return Replicas(count, PAGE, pool_tokens, lambda _: 0, lambda _: 0)


def asked(number: int, prompt_ids: Sequence[int]) -> RoutedRequest:
    return RoutedRequest(number, prompt_ids, 4, 1, -1)


def test_round_robin_goes_around() -> None:
    router = RoundRobin(replicas(3))
    assert [router.route(asked(i, [1]), 0.0) for i in range(7)] == [0, 1, 2, 0, 1, 2, 0]


@settings(max_examples=60, deadline=None)
@given(count=st.integers(1, 6), seed=st.integers(0, 10**6))
def test_the_order_of_loads_is_that_of_sorting_them(count: int, seed: int) -> None:
    rng = random.Random(seed)
    order = LoadOrder(count)
    loads, changed = [0] * count, list(range(-count, 0))
    for turn in range(60):
        replica = rng.randrange(count)
        if rng.random() < 0.5 and loads[replica]:
            order.ended(replica)
            loads[replica] -= 1
        else:
            order.sent(replica)
            loads[replica] += 1
        changed[replica] = turn
        expected = sorted(range(count), key=lambda each: (loads[each], changed[each]))
        assert list(order) == sorted(range(count), key=order.rank) == expected
        assert (order.first, order.least) == (expected[0], min(loads))
        assert order.load(replica) == loads[replica]


def test_least_loaded_takes_whoever_has_the_fewest_and_nobody_twice_while_others_idle() -> None:
    router = LeastLoaded(replicas(3))
    assert [router.route(asked(i, [1]), 0.0) for i in range(4)] == [0, 1, 2, 0]
    router.ended(asked(1, [1]), 1)
    assert router.route(asked(4, [1]), 0.0) == 1
    for replica in (0, 0, 1, 2):
        router.ended(asked(0, [1]), replica)
    assert [router.route(asked(i, [1]), 0.0) for i in range(3)] == [0, 1, 2]


class PlainIndex:
    """Prompts sent to each replica, page by page, in lists."""

    def __init__(self, count: int, pages_each: int) -> None:
        self.pages: list[list[tuple[int, ...]]] = [[] for _ in range(count)]
        self.pages_each = pages_each

    def note(self, replica: int, prompt: Sequence[int]) -> None:
        own = self.pages[replica]
        prefixes = [tuple(prompt[:end]) for end in range(PAGE, len(prompt) + 1, PAGE)]
        for prefix in reversed(prefixes):
            if prefix in own:
                own.remove(prefix)
            own.append(prefix)
        del own[: max(0, len(own) - self.pages_each)]

    def matched(self, replica: int, prompt: Sequence[int]) -> int:
        """Tokens of the longest prefix that it was sent."""
        lengths = [len(page) for page in self.pages[replica] if tuple(prompt[: len(page)]) == page]
        return max(lengths, default=0)


def random_prompt(rng: random.Random) -> list[int]:
    return [rng.randrange(2) for _ in range(rng.randint(1, 11))]


@settings(max_examples=60, deadline=None)
@given(count=st.integers(1, 4), pages_each=st.integers(1, 12), seed=st.integers(0, 10**6))
def test_holders_are_those_that_a_plain_list_finds(count: int, pages_each: int, seed: int) -> None:
    rng = random.Random(seed)
    index, plain = SentPrefixes(count, PAGE, pages_each), PlainIndex(count, pages_each)
    for _ in range(60):
        prompt = random_prompt(rng)
        digests = index.digests(prompt)
        assert len(digests) == len(prompt) // PAGE
        lengths = [plain.matched(replica, prompt) for replica in range(count)]
        expected = [
            (length, {replica for replica in range(count) if lengths[replica] >= length})
            for length in sorted({*lengths} - {0}, reverse=True)
        ]
        found = [(match.num_tokens, set(match.replicas)) for match in index.holders(digests)]
        assert found == expected
        replica = rng.randrange(count)
        index.note(replica, digests)
        plain.note(replica, prompt)
        assert index.num_pages == sum(map(len, plain.pages)) <= count * pages_each


@settings(max_examples=60, deadline=None)
@given(
    count=st.sampled_from([1, 3, 50]),
    threshold=st.sampled_from([0.0, 0.4, 1.0]),
    guard=st.integers(0, 4),
    factor=st.sampled_from([1.0, 2.0]),
    seed=st.integers(0, 10**6),
)
def test_prefix_aware_takes_the_longest_match_that_is_not_loaded(
    count: int, threshold: float, guard: int, factor: float, seed: int
) -> None:
    rng = random.Random(seed)
    router = PrefixAware(replicas(count), threshold, guard, factor)
    plain, order = PlainIndex(count, 1000 // PAGE), LoadOrder(count)
    under_way: list[int] = []
    for number in range(150):
        prompt = random_prompt(rng)
        least = order.load(order.first)
        fit = [
            replica
            for replica in range(count)
            if (length := plain.matched(replica, prompt)) > 0
            and length >= threshold * len(prompt)
            and (order.load(replica) - least <= guard or order.load(replica) <= factor * least)
        ]
        best = max((plain.matched(replica, prompt) for replica in fit), default=0)
        longest = [replica for replica in fit if plain.matched(replica, prompt) == best]
        expected = min(longest, key=order.rank) if longest else order.first
        replica = router.route(asked(number, prompt), 0.0)
        assert replica == expected
        plain.note(replica, prompt)
        order.sent(replica)
        under_way.append(replica)
        while under_way and rng.random() < 0.45:
            ended = under_way.pop(rng.randrange(len(under_way)))
            router.ended(asked(0, prompt), ended)
            order.ended(ended)


def test_what_is_remembered_is_bounded_by_tokens() -> None:
    router = PrefixAware(replicas(2), index_tokens=8)
    for number in range(50):
        router.route(asked(number, [number] * 6), 0.0)
    assert router._index.num_pages == 2 * 8 // PAGE


@pytest.mark.parametrize("router", [LeastLoaded, PrefixAware])
def test_a_thousand_replicas_share_requests_that_have_nothing_in_common(router: type) -> None:
    chosen = router(replicas(1000))
    sent = [chosen.route(asked(i, [i] * 4), 0.0) for i in range(3000)]
    assert sorted(sent) == sorted(3 * list(range(1000)))
