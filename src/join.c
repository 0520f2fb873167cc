// SPDX-License-Identifier: GPL-2.0-only
/*
 * Join: attach a file to blocks that others share.
 *
 * What makes sharing safe: an extent is attached, and a page is published,
 * only while every extent that covers the page's block is known to have that
 * page's content.  On XFS a counter that did not move proves it; on btrfs the
 * mapping moves without the counter (balance, defragment), so there an extent
 * is a witness only after it was FIEMAPped again, and whoever publishes a page
 * detaches all other extents of its block (they join again).
 *
 * Locks: map->fill_sem -> pool->sem -> map->attach_mutex -> map->lock.
 */
#include "extent.h"
#include "trace.h"

/* Let go of those that were found. */
void dedupfs_put_witnesses(struct dedupfs_window *w)
{
	while (w->nr_witnesses)
		dedupfs_map_put(w->witness[--w->nr_witnesses].map);
}

/*
 * The next part of a range, from @pos on, that the file is not attached to
 * already.  Where it is, and its counter did not move, it is its own witness.
 * Return: false at the end.
 */
static bool next_new_part(const struct dedupfs_window *w, const struct dedupfs_range *r,
			  pgoff_t *pos, struct dedupfs_range *part)
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
		struct dedupfs_extent *ext = dedupfs_extent_at_or_after(w->map, *pos);

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

static bool witness_stands(const struct dedupfs_witness *x)
{
	return READ_ONCE(x->map->baseline) == x->baseline && dedupfs_map_valid(x->map);
}

/* Choose extents, of whatever file, that together cover a range's present pages. */
static void choose_witnesses(struct dedupfs_window *w, const struct dedupfs_range *r)
{
	u64 block = r->block, end = r->block + r->nr, from;
	struct dedupfs_extent *ext, *best;
	struct dedupfs_witness *x;

	while (block < end && w->nr_witnesses < ARRAY_SIZE(w->witness)) {
		/* A file may have a block more than once. */
		for (x = w->witness; x < w->witness + w->nr_witnesses; x++)
			if (x->r.block <= block && block - x->r.block < x->r.nr)
				break;
		if (x < w->witness + w->nr_witnesses) {
			block = x->r.block + x->r.nr;
			continue;
		}
		best = NULL;
		for (ext = dedupfs_attached_first(w->pool, block, end - 1); ext;
		     ext = dedupfs_attached_next(ext, block, end - 1)) {
			if (!dedupfs_map_valid(ext->map))
				continue;
			if (best && ext->block > block && ext->block >= best->block)
				continue;
			if (!best || dedupfs_block_last(ext) > dedupfs_block_last(best))
				best = ext;
		}
		if (!best)
			return;
		from = max(block, best->block);
		x = &w->witness[w->nr_witnesses++];
		refcount_inc(&best->map->ref);
		x->map = best->map;
		x->baseline = READ_ONCE(best->map->baseline);
		x->r.index = best->index + (from - best->block);
		x->r.block = from;
		x->r.nr = min(end, dedupfs_block_last(best) + 1) - from;
		x->r.reason = DEDUPFS_POOLED;
		block = from + x->r.nr;
	}
}

/* Does the witness's file still map the blocks?  (Rule 6, on btrfs.) */
static bool witness_holds(struct dedupfs_window *w, struct dedupfs_witness *x)
{
	return dedupfs_still_maps(x->map, &x->r, 0, w->phys) == x->r.nr && witness_stands(x);
}

static void forget_witness(const struct dedupfs_witness *x)
{
	if (dedupfs_map_valid(x->map))
		dedupfs_detach(x->map, x->r.index, x->r.index + x->r.nr - 1);
	else
		dedupfs_drop_stale(x->map);
}

/**
 * dedupfs_find_witnesses - prove what is in the pool for a window's blocks
 * @w:		resolved window
 *
 * Through extents that are attached to them, of whatever file, FIEMAPped again
 * (rule 6).  Those that do not hold are detached.
 *
 * Context: may sleep; no pool->sem; takes the lower i_rwsem (shared) of those
 * files, one at a time.
 */
