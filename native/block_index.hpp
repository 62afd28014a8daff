// Which worker holds which KV blocks. What it does: src/dynamo/router/block_index.py, the reference. How:
//
// A block is a node in a pool; a hash table with open addressing finds it, and a ring through all nodes, from the one
// used longest ago to the one used last, says who makes room. Who holds it on a tier is a row of bits, one per slot.
// What a slot holds is a list of nodes that is only added to: nodes that have left are found out by their bits when
// the list is read, or when it has become twice as long as need be.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <vector>

#include "memory.hpp"
#include "xxh3.hpp"

namespace dynamo {

constexpr uint32_t kTiers = 3;  // device, host, disk

// Hashes in memory, aligned or not.
class Hashes {
public:
    Hashes(const void* data, size_t size) : Hashes(static_cast<const uint8_t*>(data), size, kBytes) {}
    size_t size() const { return size_; }
    uint64_t operator[](size_t i) const { return load64(first_ + step_ * static_cast<ptrdiff_t>(i)); }
    Hashes reversed() const {
        if (!size_) return *this;
        return Hashes(first_ + step_ * static_cast<ptrdiff_t>(size_ - 1), size_, -step_);
    }

private:
    static constexpr ptrdiff_t kBytes = sizeof(uint64_t);
    Hashes(const uint8_t* first, size_t size, ptrdiff_t step) : first_(first), size_(size), step_(step) {}

    const uint8_t* first_;
    size_t size_;
    ptrdiff_t step_;
};

struct SlotMatch {
    uint32_t slot, device, host, disk;
};

// Methods throw std::bad_alloc or std::length_error when memory is short, and then have changed nothing.
class BlockIndex {
public:
    explicit BlockIndex(size_t max_blocks) : max_blocks_(max_blocks), nodes_(1), table_(kTableMin) {
        nodes_[0] = Node();
    }

    size_t size() const { return size_; }
    size_t pruned() const { return pruned_; }

    void store(uint32_t slot, uint32_t tier, Hashes hashes) {
        Place& place = reserve(slot, tier, hashes.size());
        uint64_t bit = bit_of(slot);
        Search search(*this, hashes.reversed());  // backwards: what continues a prefix must go before it
        for (uint32_t next = 0; !search.done(); search.advance()) {
            uint32_t node = search.find(next);
            if (node) {
                next = nodes_[node].newer;
                use(node);
            } else {
                next = 0;
                node = add(search.hash());
            }
            uint64_t& word = row(tier, node)[slot / 64];
            if (word & bit) continue;
            word |= bit;
            ++place.count;
            place.log.push_back(node);
        }
        prune();
        if (place.log.size() > 2 * place.count + kLogSlack) compact(place, tier, slot);
    }

    void remove(uint32_t slot, uint32_t tier, Hashes hashes) {
        if (!place_of(slot, tier).count) return;
        Search search(*this, hashes);
        Leaving leaving(*this);
        for (uint32_t next = 0; !search.done(); search.advance()) {
            uint32_t node = search.find(next);  // may have left by now, if a hash comes twice: then nobody holds it
            next = nodes_[node].older;
            if (node) take(slot, tier, node, leaving);
        }
    }

    size_t clear(uint32_t slot, size_t most) {
        Leaving leaving(*this);
        size_t seen = 0;
        for (uint32_t tier = 0; tier < kTiers; ++tier) {
            if (!place_of(slot, tier).count) continue;
            Place& place = places_[kTiers * slot + tier];
            for (; place.count && seen < most; ++seen) {
                uint32_t node = place.log.back();
                place.log.pop_back();
                take(slot, tier, node, leaving);
            }
            if (!place.count) std::vector<uint32_t>().swap(place.log);
        }
        return seen;
    }

