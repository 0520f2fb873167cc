// SPDX-License-Identifier: GPL-2.0-only
/*
 * Extents: what a map says, and what it takes to make it say less.
 *
 * An extent says for a range of a file which physical blocks hold the data
 * (attached to the pool), or why the lower page cache serves it.  It is looked
 * up without a lock; whoever detaches one waits for the faults that may have
 * seen it, and unmaps what they mapped.
 *
 * Locks: pool->sem -> map->lock (include/dedupfs.h).
 */
#include <linux/interval_tree_generic.h>
#include <linux/pagemap.h>
#include <linux/slab.h>
#include "extent.h"

#define CREATE_TRACE_POINTS
#include "trace.h"

static u64 block_first(struct dedupfs_extent *ext)
{
	return ext->block;
}

INTERVAL_TREE_DEFINE(struct dedupfs_extent, block_node, u64, subtree_last,
		     block_first, dedupfs_block_last, static, attached)

/**
 * dedupfs_attached_first - an attached extent that covers any of some blocks
 * @pool:	pool
 * @block:	physical block, in pages
 * @last:	the last one, inclusive
 *
 * Context: pool->sem held.
 * Return: of those the one that begins first, or NULL.
 */
struct dedupfs_extent *dedupfs_attached_first(struct dedupfs_pool *pool, u64 block, u64 last)
{
	lockdep_assert_held(&pool->sem);
	return attached_iter_first(&pool->attached, block, last);
}

/**
 * dedupfs_attached_next - the attached extent after another
 * @ext:	of dedupfs_attached_first(), or of this
 * @block:	as there
 * @last:	as there
 *
 * Context: pool->sem held, so that the tree has not changed meanwhile.
 * Return: the extent, or NULL.
 */
struct dedupfs_extent *dedupfs_attached_next(struct dedupfs_extent *ext, u64 block, u64 last)
{
	return attached_iter_next(ext, block, last);
}

/* Zaps */

/*
 * The caller raised map->zaps before it detached, so whoever finds no extents
 * still waits for this zap.
 */
static void zap_later(struct dedupfs_zap_list *list, struct dedupfs_map *map,
		      pgoff_t first, pgoff_t last)
{
	/* @zaps stays raised then: whoever detaches or looks for changes next zaps. */
	if (WARN_ON_ONCE(list->nr == ARRAY_SIZE(list->zap)))
		return;
	refcount_inc(&map->ref);
	list->zap[list->nr].map = map;
	list->zap[list->nr].first = first;
	list->zap[list->nr++].last = last;
}

/*
 * Faults that map pool pages.  Somebody is detaching all the time while many
 * map clones, and a fault that gave way to him would read the data into the
 * lower page cache, a second time: so a detach keeps no fault out, but waits
 * for those that may have seen what it took away.  They are counted in turn,
 * as by SRCU: later ones, which see the new extents, do not prolong the wait.
 */

/**
 * dedupfs_mapping_begin - a fault is about to look extents up and map pool pages
 * @map:	map
 *
 * Context: any that may map; never waits.
 * Return: for dedupfs_mapping_end().
 */
unsigned int dedupfs_mapping_begin(struct dedupfs_map *map)
{
	unsigned int turn = READ_ONCE(map->turn);

	/* For lockdep: whoever has the mutex waits for us. */
	rwsem_acquire_read(&map->zap_mutex.dep_map, 0, 1, _RET_IP_);
	atomic_inc(&map->mapping[turn]);
	/* Pairs with that in wait_for_faults(): counted there, or extents are gone here. */
	smp_mb__after_atomic();
	return turn;
}

/**
 * dedupfs_mapping_end - what a fault found is mapped
 * @map:	map
 * @turn:	what dedupfs_mapping_begin() returned
 *
 * Context: as of dedupfs_mapping_begin().
 */
void dedupfs_mapping_end(struct dedupfs_map *map, unsigned int turn)
{
	rwsem_release(&map->zap_mutex.dep_map, _RET_IP_);
	if (atomic_dec_and_test(&map->mapping[turn]))
		wake_up_var(&map->mapping[turn]);
}

