from allocators.base import Allocation, KVCacheAllocator, SequenceState, Usage


class Mine(KVCacheAllocator):
    """Pages on demand, and a page in hand: each sequence takes its next one ahead of need."""

    name = "mine"

    def __init__(self, pool, pages_ahead: int = 1):
        super().__init__(pool)
        self.pages_ahead = pages_ahead  # allocator.pages_ahead=0,1,2 sweeps it

    def allocate(self, seq_id, token_ids, max_len, expected_len, keep_free=0):
        pages = self.pool.take(self.pages_for(len(token_ids)), keep_free)
        if pages is None:
            return None  # no room, and nothing changed
        self.sequences[seq_id] = SequenceState(pages, len(token_ids), max_len, expected_len)
        return Allocation()

    def append(self, seq_id, num_tokens=1):
        sequence = self.sequences[seq_id]
        new_len = sequence.length + num_tokens
        missing = self.pages_for(new_len) - len(sequence.page_ids)
        if missing > 0:
            pages = self.pool.take(missing + self.pages_ahead) or self.pool.take(missing)
            if pages is None:
                return None
            sequence.page_ids += pages
        sequence.length = new_len
        return Allocation()

    def free(self, seq_id):
        self.pool.put_back(self.sequences.pop(seq_id).page_ids)

    def block_table(self, seq_id):
        return self.sequences[seq_id].page_ids

    def usage(self):
        return Usage(self.pool.num_pages - self.pool.num_free, 0, self.pool.num_free)
