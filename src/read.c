// SPDX-License-Identifier: GPL-2.0-only
/*
 * read(2) and its kin.
 *
 * A hit takes no lock and allocates nothing: compare the change counter, find
 * the extent and the pages under RCU, copy.  A miss resolves and fills a
 * window here, in the reader's context, and has a worker fill the next one
 * while this one is read.  What the pool cannot have comes from the lower page
 * cache, through filemap_read(), locked as the lower filesystem does it.
 */
#define pr_fmt(fmt) "dedupfs: " fmt

#include <linux/fadvise.h>
#include <linux/file.h>
#include <linux/hash.h>
#include <linux/kasan.h>
#include <linux/kthread.h>
#include <linux/pagemap.h>
#include <linux/slab.h>
#include <linux/splice.h>
#include <linux/swap.h>
#include <linux/uio.h>
#include <linux/workqueue.h>
#include "pool.h"

/* Work: populate a window for somebody who cannot, or need not, wait for it */

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

static void wait_put(struct dedupfs_wait *wait)
{
	if (refcount_dec_and_test(&wait->ref))
		kfree(wait);
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
	pgoff_t index = fw->index, end = index + min_t(pgoff_t, fw->nr, DEDUPFS_BATCH);
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
		wait_put(fw->wait);
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

/** dedupfs_work_end - it is done; see dedupfs_work_begin() */
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

/** dedupfs_wait_new - something to wait on for a worker; NULL without memory */
struct dedupfs_wait *dedupfs_wait_new(void)
{
	struct dedupfs_wait *wait = kmalloc(sizeof(*wait), GFP_NOWAIT | __GFP_NOWARN);

	if (wait) {
		refcount_set(&wait->ref, 1);
		init_completion(&wait->done);
	}
	return wait;
}

/** dedupfs_wait_get - one more reference */
struct dedupfs_wait *dedupfs_wait_get(struct dedupfs_wait *wait)
{
	refcount_inc(&wait->ref);
	return wait;
}

/** dedupfs_wait_put - drop a reference */
void dedupfs_wait_put(struct dedupfs_wait *wait)
{
	wait_put(wait);
}

/** dedupfs_read_init - at module load.  Return: 0 or -ENOMEM. */
int dedupfs_read_init(void)
{
	fill_wq = alloc_workqueue("dedupfs-fill", WQ_UNBOUND | WQ_MEM_RECLAIM,
				  FILLS_QUEUED_MAX);
	end_wq = alloc_workqueue("dedupfs-end", WQ_UNBOUND | WQ_MEM_RECLAIM, 0);
	if (fill_wq && end_wq)
		return 0;
	dedupfs_read_exit();
	return -ENOMEM;
}

/** dedupfs_read_exit - at module unload: no work is left behind */
void dedupfs_read_exit(void)
{
	if (fill_wq)
		destroy_workqueue(fill_wq);
	if (end_wq)
		destroy_workqueue(end_wq);
}

/** dedupfs_read_flush - wait for the work that holds inodes of a mount (umount) */
void dedupfs_read_flush(struct dedupfs_sb *sbi)
{
	wait_var_event(&sbi->works, !atomic_read(&sbi->works));
	/* Lower files that were closed hold the lower mount. */
	flush_delayed_fput();
}

/* Windows: file->f_ra.start is where a sequential reader comes next */

static unsigned int window_size(struct file *file, pgoff_t index, size_t want)
{
	struct file_ra_state *ra = &file->f_ra;
	unsigned int nr = DEDUPFS_FILL_MIN;

	if (file->f_mode & FMODE_RANDOM)
		nr = 1;
	else if (index && index == ra->start)
		nr = min(ra->size * 2, DEDUPFS_FILL_MAX);
	else if (index < ra->start && index + ra->async_size >= ra->start)
		nr = ra->size;	/* the reader overtook the worker */
	else if (index)
		nr = 4;
	return clamp_t(size_t, want, nr, DEDUPFS_FILL_MAX);
}

/* A sequential reader gets the next window filled while it reads this one. */
static void fill_ahead(struct inode *inode, struct file *file, pgoff_t next)
{
	struct file_ra_state *ra = &file->f_ra;
	unsigned int nr = min(ra->size * 2, DEDUPFS_FILL_MAX);

	if (((loff_t)next << PAGE_SHIFT) >= i_size_read(dedupfs_lower(inode)))
		return;
	if (dedupfs_populate_async(inode, next, nr, NULL, false)) {
		ra->async_size = nr;
		ra->size = nr;
		ra->start = next + nr;
	}
}

/* A miss at @index: resolve and fill.  Return: 0, a reason, or -EINTR. */
static int fill_for_read(struct kiocb *iocb, struct inode *inode, pgoff_t index, size_t bytes)
{
	struct file *file = iocb->ki_filp;
	bool sequential = !(file->f_mode & FMODE_RANDOM) &&
			  (!index || (index <= file->f_ra.start &&
				      index + file->f_ra.async_size >= file->f_ra.start));
	unsigned int nr = window_size(file, index, DIV_ROUND_UP(bytes, PAGE_SIZE) + 1);
	struct cgroup_subsys_state *io_group = dedupfs_io_group_of(current);
	atomic_t *slot = may_be_limited(io_group) ? fills_of(io_group) : NULL;
	int err = DEDUPFS_UNSTABLE;

	/*
	 * A group that is held back reads below when it has as much under way as
	 * it may: what it reads there is charged to it.  (A kernel thread, as of
	 * a loop device, does not say for whom it reads.)
	 */
	if (!slot || atomic_inc_return(slot) <= FILLS_OF_A_GROUP)
		err = dedupfs_populate(inode, index, nr, slot || (current->flags & PF_KTHREAD),
				       slot);
	if (slot)
		atomic_dec(slot);
	put_io_group(io_group);
	if (err)
		return err == -ENOMEM ? DEDUPFS_UNRESOLVED : err;
	file->f_ra.size = nr;
	file->f_ra.start = index + nr;
	if (sequential && index)
		fill_ahead(inode, file, index + nr);
	return 0;
}

#define READ_BATCH	32

/*
 * Copy [@pos, @pos + @bytes) of pages that are in a row.  Pages next to each
 * other in memory, as a fill allocates them, are copied as one.
 * Return: bytes copied.
 */
static size_t copy_pages(struct page **pages, size_t pos, size_t bytes, struct iov_iter *iter)
{
	size_t done = 0, at, part, end, copied;
	unsigned int i, k;

	while (done < bytes) {
		at = pos + done;
		i = at >> PAGE_SHIFT;
		end = (size_t)(i + 1) << PAGE_SHIFT;
		/* (A pipe takes pages, not copies, before 6.5.) */
		if (!IS_ENABLED(CONFIG_HIGHMEM) && user_backed_iter(iter))
			for (k = i; end < pos + bytes &&
			     page_to_pfn(pages[k + 1]) == page_to_pfn(pages[k]) + 1; k++)
				end += PAGE_SIZE;
		part = min(end, pos + bytes) - at;
		if (part <= PAGE_SIZE - offset_in_page(at))
			copied = copy_page_to_iter(pages[i], offset_in_page(at), part, iter);
		else
			copied = copy_to_iter(kasan_reset_tag(page_address(pages[i])) +
					      offset_in_page(at), part, iter);
		done += copied;
		if (copied < part)
			break;
	}
	return done;
}

/*
 * Copy from the pool, at most to the end of the extent.
 * Return: bytes; 0 if the first page is not there; -EFAULT.
 */
static ssize_t read_pool(struct kiocb *iocb, struct iov_iter *iter, struct dedupfs_map *map,
			 const struct dedupfs_range *r, loff_t size)
{
	size_t offset = offset_in_page(iocb->ki_pos), bytes = 0, done = 0;
	struct file *file = iocb->ki_filp;
	struct page *pages[READ_BATCH];
	unsigned int n, i, want, valid;

	want = min_t(u64, DIV_ROUND_UP(offset + iov_iter_count(iter), PAGE_SIZE),
		     min_t(u64, r->nr, READ_BATCH));
	n = dedupfs_pool_find_batch(map->pool, r->block, want, pages);
	if (!n)
		return 0;
	/* The block may have been freed, and filled for another, since we looked. */
	if (dedupfs_still_attached(map, r, pages, n)) {
		for (i = 0; i < n; i++) {
			/* A page that was filled as the end of another file is none of ours. */
			valid = dedupfs_valid_bytes(size, r->index + i);
			if (unlikely(valid != dedupfs_page_valid(pages[i])))
				break;
			bytes += valid;
		}
		bytes = bytes > offset ? min(bytes - offset, iov_iter_count(iter)) : 0;
		done = copy_pages(pages, offset, bytes, iter);
	}
	for (i = 0; i < n; i++) {
		/* A read that goes on in the same page is not a use of its own. */
		if (i || !offset || iocb->ki_pos != file->f_ra.prev_pos)
			dedupfs_page_used(pages[i]);
		put_page(pages[i]);
	}
	if (done)
		file->f_ra.prev_pos = iocb->ki_pos + done;
	dedupfs_count(map->pool, DEDUPFS_HITS, n);
	return done ?: (bytes ? -EFAULT : 0);
}

static int lock_for_read(struct inode *lower, bool nowait)
{
	if (nowait)
		return inode_trylock_shared(lower) ? 0 : -EAGAIN;
	return down_read_killable(&lower->i_rwsem) ? -EINTR : 0;
}

/* Room that is made present at once for a read under a lock, and how often in vain. */
#define FAULT_IN_MAX	(64 * PAGE_SIZE)
#define FAULT_IN_TRIES	64

/*
 * filemap_read(), locked as the lower filesystem does it.  Where that is by
 * i_rwsem, no page fault is served meanwhile: that may need the lock, too, and
 * a writer may be waiting in between.
 */
static ssize_t read_cached(struct kiocb *iocb, struct iov_iter *iter)
{
	struct inode *inode = file_inode(iocb->ki_filp), *lower = dedupfs_lower(inode);
	unsigned int tries = 0;
	size_t room;
	ssize_t ret, done = 0;

	if (!dedupfs_pool(inode)->reads_locked || WARN_ON_ONCE(iocb->ki_flags & IOCB_WAITQ))
		return filemap_read(iocb, iter, 0);
	while (iov_iter_count(iter)) {
		ret = lock_for_read(lower, iocb->ki_flags & IOCB_NOWAIT);
		if (ret)
			return done ?: ret;
		pagefault_disable();
		ret = filemap_read(iocb, iter, 0);
		pagefault_enable();
		inode_unlock_shared(lower);
		if (ret > 0) {
			done += ret;
			tries = 0;
			if (iocb->ki_pos >= i_size_read(lower))
				break;
			continue;
		}
		if (ret != -EFAULT || !user_backed_iter(iter))
			return done ?: ret;
		room = min_t(size_t, iov_iter_count(iter), FAULT_IN_MAX);
		/* (A shadow stack can be made present, and not stored to.) */
		if (fault_in_iov_iter_writeable(iter, room) == room || ++tries == FAULT_IN_TRIES)
			return done ?: -EFAULT;
		if (fatal_signal_pending(current))
			return done ?: -EINTR;
		cond_resched();
	}
	return done;
}

/* Read at most @bytes from the lower page cache. */
static ssize_t read_lower(struct kiocb *iocb, struct iov_iter *iter, size_t bytes,
			  struct dedupfs_pool *pool, int reason)
{
	size_t rest = 0;
	ssize_t ret;

	if (iov_iter_count(iter) > bytes) {
		rest = iov_iter_count(iter) - bytes;
		iov_iter_truncate(iter, bytes);
	}
	ret = read_cached(iocb, iter);
	iov_iter_reexpand(iter, iov_iter_count(iter) + rest);
	/* Who has read what is new finds nothing old in a mapping. */
	if (ret > 0 && !(iocb->ki_flags & IOCB_NOWAIT))
		dedupfs_look_for_changes(DEDUPFS_I(file_inode(iocb->ki_filp)));
	if (ret > 0 && reason >= 0)
		dedupfs_count(pool, DEDUPFS_NOT_SHARED + reason, ret);
	return ret;
}

/* From here to the end of @nr pages, in bytes. */
static size_t bytes_to(loff_t pos, pgoff_t index, pgoff_t nr)
{
	return min_t(u64, ((u64)(index + nr) << PAGE_SHIFT) - pos, MAX_RW_COUNT);
}

/*
 * Where nothing is known of a file, or not at once: what the lower page cache
 * has is right.  But nothing is read into it.
 */
static ssize_t read_without_waiting(struct kiocb *iocb, struct iov_iter *iter,
				    struct dedupfs_map *map)
{
	bool noio = iocb->ki_flags & IOCB_NOIO;
	ssize_t ret;

	/* Who has read what is new finds nothing old in a mapping: that is to wait for. */
	if (map && !dedupfs_map_valid(map) &&
	    (READ_ONCE(map->nr_extents) || atomic_read(&map->zaps)) && !dedupfs_only_ours(map))
		return -EAGAIN;
	iocb->ki_flags |= IOCB_NOIO;
	ret = read_cached(iocb, iter);
	if (!noio)
		iocb->ki_flags &= ~IOCB_NOIO;
	return ret ?: -EAGAIN;
}

/*
 * What a read knows of its earlier steps: [from, until) was populated already,
 * or in vain for @reason; what is missing there comes from below.  @waited:
 * others, who fill it, have been waited for long enough.
 */
struct tried {
	pgoff_t from;
	pgoff_t until;
	int reason;
	bool waited;
};

/* One step of a read: some bytes from one place, or a populate. */
static ssize_t read_step(struct kiocb *iocb, struct iov_iter *iter, struct inode *inode,
			 struct tried *tried)
{
	struct dedupfs_inode *di = DEDUPFS_I(inode);
	struct dedupfs_pool *pool = dedupfs_pool(inode);
	loff_t size, pos = iocb->ki_pos;
	pgoff_t index = pos >> PAGE_SHIFT;
	bool again = index >= tried->from && index < tried->until;
	struct dedupfs_range r;
	struct dedupfs_map *map;
	ssize_t ret;
	int err;

	map = dedupfs_map_of(di);
	size = i_size_read(di->lower);
	if (map && dedupfs_map_valid(map) && dedupfs_map_lookup(map, index, &r)) {
		if (r.reason != DEDUPFS_POOLED)
			return read_lower(iocb, iter, bytes_to(pos, index, r.nr), pool, r.reason);
		ret = read_pool(iocb, iter, map, &r, size);
		if (!ret && !(iocb->ki_flags & IOCB_NOWAIT) && !(again && tried->waited) &&
		    !time_before(jiffies, READ_ONCE(map->unstable_until))) {
			err = dedupfs_wait_for_fill(map, r.block);
			if (err == -EAGAIN) {
				*tried = (struct tried){
					.from = index, .until = index + DEDUPFS_BATCH,
					.reason = DEDUPFS_UNSTABLE, .waited = true,
				};
				return 0;
			}
			if (err)
				return err;
			/* Who filled it may have been before us in a populate. */
			if (again)
				ret = read_pool(iocb, iter, map, &r, size);
		}
		if (ret) {
			if (ret > 0)
				iocb->ki_pos += ret;
			return ret;
		}
	}
	if (iocb->ki_flags & IOCB_NOWAIT)
		return read_without_waiting(iocb, iter, map);
	dedupfs_drop_if_stale(map);
	if (map && time_before(jiffies, READ_ONCE(map->plain_until)) &&
	    dedupfs_map_lookup(map, index, &r) && r.reason == DEDUPFS_PLAIN)
		return read_lower(iocb, iter, bytes_to(pos, index, r.nr), pool, r.reason);
	if (again)
		return read_lower(iocb, iter, bytes_to(pos, index, tried->until - index), pool,
				  tried->reason);
	if (dedupfs_is_plain(di))
		return read_lower(iocb, iter, MAX_RW_COUNT, pool, -1);
	if (dedupfs_lower_dirty(di->lower) && !(map && READ_ONCE(map->tracked)))
		return read_lower(iocb, iter, bytes_to(pos, index, DEDUPFS_BATCH), pool,
				  DEDUPFS_DIRTY);
	if (map && time_before(jiffies, READ_ONCE(map->unstable_until)))
		return read_lower(iocb, iter, bytes_to(pos, index, DEDUPFS_BATCH), pool,
				  DEDUPFS_UNSTABLE);

	err = fill_for_read(iocb, inode, index, iov_iter_count(iter));
	if (err < 0)
		return err;
	tried->from = index;
	tried->until = index + 1;
	tried->waited = false;
	if (err == DEDUPFS_DIRTY && map && READ_ONCE(map->tracked))
		/* Pages of ours that wait for write-back, among shared ones. */
		tried->until = index + max(dedupfs_dirty_run(di->lower, index, DEDUPFS_BATCH), 1UL);
	else if (err)
		tried->until = index + DEDUPFS_BATCH;
	tried->reason = err ?: DEDUPFS_TAIL;
	return 0;
}

/**
 * dedupfs_read_iter - ->read_iter
 * @iocb:	of the upper file
 * @iter:	where to
 *
 * Direct reads pass to the lower file, which keeps its own promises there, and
 * so do those of a DAX file, which has no page cache.
 *
 * Context: process; no page fault is served under a lock.
 * Return: bytes read, or -errno.
 */
ssize_t dedupfs_read_iter(struct kiocb *iocb, struct iov_iter *iter)
{
	struct file *file = iocb->ki_filp;
	struct inode *inode = file_inode(file);
	struct dedupfs_inode *di = DEDUPFS_I(inode);
	struct tried tried = {};
	ssize_t ret = 0, done = 0;
	unsigned int idle = 0;

	if ((iocb->ki_flags & IOCB_DIRECT) || IS_DAX(di->lower))
		return dedupfs_direct_read(iocb, iter);
	if (dedupfs_is_plain(di))
		return read_cached(iocb, iter);

	/* First: an access time moves the counter, and a baseline comes after. */
	file_accessed(file);
	while (iov_iter_count(iter) && iocb->ki_pos < i_size_read(di->lower)) {
		ret = read_step(iocb, iter, inode, &tried);
		if (ret < 0)
			break;
		done += ret;
		/* A populate moves nothing; twice nothing is the end of the file. */
		idle = ret ? 0 : idle + 1;
		if (idle > 2 || fatal_signal_pending(current))
			break;
	}
	return done ?: ret;
}

/** dedupfs_splice_read - ->splice_read, for sendfile(2) and splice(2) */
ssize_t dedupfs_splice_read(struct file *in, loff_t *ppos, struct pipe_inode_info *pipe,
			    size_t len, unsigned int flags)
{
	struct dedupfs_inode *di = DEDUPFS_I(file_inode(in));
	bool lock = dedupfs_pool(&di->vfs_inode)->reads_locked && !SPLICE_CALLS_READ_ITER;
	ssize_t ret;

	if (!dedupfs_is_plain(di) || (in->f_flags & O_DIRECT) || IS_DAX(di->lower))
		return copy_splice_read(in, ppos, pipe, len, flags);
	if (!lock)
		return filemap_splice_read(in, ppos, pipe, len, flags);
	ret = lock_for_read(di->lower, false);
	if (ret)
		return ret;
	ret = filemap_splice_read(in, ppos, pipe, len, flags);
	inode_unlock_shared(di->lower);
	return ret;
}

/* readahead(2), POSIX_FADV_WILLNEED: fill the pool, not the lower page cache. */
static void willneed(struct inode *inode, loff_t offset, loff_t len)
{
	loff_t size = i_size_read(dedupfs_lower(inode));
	pgoff_t index = offset >> PAGE_SHIFT, end;

	if (offset >= size)
		return;
	if (!len || len > size - offset)
		len = size - offset;
	end = DIV_ROUND_UP(offset + len, PAGE_SIZE);
	end = min_t(pgoff_t, end, index + nr_free_buffer_pages() / 4);
	for (; index < end; index += DEDUPFS_FILL_MAX)
		if (!dedupfs_populate_async(inode, index,
					    min_t(pgoff_t, end - index, DEDUPFS_FILL_MAX), NULL,
					    true))
			break;
}

/** dedupfs_fadvise - ->fadvise */
int dedupfs_fadvise(struct file *file, loff_t offset, loff_t len, int advice)
{
	struct inode *inode = file_inode(file);
	struct dedupfs_inode *di = DEDUPFS_I(inode);
	bool plain = dedupfs_is_plain(di);

	if (advice == POSIX_FADV_WILLNEED && S_ISREG(inode->i_mode) && !plain &&
	    !dedupfs_lower_dirty(di->lower)) {
		if (len < 0)
			return -EINVAL;
		if (offset >= 0)
			willneed(inode, offset, len);
		return 0;
	}
	/* f_mapping and f_ra are all that it looks at. */
	return generic_fadvise(file, offset, len, advice);
}
