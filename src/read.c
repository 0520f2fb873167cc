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
#include <linux/fadvise.h>
#include <linux/kasan.h>
#include <linux/pagemap.h>
#include <linux/splice.h>
#include <linux/swap.h>
#include <linux/uio.h>
#include "pool.h"

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
	return min_t(size_t, max_t(size_t, want, nr),
		     dedupfs_fill_max(dedupfs_pool(file_inode(file))));
}

/* A sequential reader gets the next window filled while it reads this one. */
static void fill_ahead(struct inode *inode, struct file *file, pgoff_t next)
{
	struct file_ra_state *ra = &file->f_ra;
	unsigned int nr = min(ra->size * 2, dedupfs_fill_max(dedupfs_pool(inode)));

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
	int err = dedupfs_populate_charged(inode, index, nr);

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
		if (user_backed_iter(iter))
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
					.from = index, .until = index + DEDUPFS_STEP,
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
		return read_lower(iocb, iter, bytes_to(pos, index, DEDUPFS_STEP), pool,
				  DEDUPFS_DIRTY);
	if (map && time_before(jiffies, READ_ONCE(map->unstable_until)))
		return read_lower(iocb, iter, bytes_to(pos, index, DEDUPFS_STEP), pool,
				  DEDUPFS_UNSTABLE);

	err = fill_for_read(iocb, inode, index, iov_iter_count(iter));
	if (err < 0)
		return err;
	tried->from = index;
	tried->until = index + 1;
	tried->waited = false;
	if (err == DEDUPFS_DIRTY && map && READ_ONCE(map->tracked))
		/* Pages of ours that wait for write-back, among shared ones. */
		tried->until = index + max(dedupfs_dirty_run(di->lower, index, DEDUPFS_STEP), 1UL);
	else if (err)
		tried->until = index + DEDUPFS_STEP;
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
	/* A pool page can be two of the file's; and nfsd takes pages for what they are. */
	if (dedupfs_iter_is_pipe(iter) && (current->flags & PF_KTHREAD)) {
		ret = read_cached(iocb, iter);
		dedupfs_look_for_changes(di);
		return ret;
	}

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

/*
 * nfsd sends the pages that it is given, and takes what a second splice brings
 * for more of the last one only if that is the same page.  No copy is: a kernel
 * thread gets a page that can go on, at the end of the file, or that it has
 * begun to read in the middle, from the lower page cache.  (Before 6.5 all: see
 * dedupfs_read_iter().)
 */
static bool page_can_go_on(struct inode *inode, loff_t pos, size_t *len)
{
	loff_t whole = round_down(i_size_read(dedupfs_lower(inode)), PAGE_SIZE);

	if (!(current->flags & PF_KTHREAD) || DEDUPFS_SPLICE_CALLS_READ_ITER)
		return false;
	if (offset_in_page(pos) || pos >= whole) {
		*len = min_t(size_t, *len, PAGE_SIZE - offset_in_page(pos));
		return true;
	}
	*len = min_t(loff_t, *len, whole - pos);
	return false;
}

/* ->splice_read, for sendfile(2) and splice(2). */
ssize_t dedupfs_splice_read(struct file *in, loff_t *ppos, struct pipe_inode_info *pipe,
			    size_t len, unsigned int flags)
{
	struct dedupfs_inode *di = DEDUPFS_I(file_inode(in));
	bool lock = dedupfs_pool(&di->vfs_inode)->reads_locked && !DEDUPFS_SPLICE_CALLS_READ_ITER;
	ssize_t ret;

	if ((in->f_flags & O_DIRECT) || IS_DAX(di->lower) ||
	    (!dedupfs_is_plain(di) && !page_can_go_on(&di->vfs_inode, *ppos, &len)))
		return copy_splice_read(in, ppos, pipe, len, flags);
	if (lock) {
		ret = lock_for_read(di->lower, false);
		if (ret)
			return ret;
	}
	ret = filemap_splice_read(in, ppos, pipe, len, flags);
	if (lock)
		inode_unlock_shared(di->lower);
	/* Who has read what is new finds nothing old in a mapping. */
	dedupfs_look_for_changes(di);
	return ret;
}

/*
 * readahead(2), POSIX_FADV_WILLNEED: fill the pool; what is not for the pool, a
 * worker reads into the lower page cache.  At most a quarter of RAM.
 */
static void willneed(struct inode *inode, loff_t offset, loff_t len)
{
	unsigned long limit;
	loff_t size = i_size_read(dedupfs_lower(inode));
	pgoff_t index = offset >> PAGE_SHIFT, end;

	if (offset >= size)
		return;
	if (!len || len > size - offset)
		len = size - offset;
	end = DIV_ROUND_UP(offset + len, PAGE_SIZE);
	end = min_t(pgoff_t, end, index + nr_free_buffer_pages() / 4);
	limit = READ_ONCE(dedupfs_pool(inode)->limit);
	if (limit)
		end = min_t(pgoff_t, end, index + limit / 2);
	for (; index < end; index += DEDUPFS_FILL_MAX)
		if (!dedupfs_populate_async(inode, index,
					    min_t(pgoff_t, end - index, DEDUPFS_FILL_MAX), NULL,
					    true))
			break;
}

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
