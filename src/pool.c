// SPDX-License-Identifier: GPL-2.0-only
/*
 * The pool: block-keyed entries and the fills that make them.
 *
 * A pool page is memory of the module's own: off the LRU, mapping == NULL,
 * index = its physical block, private = how many of its bytes are data (the
 * rest is zeroes).  It is never written once it is published, and is in the
 * pool only while an attached extent covers its block (rules 1 and 2).
 *
 * The block index holds no page pointers but page frame numbers, as value
 * entries in the way of fs/dax.c.  A page that is not uptodate is being read
 * from disk by whoever holds its page lock; nobody else may look at it or map
 * it.  It becomes uptodate, which publishes it, under pool->sem and once.
 *
 * An entry is erased under the xa_lock.  Whoever takes a page takes a
 * reference, reads the entry again, and then looks whether it is uptodate;
 * evict erases an entry only while it has the page's references frozen.
 */
#define pr_fmt(fmt) "dedupfs: " fmt

#include <linux/bvec.h>
#include <linux/cred.h>
#include <linux/dcache.h>
#include <linux/magic.h>
#include <linux/module.h>
#include <linux/pagemap.h>
#include <linux/rculist.h>
#include <linux/slab.h>
#include <linux/srcu.h>
#include <linux/uio.h>
#include <linux/wait_bit.h>
#include "pool.h"

static void *entry_make(struct page *page)
{
	return xa_mk_value(page_to_pfn(page));
}

static struct page *entry_page(void *entry)
{
	return pfn_to_page(xa_to_value(entry));
}

/* True of a page that is in the pool, and stays for the caller's reference or lock. */
static __always_inline bool page_filling(struct page *page)
{
	return !folio_test_uptodate(page_folio(page));
}

/* Entries */

/*
 * The page of a block with a reference, published or (@filling) not; or NULL,
 * also for one whose memory has failed.
 */
static struct page *pool_find(struct dedupfs_pool *pool, u64 block, bool *filling)
{
	struct page *page = NULL;
	void *entry;

	*filling = false;
	rcu_read_lock();
	while ((entry = xa_load(&pool->entries, block))) {
		page = entry_page(entry);
		if (get_page_unless_zero(page)) {
			/* It may have been freed and taken by another owner. */
			if (likely(xa_load(&pool->entries, block) == entry)) {
				*filling = page_filling(page);
				if (unlikely(PageHWPoison(page))) {
					put_page(page);
					page = NULL;
				}
				break;
			}
			put_page(page);
		}
		page = NULL;
		cpu_relax();
	}
	rcu_read_unlock();
	return page;
}

/**
 * dedupfs_pool_state - how far is the pool with a block?
 * @pool:	pool
 * @block:	physical block, in pages
 *
 * Context: any that may take an RCU read lock.
 */
enum dedupfs_state dedupfs_pool_state(struct dedupfs_pool *pool, u64 block)
{
	bool filling;
	struct page *page = pool_find(pool, block, &filling);

	if (!page)
		return DEDUPFS_ABSENT;
	put_page(page);
	return filling ? DEDUPFS_FILLING : DEDUPFS_THERE;
}

/**
 * dedupfs_pool_find_batch - published pages of consecutive blocks
 * @pool:	pool
 * @block:	first physical block, in pages
 * @nr:		how many at most
 * @pages:	filled with pages, each with a reference
 *
 * Stops at the first block that has no published page.
 *
 * Context: any that may take an RCU read lock.
 * Return: the number of pages.
 */
unsigned int dedupfs_pool_find_batch(struct dedupfs_pool *pool, u64 block, unsigned int nr,
				     struct page **pages)
{
	XA_STATE(xas, &pool->entries, block);
	unsigned int n = 0;
	struct page *page;
	void *entry;

	rcu_read_lock();
	for (entry = xas_load(&xas); n < nr; entry = xas_next(&xas)) {
		if (xas_retry(&xas, entry)) {
			/* The walk starts again at the block it stood at. */
			entry = xas_load(&xas);
			if (xas_retry(&xas, entry))
				break;
		}
		if (!xa_is_value(entry))
			break;
		page = entry_page(entry);
		if (!get_page_unless_zero(page))
			break;
		if (unlikely(xas_reload(&xas) != entry || page_filling(page) ||
			     PageHWPoison(page))) {
			put_page(page);
			break;
		}
		pages[n++] = page;
	}
	rcu_read_unlock();
	return n;
}

