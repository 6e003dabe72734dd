"""Prefix reuse: what is found, what is evicted, and when."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from allocators import paged_prefix
from allocators.base import PageCopy, Usage
from allocators.eviction import Eviction
from allocators.page_pool import PagePool
from allocators.paged_prefix import PagedPrefix
from allocators.prefix_index import PrefixIndex, TokenTrie, common_prefix_len

BASE = list(range(100, 120))


def serve(allocator: PagedPrefix, seq_id: int, token_ids: Sequence[int]) -> int:
    """Allocate, compute and free a sequence; returns the hits."""
    outcome = allocator.allocate(seq_id, token_ids, len(token_ids), 0)
    assert outcome is not None
    allocator.commit(seq_id, token_ids[outcome.num_cached_tokens :])
    allocator.free(seq_id)
    allocator.check_integrity()
    return outcome.num_cached_tokens


def test_nothing_is_found_before_it_is_computed() -> None:
    allocator = PagedPrefix(PagePool(20, 4))
    allocator.allocate(0, BASE, 40, 0)
    assert allocator.allocate(1, BASE, 40, 0).num_cached_tokens == 0
    allocator.commit(0, BASE[:7])
    assert allocator.allocate(2, BASE, 40, 0).num_cached_tokens == 4
    allocator.commit(0, BASE[7:8])
    assert allocator.allocate(3, BASE, 40, 0).num_cached_tokens == 8
    assert allocator.block_table(3)[:2] == allocator.block_table(0)[:2]


def test_hits_stop_at_the_last_prompt_token() -> None:
    allocator = PagedPrefix(PagePool(20, 4))
    serve(allocator, 0, BASE[:8])
    outcome = allocator.allocate(1, BASE[:8], 20, 0)
    source = outcome.copies[0].source
    assert outcome.num_cached_tokens == 7
    assert outcome.copies == (PageCopy(source, allocator.block_table(1)[1]),)
    assert source != allocator.block_table(1)[1]
    assert serve(allocator, 2, BASE[:5]) == 4
    assert serve(allocator, 3, BASE[:4]) == 3
    assert serve(allocator, 4, BASE[:1]) == 0


def test_without_partial_reuse_hits_are_whole_pages() -> None:
    allocator = PagedPrefix(PagePool(20, 4), partial_reuse=False)
    serve(allocator, 0, BASE[:8])
    assert serve(allocator, 1, BASE[:8]) == 4
    assert serve(allocator, 2, BASE[:9]) == 8


def test_partial_reuse_takes_the_page_with_most_in_common() -> None:
    allocator = PagedPrefix(PagePool(40, 4))
    serve(allocator, 0, [1, 2, 3, 4, 5, 0, 0, 0])
    serve(allocator, 1, [1, 2, 3, 4, 5, 6, 0, 0])
    serve(allocator, 2, [1, 2, 3, 4, 5, 6, 7, 0])
    assert serve(allocator, 3, [1, 2, 3, 4, 5, 6, 9, 9, 9]) == 6
    assert serve(allocator, 4, [1, 2, 3, 4, 8, 6, 7, 0, 0]) == 4
    assert serve(allocator, 5, [1, 2, 9, 9]) == 2


def test_a_last_page_partly_filled_is_left_for_others() -> None:
    allocator = PagedPrefix(PagePool(40, 4))
    serve(allocator, 0, BASE[:6])
    assert allocator.usage().cached == 2
    assert serve(allocator, 1, BASE[:6]) == 5
    assert allocator.usage().cached == 2, "the same tokens are not kept twice"
    assert serve(allocator, 2, BASE[:9]) == 6
    assert serve(allocator, 3, [*BASE[:4], -3, -3, -3]) == 4, "padding is no token"


def test_few_tokens_are_not_worth_a_copy() -> None:
    allocator = PagedPrefix(PagePool(40, 4), min_partial_tokens=3)
    serve(allocator, 0, BASE[:8])
    assert serve(allocator, 1, [*BASE[:6], 0, 0]) == 4
    assert serve(allocator, 2, [*BASE[:7], 0, 0]) == 7
    with pytest.raises(ValueError, match="less than one"):
        PagedPrefix(PagePool(4, 4), min_partial_tokens=0)


def test_partial_source_survives_the_call_or_is_given_up() -> None:
    allocator = PagedPrefix(PagePool(3, 4))
    serve(allocator, 0, BASE[:4])
    (source,) = allocator.cached_pages()
    outcome = allocator.allocate(1, [*BASE[:3], *range(6)], 9, 0)
    assert outcome.num_cached_tokens == 0 and not outcome.copies, "needs all three pages"
    allocator.free(1)
    serve(allocator, 2, BASE[:4])
    (source,) = allocator.cached_pages()
    outcome = allocator.allocate(3, [*BASE[:3], *range(3)], 6, 0)
    assert outcome.copies[0].source == source
    assert source not in allocator.block_table(3)


def test_least_recently_used_goes_first_and_last_pages_before_first() -> None:
    allocator = PagedPrefix(PagePool(6, 4), partial_reuse=False)
    serve(allocator, 0, [*range(8), 0])
    serve(allocator, 1, [*range(20, 28), 0])
    assert serve(allocator, 2, [*range(9)]) == 8, "the first one is used again"
    order = allocator.cached_pages()
    tails_first = [allocator._index.published[page][2][0] for page in order]
    assert tails_first == [24, 20, 4, 0]
    allocator.allocate(3, range(50, 62), 12, 0)
    assert allocator.usage() == Usage(mapped=3, cached=3, free=0)
    assert allocator.cached_pages() == order[1:]


def test_hits_count_against_what_is_available() -> None:
    """Two idle hits and two new pages leave one page of five, so a watermark of two refuses."""
    allocator = PagedPrefix(PagePool(5, 4))
    serve(allocator, 0, BASE[:9])
    before = allocator.usage(), allocator.cached_pages()
    assert allocator.pages_needed(BASE[:16], 0) == 4
    assert allocator.allocate(1, BASE[:16], 16, 0, keep_free=2) is None
    assert (allocator.usage(), allocator.cached_pages()) == before
    assert allocator.allocate(1, BASE[:16], 16, 0, keep_free=1) is not None
    assert allocator.pages_needed(BASE[:16], 0) == 2, "two are mapped already"


def test_twin_takes_the_place_of_an_evicted_page() -> None:
    allocator = PagedPrefix(PagePool(5, 4))
    allocator.allocate(0, BASE[:4], 4, 0)
    allocator.allocate(1, BASE[:9], 9, 0)
    allocator.commit(0, BASE[:4])
    allocator.commit(1, BASE[:9])
    allocator.free(0)
    assert allocator.usage() == Usage(mapped=3, cached=1, free=1)
    allocator.allocate(2, [1, 2, 3, 4, 5], 5, 0)
    allocator.free(2)
    assert allocator.allocate(3, BASE[:9], 9, 0).num_cached_tokens == 8
    assert allocator.block_table(3)[:2] == allocator.block_table(1)[:2]
    allocator.check_integrity()


def test_pages_out_of_reach_are_not_called_cached() -> None:
    """A released first page is evicted first; what follows it can't be found any more."""
    allocator = PagedPrefix(PagePool(4, 4))
    allocator.allocate(0, BASE[:13], 13, 0)
    allocator.commit(0, BASE[:13])
    allocator.release(0, 4)
    assert allocator.usage() == Usage(mapped=3, cached=1, free=0)
    allocator.allocate(1, [7], 1, 0)
    allocator.free(0)
    assert allocator.usage() == Usage(mapped=1, cached=0, free=3)
    allocator.check_integrity()