/* All faults that may have seen extents which are gone are through after this. */
static void wait_for_faults(struct dedupfs_map *map)
{
	unsigned int turn;

	/* The caller's stores to the extents are before any look at the counts. */
	smp_mb();
	mutex_lock(&map->zap_mutex);
	turn = map->turn;
	/* One may have read the turn before the last one ended, and come late. */
	wait_var_event(&map->mapping[!turn], !atomic_read(&map->mapping[!turn]));
	WRITE_ONCE(map->turn, !turn);
	/* Whom we do not see counted sees the new turn next, and the extents gone. */
	smp_mb();
	wait_var_event(&map->mapping[turn], !atomic_read(&map->mapping[turn]));
	mutex_unlock(&map->zap_mutex);
}

/**
 * dedupfs_zap - unmap what was mapped of a range whose extents are gone
 * @map:	map
 * @first:	file page
 * @last:	file page, inclusive; ULONG_MAX: to the end
 *
 * Context: may sleep; no pool->sem; not between dedupfs_mapping_begin() and
 * dedupfs_mapping_end().
 */
void dedupfs_zap(struct dedupfs_map *map, pgoff_t first, pgoff_t last)
{
	wait_for_faults(map);
	if (mapping_mapped(map->lower->i_mapping))
		unmap_mapping_pages(map->lower->i_mapping, first,
				    last - first == ULONG_MAX ? 0 : last - first + 1, false);
}

/**
 * dedupfs_zap_all - unmap all that was noted to be zapped
 * @list:	empty afterwards
 *
 * Context: as of dedupfs_zap().
 */
void dedupfs_zap_all(struct dedupfs_zap_list *list)
{
	struct dedupfs_map *map;
	unsigned int i;

	for (i = 0; i < list->nr; i++) {
		map = list->zap[i].map;
		dedupfs_zap(map, list->zap[i].first, list->zap[i].last);
		dedupfs_zap_end(map);
		dedupfs_map_put(map);
	}
	list->nr = 0;
}

/* Extents */

/**
 * dedupfs_extent_at_or_after - the extent that holds a page, or else the next one
 * @map:	map
 * @index:	file page
 *
 * Context: pool->sem or map->lock held.
 * Return: the extent, or NULL if there is none from there on.
 */
struct dedupfs_extent *dedupfs_extent_at_or_after(struct dedupfs_map *map, pgoff_t index)
{
	struct dedupfs_extent *ext, *best = NULL;
	struct rb_node *node = map->extents.rb_node;

	lockdep_assert(lockdep_is_held(&map->pool->sem) || lockdep_is_held(&map->lock));
	while (node) {
		ext = rb_entry(node, struct dedupfs_extent, file_node);
		if (ext->index + ext->nr > index) {
			best = ext;
			node = node->rb_left;
		} else {
			node = node->rb_right;
		}
	}
	return best;
}

/**
 * dedupfs_map_lookup - where the data of a file page comes from
 * @map:	map; the caller has checked that it is valid
 * @index:	file page
 * @r:		filled with the rest of the extent from @index on
 *
 * Context: any; takes no lock and allocates nothing.
 * Return: false where no extent is known.
 */
bool dedupfs_map_lookup(struct dedupfs_map *map, pgoff_t index, struct dedupfs_range *r)
{
	struct dedupfs_extent *ext;
	struct rb_node *node;
	unsigned int seq;
	pgoff_t skip;
	bool found;

	rcu_read_lock();
	do {
		found = false;
		seq = read_seqcount_begin(&map->seq);
		node = READ_ONCE(map->extents.rb_node);
		while (node) {
			ext = rb_entry(node, struct dedupfs_extent, file_node);
			if (index < ext->index) {
				node = READ_ONCE(node->rb_left);
			} else if (index >= ext->index + ext->nr) {
				node = READ_ONCE(node->rb_right);
			} else {
				skip = index - ext->index;
				r->index = index;
				r->nr = ext->nr - skip;
				r->block = ext->block + skip;
				r->reason = ext->reason;
				r->seq = seq;
				found = true;
				break;
			}
		}
	} while (read_seqcount_retry(&map->seq, seq));
	rcu_read_unlock();
	return found;
}