/**
 * dedupfs_pool_has - is a page still the published page of its block?
 * @pool:	pool
 * @page:	a page found in it; the caller holds a reference and, if the
 *		answer is to last, the page lock
 */
bool dedupfs_pool_has(struct dedupfs_pool *pool, struct page *page)
{
	return xa_load(&pool->entries, page->index) == entry_make(page);
}

/**
 * dedupfs_pool_next - the first published page in a range of blocks
 * @pool:	pool
 * @block:	physical block, in pages
 * @end:	the first one that does not belong to the range
 *
 * Return: its block, or @end if there is none.
 */
u64 dedupfs_pool_next(struct dedupfs_pool *pool, u64 block, u64 end)
{
	unsigned long index;
	void *entry;

	if (block >= end)
		return end;
	xa_for_each_range(&pool->entries, index, entry, block, end - 1) {
		/* Cheap: it may have been freed since, then this says nothing. */
		if (page_filling(entry_page(entry)))
			continue;
		if (dedupfs_pool_state(pool, index) == DEDUPFS_THERE)
			return index;
	}
	return end;
}

/**
 * dedupfs_pool_any_hot - is any of some pages used again and again?
 * @pool:	pool
 * @block:	physical block, in pages
 * @nr:		blocks
 *
 * A hint, as of the first %DEDUPFS_HOT_MAX pages of them.
 */
bool dedupfs_pool_any_hot(struct dedupfs_pool *pool, u64 block, u64 nr)
{
	unsigned int seen = 0;
	unsigned long index;
	struct folio *folio;
	void *entry;

	xa_for_each_range(&pool->entries, index, entry, block, block + nr - 1) {
		/* (No reference: it may be somebody else's by now.) */
		folio = page_folio(entry_page(entry));
		if (folio_test_active(folio) || folio_test_workingset(folio))
			return true;
		if (++seen == DEDUPFS_HOT_MAX)
			break;
	}
	return false;
}

static void page_gone(struct dedupfs_pool *pool, struct page *page)
{
	dedupfs_lru_del(pool, page);
	atomic_long_dec(&pool->nr_pages);
	put_page(page);
}

/**
 * dedupfs_pool_evict - take an unused page out of the pool
 * @pool:	pool
 * @page:	published, with a reference of the caller's, which is used up if
 *		the page goes
 *
 * A page that anybody reads or maps has more references than the pool's and
 * the caller's, and stays; once they are frozen, nobody finds it any more.
 *
 * Return: true if it was freed.
 */
bool dedupfs_pool_evict(struct dedupfs_pool *pool, struct page *page)
{
	void *entry = entry_make(page);

	/* While the entry stands and is locked, the pool's reference stays. */
	xa_lock(&pool->entries);
	if (xa_load(&pool->entries, page->index) != entry || !page_ref_freeze(page, 2)) {
		xa_unlock(&pool->entries);
		return false;
	}
	__xa_erase(&pool->entries, page->index);
	page_ref_unfreeze(page, 2);
	xa_unlock(&pool->entries);
	page_gone(pool, page);
	put_page(page);
	return true;
}

/* Drop published pages of [first, last]; those being filled are their filler's. */
static void drop_range(struct dedupfs_pool *pool, u64 first, u64 last)
{
	struct page *pages[DEDUPFS_BATCH];
	unsigned int n, i;
	void *entry;

	do {
		XA_STATE(xas, &pool->entries, first);

		n = 0;
		xas_lock(&xas);
		xas_for_each(&xas, entry, last) {
			if (page_filling(entry_page(entry)))
				continue;
			pages[n++] = entry_page(entry);
			xas_store(&xas, NULL);
			first = xas.xa_index + 1;
			if (n == ARRAY_SIZE(pages))
				break;
		}
		xas_unlock(&xas);
		for (i = 0; i < n; i++)
			page_gone(pool, pages[i]);
		cond_resched();
	} while (n == ARRAY_SIZE(pages) && first <= last);
}