def test_overwriting_a_published_page_takes_it_back() -> None:
    allocator = PagedPrefix(PagePool(8, 4))
    allocator.allocate(0, BASE[:8], 12, 0)
    allocator.commit(0, BASE[:8])
    allocator.truncate(0, 6)
    assert allocator.append(0) is not None
    allocator.commit(0, [0])
    allocator.free(0)
    assert serve(allocator, 1, BASE[:9]) == 6, "tokens 6 and 7 were overwritten"


def test_tokens_after_a_fork_are_published_as_well() -> None:
    allocator = PagedPrefix(PagePool(20, 4))
    allocator.allocate(0, BASE[:6], 20, 0)
    allocator.commit(0, BASE[:6])
    allocator.fork(0, 1, 20, 0)
    for seq_id, token in ((0, 1), (1, 2)):
        allocator.append(seq_id, 3)
        allocator.commit(seq_id, [token] * 3)
    assert allocator.allocate(2, [*BASE[:6], 2, 2, 2], 9, 0).num_cached_tokens == 8
    assert allocator.allocate(3, [*BASE[:6], 1, 1, 2], 9, 0).num_cached_tokens == 8


@pytest.mark.parametrize("page_size", [1, 2, 4, 7, 16])
@pytest.mark.parametrize("partial_reuse", [True, False])
def test_hits_are_exact_when_everything_fits(page_size: int, partial_reuse: bool) -> None:
    """One request after the other: hits are the longest prefix in common with anything seen
    before, whole pages of it without partial reuse, at most the prompt less one."""
    rng = random.Random(page_size)
    allocator = PagedPrefix(PagePool(3000, page_size), partial_reuse=partial_reuse)
    seen: list[list[int]] = []
    for seq_id in range(120):
        known = rng.choice(seen) if seen and rng.random() < 0.9 else []
        prompt = known[: rng.randint(0, len(known))]
        prompt = prompt + [rng.randrange(2) for _ in range(rng.randint(1, 20))]
        ideal = max((common_prefix_len(prompt[:-1], s) for s in seen), default=0)
        if not partial_reuse:
            ideal = ideal // page_size * page_size
        assert serve(allocator, seq_id, prompt) == ideal
        seen.append(prompt)


