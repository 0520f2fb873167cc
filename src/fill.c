// SPDX-License-Identifier: GPL-2.0-only
/*
 * Fills: the pages of some blocks are claimed, read, and published.
 *
 * A page is claimed by its entry in the pool, not uptodate and locked, so that
 * others wait for it and do not read it as well.  It is read from the lower
 * page cache where that can be trusted, else from disk by a direct read of the
 * lower file.  Whoever resolved the blocks (resolve.c) decides whether what was
 * read is published (rules 2 and 4).
 */
#include <linux/bvec.h>
#include <linux/dcache.h>
#include <linux/pagemap.h>
#include <linux/slab.h>
#include <linux/uio.h>
#include <linux/wait_bit.h>
#include "pool.h"

/*
 * A fill owns the entries, and the page locks, of up to DEDUPFS_FILL_MAX
 * consecutive file pages that are not uptodate yet; pages[i] is NULL where the pool
 * had the page already, or where the file has nothing for the pool.  A page
 * is ready when it was copied from the lower page cache.
 *
 * The disk is read asynchronously, so that who waits for it can be killed: the
 * end of the read then queues the work that gives up what was claimed.
 *
 * The end of the read and a killed waiter each exchange the state once; who
 * comes second gives the pages up or takes them in: WAITED_FOR -> READ
 * (complete()), or WAITED_FOR -> ABANDONED -> READ (queue work).
 */
enum fill_state { FILL_WAITED_FOR, FILL_ABANDONED, FILL_READ };

struct dedupfs_fill {
	struct dedupfs_pool *pool;
	struct inode *inode;		/* of an abandoned fill, held */
	struct work_struct work;
	struct kiocb iocb;		/* of the read that is on its way */
	struct completion done;
	atomic_t state;			/* enum fill_state */
	ssize_t got;
	unsigned int run;		/* what is on its way: pages from here */
	unsigned int run_end;
	pgoff_t index;
	unsigned int nr;
	bool limited;
	bool poisoned;			/* a page that is there has failed */
	atomic_t *slot;			/* the I/O group's count of fills, or NULL */
	unsigned int missing;		/* pages that are claimed */
	unsigned int published;		/* pages that have become the pool's */
	struct page *stock;		/* allocated, not claimed: @stock_nr, each on its own */
	unsigned int stock_nr;
	DECLARE_BITMAP(ready, DEDUPFS_FILL_MAX);	/* copied from the lower page cache */
	struct bio_vec *bvec;
	struct page *pages[];
};

#define FILL_GFP	(GFP_KERNEL | __GFP_NOWARN | __GFP_NORETRY | __GFP_RECLAIMABLE)
#define FILL_ORDER	4

/*
 * Contiguous memory makes short lists for the disk; any memory will do.  It is
 * taken where it lies: to have some made would cost pages of this very pool.
 */
static struct page *stock_page(struct dedupfs_fill *fill, unsigned int want)
{
	unsigned int order = min_t(unsigned int, FILL_ORDER, ilog2(want));

	if (!fill->stock_nr) {
		fill->stock = order ? alloc_pages(FILL_GFP & ~__GFP_RECLAIM, order) : NULL;
		if (fill->stock) {
			split_page(fill->stock, order);
			fill->stock_nr = 1 << order;
		} else {
			fill->stock = alloc_page(FILL_GFP);
			if (!fill->stock)
				return NULL;
			fill->stock_nr = 1;
		}
	}
	fill->stock_nr--;
	return fill->stock++;
}

static void stock_free(struct dedupfs_fill *fill)
{
	while (fill->stock_nr) {
		fill->stock_nr--;
		put_page(fill->stock++);
	}
}

/*
 * Claim the missing ones of @nr blocks from @block on, for pages[i...).
 * Return: how many blocks were gone through: fewer than @nr where somebody
 * else is filling, or where memory ran out.
 */
