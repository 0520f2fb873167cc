// SPDX-License-Identifier: GPL-2.0-only
/*
 * Baseline: the lower change counter at which a map is true.
 *
 * It is armed only while nobody changes the file (rule 3), and compared at
 * every use (rule 5).  Where all that moved the counter was ours, and FIEMAP
 * still agrees, the map is carried over to the new value.
 *
 * Locks: map->fill_sem -> pool->sem -> map->lock (include/dedupfs.h).
 */
#include <linux/delay.h>
#include <linux/fiemap.h>
#include <linux/fileattr.h>
#include <linux/pagemap.h>
#include "extent.h"

/*
 * How long is waited for a lock that others have: by who cannot be killed, or
 * for another's file; and by who would not wait below.
 */
#define LOCK_WAIT	max(1, HZ / 10)
#define LOCK_WAIT_OWN	max(1, HZ / 3)
/* After that, where reads below take no lock, they are made there. */
#define LOCKED_TIME	HZ

/**
 * dedupfs_wait_for_writer - whoever has a lower file locked for a change is through
 * @pool:	its pool
 * @lower:	lower inode
 * @other:	it is not the file that was asked for
 *
 * Waits killably, without a bound, where a read below would take the lock anyway
 * (XFS).  For another file, in a worker, and on btrfs only for a bounded time: a
 * user may keep the lock.
 *
 * Context: may sleep; takes the lower i_rwsem (shared).
 * Return: 0; -EINTR if killed; -EAGAIN if it took too long.
 */
int dedupfs_wait_for_writer(const struct dedupfs_pool *pool, struct inode *lower, bool other)
{
	bool worker = current->flags & PF_KTHREAD;
	unsigned int left = other || worker ? LOCK_WAIT : LOCK_WAIT_OWN;
	int err;

	if (!other && !worker && pool->reads_locked) {
		err = down_read_killable(&lower->i_rwsem);
		if (!err)
			inode_unlock_shared(lower);
		return err;
	}
	while (!inode_trylock_shared(lower)) {
		if (!left--)
			return -EAGAIN;
		schedule_timeout_killable(1);
		if (fatal_signal_pending(current))
			return -EINTR;
	}
	inode_unlock_shared(lower);
	return 0;
}

/**
 * dedupfs_locked_too_long - the lower file of a map was waited for in vain
 * @map:	map
 *
 * Return: the reason (enum dedupfs_reason) why it is not shared.
 */
int dedupfs_locked_too_long(struct dedupfs_map *map)
{
	if (!map->pool->reads_locked)
		dedupfs_unstable_for(map, LOCKED_TIME);
	return DEDUPFS_UNSTABLE;
}

/**
 * dedupfs_still_maps - to how much of a range does FIEMAP give the same blocks as before?
 * @map:	map of the file
 * @r:		attached range of it
 * @flags:	FIEMAP_FLAG_*
 * @phys:	room for DEDUPFS_RESOLVE_EXTENTS
 *
 * Context: may sleep; takes the lower i_rwsem (shared).
 * Return: pages from the beginning of @r on, to the first that has another block,
 * or of which nothing is said: there are more extents than there is room for.
 * -EAGAIN or -EINTR if it was not asked, as of dedupfs_fiemap().
 */
ssize_t dedupfs_still_maps(struct dedupfs_map *map, const struct dedupfs_range *r, u32 flags,
			   struct dedupfs_phys *phys)
{
	const u32 never = FIEMAP_EXTENT_DELALLOC | FIEMAP_EXTENT_DATA_INLINE |
			  FIEMAP_EXTENT_ENCODED | FIEMAP_EXTENT_UNWRITTEN |
			  FIEMAP_EXTENT_UNKNOWN;
	pgoff_t pos = r->index, end = r->index + r->nr;
	const struct dedupfs_phys *p;
	bool whole;
	int n, i;