static void extent_insert(struct dedupfs_map *map, struct dedupfs_extent *ext)
{
	struct rb_node **link = &map->extents.rb_node, *parent = NULL;

	lockdep_assert_held(&map->lock);
	while (*link) {
		parent = *link;
		if (ext->index < rb_entry(parent, struct dedupfs_extent, file_node)->index)
			link = &parent->rb_left;
		else
			link = &parent->rb_right;
	}
	/*
	 * What a reader finds is whole: write_seqcount_begin() was after it was
	 * made.  Whether it is right, map->seq says.
	 */
	rb_link_node(&ext->file_node, parent, link);
	rb_insert_color(&ext->file_node, &map->extents);
	WRITE_ONCE(map->nr_extents, map->nr_extents + 1);
}

static void block_insert(struct dedupfs_pool *pool, struct dedupfs_extent *ext)
{
	if (ext->reason == DEDUPFS_POOLED) {
		attached_insert(ext, &pool->attached);
		atomic_long_inc(&pool->nr_attached);
	}
}

static void block_remove(struct dedupfs_pool *pool, struct dedupfs_extent *ext)
{
	if (ext->reason == DEDUPFS_POOLED) {
		attached_remove(ext, &pool->attached);
		atomic_long_dec(&pool->nr_attached);
	}
}

/**
 * dedupfs_extent_resize - change an extent in place
 * @map:	map
 * @ext:	extent of it
 * @index:	its first file page from now on
 * @nr:		pages from there, all of them its own or such that nothing is
 *		known of
 *
 * Readers retry on map->seq.
 *
 * Context: pool->sem held for writing.
 */
void dedupfs_extent_resize(struct dedupfs_map *map, struct dedupfs_extent *ext,
			   pgoff_t index, pgoff_t nr)
{
	/* Where only the end moves, it keeps its place in the tree of blocks. */
	bool same_start = index == ext->index;

	lockdep_assert_held_write(&map->pool->sem);
	if (!same_start)
		block_remove(map->pool, ext);
	spin_lock(&map->lock);
	write_seqcount_begin(&map->seq);
	if (ext->reason == DEDUPFS_POOLED)
		ext->block = ext->block + index - ext->index;
	ext->index = index;
	ext->nr = nr;
	write_seqcount_end(&map->seq);
	spin_unlock(&map->lock);
	if (!same_start)
		block_insert(map->pool, ext);
	else if (ext->reason == DEDUPFS_POOLED)
		attached_augment.propagate(&ext->block_node, NULL);
}

/* pool->sem is held for writing. */
static void extent_remove(struct dedupfs_map *map, struct dedupfs_extent *ext)
{
	block_remove(map->pool, ext);
	spin_lock(&map->lock);
	write_seqcount_begin(&map->seq);
	rb_erase(&ext->file_node, &map->extents);
	WRITE_ONCE(map->nr_extents, map->nr_extents - 1);
	write_seqcount_end(&map->seq);
	spin_unlock(&map->lock);
	kfree_rcu(ext, rcu);
}

/**
 * dedupfs_extent_add - a range of which nothing is known yet
 * @map:	map
 * @r:		what is known of it now
 *
 * Context: pool->sem held for writing.
 * Return: false without memory: the range stays unknown.
 */
bool dedupfs_extent_add(struct dedupfs_map *map, const struct dedupfs_range *r)
{
	struct dedupfs_extent *ext;

	lockdep_assert_held_write(&map->pool->sem);
	/*
	 * A loop device for swap may lie on the mount, and wait for pool->sem;
	 * and so may all those who reclaim memory, at an eviction.
	 */
	ext = kzalloc(sizeof(*ext), GFP_NOIO | __GFP_NORETRY | __GFP_NOWARN);
	if (!ext)
		return false;
	ext->map = map;
	ext->index = r->index;
	ext->nr = r->nr;
	ext->block = r->block;
	ext->reason = r->reason;
	spin_lock(&map->lock);
	write_seqcount_begin(&map->seq);
	extent_insert(map, ext);
	write_seqcount_end(&map->seq);
	spin_unlock(&map->lock);
	block_insert(map->pool, ext);
	return true;
}

