// SPDX-License-Identifier: GPL-2.0-only
/*
 * Work: windows are populated for somebody who cannot, or need not, wait for
 * it, and fills are ended whose readers were killed.
 *
 * Nobody may pile up work without end: it is bounded for all, for a mount and,
 * where the disk time of an I/O group may be limited, for that.
 */
#include <linux/file.h>
#include <linux/hash.h>
#include <linux/kthread.h>
#include <linux/pagemap.h>
#include <linux/slab.h>
#include <linux/workqueue.h>
#include "pool.h"

struct fill_work {
	struct work_struct work;
	struct inode *inode;
	pgoff_t index;
	pgoff_t nr;
	struct dedupfs_wait *wait;
	bool below;		/* what is not pooled is wanted, too */
	struct cgroup_subsys_state *io_group;	/* whose disk time it is; held until the end */
};

/*
 * Nobody may pile up work without end.  A group whose disk time may be limited
 * has few works at a time, for each that is throttled keeps a slot, and the
 * blocks that it has claimed, from the others.
 */
#define FILLS_QUEUED_MAX	512
#define FILLS_AHEAD_MAX		256	/* that nobody waits for */
#define FILLS_OF_A_GROUP	32
#define AHEAD_OF_A_GROUP	8
#define GROUP_BITS		6

/* And so has a mount: its disk may not answer. */
#define FILLS_OF_A_MOUNT	256
#define AHEAD_OF_A_MOUNT	128

/* What a fill waits for may be ended by a work, which must not queue behind it. */
static struct workqueue_struct *fill_wq, *end_wq;
static atomic_t fills_queued;
static atomic_t fills_of_group[1 << GROUP_BITS];	/* of those with the same hash */

static bool may_be_limited(const struct cgroup_subsys_state *io_group)
{
	return io_group && io_group->parent;
}

static atomic_t *fills_of(const struct cgroup_subsys_state *io_group)
{
	return &fills_of_group[hash_ptr(io_group, GROUP_BITS)];
}

/* May one more fill be queued for a group, on a mount? */
static bool may_queue(const struct cgroup_subsys_state *io_group, struct dedupfs_sb *sbi,
		      bool ahead)
{
	if (atomic_read(&fills_queued) >= (ahead ? FILLS_AHEAD_MAX : FILLS_QUEUED_MAX) ||
	    atomic_read(&sbi->works) >= (ahead ? AHEAD_OF_A_MOUNT : FILLS_OF_A_MOUNT))
		return false;
	return !may_be_limited(io_group) ||
	       atomic_read(fills_of(io_group)) < (ahead ? AHEAD_OF_A_GROUP : FILLS_OF_A_GROUP);
}

static void put_io_group(struct cgroup_subsys_state *io_group)
{
	if (io_group)
		css_put(io_group);
}

/*
 * A fault waits for these pages: what others are filling of them counts, too.
 * Return: the first page of which nothing is known, or @end.
 */
static pgoff_t wait_for_others(struct inode *inode, pgoff_t index, pgoff_t end)
{
	struct dedupfs_map *map = dedupfs_map_of(DEDUPFS_I(inode));
	struct dedupfs_range r;

	for (; map && index < end; index++) {
		if (!dedupfs_map_lookup(map, index, &r))
			return index;
		if (r.reason != DEDUPFS_POOLED)
			continue;
		if (dedupfs_wait_for_fill(map, r.block))
			break;
		/* Who filled it may have detached us (btrfs). */
		if (!dedupfs_map_lookup(map, index, &r))
			return index;
	}
	return end;
}

#define FILL_WORK_TRIES	3

static void fill_for_waiter(struct fill_work *fw)
{
	pgoff_t index = fw->index, end = index + min_t(pgoff_t, fw->nr, DEDUPFS_STEP);
	loff_t size = i_size_read(dedupfs_lower(fw->inode));
	unsigned int try;

	end = min_t(pgoff_t, end, DIV_ROUND_UP(size, PAGE_SIZE));
	for (try = 0; try < FILL_WORK_TRIES && index < end; try++) {
		if (dedupfs_populate(fw->inode, index, fw->nr, may_be_limited(fw->io_group),
				     NULL))
			break;
		index = wait_for_others(fw->inode, index, end);
	}
}