    std::vector<SlotMatch> match(Hashes hashes) {
        std::vector<SlotMatch> matches;
        std::vector<uint32_t> found;
        Matching matching(*this, matches);
        Search search(*this, hashes);
        for (uint32_t next = 0; !search.done(); search.advance()) {
            uint32_t node = search.find(next);
            if (!node || !matching.next(node)) break;
            found.push_back(node);
            next = nodes_[node].older;
        }
        matching.end();
        use_all(found);
        return matches;
    }

    std::vector<uint64_t> held(uint32_t slot, uint32_t tier) {
        std::vector<uint64_t> hashes;
        if (place_of(slot, tier).count) {
            Place& place = places_[kTiers * slot + tier];
            compact(place, tier, slot);
            hashes.reserve(place.count);
            for (uint32_t node : place.log) hashes.push_back(nodes_[node].hash);
        }
        return hashes;
    }

private:
    static constexpr size_t kTableMin = 64, kLogSlack = 1024;
    static constexpr size_t kAhead = 16;             // so much memory can be on its way at one time
    static constexpr size_t kNodesMax = INT32_MAX;  // the table has twice as many entries

    // Node 0 is none; it closes the ring, and is what an empty place in the table stands for.
    struct Node {
        uint64_t hash = 0;
        uint32_t older = 0, newer = 0;  // the ring; of a free node, `newer` is the next free one
    };

    struct Place {
        size_t count = 0;
        std::vector<uint32_t> log;  // all that is held, some of it twice, and some that no longer is
    };

    // Finds hashes one after the other. Neighbours in a prompt are mostly neighbours in the ring, and in memory: a look
    // there comes first. Where it is in vain the table is asked, and so it will be for the next ones: their entries are
    // brought nearer meanwhile, and half as far ahead the nodes that these name.
    class Search {
    public:
        Search(const BlockIndex& index, Hashes hashes) : index_(index), hashes_(hashes) {}

        bool done() const { return at_ == hashes_.size(); }
        void advance() { ++at_; }
        uint64_t hash() const { return hashes_[at_]; }

        // The node of hash(), or 0; `guess` may be any node.
        uint32_t find(uint32_t guess) {
            if (guess && index_.nodes_[guess].hash == hash()) return guess;
            if (at_) look_ahead();
            return index_.find(hash());
        }

    private:
        void look_ahead() {
            size_t end = std::min(at_ + kAhead, hashes_.size()), half = at_ + kAhead / 2;
            for (prefetched_ = std::max(prefetched_, at_); prefetched_ < end; ++prefetched_) {
                index_.prefetch_entry(hashes_[prefetched_]);
            }
            if (half < end) index_.prefetch_node(hashes_[half]);
        }

        const BlockIndex& index_;
        Hashes hashes_;
        size_t at_ = 0, prefetched_ = 0;
    };

    // Nodes that nobody holds any more. They are forgotten some at a time, when their entries have been brought near.
    class Leaving {
    public:
        explicit Leaving(BlockIndex& index) : index_(index) {}
        Leaving(const Leaving&) = delete;
        Leaving& operator=(const Leaving&) = delete;
        ~Leaving() { drop(); }

        void add(uint32_t node) {
            if (count_ == kAhead) drop();
            index_.prefetch_entry(index_.nodes_[node].hash);
            nodes_[count_++] = node;
        }

    private:
        void drop() {
            for (size_t i = 0; i < count_; ++i) index_.drop(nodes_[i]);
            count_ = 0;
        }

        BlockIndex& index_;
        uint32_t nodes_[kAhead];
        size_t count_ = 0;
    };

    // A match under way: who holds all blocks up to here.
    class Matching {
    public:
        Matching(const BlockIndex& index, std::vector<SlotMatch>& matches)
            : index_(index), matches_(matches), active_(index.words_), slower_(!index.rows_[1].empty() || !index.rows_[2].empty()) {
            if (slower_) counts_.resize(64 * index.words_);
        }