/**
 * dedupfs_covered - does an attached extent cover a block?
 * @pool:	pool
 * @block:	physical block, in pages
 * @next:	first block after @block for which the answer may differ
 *
 * Context: pool->sem held.
 * Return: true if one does.
 */
bool dedupfs_covered(struct dedupfs_pool *pool, u64 block, u64 *next)
{
	struct dedupfs_extent *ext;

	lockdep_assert_held(&pool->sem);
	ext = dedupfs_attached_first(pool, block, U64_MAX);
	if (!ext) {
		*next = U64_MAX;
		return false;
	}
	if (ext->block > block) {
		*next = ext->block;
		return false;
	}
	*next = dedupfs_block_last(ext) + 1;
	return true;
}

/* Rule 1: the last detach of @nr blocks frees their pages. */
static void drop_uncovered(struct dedupfs_pool *pool, u64 block, u64 nr)
{
	u64 end = block + nr, next;

	while (block < end) {
		if (!dedupfs_covered(pool, block, &next))
			dedupfs_pool_drop(pool, block, min(next, end) - 1);
		block = next;
	}
}

/**
 * dedupfs_detach_extents - remove a range from the extents of a map
 * @map:	map
 * @first:	file page
 * @to:		file page, inclusive
 *
 * Pages that no other extent covers leave the pool.  Never fails: where an
 * extent would have to be split and there is no memory, its end goes as well,
 * and @to moves there.
 *
 * Context: pool->sem held for writing; the caller zaps once it is free.
 * Return: true if any of it was attached, so that it may be mapped.
 */
bool dedupfs_detach_extents(struct dedupfs_map *map, pgoff_t first, pgoff_t *to)
{
	pgoff_t last = *to;
	struct dedupfs_pool *pool = map->pool;
	struct dedupfs_extent *ext;
	struct dedupfs_range tail;
	bool attached = false;
	pgoff_t index, end;
	int reason;
	u64 block;

	lockdep_assert_held_write(&pool->sem);
	trace_dedupfs_detach(map->lower, first, last);
	while ((ext = dedupfs_extent_at_or_after(map, first)) && ext->index <= last) {
		index = max(ext->index, first);
		end = ext->index + ext->nr;
		block = ext->block + (index - ext->index);
		reason = ext->reason;
		tail = (struct dedupfs_range){ .index = last + 1, .reason = reason };
		if (end - 1 > last) {
			tail.nr = end - 1 - last;
			tail.block = ext->block + (tail.index - ext->index);
			if (reason != DEDUPFS_POOLED)
				tail.block = 0;
		}

		if (index > ext->index) {
			dedupfs_extent_resize(map, ext, ext->index, index - ext->index);
			if (tail.nr && dedupfs_extent_add(map, &tail))
				end = last + 1;
			else
				*to = max(*to, end - 1);
		} else if (tail.nr) {
			dedupfs_extent_resize(map, ext, tail.index, tail.nr);
			end = last + 1;
		} else {
			extent_remove(map, ext);
		}

		if (reason == DEDUPFS_POOLED) {
			attached = true;
			drop_uncovered(pool, block, end - index);
		}
		cond_resched();
	}
	return attached;
}

/* Is anything known of [first, last] that a change would make untrue? */
static bool any_known(struct dedupfs_map *map, pgoff_t first, pgoff_t last)
{
	struct dedupfs_extent *ext;
	bool found = false;

	spin_lock(&map->lock);
	for (ext = dedupfs_extent_at_or_after(map, first); ext && ext->index <= last && !found;
	     ext = rb_entry_safe(rb_next(&ext->file_node), struct dedupfs_extent, file_node))
		found = ext->reason != DEDUPFS_PLAIN;
	spin_unlock(&map->lock);
	return found;
}