/*
 * Into the lower page cache: what is known to come from there, and with @all
 * that of which nothing is known.
 */
static void read_ahead_below(struct inode *inode, pgoff_t index, pgoff_t end, bool all)
{
	struct address_space *mapping = dedupfs_lower(inode)->i_mapping;
	struct dedupfs_map *map = dedupfs_map_of(DEDUPFS_I(inode));
	struct dedupfs_range r;
	pgoff_t nr;

	/* (What has no page cache has none of these, and generic_fadvise() looks, too.) */
	if (IS_DAX(mapping->host) || !mapping->a_ops->readahead)
		return;
	end = min_t(pgoff_t, end, DIV_ROUND_UP(i_size_read(dedupfs_lower(inode)), PAGE_SIZE));
	for (; index < end; index += nr) {
		/* The kernel looks at it where the filesystem gives up early. */
		struct file_ra_state ra = {};
		DEFINE_READAHEAD(ractl, NULL, &ra, mapping, index);

		nr = all ? end - index : 1;
		if (map && dedupfs_map_lookup(map, index, &r)) {
			nr = min(end - index, r.nr);
			if (r.reason == DEDUPFS_POOLED || r.reason == DEDUPFS_HOLE)
				continue;
		} else if (!all) {
			continue;
		}
		page_cache_ra_unbounded(&ractl, nr, 0);
	}
}

static void fill_work_fn(struct work_struct *work)
{
	struct fill_work *fw = container_of(work, struct fill_work, work);
	int err;

	kthread_associate_blkcg(fw->io_group);
	if (fw->wait) {
		fill_for_waiter(fw);
		complete_all(&fw->wait->done);
		dedupfs_wait_put(fw->wait);
	} else {
		err = dedupfs_populate(fw->inode, fw->index, fw->nr,
				       may_be_limited(fw->io_group), NULL);
		if (fw->below)
			read_ahead_below(fw->inode, fw->index, fw->index + fw->nr,
					 err == DEDUPFS_DIRTY || err == DEDUPFS_UNRESOLVED);
	}
	kthread_associate_blkcg(NULL);
	if (may_be_limited(fw->io_group))
		atomic_dec(fills_of(fw->io_group));
	put_io_group(fw->io_group);
	dedupfs_work_end(fw->inode);
	kfree(fw);
	atomic_dec(&fills_queued);
}

/**
 * dedupfs_populate_async - have a worker call dedupfs_populate()
 * @inode:	regular upper inode; the caller holds a reference
 * @index:	first file page
 * @nr:		pages
 * @wait:	completed when the worker is through; takes over a reference.
 *		May be NULL
 * @below:	what is not for the pool is to be read into the lower page cache;
 *		where nobody waits
 *
 * Context: may sleep (allocates).
 * Return: false without memory, or with too much work queued; @wait is then
 * still the caller's.
 */
bool dedupfs_populate_async(struct inode *inode, pgoff_t index, pgoff_t nr,
			    struct dedupfs_wait *wait, bool below)
{
	struct cgroup_subsys_state *io_group = dedupfs_io_group_of(current);
	struct fill_work *fw = NULL;

	if (may_queue(io_group, DEDUPFS_SB(inode->i_sb), !wait))
		fw = kmalloc(sizeof(*fw), GFP_NOWAIT | __GFP_NOWARN);
	if (!fw) {
		put_io_group(io_group);
		return false;
	}
	atomic_inc(&fills_queued);
	if (may_be_limited(io_group))
		atomic_inc(fills_of(io_group));
	INIT_WORK(&fw->work, fill_work_fn);
	dedupfs_work_begin(inode);
	fw->inode = inode;
	fw->index = index;
	fw->nr = nr;
	fw->wait = wait;
	fw->below = below;
	fw->io_group = io_group;
	queue_work(fill_wq, &fw->work);
	return true;
}