static unsigned int claim_blocks(struct dedupfs_fill *fill, unsigned int i, u64 block,
				 unsigned int nr)
{
	XA_STATE(xas, &fill->pool->entries, block);
	struct page *page = NULL;
	unsigned int k = 0;
	void *entry;

	while (k < nr) {
		if (!page)
			page = stock_page(fill, nr - k);
		if (!page)
			break;
		xas_set(&xas, block + k);
		xas_lock(&xas);
		for (entry = xas_load(&xas); k < nr; entry = xas_next(&xas)) {
			if (entry) {
				if (dedupfs_page_filling(dedupfs_entry_page(entry))) {
					nr = k;
					break;
				}
				/* (It cannot go while the xa_lock is held.) */
				if (unlikely(PageHWPoison(dedupfs_entry_page(entry))))
					fill->poisoned = true;
				k++;
				continue;
			}
			if (!page)
				break;
			page->index = block + k;
			/* Who had it last may have left FILL_ON_ITS_WAY there. */
			set_page_private(page, 0);
			__SetPageLocked(page);
			xas_store(&xas, dedupfs_entry_make(page));
			if (xas_error(&xas)) {
				__ClearPageLocked(page);
				break;
			}
			fill->pages[i + k++] = page;
			fill->missing++;
			/* Under the xa_lock only take from the stock: allocating may sleep. */
			page = fill->stock_nr ? stock_page(fill, nr) : NULL;
		}
		xas_unlock(&xas);
		/* Also frees what the store did not need. */
		if (!xas_nomem(&xas, GFP_KERNEL | __GFP_NOWARN) && xas_error(&xas))
			break;
	}
	if (page)
		put_page(page);
	return k;
}

/*
 * Pages whose memory has failed: nobody finds them, but who has one mapped would
 * be killed when he touches it.  They leave the pool, to be read anew by the
 * next who wants them.
 */
static void drop_poisoned(struct dedupfs_pool *pool, u64 block, u64 nr)
{
	unsigned long index;
	struct page *page;
	void *entry;

	xa_for_each_range(&pool->entries, index, entry, block, block + nr - 1) {
		page = dedupfs_entry_page(entry);
		if (!PageHWPoison(page) || !get_page_unless_zero(page))
			continue;
		if (xa_load(&pool->entries, index) == entry && !dedupfs_page_filling(page)) {
			down_read(&pool->sem);
			dedupfs_zap_block(pool, index);
			up_read(&pool->sem);
			if (dedupfs_pool_evict(pool, page))
				continue;
		}
		put_page(page);
	}
}

/**
 * dedupfs_fill_start - claim the missing blocks of a window
 * @inode:	upper inode
 * @r:		ranges of the file, in order
 * @nr_ranges:	in @r
 * @index:	first file page of the window
 * @nr:		pages of the window
 * @limited:	the reads may be held back by the I/O controller
 * @slot:	where it counts if it outlives its caller, or NULL
 *
 * The window ends before a block that somebody else is filling: to wait for
 * it while holding locked pages could deadlock.
 *
 * Context: may sleep.  No page lock held.
 * Return: the fill, perhaps with nothing missing; NULL without memory.
 */
struct dedupfs_fill *dedupfs_fill_start(struct inode *inode, const struct dedupfs_range *r,
					unsigned int nr_ranges, pgoff_t index, pgoff_t nr,
					bool limited, atomic_t *slot)
{
	struct dedupfs_fill *fill;
	pgoff_t first, end;
	unsigned int k, n;

	nr = min_t(pgoff_t, nr, DEDUPFS_FILL_MAX);
	fill = kvzalloc(struct_size(fill, pages, nr) + nr * sizeof(*fill->bvec), GFP_KERNEL);
	if (!fill)
		return NULL;
	fill->pool = dedupfs_pool(inode);
	fill->index = index;
	fill->limited = limited;
	fill->slot = slot;
	fill->bvec = (struct bio_vec *)&fill->pages[nr];

	for (k = 0; k < nr_ranges; k++) {
		if (r[k].reason != DEDUPFS_POOLED)
			continue;
		first = max(r[k].index, index);
		end = min(r[k].index + r[k].nr, index + nr);
		if (first >= end)
			continue;
		n = claim_blocks(fill, first - index, r[k].block + (first - r[k].index),
				 end - first);
		fill->nr = first - index + n;
		if (unlikely(fill->poisoned))
			drop_poisoned(fill->pool, r[k].block + (first - r[k].index), n);
		if (n < end - first)
			break;
	}
	stock_free(fill);
	return fill;
}