/**
 * dedupfs_detach_later - detach now, and zap once pool->sem is free
 * @list:	where there is room to note that
 * @map:	map
 * @first:	file page
 * @last:	file page, inclusive
 *
 * Context: pool->sem held for writing.
 * Return: true if there is something to zap.
 */
bool dedupfs_detach_later(struct dedupfs_zap_list *list, struct dedupfs_map *map,
			  pgoff_t first, pgoff_t last)
{
	bool attached;

	dedupfs_zap_begin(map);
	attached = dedupfs_detach_extents(map, first, &last);
	if (attached)
		zap_later(list, map, first, last);
	else
		dedupfs_zap_end(map);
	return attached;
}

/**
 * dedupfs_detach_unpublished - the same for a range of which no page is published
 * @list:	where there is room to note what is to be zapped
 * @map:	map
 * @first:	file page
 * @last:	file page, inclusive
 *
 * None of it is mapped: only what goes beyond it, for want of memory, is zapped.
 *
 * Context: pool->sem held for writing.
 */
void dedupfs_detach_unpublished(struct dedupfs_zap_list *list, struct dedupfs_map *map,
				pgoff_t first, pgoff_t last)
{
	pgoff_t to = last;

	dedupfs_zap_begin(map);
	if (dedupfs_detach_extents(map, first, &to) && to > last)
		zap_later(list, map, last + 1, to);
	else
		dedupfs_zap_end(map);
}

/**
 * dedupfs_detach - forget a range of a file, and unmap it
 * @map:	map
 * @first:	file page
 * @last:	file page, inclusive
 *
 * When it returns, no pool page of the range is mapped or will be found.
 *
 * Context: may sleep; no page lock, no lower lock.
 */
void dedupfs_detach(struct dedupfs_map *map, pgoff_t first, pgoff_t last)
{
	struct dedupfs_pool *pool = map->pool;

	/* Whoever is attaching is through, or sees that we are changing. */
	mutex_lock(&map->attach_mutex);
	mutex_unlock(&map->attach_mutex);
	if (!any_known(map, first, last) && !atomic_read(&map->zaps))
		return;
	dedupfs_zap_begin(map);
	down_write(&pool->sem);
	dedupfs_detach_extents(map, first, &last);
	up_write(&pool->sem);
	dedupfs_zap(map, first, last);
	dedupfs_zap_end(map);
}

/**
 * dedupfs_serve_from_below - a page that is about to be stored to leaves the pool's care
 * @map:	map
 * @index:	file page
 *
 * Until the store has come, or the file changes, its data comes from the lower
 * page cache, whose page can be made writable.
 *
 * Context: may sleep; may be a fault.
 */
void dedupfs_serve_from_below(struct dedupfs_map *map, pgoff_t index)
{
	struct dedupfs_range r = { .index = index, .nr = 1, .reason = DEDUPFS_CHANGING };
	pgoff_t last = index;

	dedupfs_zap_begin(map);
	down_write(&map->pool->sem);
	mutex_lock(&map->attach_mutex);
	dedupfs_detach_extents(map, index, &last);
	/* Without memory the next access meets no extent, and tries again. */
	dedupfs_extent_add(map, &r);
	mutex_unlock(&map->attach_mutex);
	up_write(&map->pool->sem);
	dedupfs_zap(map, index, last);
	dedupfs_zap_end(map);
}

/**
 * dedupfs_forget_unattached - resolve anew what was found not to be poolable
 * @map:	map
 * @first:	file page
 * @last:	file page, inclusive
 *
 * Context: may sleep.
 */
void dedupfs_forget_unattached(struct dedupfs_map *map, pgoff_t first, pgoff_t last)
{
	struct dedupfs_extent *ext;
	pgoff_t pos = first, end, to;

	down_write(&map->pool->sem);
	while ((ext = dedupfs_extent_at_or_after(map, pos)) && ext->index <= last) {
		end = ext->index + ext->nr;
		to = min(end - 1, last);
		if (ext->reason != DEDUPFS_POOLED)
			dedupfs_detach_extents(map, max(ext->index, first), &to);
		if (end > last)
			break;
		pos = end;
	}
	up_write(&map->pool->sem);
}

