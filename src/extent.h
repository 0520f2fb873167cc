/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What map.c, extent.c, baseline.c, join.c and resolve.c share among themselves.
 */
#ifndef DEDUPFS_EXTENT_H
#define DEDUPFS_EXTENT_H

#include "pool.h"

/* Ranges of files to zap once pool->sem is free: no more than fit on a stack. */
#define ZAP_LIST_MAX	16

struct dedupfs_zap_list {
	unsigned int nr;
	struct {
		struct dedupfs_map *map;
		pgoff_t first;
		pgoff_t last;
	} zap[ZAP_LIST_MAX + 1];	/* one for an error path */
};

/* Is no operation of ours changing the file, and has none since change_seq was sampled? */
static inline bool dedupfs_unchanged_since(const struct dedupfs_map *map, int change_seq)
{
	if (atomic_read(&map->changing))
		return false;
	/* Pairs with dedupfs_change_end(), which moves them in the other order. */
	smp_rmb();
	return atomic_read(&map->change_seq) == change_seq;
}

/*
 * An extent that was FIEMAPped again, for pages of the pool; it says nothing
 * at any other baseline than the one that its map had then.
 */
struct dedupfs_witness {
	struct dedupfs_map *map;
	u64 baseline;
	struct dedupfs_range r;
};

/* A part of a file that is being resolved, filled and attached. */
struct dedupfs_window {
	struct inode *inode;
	struct dedupfs_inode *di;
	struct dedupfs_map *map;
	struct dedupfs_pool *pool;
	pgoff_t index;		/* what is resolved: a file page, and pages */
	pgoff_t nr;
	pgoff_t filled;		/* pages at its beginning that the fill went through */
	u64 baseline;
	int change_seq;
	bool in_place;
	bool limited;		/* as of dedupfs_populate() */
	atomic_t *slot;
	bool last_try;
	bool joined;
	unsigned int nr_ranges;
	unsigned int nr_again;
	unsigned int nr_witnesses;
	struct dedupfs_zap_list zaps;
	struct dedupfs_witness witness[16];
	struct dedupfs_phys phys[DEDUPFS_RESOLVE_EXTENTS];
	/* An extent adds a hole before it and a cut page after it at most. */
	struct dedupfs_range ranges[3 * DEDUPFS_RESOLVE_EXTENTS + 1];
	struct dedupfs_range again[3 * DEDUPFS_RESOLVE_EXTENTS + 1];
};

static inline u64 dedupfs_block_last(const struct dedupfs_extent *ext)
{
	return ext->block + ext->nr - 1;
}

/* Extents are about to go, and are mapped until dedupfs_zap_end(). */
static inline void dedupfs_zap_begin(struct dedupfs_map *map)
{
	atomic_inc(&map->zaps);
	/*
	 * Seen by whoever sees that there are no extents any more.  Pairs with
	 * smp_rmb() in dedupfs_drop_if_stale() and dedupfs_drop_stale().
	 */
	smp_mb__after_atomic();
}

static inline void dedupfs_zap_end(struct dedupfs_map *map)
{
	smp_mb__before_atomic();	/* unmapped, before @zaps says so */
	atomic_dec(&map->zaps);
}

/* extent.c */
struct dedupfs_extent *dedupfs_extent_at_or_after(struct dedupfs_map *map, pgoff_t index);
bool dedupfs_extent_add(struct dedupfs_map *map, const struct dedupfs_range *r);
void dedupfs_extent_resize(struct dedupfs_map *map, struct dedupfs_extent *ext,
			   pgoff_t index, pgoff_t nr);
struct dedupfs_extent *dedupfs_attached_first(struct dedupfs_pool *pool, u64 block, u64 last);
struct dedupfs_extent *dedupfs_attached_next(struct dedupfs_extent *ext, u64 block, u64 last);
bool dedupfs_covered(struct dedupfs_pool *pool, u64 block, u64 *next);
bool dedupfs_detach_extents(struct dedupfs_map *map, pgoff_t first, pgoff_t *to);
bool dedupfs_detach_later(struct dedupfs_zap_list *list, struct dedupfs_map *map,
			  pgoff_t first, pgoff_t last);
void dedupfs_detach_unpublished(struct dedupfs_zap_list *list, struct dedupfs_map *map,
				pgoff_t first, pgoff_t last);
void dedupfs_map_kill(struct dedupfs_map *map, struct dedupfs_zap_list *list);
void dedupfs_zap(struct dedupfs_map *map, pgoff_t first, pgoff_t last);
void dedupfs_zap_all(struct dedupfs_zap_list *list);

/* baseline.c */
int dedupfs_baseline(struct dedupfs_map *map);
ssize_t dedupfs_still_maps(struct dedupfs_map *map, const struct dedupfs_range *r, u32 flags,
			   struct dedupfs_phys *phys);
pgoff_t dedupfs_clean_pages(struct inode *lower, pgoff_t index, pgoff_t nr);

/* join.c */
void dedupfs_find_witnesses(struct dedupfs_window *w);
void dedupfs_put_witnesses(struct dedupfs_window *w);
int dedupfs_attach(struct dedupfs_window *w, struct dedupfs_fill *fill);

#endif /* DEDUPFS_EXTENT_H */