/* Pages of the window that were gone through. */
pgoff_t dedupfs_fill_pages(const struct dedupfs_fill *fill)
{
	return fill->nr;
}

/*
 * Is a claimed page published, or given up?  Uptodate first: a private store
 * locks a published page too, and its unlock wakes no waiter of ours.
 */
static bool is_over(struct page *page)
{
	return PageUptodate(page) || !PageLocked(page);
}

static void fill_over(struct page *page)
{
	unlock_page(page);
	/* Pairs with who asks is_over() before he sleeps. */
	smp_mb__after_atomic();
	wake_up_var(&page->private);
}

/*
 * ->private of a claimed page whose read is in flight.  Larger than any number
 * of valid bytes, which it holds later.
 */
#define FILL_ON_ITS_WAY	(PAGE_SIZE + 1)

/*
 * How long to wait for a fill that has not reached the disk: it may wait for
 * another file's lock, which its user can keep.
 */
#define FILL_WAIT	(3 * HZ)

/**
 * dedupfs_wait_for_fill - wait for whoever fills a block
 * @map:	map of the file that wants it
 * @block:	physical block, in pages
 *
 * For the disk as long as it takes, as for any read.  Once it was in vain the
 * file is unstable for as long: nobody waits again at each page, or call.
 *
 * Context: may sleep; no page lock held.
 * Return: 0; -EINTR if killed; -EAGAIN if it is not the disk that takes so long.
 */
int dedupfs_wait_for_fill(struct dedupfs_map *map, u64 block)
{
	bool filling, reading, was_reading = false;
	struct page *page;
	long left = 1;

	page = dedupfs_pool_find(map->pool, block, &filling);
	if (!page)
		return 0;
	while (filling) {
		/* There is no wait_var_event_killable_timeout(). */
		left = ___wait_var_event(&page->private, ___wait_cond_timeout(is_over(page)),
					 TASK_KILLABLE, 0, FILL_WAIT,
					 __ret = schedule_timeout(__ret));
		reading = READ_ONCE(page->private) == FILL_ON_ITS_WAY;
		/* The disk may have answered just now: once more. */
		filling = !left && (reading || was_reading);
		was_reading = reading;
	}
	put_page(page);
	if (left < 0)
		return -EINTR;
	if (left)
		return 0;
	dedupfs_unstable_for(map, FILL_WAIT);
	return -EAGAIN;
}

static void unclaim(struct dedupfs_fill *fill, unsigned int i)
{
	struct page *page = fill->pages[i];

	xa_erase(&fill->pool->entries, page->index);
	fill->pages[i] = NULL;
	fill->missing--;
	fill_over(page);
	put_page(page);
}

static struct file *fill_open(struct inode *inode)
{
	struct path path = { .mnt = DEDUPFS_SB(inode->i_sb)->lower.mnt };
	struct file *file;

	path.dentry = d_find_any_alias(dedupfs_lower(inode));
	if (!path.dentry)
		return ERR_PTR(-ESTALE);
	/* Nobody else is to wait for the holder of a lease. */
	file = dedupfs_open_lower(inode->i_sb, &path,
				  O_RDONLY | O_LARGEFILE | O_DIRECT | O_NONBLOCK);
	dput(path.dentry);
	return file;
}

/* The page as a file of @size bytes has it: data, then zeroes. */
static void fill_finish(struct dedupfs_fill *fill, unsigned int i, unsigned int valid)
{
	if (valid < PAGE_SIZE)
		zero_user_segment(fill->pages[i], valid, PAGE_SIZE);
	set_page_private(fill->pages[i], valid);
}

static s64 boot_seconds = S64_MAX;