void dedupfs_find_witnesses(struct dedupfs_window *w)
{
	struct dedupfs_range part;
	unsigned int i, kept = 0;
	struct dedupfs_map *busy = NULL;
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
		/* It is another's file, which he may keep locked for as long as he likes. */
		if (w->witness[i].map != busy &&
		    dedupfs_wait_for_writer(w->pool, w->witness[i].map->lower, true))
			busy = w->witness[i].map;
		if (w->witness[i].map != busy && witness_holds(w, &w->witness[i])) {
			w->witness[kept++] = w->witness[i];
			continue;
		}
		dedupfs_count(w->pool, DEDUPFS_JOINS_REFUSED, 1);
		/* It would be chosen again, before others that are right. */
		if (!fatal_signal_pending(current))
			forget_witness(&w->witness[i]);
		dedupfs_map_put(w->witness[i].map);
	}
	w->nr_witnesses = kept;
}

/* Is @ext among the proven witnesses for all of [block, last]? */
static bool proven(const struct dedupfs_window *w, struct dedupfs_extent *ext, u64 block, u64 last)
{
	const struct dedupfs_witness *x;
	unsigned int i;

	if (!dedupfs_map_valid(ext->map))
		return false;
	if (w->pool->counter_tells_mapping)
		return true;
	for (i = 0; i < w->nr_witnesses; i++) {
		x = &w->witness[i];
		if (x->map == ext->map && witness_stands(x) && x->r.block <= block &&
		    x->r.block + x->r.nr > last &&
		    x->r.block - x->r.index == ext->block - ext->index)
			return true;
	}
	return false;
}

/*
 * The first unproven part of what @ext has of [block, last].  The window's own
 * range was just FIEMAPped; other attachments of the same file were not.
 */
static bool unproven_part(const struct dedupfs_window *w, struct dedupfs_extent *ext,
			  u64 block, u64 last, struct dedupfs_range *part)
{
	pgoff_t end;

	part->block = max(block, ext->block);
	part->nr = min(last, dedupfs_block_last(ext)) + 1 - part->block;
	part->index = ext->index + (part->block - ext->block);
	if (proven(w, ext, part->block, part->block + part->nr - 1))
		return false;
	if (ext->map != w->map)
		return true;
	end = w->index + w->nr;
	if (part->index < w->index) {
		part->nr = min(part->nr, w->index - part->index);
		return true;
	}
	if (part->index + part->nr <= end)
		return false;
	if (part->index < end) {
		part->nr -= end - part->index;
		part->index = end;
	}
	return true;
}

/*
 * Detach extents from [block, last] unless they are proven.
 * Return: 0, or -ENOSPC when there was no room to note what must be zapped.
 */
static int detach_unproven(struct dedupfs_window *w, u64 block, u64 last)
{
	struct {
		struct dedupfs_map *map;
		pgoff_t first;
		pgoff_t last;
	} victim[ZAP_LIST_MAX], *v;
	struct dedupfs_extent *ext;
	struct dedupfs_range part;
	unsigned int n, room;
	/* -1: not looked up yet.  What the caller is about to publish does not count. */
	int published = -1;

	do {
		/* As many as there is room for in one walk: the tree changes then. */
		room = ZAP_LIST_MAX - min_t(unsigned int, w->zaps.nr, ZAP_LIST_MAX);
		n = 0;
		for (ext = dedupfs_attached_first(w->pool, block, last); ext;
		     ext = dedupfs_attached_next(ext, block, last)) {
			if (!unproven_part(w, ext, block, last, &part))
				continue;
			if (n == room)
				break;
			v = &victim[n++];
			v->map = ext->map;
			v->first = part.index;
			v->last = part.index + part.nr - 1;
		}
		if (n && published < 0)
			published = dedupfs_pool_any(w->pool, block, last - block + 1);
		for (v = victim; v < victim + n; v++) {
			if (!dedupfs_map_valid(v->map)) {
				/* (More than one may be of the same map.) */
				if (v->map->nr_extents)
					dedupfs_map_kill(v->map, &w->zaps);
			} else if (published) {
				dedupfs_detach_later(&w->zaps, v->map, v->first, v->last);
			} else {
				dedupfs_detach_unpublished(&w->zaps, v->map, v->first, v->last);
			}
		}
	} while (n);
	return ext ? -ENOSPC : 0;
}

