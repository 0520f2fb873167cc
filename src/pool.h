/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The data path's own interface: maps (map.c), their extents (extent.c) and
 * baselines (baseline.c), marks (mark.c), resolve (resolve.c), the FIEMAP observer
 * (fiemap.c), entries (pool.c) and fills (fill.c) of the pool, eviction (shrink.c),
 * work (work.c).
 * Only those files and join.c, read.c, fault.c, write.c, remap.c, file.c call these.
 */
#ifndef DEDUPFS_POOL_H
#define DEDUPFS_POOL_H

#include "dedupfs.h"

/* Pages of a first fill, and of a fill at most. */
#define DEDUPFS_FILL_MIN	32U
#define DEDUPFS_FILL_MAX	256U
/* Pages that one FIEMAP call of a resolve looks at. */
#define DEDUPFS_RESOLVE_PAGES	4096U
/* Extents that one resolve takes in; the range ends where they end. */
#define DEDUPFS_RESOLVE_EXTENTS	64U
/*
 * Pages that a read takes from below before it looks at the pool again; that a
 * worker sees to for a fault; and that are dropped at a time.
 */
#define DEDUPFS_STEP		16U

/* A copy of (a part of) an extent: safe to look at without any lock. */
struct dedupfs_range {
	pgoff_t index;		/* file page */
	pgoff_t nr;		/* pages */
	u64 block;		/* physical, in pages; 0 where @reason >= 0 */
	int reason;		/* DEDUPFS_POOLED, or why not */
	unsigned int seq;	/* map->seq of the lookup that it comes from */
};

/* One extent as FIEMAP tells it, in bytes. */
struct dedupfs_phys {
	u64 logical;
	u64 physical;
	u64 length;
	u32 flags;
};

/* fiemap.c */
int dedupfs_fiemap(const struct dedupfs_pool *pool, struct inode *lower, u64 start, u64 len,
		   u32 flags, struct dedupfs_phys *out, unsigned int max, bool *whole);
bool dedupfs_fiemap_works(void);

/* map.c */
struct dedupfs_map *dedupfs_map_get(struct dedupfs_inode *di);
void dedupfs_map_put(struct dedupfs_map *map);
void dedupfs_map_changed_elsewhere(struct dedupfs_pool *pool, struct inode *lower);
int dedupfs_maps_init(struct dedupfs_pool *pool);
void dedupfs_maps_destroy(struct dedupfs_pool *pool);
void dedupfs_maps_reap_soon(struct dedupfs_pool *pool);
void dedupfs_maps_reap(struct dedupfs_pool *pool);

/* extent.c */
bool dedupfs_map_lookup(struct dedupfs_map *map, pgoff_t index, struct dedupfs_range *r);
unsigned int dedupfs_mapping_begin(struct dedupfs_map *map);
void dedupfs_mapping_end(struct dedupfs_map *map, unsigned int turn);
void dedupfs_detach(struct dedupfs_map *map, pgoff_t first, pgoff_t last);
void dedupfs_drop_stale(struct dedupfs_map *map);
void dedupfs_serve_from_below(struct dedupfs_map *map, pgoff_t index);
void dedupfs_forget_unattached(struct dedupfs_map *map, pgoff_t first, pgoff_t last);
void dedupfs_zap_block(struct dedupfs_pool *pool, u64 block);

/* baseline.c */
int dedupfs_wait_for_writer(const struct dedupfs_pool *pool, struct inode *lower, bool other);
int dedupfs_locked_too_long(struct dedupfs_map *map);
bool dedupfs_in_place(struct inode *lower);
bool dedupfs_lower_dirty(struct inode *lower);
bool dedupfs_lower_failed(struct inode *lower);
pgoff_t dedupfs_dirty_run(struct inode *lower, pgoff_t index, pgoff_t max);
bool dedupfs_foreign_mapping(struct dedupfs_map *map);

/* resolve.c */

/*
 * How long a file is taken to be plain while its counter stands, and a part of
 * it even if it moves: it can become the source of a clone or a dedupe made
 * below, which moves only the other's.
 */
#define DEDUPFS_PLAIN_TIME	(5 * HZ)

void dedupfs_decide(struct inode *inode);
int dedupfs_populate(struct inode *inode, pgoff_t index, pgoff_t nr, bool limited,
		     atomic_t *slot);
void dedupfs_note_change(struct dedupfs_map *map, pgoff_t first, pgoff_t last);

/*
 * Do not try to resolve for @time jiffies; never shortens a longer ban.  @map
 * may be NULL.
 */
