// SPDX-License-Identifier: GPL-2.0-only
/*
 * The pool: its entries, and its life.
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
#include <linux/rculist.h>
#include <linux/slab.h>
#include <linux/srcu.h>
#include "pool.h"

/**
 * dedupfs_pool_find - the page of a block, published or not
 * @pool:	pool
 * @block:	physical block, in pages
 * @filling:	set to whether it is being filled
 *
 * Context: any that may take an RCU read lock.
 * Return: the page, with a reference; NULL if there is none, or its memory failed.
 */
struct page *dedupfs_pool_find(struct dedupfs_pool *pool, u64 block, bool *filling)
{
	struct page *page = NULL;
	void *entry;

	*filling = false;
	rcu_read_lock();
	while ((entry = xa_load(&pool->entries, block))) {
		page = dedupfs_entry_page(entry);
		if (get_page_unless_zero(page)) {
			/* It may have been freed and taken by another owner. */
			if (likely(xa_load(&pool->entries, block) == entry)) {
				*filling = dedupfs_page_filling(page);
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
	struct page *page = dedupfs_pool_find(pool, block, &filling);

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
		page = dedupfs_entry_page(entry);
		if (!get_page_unless_zero(page))
			break;
		if (unlikely(xas_reload(&xas) != entry || dedupfs_page_filling(page) ||
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
 * @page:	a page found in it, with a reference of the caller's, which keeps it
 *		from being evicted; a detach may drop it unless pool->sem is held
 */
bool dedupfs_pool_has(struct dedupfs_pool *pool, struct page *page)
{
	return xa_load(&pool->entries, page->index) == dedupfs_entry_make(page);
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
		if (dedupfs_page_filling(dedupfs_entry_page(entry)))
			continue;
		if (dedupfs_pool_state(pool, index) == DEDUPFS_THERE)
			return index;
	}
	return end;
}

/* Pages that dedupfs_pool_any_hot() looks at, in reclaim. */
#define HOT_MAX	64

/**
 * dedupfs_pool_any_hot - is any of some pages used again and again?
 * @pool:	pool
 * @block:	physical block, in pages
 * @nr:		blocks
 *
 * A hint, as of the first %HOT_MAX pages of them.
 */
bool dedupfs_pool_any_hot(struct dedupfs_pool *pool, u64 block, u64 nr)
{
	unsigned int seen = 0;
	unsigned long index;
	struct folio *folio;
	void *entry;

	xa_for_each_range(&pool->entries, index, entry, block, block + nr - 1) {
		/* (No reference: it may be somebody else's by now.) */
		folio = page_folio(dedupfs_entry_page(entry));
		if (folio_test_active(folio) || folio_test_workingset(folio))
			return true;
		if (++seen == HOT_MAX)
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
	void *entry = dedupfs_entry_make(page);

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

/**
 * dedupfs_pool_drop - drop the published pages of some blocks
 * @pool:	pool
 * @first:	physical block, in pages
 * @last:	the last one, inclusive
 *
 * Pages that are being filled are their filler's.
 *
 * Context: pool->sem held for writing.
 */
void dedupfs_pool_drop(struct dedupfs_pool *pool, u64 first, u64 last)
{
	struct page *pages[DEDUPFS_STEP];
	unsigned int n, i;
	void *entry;

	lockdep_assert_held_write(&pool->sem);
	do {
		XA_STATE(xas, &pool->entries, first);

		n = 0;
		xas_lock(&xas);
		xas_for_each(&xas, entry, last) {
			if (dedupfs_page_filling(dedupfs_entry_page(entry)))
				continue;
			pages[n++] = dedupfs_entry_page(entry);
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
	pool->cache_is_true = xfs;
	pool->fiemap_stops = xfs;
	pool->fiemap_sync = !xfs;
	pool->cleans_failed = !xfs;
	pool->has_subvolumes = !xfs;
	pool->observer = dedupfs_fiemap_works();
	xa_init(&pool->entries);
	init_rwsem(&pool->sem);
	pool->attached = RB_ROOT_CACHED;
	INIT_DELAYED_WORK(&pool->reaper, reap_work);
	pool->ask_at = jiffies;
	dedupfs_note_boot();
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
 * Return: the pool, or ERR_PTR(-errno).
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

/**
 * dedupfs_pool_set_limit - most pages that the pool may hold
 * @pool:	pool
 * @limit:	pages; 0: no limit
 *
 * Context: may sleep.
 */
void dedupfs_pool_set_limit(struct dedupfs_pool *pool, unsigned long limit)
{
	WRITE_ONCE(pool->limit, limit);
	dedupfs_shrink_to_limit(pool);
}
