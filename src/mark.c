// SPDX-License-Identifier: GPL-2.0-only
/*
 * Telling foreign changes of a lower file from our own (rule 5).
 *
 * Our own operations (write, chmod, link, ...) move the lower change counter
 * as anybody else's do.  The baseline may be carried over them only if no
 * foreign change can hide among them.  An fsnotify mark on the lower inode,
 * set before our first modification, sees every foreign write, truncate and
 * close of a descriptor that was open for writing; one that is still open
 * shows in i_writecount, a writable mapping in the i_mmap tree.  Files that
 * we open below are FMODE_NONOTIFY, and metadata alone changes no content.
 * Files that fanotify hands out, and those that overlayfs opens before 6.8,
 * raise no event either: so carrying over also looks for dirty pages (README,
 * limits).
 *
 * Locks: mark->lock -> map->lock, inside fsnotify's; the event runs in the
 * writer's context, before its system call returns.
 */
#include <linux/dcache.h>
#include <linux/fsnotify_backend.h>
#include <linux/slab.h>
#include "pool.h"

#define MARK_EVENTS	(FS_MODIFY | FS_CLOSE_WRITE)

struct dedupfs_mark {
	struct fsnotify_mark fsn;
	struct dedupfs_map *map;	/* cleared by dedupfs_mark_remove() */
	bool gone;			/* the kernel took it off the inode */
	spinlock_t lock;		/* protects @map, @gone */
};

static struct fsnotify_group *group;

/*
 * Marks not freed yet, for unload: a task that waits for a permission answer
 * pins all marks of the inode.
 */
static atomic_t marks;

static void found_foreign(struct dedupfs_mark *mark)
{
	lockdep_assert_held(&mark->lock);
	spin_lock(&mark->map->lock);
	WRITE_ONCE(mark->map->foreign, true);
	spin_unlock(&mark->map->lock);
}

static int handle_event(struct fsnotify_mark *fsn, u32 mask, struct inode *inode,
			struct inode *dir, const struct qstr *name, u32 cookie)
{
	struct dedupfs_mark *mark = container_of(fsn, struct dedupfs_mark, fsn);

	spin_lock(&mark->lock);
	if (mark->map && READ_ONCE(mark->map->truncating) != current)
		found_foreign(mark);
	spin_unlock(&mark->lock);
	return 0;
}

/*
 * Linux 6.1 takes marks off an inode when one of its names goes
 * and the link count is zero, though the file may be open by another: from
 * now on nothing tells foreign changes from ours.
 */
static void freeing_mark(struct fsnotify_mark *fsn, struct fsnotify_group *g)
{
	struct dedupfs_mark *mark = container_of(fsn, struct dedupfs_mark, fsn);

	spin_lock(&mark->lock);
	WRITE_ONCE(mark->gone, true);
	if (mark->map)
		found_foreign(mark);
	spin_unlock(&mark->lock);
}

static void free_mark(struct fsnotify_mark *fsn)
{
	kfree(container_of(fsn, struct dedupfs_mark, fsn));
	if (atomic_dec_and_test(&marks))
		wake_up_var(&marks);
}

static const struct fsnotify_ops mark_ops = {
	.handle_inode_event	= handle_event,
	.freeing_mark		= freeing_mark,
	.free_mark		= free_mark,
};

/* Nothing finds the map by it any more. */
static void mark_destroy(struct dedupfs_mark *mark)
{
	spin_lock(&mark->lock);
	mark->map = NULL;
	spin_unlock(&mark->lock);
	fsnotify_destroy_mark(&mark->fsn, group);
	fsnotify_put_mark(&mark->fsn);
}