        // False when nobody holds `node` and all before it.
        bool next(uint32_t node) {
            if (!depth_) {
                for (size_t w = 0; w < active_.size(); ++w) active_[w] = index_.any(node, w);
            }
            uint64_t left = 0;
            for (size_t w = 0; w < active_.size(); ++w) {
                if (!active_[w]) continue;
                uint64_t device = index_.word(0, node, w), still = active_[w] & device;
                if (still != active_[w] && slower_) {
                    still = active_[w] & index_.any(node, w);
                    count(w, still & ~device, index_.word(1, node, w));
                }
                finish(w, active_[w] ^ still);
                left |= active_[w] = still;
            }
            depth_ += left != 0;
            return left != 0;
        }

        void end() {
            for (size_t w = 0; w < active_.size(); ++w) finish(w, active_[w]);
        }

    private:
        struct Counts {
            uint32_t host = 0, disk = 0;
        };

        void count(size_t w, uint64_t slots, uint64_t on_host) {
            for (; slots; slots &= slots - 1) {
                uint64_t lowest = slots & (0 - slots);
                Counts& counts = counts_[slot_of(w, slots)];
                ++(on_host & lowest ? counts.host : counts.disk);
            }
        }

        void finish(size_t w, uint64_t slots) {
            for (; slots; slots &= slots - 1) {
                uint32_t slot = slot_of(w, slots);
                Counts counts = slower_ ? counts_[slot] : Counts();
                matches_.push_back({slot, depth_ - counts.host - counts.disk, counts.host, counts.disk});
            }
        }

        const BlockIndex& index_;
        std::vector<SlotMatch>& matches_;
        std::vector<uint64_t> active_;
        std::vector<Counts> counts_;  // by slot
        bool slower_;                 // anything is held on host or disk
        uint32_t depth_ = 0;
    };

    static uint64_t bit_of(uint32_t slot) { return uint64_t{1} << slot % 64; }
    static uint32_t slot_of(size_t w, uint64_t slots) { return static_cast<uint32_t>(64 * w + __builtin_ctzll(slots)); }

    // Rows of bits.

    uint64_t* row(uint32_t tier, uint32_t node) { return &rows_[tier][words_ * node]; }
    uint64_t word(uint32_t tier, uint32_t node, size_t w) const {
        return rows_[tier].empty() ? 0 : rows_[tier][words_ * node + w];
    }
    uint64_t any(uint32_t node, size_t w) const { return word(0, node, w) | word(1, node, w) | word(2, node, w); }

    bool is_free(uint32_t node) const {
        for (size_t w = 0; w < words_; ++w) {
            if (any(node, w)) return false;
        }
        return true;
    }

    // Places.

    const Place& place_of(uint32_t slot, uint32_t tier) const {
        static const Place nothing;
        size_t i = kTiers * slot + tier;
        return i < places_.size() ? places_[i] : nothing;
    }

    // `slot` no longer holds `node` on `tier`, if it does.
    void take(uint32_t slot, uint32_t tier, uint32_t node, Leaving& leaving) {
        uint64_t& word = row(tier, node)[slot / 64];
        if (!(word & bit_of(slot))) return;
        word ^= bit_of(slot);
        --places_[kTiers * slot + tier].count;
        if (is_free(node)) leaving.add(node);
    }

    // Leaves what is held, once: a bit is taken down when its node is met first, and put up again in the end.
    void compact(Place& place, uint32_t tier, uint32_t slot) {
        uint64_t bit = bit_of(slot);
        size_t kept = 0;
        for (uint32_t node : place.log) {
            uint64_t& word = row(tier, node)[slot / 64];
            if (word & bit) {
                word ^= bit;
                place.log[kept++] = node;
            }
        }
        place.log.resize(kept);
        for (uint32_t node : place.log) row(tier, node)[slot / 64] |= bit;
    }

    // Nodes.

    uint32_t find(uint64_t hash) const {
        uint32_t tag = tag_of(hash);
        for (size_t at = home(tag);; at = after(at)) {
            uint64_t entry = table_[at];
            if (!entry) return 0;
            if (entry >> 32 == tag && nodes_[node_of(entry)].hash == hash) return node_of(entry);
        }
    }

