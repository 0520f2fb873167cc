// SPDX-License-Identifier: GPL-2.0-only
/*
 * Maps: what is known of one lower inode, found by whoever has it.
 *
 * A map belongs to one lower inode.  Its extents (extent.c) say where the data
 * is.  All of them are true while the lower change counter equals the map's
 * baseline (rules 3 and 5; baseline.c), and no longer.  Several upper inodes
 * may use one map, and it outlives them while pages of it are in the pool.
 */
#include <linux/dcache.h>
#include <linux/exportfs.h>
#include <linux/slab.h>
#include "extent.h"

static const struct rhashtable_params map_params = {
	.key_len	= sizeof(struct inode *),
	.key_offset	= offsetof(struct dedupfs_map, lower),
	.head_offset	= offsetof(struct dedupfs_map, node),
	/* 32 KiB.  Trees have thousands of files; growing is dear. */
	.min_size	= 4096,
	.automatic_shrinking = true,
};

/* For a new pool.  Return: 0 or -ENOMEM. */
int dedupfs_maps_init(struct dedupfs_pool *pool)
{
	INIT_LIST_HEAD(&pool->map_list);
	return rhashtable_init(&pool->maps, &map_params);
}

static struct dedupfs_map *map_find(struct dedupfs_pool *pool, struct inode *lower)
{
	lockdep_assert_held(&pool->sem);
	return rhashtable_lookup_fast(&pool->maps, &lower, map_params);
}

static struct dedupfs_map *map_new(struct dedupfs_pool *pool, struct inode *lower)
{
	struct dedupfs_map *map;

	/* A loop device for swap may lie on the mount. */
	map = kzalloc(sizeof(*map), GFP_NOIO);
	if (!map)
		return NULL;
	refcount_set(&map->ref, 1);
	map->pool = pool;
	ihold(lower);
	map->lower = lower;
	map->baseline = DEDUPFS_UNARMED;
	spin_lock_init(&map->lock);
	seqcount_spinlock_init(&map->seq, &map->lock);
	map->extents = RB_ROOT;
	mutex_init(&map->attach_mutex);
	map->unstable_until = jiffies;
	map->plain_until = jiffies;
	map->wrote_first = ULONG_MAX;
	mutex_init(&map->zap_mutex);
	init_rwsem(&map->fill_sem);
	return map;
}

/**
 * dedupfs_map_put - drop a reference; the last one lets go of the lower inode
 * @map:	map
 *
 * Context: may sleep; no pool->sem.
 */
void dedupfs_map_put(struct dedupfs_map *map)
{
	if (!refcount_dec_and_test(&map->ref))
		return;
	WARN_ON_ONCE(map->nr_extents);
	dedupfs_mark_remove(map);
	iput(map->lower);
	kfree_rcu(map, rcu);
}

/* Has the map no upper inode? */
static void set_idle(struct dedupfs_map *map, bool idle)
{
	struct dedupfs_pool *pool = map->pool;

	lockdep_assert_held_write(&pool->sem);
	if (map->idle == idle)
		return;
	map->idle = idle;
	WRITE_ONCE(pool->nr_idle, pool->nr_idle + (idle ? 1 : -1));
}

/**
 * dedupfs_map_get - the map of an upper inode, made at need
 * @di:		regular upper inode
 *
 * Finds the map that another upper inode of the same lower one has, or that
 * an earlier upper inode left because pages of it are still in the pool.
 *
 * Context: may sleep.
 * Return: the map, valid while the upper inode is, or NULL without memory.
 */
struct dedupfs_map *dedupfs_map_get(struct dedupfs_inode *di)
{
	struct dedupfs_pool *pool = dedupfs_pool(&di->vfs_inode);
	struct dedupfs_map *map = dedupfs_map_of(di), *new;

	if (likely(map))
		return map;

	/* Who reclaims memory may wait for the lock. */
	new = map_new(pool, di->lower);
	if (!new)
		return NULL;
	down_write(&pool->sem);
	map = di->map;
	if (map)
		goto out;
	map = map_find(pool, di->lower);
	if (!map) {
		if (rhashtable_insert_fast(&pool->maps, &new->node, map_params))
			goto out;
		map = new;
		new = NULL;
		list_add_tail(&map->list, &pool->map_list);
	}
	map->users++;
	set_idle(map, false);
	spin_lock(&di->vfs_inode.i_lock);
	atomic_add(di->writers, &map->writers);
	/* Pairs with dedupfs_map_of(): the map is seen whole. */
	smp_store_release(&di->map, map);
	spin_unlock(&di->vfs_inode.i_lock);
out:
	up_write(&pool->sem);
	if (new)
		dedupfs_map_put(new);
	return map;
}

