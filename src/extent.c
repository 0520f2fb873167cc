// SPDX-License-Identifier: GPL-2.0-only
/*
 * Maps and extents: resolve, prove, join.
 *
 * A map belongs to one lower inode.  Its extents say, for ranges of the file,
 * which physical blocks hold the data (attached to the pool), or why the lower
 * page cache serves it.  All of them are true while the lower change counter
 * equals the map's baseline (rules 3 and 5), and no longer.
 *
 * What makes sharing safe: an extent is attached, and a page is published,
 * only while every extent that covers the page's block is known to have that
 * page's content.  On XFS a counter that did not move proves it; on btrfs the
 * mapping moves without the counter (balance, defragment), so there an extent
 * is a witness only after it was FIEMAPped again, and whoever publishes a page
 * detaches all other extents of its block (they join again).  See attach().
 *
 * Locks: map->fill_sem -> pool->sem -> map->lock (include/dedupfs.h).
 */
#define pr_fmt(fmt) "dedupfs: " fmt

#include <linux/dcache.h>
#include <linux/delay.h>
#include <linux/exportfs.h>
#include <linux/fiemap.h>
#include <linux/fileattr.h>
#include <linux/interval_tree_generic.h>
#include <linux/magic.h>
#include <linux/pagemap.h>
#include <linux/sched/mm.h>
#include <linux/slab.h>
#include "pool.h"

#define CREATE_TRACE_POINTS
#include "trace.h"

static u64 block_first(struct dedupfs_extent *ext)
{
	return ext->block;
}

static u64 block_last(struct dedupfs_extent *ext)
{
	return ext->block + ext->nr - 1;
}

INTERVAL_TREE_DEFINE(struct dedupfs_extent, block_node, u64, subtree_last,
		     block_first, block_last, static, attached)

/* Maps */

static const struct rhashtable_params map_params = {
	.key_len	= sizeof(struct inode *),
	.key_offset	= offsetof(struct dedupfs_map, lower),
	.head_offset	= offsetof(struct dedupfs_map, node),
	/* 32 KiB.  Trees have thousands of files; growing is dear. */
	.min_size	= 4096,
	.automatic_shrinking = true,
};

/** dedupfs_maps_init - of a new pool.  Return: 0 or -ENOMEM. */
int dedupfs_maps_init(struct dedupfs_pool *pool)
{
	INIT_LIST_HEAD(&pool->map_list);
	return rhashtable_init(&pool->maps, &map_params);
}

static struct dedupfs_map *map_find(struct dedupfs_pool *pool, struct inode *lower)
{
	lockdep_assert_held(&pool->sem);
	return rhashtable_lookup_fast(&pool->maps, &lower, map_params);
}

static struct dedupfs_map *map_new(struct dedupfs_pool *pool, struct inode *lower)
{
	struct dedupfs_map *map;

	map = kzalloc(sizeof(*map), GFP_NOFS);
	if (!map)
		return NULL;
	refcount_set(&map->ref, 1);
	map->pool = pool;
	ihold(lower);
	map->lower = lower;
	map->baseline = DEDUPFS_UNARMED;
	spin_lock_init(&map->lock);
	seqcount_spinlock_init(&map->seq, &map->lock);
	map->extents = RB_ROOT;
	mutex_init(&map->attach_mutex);
	map->unstable_until = jiffies;
	map->wrote_first = ULONG_MAX;
	mutex_init(&map->zap_mutex);
	init_rwsem(&map->fill_sem);
	return map;
}

/**
 * dedupfs_map_put - drop a reference; the last one lets go of the lower inode
 * @map:	map
 *
 * Context: may sleep; no pool->sem.
 */
void dedupfs_map_put(struct dedupfs_map *map)
{
	if (!refcount_dec_and_test(&map->ref))
		return;
	WARN_ON_ONCE(map->nr_extents);
	dedupfs_mark_remove(map);
	iput(map->lower);
	kfree_rcu(map, rcu);
}

/**
 * dedupfs_map_get - the map of an upper inode, made at need
 * @di:		regular upper inode
 *
 * Finds the map that another upper inode of the same lower one has, or that
 * an earlier upper inode left because pages of it are still in the pool.
 *
 * Context: may sleep.
 * Return: the map, valid while the upper inode is, or NULL without memory.
 */
struct dedupfs_map *dedupfs_map_get(struct dedupfs_inode *di)
{
	struct dedupfs_pool *pool = dedupfs_pool(&di->vfs_inode);
	struct dedupfs_map *map = READ_ONCE(di->map);

	if (likely(map))
		return map;

	down_write(&pool->sem);
	map = di->map;
	if (map)
		goto out;
	map = map_find(pool, di->lower);
	if (!map) {
		map = map_new(pool, di->lower);
		if (!map)
			goto out;
		if (rhashtable_insert_fast(&pool->maps, &map->node, map_params)) {
			up_write(&pool->sem);
			dedupfs_map_put(map);
			return NULL;
		}
		list_add_tail(&map->list, &pool->map_list);
	}
	map->users++;
	spin_lock(&di->vfs_inode.i_lock);
	atomic_add(di->writers, &map->writers);
	/* Pairs with READ_ONCE(): the map is seen whole. */
	smp_store_release(&di->map, map);
	spin_unlock(&di->vfs_inode.i_lock);
out:
	up_write(&pool->sem);
	return map;
}

/* Ranges of files to zap once pool->sem is free: no more than fit on a stack. */
#define ZAP_LIST_MAX	16

struct zap_list {
	unsigned int nr;
	struct {
		struct dedupfs_map *map;
		pgoff_t first;
		pgoff_t last;
	} zap[ZAP_LIST_MAX + 1];	/* one for an error path */
};

static bool zap_list_full(const struct zap_list *list)
{
	return list->nr >= ZAP_LIST_MAX;
}