    // A hash that is not there yet; memory for it must have been reserved.
    uint32_t add(uint64_t hash) {
        uint32_t node = free_;
        if (node) {
            free_ = nodes_[node].newer;
        } else {
            node = next_node_++;
            for (auto& rows : rows_) {
                if (!rows.empty()) std::memset(&rows[words_ * node], 0, words_ * sizeof(uint64_t));
            }
        }
        nodes_[node].hash = hash;
        link(node);
        enter(static_cast<uint64_t>(tag_of(hash)) << 32 | node);
        ++size_;
        return node;
    }

    void use(uint32_t node) {
        if (nodes_[0].older == node) return;
        unlink(node);
        link(node);
    }

    // The last one first. Neighbours in a prompt are mostly neighbours in the ring too, and can move together.
    void use_all(const std::vector<uint32_t>& found) {
        for (size_t end = found.size(); end;) {
            uint32_t oldest = found[--end], newest = oldest;
            while (end && nodes_[newest].newer == found[end - 1]) newest = found[--end];
            if (nodes_[0].older == newest) continue;
            unlink(oldest, newest);
            link(oldest, newest);
        }
    }

    void link(uint32_t node) { link(node, node); }
    void unlink(uint32_t node) { unlink(node, node); }

    // A stretch of the ring becomes its newest part.
    void link(uint32_t oldest, uint32_t newest) {
        uint32_t before = nodes_[0].older;
        nodes_[oldest].older = before;
        nodes_[newest].newer = 0;
        nodes_[before].newer = oldest;
        nodes_[0].older = newest;
    }

    void unlink(uint32_t oldest, uint32_t newest) {
        uint32_t older = nodes_[oldest].older, newer = nodes_[newest].newer;
        nodes_[older].newer = newer;
        nodes_[newer].older = older;
    }

    // Forgets a node that nobody holds.
    void drop(uint32_t node) {
        erase_entry(node);
        unlink(node);
        nodes_[node].newer = free_;
        free_ = node;
        --size_;
    }

    // As many as are too many, the oldest.
    void prune() {
        if (size_ <= max_blocks_) return;
        size_t excess = size_ - max_blocks_;
        pruned_ += excess;
        Leaving leaving(*this);
        for (uint32_t node = nodes_[0].newer; excess; --excess) {
            release(node);
            leaving.add(node);
            node = nodes_[node].newer;
        }
    }

    // Nobody holds it any more.
    void release(uint32_t node) {
        for (uint32_t tier = 0; tier < kTiers; ++tier) {
            if (rows_[tier].empty()) continue;
            for (size_t w = 0; w < words_; ++w) {
                uint64_t& slots = row(tier, node)[w];
                for (; slots; slots &= slots - 1) --places_[kTiers * slot_of(w, slots) + tier].count;
            }
        }
    }

    // The table. An entry is a tag, which says where it belongs, and a node; never 0, for node 0 is none.

    static uint32_t tag_of(uint64_t hash) {  // any hash may come: the ones of a tree made by hand too
        return static_cast<uint32_t>(hash * 0x9E3779B97F4A7C15 >> 32);
    }
    static uint32_t node_of(uint64_t entry) { return static_cast<uint32_t>(entry); }
    size_t home(uint32_t tag) const { return tag >> tag_shift_; }
    size_t after(size_t at) const { return (at + 1) & (table_.size() - 1); }

    void enter(uint64_t entry) {
        size_t at = home(static_cast<uint32_t>(entry >> 32));
        while (table_[at]) at = after(at);
        table_[at] = entry;
    }

    // Moves up what could not stand at its home because of this entry, so that no search ends at a gap too early.
    void erase_entry(uint32_t node) {
        size_t mask = table_.size() - 1, gap = home(tag_of(nodes_[node].hash));
        while (node_of(table_[gap]) != node) gap = after(gap);
        for (size_t at = after(gap); table_[at]; at = after(at)) {
            size_t from_home = (at - home(static_cast<uint32_t>(table_[at] >> 32))) & mask;
            if (from_home >= ((at - gap) & mask)) {
                table_[gap] = table_[at];
                gap = at;
            }
        }
        table_[gap] = 0;
    }