static inline void dedupfs_unstable_for(struct dedupfs_map *map, unsigned long time)
{
	unsigned long until = jiffies + time;

	if (map && !time_after(READ_ONCE(map->unstable_until), until))
		WRITE_ONCE(map->unstable_until, until);
}

/* Has anybody but us the lower file open for writing? */
static inline bool dedupfs_foreign_writers(struct dedupfs_map *map)
{
	int ours = atomic_read(&map->writers), all;

	/* One of ours may come or go meanwhile: it must not hide another's. */
	smp_rmb();
	all = atomic_read(&map->lower->i_writecount);
	/* As above. */
	smp_rmb();
	return all > min(ours, atomic_read(&map->writers));
}

/* fault.c, for baseline.c */
bool dedupfs_is_our_vma(const struct vm_area_struct *vma);

/* mark.c: foreign changes told from ours */
void dedupfs_track(struct dedupfs_map *map);
bool dedupfs_only_ours(struct dedupfs_map *map);
void dedupfs_mark_remove(struct dedupfs_map *map);

/* pool.c: entries */

/*
 * An entry of the pool is a page frame number, as a value entry in the way of
 * fs/dax.c.
 */
static inline void *dedupfs_entry_make(struct page *page)
{
	return xa_mk_value(page_to_pfn(page));
}

static inline struct page *dedupfs_entry_page(void *entry)
{
	return pfn_to_page(xa_to_value(entry));
}

/* Meaningful only for a page in the pool that a reference or the xa_lock keeps there. */
static __always_inline bool dedupfs_page_filling(struct page *page)
{
	return !folio_test_uptodate(page_folio(page));
}

/* How far is the pool with a block? */
enum dedupfs_state { DEDUPFS_ABSENT, DEDUPFS_FILLING, DEDUPFS_THERE };

enum dedupfs_state dedupfs_pool_state(struct dedupfs_pool *pool, u64 block);
struct page *dedupfs_pool_find(struct dedupfs_pool *pool, u64 block, bool *filling);
unsigned int dedupfs_pool_find_batch(struct dedupfs_pool *pool, u64 block, unsigned int nr,
				     struct page **pages);
bool dedupfs_pool_has(struct dedupfs_pool *pool, struct page *page);
u64 dedupfs_pool_next(struct dedupfs_pool *pool, u64 block, u64 end);
bool dedupfs_pool_evict(struct dedupfs_pool *pool, struct page *page);
void dedupfs_pool_drop(struct dedupfs_pool *pool, u64 first, u64 last);

/* Is there any published page in a range of blocks? */
static inline bool dedupfs_pool_any(struct dedupfs_pool *pool, u64 block, u64 nr)
{
	return dedupfs_pool_next(pool, block, block + nr) < block + nr;
}

bool dedupfs_pool_any_hot(struct dedupfs_pool *pool, u64 block, u64 nr);

void dedupfs_tell_other_pools(struct dedupfs_pool *pool, struct inode *lower);

/* fill.c */
struct dedupfs_fill;

s64 dedupfs_note_boot(void);
struct dedupfs_fill *dedupfs_fill_start(struct inode *inode, const struct dedupfs_range *r,
					unsigned int nr_ranges, pgoff_t index, pgoff_t nr,
					bool limited, atomic_t *slot);
pgoff_t dedupfs_fill_pages(const struct dedupfs_fill *fill);
int dedupfs_fill_read(struct dedupfs_fill *fill, struct inode *inode);
int dedupfs_wait_for_fill(struct dedupfs_map *map, u64 block);
void dedupfs_fill_publish(struct dedupfs_fill *fill);
void dedupfs_fill_end(struct dedupfs_fill *fill);
bool dedupfs_fill_next_range(struct dedupfs_fill *fill, u64 *block, u64 *nr, unsigned int *pos);

/* Bytes of page @index that lie inside a file of @size bytes, at most a page. */
static inline unsigned int dedupfs_valid_bytes(loff_t size, pgoff_t index)
{
	loff_t left = size - ((loff_t)index << PAGE_SHIFT);

	return clamp_t(loff_t, left, 0, PAGE_SIZE);
}

/* The part of a pool page that holds data; the rest is zeroes. */
static inline unsigned int dedupfs_page_valid(const struct page *page)
{
	return page->private;
}

/* work.c */
struct dedupfs_wait {
	refcount_t ref;
	struct completion done;
};

bool dedupfs_populate_async(struct inode *inode, pgoff_t index, pgoff_t nr,
			    struct dedupfs_wait *wait, bool below);