def test_refused_prompt_is_hashed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    allocator = PagedPrefix(PagePool(8, 4))
    serve(allocator, 0, BASE[:17])
    allocator.allocate(9, range(4), 4, 0)
    hashed: list[Sequence[int]] = []
    digest = allocator._index.digest

    def counting(parent: bytes, token_ids: Sequence[int]) -> bytes:
        hashed.append(token_ids)
        return digest(parent, token_ids)

    monkeypatch.setattr(allocator._index, "digest", counting)
    for _ in range(5):
        assert allocator.allocate(1, BASE[:17], 40, 40) is None
    assert len(hashed) == 4
    changed = [0, *BASE[1:17]]
    assert allocator.allocate(1, changed, 17, 0).num_cached_tokens == 0, "not the same prompt"


def test_refused_prompts_are_forgotten_in_time() -> None:
    allocator = PagedPrefix(PagePool(2, 4))
    for seq_id in range(3 * paged_prefix.MAX_REMEMBERED_PROMPTS):
        allocator.allocate(seq_id, BASE, 40, 0)
    assert len(allocator._remembered) == paged_prefix.MAX_REMEMBERED_PROMPTS


def test_committing_more_than_there_is_room_for() -> None:
    allocator = PagedPrefix(PagePool(4, 4))
    allocator.allocate(0, BASE[:3], 8, 0)
    with pytest.raises(ValueError, match="room for 3 tokens"):
        allocator.commit(0, BASE[:4])