/**
 * dedupfs_map_kill - nothing that an invalid map says may be used again
 * @map:	map that is no longer valid
 * @list:	where there is room to note what is to be zapped
 *
 * Context: pool->sem held for writing.
 */
void dedupfs_map_kill(struct dedupfs_map *map, struct dedupfs_zap_list *list)
{
	spin_lock(&map->lock);
	WRITE_ONCE(map->baseline, DEDUPFS_UNARMED);
	spin_unlock(&map->lock);
	dedupfs_count(map->pool, DEDUPFS_STALE, 1);
	dedupfs_detach_later(list, map, 0, ULONG_MAX);
}

/**
 * dedupfs_drop_stale - a map was found not to be valid any more
 * @map:	map
 *
 * After a foreign change nothing that it says is used again, and what is
 * mapped is unmapped when this returns, and not when the file is stable.
 * After changes of ours it is left alone: it may be carried over.
 *
 * Context: may sleep; may be a fault (that is not mapping).
 */
void dedupfs_drop_stale(struct dedupfs_map *map)
{
	struct dedupfs_zap_list zaps;

	if (READ_ONCE(map->nr_extents)) {
		if (dedupfs_only_ours(map) && !dedupfs_foreign_mapping(map))
			return;
		zaps.nr = 0;
		down_write(&map->pool->sem);
		if (!dedupfs_map_valid(map))
			dedupfs_map_kill(map, &zaps);
		up_write(&map->pool->sem);
		dedupfs_zap_all(&zaps);
	}
	/* Who detached them before us may not be through; as in dedupfs_zap_begin(). */
	smp_rmb();
	if (atomic_read(&map->zaps))
		dedupfs_zap(map, 0, ULONG_MAX);
}

/**
 * dedupfs_zap_block - unmap a pool page from every file that may map it
 * @pool:	pool
 * @block:	its physical block, in pages
 *
 * A fault may map it again at once.
 *
 * Context: pool->sem held.
 */
void dedupfs_zap_block(struct dedupfs_pool *pool, u64 block)
{
	struct dedupfs_extent *ext;
	struct address_space *mapping;

	lockdep_assert_held(&pool->sem);
	for (ext = dedupfs_attached_first(pool, block, block); ext;
	     ext = dedupfs_attached_next(ext, block, block)) {
		mapping = ext->map->lower->i_mapping;
		if (mapping_mapped(mapping))
			unmap_mapping_pages(mapping, ext->index + (block - ext->block), 1, false);
	}
}

#define SAVED_STEP	256

/**
 * dedupfs_pool_saved - what sharing saves now
 * @pool:	pool
 *
 * Return: bytes that the pages of the pool would take if each file that is
 * attached to them had its own, less what they take.
 */
u64 dedupfs_pool_saved(struct dedupfs_pool *pool)
{
	struct dedupfs_extent *ext;
	u64 pages = 0, block = 0, next, last;
	unsigned long index;
	void *entry;

	/* A few blocks at a time: do not hold pool->sem for long. */
	while (block != U64_MAX) {
		down_read(&pool->sem);
		if (!dedupfs_covered(pool, block, &next)) {
			block = next;
			goto unlock;
		}
		last = block + SAVED_STEP - 1;
		for (ext = dedupfs_attached_first(pool, block, last); ext;
		     ext = dedupfs_attached_next(ext, block, last))
			xa_for_each_range(&pool->entries, index, entry, max(block, ext->block),
					  min(last, dedupfs_block_last(ext)))
				pages++;
		block = last + 1;
unlock:
		up_read(&pool->sem);
		cond_resched();
	}
	pages -= min_t(u64, pages, atomic_long_read(&pool->nr_pages));
	return pages << PAGE_SHIFT;
}