int dedupfs_populate_charged(struct inode *inode, pgoff_t index, pgoff_t nr);
struct dedupfs_wait *dedupfs_wait_new(void);
struct dedupfs_wait *dedupfs_wait_get(struct dedupfs_wait *wait);
void dedupfs_wait_put(struct dedupfs_wait *wait);
void dedupfs_work_begin(struct inode *inode);
void dedupfs_work_end(struct inode *inode);
void dedupfs_queue_fill(struct work_struct *work);

/* write.c: direct I/O */
ssize_t dedupfs_direct_read(struct kiocb *iocb, struct iov_iter *iter);

/*
 * Were the @nr pages found while the map was attached to their blocks?  Asked
 * once they are held.  Where the map has not changed since the lookup, it was
 * so all the time; else the file may have lost the blocks and got them again
 * meanwhile, and the pages be another's: they must be in the pool even now.
 */
static inline bool dedupfs_still_attached(struct dedupfs_map *map, const struct dedupfs_range *r,
					  struct page **pages, unsigned int nr)
{
	struct dedupfs_range now;
	unsigned int i;

	if (likely(!read_seqcount_retry(&map->seq, r->seq)))
		return dedupfs_map_valid(map);
	if (!dedupfs_map_valid(map) || !dedupfs_map_lookup(map, r->index, &now) ||
	    now.reason != DEDUPFS_POOLED || now.block != r->block || now.nr < nr)
		return false;
	for (i = 0; i < nr; i++)
		if (!dedupfs_pool_has(map->pool, pages[i]))
			return false;
	return !read_seqcount_retry(&map->seq, now.seq) && dedupfs_map_valid(map);
}

/* @map may be NULL, and mostly is valid, or has nothing that could be stale. */
static inline void dedupfs_drop_if_stale(struct dedupfs_map *map)
{
	if (!map || dedupfs_map_valid(map))
		return;
	if (!READ_ONCE(map->nr_extents)) {
		/* In this order: see dedupfs_drop_stale(). */
		smp_rmb();
		if (!atomic_read(&map->zaps))
			return;
	}
	dedupfs_drop_stale(map);
}

/* May something of the file be mapped that was changed beneath?  Cheap; any context. */
static inline bool dedupfs_may_be_stale(struct dedupfs_map *map)
{
	return map && !dedupfs_map_valid(map) &&
	       (READ_ONCE(map->nr_extents) || atomic_read(&map->zaps)) &&
	       (!READ_ONCE(map->tracked) || dedupfs_foreign_writers(map) ||
		READ_ONCE(map->foreign));	/* in this order: dedupfs_only_ours() */
}

/* What was changed beneath the mount is mapped no longer after this.  May sleep. */
static inline void dedupfs_look_for_changes(struct dedupfs_inode *di)
{
	struct dedupfs_map *map = dedupfs_map_of(di);

	if (dedupfs_may_be_stale(map))
		dedupfs_drop_stale(map);
}

/* shrink.c */
int dedupfs_shrink_init(struct dedupfs_pool *pool);
void dedupfs_shrink_exit(struct dedupfs_pool *pool);
void dedupfs_lru_add(struct dedupfs_pool *pool, struct page **pages, unsigned int nr);
void dedupfs_lru_del(struct dedupfs_pool *pool, struct page *page);
void dedupfs_shrink_to_limit(struct dedupfs_pool *pool);

/*
 * Pages that one fill may bring: what was read has to stay until its reader has
 * come to it, and the next windows with it.
 */
static inline unsigned int dedupfs_fill_max(const struct dedupfs_pool *pool)
{
	unsigned long limit = READ_ONCE(pool->limit);

	return limit ? clamp(limit / 4, 1UL, (unsigned long)DEDUPFS_FILL_MAX) : DEDUPFS_FILL_MAX;
}

/*
 * Is the pool more than a quarter above its limit?  Then pages are held that
 * cannot be evicted.
 */
static inline bool dedupfs_far_above_limit(const struct dedupfs_pool *pool)
{
	unsigned long limit = READ_ONCE(pool->limit);

	return limit && atomic_long_read(&pool->nr_pages) > limit + limit / 4 + DEDUPFS_FILL_MAX;
}

/* Read or mapped: once, or again, since eviction last looked at it. */
static inline void dedupfs_page_used(struct page *page)
{
	struct folio *folio = page_folio(page);

	if (!folio_test_referenced(folio))
		folio_set_referenced(folio);
	else if (!folio_test_workingset(folio))
		folio_set_workingset(folio);
}

#endif /* DEDUPFS_POOL_H */