/* The window ends before @end, and so does @part, which is of its ranges. */
static void clip_window(struct dedupfs_window *w, struct dedupfs_range *part, pgoff_t end)
{
	struct dedupfs_range *r;

	w->nr = min(w->nr, end - w->index);
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
 * Return: 0, -EAGAIN (choose witnesses again), -ENOSPC (no room in w->zaps).
 */
static int drop_unproven(struct dedupfs_window *w, struct dedupfs_range *r)
{
	u64 block = r->block, end = r->block + r->nr;
	unsigned int i;
	pgoff_t page;
	int err;

	if (w->pool->counter_tells_mapping)
		return detach_unproven(w, block, end - 1);
	while (block < end) {
		const struct dedupfs_witness *x = NULL;
		u64 next = end;

		for (i = 0; i < w->nr_witnesses; i++) {
			u64 xend = w->witness[i].r.block + w->witness[i].r.nr;

			if (!witness_stands(&w->witness[i]))
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
		block = dedupfs_pool_next(w->pool, block, next);
		if (block < next) {
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

/*
 * A page table that maps one page hundreds of times costs next to nothing, and
 * the references to the page must not overflow; and who looks at all that is
 * attached to a block must come to an end.
 */
#define REPEATS_MAX	4
#define ATTACHED_MAX	4096

/*
 * Cut @part where the file's attachments to its blocks become more or fewer, or
 * there is too much to look at.  What has too many already, of this file or of
 * all, is REPEATED.
 */
static void limit_repeats(struct dedupfs_map *map, struct dedupfs_range *part)
{
	u64 first = part->block, last = part->block + part->nr - 1, all_last = last;
	unsigned int n = 0, all = 0, later = 0;
	struct dedupfs_extent *ext;

	/* (Those that begin first come first.) */
	for (ext = dedupfs_attached_first(map->pool, first, last); ext && all < ATTACHED_MAX;
	     ext = dedupfs_attached_next(ext, first, last)) {
		if (ext->block <= first) {
			all++;
			all_last = min(all_last, dedupfs_block_last(ext));
		} else if (ext->map == map || ++later > ATTACHED_MAX) {
			last = min(last, ext->block - 1);
			break;
		}
		if (ext->map == map) {
			last = min(last, dedupfs_block_last(ext));
			n++;
		}
	}
	if (all == ATTACHED_MAX)
		last = min(last, all_last);
	part->nr = last - first + 1;
	if (n >= REPEATS_MAX || all == ATTACHED_MAX) {
		part->reason = DEDUPFS_REPEATED;
		part->block = 0;
	}
}

/* Put a range into the map where nothing is known yet; known parts stay. */
static int insert_range(struct dedupfs_window *w, const struct dedupfs_range *r)
{
	pgoff_t pos = r->index, end = r->index + r->nr, known, last;
	struct dedupfs_extent *ext, *prev;
	struct dedupfs_range part;
	struct rb_node *node;

	lockdep_assert_held_write(&w->pool->sem);
	for (; pos < end; cond_resched()) {
		ext = dedupfs_extent_at_or_after(w->map, pos);
		if (ext && ext->index <= pos) {
			known = min(end, ext->index + ext->nr);
			if (ext->reason == DEDUPFS_REPEATED && r->reason == DEDUPFS_POOLED) {
				/* Its pages may be in the fill, and need somebody who has them. */
				last = known - 1;
				dedupfs_detach_extents(w->map, pos, &last);
				continue;
			}
			pos = known;
			continue;
		}
		part = *r;
		part.index = pos;
		part.nr = (ext ? min(ext->index, end) : end) - pos;
		if (r->reason == DEDUPFS_POOLED) {
			part.block += pos - r->index;
			limit_repeats(w->map, &part);
		}
		node = ext ? rb_prev(&ext->file_node) : rb_last(&w->map->extents);
		prev = node ? rb_entry(node, struct dedupfs_extent, file_node) : NULL;
		if (prev && prev->index + prev->nr == pos && prev->reason == part.reason &&
		    (part.reason != DEDUPFS_POOLED || prev->block + prev->nr == part.block))
			dedupfs_extent_resize(w->map, prev, prev->index, prev->nr + part.nr);
		else if (ext && ext->index == pos + part.nr && ext->reason == part.reason &&
			 (part.reason != DEDUPFS_POOLED || part.block + part.nr == ext->block))
			dedupfs_extent_resize(w->map, ext, pos, part.nr + ext->nr);
		else if (!dedupfs_extent_add(w->map, &part))
			return -ENOMEM;
		pos += part.nr;
	}
	return 0;
}

/* Does every range say what the map already says where it says something? */
static bool agrees(struct dedupfs_window *w)
{
	struct dedupfs_range now;
	unsigned int i;
	pgoff_t pos, end;

	for (i = 0; i < w->nr_ranges; i++) {
		const struct dedupfs_range *r = &w->ranges[i];

		end = r->index + r->nr;
		for (pos = r->index; pos < end; ) {
			struct dedupfs_extent *ext = dedupfs_extent_at_or_after(w->map, pos);

			if (!ext || ext->index >= end)
				break;
			pos = max(pos, ext->index);
			if (!dedupfs_map_lookup(w->map, pos, &now))
				break;
			/* (A REPEATED one says nothing of where it is.) */
			if ((now.reason != r->reason ||
			     (r->reason == DEDUPFS_POOLED &&
			      now.block != r->block + (pos - r->index))) &&
			    (now.reason != DEDUPFS_REPEATED || r->reason != DEDUPFS_POOLED))
				return false;
			pos += now.nr;
		}
	}
	return true;
}

/* Is the window as it was when it was sampled? */
static bool still_true(struct dedupfs_window *w)
{
	struct inode *lower = w->di->lower;
	bool clean;

	lockdep_assert_held_write(&w->pool->sem);
	if (!dedupfs_unchanged_since(w->map, w->change_seq))
		return false;
	if (READ_ONCE(w->map->baseline) != w->baseline || !dedupfs_map_valid(w->map))
		return false;
	/* Dirty pages of a tracked file are ours, and elsewhere. */
	if (READ_ONCE(w->map->tracked))
		clean = dedupfs_clean_pages(lower, w->index, w->nr) == w->nr;
	else
		clean = !dedupfs_lower_dirty(lower);
	return clean && !dedupfs_lower_failed(lower);
}

/* Rule 1: is all that the fill publishes covered? */
static bool all_covered(struct dedupfs_pool *pool, struct dedupfs_fill *fill)
{
	u64 block, nr, next;
	unsigned int pos = 0;

	while (dedupfs_fill_next_range(fill, &block, &nr, &pos)) {
		for (; nr; nr -= min(nr, next - block), block = next)
			if (!dedupfs_covered(pool, block, &next))
				return false;
	}
	return true;
}

/* What is plain now is read below for some time without another look. */
static void note_plain(const struct dedupfs_window *w)
{
	unsigned int i;

	for (i = 0; i < w->nr_ranges; i++)
		if (w->ranges[i].reason == DEDUPFS_PLAIN) {
			WRITE_ONCE(w->map->plain_until, jiffies + DEDUPFS_PLAIN_TIME);
			return;
		}
}

/* Rule 6, for pages that are there already.  Return: as of drop_unproven(). */
static int prove_published(struct dedupfs_window *w, unsigned int *joins)
{
	struct dedupfs_range part;
	unsigned int i;
	pgoff_t at;
	bool there;
	int err;

	for (i = 0; i < w->nr_ranges; i++) {
		if (w->ranges[i].reason != DEDUPFS_POOLED)
			continue;
		at = w->ranges[i].index;
		/* (The window may come to end before this range.) */
		while (i < w->nr_ranges && next_new_part(w, &w->ranges[i], &at, &part)) {
			there = dedupfs_pool_any(w->pool, part.block, part.nr);
			err = drop_unproven(w, &part);
			if (err)
				return err;
			if (!there || !part.nr)
				continue;
			if (dedupfs_pool_any(w->pool, part.block, part.nr))
				++*joins;
			else
				dedupfs_count(w->pool, DEDUPFS_JOINS_REFUSED, 1);
		}
	}
	return 0;
}

/* And for those that are about to be: who is attached to their blocks. */
static int prove_attached(struct dedupfs_window *w, struct dedupfs_fill *fill)
{
	unsigned int pos = 0;
	u64 block, nr;
	int err = 0;

	while (!err && dedupfs_fill_next_range(fill, &block, &nr, &pos))
		err = detach_unproven(w, block, block + nr - 1);
	return err;
}

static int insert_ranges(struct dedupfs_window *w, struct dedupfs_fill *fill)
{
	unsigned int i;
	int err;

	for (i = 0; i < w->nr_ranges; i++) {
		err = insert_range(w, &w->ranges[i]);
		if (err)
			return err;
		if (w->ranges[i].reason == DEDUPFS_POOLED)
			trace_dedupfs_attach(w->di->lower, w->ranges[i].index, w->ranges[i].nr,
					     w->ranges[i].block, fill);
	}
	return fill && WARN_ON_ONCE(!all_covered(w->pool, fill)) ? -ESTALE : 0;
}

/* What was found to be moved, or is attached by halves, is void. */
static void detach_window(struct dedupfs_window *w)
{
	dedupfs_detach_later(&w->zaps, w->map, w->index, w->index + w->nr - 1);
}

/* pool->sem and map->attach_mutex are held.  Return: as of dedupfs_attach(), or -ENOSPC. */
static int attach_locked(struct dedupfs_window *w, struct dedupfs_fill *fill)
{
	unsigned int joins = 0;
	int err;

	if (!still_true(w))
		return -ESTALE;
	if (!agrees(w)) {
		/* btrfs moved the mapping in silence. */
		detach_window(w);
		return -EAGAIN;
	}
	err = prove_published(w, &joins);
	if (!err && fill)
		err = prove_attached(w, fill);
	if (err)
		return err;
	err = insert_ranges(w, fill);
	if (err) {
		detach_window(w);
		return err;
	}
	if (fill)
		dedupfs_fill_publish(fill);
	dedupfs_count(w->pool, DEDUPFS_JOINS, joins);
	w->joined = joins;
	note_plain(w);
	return 0;
}

/**
 * dedupfs_attach - attach a window's ranges and publish what was filled
 * @w:		window, resolved (again, after a fill)
 * @fill:	what was read for it, or NULL
 *
 * All or nothing.  Invariant, before and after: every extent that covers a
 * published page has that page's content.
 *
 * Context: may sleep; map->fill_sem held (read).
 * Return: 0, -EAGAIN (choose witnesses again), -ESTALE, -ENOMEM, or -EINTR if
 * the caller was killed.
 */
int dedupfs_attach(struct dedupfs_window *w, struct dedupfs_fill *fill)
{
	int err;

	lockdep_assert_held(&w->map->fill_sem);
	do {
		down_write(&w->pool->sem);
		mutex_lock(&w->map->attach_mutex);
		err = attach_locked(w, fill);
		mutex_unlock(&w->map->attach_mutex);
		up_write(&w->pool->sem);
		dedupfs_zap_all(&w->zaps);
		/* There was no room to note more that is to be zapped: now there is. */
	} while (err == -ENOSPC && !fatal_signal_pending(current));
	return err == -ENOSPC ? -EINTR : err;
}
