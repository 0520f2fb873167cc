// SPDX-License-Identifier: GPL-2.0-only
/*
 * Everything that modifies data, and direct I/O.
 *
 * Rule 11, lower first: the lower file is what is written, by the caller and
 * with the caller's credentials and limits, so space, quota, append position,
 * set-id bits and errors are the lower filesystem's business.  What is ours:
 * a change is announced before (so that nothing is resolved meanwhile), its
 * range is detached and unmapped, and it is over only after the lower
 * operation returned.
 *
 * Locks: none of ours but the upper i_rwsem (truncate, fallocate) is held while
 * the lower filesystem works.
 */
#include <linux/fsnotify.h>
#include <linux/pipe_fs_i.h>
#include <linux/slab.h>
#include <linux/splice.h>
#include <linux/uio.h>
#include <linux/workqueue.h>
#include "pool.h"

/**
 * dedupfs_touch - an operation of ours moves the lower change counter
 * @inode:	upper inode
 *
 * It changes no data (chmod, setxattr, link, ...): what is attached stays, if
 * the mark shows that nobody else changed the file meanwhile.
 *
 * Context: may sleep.
 */
void dedupfs_touch(struct inode *inode)
{
	struct dedupfs_inode *di = DEDUPFS_I(inode);
	struct dedupfs_map *map;

	if (!S_ISREG(inode->i_mode))
		return;
	map = dedupfs_map_of(di);
	if (map)
		dedupfs_track(map);
}

/**
 * dedupfs_change_prepare - an inode is about to be changed, now or later
 * @inode:	regular upper inode
 *
 * Its map is made: what all changes of the lower file through any mount of
 * the pool have in common lies there.
 *
 * Context: may sleep.
 * Return: 0 or -ENOMEM.
 */
int dedupfs_change_prepare(struct inode *inode)
{
	return dedupfs_map_get(DEDUPFS_I(inode)) ? 0 : -ENOMEM;
}

/**
 * dedupfs_change_offset - where the change begins that an operation at @pos makes
 * @inode:	regular upper inode
 * @pos:	bytes, file offset
 *
 * Beyond the end of the file, its last page changes as well.
 *
 * Return: bytes, file offset.
 */
loff_t dedupfs_change_offset(struct inode *inode, loff_t pos)
{
	return min(pos, max_t(loff_t, i_size_read(dedupfs_lower(inode)) - 1, 0));
}

/**
 * dedupfs_change_begin - an operation of ours changes data
 * @inode:	regular upper inode, prepared
 * @start:	bytes, file offset
 * @last:	bytes, file offset, inclusive
 *
 * When it returns, no pool page of the range is mapped or found, and none can
 * be attached until dedupfs_change_end().
 *
 * Context: may sleep; may be a fault (takes no lower i_rwsem).
 */
void dedupfs_change_begin(struct inode *inode, loff_t start, loff_t last)
{
	struct dedupfs_map *map = DEDUPFS_I(inode)->map;

	if (WARN_ON_ONCE(!map))
		return;
	atomic_inc(&map->change_seq);
	atomic_inc(&map->changing);
	/* Whoever attaches looks at it under attach_mutex. */
	smp_mb__after_atomic();
	dedupfs_note_change(map, start >> PAGE_SHIFT, last >> PAGE_SHIFT);
	dedupfs_tell_other_pools(map->pool, map->lower);
	dedupfs_track(map);
	dedupfs_detach(map, start >> PAGE_SHIFT, last >> PAGE_SHIFT);
}

/**
 * dedupfs_change_end - an operation of ours has changed data
 * @inode:	regular upper inode, after dedupfs_change_begin()
 *
 * Context: as of dedupfs_change_begin().
 */