/**
 * dedupfs_pool_drop_uncovered - drop the pages that no attached extent covers
 * @pool:	pool
 * @block:	physical block, in pages
 * @nr:		blocks
 *
 * Rule 1: the last detach frees.
 *
 * Context: pool->sem held for writing.
 */
void dedupfs_pool_drop_uncovered(struct dedupfs_pool *pool, u64 block, u64 nr)
{
	u64 end = block + nr, next;

	lockdep_assert_held_write(&pool->sem);
	while (block < end) {
		if (!dedupfs_covered(pool, block, &next))
			drop_range(pool, block, min(next, end) - 1);
		block = next;
	}
}

/* Fills */

/*
 * A fill owns the entries, and the page locks, of up to DEDUPFS_FILL_MAX
 * consecutive file pages that are not uptodate yet; pages[i] is NULL where the pool
 * had the page already, or where the file has nothing for the pool.  A page
 * is ready when it was copied from the lower page cache.
 *
 * The disk is read asynchronously, so that who waits for it can be killed: the
 * end of the read then queues the work that gives up what was claimed.
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
	atomic_t *slot;
	unsigned int missing;
	unsigned int published;
	struct page *stock;
	unsigned int stock_nr;
	DECLARE_BITMAP(ready, DEDUPFS_FILL_MAX);
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
				if (page_filling(entry_page(entry))) {
					nr = k;
					break;
				}
				k++;
				continue;
			}
			if (!page)
				break;
			page->index = block + k;
			/* Who had it last may have left FILL_ON_ITS_WAY there. */
			set_page_private(page, 0);
			__SetPageLocked(page);
			xas_store(&xas, entry_make(page));
			if (xas_error(&xas)) {
				__ClearPageLocked(page);
				break;
			}
			fill->pages[i + k++] = page;
			fill->missing++;
			/* Without the lock only when the stock is empty. */
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
		if (n < end - first)
			break;
	}
	stock_free(fill);
	return fill;
}

/** dedupfs_fill_pages - pages of the window that were gone through */
pgoff_t dedupfs_fill_pages(const struct dedupfs_fill *fill)
{
	return fill->nr;
}

/*
 * Was a claimed page published, or given up?  Once it is it stays so: faults
 * that copy a published page lock it, too, and wake nobody when they are done.
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
 * In ->private of a claimed page: the disk is at it, and no lock is waited for.
 * No number of valid bytes, which follows.
 */
#define FILL_ON_ITS_WAY	(PAGE_SIZE + 1)

/*
 * Longer than it takes to get at the disk.  Who fills for another file may
 * wait for that file's lock, which is in the hands of its user.
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

	page = pool_find(map->pool, block, &filling);
	if (!page)
		return 0;
	while (filling) {
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
	file = dedupfs_open_lower(inode->i_sb, &path, O_RDONLY | O_LARGEFILE | O_DIRECT);
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

/*
 * Can clean pages of a file differ from its blocks?  A direct write that failed
 * half way leaves on XFS what was read meanwhile, and notes no error; btrfs
 * takes pages for clean whose write-back failed, and has no error to note where
 * the file is compressed.  Who was not written to in memory has none of those.
 */
static bool cache_may_be_wrong(const struct dedupfs_pool *pool, const struct inode *lower)
{
	static s64 begun = S64_MAX;
	struct timespec64 boot;
	s64 now;

	if (pool->fiemap_sync)
		return READ_ONCE(lower->dirtied_when);
	/* It moves as the clock is set.  (And the time of a file is that of the last tick.) */
	getboottime64(&boot);
	now = boot.tv_sec - 1;
	if (now < READ_ONCE(begun))
		WRITE_ONCE(begun, now);
	return inode_get_ctime(lower).tv_sec >= min(now, READ_ONCE(begun));
}

/*
 * What the lower page cache holds, clean, need not be read from disk again.
 * That it stayed clean is checked before anything is published.
 */