    // Have what find() will read brought nearer.
    void prefetch_entry(uint64_t hash) const { __builtin_prefetch(&table_[home(tag_of(hash))]); }
    void prefetch_node(uint64_t hash) const {
        uint32_t tag = tag_of(hash);
        uint64_t entry = table_[home(tag)];
        if (entry >> 32 == tag) __builtin_prefetch(&nodes_[node_of(entry)]);
    }

    // Growing. All of it happens before anything else does, so that running out of memory changes nothing.

    Place& reserve(uint32_t slot, uint32_t tier, size_t more) {
        reserve_slots(slot);
        size_t needed = nodes_needed(more);
        if (rows_[tier].empty()) reserve_rows(tier);
        if (needed > nodes_.size()) reserve_nodes(needed);
        while (2 * (size_ + more) > table_.size()) grow_table();
        Place& place = places_[kTiers * slot + tier];
        size_t length = place.log.size() + more;
        if (length > place.log.capacity()) place.log.reserve(length > 2 * place.log.size() ? length : 2 * place.log.size());
        return place;
    }

    size_t nodes_needed(size_t more) const {
        if (more > kNodesMax - size_ - 1) throw std::length_error("too many blocks");
        return size_ + more + 1;
    }

    void reserve_slots(uint32_t slot) {
        size_t words = words_;
        while (slot >= 64 * words) words *= 2;
        if (words > words_) {
            Memory<uint64_t> wider[kTiers];
            for (uint32_t tier = 0; tier < kTiers; ++tier) {
                if (!rows_[tier].empty()) widened(rows_[tier], words).swap(wider[tier]);
            }
            for (uint32_t tier = 0; tier < kTiers; ++tier) rows_[tier].swap(wider[tier]);
            words_ = words;
        }
        if (kTiers * (slot + 1) > places_.size()) places_.resize(kTiers * (slot + 1));
    }

    Memory<uint64_t> widened(const Memory<uint64_t>& rows, size_t words) const {
        Memory<uint64_t> wider(words * nodes_.size());
        for (size_t node = 0; node < next_node_; ++node) {
            for (size_t w = 0; w < words; ++w) wider[words * node + w] = w < words_ ? rows[words_ * node + w] : 0;
        }
        return wider;
    }

    void reserve_rows(uint32_t tier) {
        Memory<uint64_t> rows(words_ * nodes_.size());
        for (size_t i = 0; i < words_ * next_node_; ++i) rows[i] = 0;
        rows_[tier].swap(rows);
    }

    void reserve_nodes(size_t needed) {
        size_t twice = 2 * nodes_.size(), nodes = needed > twice ? needed : twice;
        for (auto& rows : rows_) {
            if (!rows.empty()) rows.grow(words_ * nodes);
        }
        nodes_.grow(nodes);
    }

    void grow_table() {
        std::vector<uint64_t> old(2 * table_.size());
        old.swap(table_);
        --tag_shift_;
        size_t entries = 0;  // moved together first, without a branch: it would be mispredicted at every other place
        for (uint64_t entry : old) {
            old[entries] = entry;
            entries += entry != 0;
        }
        for (size_t i = 0; i < entries; ++i) enter(old[i]);
    }

    size_t max_blocks_;
    size_t size_ = 0;
    size_t pruned_ = 0;
    size_t words_ = 1;  // of a row
    Memory<Node> nodes_;             // from next_node_ on they have no value yet, here and in the rows
    Memory<uint64_t> rows_[kTiers];  // of every node; empty until somebody holds something on that tier
    std::vector<Place> places_;      // by kTiers * slot + tier
    std::vector<uint64_t> table_;    // its size is a power of two
    uint32_t tag_shift_ = 26;        // 32 - log2 of that size
    uint32_t free_ = 0;
    uint32_t next_node_ = 1;
};

}  // namespace dynamo