void dedupfs_change_end(struct inode *inode)
{
	struct dedupfs_map *map = DEDUPFS_I(inode)->map;

	if (!map)
		return;
	/* Another pool may have begun to track since. */
	dedupfs_tell_other_pools(map->pool, map->lower);
	/* What was changed comes before the word that it is over. */
	smp_mb__before_atomic();
	atomic_inc(&map->change_seq);
	/* Who sees that nothing is changing any more sees that something has. */
	smp_mb__after_atomic();
	atomic_dec(&map->changing);
}

/**
 * dedupfs_truncate_begin - a truncate through notify_change() changes data
 * @inode:	regular upper inode
 * @start:	bytes; all from there on changes
 *
 * As dedupfs_change_begin().  The lower inode counts one more writer, and its
 * mark sees an event, which are ours.
 *
 * Context: may sleep; upper i_rwsem held.
 * Return: 0, -ETXTBSY or -ENOMEM.
 */
int dedupfs_truncate_begin(struct inode *inode, loff_t start)
{
	struct dedupfs_inode *di = DEDUPFS_I(inode);
	int err;

	err = dedupfs_change_prepare(inode);
	if (err)
		return err;
	err = get_write_access(di->lower);
	if (err)
		return err;
	/* In this order, and back in the other: never too many of ours. */
	atomic_inc(&di->map->writers);
	dedupfs_change_begin(inode, start, LLONG_MAX);
	WRITE_ONCE(di->map->truncating, current);
	return 0;
}

/**
 * dedupfs_truncate_end - a truncate has changed data, or failed
 * @inode:	regular upper inode, after dedupfs_truncate_begin()
 *
 * Context: as of dedupfs_truncate_begin().
 */
void dedupfs_truncate_end(struct inode *inode)
{
	struct dedupfs_inode *di = DEDUPFS_I(inode);

	WRITE_ONCE(di->map->truncating, NULL);
	dedupfs_change_end(inode);
	atomic_dec(&di->map->writers);
	/* Pairs with dedupfs_foreign_writers(): never one of ours too many. */
	smp_mb__after_atomic();
	put_write_access(di->lower);
	/* Another one below may have come between. */
	dedupfs_look_for_changes(di);
}

/*
 * An append is announced from the end of the file.  If the file shrank before
 * the announcement was visible, or before the lower filesystem took its lock,
 * the write begins at @pos: announce that part as well.
 */
static void announce_from(struct inode *inode, loff_t pos, loff_t *start)
{
	struct dedupfs_map *map = DEDUPFS_I(inode)->map;

	if (pos >= *start)
		return;
	dedupfs_note_change(map, pos >> PAGE_SHIFT, *start >> PAGE_SHIFT);
	dedupfs_detach(map, pos >> PAGE_SHIFT, *start >> PAGE_SHIFT);
	*start = pos;
}

/* Direct I/O that is finished later */

struct aio {
	struct kiocb iocb;		/* of the lower file */
	struct kiocb *orig;
	struct work_struct work;
	refcount_t ref;			/* the submitter may look at iocb after completion */
	loff_t start;			/* of the change that was announced */
	errseq_t wb_err;		/* as of dedupfs_wb_err_begin() */
	long res;
	bool write;
};

static struct workqueue_struct *aio_wq;

static void aio_put(struct aio *aio)
{
	if (refcount_dec_and_test(&aio->ref)) {
		fput(aio->iocb.ki_filp);
		kfree(aio);
	}
}

/* @res: what the lower filesystem returned in the end. */
static void aio_end(struct aio *aio, long res, bool may_wait)
{
	struct kiocb *orig = aio->orig;
	struct inode *inode = file_inode(orig->ki_filp);

	if (aio->write) {
		dedupfs_wb_err_end(orig->ki_filp, aio->iocb.ki_filp, aio->wb_err);
		__sb_writers_acquired(file_inode(aio->iocb.ki_filp)->i_sb, SB_FREEZE_WRITE);
		file_end_write(aio->iocb.ki_filp);
		if (res > 0)
			announce_from(inode, aio->iocb.ki_pos - res, &aio->start);
		dedupfs_change_end(inode);
		dedupfs_copy_attr(inode);
	}
	/* As after any other. */
	if (may_wait)
		dedupfs_look_for_changes(DEDUPFS_I(inode));
	orig->ki_pos = aio->iocb.ki_pos;
}

