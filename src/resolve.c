// SPDX-License-Identifier: GPL-2.0-only
/*
 * Resolve: from file pages to physical blocks, and a fill for them.
 *
 * FIEMAP tells the blocks, synchronously where it must (rule 4); the fill is
 * read; then it is asked again, and what both times agreed on is attached
 * (join.c).  Files with nothing to share are told apart at open.
 *
 * Locks: map->fill_sem -> pool->sem -> map->lock (include/dedupfs.h).
 */
#include <linux/fiemap.h>
#include <linux/mm.h>
#include <linux/pagemap.h>
#include <linux/sched/mm.h>
#include <linux/sched/signal.h>
#include "extent.h"
#include "trace.h"

#define UNSTABLE_TIME	max(1, HZ / 20)
/* Who has a lease is asked to give it up, and takes his time. */
#define LEASED_TIME	HZ

/*
 * Before the window is looked at: what changes from here on is noticed in the
 * end.  Return: false if an operation of ours is changing the file now.
 */
static bool sample_changes(struct dedupfs_window *w)
{
	w->change_seq = atomic_read(&w->map->change_seq);
	/* Pairs with dedupfs_change_end(): one that is over there is in the sample. */
	smp_rmb();
	return !atomic_read(&w->map->changing);
}

/*
 * Windows are large, and the kernel may clear what it allocates (init_on_alloc):
 * the pool keeps a spare one.
 */