/* Return: true if the lower inode of the map has its mark. */
static bool mark_add(struct dedupfs_map *map)
{
	struct dedupfs_mark *mark, *first;

	/* Pairs with the store below. */
	mark = smp_load_acquire(&map->mark);
	if (mark)
		return !READ_ONCE(mark->gone);
	mark = kzalloc(sizeof(*mark), GFP_NOFS);
	if (!mark)
		return false;
	spin_lock_init(&mark->lock);
	mark->map = map;
	atomic_inc(&marks);
	fsnotify_init_mark(&mark->fsn, group);
	mark->fsn.mask = MARK_EVENTS;
	if (fsnotify_add_inode_mark(&mark->fsn, map->lower, 0)) {
		fsnotify_put_mark(&mark->fsn);
		return false;
	}
	/* Pairs with smp_load_acquire() above: seen whole. */
	first = cmpxchg_release(&map->mark, NULL, mark);
	if (!first)
		return true;
	/* Another of our operations was faster. */
	mark_destroy(mark);
	/* As above. */
	first = smp_load_acquire(&map->mark);
	return !READ_ONCE(first->gone);
}

/**
 * dedupfs_mark_remove - a map is freed
 * @map:	map; nobody else has a reference
 *
 * Context: may sleep.
 */
void dedupfs_mark_remove(struct dedupfs_map *map)
{
	if (map->mark)
		mark_destroy(map->mark);
}

/*
 * An overlayfs whose upper directory holds the file: before 6.8 it writes
 * without events.
 */
static bool under_overlay(struct inode *lower)
{
	struct dentry *dentry = d_find_any_alias(lower), *d;
	bool found = false;

	if (!dentry)
		return true;
	/* Another of its names may lie there. */
	found = DEDUPFS_OVERLAY_WRITES_UNSEEN && lower->i_nlink > 1;
	rcu_read_lock();
	for (d = dentry; !found && d != lower->i_sb->s_root; d = READ_ONCE(d->d_parent)) {
		struct inode *inode = d_inode_rcu(d);

		/* A name whose path is not known tells nothing. */
		found = IS_ROOT(d) || !inode || (READ_ONCE(inode->i_state) & I_OVL_INUSE);
	}
	rcu_read_unlock();
	dput(dentry);
	return found;
}

/**
 * dedupfs_only_ours - can only changes of ours have moved the counter?
 * @map:	map
 *
 * Since the baseline.  The caller looks for foreign writable mappings as well.
 *
 * Context: may sleep.
 */
bool dedupfs_only_ours(struct dedupfs_map *map)
{
	/* A close tells of itself before the writer is gone: look for him first. */
	return READ_ONCE(map->tracked) && !dedupfs_foreign_writers(map) &&
	       !READ_ONCE(map->foreign) && !under_overlay(map->lower);
}

/**
 * dedupfs_track - an operation of ours is about to move the counter
 * @map:	map
 *
 * Context: may sleep; may be a fault (takes no lower i_rwsem).
 */
void dedupfs_track(struct dedupfs_map *map)
{
	if (READ_ONCE(map->tracked) || !dedupfs_map_valid(map) || !mark_add(map))
		return;
	spin_lock(&map->lock);
	if (!map->tracked)
		WRITE_ONCE(map->foreign, false);
	spin_unlock(&map->lock);
	/* The mark is in place before the counter and the writers are looked at. */
	smp_mb();
	if (dedupfs_foreign_writers(map) || dedupfs_foreign_mapping(map) ||
	    under_overlay(map->lower))
		return;
	spin_lock(&map->lock);
	if (!map->foreign && !READ_ONCE(map->mark->gone) && dedupfs_map_valid(map))
		WRITE_ONCE(map->tracked, true);
	spin_unlock(&map->lock);
}

/* At module load.  Return: 0 or -errno. */
int dedupfs_mark_init(void)
{
	/* Of each pool an inode may have a map, and so a mark. */
	group = fsnotify_alloc_group(&mark_ops, FSNOTIFY_GROUP_NOFS | FSNOTIFY_GROUP_DUPS);
	return PTR_ERR_OR_ZERO(group);
}

/* At module unload; when it returns, no mark is left. */
void dedupfs_mark_exit(void)
{
	fsnotify_put_group(group);
	fsnotify_wait_marks_destroyed();
	wait_var_event(&marks, !atomic_read(&marks));
	/* Whoever freed the last one has returned to the kernel. */
	fsnotify_wait_marks_destroyed();
}