static void aio_work(struct work_struct *work)
{
	struct aio *aio = container_of(work, struct aio, work);
	struct kiocb *orig = aio->orig;
	long res = aio->res;

	aio_end(aio, res, true);
	aio_put(aio);
	orig->ki_complete(orig, res);
}

/* May be called in interrupt context. */
static void aio_complete(struct kiocb *iocb, long res)
{
	struct aio *aio = container_of(iocb, struct aio, iocb);

	aio->res = res;
	if (aio->write ||
	    dedupfs_may_be_stale(dedupfs_map_of(DEDUPFS_I(file_inode(aio->orig->ki_filp))))) {
		queue_work(aio_wq, &aio->work);
		return;
	}
	aio->orig->ki_pos = iocb->ki_pos;
	iocb = aio->orig;
	aio_put(aio);
	iocb->ki_complete(iocb, res);
}

/* The lower filesystem looks at its own mount for -o sync. */
static int mount_flags(const struct kiocb *iocb)
{
	return IS_SYNC(file_inode(iocb->ki_filp)) ? IOCB_DSYNC : 0;
}

/* Pass @iocb to the lower file, to be completed later.  Freeze protection is held for a write. */
static ssize_t submit_aio(struct aio *aio, struct kiocb *iocb, struct iov_iter *iter,
			  struct file *lower, bool write, loff_t start)
{
	ssize_t ret;

	refcount_set(&aio->ref, 2);
	kiocb_clone(&aio->iocb, iocb, get_file(lower));
	/* The lower filesystem completes I/O by itself, and to us. */
	aio->iocb.ki_flags &= ~IOCB_DIO_CALLER_COMP;
	aio->iocb.ki_flags |= mount_flags(iocb);
	aio->iocb.ki_complete = aio_complete;
	aio->orig = iocb;
	aio->start = start;
	aio->write = write;
	INIT_WORK(&aio->work, aio_work);
	if (write) {
		aio->wb_err = dedupfs_wb_err_begin(iocb->ki_filp, lower);
		/* The completion, another task, ends the write. */
		__sb_writers_release(file_inode(lower)->i_sb, SB_FREEZE_WRITE);
		ret = lower->f_op->write_iter(&aio->iocb, iter);
	} else {
		ret = lower->f_op->read_iter(&aio->iocb, iter);
	}
	if (ret != -EIOCBQUEUED) {
		aio_end(aio, ret, !(iocb->ki_flags & IOCB_NOWAIT));
		aio_put(aio);
	}
	aio_put(aio);
	return ret;
}

/* Flags of an upper iocb that are the lower file's as well. */
#define LOWER_IOCB_FLAGS	(IOCB_APPEND | IOCB_DIRECT | IOCB_DSYNC | IOCB_SYNC | IOCB_NOWAIT)

static void lower_kiocb(struct kiocb *kiocb, struct kiocb *iocb, struct file *lower)
{
	init_sync_kiocb(kiocb, lower);
	kiocb->ki_pos = iocb->ki_pos;
	kiocb->ki_flags = (iocb->ki_flags & LOWER_IOCB_FLAGS) | mount_flags(iocb);
}

/**
 * dedupfs_direct_read - O_DIRECT read from the lower file
 * @iocb:	of the upper file
 * @iter:	where to
 *
 * Return: bytes, -EIOCBQUEUED or -errno.
 */