/**
 * dedupfs_populate_charged - dedupfs_populate() for a reader
 * @inode:	regular upper inode
 * @index:	first file page
 * @nr:		pages
 *
 * A group that may be held back reads below when it has as much under way as
 * it may: what it reads there is charged to it.  (A kernel thread, as of a loop
 * device, does not say for whom it reads.)
 *
 * Context: as of dedupfs_populate().
 * Return: as of dedupfs_populate().
 */
int dedupfs_populate_charged(struct inode *inode, pgoff_t index, pgoff_t nr)
{
	struct cgroup_subsys_state *io_group = dedupfs_io_group_of(current);
	atomic_t *slot = may_be_limited(io_group) ? fills_of(io_group) : NULL;
	int err = DEDUPFS_UNSTABLE;

	if (!slot || atomic_inc_return(slot) <= FILLS_OF_A_GROUP)
		err = dedupfs_populate(inode, index, nr, slot || (current->flags & PF_KTHREAD),
				       slot);
	if (slot)
		atomic_dec(slot);
	put_io_group(io_group);
	return err;
}

/**
 * dedupfs_work_begin - work is queued that needs an inode
 * @inode:	upper inode; held until dedupfs_work_end()
 *
 * umount waits for the work of its own mount, and not for a dead disk of
 * another one.
 */
void dedupfs_work_begin(struct inode *inode)
{
	ihold(inode);
	atomic_inc(&DEDUPFS_SB(inode->i_sb)->works);
}

/* It is done: see dedupfs_work_begin(). */
void dedupfs_work_end(struct inode *inode)
{
	atomic_t *works = &DEDUPFS_SB(inode->i_sb)->works;

	iput(inode);
	/* Nothing but its address is used once umount goes on. */
	if (atomic_dec_and_test(works))
		wake_up_var(works);
}

/**
 * dedupfs_queue_fill - have a worker end a fill
 * @work:	begun with dedupfs_work_begin()
 *
 * Context: any.
 */
void dedupfs_queue_fill(struct work_struct *work)
{
	queue_work(end_wq, work);
}

/* Something to wait on for a worker; NULL without memory. */
struct dedupfs_wait *dedupfs_wait_new(void)
{
	struct dedupfs_wait *wait = kmalloc(sizeof(*wait), GFP_NOWAIT | __GFP_NOWARN);

	if (wait) {
		refcount_set(&wait->ref, 1);
		init_completion(&wait->done);
	}
	return wait;
}

struct dedupfs_wait *dedupfs_wait_get(struct dedupfs_wait *wait)
{
	refcount_inc(&wait->ref);
	return wait;
}

void dedupfs_wait_put(struct dedupfs_wait *wait)
{
	if (refcount_dec_and_test(&wait->ref))
		kfree(wait);
}

/* At module load.  Return: 0 or -ENOMEM. */
int dedupfs_work_init(void)
{
	fill_wq = alloc_workqueue("dedupfs-fill", WQ_UNBOUND | WQ_MEM_RECLAIM,
				  FILLS_QUEUED_MAX);
	end_wq = alloc_workqueue("dedupfs-end", WQ_UNBOUND | WQ_MEM_RECLAIM, 0);
	if (fill_wq && end_wq)
		return 0;
	dedupfs_work_exit();
	return -ENOMEM;
}

/* At module unload: no work is left behind. */
void dedupfs_work_exit(void)
{
	if (fill_wq)
		destroy_workqueue(fill_wq);
	if (end_wq)
		destroy_workqueue(end_wq);
}

/* Wait for the work that holds inodes of a mount (umount). */
void dedupfs_work_flush(struct dedupfs_sb *sbi)
{
	wait_var_event(&sbi->works, !atomic_read(&sbi->works));
	/* Lower files that were closed hold the lower mount. */
	flush_delayed_fput();
}
