// SPDX-License-Identifier: GPL-2.0-only
/*
 * Open files, and what passes through to the lower file.
 *
 * The lower file is opened at once for writing, so that its errors come at
 * open(2), and else at need: a warm open, read and close of a shared file
 * opens nothing below.  It is opened with the mounter's credentials (the caller
 * was checked above) and with FMODE_NONOTIFY, so that the mark of mark.c sees
 * foreign changes only.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <asm/syscall.h>
#include <linux/compat.h>
#include <linux/file.h>
#include <linux/ptrace.h>
#include "pool.h"

/* swapon(2) of a 32-bit program, on x86 and on arm64. */
#define COMPAT_NR_SWAPON	87

/*
 * Flags of the open only.  And O_APPEND: an appending write says so in its iocb,
 * whatever F_SETFL does meanwhile.
 */
#define OPEN_ONLY_FLAGS	(O_CREAT | O_EXCL | O_NOCTTY | O_TRUNC | O_APPEND)
#define SETFL_FLAGS	(O_NONBLOCK | O_NDELAY | O_DIRECT)

/* fcntl(F_SETFL) changes the upper file alone. */
static struct file *with_flags_of(const struct file *file, struct file *lower)
{
	unsigned int flags = READ_ONCE(file->f_flags) & SETFL_FLAGS;

	if (likely(flags == (READ_ONCE(lower->f_flags) & SETFL_FLAGS)))
		return lower;
	spin_lock(&lower->f_lock);
	lower->f_flags = (lower->f_flags & ~SETFL_FLAGS) | flags;
	lower->f_iocb_flags = iocb_flags(lower);
	spin_unlock(&lower->f_lock);
	return lower;
}

/**
 * dedupfs_open_lower - open a lower file for an upper one, or a fill
 * @sb:		upper superblock
 * @path:	lower path
 * @flags:	O_*
 *
 * The caller's permission was asked for when the upper file was opened.  Here
 * it is the mounter's: the lower mount is in no namespace, and a security
 * module that judges by path (AppArmor, Landlock) would deny what it allows
 * the caller above.  Access times and events are the upper file's as well.
 *
 * Context: may sleep.
 * Return: the file or ERR_PTR.
 */
struct file *dedupfs_open_lower(struct super_block *sb, const struct path *path,
				unsigned int flags)
{
	const struct cred *cred = DEDUPFS_SB(sb)->cred, *old = override_creds(cred);
	struct file *file = dentry_open(path, flags | O_NOATIME | (__force int)FMODE_NONOTIFY,
					cred);

	revert_creds(old);
	return file;
}

/**
 * dedupfs_lower_file - the lower file of an open upper one
 * @file:	upper file
 *
 * Context: may sleep.
 * Return: the lower file, which lives as long as the upper one, or ERR_PTR.
 */
struct file *dedupfs_lower_file(struct file *file)
{
	/* Pairs with cmpxchg() below. */
	struct file *lower = smp_load_acquire(&file->private_data), *old;
	struct inode *inode = file_inode(file);
	struct dentry *alias = NULL;
	struct path path;

	if (lower)
		return with_flags_of(file, lower);
	/*
	 * By the name that was opened, which keeps its lower dentry.  Before
	 * 6.8 an overlayfs above opens our files under its own path: then any
	 * name of the lower inode will do.
	 */
	if (likely(file->f_path.dentry->d_sb == inode->i_sb)) {
		path.dentry = dedupfs_lower_dentry(file->f_path.dentry);
	} else {
		alias = d_find_any_alias(dedupfs_lower(inode));
		path.dentry = alias;
	}
	if (!path.dentry)
		return ERR_PTR(-ESTALE);
	path.mnt = DEDUPFS_SB(inode->i_sb)->lower.mnt;
	/* On a mount with -o sync, as if the lower one had it. */
	lower = dedupfs_open_lower(inode->i_sb, &path,
				   (file->f_flags & ~OPEN_ONLY_FLAGS) |
				   (IS_SYNC(inode) ? O_DSYNC : 0));
	dput(alias);
	if (IS_ERR(lower))
		return lower;
	/* Errors since the upper open are this descriptor's to report. */
	lower->f_wb_err = file->f_wb_err;
	old = cmpxchg(&file->private_data, NULL, lower);
	if (old) {
		dedupfs_fput(lower);
		return old;
	}
	return lower;
}

