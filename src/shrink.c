// SPDX-License-Identifier: GPL-2.0-only
/*
 * Eviction: the shrinker and the pool limit.
 *
 * Rule 14: this can run inside a transaction of the lower filesystem, so it
 * waits for no sleeping lock but i_mmap_rwsem, which rmap takes in reclaim as
 * well, allocates nothing, and never drops the last reference of an inode or a
 * map.  Each memory node has an inactive and an active list of its own (list_lru
 * cannot take a struct page).  A page that was used twice since it was last
 * looked at goes active: what is read once and never again must not drive out
 * what is in use.  A mapped page is zapped and gets another round, in which a
 * fault counts as its second use; any other is freed.
 *
 * Locks: pool->sem (read, try) -> i_mmap_rwsem; node->lock is innermost.
 */
#include <linux/mm.h>
#include <linux/pagemap.h>
#include <linux/slab.h>
#include <linux/swap.h>
#include "pool.h"
#include "trace.h"

#define SCAN_BATCH	16

static struct dedupfs_pool_node *node_of(struct dedupfs_pool *pool, struct page *page)
{
	return &pool->nodes[page_to_nid(page)];
}

static void account(struct page *page, int nr)
{
	mod_node_page_state(page_pgdat(page), NR_KERNEL_MISC_RECLAIMABLE, nr);
}

/**
 * dedupfs_lru_add - pages were published
 * @pool:	pool
 * @pages:	with the pool's reference, and nobody to drop it meanwhile
 * @nr:		in @pages
 */
void dedupfs_lru_add(struct dedupfs_pool *pool, struct page **pages, unsigned int nr)
{
	struct dedupfs_pool_node *node;
	unsigned int i, k, n;

	for (i = 0; i < nr; i += n) {
		node = node_of(pool, pages[i]);
		for (n = 1; i + n < nr && node_of(pool, pages[i + n]) == node; n++)
			;
		/* First: evict can free them as soon as they are on the list. */
		account(pages[i], n);
		spin_lock(&node->lock);
		for (k = i; k < i + n; k++)
			list_add(&pages[k]->lru, &node->inactive);
		WRITE_ONCE(node->nr, node->nr + n);
		spin_unlock(&node->lock);
	}
}

/* A page left the pool. */
void dedupfs_lru_del(struct dedupfs_pool *pool, struct page *page)
{
	struct dedupfs_pool_node *node = node_of(pool, page);

	spin_lock(&node->lock);
	list_del_init(&page->lru);
	WRITE_ONCE(node->nr, node->nr - 1);
	if (folio_test_active(page_folio(page))) {
		folio_clear_active(page_folio(page));
		node->nr_active--;
	}
	folio_clear_referenced(page_folio(page));
	folio_clear_workingset(page_folio(page));
	spin_unlock(&node->lock);
	account(page, -1);
}

static void make_active(struct dedupfs_pool *pool, struct page *page)
{
	struct dedupfs_pool_node *node = node_of(pool, page);

	spin_lock(&node->lock);
	if (!list_empty(&page->lru) && !folio_test_active(page_folio(page))) {
		folio_set_active(page_folio(page));
		node->nr_active++;
		list_move(&page->lru, &node->active);
	}
	spin_unlock(&node->lock);
}

/* Keep at least half of the pages inactive; used ones get another turn. */
static void refill_inactive(struct dedupfs_pool_node *node, unsigned int nr)
{
	struct page *page;

	lockdep_assert_held(&node->lock);
	while (nr-- && node->nr_active * 2 > node->nr) {
		page = list_last_entry(&node->active, struct page, lru);
		folio_clear_workingset(page_folio(page));
		if (folio_test_clear_referenced(page_folio(page))) {
			list_move(&page->lru, &node->active);
			continue;
		}
		folio_clear_active(page_folio(page));
		node->nr_active--;
		list_move(&page->lru, &node->inactive);
	}
}

/* Take references to the oldest inactive pages; they move to the young end. */
static unsigned int isolate(struct dedupfs_pool_node *node, struct page **pages)
{
	unsigned int n = 0, tries;
	struct page *page;

	spin_lock(&node->lock);
	refill_inactive(node, 2 * SCAN_BATCH);
	for (tries = 0; tries < SCAN_BATCH && !list_empty(&node->inactive); tries++) {
		page = list_last_entry(&node->inactive, struct page, lru);
		list_move(&page->lru, &node->inactive);
		if (get_page_unless_zero(page))
			pages[n++] = page;
	}
	spin_unlock(&node->lock);
	return n;
}