static void fill_from_lower_cache(struct dedupfs_fill *fill, struct address_space *mapping,
				  loff_t size)
{
	bool lock = fill->pool->reads_locked;
	struct folio *folio;
	pgoff_t index;
	unsigned int i, valid;

	if (cache_may_be_wrong(fill->pool, mapping->host))
		return;
	/*
	 * Who takes pages out of it may have zeroed a part of them, and moves
	 * no counter where it is a dedupe of what has been deduplicated.
	 */
	if (lock && !inode_trylock_shared(mapping->host))
		return;
	for (i = 0; i < fill->nr && mapping->nrpages; i++) {
		index = fill->index + i;
		valid = dedupfs_valid_bytes(size, index);
		if (!fill->pages[i] || !valid)
			continue;
		folio = filemap_get_folio(mapping, index);
		if (IS_ERR(folio))
			continue;
		if (folio_test_uptodate(folio) && !folio_test_dirty(folio) &&
		    !folio_test_writeback(folio) && folio->mapping == mapping) {
			copy_highpage(fill->pages[i], folio_file_page(folio, index));
			fill_finish(fill, i, valid);
			__set_bit(i, fill->ready);
		}
		folio_put(folio);
	}
	if (lock)
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
 * Read @nr claimed pages at @i with one direct read; return bytes or -errno.
 * -EINTR with @abandoned: the caller was killed, the read is on its way,
 * and @fill is not his any more.
 */
static ssize_t fill_run(struct dedupfs_fill *fill, struct inode *inode, struct file *file,
			unsigned int i, unsigned int nr, bool *abandoned)
{
	struct bio_vec *bv = fill->bvec;
	struct iov_iter iter;
	unsigned int k;
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
	fill->iocb.ki_pos = (loff_t)(fill->index + i) << PAGE_SHIFT;
	got = file->f_op->read_iter(&fill->iocb, &iter);
	if (got != -EIOCBQUEUED)
		return got;
	/* Nobody waits without a bound for what another group is made to wait for. */
	if (!fill->limited) {
		fill_run_mark(fill, FILL_ON_ITS_WAY);
		/* As fill_run_done() does: one of us is the later one. */
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
 * Return: 0; -EIO if the lower file could not be opened; -EINTR if the caller
 * was killed: @fill is not his any more.
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
		return -EIO;

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

/** dedupfs_fill_end - give up what was not published */
void dedupfs_fill_end(struct dedupfs_fill *fill)
{
	unsigned int i;

	for (i = 0; i < fill->nr && !fill->published; i++)
		if (fill->pages[i])
			unclaim(fill, i);
	kvfree(fill);
}

/* The pool itself */

static LIST_HEAD(pools);
static DEFINE_MUTEX(pools_lock);	/* protects the list, its length and pool->refs */
DEFINE_STATIC_SRCU(pools_srcu);		/* a pool that was seen in the list stays */
static unsigned int nr_pools;

static void reap_work(struct work_struct *work)
{
	struct dedupfs_pool *pool = container_of(work, struct dedupfs_pool, reaper.work);

	clear_bit(0, &pool->reap_soon);
	dedupfs_maps_reap(pool);
}

static void pool_free(struct dedupfs_pool *pool)
{
	free_percpu(pool->stats);
	kvfree(pool->scratch);
	kfree(pool->domain);
	kfree(pool);
}

static struct dedupfs_pool *pool_new(struct super_block *lower_sb, const char *domain)
{
	bool xfs = !strcmp(lower_sb->s_type->name, "xfs");
	struct dedupfs_pool *pool;
	int err = -ENOMEM;

	pool = kzalloc(sizeof(*pool), GFP_KERNEL);
	if (!pool)
		return ERR_PTR(-ENOMEM);
	INIT_LIST_HEAD(&pool->list);
	pool->refs = 1;
	pool->lower_sb = lower_sb;
	pool->counter_tells_mapping = xfs;
	pool->needs_shared_flag = xfs;
	pool->reads_locked = xfs;
	pool->fiemap_sync = !xfs;
	pool->observer = dedupfs_fiemap_works(d_inode(lower_sb->s_root));
	xa_init(&pool->entries);
	init_rwsem(&pool->sem);
	pool->attached = RB_ROOT_CACHED;
	INIT_DELAYED_WORK(&pool->reaper, reap_work);
	pool->ask_at = jiffies;
	init_completion(&pool->kobj_gone);
	if (domain) {
		pool->domain = kstrdup(domain, GFP_KERNEL);
		if (!pool->domain)
			goto fail;
	}
	pool->stats = alloc_percpu(struct dedupfs_stats);
	if (!pool->stats)
		goto fail;
	err = dedupfs_maps_init(pool);
	if (err)
		goto fail;
	err = dedupfs_shrink_init(pool);
	if (err)
		goto fail_maps;
	err = dedupfs_stats_add(pool);
	if (err)
		goto fail_shrink;
	return pool;

fail_shrink:
	dedupfs_shrink_exit(pool);
fail_maps:
	dedupfs_maps_destroy(pool);
fail:
	pool_free(pool);
	return ERR_PTR(err);
}

static bool pool_is(const struct dedupfs_pool *pool, const struct super_block *lower_sb,
		    const char *domain)
{
	if (pool->lower_sb != lower_sb || !pool->domain != !domain)
		return false;
	return !domain || !strcmp(pool->domain, domain);
}

/**
 * dedupfs_pool_get - the pool of a lower superblock and domain
 * @lower_sb:	XFS or btrfs; the caller's mount pins it until the put
 * @domain:	name, or NULL for the default
 *
 * Context: may sleep.
 * Return: the pool, or ERR_PTR(-ENOMEM).
 */
struct dedupfs_pool *dedupfs_pool_get(struct super_block *lower_sb, const char *domain)
{
	struct dedupfs_pool *pool;

	mutex_lock(&pools_lock);
	list_for_each_entry(pool, &pools, list) {
		if (pool_is(pool, lower_sb, domain)) {
			pool->refs++;
			goto out;
		}
	}
	pool = pool_new(lower_sb, domain);
	if (!IS_ERR(pool)) {
		list_add_rcu(&pool->list, &pools);
		WRITE_ONCE(nr_pools, nr_pools + 1);
	}
out:
	mutex_unlock(&pools_lock);
	return pool;
}

/**
 * dedupfs_tell_other_pools - a file is about to be changed, or was, through this pool
 * @pool:	pool of the change
 * @lower:	lower inode
 *
 * Its changes raise no event that the marks of other domains' maps see.
 *
 * Context: may sleep; may be a fault (takes no lower i_rwsem) that is not mapping.
 */
void dedupfs_tell_other_pools(struct dedupfs_pool *pool, struct inode *lower)
{
	struct dedupfs_pool *other;
	int idx;

	if (likely(READ_ONCE(nr_pools) == 1))
		return;
	/* No mutex: a fault that is waited for may wait in reclaim for another writer. */
	idx = srcu_read_lock(&pools_srcu);
	list_for_each_entry_srcu(other, &pools, list, srcu_read_lock_held(&pools_srcu))
		if (other != pool && other->lower_sb == pool->lower_sb)
			dedupfs_map_changed_elsewhere(other, lower);
	srcu_read_unlock(&pools_srcu, idx);
}

/**
 * dedupfs_pool_put - a mount lets go of its pool; the last one frees it
 * @pool:	pool; no upper inode of this mount is left
 *
 * Context: may sleep.
 */
void dedupfs_pool_put(struct dedupfs_pool *pool)
{
	mutex_lock(&pools_lock);
	if (--pool->refs) {
		mutex_unlock(&pools_lock);
		return;
	}
	list_del_rcu(&pool->list);
	WRITE_ONCE(nr_pools, nr_pools - 1);
	dedupfs_stats_remove(pool);
	mutex_unlock(&pools_lock);
	synchronize_srcu(&pools_srcu);

	cancel_delayed_work_sync(&pool->reaper);
	dedupfs_maps_destroy(pool);
	dedupfs_shrink_exit(pool);
	/* An eviction may have called for it meanwhile. */
	cancel_delayed_work_sync(&pool->reaper);
	WARN_ON_ONCE(!xa_empty(&pool->entries));
	WARN_ON_ONCE(atomic_long_read(&pool->nr_pages));
	xa_destroy(&pool->entries);
	pool_free(pool);
}

/** dedupfs_pool_set_limit - most pages that the pool may hold; 0: no limit */
void dedupfs_pool_set_limit(struct dedupfs_pool *pool, unsigned long limit)
{
	WRITE_ONCE(pool->limit, limit);
	dedupfs_shrink_to_limit(pool);
}