/**
 * dedupfs_map_changed_elsewhere - a file is changed through another pool
 * @pool:	pool whose map, if any, must not be carried over that, and has
 *		nothing mapped any more once it has happened
 * @lower:	lower inode
 *
 * Context: may sleep; may be a fault (that is not mapping).
 */
void dedupfs_map_changed_elsewhere(struct dedupfs_pool *pool, struct inode *lower)
{
	struct dedupfs_map *map;

	/*
	 * No pool->sem: a domain that has it for long holds up its own writers
	 * only.  A map that is made just now has no baseline from before.
	 */
	rcu_read_lock();
	map = rhashtable_lookup(&pool->maps, &lower, map_params);
	if (map && !refcount_inc_not_zero(&map->ref))
		map = NULL;
	rcu_read_unlock();
	if (!map)
		return;
	spin_lock(&map->lock);
	WRITE_ONCE(map->foreign, true);
	spin_unlock(&map->lock);
	dedupfs_drop_if_stale(map);
	dedupfs_map_put(map);
}

/* pool->sem held for writing.  The caller puts @map. */
static void map_remove(struct dedupfs_map *map)
{
	struct dedupfs_pool *pool = map->pool;
	pgoff_t last = ULONG_MAX;

	set_idle(map, false);
	/* No upper inode, so no mapping. */
	dedupfs_detach_extents(map, 0, &last);
	rhashtable_remove_fast(&pool->maps, &map->node, map_params);
	list_del(&map->list);
}

static bool map_has_pages(struct dedupfs_map *map)
{
	struct dedupfs_extent *ext;
	struct rb_node *node;

	for (node = rb_first(&map->extents); node; node = rb_next(node)) {
		ext = rb_entry(node, struct dedupfs_extent, file_node);
		if (ext->reason == DEDUPFS_POOLED &&
		    dedupfs_pool_any(map->pool, ext->block, ext->nr))
			return true;
	}
	return false;
}

/* Idle maps of a pool: at most; and where memory is short, only with hot pages. */
#define IDLE_MAX	65536
#define HOT_IDLE_MAX	4096
/* Extents that are looked at in reclaim, and of those for hot pages. */
#define LOOK_EXTENTS	64
#define HOT_EXTENTS	8

/*
 * An idle map pins the lower inode, which no reclaim can free, not even of the
 * cgroup charged for it.  So reclaim leaves few idle maps.
 */
static bool worth_keeping(struct dedupfs_map *map)
{
	struct dedupfs_extent *ext;
	struct rb_node *node;
	unsigned int n = 0, seen = 0;

	if (!(current->flags & PF_MEMALLOC))
		return map->pool->nr_idle < IDLE_MAX && map_has_pages(map);
	if (map->pool->nr_idle >= HOT_IDLE_MAX)
		return false;
	for (node = rb_first(&map->extents); node && n < HOT_EXTENTS && seen < LOOK_EXTENTS;
	     node = rb_next(node), seen++) {
		ext = rb_entry(node, struct dedupfs_extent, file_node);
		if (ext->reason != DEDUPFS_POOLED)
			continue;
		if (dedupfs_pool_any_hot(map->pool, ext->block, ext->nr))
			return true;
		n++;
	}
	return false;
}

#define REAP_INTERVAL	(5 * HZ)
#define REAP_SOON	max(1, HZ / 2)

/**
 * dedupfs_maps_reap_soon - pages were evicted; maps may be left that have none
 * @pool:	pool
 *
 * Context: any.
 */
void dedupfs_maps_reap_soon(struct dedupfs_pool *pool)
{
	if (READ_ONCE(pool->nr_idle) && !test_and_set_bit(0, &pool->reap_soon))
		mod_delayed_work(system_unbound_wq, &pool->reaper, REAP_SOON);
}

/**
 * dedupfs_map_leave - an upper inode is evicted
 * @di:		regular upper inode; the lower one is still held
 *
 * The map stays while pages of it are in the pool, so that hot pages do not
 * die with a dentry (and if it is memory that is wanted, only hot ones); it goes
 * at once if the lower file was unlinked.
 *
 * Context: may sleep; may be in reclaim without __GFP_FS.
 */