/* Use up the caller's reference.  Return: true if the page was freed. */
static bool evict(struct dedupfs_pool *pool, struct page *page)
{
	struct folio *folio = page_folio(page);

	if (folio_test_clear_workingset(folio) && !PageHWPoison(page)) {
		folio_clear_referenced(folio);
		make_active(pool, page);
	} else if (!page_mapped(page)) {
		if (dedupfs_pool_evict(pool, page))
			return true;
	} else if (down_read_trylock(&pool->sem)) {
		dedupfs_zap_block(pool, page->index);
		up_read(&pool->sem);
		/* Zapping an accessed PTE marks the page; only the next fault shall. */
		folio_clear_workingset(folio);
		folio_set_referenced(folio);
	}
	put_page(page);
	return false;
}

static unsigned long scan_node(struct dedupfs_pool *pool, struct dedupfs_pool_node *node,
			       unsigned long nr_to_scan, unsigned long nr_to_free)
{
	unsigned long scanned = 0, freed = 0;
	struct page *pages[SCAN_BATCH];
	unsigned int n, i;

	while (scanned < nr_to_scan && freed < nr_to_free) {
		n = isolate(node, pages);
		if (!n)
			break;
		for (i = 0; i < n; i++)
			freed += evict(pool, pages[i]);
		scanned += n;
		cond_resched();
	}
	dedupfs_count(pool, DEDUPFS_EVICTIONS, freed);
	if (freed)
		dedupfs_maps_reap_soon(pool);
	trace_dedupfs_shrink(pool->lower_sb, nr_to_scan, freed, READ_ONCE(node->nr));
	return freed;
}

static unsigned long shrink_count(struct shrinker *shrinker, struct shrink_control *sc)
{
	struct dedupfs_pool *pool = shrinker->private_data;
	unsigned long nr = READ_ONCE(pool->nodes[sc->nid].nr);

	return nr ?: SHRINK_EMPTY;
}

static unsigned long shrink_scan(struct shrinker *shrinker, struct shrink_control *sc)
{
	struct dedupfs_pool *pool = shrinker->private_data;
	unsigned long freed;

	freed = scan_node(pool, &pool->nodes[sc->nid], sc->nr_to_scan, sc->nr_to_scan);
	mm_account_reclaimed_pages(freed);
	sc->nr_scanned = sc->nr_to_scan;
	return freed;
}

/* How many pages are looked at for each that is to go: no more, if they are in use. */
#define LOOK_RATIO	32
#define LOOK_MIN	1024

/**
 * dedupfs_shrink_to_limit - evict what is over the pool's limit
 * @pool:	pool
 *
 * Gives up after it has looked at every page three times, or at many: pages
 * that are in use stay, and the limit is met later.
 *
 * Context: may sleep.  No page lock, no pool->sem.
 */
void dedupfs_shrink_to_limit(struct dedupfs_pool *pool)
{
	unsigned long limit = READ_ONCE(pool->limit);
	unsigned long look;
	long over;
	int nid, round;

	if (!limit)
		return;
	for (round = 0; round < 3; round++) {
		for_each_online_node(nid) {
			over = atomic_long_read(&pool->nr_pages) - (long)limit;
			if (over <= 0)
				return;
			look = min_t(unsigned long, READ_ONCE(pool->nodes[nid].nr),
				     LOOK_RATIO * over + LOOK_MIN);
			scan_node(pool, &pool->nodes[nid], look, over);
			cond_resched();
		}
	}
}

/**
 * dedupfs_shrink_init - set up the lists and register the shrinker of a new pool
 * @pool:	pool
 *
 * Return: 0 or -ENOMEM.
 */
int dedupfs_shrink_init(struct dedupfs_pool *pool)
{
	int nid;

	pool->nodes = kcalloc(nr_node_ids, sizeof(*pool->nodes), GFP_KERNEL);
	if (!pool->nodes)
		return -ENOMEM;
	for (nid = 0; nid < nr_node_ids; nid++) {
		spin_lock_init(&pool->nodes[nid].lock);
		INIT_LIST_HEAD(&pool->nodes[nid].active);
		INIT_LIST_HEAD(&pool->nodes[nid].inactive);
	}
	pool->shrinker = shrinker_alloc(SHRINKER_NUMA_AWARE, "dedupfs-%s",
					pool->lower_sb->s_id);
	if (!pool->shrinker) {
		kfree(pool->nodes);
		return -ENOMEM;
	}
	pool->shrinker->count_objects = shrink_count;
	pool->shrinker->scan_objects = shrink_scan;
	pool->shrinker->seeks = DEFAULT_SEEKS;
	pool->shrinker->private_data = pool;
	shrinker_register(pool->shrinker);
	if (!dedupfs_shrinker_is_registered(pool->shrinker)) {
		dedupfs_shrink_exit(pool);
		return -ENOMEM;
	}
	return 0;
}

/* No page is left, or will be looked at again. */
void dedupfs_shrink_exit(struct dedupfs_pool *pool)
{
	shrinker_free(pool->shrinker);
	kfree(pool->nodes);
}
