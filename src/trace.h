/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Tracepoints: what the data path decided, and for which file and block.
 * /sys/kernel/tracing/events/dedupfs/; none is on the path of a hit.
 */
#undef TRACE_SYSTEM
#define TRACE_SYSTEM dedupfs

#if !defined(DEDUPFS_TRACE_H) || defined(TRACE_HEADER_MULTI_READ)
#define DEDUPFS_TRACE_H

#include <linux/tracepoint.h>

/* A window was resolved: what came of it. */
TRACE_EVENT(dedupfs_populate,
	TP_PROTO(struct inode *lower, pgoff_t index, pgoff_t nr, int err),
	TP_ARGS(lower, index, nr, err),
	TP_STRUCT__entry(
		__field(dev_t, dev)
		__field(u64, ino)
		__field(u64, index)
		__field(u64, nr)
		__field(int, err)
	),
	TP_fast_assign(
		__entry->dev = lower->i_sb->s_dev;
		__entry->ino = lower->i_ino;
		__entry->index = index;
		__entry->nr = nr;
		__entry->err = err;
	),
	/* result: 0, -errno, or a reason (enum dedupfs_reason) */
	TP_printk("dev %d:%d ino %llu pages %llu+%llu result %d",
		  MAJOR(__entry->dev), MINOR(__entry->dev), __entry->ino,
		  __entry->index, __entry->nr, __entry->err)
);

/* A range was attached to blocks, with a fill or without. */
TRACE_EVENT(dedupfs_attach,
	TP_PROTO(struct inode *lower, pgoff_t index, pgoff_t nr, u64 block, bool filled),
	TP_ARGS(lower, index, nr, block, filled),
	TP_STRUCT__entry(
		__field(dev_t, dev)
		__field(u64, ino)
		__field(u64, index)
		__field(u64, nr)
		__field(u64, block)
		__field(bool, filled)
	),
	TP_fast_assign(
		__entry->dev = lower->i_sb->s_dev;
		__entry->ino = lower->i_ino;
		__entry->index = index;
		__entry->nr = nr;
		__entry->block = block;
		__entry->filled = filled;
	),
	TP_printk("dev %d:%d ino %llu pages %llu+%llu block %llu%s",
		  MAJOR(__entry->dev), MINOR(__entry->dev), __entry->ino,
		  __entry->index, __entry->nr, __entry->block,
		  __entry->filled ? " filled" : "")
);

/* A range was let go of: changed, stale, or not proven. */
TRACE_EVENT(dedupfs_detach,
	TP_PROTO(struct inode *lower, pgoff_t first, pgoff_t last),
	TP_ARGS(lower, first, last),
	TP_STRUCT__entry(
		__field(dev_t, dev)
		__field(u64, ino)
		__field(u64, first)
		__field(u64, last)
	),
	TP_fast_assign(
		__entry->dev = lower->i_sb->s_dev;
		__entry->ino = lower->i_ino;
		__entry->first = first;
		__entry->last = last;
	),
	TP_printk("dev %d:%d ino %llu pages %llu..%llu",
		  MAJOR(__entry->dev), MINOR(__entry->dev), __entry->ino,
		  __entry->first, __entry->last)
);

/* The pool gave pages back. */
TRACE_EVENT(dedupfs_shrink,
	TP_PROTO(struct super_block *lower_sb, unsigned long scan, unsigned long freed,
		 unsigned long left),
	TP_ARGS(lower_sb, scan, freed, left),
	TP_STRUCT__entry(
		__field(dev_t, dev)
		__field(unsigned long, scan)
		__field(unsigned long, freed)
		__field(unsigned long, left)
	),
	TP_fast_assign(
		__entry->dev = lower_sb->s_dev;
		__entry->scan = scan;
		__entry->freed = freed;
		__entry->left = left;
	),
	TP_printk("dev %d:%d scan %lu freed %lu left %lu",
		  MAJOR(__entry->dev), MINOR(__entry->dev),
		  __entry->scan, __entry->freed, __entry->left)
);

#endif /* DEDUPFS_TRACE_H */

#undef TRACE_INCLUDE_PATH
#define TRACE_INCLUDE_PATH .
#undef TRACE_INCLUDE_FILE
#define TRACE_INCLUDE_FILE trace
#include <trace/define_trace.h>