static struct dedupfs_window *window_new(struct inode *inode)
{
	struct dedupfs_pool *pool = dedupfs_pool(inode);
	struct dedupfs_window *w = xchg(&pool->scratch, NULL);

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

static void window_free(struct dedupfs_window *w)
{
	kvfree(xchg(&w->pool->scratch, w));
}

/* Why an extent cannot be pooled, or DEDUPFS_POOLED. */
static int classify(const struct dedupfs_window *w, const struct dedupfs_phys *p)
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
static int resolve(struct dedupfs_window *w, pgoff_t nr, u32 flags, struct dedupfs_range *r,
		   pgoff_t *got)
{
	pgoff_t pos = w->index, end = w->index + nr, first, last;
	const struct dedupfs_phys *p;
	unsigned int n = 0;
	bool whole;
	int k, i;
	int reason;

	k = dedupfs_fiemap(w->pool, w->di->lower, (u64)w->index << PAGE_SHIFT,
			   (u64)nr << PAGE_SHIFT, flags, w->phys, DEDUPFS_RESOLVE_EXTENTS, &whole);
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

/* Nothing of the window could be resolved: remember that while it stays so. */
static void attach_unresolved(struct dedupfs_window *w, pgoff_t nr)
{
	w->nr = nr;
	dedupfs_put_witnesses(w);
	w->nr_ranges = 0;
	push_range(w->ranges, &w->nr_ranges, w->index, w->index + nr, 0, DEDUPFS_UNRESOLVED);
	dedupfs_attach(w, NULL);
}

/* A large folio that two windows share is dropped with the second one. */
#define DROP_BEFORE	DEDUPFS_FILL_MAX

/* Pages of the pool took the place of these in the lower page cache. */
static void drop_lower_copies(struct dedupfs_window *w, pgoff_t index, pgoff_t nr)
{
	struct address_space *mapping = w->di->lower->i_mapping;
	struct dedupfs_range r;
	pgoff_t pos, end;

	/* (Where a block is REPEATED the lower page cache goes on to serve it.) */
	for (pos = index; pos < index + nr && mapping->nrpages; pos = end) {
		if (!dedupfs_map_lookup(w->map, pos, &r))
			break;
		end = min(pos + r.nr, index + nr);
		if (r.reason != DEDUPFS_POOLED ||
		    !filemap_range_has_page(mapping, (loff_t)pos << PAGE_SHIFT,
					    ((loff_t)end << PAGE_SHIFT) - 1))
			continue;
		if (mapping_mapped(mapping))
			unmap_mapping_pages(mapping, pos, end - pos, false);
		invalidate_mapping_pages(mapping, pos - min_t(pgoff_t, pos, DROP_BEFORE), end - 1);
	}
}

static bool same_ranges(const struct dedupfs_window *w)
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
static void settle(struct dedupfs_window *w)
{
	struct dedupfs_map *map = w->map;

	spin_lock(&map->lock);
	if (map->baseline == w->baseline && dedupfs_unchanged_since(map, w->change_seq)) {
		map->settled = true;
		/* A direct read may still store into a page that was cleaned meanwhile. */
		if (!mapping_writably_mapped(map->lower->i_mapping))
			map->wrote_first = ULONG_MAX;
	}
	spin_unlock(&map->lock);
}

/*
 * Where FIEMAP must be synchronous and the file is dirty, that would flush
 * somebody's data: only what was settled, and not changed since, is resolved.
 * Return: false if the window's first page is not.
 */
static bool clip_to_settled(struct dedupfs_window *w)
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
 * Are there references to pages of the window besides the page cache's and the
 * filesystem's?  Unmaps the range, to tell.  (A direct read into a writable
 * mapping stores into a page cleaned meanwhile, and moves no counter.)
 */
static bool held_below(struct dedupfs_window *w)
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

/* btrfs allocates for as much at a time, and has the first page of it locked. */
#define WRITE_BACK_PAGES	(SZ_128M >> PAGE_SHIFT)

/*
 * May pages of the window be clean because their write-back failed?  btrfs
 * (6.1 and 6.12) cleans them all, and notes the error later, before it unlocks
 * the page that it began with: what they hold is on no disk, and FIEMAP tells
 * the old blocks.  After a no, the error has been noted.
 */
static bool write_back_is_failing(const struct dedupfs_window *w)
{
	struct address_space *mapping = w->di->lower->i_mapping;
	XA_STATE(xas, &mapping->i_pages,
		 w->index - min_t(pgoff_t, w->index, WRITE_BACK_PAGES));
	unsigned long index = w->index, last = index + w->nr - 1;
	struct folio *folio;
	bool locked = false;

	/* What was never dirty, or of which there is nothing here, is as on the disk. */
	if (!w->pool->cleans_failed || !READ_ONCE(w->di->lower->dirtied_when) ||
	    !xa_find(&mapping->i_pages, &index, last, XA_PRESENT))
		return false;
	rcu_read_lock();
	xas_for_each(&xas, folio, last) {
		if (xas_retry(&xas, folio) || xa_is_value(folio))
			continue;
		locked = folio_test_locked(folio);
		if (locked)
			break;
	}
	rcu_read_unlock();
	/* Pairs with the unlocking: still_true() sees what was noted before. */
	smp_rmb();
	return locked;
}

/*
 * Where an unmoved counter means an unmoved mapping, a map that has all of the
 * window's first @nr pages attached is as good as a FIEMAP.  (What is not
 * shared can become so without a move: a clone of a clone's source.)
 * Return: the number of ranges, 0 where FIEMAP must be asked.
 */
static int resolve_from_map(struct dedupfs_window *w, pgoff_t nr)
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
static int resolve_window(struct dedupfs_window *w, pgoff_t nr)
{
	struct dedupfs_pool *pool = w->pool;
	pgoff_t got = nr;
	u32 flags = 0;
	int n;

	n = resolve_from_map(w, nr);
	if (!n) {
		w->in_place = dedupfs_in_place(w->di->lower);
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
static int resolve_again(struct dedupfs_window *w)
{
	pgoff_t got;
	int n;

	if (w->pool->counter_tells_mapping)
		return dedupfs_wait_for_writer(w->pool, w->di->lower, false);
	n = resolve(w, w->nr, 0, w->again, &got);
	if (n < 0)
		return n;
	w->nr_again = n;
	return got == w->nr && same_ranges(w) ? 0 : -ESTALE;
}

/* Is somebody else filling the window's first page, who will detach us? */
static bool first_is_being_filled(const struct dedupfs_window *w)
{
	return !w->pool->counter_tells_mapping && w->ranges[0].reason == DEDUPFS_POOLED &&
	       dedupfs_pool_state(w->pool, w->ranges[0].block) == DEDUPFS_FILLING;
}

/*
 * Can pages of the window change, or have changed, without a sign?  (Whoever
 * holds none now has to ask page_mkwrite for it, and is seen to change.)
 */
static bool is_quiet(struct dedupfs_window *w)
{
	if (held_below(w))
		return false;
	if (!write_back_is_failing(w))
		return true;
	dedupfs_unstable_for(w->map, UNSTABLE_TIME);
	return false;
}

/* Rule 4, and rule 6's bracket: one try. */
static int resolve_and_fill(struct dedupfs_window *w, pgoff_t index, pgoff_t nr)
{
	struct dedupfs_fill *fill = NULL;
	int err;

	lockdep_assert_held(&w->map->fill_sem);
	err = resolve_window(w, nr);
	if (err == DEDUPFS_DIRTY)
		return err;
	if (err == -EAGAIN)
		return dedupfs_locked_too_long(w->map);
	if (err)
		goto unresolved;
	nr = min(nr, w->nr);
	if (!is_quiet(w))
		return DEDUPFS_UNSTABLE;
	/*
	 * A fill that waited for a writer of this file would keep the readers
	 * of others waiting for the blocks that it has claimed.
	 */
	if (!inode_trylock_shared(w->di->lower))
		return DEDUPFS_UNSTABLE;
	inode_unlock_shared(w->di->lower);
	if (!w->pool->counter_tells_mapping)
		dedupfs_find_witnesses(w);
	fill = dedupfs_fill_start(w->inode, w->ranges, w->nr_ranges, index, nr, w->limited,
				  w->slot);
	w->filled = fill ? dedupfs_fill_pages(fill) : 0;
	/* Attached now, we would be detached when it is published: join then. */
	if (fill && !w->filled && first_is_being_filled(w)) {
		dedupfs_fill_end(fill);
		return -EBUSY;
	}
	err = fill ? dedupfs_fill_read(fill, w->inode) : -ENOMEM;
	if (err == -EINTR)
		return err;
	if (err == -EWOULDBLOCK) {
		dedupfs_fill_end(fill);
		dedupfs_unstable_for(w->map, LEASED_TIME);
		return DEDUPFS_UNSTABLE;
	}
	if (err) {
		err = -ENOMEM;
		goto unresolved;
	}
	err = resolve_again(w);
	if (err == -EAGAIN)
		err = dedupfs_locked_too_long(w->map);
	else if (err && err != -ESTALE)
		goto unresolved;
	if (!err && !is_quiet(w))
		err = DEDUPFS_UNSTABLE;
	if (!err)
		err = dedupfs_attach(w, fill);
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

/* Of a map: they are memory that nobody else takes back.  It begins anew then. */
#define EXTENTS_MAX	65536

static int populate_once(struct dedupfs_window *w, pgoff_t index, pgoff_t nr)
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
	if (!sample_changes(w))
		return DEDUPFS_CHANGING;
	if (READ_ONCE(w->map->nr_extents) > EXTENTS_MAX) {
		dedupfs_forget_unattached(w->map, 0, ULONG_MAX);
		dedupfs_detach(w->map, 0, ULONG_MAX);
	}
	/*
	 * A loop device may lie on a file that shares blocks with this one, or
	 * on this one: to have memory written to it while pages are claimed, or
	 * fill_sem is held, could wait for us.
	 */
	noio = memalloc_noio_save();
	err = dedupfs_baseline(w->map);
	if (err > 0)
		dedupfs_unstable_for(w->map, UNSTABLE_TIME);
	if (!err && down_read_killable(&w->map->fill_sem))
		err = -EINTR;
	if (err)
		goto out;
	w->baseline = READ_ONCE(w->map->baseline);
	/* Resolve more than is filled: one FIEMAP serves many windows. */
	w->index = index;
	w->nr = min_t(pgoff_t, DEDUPFS_RESOLVE_PAGES, pages - index);
	w->nr = dedupfs_clean_pages(di->lower, index, w->nr);
	err = w->nr ? resolve_and_fill(w, index, min(nr, w->nr)) : DEDUPFS_DIRTY;
	dedupfs_put_witnesses(w);
	up_read(&w->map->fill_sem);
out:
	memalloc_noio_restore(noio);
	return err;
}

#define POPULATE_TRIES	3

/**
 * dedupfs_populate - resolve a range of a file and fill the pool for it
 * @inode:	regular upper inode
 * @index:	first file page
 * @nr:		pages, at most DEDUPFS_FILL_MAX
 * @limited:	the reads may be held back by the I/O controller
 * @slot:	the I/O group's count of fills, or NULL; a fill that outlives the
 *		caller is counted until it ends
 *
 * Best effort: afterwards the caller looks again, and what is still not in
 * the pool comes from the lower page cache.
 *
 * Context: may sleep; takes the lower i_rwsem (shared): never from a fault.
 * Return: 0; a reason (enum dedupfs_reason) why the file is not stable now;
 * or -EINTR, -ENOMEM.
 */
int dedupfs_populate(struct inode *inode, pgoff_t index, pgoff_t nr, bool limited,
		     atomic_t *slot)
{
	struct dedupfs_inode *di = DEDUPFS_I(inode);
	struct dedupfs_pool *pool = dedupfs_pool(inode);
	unsigned int waits = 0;
	struct dedupfs_window *w;
	struct dedupfs_map *map;
	int err = -ENOMEM, try;

	if (!dedupfs_can_prove(pool))
		return DEDUPFS_UNRESOLVED;
	map = dedupfs_map_get(di);
	if (!map)
		return -ENOMEM;
	if (dedupfs_far_above_limit(pool)) {
		dedupfs_shrink_to_limit(pool);
		if (dedupfs_far_above_limit(pool)) {
			dedupfs_unstable_for(map, UNSTABLE_TIME);
			return DEDUPFS_UNSTABLE;
		}
	}
	w = window_new(inode);
	if (!w)
		return -ENOMEM;
	w->limited = limited;
	w->slot = slot;
	for (try = 0; try < POPULATE_TRIES; ) {
		w->last_try = try == POPULATE_TRIES - 1;
		err = populate_once(w, index, nr);
		if (err == -EBUSY && waits++ < POPULATE_TRIES) {
			err = dedupfs_wait_for_fill(w->map, w->ranges[0].block);
			if (err == -EAGAIN)
				err = DEDUPFS_UNSTABLE;
			if (err)
				break;
			continue;
		}
		if (err != -EAGAIN && err != -ESTALE)
			break;
		try++;
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

/* FIEMAPs that an open makes: of DEDUPFS_RESOLVE_EXTENTS each. */
#define DECIDE_TRIES	8

/*
 * Is anything of the file poolable, or is it too fragmented to tell cheaply?
 * The window is then where something is, with its ranges, or has none.
 */
static int any_poolable(struct dedupfs_window *w, pgoff_t pages)
{
	pgoff_t nr = DEDUPFS_RESOLVE_PAGES, got;
	unsigned int tries = 0;
	int n, i;

	w->nr_ranges = 0;
	for (w->index = 0; w->index < pages; w->index += got) {
		if (tries++ == DECIDE_TRIES)
			return 1;
		n = resolve(w, min(nr, pages - w->index), 0, w->ranges, &got);
		if (n == -EAGAIN || n == -EINTR)
			return n;
		if (n < 0 || !got)
			return 0;
		for (i = 0; i < n; i++)
			if (w->ranges[i].reason == DEDUPFS_POOLED) {
				w->nr_ranges = n;
				w->nr = got;
				return 1;
			}
		/* It stops by itself where there are too many. */
		nr = pages;
	}
	return 0;
}

/*
 * Attach what was found, so that the first read need not resolve it again: it
 * is true at the baseline if that is the counter from before the FIEMAP.
 */
static void attach_found(struct dedupfs_window *w, u64 counter)
{
	unsigned int noio;

	if (!w->nr_ranges || w->nr > DEDUPFS_RESOLVE_PAGES)
		return;
	w->map = dedupfs_map_get(w->di);
	if (!w->map)
		return;
	if (!sample_changes(w))
		return;
	noio = memalloc_noio_save();
	if (dedupfs_baseline(w->map) ||
	    down_read_killable(&w->map->fill_sem))
		goto out;
	w->baseline = READ_ONCE(w->map->baseline);
	if (w->baseline == counter && !held_below(w))
		dedupfs_attach(w, NULL);
	if (w->joined)
		drop_lower_copies(w, w->index, w->nr);
	up_read(&w->map->fill_sem);
out:
	memalloc_noio_restore(noio);
}

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
	struct dedupfs_window *w;
	struct dedupfs_map *map;
	u64 counter;
	int err;

	if (plain && time_before(jiffies, READ_ONCE(di->plain_until)))
		return;
	map = dedupfs_map_of(di);
	if (dedupfs_counter(lower) == READ_ONCE(di->shared_at) ||
	    (map && READ_ONCE(map->nr_extents)) || dedupfs_lower_dirty(lower))
		return;
	counter = inode_query_iversion(lower);
	if (!dedupfs_can_prove(pool))
		reason = DEDUPFS_UNRESOLVED;
	else if (size && dedupfs_in_place(lower))
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
		err = any_poolable(w, DIV_ROUND_UP(size, PAGE_SIZE));
		pooled = err > 0;
		if (pooled)
			attach_found(w, counter);
		window_free(w);
		/* Who is killed, or did not get the lock, did not learn anything. */
		if (err < 0)
			return;
	}
	if (pooled) {
		WRITE_ONCE(di->shared_at, counter);
		WRITE_ONCE(di->plain_at, DEDUPFS_UNARMED);
		return;
	}
	WRITE_ONCE(di->plain_until, jiffies + DEDUPFS_PLAIN_TIME);
	WRITE_ONCE(di->plain_at, counter);
	if (!plain)
		dedupfs_count(pool, DEDUPFS_NOT_SHARED + reason, size);
}
