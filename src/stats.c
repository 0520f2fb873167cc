// SPDX-License-Identifier: GPL-2.0-only
/*
 * Statistics: /sys/fs/dedupfs/DEVICE[:DOMAIN]/, one value in each file.
 *
 * Sizes are in pages but for the names that say bytes, and all in not_shared/,
 * which is in bytes.  Event counters are kept for each CPU and summed when they
 * are read.  The directory lives as long as the pool; names_lock makes room for
 * a new pool of the same name while the old one is torn down.
 */
#include <linux/fs.h>
#include <linux/kobject.h>
#include <linux/percpu.h>
#include <linux/sysfs.h>

#include "dedupfs.h"

static struct kset *dedupfs_kset;
static DEFINE_MUTEX(names_lock);	/* adding and deleting in dedupfs_kset */

struct pool_attr {
	struct attribute attr;
	u64 (*value)(struct dedupfs_pool *pool);
	int stat;		/* of a counter: value is NULL */
};

static u64 sum(struct dedupfs_pool *pool, int stat)
{
	u64 total = 0;
	int cpu;

	for_each_possible_cpu(cpu)
		total += READ_ONCE(per_cpu_ptr(pool->stats, cpu)->count[stat]);
	return total;
}

static ssize_t pool_attr_show(struct kobject *kobj, struct attribute *attr, char *buf)
{
	struct dedupfs_pool *pool = container_of(kobj, struct dedupfs_pool, kobj);
	struct pool_attr *a = container_of(attr, struct pool_attr, attr);

	/* The root of a container has the same uid, and is not to see what others do. */
	if (!capable(CAP_SYS_ADMIN))
		return -EPERM;
	return sysfs_emit(buf, "%llu\n", a->value ? a->value(pool) : sum(pool, a->stat));
}

static const struct sysfs_ops pool_sysfs_ops = {
	.show = pool_attr_show,
};

static u64 pages_value(struct dedupfs_pool *pool)
{
	return atomic_long_read(&pool->nr_pages);
}

static u64 limit_value(struct dedupfs_pool *pool)
{
	return READ_ONCE(pool->limit);
}

static u64 attachments_value(struct dedupfs_pool *pool)
{
	return atomic_long_read(&pool->nr_attached);
}

static u64 observer_value(struct dedupfs_pool *pool)
{
	return pool->observer;
}

static u64 saved_bytes_value(struct dedupfs_pool *pool)
{
	return dedupfs_pool_saved(pool);
}

#define POOL_VALUE(_name)						\
	static struct pool_attr attr_##_name = {			\
		.attr = { .name = #_name, .mode = 0400 },		\
		.value = _name##_value,					\
	}

#define POOL_COUNTER(_name, _stat)					\
	static struct pool_attr attr_##_name = {			\
		.attr = { .name = #_name, .mode = 0400 },		\
		.stat = _stat,						\
	}

#define POOL_REASON(_name, _reason)					\
	static struct pool_attr reason_##_name = {			\
		.attr = { .name = #_name, .mode = 0400 },		\
		.stat = DEDUPFS_NOT_SHARED + (_reason),			\
	}

POOL_VALUE(pages);
POOL_VALUE(limit);
POOL_VALUE(attachments);
POOL_VALUE(observer);
POOL_VALUE(saved_bytes);
POOL_COUNTER(hits, DEDUPFS_HITS);
POOL_COUNTER(fills, DEDUPFS_FILLS);
POOL_COUNTER(fill_bytes, DEDUPFS_FILL_BYTES);
POOL_COUNTER(joins, DEDUPFS_JOINS);
POOL_COUNTER(joins_refused, DEDUPFS_JOINS_REFUSED);
POOL_COUNTER(evictions, DEDUPFS_EVICTIONS);
POOL_COUNTER(copy_ups, DEDUPFS_COPY_UPS);
POOL_COUNTER(stale, DEDUPFS_STALE);
POOL_COUNTER(carried, DEDUPFS_CARRIED);

POOL_REASON(plain, DEDUPFS_PLAIN);
POOL_REASON(hole, DEDUPFS_HOLE);
POOL_REASON(unwritten, DEDUPFS_UNWRITTEN);
POOL_REASON(dirty, DEDUPFS_DIRTY);
POOL_REASON(delalloc, DEDUPFS_DELALLOC);
POOL_REASON(inline, DEDUPFS_INLINE);
POOL_REASON(encoded, DEDUPFS_ENCODED);
POOL_REASON(unaligned, DEDUPFS_UNALIGNED);
POOL_REASON(nocow, DEDUPFS_NOCOW);
POOL_REASON(repeated, DEDUPFS_REPEATED);
POOL_REASON(unstable, DEDUPFS_UNSTABLE);
POOL_REASON(changing, DEDUPFS_CHANGING);
POOL_REASON(foreign, DEDUPFS_FOREIGN);
POOL_REASON(unresolved, DEDUPFS_UNRESOLVED);
POOL_REASON(tail, DEDUPFS_TAIL);