/**
 * dedupfs_note_boot - keep in mind when the machine was started
 *
 * By the clock as it is now: that moves when the clock is set, and the earliest
 * counts.  Less one second, as a ctime is that of the last tick.
 *
 * Context: any.
 * Return: seconds.
 */
s64 dedupfs_note_boot(void)
{
	struct timespec64 boot;
	s64 now;

	getboottime64(&boot);
	now = min(boot.tv_sec - 1, READ_ONCE(boot_seconds));
	WRITE_ONCE(boot_seconds, now);
	return now;
}

/*
 * Can clean pages of a file differ from its blocks?  On XFS a direct write that
 * failed half way leaves pages that were read meanwhile, and notes no error; so
 * only a file that was not changed since the machine was started is believed.
 */
static bool cache_may_be_wrong(const struct dedupfs_pool *pool, const struct inode *lower)
{
	return !pool->cache_is_true || inode_get_ctime(lower).tv_sec >= dedupfs_note_boot();
}

/*
 * What the lower page cache holds, clean, need not be read from disk again.
 * That it stayed clean is checked before anything is published.
 */
static void fill_from_lower_cache(struct dedupfs_fill *fill, struct address_space *mapping,
				  loff_t size)
{
	unsigned int i, valid;
	struct folio *folio;
	struct page *page;
	pgoff_t index;

	if (cache_may_be_wrong(fill->pool, mapping->host))
		return;
	/*
	 * Removing pages (dedupe, clone, shift) may first zero part of a large
	 * folio; a dedupe of shared blocks does so without moving the counter.
	 * i_rwsem keeps it out.
	 */
	if (!inode_trylock_shared(mapping->host))
		return;
	for (i = 0; i < fill->nr && mapping->nrpages; i++) {
		index = fill->index + i;
		valid = dedupfs_valid_bytes(size, index);
		if (!fill->pages[i] || !valid)
			continue;
		folio = filemap_get_folio(mapping, index);
		if (IS_ERR(folio))
			continue;
		page = folio_file_page(folio, index);
		if (folio_test_uptodate(folio) && !folio_test_dirty(folio) &&
		    !folio_test_writeback(folio) && folio->mapping == mapping &&
		    !PageHWPoison(page)) {
			copy_highpage(fill->pages[i], page);
			fill_finish(fill, i, valid);
			__set_bit(i, fill->ready);
		}
		folio_put(folio);
	}
	inode_unlock_shared(mapping->host);
}

/* Is the disk at the pages of the run? */
static void fill_run_mark(struct dedupfs_fill *fill, unsigned long mark)
{
	unsigned int i;

	for (i = fill->run; i < fill->run_end; i++)
		WRITE_ONCE(fill->pages[i]->private, mark);
}

/* May be called in interrupt context. */
static void fill_run_done(struct kiocb *iocb, long got)
{
	struct dedupfs_fill *fill = container_of(iocb, struct dedupfs_fill, iocb);
	int state;

	fill->got = got;
	state = atomic_xchg(&fill->state, FILL_READ);
	/* What is left to do waits for a processor, and perhaps for locks. */
	fill_run_mark(fill, 0);
	if (state == FILL_ABANDONED)
		dedupfs_queue_fill(&fill->work);
	else
		complete(&fill->done);
}

static void fill_abandoned_fn(struct work_struct *work)
{
	struct dedupfs_fill *fill = container_of(work, struct dedupfs_fill, work);
	struct inode *inode = fill->inode;
	atomic_t *slot = fill->slot;

	dedupfs_fput(fill->iocb.ki_filp);
	dedupfs_fill_end(fill);
	if (slot)
		atomic_dec(slot);
	dedupfs_work_end(inode);
}

/*
 * The caller was killed, and the disk still writes to the pages: a worker sees
 * to them.  Return: false if the read has come to its end.
 */
