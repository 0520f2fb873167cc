// SPDX-License-Identifier: GPL-2.0-only
/*
 * FIEMAP from inside the kernel.
 *
 * ->fiemap copies extents to user memory.  In count mode it copies nothing
 * and still calls fiemap_fill_next_extent() once for each extent; a passive
 * ftrace_ops reads that function's arguments.  Our calls are told from all
 * others by where the fiemap_extent_info lies: inside a collector of ours,
 * which names itself and its task.  The number of extents seen must equal the
 * number counted, or the answer is void.  Count mode has no end but that of the
 * range; where the filesystem knows how to stop, it is made to when there is no
 * room for more.
 *
 * No locks.  The observer runs in the context of the ->fiemap that it sees.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/fiemap.h>
#include <linux/ftrace.h>
#include "pool.h"

struct collector {
	struct fiemap_extent_info fi;
	struct task_struct *task;
	struct dedupfs_phys *out;
	unsigned int max;
	unsigned int seen;
	bool stop;		/* when there is no more room in @out */
};

static bool observer_registered;

#ifdef CONFIG_DYNAMIC_FTRACE_WITH_REGS

static void notrace observe(unsigned long ip, unsigned long parent_ip,
			    struct ftrace_ops *ops, struct ftrace_regs *fregs)
{
	struct pt_regs *regs = ftrace_get_regs(fregs);
	struct fiemap_extent_info *fi;
	struct collector *c;
	struct dedupfs_phys *p;

	if (!regs)
		return;
	fi = (struct fiemap_extent_info *)regs_get_kernel_argument(regs, 0);
	/* @fi is the caller's; @c is read only once the addresses agree. */
	c = container_of(fi, struct collector, fi);
	if (fi->fi_extents_max || (__force void *)fi->fi_extents_start != c ||
	    c->task != current)
		return;

	if (c->seen < c->max) {
		p = &c->out[c->seen];
		p->logical = regs_get_kernel_argument(regs, 1);
		p->physical = regs_get_kernel_argument(regs, 2);
		p->length = regs_get_kernel_argument(regs, 3);
		p->flags = regs_get_kernel_argument(regs, 4);
	} else if (c->stop) {
		/* The function finds its array full, and tells the filesystem to stop. */
		fi->fi_extents_max = fi->fi_extents_mapped;
	}
	c->seen++;
}

static struct ftrace_ops observer = {
	.func	= observe,
	.flags	= FTRACE_OPS_FL_SAVE_REGS | FTRACE_OPS_FL_PERMANENT,
};

/**
 * dedupfs_fiemap_init - start to observe fiemap_fill_next_extent()
 *
 * Where that cannot work (no ftrace, ftrace_enabled=0) the module
 * loads all the same, and everything is plain.
 *
 * Return: 0.
 */
int dedupfs_fiemap_init(void)
{
	int err;

	err = ftrace_set_filter_ip(&observer, (unsigned long)fiemap_fill_next_extent, 0, 0);
	if (!err)
		err = register_ftrace_function(&observer);
	if (err)
		pr_warn("cannot observe FIEMAP (error %d): nothing will be shared; check /proc/sys/kernel/ftrace_enabled, then load the module again\n",
			err);
	observer_registered = !err;
	if (err)
		ftrace_free_filter(&observer);
	return 0;
}

/* Stop observing. */
void dedupfs_fiemap_exit(void)
{
	if (!observer_registered)
		return;
	if (!unregister_ftrace_function(&observer)) {
		ftrace_free_filter(&observer);
		return;
	}
	/* The kernel has switched ftrace off for good, with the calls to us in place. */
	pr_emerg("ftrace has failed, and still calls this module: it cannot be unloaded before a reboot\n");
	for (;;)
		schedule_timeout_idle(MAX_SCHEDULE_TIMEOUT);
}

#else /* !CONFIG_DYNAMIC_FTRACE_WITH_REGS */

int dedupfs_fiemap_init(void)
{
	pr_warn("this kernel has no ftrace with registers (CONFIG_DYNAMIC_FTRACE_WITH_REGS): nothing will be shared\n");
	return 0;
}

void dedupfs_fiemap_exit(void)
{
}

#endif

/**
 * dedupfs_fiemap - the physical extents of a range of a lower file
 * @pool:	its pool
 * @lower:	lower inode
 * @start:	bytes, page aligned
 * @len:	bytes
 * @flags:	FIEMAP_FLAG_SYNC or 0
 * @out:	extents, in file order; may reach beyond the range on btrfs
 * @max:	room in @out
 * @whole:	false if there were more than @max
 *
 * Context: may sleep; takes the lower i_rwsem (shared), so the caller does not
 * hold it.  A fill calls it with claimed pages locked.
 * Return: extents stored in @out, or -errno.  -EIO: the observer did not see
 * what the filesystem counted; -EINTR: the caller was killed; -EAGAIN: as of
 * dedupfs_wait_for_writer().
 */
int dedupfs_fiemap(const struct dedupfs_pool *pool, struct inode *lower, u64 start, u64 len,
		   u32 flags, struct dedupfs_phys *out, unsigned int max, bool *whole)
{
	struct collector c = {
		.fi.fi_flags	= flags,
		.task		= current,
		.out		= out,
		.max		= max,
		.stop		= pool->fiemap_stops,
	};
	int err;

	if (!observer_registered || !lower->i_op->fiemap)
		return -EOPNOTSUPP;

	/* The lower filesystem waits for it unkillably: a writer may wait for the disk. */
	err = dedupfs_wait_for_writer(pool, lower, false);
	if (err)
		return err;
	c.fi.fi_extents_start = (__force struct fiemap_extent __user *)(void *)&c;
	err = lower->i_op->fiemap(lower, &c.fi, start, len);
	if (err < 0)
		return err;
	/* (The one at which it stopped was not counted.) */
	if (c.seen != c.fi.fi_extents_mapped + !!c.fi.fi_extents_max)
		return -EIO;
	*whole = c.seen <= max;
	return min(c.seen, max);
}

/**
 * dedupfs_fiemap_works - does the observer see calls of fiemap_fill_next_extent()?
 *
 * The self-test of a new pool, without a filesystem.  A mismatch later voids
 * that one answer.
 *
 * Context: may sleep.
 * Return: true if it does.
 */
bool dedupfs_fiemap_works(void)
{
	struct fiemap_extent_info fi;
	struct dedupfs_phys p;
	struct collector c = { .task = current, .out = &p, .max = 1 };

	if (!observer_registered)
		return false;
	c.fi.fi_extents_start = (__force struct fiemap_extent __user *)(void *)&c;
	fi = c.fi;
	/* Once seen, once not: a call that is not ours must leave no trace. */
	fiemap_fill_next_extent(&c.fi, PAGE_SIZE, 2 * PAGE_SIZE, 3 * PAGE_SIZE, 4);
	fiemap_fill_next_extent(&fi, PAGE_SIZE, 2 * PAGE_SIZE, 3 * PAGE_SIZE, 4);
	return c.seen == 1 && c.fi.fi_extents_mapped == 1 && p.logical == PAGE_SIZE &&
	       p.physical == 2 * PAGE_SIZE && p.length == 3 * PAGE_SIZE && p.flags == 4;
}