def test_hash_is_the_same_in_every_process() -> None:
    root = Path(paged_prefix.__file__).parents[1]
    script = "from allocators.prefix_index import PrefixIndex as P; "
    script += "print(P(3).digest(b'', [1, 2, 3]).hex())"
    runs = {
        subprocess.run(
            [sys.executable, "-c", script],
            cwd=root,
            env={"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for seed in ("1", "2")
    }
    assert runs == {PrefixIndex(3).digest(b"", [1, 2, 3]).hex()}


def test_trie_agrees_with_a_dict() -> None:
    rng = random.Random(5)
    trie = TokenTrie()
    held: dict[tuple[int, ...], int] = {}
    for page in range(3000):
        tokens = tuple(rng.randrange(3) for _ in range(5))
        if tokens in held:
            trie.remove(tokens)
            del held[tokens]
        else:
            trie.insert(tokens, page)
            held[tokens] = page
        assert sorted(trie.pages()) == sorted(held.values())
        wanted = [rng.randrange(3) for _ in range(rng.randint(0, 5))]
        lengths = {page: common_prefix_len(wanted, other) for other, page in held.items()}
        found, count = trie.longest(wanted)
        assert count == max(lengths.values(), default=0)
        assert lengths[found] == count if count else found == -1
    while held:
        tokens, _ = held.popitem()
        trie.remove(tokens)
    assert not trie.root


def heads(allocator: PagedPrefix) -> list[int]:
    """First token of each idle page, in the policy's order."""
    return [allocator._index.published[page][2][0] for page in allocator.cached_pages()]


def test_lfu_keeps_what_is_found_often() -> None:
    allocator = PagedPrefix(PagePool(6, 4), partial_reuse=False, eviction="lfu")
    for seq_id in range(3):
        serve(allocator, seq_id, [*range(8), 0])
    serve(allocator, 3, [*range(20, 28), 0])
    assert heads(allocator) == [24, 20, 4, 0]
    serve(allocator, 4, range(50, 62))
    assert heads(allocator)[-2:] == [4, 0], "found twice, if long ago"
    assert serve(allocator, 5, [*range(8), 0]) == 8


def test_lfu_forgets_hits_with_the_page_and_hands_them_to_a_twin() -> None:
    allocator = PagedPrefix(PagePool(4, 4), partial_reuse=False, eviction="lfu")
    serve(allocator, 0, BASE[:4])
    serve(allocator, 1, BASE[:5])
    allocator.allocate(2, BASE[:4], 4, 0)
    allocator.commit(2, BASE[:4])
    twin = allocator.block_table(2)[0]
    allocator.allocate(3, range(12), 12, 0)
    assert allocator.usage() == Usage(mapped=4, cached=0, free=0), "the first one is evicted"
    allocator.free(2)
    allocator.free(3)
    serve(allocator, 4, range(20, 24))
    assert allocator.cached_pages()[-1] == twin
    serve(allocator, 5, range(30, 46))
    serve(allocator, 6, BASE[:4])
    serve(allocator, 7, range(20, 24))
    assert heads(allocator)[-2:] == [BASE[0], 20], "evicted in between: no more than the other"


def test_fifo_takes_no_notice_of_use() -> None:
    allocator = PagedPrefix(PagePool(6, 4), partial_reuse=False, eviction="fifo")
    serve(allocator, 0, [*range(8), 0])
    serve(allocator, 1, [*range(20, 28), 0])
    for seq_id in range(2, 5):
        assert serve(allocator, seq_id, [*range(8), 0]) == 8
    serve(allocator, 5, range(50, 61))
    assert sorted(heads(allocator)) == [0, 20, 24, 50, 54], "published first, its last page first"
    serve(allocator, 6, range(60, 66))
    assert sorted(heads(allocator)) == [20, 24, 50, 54, 60]


@pytest.mark.parametrize("eviction", ["lru", "lfu", "fifo"])
def test_source_of_a_copy_is_never_one_of_the_new_pages(eviction: Eviction) -> None:
    """However little it is worth to the policy: here it was published first and never found."""
    allocator = PagedPrefix(PagePool(6, 4), eviction=eviction)
    serve(allocator, 0, BASE[:4])
    (source,) = allocator.cached_pages()
    serve(allocator, 1, range(12))
    serve(allocator, 2, range(13))
    outcome = allocator.allocate(3, [*BASE[:3], *range(50, 65)], 18, 0)
    assert outcome.copies == (PageCopy(source, allocator.block_table(3)[0]),)
    assert source not in allocator.block_table(3)
    assert allocator.cached_pages() == (source,)
    allocator.check_integrity()


def test_a_twin_given_back_counts_as_use_of_the_first_before_its_predecessor() -> None:
    allocator = PagedPrefix(PagePool(8, 4), partial_reuse=False)
    allocator.allocate(0, BASE[:5], 9, 0)
    allocator.commit(0, BASE[:5])
    allocator.allocate(1, BASE[:9], 9, 0)
    allocator.append(0, 4)
    allocator.commit(0, BASE[5:9])
    allocator.commit(1, BASE[4:9])
    serve(allocator, 2, range(4))
    allocator.free(0)
    assert heads(allocator) == [0, BASE[4]]
    allocator.free(1)
    assert heads(allocator) == [0, BASE[4], BASE[0]]


def test_pages_that_nothing_was_restored_to_are_not_found() -> None:
    allocator = PagedPrefix(PagePool(4, 4))
    allocator.allocate(0, BASE[:6], 16, 0)
    allocator.commit(0, BASE[:6])
    allocator.swap_out([0])
    allocator.allocate(9, range(50, 59), 16, 0)  # takes the page that was left of it
    allocator.free(9)
    allocator.swap_in([0])
    allocator.retract_swap_in([0])
    found = allocator.allocate(1, [*BASE[:6], 99], 16, 0)
    assert found.num_cached_tokens == 4
    allocator.check_integrity()


def test_a_retracted_allocation_leaves_nothing_to_find() -> None:
    allocator = PagedPrefix(PagePool(8, 4))
    serve(allocator, 0, BASE[:6])
    held = allocator.usage()
    assert allocator.allocate(1, [*BASE[:6], 99], 16, 0).num_cached_tokens == 6
    copied = allocator.block_table(1)[1]
    allocator.retract(1)
    assert allocator.usage() == held and copied not in allocator.cached_pages()
    allocator.check_integrity()