ssize_t dedupfs_direct_read(struct kiocb *iocb, struct iov_iter *iter)
{
	struct dedupfs_inode *di = DEDUPFS_I(file_inode(iocb->ki_filp));
	struct file *lower = dedupfs_lower_file(iocb->ki_filp);
	struct kiocb kiocb;
	struct aio *aio;
	ssize_t ret;

	if (IS_ERR(lower))
		return PTR_ERR(lower);
	if ((iocb->ki_flags & IOCB_NOWAIT) && dedupfs_may_be_stale(dedupfs_map_of(di)))
		return -EAGAIN;
	dedupfs_look_for_changes(di);
	file_accessed(iocb->ki_filp);
	if (!is_sync_kiocb(iocb)) {
		aio = kzalloc(sizeof(*aio), GFP_KERNEL);
		if (!aio)
			return -ENOMEM;
		return submit_aio(aio, iocb, iter, lower, false, 0);
	}
	lower_kiocb(&kiocb, iocb, lower);
	ret = lower->f_op->read_iter(&kiocb, iter);
	iocb->ki_pos = kiocb.ki_pos;
	/* Who has read what is new finds nothing old in a mapping. */
	if (!(iocb->ki_flags & IOCB_NOWAIT))
		dedupfs_look_for_changes(di);
	return ret;
}

static void write_range(struct kiocb *iocb, struct iov_iter *iter, loff_t *start, loff_t *last)
{
	bool append = iocb->ki_flags & IOCB_APPEND;

	*start = dedupfs_change_offset(file_inode(iocb->ki_filp),
				       append ? LLONG_MAX : iocb->ki_pos);
	*last = append ? LLONG_MAX : iocb->ki_pos + iov_iter_count(iter) - 1;
}

/**
 * dedupfs_write_iter - ->write_iter
 * @iocb:	of the upper file
 * @iter:	where from
 *
 * Context: process.  The lower filesystem takes its locks; we hold none.
 * Return: bytes that the lower filesystem accepted, -EIOCBQUEUED or -errno.
 */
ssize_t dedupfs_write_iter(struct kiocb *iocb, struct iov_iter *iter)
{
	struct file *lower = dedupfs_lower_file(iocb->ki_filp);
	struct inode *inode = file_inode(iocb->ki_filp);
	struct aio *aio = NULL;
	loff_t start, last;
	struct kiocb kiocb;
	errseq_t wb_err;
	ssize_t ret;

	if (IS_ERR(lower))
		return PTR_ERR(lower);
	if (!iov_iter_count(iter))
		return 0;
	ret = dedupfs_change_prepare(inode);
	if (ret)
		return ret;
	if ((iocb->ki_flags & IOCB_DIRECT) && !is_sync_kiocb(iocb)) {
		aio = kzalloc(sizeof(*aio), GFP_KERNEL);
		if (!aio)
			return -ENOMEM;
	}
	if (!(iocb->ki_flags & IOCB_NOWAIT)) {
		file_start_write(lower);
	} else if (!file_start_write_trylock(lower)) {
		kfree(aio);
		return -EAGAIN;
	}
	write_range(iocb, iter, &start, &last);
	dedupfs_change_begin(inode, start, last);
	if (iocb->ki_flags & IOCB_APPEND)
		announce_from(inode, dedupfs_change_offset(inode, LLONG_MAX), &start);
	if (aio)
		return submit_aio(aio, iocb, iter, lower, true, start);
	lower_kiocb(&kiocb, iocb, lower);
	wb_err = dedupfs_wb_err_begin(iocb->ki_filp, lower);
	ret = lower->f_op->write_iter(&kiocb, iter);
	dedupfs_wb_err_end(iocb->ki_filp, lower, wb_err);
	iocb->ki_pos = kiocb.ki_pos;
	if (ret > 0)
		announce_from(inode, kiocb.ki_pos - ret, &start);
	dedupfs_change_end(inode);
	file_end_write(lower);
	/* What was cut off below meanwhile can be inside of the file again. */
	if (!(iocb->ki_flags & IOCB_NOWAIT))
		dedupfs_look_for_changes(DEDUPFS_I(inode));
	dedupfs_copy_attr(inode);
	dedupfs_show_wb_err(inode->i_sb);
	return ret;
}