	n = dedupfs_fiemap(map->pool, map->lower, (u64)pos << PAGE_SHIFT,
			   (u64)r->nr << PAGE_SHIFT, flags, phys, DEDUPFS_RESOLVE_EXTENTS, &whole);
	if (n == -EAGAIN || n == -EINTR)
		return n;
	for (i = 0; i < n && pos < end; i++) {
		p = &phys[i];
		if (p->logical > (u64)pos << PAGE_SHIFT || (p->flags & never) ||
		    p->physical - p->logical != (r->block - r->index) << PAGE_SHIFT)
			break;
		pos = (p->logical + p->length) >> PAGE_SHIFT;
	}
	return min(pos, end) - r->index;
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

/* Is the lower file mapped for writing, and not through us? */
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

/**
 * dedupfs_in_place - is a file overwritten in place, whatever FIEMAP says of sharing?
 * @lower:	lower inode
 *
 * Or is what it shows not what its blocks hold (fs-verity: not before the page
 * has been verified)?
 *
 * Context: may sleep.
 */
bool dedupfs_in_place(struct inode *lower)
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

/**
 * dedupfs_clean_pages - pages up to the first that is dirty or under write-back
 * @lower:	lower inode
 * @index:	file page to begin with
 * @nr:		pages to look at
 *
 * Only a tracked file has such pages and is resolved.
 *
 * Return: how many are clean, at most @nr.
 */
pgoff_t dedupfs_clean_pages(struct inode *lower, pgoff_t index, pgoff_t nr)
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

/* Rule 3.  Return: 0 and the armed counter, or a reason. */
static int sample(struct dedupfs_map *map, bool dirty_is_ours, u64 *counter)
{
	struct inode *lower = map->lower;

	lockdep_assert_held_write(&lower->i_rwsem);
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
	ext = dedupfs_extent_at_or_after(map, index);
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
 * FIEMAP agrees.  Return: 1 if the baseline was carried over; 0; -EAGAIN or
 * -EINTR if FIEMAP could not be asked.
 */
static int carry_over(struct dedupfs_map *map, u64 counter)
{
	int change_seq = atomic_read(&map->change_seq), n = 0;
	struct dedupfs_range r = {};
	struct dedupfs_phys *phys;
	pgoff_t pos = 0, clean;
	ssize_t same;
	u32 flags = 0;
	int ok = 0;

	phys = kvmalloc_array(DEDUPFS_RESOLVE_EXTENTS, sizeof(*phys), GFP_KERNEL);
	if (!phys)
		return 0;
	/* Of a write that raised no event, and is not finished (btrfs), only this tells. */
	if (map->pool->fiemap_sync && !dedupfs_lower_dirty(map->lower))
		flags = FIEMAP_FLAG_SYNC;
	for (; next_attached(map, pos, &r); pos = r.index + r.nr) {
		if (n++ == CARRY_EXTENTS)
			goto out;
		/* What we made dirty was detached: this somebody did who raised no event. */
		clean = dedupfs_clean_pages(map->lower, r.index, r.nr);
		r.nr = clean ?: max(dedupfs_dirty_run(map->lower, r.index, r.nr), 1UL);
		same = clean ? dedupfs_still_maps(map, &r, flags, phys) : 0;
		if (same < 0) {
			ok = same;
			goto out;
		}
		/* What comes after that is asked for next. */
		if (same)
			r.nr = same;
		else
			dedupfs_detach(map, r.index, r.index + r.nr - 1);
		/* It waits for write-back of all of the file: once is enough. */
		if (clean)
			flags = 0;
	}
	if (!dedupfs_only_ours(map))
		goto out;
	mutex_lock(&map->attach_mutex);
	spin_lock(&map->lock);
	ok = dedupfs_unchanged_since(map, change_seq) &&
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

/* Nothing that was known before is true any more; what comes is at @counter. */
static void start_anew(struct dedupfs_map *map, u64 counter)
{
	pgoff_t last = ULONG_MAX;
	bool attached;

	/* It becomes valid when nothing old is mapped any more. */
	dedupfs_zap_begin(map);
	down_write(&map->pool->sem);
	spin_lock(&map->lock);
	WRITE_ONCE(map->baseline, DEDUPFS_UNARMED);
	spin_unlock(&map->lock);
	attached = dedupfs_detach_extents(map, 0, &last);
	up_write(&map->pool->sem);
	if (attached)
		dedupfs_count(map->pool, DEDUPFS_STALE, 1);
	/* Or somebody else has detached something, and is not through. */
	if (attached || atomic_read(&map->zaps) > 1)
		dedupfs_zap(map, 0, ULONG_MAX);
	spin_lock(&map->lock);
	WRITE_ONCE(map->baseline, counter);
	WRITE_ONCE(map->tracked, false);
	map->settled = false;
	spin_unlock(&map->lock);
	dedupfs_zap_end(map);
}

#define BASELINE_TRIES	5

/**
 * dedupfs_baseline - make a map's baseline valid
 * @map:	map
 *
 * All extents that it has then are true.
 *
 * Context: may sleep; no fill_sem.  Tries the lower i_rwsem for a bounded time.
 * Return: 0, a reason why the file is unstable now, or -EINTR.
 */
int dedupfs_baseline(struct dedupfs_map *map)
{
	struct inode *lower = map->lower;
	bool carry = false;
	int reason = DEDUPFS_UNSTABLE, carried, try;
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
	if (carry) {
		carried = carry_over(map, counter);
		/* Whoever gets at the file next may do so. */
		if (carried < 0)
			reason = carried == -EAGAIN ? dedupfs_locked_too_long(map) : carried;
		if (carried)
			goto out;
	}

	start_anew(map, counter);
	/* A carried file can be dirty; one that starts anew must not be. */
	if (carry && dedupfs_lower_dirty(lower)) {
		spin_lock(&map->lock);
		WRITE_ONCE(map->baseline, DEDUPFS_UNARMED);
		spin_unlock(&map->lock);
		reason = DEDUPFS_DIRTY;
	}
out:
	up_write(&map->fill_sem);
	return reason;
}