static struct attribute *pool_attrs[] = {
	&attr_pages.attr,
	&attr_limit.attr,
	&attr_attachments.attr,
	&attr_observer.attr,
	&attr_saved_bytes.attr,
	&attr_hits.attr,
	&attr_fills.attr,
	&attr_fill_bytes.attr,
	&attr_joins.attr,
	&attr_joins_refused.attr,
	&attr_evictions.attr,
	&attr_copy_ups.attr,
	&attr_stale.attr,
	&attr_carried.attr,
	NULL
};

/* Bytes served by the lower page cache, by enum dedupfs_reason. */
static struct attribute *reason_attrs[] = {
	[DEDUPFS_PLAIN]		= &reason_plain.attr,
	[DEDUPFS_HOLE]		= &reason_hole.attr,
	[DEDUPFS_UNWRITTEN]	= &reason_unwritten.attr,
	[DEDUPFS_DIRTY]		= &reason_dirty.attr,
	[DEDUPFS_DELALLOC]	= &reason_delalloc.attr,
	[DEDUPFS_INLINE]	= &reason_inline.attr,
	[DEDUPFS_ENCODED]	= &reason_encoded.attr,
	[DEDUPFS_UNALIGNED]	= &reason_unaligned.attr,
	[DEDUPFS_NOCOW]		= &reason_nocow.attr,
	[DEDUPFS_REPEATED]	= &reason_repeated.attr,
	[DEDUPFS_UNSTABLE]	= &reason_unstable.attr,
	[DEDUPFS_CHANGING]	= &reason_changing.attr,
	[DEDUPFS_FOREIGN]	= &reason_foreign.attr,
	[DEDUPFS_UNRESOLVED]	= &reason_unresolved.attr,
	[DEDUPFS_TAIL]		= &reason_tail.attr,
	[DEDUPFS_NR_REASONS]	= NULL
};

static const struct attribute_group pool_group = {
	.attrs = pool_attrs,
};

static const struct attribute_group reason_group = {
	.name = "not_shared",
	.attrs = reason_attrs,
};

static const struct attribute_group *pool_groups[] = {
	&pool_group,
	&reason_group,
	NULL
};

static void pool_kobj_release(struct kobject *kobj)
{
	complete(&container_of(kobj, struct dedupfs_pool, kobj)->kobj_gone);
}

static const struct kobj_type pool_ktype = {
	.release	= pool_kobj_release,
	.sysfs_ops	= &pool_sysfs_ops,
	.default_groups	= pool_groups,
};

/*
 * A pool that is being torn down, or whose device went away and left its name
 * to another, gives its directory up.
 */
static void free_name(const char *name)
{
	struct kobject *old = kset_find_obj(dedupfs_kset, name);

	if (!old)
		return;
	if (old->state_in_sysfs)
		kobject_del(old);
	kobject_put(old);
}

static char *pool_name(const struct dedupfs_pool *pool)
{
	char *name;

	name = kasprintf(GFP_KERNEL, "%s%s%s", pool->lower_sb->s_id,
			 pool->domain ? ":" : "", pool->domain ?: "");
	/* As the kobject would do it: a name has no slash. */
	if (name)
		strreplace(name, '/', '!');
	return name;
}

/**
 * dedupfs_stats_add - show a pool in sysfs
 * @pool: new pool, all but its kobj and kobj_gone set up
 *
 * Context: may sleep.
 * Return: 0, or a negative error; then dedupfs_stats_remove() is not called.
 */
int dedupfs_stats_add(struct dedupfs_pool *pool)
{
	char *name = pool_name(pool);
	int err;

	if (!name)
		return -ENOMEM;
	init_completion(&pool->kobj_gone);
	pool->kobj.kset = dedupfs_kset;
	mutex_lock(&names_lock);
	free_name(name);
	err = kobject_init_and_add(&pool->kobj, &pool_ktype, NULL, "%s", name);
	mutex_unlock(&names_lock);
	kfree(name);
	if (err) {
		kobject_put(&pool->kobj);
		wait_for_completion(&pool->kobj_gone);
	}
	return err;
}

/**
 * dedupfs_stats_remove - take a pool out of sysfs
 * @pool: pool; nobody reads its statistics when this returns
 *
 * Context: may sleep.
 */
void dedupfs_stats_remove(struct dedupfs_pool *pool)
{
	mutex_lock(&names_lock);
	if (pool->kobj.state_in_sysfs)
		kobject_del(&pool->kobj);
	mutex_unlock(&names_lock);
	kobject_put(&pool->kobj);
	wait_for_completion(&pool->kobj_gone);
}

/* Make /sys/fs/dedupfs.  Return: 0 or -ENOMEM. */
int dedupfs_stats_init(void)
{
	dedupfs_kset = kset_create_and_add(DEDUPFS_NAME, NULL, fs_kobj);
	return dedupfs_kset ? 0 : -ENOMEM;
}

/* Remove /sys/fs/dedupfs; no pool is left. */
void dedupfs_stats_exit(void)
{
	kset_unregister(dedupfs_kset);
}