/*
 * f_mapping is the lower filesystem's, so swapon(2) would hand our file to its
 * swap_activate, which takes it for one of its own.  Nothing else tells the
 * two apart in time but the system call itself.
 */
static bool opened_by_swapon(void)
{
	int nr = syscall_get_nr(current, current_pt_regs());

#ifdef CONFIG_X86_X32_ABI
	if (nr & __X32_SYSCALL_BIT)
		return (nr & ~__X32_SYSCALL_BIT) == __NR_swapon;
#endif
#ifdef CONFIG_COMPAT
	if (in_compat_syscall())
		return nr == COMPAT_NR_SWAPON;
#endif
	return nr == __NR_swapon;
}

/* One more or less lower file that is open for writing, as the map's @writers has it. */
static void count_writer(struct dedupfs_inode *di, int n)
{
	spin_lock(&di->vfs_inode.i_lock);
	if (di->map)
		atomic_add(n, &di->map->writers);
	else
		di->writers += n;
	spin_unlock(&di->vfs_inode.i_lock);
}

/*
 * A file that is just being made gets its map when it is changed: many are
 * made and left empty.
 */
static int open_for_writing(struct inode *inode, struct file *file)
{
	struct file *lower;
	int err;

	if (!(file->f_mode & FMODE_CREATED)) {
		err = dedupfs_change_prepare(inode);
		if (err)
			return err;
	}
	lower = dedupfs_lower_file(file);
	if (IS_ERR(lower))
		return PTR_ERR(lower);
	/* Last: a foreign writer must never be taken for ours. */
	count_writer(DEDUPFS_I(inode), 1);
	return 0;
}

/* It is the lower open that looks whether the file is what was signed. */
static int open_verity(struct dedupfs_inode *di, struct file *file)
{
	struct dedupfs_map *map = dedupfs_map_of(di);
	struct file *lower = dedupfs_lower_file(file);

	if (IS_ERR(lower))
		return PTR_ERR(lower);
	/* Until it was made such a file it may have been shared. */
	if (map)
		dedupfs_detach(map, 0, ULONG_MAX);
	return 0;
}

/* Was it changed below since?  The VFS reads the size here, and the times, for relatime. */
static bool changed_below(const struct inode *inode, const struct inode *lower)
{
	struct timespec64 ctime = inode_get_ctime(inode), now = inode_get_ctime(lower);

	return i_size_read(inode) != i_size_read(lower) || !timespec64_equal(&ctime, &now);
}

static int file_open(struct inode *inode, struct file *file)
{
	struct dedupfs_inode *di = DEDUPFS_I(inode);
	int err;

	if (unlikely(opened_by_swapon())) {
		pr_warn_ratelimited("%pD: swap files are not supported; use the file below the mount\n",
				    file);
		return -EINVAL;
	}
	if (changed_below(inode, di->lower))
		dedupfs_copy_attr(inode);
	err = generic_file_open(inode, file);
	if (err)
		return err;
	file->private_data = NULL;
	if (file->f_mode & FMODE_WRITE) {
		err = open_for_writing(inode, file);
		if (err)
			return err;
	} else if (unlikely(IS_VERITY(di->lower))) {
		err = open_verity(di, file);
		if (err)
			return err;
	}
	file->f_mode |= FMODE_CAN_ODIRECT | FMODE_NOWAIT;
	dedupfs_drop_if_stale(dedupfs_map_of(di));
	if (file->f_mode & FMODE_READ)
		dedupfs_decide(inode);
	return 0;
}

static int file_release(struct inode *inode, struct file *file)
{
	struct file *lower = file->private_data;

	if (file->f_mode & FMODE_WRITE) {
		count_writer(DEDUPFS_I(inode), -1);
		dedupfs_show_wb_err(inode->i_sb);
	}
	if (lower)
		dedupfs_release_lower(lower);
	return 0;
}