static bool fill_abandon(struct dedupfs_fill *fill, struct inode *inode)
{
	dedupfs_work_begin(inode);
	if (fill->slot)
		atomic_inc(fill->slot);
	fill->inode = inode;
	INIT_WORK(&fill->work, fill_abandoned_fn);
	if (atomic_xchg(&fill->state, FILL_ABANDONED) != FILL_READ)
		return true;
	if (fill->slot)
		atomic_dec(fill->slot);
	dedupfs_work_end(inode);
	wait_for_completion(&fill->done);
	return false;
}

/*
 * Read @nr claimed pages at @i with one direct read; return bytes, or 0 if they
 * may be those of the page cache below where that is not believed, or -errno.
 * -EINTR with @abandoned: the caller was killed, the read is on its way,
 * and @fill is not his any more.
 */
static ssize_t fill_run(struct dedupfs_fill *fill, struct inode *inode, struct file *file,
			unsigned int i, unsigned int nr, bool *abandoned)
{
	struct bio_vec *bv = fill->bvec;
	struct iov_iter iter;
	loff_t pos = (loff_t)(fill->index + i) << PAGE_SHIFT;
	unsigned int k;
	bool cached;
	ssize_t got;

	for (k = 0; k < nr; k++) {
		if (k && page_to_pfn(fill->pages[i + k]) ==
			 page_to_pfn(fill->pages[i + k - 1]) + 1) {
			bv[-1].bv_len += PAGE_SIZE;
			continue;
		}
		bvec_set_page(bv++, fill->pages[i + k], PAGE_SIZE, 0);
	}
	iov_iter_bvec(&iter, ITER_DEST, fill->bvec, bv - fill->bvec, (size_t)nr << PAGE_SHIFT);
	fill->run = i;
	fill->run_end = i + nr;
	init_completion(&fill->done);
	atomic_set(&fill->state, FILL_WAITED_FOR);
	init_sync_kiocb(&fill->iocb, file);
	fill->iocb.ki_complete = fill_run_done;
	fill->iocb.ki_pos = pos;
	cached = !fill->pool->cache_is_true &&
		 filemap_range_has_page(file->f_mapping, pos,
					pos + ((loff_t)nr << PAGE_SHIFT) - 1);
	got = file->f_op->read_iter(&fill->iocb, &iter);
	if (got != -EIOCBQUEUED) {
		/*
		 * Not asynchronous: it may have become a buffered read, which
		 * btrfs makes of it where an ordered extent (of a defragment,
		 * say) is under way, and which takes a cached page as it is.
		 * What was not cached before waits for the ordered extent, and
		 * the second FIEMAP sees that.
		 */
		return cached && got > 0 ? 0 : got;
	}
	/* Not for a fill that may be throttled: its waiters would wait without a bound. */
	if (!fill->limited) {
		fill_run_mark(fill, FILL_ON_ITS_WAY);
		/*
		 * Pairs with atomic_xchg() in fill_run_done(): it clears the mark
		 * after us, or we see FILL_READ.
		 */
		smp_mb();
		if (atomic_read(&fill->state) == FILL_READ)
			fill_run_mark(fill, 0);
	}
	if (wait_for_completion_killable(&fill->done) && fill_abandon(fill, inode)) {
		*abandoned = true;
		return -EINTR;
	}
	return fill->got;
}

/* Take in what a run read: [0, got) is data, a page beyond it is given up. */
static void fill_accept(struct dedupfs_fill *fill, unsigned int i, unsigned int nr,
			ssize_t got, loff_t size)
{
	unsigned int k, valid, want;

	for (k = 0; k < nr; k++, got -= PAGE_SIZE) {
		valid = clamp_t(ssize_t, got, 0, PAGE_SIZE);
		want = dedupfs_valid_bytes(size, fill->index + i + k);
		if (!valid || valid != want) {
			unclaim(fill, i + k);
			continue;
		}
		fill_finish(fill, i + k, valid);
	}
}

static bool fill_missing(const struct dedupfs_fill *fill, unsigned int i)
{
	return i < fill->nr && fill->pages[i] && !test_bit(i, fill->ready);
}