/*
 * Wait for data before the change is announced: nothing of the file is pooled
 * while it is.  Another reader may still empty the pipe.
 */
static int wait_for_data(struct pipe_inode_info *pipe, unsigned int flags)
{
	if (flags & SPLICE_F_NONBLOCK)
		return 0;
	return wait_event_interruptible(pipe->rd_wait,
					READ_ONCE(pipe->head) != READ_ONCE(pipe->tail) ||
					!READ_ONCE(pipe->writers));
}

/**
 * dedupfs_splice_write - ->splice_write, for splice(2) and sendfile(2)
 * @pipe:	where from
 * @out:	upper file; not open for append
 * @ppos:	bytes, file offset; moved
 * @len:	bytes
 * @flags:	SPLICE_F_*
 *
 * To the lower file itself: ->write_iter would ask for its freeze protection
 * with the pipe locked, and a splice to the lower file does so before it locks
 * the pipe.
 *
 * Context: process.
 * Return: bytes that the lower filesystem accepted, or -errno.
 */
ssize_t dedupfs_splice_write(struct pipe_inode_info *pipe, struct file *out, loff_t *ppos,
			     size_t len, unsigned int flags)
{
	struct file *lower = dedupfs_lower_file(out);
	struct inode *inode = file_inode(out);
	loff_t start, last;
	errseq_t wb_err;
	ssize_t ret;

	if (IS_ERR(lower))
		return PTR_ERR(lower);
	if (!len)
		return 0;
	ret = dedupfs_change_prepare(inode);
	if (ret)
		return ret;
	ret = wait_for_data(pipe, flags);
	if (ret)
		return ret;
	file_start_write(lower);
	start = dedupfs_change_offset(inode, *ppos);
	last = *ppos + len - 1;
	dedupfs_change_begin(inode, start, last);
	wb_err = dedupfs_wb_err_begin(out, lower);
	ret = iter_file_splice_write(pipe, lower, ppos, len, flags);
	dedupfs_wb_err_end(out, lower, wb_err);
	dedupfs_change_end(inode);
	file_end_write(lower);
	/* A truncation below may have come between: see dedupfs_write_iter(). */
	dedupfs_look_for_changes(DEDUPFS_I(inode));
	dedupfs_copy_attr(inode);
	/* Before 6.5 nobody else says so, and the lower file is silent. */
	if (ret > 0)
		fsnotify_modify(out);
	return ret;
}

/**
 * dedupfs_fallocate - ->fallocate: every mode that the lower filesystem has
 * @file:	upper file
 * @mode:	FALLOC_FL_*
 * @offset:	bytes
 * @len:	bytes
 *
 * Return: 0 or the lower filesystem's -errno.
 */
long dedupfs_fallocate(struct file *file, int mode, loff_t offset, loff_t len)
{
	struct file *lower = dedupfs_lower_file(file);
	struct inode *inode = file_inode(file);
	loff_t start;
	long ret;

	if (IS_ERR(lower))
		return PTR_ERR(lower);
	ret = dedupfs_change_prepare(inode);
	if (ret)
		return ret;
	inode_lock(inode);
	start = dedupfs_change_offset(inode, offset);
	/* Some modes move all that follows. */
	dedupfs_change_begin(inode, start, LLONG_MAX);
	ret = vfs_fallocate(lower, mode, offset, len);
	dedupfs_change_end(inode);
	dedupfs_look_for_changes(DEDUPFS_I(inode));
	dedupfs_copy_attr_locked(inode);
	inode_unlock(inode);
	return ret;
}

/* At module load.  Return: 0 or -ENOMEM. */
int dedupfs_write_init(void)
{
	aio_wq = alloc_workqueue("dedupfs-aio", WQ_MEM_RECLAIM, 0);
	return aio_wq ? 0 : -ENOMEM;
}

/* At module unload. */
void dedupfs_write_exit(void)
{
	destroy_workqueue(aio_wq);
}