static loff_t file_llseek(struct file *file, loff_t offset, int whence)
{
	struct inode *lower_inode = dedupfs_lower(file_inode(file));
	struct file *lower;

	if (whence != SEEK_DATA && whence != SEEK_HOLE)
		return generic_file_llseek_size(file, offset, whence,
						lower_inode->i_sb->s_maxbytes,
						i_size_read(lower_inode));
	lower = dedupfs_lower_file(file);
	if (IS_ERR(lower))
		return PTR_ERR(lower);
	offset = vfs_llseek(lower, offset, whence);
	if (offset < 0)
		return offset;
	return vfs_setpos(file, offset, lower_inode->i_sb->s_maxbytes);
}

static void set_wb_err(struct file *file, errseq_t err)
{
	spin_lock(&file->f_lock);
	file->f_wb_err = err;
	spin_unlock(&file->f_lock);
}

/**
 * dedupfs_wb_err_begin - a call below may tell of a write-back error
 * @file:	upper file
 * @lower:	its lower file
 *
 * The two are one descriptor: what the one has told, the other need not (nfsd
 * and sync_file_range(2) look at the upper one).  Of calls at the same moment
 * two may tell it, and one does.
 *
 * Return: for dedupfs_wb_err_end().
 */
errseq_t dedupfs_wb_err_begin(const struct file *file, struct file *lower)
{
	errseq_t told = READ_ONCE(file->f_wb_err);

	if (unlikely(READ_ONCE(lower->f_wb_err) != told))
		set_wb_err(lower, told);
	return told;
}

/**
 * dedupfs_wb_err_end - if the call below has told of an error, the upper file has
 * @file:	upper file
 * @lower:	its lower file
 * @before:	what dedupfs_wb_err_begin() returned
 */
void dedupfs_wb_err_end(struct file *file, const struct file *lower, errseq_t before)
{
	errseq_t told = READ_ONCE(lower->f_wb_err);

	if (unlikely(told != before))
		set_wb_err(file, told);
}

static int file_fsync(struct file *file, loff_t start, loff_t end, int datasync)
{
	struct file *lower = dedupfs_lower_file(file);
	errseq_t before;
	int err;

	if (IS_ERR(lower))
		return PTR_ERR(lower);
	before = dedupfs_wb_err_begin(file, lower);
	err = vfs_fsync_range(lower, start, end, datasync);
	dedupfs_wb_err_end(file, lower, before);
	return err;
}

static int file_flush(struct file *file, fl_owner_t id)
{
	struct file *lower = READ_ONCE(file->private_data);

	if (lower && lower->f_op->flush)
		return lower->f_op->flush(lower, id);
	return 0;
}

/* A fresh upper inode. */
void dedupfs_data_init(struct dedupfs_inode *di)
{
	di->lower = NULL;
	di->map = NULL;
	di->writers = 0;
	di->plain_at = DEDUPFS_UNARMED;
	di->plain_until = jiffies;
	di->shared_at = DEDUPFS_UNARMED;
	di->around_next = 0;
	di->around_nr = 0;
	di->fault_index = ULONG_MAX;
	di->fault_tries = 0;
	di->fault_fails = 0;
	di->fault_time = jiffies;
}

const struct file_operations dedupfs_file_fops = {
	.open			= file_open,
	.release		= file_release,
	.flush			= file_flush,
	.llseek			= file_llseek,
	.read_iter		= dedupfs_read_iter,
	.write_iter		= dedupfs_write_iter,
	.mmap			= dedupfs_mmap,
	.fsync			= file_fsync,
	.fallocate		= dedupfs_fallocate,
	.fadvise		= dedupfs_fadvise,
	.splice_read		= dedupfs_splice_read,
	.splice_write		= dedupfs_splice_write,
	.copy_file_range	= dedupfs_copy_file_range,
	.remap_file_range	= dedupfs_remap_file_range,
};