/* The caller raised map->zaps before it detached: a change waits for no less. */
static void zap_later(struct zap_list *list, struct dedupfs_map *map, pgoff_t first, pgoff_t last)
{
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

/** dedupfs_mapping_end - what it found is mapped */
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

/* Unmap what was mapped of a range whose extents are gone. */
static void zap(struct dedupfs_map *map, pgoff_t first, pgoff_t last)
{
	wait_for_faults(map);
	if (mapping_mapped(map->lower->i_mapping))
		unmap_mapping_pages(map->lower->i_mapping, first,
				    last - first == ULONG_MAX ? 0 : last - first + 1, false);
}

static void zap_all(struct zap_list *list)
{
	struct dedupfs_map *map;
	unsigned int i;

	for (i = 0; i < list->nr; i++) {
		map = list->zap[i].map;
		zap(map, list->zap[i].first, list->zap[i].last);
		/* All of it: see kill(). */
		if (list->zap[i].last == ULONG_MAX)
			atomic_dec(&map->dropping);
		atomic_dec(&map->zaps);
		dedupfs_map_put(map);
	}
	list->nr = 0;
}

/* Extents */

/* The extent that holds @index, or else the next one. */
static struct dedupfs_extent *extent_at_or_after(struct dedupfs_map *map, pgoff_t index)
{
	struct dedupfs_extent *ext, *best = NULL;
	struct rb_node *node = map->extents.rb_node;

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
	/* Readers walk without the lock; map->seq orders what they see. */
	rb_link_node(&ext->file_node, parent, link);
	rb_insert_color(&ext->file_node, &map->extents);
	map->nr_extents++;
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

/* Change an extent in place; @nr 0 removes it.  Readers retry on map->seq. */
static void extent_resize(struct dedupfs_map *map, struct dedupfs_extent *ext,
			  pgoff_t index, pgoff_t nr)
{
	/* Where only the end moves, it keeps its place in the tree of blocks. */
	bool same_start = nr && index == ext->index;

	if (!same_start)
		block_remove(map->pool, ext);
	spin_lock(&map->lock);
	write_seqcount_begin(&map->seq);
	if (nr) {
		if (ext->reason == DEDUPFS_POOLED)
			ext->block += index - ext->index;
		ext->index = index;
		ext->nr = nr;
	} else {
		rb_erase(&ext->file_node, &map->extents);
		map->nr_extents--;
	}
	write_seqcount_end(&map->seq);
	spin_unlock(&map->lock);
	if (!nr)
		kfree_rcu(ext, rcu);
	else if (!same_start)
		block_insert(map->pool, ext);
	else if (ext->reason == DEDUPFS_POOLED)
		attached_augment.propagate(&ext->block_node, NULL);
}

/* Return: the new extent, or NULL without memory (the range stays unknown). */
static struct dedupfs_extent *extent_add(struct dedupfs_map *map, const struct dedupfs_range *r)
{
	struct dedupfs_extent *ext;

	ext = kzalloc(sizeof(*ext), GFP_NOFS | __GFP_NOWARN);
	if (!ext)
		return NULL;
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
	return ext;
}

/*
 * Remove [first, *to] from the extents of a map, and from the pool the pages
 * that nobody else covers.  Never fails: where an extent would have to be
 * split and there is no memory, its end goes as well, and @to moves there.
 * Return: true if any of it was attached, so that it may be mapped.
 */
static bool detach(struct dedupfs_map *map, pgoff_t first, pgoff_t *to)
{
	pgoff_t last = *to;
	struct dedupfs_pool *pool = map->pool;
	struct dedupfs_extent *ext;
	struct dedupfs_range tail;
	bool attached = false;
	pgoff_t index, end;
	u64 block;

	lockdep_assert_held_write(&pool->sem);
	trace_dedupfs_detach(map->lower, first, last);
	while ((ext = extent_at_or_after(map, first)) && ext->index <= last) {
		index = max(ext->index, first);
		end = ext->index + ext->nr;
		block = ext->block + (index - ext->index);
		tail = (struct dedupfs_range){ .index = last + 1, .reason = ext->reason };
		if (end - 1 > last) {
			tail.nr = end - 1 - last;
			tail.block = ext->block + (tail.index - ext->index);
			if (ext->reason != DEDUPFS_POOLED)
				tail.block = 0;
		}

		if (index > ext->index) {
			extent_resize(map, ext, ext->index, index - ext->index);
			if (tail.nr && extent_add(map, &tail))
				end = last + 1;
			else
				*to = max(*to, end - 1);
		} else if (tail.nr) {
			extent_resize(map, ext, tail.index, tail.nr);
			end = last + 1;
		} else {
			extent_resize(map, ext, 0, 0);
		}

		if (tail.reason == DEDUPFS_POOLED) {
			attached = true;
			dedupfs_pool_drop_uncovered(pool, block, end - index);
		}
	}
	return attached;
}

/* Is anything known of [first, last] that a change would make untrue? */
static bool any_known(struct dedupfs_map *map, pgoff_t first, pgoff_t last)
{
	struct dedupfs_extent *ext;
	bool found = false;

	spin_lock(&map->lock);
	for (ext = extent_at_or_after(map, first); ext && ext->index <= last && !found;
	     ext = rb_entry_safe(rb_next(&ext->file_node), struct dedupfs_extent, file_node))
		found = ext->reason != DEDUPFS_PLAIN;
	spin_unlock(&map->lock);
	return found;
}

/*
 * Detach, and zap once pool->sem is free; there is room in the list.
 * Return: true if there is something to zap.
 */
static bool detach_later(struct zap_list *list, struct dedupfs_map *map, pgoff_t first,
			 pgoff_t last)
{
	bool attached;

	atomic_inc(&map->zaps);
	attached = detach(map, first, &last);
	if (attached)
		zap_later(list, map, first, last);
	else
		atomic_dec(&map->zaps);
	return attached;
}

/*
 * The same for a range of which no page is published, so that none is mapped:
 * only what goes beyond it, for want of memory, is to be zapped.
 */
static void detach_unpublished(struct zap_list *list, struct dedupfs_map *map, pgoff_t first,
			       pgoff_t last)
{
	pgoff_t to = last;

	atomic_inc(&map->zaps);
	if (detach(map, first, &to) && to > last)
		zap_later(list, map, last + 1, to);
	else
		atomic_dec(&map->zaps);
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
	atomic_inc(&map->zaps);
	down_write(&pool->sem);
	detach(map, first, &last);
	up_write(&pool->sem);
	zap(map, first, last);
	atomic_dec(&map->zaps);
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

	atomic_inc(&map->zaps);
	down_write(&map->pool->sem);
	mutex_lock(&map->attach_mutex);
	detach(map, index, &last);
	/* Without memory the next access meets no extent, and tries again. */
	extent_add(map, &r);
	mutex_unlock(&map->attach_mutex);
	up_write(&map->pool->sem);
	zap(map, index, last);
	atomic_dec(&map->zaps);
}

/**
 * dedupfs_map_changed_elsewhere - a file is changed through another pool
 * @pool:	pool whose map, if any, must not be carried over that, and has
 *		nothing mapped any more once it has happened
 * @lower:	lower inode
 *
 * Context: may sleep; may be a fault (that is not mapping).
 */
void dedupfs_map_changed_elsewhere(struct dedupfs_pool *pool, struct inode *lower)
{
	struct dedupfs_map *map;

	down_read(&pool->sem);
	map = map_find(pool, lower);
	if (map) {
		refcount_inc(&map->ref);
		spin_lock(&map->lock);
		WRITE_ONCE(map->foreign, true);
		spin_unlock(&map->lock);
	}
	up_read(&pool->sem);
	if (!map)
		return;
	dedupfs_drop_if_stale(map);
	dedupfs_map_put(map);
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
	while ((ext = extent_at_or_after(map, pos)) && ext->index <= last) {
		end = ext->index + ext->nr;
		to = min(end - 1, last);
		if (ext->reason != DEDUPFS_POOLED)
			detach(map, max(ext->index, first), &to);
		if (end > last)
			break;
		pos = end;
	}
	up_write(&map->pool->sem);
}

/* A map that is no longer valid: nothing it says may be used again. */
static void kill(struct dedupfs_map *map, struct zap_list *list)
{
	spin_lock(&map->lock);
	WRITE_ONCE(map->baseline, DEDUPFS_UNARMED);
	spin_unlock(&map->lock);
	dedupfs_count(map->pool, DEDUPFS_STALE, 1);
	atomic_inc(&map->dropping);
	/* Seen by whoever sees that there are no extents any more. */
	smp_mb__after_atomic();
	if (!detach_later(list, map, 0, ULONG_MAX))
		atomic_dec(&map->dropping);
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
	struct zap_list zaps;

	if (READ_ONCE(map->nr_extents)) {
		if (dedupfs_only_ours(map) && !dedupfs_foreign_mapping(map))
			return;
		zaps.nr = 0;
		down_write(&map->pool->sem);
		if (!dedupfs_map_valid(map))
			kill(map, &zaps);
		up_write(&map->pool->sem);
		zap_all(&zaps);
	}
	/* Who dropped them before us may not be through; as in kill(). */
	smp_rmb();
	if (atomic_read(&map->dropping))
		zap(map, 0, ULONG_MAX);
}

/**
 * dedupfs_covered - does an attached extent cover a block?
 * @pool:	pool
 * @block:	physical block, in pages
 * @next:	first block after @block for which the answer may differ
 *
 * Context: pool->sem held.
 */
bool dedupfs_covered(struct dedupfs_pool *pool, u64 block, u64 *next)
{
	struct dedupfs_extent *ext = attached_iter_first(&pool->attached, block, U64_MAX);

	if (!ext) {
		*next = U64_MAX;
		return false;
	}
	if (ext->block > block) {
		*next = ext->block;
		return false;
	}
	*next = block_last(ext) + 1;
	return true;
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

	for (ext = attached_iter_first(&pool->attached, block, block); ext;
	     ext = attached_iter_next(ext, block, block)) {
		mapping = ext->map->lower->i_mapping;
		if (mapping_mapped(mapping))
			unmap_mapping_pages(mapping, ext->index + (block - ext->block), 1, false);
	}
}

/* Life and death of maps */

/* pool->sem held for writing.  The caller puts @map. */
static void map_remove(struct dedupfs_map *map)
{
	struct dedupfs_pool *pool = map->pool;
	pgoff_t last = ULONG_MAX;

	/* No upper inode, so no mapping. */
	detach(map, 0, &last);
	rhashtable_remove_fast(&pool->maps, &map->node, map_params);
	list_del(&map->list);
}

static bool map_has_pages(struct dedupfs_map *map)
{
	struct dedupfs_extent *ext;
	struct rb_node *node;

	for (node = rb_first(&map->extents); node; node = rb_next(node)) {
		ext = rb_entry(node, struct dedupfs_extent, file_node);
		if (ext->reason == DEDUPFS_POOLED &&
		    dedupfs_pool_any(map->pool, ext->block, ext->nr))
			return true;
	}
	return false;
}

#define REAP_INTERVAL	(5 * HZ)

/**
 * dedupfs_map_leave - an upper inode is evicted
 * @di:		upper inode
 *
 * The map stays while pages of it are in the pool, so that hot pages do not
 * die with a dentry; it goes at once if the lower file was unlinked.
 *
 * Context: may sleep; may be in reclaim without __GFP_FS.
 */
void dedupfs_map_leave(struct dedupfs_inode *di)
{
	struct dedupfs_map *map = di->map;
	struct dedupfs_pool *pool;
	bool put = false;

	if (!map)
		return;
	pool = map->pool;
	di->map = NULL;
	down_write(&pool->sem);
	if (!--map->users) {
		/* The next upper inode starts without a history. */
		WRITE_ONCE(map->tracked, false);
		put = !map->lower->i_nlink || !dedupfs_map_valid(map) || !map_has_pages(map);
		if (put)
			map_remove(map);
		else
			queue_delayed_work(system_unbound_wq, &pool->reaper, REAP_INTERVAL);
	}
	up_write(&pool->sem);
	if (put)
		dedupfs_map_put(map);
}

#define REAP_BATCH	32

/*
 * Was the file's btrfs subvolume deleted?  Its link count does not say so, and
 * btrfs keeps all of a subvolume on disk while an inode of it is held.  A name
 * that is known below says no; else the file handle tells.
 */
static bool subvolume_is_gone(struct inode *lower)
{
	const struct export_operations *ops = lower->i_sb->s_export_op;
	struct dentry *dentry;
	__u32 raw[16];
	int type, len = ARRAY_SIZE(raw);

	if (!hlist_empty(&lower->i_dentry))
		return false;
	type = ops->encode_fh(lower, raw, &len, NULL);
	if (type == FILEID_INVALID)
		return false;
	dentry = ops->fh_to_dentry(lower->i_sb, (struct fid *)raw, len, type);
	if (IS_ERR(dentry))
		return dentry == ERR_PTR(-ENOENT) || dentry == ERR_PTR(-ESTALE);
	dput(dentry);
	return false;
}

/* Look at some of the next @todo maps.  Return: true if there are more. */
static bool reap_some(struct dedupfs_pool *pool, bool all, unsigned int *todo, bool *left)
{
	bool subvolumes = pool->lower_sb->s_magic == BTRFS_SUPER_MAGIC;
	struct dedupfs_map *dead[REAP_BATCH], *ask[REAP_BATCH], *map;
	unsigned int n = 0, asked = 0, looked = 0, i;

	down_write(&pool->sem);
	for (; *todo && n < REAP_BATCH && asked < REAP_BATCH && looked++ < 16 * REAP_BATCH;
	     --*todo) {
		map = list_first_entry_or_null(&pool->map_list, struct dedupfs_map, list);
		if (!map) {
			*todo = 0;
			break;
		}
		list_move_tail(&map->list, &pool->map_list);
		if (map->users)
			continue;
		if (!all && map->lower->i_nlink && !map->gone && dedupfs_map_valid(map) &&
		    map_has_pages(map)) {
			*left = true;
			if (subvolumes && hlist_empty(&map->lower->i_dentry)) {
				refcount_inc(&map->ref);
				ask[asked++] = map;
			}
			continue;
		}
		map_remove(map);
		dead[n++] = map;
	}
	up_write(&pool->sem);
	for (i = 0; i < n; i++)
		dedupfs_map_put(dead[i]);
	for (i = 0; i < asked; i++) {
		/* The next time that the reaper comes. */
		map = ask[i];
		map->gone = subvolume_is_gone(map->lower);
		dedupfs_map_put(map);
	}
	return *todo;
}

/**
 * dedupfs_maps_reap - let go of maps that no upper inode has any more
 * @pool:	pool
 *
 * Of unlinked or changed lower files, of those in deleted subvolumes, and of
 * those without a page in the pool.
 *
 * Context: work; may sleep.
 */
void dedupfs_maps_reap(struct dedupfs_pool *pool)
{
	unsigned int todo = atomic_read(&pool->maps.nelems);
	bool left = false;

	while (reap_some(pool, false, &todo, &left))
		cond_resched();
	if (left)
		queue_delayed_work(system_unbound_wq, &pool->reaper, REAP_INTERVAL);
}

/** dedupfs_maps_destroy - the last mount is gone: free all maps and pages */
void dedupfs_maps_destroy(struct dedupfs_pool *pool)
{
	unsigned int todo = atomic_read(&pool->maps.nelems);
	bool left;

	while (reap_some(pool, true, &todo, &left))
		cond_resched();
	WARN_ON_ONCE(!list_empty(&pool->map_list));
	rhashtable_destroy(&pool->maps);
}

/* Baseline */

/* Does FIEMAP still give an attached range of a file the same blocks? */
static bool still_maps(struct inode *lower, const struct dedupfs_range *r,
		       struct dedupfs_phys *phys)
{
	const u32 never = FIEMAP_EXTENT_DELALLOC | FIEMAP_EXTENT_DATA_INLINE |
			  FIEMAP_EXTENT_ENCODED | FIEMAP_EXTENT_UNWRITTEN |
			  FIEMAP_EXTENT_UNKNOWN;
	pgoff_t pos = r->index, end = r->index + r->nr;
	const struct dedupfs_phys *p;
	bool whole;
	int n, i;

	n = dedupfs_fiemap(lower, (u64)pos << PAGE_SHIFT, (u64)r->nr << PAGE_SHIFT,
			   0, phys, DEDUPFS_RESOLVE_EXTENTS, &whole);
	for (i = 0; i < n && pos < end; i++) {
		p = &phys[i];
		if (p->logical > (u64)pos << PAGE_SHIFT || (p->flags & never) ||
		    p->physical - p->logical != (r->block - r->index) << PAGE_SHIFT)
			return false;
		pos = (p->logical + p->length) >> PAGE_SHIFT;
	}
	return pos >= end;
}

/**
 * dedupfs_lower_dirty - is anything of the file newer in memory than on disk?
 * @lower:	lower inode
 */
bool dedupfs_lower_dirty(struct inode *lower)
{
	return mapping_tagged(lower->i_mapping, PAGECACHE_TAG_DIRTY) ||
	       mapping_tagged(lower->i_mapping, PAGECACHE_TAG_WRITEBACK);
}

/**
 * dedupfs_lower_failed - did write-back of the file ever fail?
 * @lower:	lower inode
 *
 * Its page cache may then hold clean pages that are not what its blocks hold,
 * and the file shows those pages: nothing new is pooled, until the lower inode
 * goes, and its pages with it.
 */
bool dedupfs_lower_failed(struct inode *lower)
{
	/*
	 * The error is set before write-back ends: one who found the pages
	 * clean, and then no error, has pages that are true.
	 */
	smp_rmb();
	return READ_ONCE(lower->i_mapping->wb_err);
}

/** dedupfs_foreign_mapping - is the lower file mapped for writing, and not through us? */
bool dedupfs_foreign_mapping(struct dedupfs_map *map)
{
	struct address_space *mapping = map->lower->i_mapping;
	struct vm_area_struct *vma;
	struct rb_node *node;
	bool foreign = false;

	if (!mapping_writably_mapped(mapping))
		return false;
	i_mmap_lock_read(mapping);
	for (node = rb_first_cached(&mapping->i_mmap); node && !foreign; node = rb_next(node)) {
		vma = rb_entry(node, struct vm_area_struct, shared.rb);
		if ((vma->vm_flags & (VM_SHARED | VM_MAYWRITE)) == (VM_SHARED | VM_MAYWRITE))
			foreign = !dedupfs_is_our_vma(vma) ||
				  dedupfs_pool(file_inode(vma->vm_file)) != map->pool;
	}
	i_mmap_unlock_read(mapping);
	return foreign;
}

/*
 * Is the lower file overwritten in place, whatever FIEMAP says of sharing?  Or
 * is what it shows not what its blocks hold (fs-verity: not before the page
 * has been verified)?
 */
static bool in_place(struct inode *lower)
{
	struct fileattr fa = {};
	struct dentry *dentry;
	int err;

	if (IS_DAX(lower) || IS_SWAPFILE(lower) || IS_VERITY(lower) ||
	    !lower->i_op->fileattr_get)
		return true;
	dentry = d_find_any_alias(lower);
	if (!dentry)
		return true;
	err = lower->i_op->fileattr_get(dentry, &fa);
	dput(dentry);
	return err || (fa.flags & FS_NOCOW_FL) || (fa.fsx_xflags & FS_XFLAG_REALTIME);
}

/*
 * Pages from @index on, at most @nr, up to the first one that is dirty or
 * under write-back.  Only a tracked file has such pages and is resolved.
 */
static pgoff_t clean_pages(struct inode *lower, pgoff_t index, pgoff_t nr)
{
	static const xa_mark_t marks[] = { PAGECACHE_TAG_DIRTY, PAGECACHE_TAG_WRITEBACK };
	unsigned long at;
	struct folio *folio;
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(marks); i++) {
		at = index;
		rcu_read_lock();
		/* A large folio may begin before the index at which it is found. */
		folio = xa_find(&lower->i_mapping->i_pages, &at, index + nr - 1, marks[i]);
		rcu_read_unlock();
		if (folio)
			nr = at > index ? at - index : 0;
		if (!nr)
			break;
	}
	return nr;
}

/* Rule 3, under the lower i_rwsem.  Return: 0 and the armed counter, or a reason. */
static int sample(struct dedupfs_map *map, bool dirty_is_ours, u64 *counter)
{
	struct inode *lower = map->lower;

	/* First: who moves it before this shows in one of the others. */
	*counter = inode_query_iversion(lower);
	if (atomic_read(&lower->i_dio_count) || dedupfs_foreign_mapping(map))
		return DEDUPFS_UNSTABLE;
	if (atomic_read(&map->changing))
		return DEDUPFS_CHANGING;
	if (!dirty_is_ours && dedupfs_lower_dirty(lower))
		return DEDUPFS_DIRTY;
	return 0;
}

/* The first attached range from a page on.  Return: false if there is none. */
static bool next_attached(struct dedupfs_map *map, pgoff_t index, struct dedupfs_range *r)
{
	struct dedupfs_extent *ext;
	struct rb_node *node;
	bool found = false;

	down_read(&map->pool->sem);
	ext = extent_at_or_after(map, index);
	for (node = ext ? &ext->file_node : NULL; node && !found; node = rb_next(node)) {
		ext = rb_entry(node, struct dedupfs_extent, file_node);
		found = ext->reason == DEDUPFS_POOLED;
	}
	if (found) {
		r->index = max(ext->index, index);
		r->nr = ext->index + ext->nr - r->index;
		r->block = ext->block + (r->index - ext->index);
		r->reason = DEDUPFS_POOLED;
	}
	up_read(&map->pool->sem);
	return found;
}

#define CARRY_EXTENTS	256

/*
 * The counter moved, and only operations of ours moved it: what they changed
 * was detached, so the rest of the map is true at the new counter as well, if
 * FIEMAP agrees.  Return: true if the baseline was carried over.
 */
static bool carry_over(struct dedupfs_map *map, u64 counter)
{
	int change_seq = atomic_read(&map->change_seq), n = 0;
	struct dedupfs_range r = {};
	struct dedupfs_phys *phys;
	pgoff_t pos = 0, clean;
	bool ok = false;

	phys = kvmalloc_array(DEDUPFS_RESOLVE_EXTENTS, sizeof(*phys), GFP_KERNEL);
	if (!phys)
		return false;
	for (; next_attached(map, pos, &r); pos = r.index + r.nr) {
		if (n++ == CARRY_EXTENTS)
			goto out;
		/* What we made dirty was detached: this somebody did who raised no event. */
		clean = clean_pages(map->lower, r.index, r.nr);
		r.nr = clean ?: max(dedupfs_dirty_run(map->lower, r.index, r.nr), 1UL);
		if (!clean || !still_maps(map->lower, &r, phys))
			dedupfs_detach(map, r.index, r.index + r.nr - 1);
	}
	if (!dedupfs_only_ours(map))
		goto out;
	mutex_lock(&map->attach_mutex);
	spin_lock(&map->lock);
	ok = !atomic_read(&map->changing) && atomic_read(&map->change_seq) == change_seq &&
	     dedupfs_counter(map->lower) == counter && !map->foreign;
	if (ok)
		WRITE_ONCE(map->baseline, counter);
	spin_unlock(&map->lock);
	mutex_unlock(&map->attach_mutex);
	if (ok)
		dedupfs_count(map->pool, DEDUPFS_CARRIED, 1);
out:
	kvfree(phys);
	return ok;
}

#define BASELINE_TRIES	5

/*
 * Make the map's baseline valid: all extents that it has then are true.
 * Return: 0, a reason why the file is unstable now, or -EINTR.
 */
static int baseline(struct dedupfs_map *map)
{
	struct inode *lower = map->lower;
	pgoff_t last = ULONG_MAX;
	bool carry = false, attached;
	int reason = DEDUPFS_UNSTABLE, try;
	u64 counter;

	if (dedupfs_map_valid(map))
		return 0;
	/* Cheap and lockless, before anything is waited for. */
	if (!READ_ONCE(map->tracked) && dedupfs_lower_dirty(lower))
		return DEDUPFS_DIRTY;

	/* Our own fills hold the lower i_rwsem: they are waited for. */
	if (down_write_killable(&map->fill_sem))
		return -EINTR;
	if (dedupfs_map_valid(map)) {
		reason = 0;
		goto out;
	}
	for (try = 0; try < BASELINE_TRIES; try++) {
		if (inode_trylock(lower)) {
			carry = dedupfs_only_ours(map) && !dedupfs_foreign_mapping(map);
			reason = sample(map, carry, &counter);
			inode_unlock(lower);
			break;
		}
		usleep_range(20, 100);
	}
	if (reason)
		goto out;
	if (carry && carry_over(map, counter))
		goto out;

	/* It becomes valid when nothing old is mapped any more. */
	atomic_inc(&map->zaps);
	atomic_inc(&map->dropping);
	/* As in kill(). */
	smp_mb__after_atomic();
	down_write(&map->pool->sem);
	spin_lock(&map->lock);
	WRITE_ONCE(map->baseline, DEDUPFS_UNARMED);
	spin_unlock(&map->lock);
	attached = detach(map, 0, &last);
	up_write(&map->pool->sem);
	if (attached)
		dedupfs_count(map->pool, DEDUPFS_STALE, 1);
	/* Or somebody else has dropped it all, and is not through. */
	if (attached || atomic_read(&map->dropping) > 1)
		zap(map, 0, ULONG_MAX);
	spin_lock(&map->lock);
	WRITE_ONCE(map->baseline, counter);
	WRITE_ONCE(map->tracked, false);
	map->settled = false;
	spin_unlock(&map->lock);
	atomic_dec(&map->dropping);
	atomic_dec(&map->zaps);
	/* A carried file can be dirty; one that starts anew must not be. */
	if (carry && dedupfs_lower_dirty(lower)) {
		WRITE_ONCE(map->baseline, DEDUPFS_UNARMED);
		reason = DEDUPFS_DIRTY;
	}
out:
	up_write(&map->fill_sem);
	return reason;
}

/* Resolve */

struct window {
	struct inode *inode;
	struct dedupfs_inode *di;
	struct dedupfs_map *map;
	struct dedupfs_pool *pool;
	pgoff_t index;		/* what is resolved: a file page, and pages */
	pgoff_t nr;
	pgoff_t filled;		/* pages at its beginning that the fill went through */
	u64 baseline;
	int change_seq;
	bool in_place;
	bool last_try;
	bool joined;
	unsigned int nr_ranges;
	unsigned int nr_again;
	unsigned int nr_witnesses;
	struct zap_list zaps;
	struct witness {
		struct dedupfs_map *map;
		struct dedupfs_range r;
	} witness[16];
	struct dedupfs_phys phys[DEDUPFS_RESOLVE_EXTENTS];
	/* An extent adds a hole before it and a cut page after it at most. */
	struct dedupfs_range ranges[3 * DEDUPFS_RESOLVE_EXTENTS + 1];
	struct dedupfs_range again[3 * DEDUPFS_RESOLVE_EXTENTS + 1];
};

/* The pool keeps one that nobody uses: they are large, and cleared when new. */
static struct window *window_new(struct inode *inode)
{
	struct dedupfs_pool *pool = dedupfs_pool(inode);
	struct window *w = xchg(&pool->scratch, NULL);

	if (!w)
		w = kvmalloc(sizeof(*w), GFP_KERNEL);
	if (!w)
		return NULL;
	w->inode = inode;
	w->di = DEDUPFS_I(inode);
	w->map = dedupfs_map_of(w->di);
	w->pool = pool;
	w->in_place = false;
	w->last_try = false;
	w->joined = false;
	w->filled = 0;
	w->nr_witnesses = 0;
	w->zaps.nr = 0;
	return w;
}

static void window_free(struct window *w)
{
	kvfree(xchg(&w->pool->scratch, w));
}

/* Why an extent cannot be pooled, or DEDUPFS_POOLED. */
static int classify(const struct window *w, const struct dedupfs_phys *p)
{
	if (p->flags & FIEMAP_EXTENT_DELALLOC)
		return DEDUPFS_DELALLOC;
	if (p->flags & FIEMAP_EXTENT_DATA_INLINE)
		return DEDUPFS_INLINE;
	if (p->flags & (FIEMAP_EXTENT_ENCODED | FIEMAP_EXTENT_DATA_ENCRYPTED))
		return DEDUPFS_ENCODED;
	if (p->flags & FIEMAP_EXTENT_UNWRITTEN)
		return DEDUPFS_UNWRITTEN;
	if (p->flags & (FIEMAP_EXTENT_UNKNOWN | FIEMAP_EXTENT_NOT_ALIGNED |
			FIEMAP_EXTENT_DATA_TAIL))
		return DEDUPFS_UNALIGNED;
	if (w->in_place)
		return DEDUPFS_NOCOW;
	if (w->pool->needs_shared_flag && !(p->flags & FIEMAP_EXTENT_SHARED))
		return DEDUPFS_PLAIN;
	if ((p->logical | p->physical) & ~PAGE_MASK)
		return DEDUPFS_UNALIGNED;
	return DEDUPFS_POOLED;
}

static void push_range(struct dedupfs_range *r, unsigned int *n, pgoff_t index, pgoff_t end,
		       u64 block, int reason)
{
	struct dedupfs_range *prev = *n ? &r[*n - 1] : NULL;

	if (index >= end)
		return;
	if (prev && prev->reason == reason &&
	    (reason != DEDUPFS_POOLED || prev->block + prev->nr == block)) {
		prev->nr += end - index;
		return;
	}
	r[(*n)++] = (struct dedupfs_range){
		.index = index, .nr = end - index, .reason = reason,
		.block = reason == DEDUPFS_POOLED ? block : 0,
	};
}

/*
 * FIEMAP [w->index, +nr) and turn it into ranges without gaps, in pages.
 * Where there are too many extents, the window ends earlier.
 * Return: the number of ranges, or -errno.
 */
static int resolve(struct window *w, pgoff_t nr, u32 flags, struct dedupfs_range *r, pgoff_t *got)
{
	pgoff_t pos = w->index, end = w->index + nr, first, last;
	const struct dedupfs_phys *p;
	unsigned int n = 0;
	bool whole;
	int k, i;
	int reason;

	k = dedupfs_fiemap(w->di->lower, (u64)w->index << PAGE_SHIFT, (u64)nr << PAGE_SHIFT,
			   flags, w->phys, DEDUPFS_RESOLVE_EXTENTS, &whole);
	if (k < 0)
		return k;
	for (i = 0; i < k && pos < end; i++) {
		p = &w->phys[i];
		reason = classify(w, p);
		if (reason == DEDUPFS_POOLED) {
			/* A page cut by the end of the extent cannot be shared. */
			first = p->logical >> PAGE_SHIFT;
			last = (p->logical + p->length) >> PAGE_SHIFT;
		} else {
			first = p->logical >> PAGE_SHIFT;
			last = DIV_ROUND_UP_ULL(p->logical + p->length, PAGE_SIZE);
		}
		first = max(first, pos);
		last = min(last, end);
		push_range(r, &n, pos, min(first, end), 0, DEDUPFS_HOLE);
		push_range(r, &n, first, last,
			   (p->physical >> PAGE_SHIFT) + (first - (p->logical >> PAGE_SHIFT)),
			   reason);
		pos = max(pos, last);
		last = min(DIV_ROUND_UP_ULL(p->logical + p->length, PAGE_SIZE), end);
		push_range(r, &n, pos, last, 0, DEDUPFS_UNALIGNED);
		pos = max(pos, last);
	}
	if (whole) {
		push_range(r, &n, pos, end, 0, DEDUPFS_HOLE);
		pos = end;
	}
	*got = pos - w->index;
	return n;
}

/* Join */

static void put_witnesses(struct window *w)
{
	while (w->nr_witnesses)
		dedupfs_map_put(w->witness[--w->nr_witnesses].map);
}

/*
 * The next part of a range, from @pos on, that the file is not attached to
 * already.  Where it is, and its counter did not move, it is its own witness.
 * Return: false at the end.
 */
static bool next_new_part(const struct window *w, const struct dedupfs_range *r, pgoff_t *pos,
			  struct dedupfs_range *part)
{
	pgoff_t end = r->index + r->nr;
	struct dedupfs_range now;

	while (*pos < end && dedupfs_map_lookup(w->map, *pos, &now) &&
	       now.reason == DEDUPFS_POOLED && now.block == r->block + (*pos - r->index))
		*pos += now.nr;
	if (*pos >= end)
		return false;
	*part = *r;
	part->index = *pos;
	part->block += *pos - r->index;
	part->nr = end - *pos;
	for (; *pos < end; *pos += now.nr) {
		struct dedupfs_extent *ext = extent_at_or_after(w->map, *pos);

		/* Unknown, or of another kind: part of the answer. */
		if (!ext || ext->index >= end) {
			*pos = end;
			break;
		}
		*pos = max(*pos, ext->index);
		if (ext->reason == DEDUPFS_POOLED &&
		    ext->block - ext->index == r->block - r->index)
			break;
		now.nr = ext->index + ext->nr - *pos;
	}
	*pos = min(*pos, end);
	part->nr = *pos - part->index;
	return true;
}

/* Choose extents of other files that together cover a range's present pages. */
static void choose_witnesses(struct window *w, const struct dedupfs_range *r)
{
	u64 block = r->block, end = r->block + r->nr, from;
	struct dedupfs_extent *ext, *best;
	struct witness *x;

	while (block < end && w->nr_witnesses < ARRAY_SIZE(w->witness)) {
		best = NULL;
		for (ext = attached_iter_first(&w->pool->attached, block, end - 1); ext;
		     ext = attached_iter_next(ext, block, end - 1)) {
			if (ext->map == w->map || !dedupfs_map_valid(ext->map))
				continue;
			if (best && ext->block > block && ext->block >= best->block)
				continue;
			if (!best || block_last(ext) > block_last(best))
				best = ext;
		}
		if (!best)
			return;
		from = max(block, best->block);
		x = &w->witness[w->nr_witnesses++];
		refcount_inc(&best->map->ref);
		x->map = best->map;
		x->r.index = best->index + (from - best->block);
		x->r.block = from;
		x->r.nr = min(end, block_last(best) + 1) - from;
		x->r.reason = DEDUPFS_POOLED;
		block = from + x->r.nr;
	}
}

/* Does the witness's file still map the blocks?  (Rule 6, on btrfs.) */
static bool witness_holds(struct window *w, struct witness *x)
{
	return still_maps(x->map->lower, &x->r, w->phys) && dedupfs_map_valid(x->map);
}

/* Prove what is in the pool for the window's blocks, through other files. */
static void find_witnesses(struct window *w)
{
	struct dedupfs_range part;
	unsigned int i, kept = 0;
	pgoff_t pos;

	down_read(&w->pool->sem);
	for (i = 0; i < w->nr_ranges; i++) {
		if (w->ranges[i].reason != DEDUPFS_POOLED)
			continue;
		pos = w->ranges[i].index;
		while (next_new_part(w, &w->ranges[i], &pos, &part))
			if (dedupfs_pool_any(w->pool, part.block, part.nr))
				choose_witnesses(w, &part);
	}
	up_read(&w->pool->sem);

	for (i = 0; i < w->nr_witnesses; i++) {
		if (witness_holds(w, &w->witness[i])) {
			w->witness[kept++] = w->witness[i];
			continue;
		}
		dedupfs_count(w->pool, DEDUPFS_JOINS_REFUSED, 1);
		dedupfs_map_put(w->witness[i].map);
	}
	w->nr_witnesses = kept;
}

/* Is @ext among the proven witnesses for all of [block, last]? */
static bool proven(const struct window *w, struct dedupfs_extent *ext, u64 block, u64 last)
{
	const struct witness *x;
	unsigned int i;

	if (!dedupfs_map_valid(ext->map))
		return false;
	if (w->pool->counter_tells_mapping)
		return true;
	for (i = 0; i < w->nr_witnesses; i++) {
		x = &w->witness[i];
		if (x->map == ext->map && x->r.block <= block &&
		    x->r.block + x->r.nr > last &&
		    x->r.block - x->r.index == ext->block - ext->index)
			return true;
	}
	return false;
}

/*
 * Detach the other files' extents from [block, last] unless they are proven.
 * Return: 0, or -ENOSPC when there was no room to note what must be zapped.
 */
static int detach_unproven(struct window *w, u64 block, u64 last)
{
	struct dedupfs_extent *ext, *next;
	struct dedupfs_map *map;
	pgoff_t first;
	u64 from, to;
	/* Not known yet.  They are not while they are being filled by who calls. */
	int published = -1;

	for (ext = attached_iter_first(&w->pool->attached, block, last); ext; ext = next) {
		next = attached_iter_next(ext, block, last);
		from = max(block, ext->block);
		to = min(last, block_last(ext));
		map = ext->map;
		if (map == w->map || proven(w, ext, from, to))
			continue;
		if (zap_list_full(&w->zaps))
			return -ENOSPC;
		if (published < 0)
			published = dedupfs_pool_any(w->pool, block, last - block + 1);
		first = ext->index + (from - ext->block);
		if (!dedupfs_map_valid(map))
			kill(map, &w->zaps);
		else if (published)
			detach_later(&w->zaps, map, first, first + (to - from));
		else
			detach_unpublished(&w->zaps, map, first, first + (to - from));
		/* The tree changed under the walk. */
		next = attached_iter_first(&w->pool->attached, block, last);
		while (next && (next->map == w->map ||
				proven(w, next, max(block, next->block),
				       min(last, block_last(next)))))
			next = attached_iter_next(next, block, last);
	}
	return 0;
}

/* The window ends before @end, and so does @part, which is of its ranges. */
static void clip_window(struct window *w, struct dedupfs_range *part, pgoff_t end)
{
	struct dedupfs_range *r;

	w->nr = end - w->index;
	part->nr = end - part->index;
	while (w->nr_ranges) {
		r = &w->ranges[w->nr_ranges - 1];
		if (r->index < end) {
			r->nr = min(r->nr, end - r->index);
			break;
		}
		w->nr_ranges--;
	}
}

/*
 * Runs of published pages in a range that no proven witness covers.  Beyond
 * what was asked for there are always some while others read the same blocks:
 * the window ends there, and what comes then is resolved when it is wanted.
 */
static int drop_unproven(struct window *w, struct dedupfs_range *r)
{
	u64 block = r->block, end = r->block + r->nr;
	unsigned int i;
	pgoff_t page;
	int err;

	if (w->pool->counter_tells_mapping)
		return detach_unproven(w, block, end - 1);
	while (block < end) {
		const struct witness *x = NULL;
		u64 next = end;

		for (i = 0; i < w->nr_witnesses; i++) {
			u64 xend = w->witness[i].r.block + w->witness[i].r.nr;

			if (!dedupfs_map_valid(w->witness[i].map))
				continue;
			if (w->witness[i].r.block <= block && xend > block)
				x = &w->witness[i];
			else if (w->witness[i].r.block > block)
				next = min(next, w->witness[i].r.block);
		}
		if (x) {
			/* It must be attached to these blocks to this moment. */
			struct dedupfs_range now;
			pgoff_t index = x->r.index + (block - x->r.block);

			next = min(end, x->r.block + x->r.nr);
			if (dedupfs_map_lookup(x->map, index, &now) &&
			    now.reason == DEDUPFS_POOLED && now.block == block) {
				block = min_t(u64, next, block + now.nr);
				continue;
			}
			next = block + 1;
		}
		if (dedupfs_pool_any(w->pool, block, next - block)) {
			page = r->index + (block - r->block);
			if (page > w->index && page >= w->index + w->filled) {
				clip_window(w, r, page);
				return 0;
			}
			/* Filled since the witnesses were chosen: choose again. */
			if (!w->last_try)
				return -EAGAIN;
			err = detach_unproven(w, block, next - 1);
			if (err)
				return err;
		}
		block = next;
	}
	return 0;
}

/* Put a range into the map where nothing is known yet; known parts stay. */
static int insert_range(struct window *w, const struct dedupfs_range *r)
{
	pgoff_t pos = r->index, end = r->index + r->nr;
	struct dedupfs_extent *ext, *prev;
	struct dedupfs_range part;
	struct rb_node *node;

	while (pos < end) {
		ext = extent_at_or_after(w->map, pos);
		if (ext && ext->index <= pos) {
			pos = ext->index + ext->nr;
			continue;
		}
		part = *r;
		part.index = pos;
		part.nr = (ext ? min(ext->index, end) : end) - pos;
		if (r->reason == DEDUPFS_POOLED)
			part.block += pos - r->index;
		node = ext ? rb_prev(&ext->file_node) : rb_last(&w->map->extents);
		prev = node ? rb_entry(node, struct dedupfs_extent, file_node) : NULL;
		if (prev && prev->index + prev->nr == pos && prev->reason == r->reason &&
		    (r->reason != DEDUPFS_POOLED || prev->block + prev->nr == part.block))
			extent_resize(w->map, prev, prev->index, prev->nr + part.nr);
		else if (!extent_add(w->map, &part))
			return -ENOMEM;
		pos += part.nr;
	}
	return 0;
}

/* Does every range say what the map already says where it says something? */
static bool agrees(struct window *w)
{
	struct dedupfs_range now;
	unsigned int i;
	pgoff_t pos, end;

	for (i = 0; i < w->nr_ranges; i++) {
		const struct dedupfs_range *r = &w->ranges[i];

		end = r->index + r->nr;
		for (pos = r->index; pos < end; ) {
			struct dedupfs_extent *ext = extent_at_or_after(w->map, pos);

			if (!ext || ext->index >= end)
				break;
			pos = max(pos, ext->index);
			if (!dedupfs_map_lookup(w->map, pos, &now))
				break;
			if (now.reason != r->reason ||
			    (r->reason == DEDUPFS_POOLED &&
			     now.block != r->block + (pos - r->index)))
				return false;
			pos += now.nr;
		}
	}
	return true;
}

/**
 * dedupfs_dirty_run - how many pages from one on are dirty or under write-back
 * @lower:	lower inode
 * @index:	file page
 * @max:	pages to look at
 */
pgoff_t dedupfs_dirty_run(struct inode *lower, pgoff_t index, pgoff_t max)
{
	struct xarray *pages = &lower->i_mapping->i_pages;
	pgoff_t n;

	for (n = 0; n < max; n++)
		if (!xa_get_mark(pages, index + n, PAGECACHE_TAG_DIRTY) &&
		    !xa_get_mark(pages, index + n, PAGECACHE_TAG_WRITEBACK))
			break;
	return n;
}

/* Is the window as it was when it was sampled?  pool->sem held for writing. */
static bool still_true(struct window *w)
{
	struct inode *lower = w->di->lower;
	bool clean;

	if (atomic_read(&w->map->changing) ||
	    atomic_read(&w->map->change_seq) != w->change_seq)
		return false;
	if (READ_ONCE(w->map->baseline) != w->baseline || !dedupfs_map_valid(w->map))
		return false;
	/* Dirty pages of a tracked file are ours, and elsewhere. */
	if (READ_ONCE(w->map->tracked))
		clean = clean_pages(lower, w->index, w->nr) == w->nr;
	else
		clean = !dedupfs_lower_dirty(lower);
	return clean && !dedupfs_lower_failed(lower);
}

/*
 * Attach the window's ranges and publish what was filled, all or nothing.
 * Invariant, before and after: every extent that covers a published page has
 * that page's content.  Return: 0, -ENOSPC (call again), -EAGAIN (choose
 * witnesses again), -ESTALE, -ENOMEM.
 */
static int attach(struct window *w, struct dedupfs_fill *fill)
{
	unsigned int i, pos = 0, joins = 0;
	struct dedupfs_range part;
	bool there;
	int err = -ESTALE;
	u64 block, nr;
	pgoff_t at;

	down_write(&w->pool->sem);
	mutex_lock(&w->map->attach_mutex);
	if (!still_true(w))
		goto out;
	if (!agrees(w)) {
		/* btrfs moved the mapping in silence: what we knew is void. */
		detach_later(&w->zaps, w->map, w->index, w->index + w->nr - 1);
		err = -EAGAIN;
		goto out;
	}
	for (i = 0; i < w->nr_ranges; i++) {
		if (w->ranges[i].reason != DEDUPFS_POOLED)
			continue;
		for (at = w->ranges[i].index; next_new_part(w, &w->ranges[i], &at, &part); ) {
			there = dedupfs_pool_any(w->pool, part.block, part.nr);
			err = drop_unproven(w, &part);
			if (err)
				goto out;
			if (!there || !part.nr)
				continue;
			if (dedupfs_pool_any(w->pool, part.block, part.nr))
				joins++;
			else
				dedupfs_count(w->pool, DEDUPFS_JOINS_REFUSED, 1);
		}
	}
	if (fill) {
		while (dedupfs_fill_next_range(fill, &block, &nr, &pos)) {
			err = detach_unproven(w, block, block + nr - 1);
			if (err)
				goto out;
		}
	}
	for (i = 0, err = 0; i < w->nr_ranges && !err; i++) {
		err = insert_range(w, &w->ranges[i]);
		if (!err && w->ranges[i].reason == DEDUPFS_POOLED)
			trace_dedupfs_attach(w->di->lower, w->ranges[i].index, w->ranges[i].nr,
					     w->ranges[i].block, fill);
	}
	if (err) {
		detach_later(&w->zaps, w->map, w->index, w->index + w->nr - 1);
		goto out;
	}
	if (fill)
		dedupfs_fill_publish(fill);
	dedupfs_count(w->pool, DEDUPFS_JOINS, joins);
	w->joined = joins;
out:
	mutex_unlock(&w->map->attach_mutex);
	up_write(&w->pool->sem);
	zap_all(&w->zaps);
	return err;
}

/* Nothing of the window could be resolved: remember that while it stays so. */
static void attach_unresolved(struct window *w, pgoff_t nr)
{
	w->nr = nr;
	w->nr_witnesses = 0;
	w->nr_ranges = 0;
	push_range(w->ranges, &w->nr_ranges, w->index, w->index + nr, 0, DEDUPFS_UNRESOLVED);
	while (attach(w, NULL) == -ENOSPC)
		;
}

/* A large folio that two windows share is dropped with the second one. */
#define DROP_BEFORE	DEDUPFS_FILL_MAX

/* Pages of the pool took the place of these in the lower page cache. */
static void drop_lower_copies(struct window *w, pgoff_t index, pgoff_t nr)
{
	struct address_space *mapping = w->di->lower->i_mapping;
	pgoff_t first, end;
	unsigned int i;

	for (i = 0; i < w->nr_ranges && mapping->nrpages; i++) {
		if (w->ranges[i].reason != DEDUPFS_POOLED)
			continue;
		first = max(w->ranges[i].index, index);
		end = min(w->ranges[i].index + w->ranges[i].nr, index + nr);
		if (first >= end ||
		    !filemap_range_has_page(mapping, (loff_t)first << PAGE_SHIFT,
					    ((loff_t)end << PAGE_SHIFT) - 1))
			continue;
		if (mapping_mapped(mapping))
			unmap_mapping_pages(mapping, first, end - first, false);
		invalidate_mapping_pages(mapping, first - min_t(pgoff_t, first, DROP_BEFORE),
					 end - 1);
	}
}

static bool same_ranges(const struct window *w)
{
	unsigned int i = 0, j = 0;
	pgoff_t pos = w->index;

	/* @again looks at a window's beginning only: compare as far as it goes. */
	while (i < w->nr_ranges && j < w->nr_again) {
		const struct dedupfs_range *a = &w->ranges[i], *b = &w->again[j];
		pgoff_t end = min(a->index + a->nr, b->index + b->nr);

		if (a->reason != b->reason)
			return false;
		if (a->reason == DEDUPFS_POOLED &&
		    a->block + (pos - a->index) != b->block + (pos - b->index))
			return false;
		pos = end;
		i += a->index + a->nr == end;
		j += b->index + b->nr == end;
	}
	return true;
}

/**
 * dedupfs_note_change - FIEMAP may be wrong about a range for some time
 * @map:	map
 * @first:	file page
 * @last:	file page, inclusive
 */
void dedupfs_note_change(struct dedupfs_map *map, pgoff_t first, pgoff_t last)
{
	spin_lock(&map->lock);
	if (map->wrote_first == ULONG_MAX)
		map->wrote_last = last;
	map->wrote_first = min(map->wrote_first, first);
	map->wrote_last = max(map->wrote_last, last);
	spin_unlock(&map->lock);
}

/* A synchronous FIEMAP was right about all of the file. */
static void settle(struct window *w)
{
	struct dedupfs_map *map = w->map;

	spin_lock(&map->lock);
	if (map->baseline == w->baseline && !atomic_read(&map->changing) &&
	    atomic_read(&map->change_seq) == w->change_seq) {
		map->settled = true;
		map->wrote_first = ULONG_MAX;
	}
	spin_unlock(&map->lock);
}

/*
 * Where FIEMAP must be synchronous and the file is dirty, that would flush
 * somebody's data: only what was settled, and not changed since, is resolved.
 * Return: false if the window's first page is not.
 */
static bool clip_to_settled(struct window *w)
{
	struct dedupfs_map *map = w->map;
	bool ok;

	spin_lock(&map->lock);
	ok = map->tracked && map->settled;
	if (ok && map->wrote_first != ULONG_MAX && w->index <= map->wrote_last) {
		ok = w->index < map->wrote_first;
		w->nr = min(w->nr, map->wrote_first - w->index);
	}
	spin_unlock(&map->lock);
	return ok;
}

/*
 * Does anybody hold pages of the window whom neither mappings nor the lower
 * filesystem account for?  A direct read into a writable mapping stores into a
 * page that was cleaned meanwhile, and moves no counter.
 */
static bool held_below(struct window *w)
{
	struct address_space *mapping = w->di->lower->i_mapping;
	pgoff_t index = w->index, end = w->index + w->nr;
	struct folio *folio;
	bool held = false;
	int known;

	if (!mapping_writably_mapped(mapping) || !mapping->nrpages)
		return false;
	/* References of mappings are not to be counted. */
	unmap_mapping_pages(mapping, index, end - index, false);
	/* Only what is there: the window of a sparse file has no bounds. */
	for (; index < end && !held && xa_find(&mapping->i_pages, &index, end - 1, XA_PRESENT);
	     index++) {
		cond_resched();
		folio = filemap_get_folio(mapping, index);
		if (IS_ERR(folio))
			continue;
		/* The page cache's, the filesystem's, ours, and on the way to the LRU. */
		known = folio_nr_pages(folio) + folio_test_private(folio) + 1 +
			!folio_test_lru(folio);
		held = folio_maybe_dma_pinned(folio) || folio_ref_count(folio) > known;
		index = folio->index + folio_nr_pages(folio) - 1;
		folio_put(folio);
	}
	return held;
}

/*
 * Where an unmoved counter means an unmoved mapping, a map that has all of the
 * window's first @nr pages attached is as good as a FIEMAP.  (What is not
 * shared can become so without a move: a clone of a clone's source.)
 * Return: the number of ranges, 0 where FIEMAP must be asked.
 */
static int resolve_from_map(struct window *w, pgoff_t nr)
{
	struct dedupfs_range r;
	unsigned int n = 0;
	pgoff_t pos, end = w->index + nr;

	if (!w->pool->counter_tells_mapping || IS_SWAPFILE(w->di->lower) ||
	    IS_VERITY(w->di->lower))
		return 0;
	for (pos = w->index; pos < end; pos = r.index + r.nr) {
		if (n == ARRAY_SIZE(w->ranges) || !dedupfs_map_lookup(w->map, pos, &r) ||
		    r.reason != DEDUPFS_POOLED)
			return 0;
		push_range(w->ranges, &n, pos, min(r.index + r.nr, end), r.block, r.reason);
	}
	return n;
}

/* The first FIEMAP.  Return: 0, a reason or -errno. */
static int resolve_window(struct window *w, pgoff_t nr)
{
	struct dedupfs_pool *pool = w->pool;
	pgoff_t got = nr;
	u32 flags = 0;
	int n;

	n = resolve_from_map(w, nr);
	if (!n) {
		w->in_place = in_place(w->di->lower);
		if (pool->fiemap_sync && !dedupfs_lower_dirty(w->di->lower))
			flags = FIEMAP_FLAG_SYNC;
		else if (pool->fiemap_sync && !clip_to_settled(w))
			return DEDUPFS_DIRTY;
		n = resolve(w, w->nr, flags, w->ranges, &got);
		if (n < 0)
			return n;
		if (!got)
			return DEDUPFS_UNRESOLVED;
	}
	w->nr_ranges = n;
	w->nr = got;
	if (flags)
		settle(w);
	return 0;
}

/*
 * The second one, after the fill.  It waits for i_rwsem: whoever changed the
 * file while pages were copied from the lower page cache has moved the counter
 * by now; and where the counter tells, that wait is all that is needed.
 * Return: 0, -ESTALE if the mapping moved, or -errno.
 */
static int resolve_again(struct window *w)
{
	pgoff_t got;
	int n;

	if (w->pool->counter_tells_mapping)
		return dedupfs_wait_for_writer(w->di->lower);
	n = resolve(w, w->nr, 0, w->again, &got);
	if (n < 0)
		return n;
	w->nr_again = n;
	return got == w->nr && same_ranges(w) ? 0 : -ESTALE;
}

/* Is somebody else filling the window's first page, who will detach us? */
static bool first_is_being_filled(const struct window *w)
{
	return !w->pool->counter_tells_mapping && w->ranges[0].reason == DEDUPFS_POOLED &&
	       dedupfs_pool_state(w->pool, w->ranges[0].block) == DEDUPFS_FILLING;
}

/* Rule 4, and rule 6's bracket: one try.  fill_sem is held (read). */
static int resolve_and_fill(struct window *w, pgoff_t index, pgoff_t nr)
{
	struct dedupfs_fill *fill = NULL;
	int err;

	err = resolve_window(w, nr);
	if (err == DEDUPFS_DIRTY)
		return err;
	if (err)
		goto unresolved;
	nr = min(nr, w->nr);
	/*
	 * A fill that waited for a writer of this file would keep the readers
	 * of others waiting for the blocks that it has claimed.
	 */
	if (!inode_trylock_shared(w->di->lower))
		return DEDUPFS_UNSTABLE;
	inode_unlock_shared(w->di->lower);
	if (!w->pool->counter_tells_mapping)
		find_witnesses(w);
	fill = dedupfs_fill_start(w->inode, w->ranges, w->nr_ranges, index, nr);
	w->filled = fill ? dedupfs_fill_pages(fill) : 0;
	/* Attached now, we would be detached when it is published: join then. */
	if (fill && !w->filled && first_is_being_filled(w)) {
		dedupfs_fill_end(fill);
		return -EBUSY;
	}
	err = fill ? dedupfs_fill_read(fill, w->inode) : -ENOMEM;
	if (err == -EINTR)
		return err;
	if (err) {
		err = -ENOMEM;
		goto unresolved;
	}
	err = resolve_again(w);
	if (err && err != -ESTALE)
		goto unresolved;
	if (!err && held_below(w))
		err = DEDUPFS_UNSTABLE;
	if (!err) {
		do {
			err = attach(w, fill);
		} while (err == -ENOSPC);
	}
	dedupfs_fill_end(fill);
	if (!err)
		drop_lower_copies(w, index, w->joined ? w->nr : nr);
	return err;

unresolved:
	if (fill)
		dedupfs_fill_end(fill);
	if (err == -EINTR || err == -ERESTARTSYS || err == -ENOMEM)
		return err;
	attach_unresolved(w, nr);
	return DEDUPFS_UNRESOLVED;
}

/** dedupfs_unstable_for - no use in trying to resolve for some time, in jiffies */
void dedupfs_unstable_for(struct dedupfs_inode *di, unsigned long time)
{
	struct dedupfs_map *map = dedupfs_map_of(di);

	if (map)
		WRITE_ONCE(map->unstable_until, jiffies + time);
}

#define UNSTABLE_TIME	max(1, HZ / 20)

static int populate_once(struct window *w, pgoff_t index, pgoff_t nr)
{
	struct dedupfs_inode *di = w->di;
	pgoff_t pages = DIV_ROUND_UP(i_size_read(di->lower), PAGE_SIZE);
	unsigned int noio;
	int err;

	if (index >= pages)
		return 0;
	if (dedupfs_lower_failed(di->lower))
		return DEDUPFS_UNRESOLVED;
	nr = min(nr, pages - index);
	w->change_seq = atomic_read(&w->map->change_seq);
	if (atomic_read(&w->map->changing))
		return DEDUPFS_CHANGING;
	err = baseline(w->map);
	if (err > 0)
		dedupfs_unstable_for(di, UNSTABLE_TIME);
	if (err)
		return err;
	if (down_read_killable(&w->map->fill_sem))
		return -EINTR;
	w->baseline = READ_ONCE(w->map->baseline);
	/* Resolve more than is filled: one FIEMAP serves many windows. */
	w->index = index;
	w->nr = min_t(pgoff_t, DEDUPFS_RESOLVE_PAGES, pages - index);
	w->nr = clean_pages(di->lower, index, w->nr);
	/*
	 * A loop device may lie on a file that shares blocks with this one: to
	 * have memory written to it while pages are claimed could wait for us.
	 */
	noio = memalloc_noio_save();
	err = w->nr ? resolve_and_fill(w, index, min(nr, w->nr)) : DEDUPFS_DIRTY;
	memalloc_noio_restore(noio);
	put_witnesses(w);
	up_read(&w->map->fill_sem);
	return err;
}

#define POPULATE_TRIES	3

/**
 * dedupfs_populate - resolve a range of a file and fill the pool for it
 * @inode:	regular upper inode
 * @index:	first file page
 * @nr:		pages, at most DEDUPFS_FILL_MAX
 *
 * Best effort: afterwards the caller looks again, and what is still not in
 * the pool comes from the lower page cache.
 *
 * Context: may sleep; takes the lower i_rwsem (shared): never from a fault.
 * Return: 0; a reason (enum dedupfs_reason) why the file is not stable now;
 * or -EINTR, -ENOMEM.
 */
int dedupfs_populate(struct inode *inode, pgoff_t index, pgoff_t nr)
{
	struct dedupfs_inode *di = DEDUPFS_I(inode);
	struct dedupfs_pool *pool = dedupfs_pool(inode);
	unsigned int waits = 0;
	struct window *w;
	int err = -ENOMEM, try;

	if (!dedupfs_can_prove(pool))
		return DEDUPFS_UNRESOLVED;
	if (!dedupfs_map_get(di))
		return -ENOMEM;
	w = window_new(inode);
	if (!w)
		return -ENOMEM;
	for (try = 0; try < POPULATE_TRIES; try++) {
		w->last_try = try == POPULATE_TRIES - 1;
		err = populate_once(w, index, nr);
		if (err == -EBUSY && waits++ < POPULATE_TRIES) {
			err = dedupfs_wait_for_fill(pool, w->ranges[0].block);
			try--;
			if (!err)
				continue;
			if (err == -EAGAIN)
				err = DEDUPFS_UNSTABLE;
		}
		if (err != -EAGAIN && err != -ESTALE)
			break;
	}
	/* The caller looks again, anyway. */
	if (err == -EBUSY)
		err = 0;
	if (err == -EAGAIN || err == -ESTALE)
		err = DEDUPFS_FOREIGN;
	window_free(w);
	trace_dedupfs_populate(di->lower, index, nr, err);
	dedupfs_shrink_to_limit(pool);
	return err;
}

#define DECIDE_EXTENTS	512

/*
 * Is anything of the file poolable, or is it too fragmented to tell cheaply?
 * The window is then where something is, with its ranges, or has none.
 */
static bool any_poolable(struct window *w, pgoff_t pages)
{
	pgoff_t nr = DEDUPFS_RESOLVE_PAGES, got;
	unsigned int seen = 0;
	int n, i;

	w->nr_ranges = 0;
	for (w->index = 0; w->index < pages; w->index += got) {
		/* Count mode looks at all of the window: widen it with care. */
		nr = min(nr, pages - w->index);
		n = resolve(w, nr, 0, w->ranges, &got);
		if (n < 0 || !got)
			return false;
		for (i = 0; i < n; i++)
			if (w->ranges[i].reason == DEDUPFS_POOLED) {
				w->nr_ranges = n;
				w->nr = got;
				return true;
			}
		seen += n;
		if (seen > DECIDE_EXTENTS)
			return true;
		if (got == nr && n < 8)
			nr *= 4;
	}
	return false;
}

/*
 * Attach what was found, so that the first read need not resolve it again: it
 * is true at the baseline if that is the counter from before the FIEMAP.
 */
static void attach_found(struct window *w, u64 counter)
{
	if (!w->nr_ranges || w->nr > DEDUPFS_RESOLVE_PAGES)
		return;
	w->map = dedupfs_map_get(w->di);
	if (!w->map)
		return;
	w->change_seq = atomic_read(&w->map->change_seq);
	if (atomic_read(&w->map->changing) || baseline(w->map) ||
	    down_read_killable(&w->map->fill_sem))
		return;
	w->baseline = READ_ONCE(w->map->baseline);
	if (w->baseline == counter && !held_below(w))
		while (attach(w, NULL) == -ENOSPC)
			;
	if (w->joined)
		drop_lower_copies(w, w->index, w->nr);
	up_read(&w->map->fill_sem);
}

/*
 * How long a file is taken to be plain while its counter stands: it can become
 * the source of a clone or a dedupe made below, which moves only the other's.
 */
#define PLAIN_TIME	(5 * HZ)

/**
 * dedupfs_decide - is there anything in a file for the pool?
 * @inode:	regular upper inode
 *
 * Remembers the answer until the lower change counter moves; a no for some
 * seconds.
 *
 * Context: may sleep; takes the lower i_rwsem (shared).
 */
void dedupfs_decide(struct inode *inode)
{
	struct dedupfs_inode *di = DEDUPFS_I(inode);
	struct dedupfs_pool *pool = dedupfs_pool(inode);
	struct inode *lower = di->lower;
	loff_t size = i_size_read(lower);
	enum dedupfs_reason reason = DEDUPFS_PLAIN;
	bool plain = dedupfs_is_plain(di), pooled;
	struct window *w;
	u64 counter;

	if (plain && time_before(jiffies, READ_ONCE(di->plain_until)))
		return;
	if (dedupfs_counter(lower) == READ_ONCE(di->shared_at) ||
	    (di->map && di->map->nr_extents) || dedupfs_lower_dirty(lower))
		return;
	counter = inode_query_iversion(lower);
	if (!dedupfs_can_prove(pool))
		reason = DEDUPFS_UNRESOLVED;
	else if (size && in_place(lower))
		reason = DEDUPFS_NOCOW;
	pooled = size && reason == DEDUPFS_PLAIN;
	if (pooled && pool->needs_shared_flag) {
		/* An open waits for no writer who waits for the disk. */
		if (!inode_trylock_shared(lower))
			return;
		inode_unlock_shared(lower);
		w = window_new(inode);
		if (!w)
			return;
		pooled = any_poolable(w, DIV_ROUND_UP(size, PAGE_SIZE));
		if (pooled)
			attach_found(w, counter);
		window_free(w);
	}
	if (pooled) {
		WRITE_ONCE(di->shared_at, counter);
		WRITE_ONCE(di->plain_at, DEDUPFS_UNARMED);
		return;
	}
	/* Who is killed did not learn anything. */
	if (fatal_signal_pending(current))
		return;
	WRITE_ONCE(di->plain_until, jiffies + PLAIN_TIME);
	WRITE_ONCE(di->plain_at, counter);
	if (!plain)
		dedupfs_count(pool, DEDUPFS_NOT_SHARED + reason, size);
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

	/* A few blocks at a time: anybody may read this file in a loop. */
	while (block != U64_MAX) {
		down_read(&pool->sem);
		if (!dedupfs_covered(pool, block, &next)) {
			block = next;
			goto unlock;
		}
		last = block + SAVED_STEP - 1;
		for (ext = attached_iter_first(&pool->attached, block, last); ext;
		     ext = attached_iter_next(ext, block, last))
			xa_for_each_range(&pool->entries, index, entry, max(block, ext->block),
					  min(last, block_last(ext)))
				pages++;
		block = last + 1;
unlock:
		up_read(&pool->sem);
		cond_resched();
	}
	pages -= min_t(u64, pages, atomic_long_read(&pool->nr_pages));
	return pages << PAGE_SHIFT;
}