void dedupfs_map_leave(struct dedupfs_inode *di)
{
	struct dedupfs_map *map = di->map;
	struct dedupfs_pool *pool;
	bool put = false;

	if (!map)
		return;
	pool = map->pool;
	di->map = NULL;
	down_write(&pool->sem);
	if (!--map->users) {
		/* The next upper inode starts without a history. */
		WRITE_ONCE(map->tracked, false);
		put = !map->lower->i_nlink || !dedupfs_map_valid(map) || !worth_keeping(map);
		set_idle(map, !put);
		if (put)
			map_remove(map);
		else
			queue_delayed_work(system_unbound_wq, &pool->reaper, REAP_INTERVAL);
	}
	up_write(&pool->sem);
	if (put)
		dedupfs_map_put(map);
}

#define REAP_BATCH	32
/* Others wait for pool->sem meanwhile: maps of so many extents in all, or one. */
#define REAP_EXTENTS	4096

/*
 * Was the file's btrfs subvolume deleted?  Its link count does not say so, and
 * btrfs keeps all of a subvolume on disk while an inode of it is held.  A name
 * that is known below says no; else the file handle tells.
 */
static bool subvolume_is_gone(struct inode *lower)
{
	const struct export_operations *ops = lower->i_sb->s_export_op;
	struct dentry *dentry;
	__u32 raw[16];
	int type, len = ARRAY_SIZE(raw);

	if (!hlist_empty(&lower->i_dentry))
		return false;
	type = ops->encode_fh(lower, raw, &len, NULL);
	if (type == FILEID_INVALID)
		return false;
	dentry = ops->fh_to_dentry(lower->i_sb, (struct fid *)raw, len, type);
	if (IS_ERR(dentry))
		return dentry == ERR_PTR(-ENOENT) || dentry == ERR_PTR(-ESTALE);
	dput(dentry);
	return false;
}

/* Look at some of the next @todo maps.  Return: true if there are more. */
static bool reap_some(struct dedupfs_pool *pool, bool all, bool ask_now, unsigned int *todo,
		      bool *left)
{
	struct dedupfs_map *dead[REAP_BATCH], *ask[REAP_BATCH], *map;
	unsigned int n = 0, asked = 0, looked = 0, extents = 0, i;

	down_write(&pool->sem);
	for (; *todo && n < REAP_BATCH && asked < REAP_BATCH && looked++ < 16 * REAP_BATCH &&
	     extents < REAP_EXTENTS; --*todo) {
		map = list_first_entry_or_null(&pool->map_list, struct dedupfs_map, list);
		if (!map) {
			*todo = 0;
			break;
		}
		list_move_tail(&map->list, &pool->map_list);
		if (map->users)
			continue;
		extents += map->nr_extents;
		if (!all && map->lower->i_nlink && !map->gone && dedupfs_map_valid(map) &&
		    map_has_pages(map)) {
			*left = true;
			if (ask_now && hlist_empty(&map->lower->i_dentry)) {
				refcount_inc(&map->ref);
				ask[asked++] = map;
			}
			continue;
		}
		map_remove(map);
		dead[n++] = map;
	}
	up_write(&pool->sem);
	for (i = 0; i < n; i++)
		dedupfs_map_put(dead[i]);
	for (i = 0; i < asked; i++) {
		/* The next time that the reaper comes. */
		map = ask[i];
		map->gone = subvolume_is_gone(map->lower);
		dedupfs_map_put(map);
	}
	return *todo;
}

/**
 * dedupfs_maps_reap - let go of maps that no upper inode has any more
 * @pool:	pool
 *
 * Of unlinked or changed lower files, of those in deleted subvolumes, and of
 * those without a page in the pool.
 *
 * Context: work; may sleep.
 */
void dedupfs_maps_reap(struct dedupfs_pool *pool)
{
	unsigned int todo = atomic_read(&pool->maps.nelems);
	bool left = false, ask_now = false;

	/* Not each time that pages were evicted. */
	if (pool->has_subvolumes && time_after_eq(jiffies, pool->ask_at)) {
		ask_now = true;
		pool->ask_at = jiffies + REAP_INTERVAL;
	}
	while (reap_some(pool, false, ask_now, &todo, &left))
		cond_resched();
	if (left)
		queue_delayed_work(system_unbound_wq, &pool->reaper, REAP_INTERVAL);
}

/* The last mount is gone: free all maps and pages. */
void dedupfs_maps_destroy(struct dedupfs_pool *pool)
{
	unsigned int todo = atomic_read(&pool->maps.nelems);
	bool left;

	while (reap_some(pool, true, false, &todo, &left))
		cond_resched();
	WARN_ON_ONCE(!list_empty(&pool->map_list));
	rhashtable_destroy(&pool->maps);
}