/**
 * dedupfs_fill_read - read the claimed pages, from disk if need be
 * @fill:	fill
 * @inode:	upper inode
 *
 * One direct read for each run of missing pages; after an error page by page,
 * because one bad block fails a whole read and leaves good pages half written.
 * Pages that could not be read are given up: the reader that needs them meets
 * the error in the lower page cache.
 *
 * Context: may sleep; takes the lower i_rwsem (shared).
 * Return: 0; -EWOULDBLOCK if somebody has a lease on the lower file, -EIO if it
 * could not be opened; -EINTR if the caller was killed: @fill is not his any more.
 */
int dedupfs_fill_read(struct dedupfs_fill *fill, struct inode *inode)
{
	struct inode *lower = dedupfs_lower(inode);
	loff_t size = i_size_read(lower);
	unsigned int i, k, nr;
	bool abandoned = false;
	struct file *file;
	ssize_t got;

	if (!fill->missing)
		return 0;
	fill_from_lower_cache(fill, lower->i_mapping, size);
	if (bitmap_weight(fill->ready, fill->nr) == fill->missing)
		return 0;
	file = fill_open(inode);
	if (IS_ERR(file))
		return PTR_ERR(file) == -EWOULDBLOCK ? -EWOULDBLOCK : -EIO;

	for (i = 0; i < fill->nr; i += nr) {
		for (nr = 0; fill_missing(fill, i + nr); nr++)
			;
		if (!nr) {
			nr = 1;
			continue;
		}
		got = fill_run(fill, inode, file, i, nr, &abandoned);
		if (abandoned)
			return -EINTR;
		if (got >= 0 || nr == 1) {
			fill_accept(fill, i, nr, got, size);
			continue;
		}
		for (k = 0; k < nr; k++) {
			got = fill_run(fill, inode, file, i + k, 1, &abandoned);
			if (abandoned)
				return -EINTR;
			fill_accept(fill, i + k, 1, got, size);
		}
	}
	dedupfs_fput(file);
	return 0;
}

/**
 * dedupfs_fill_next_range - the blocks that a fill is about to publish
 * @fill:	fill
 * @block:	first physical block of the next run
 * @nr:		blocks in it
 * @pos:	cursor; 0 to begin
 *
 * Return: false at the end.
 */
bool dedupfs_fill_next_range(struct dedupfs_fill *fill, u64 *block, u64 *nr, unsigned int *pos)
{
	unsigned int i = *pos;

	while (i < fill->nr && !fill->pages[i])
		i++;
	if (i >= fill->nr)
		return false;
	*block = fill->pages[i]->index;
	for (*nr = 1, i++; i < fill->nr && fill->pages[i] &&
	     fill->pages[i]->index == *block + *nr; i++)
		++*nr;
	*pos = i;
	return true;
}

/**
 * dedupfs_fill_publish - let everybody have the pages that were read
 * @fill:	fill; everything that rule 4 asks for was checked, and extents
 *		that cover the pages are attached
 *
 * Context: pool->sem held for writing.
 */
void dedupfs_fill_publish(struct dedupfs_fill *fill)
{
	struct dedupfs_pool *pool = fill->pool;
	unsigned int i, n = 0;
	struct page *page;

	lockdep_assert_held_write(&pool->sem);
	for (i = 0; i < fill->nr; i++) {
		page = fill->pages[i];
		if (!page)
			continue;
		/* The fill's reference becomes the pool's. */
		folio_mark_uptodate(page_folio(page));
		fill_over(page);
		fill->pages[n++] = page;
	}
	atomic_long_add(n, &pool->nr_pages);
	/* Detach waits for pool->sem; evict knows pages by their lists. */
	dedupfs_lru_add(pool, fill->pages, n);
	fill->published = n;
	dedupfs_count(pool, DEDUPFS_FILLS, n);
	dedupfs_count(pool, DEDUPFS_FILL_BYTES, (u64)n << PAGE_SHIFT);
}

/* Give up what was not published. */
void dedupfs_fill_end(struct dedupfs_fill *fill)
{
	unsigned int i;

	for (i = 0; i < fill->nr && !fill->published; i++)
		if (fill->pages[i])
			unclaim(fill, i);
	kvfree(fill);
}
