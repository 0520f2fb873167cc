/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Kernel differences.
 *
 * src/ is written for the API of Linux 6.12; this file presents that API on
 * older kernels.  What a kernel has is found by compiling (scripts/probes, one
 * file each), because distributions backport, and point releases drift; two
 * behaviours that no compile shows go by version, at the end.  Included through
 * dedupfs.h, before any code.
 *
 * What cannot be hidden behind the newest API has a name of its own on all
 * kernels:
 *
 *	DEDUPFS_ACL_OPS(get_inode_acl, set_acl)
 *			members of struct inode_operations
 *	DEDUPFS_FETCH_IVERSION_OPS(fetch_iversion)
 *			a member of struct export_operations, and its comma, or none
 *	DEDUPFS_UPDATE_TIME	->update_time, calls dedupfs_update_time()
 *	DEDUPFS_XATTR(handlers)	value of sb->s_xattr
 *	DEDUPFS_SPLICE_CALLS_READ_ITER
 *			does filemap_splice_read()?
 *	dedupfs_lower_update_time(inode, flags)
 *			->update_time of a lower inode
 *	dedupfs_shrinker_is_registered(shrinker)
 *			did shrinker_register(), which returns nothing, work?
 */
#ifndef DEDUPFS_COMPAT_H
#define DEDUPFS_COMPAT_H

#include <linux/cgroup.h>
#include <linux/fs.h>
#include <linux/fileattr.h>
#include <linux/fs_context.h>
#include <linux/fsnotify_backend.h>
#include <linux/iversion.h>
#include <linux/mm.h>
#include <linux/version.h>
#include <linux/mount.h>
#include <linux/namei.h>
#include <linux/pagemap.h>
#include <linux/posix_acl.h>
#include <linux/posix_acl_xattr.h>
#include <linux/sched.h>
#include <linux/shrinker.h>
#include <linux/slab.h>
#include <linux/splice.h>
#include <linux/swap.h>
#include <linux/uio.h>
#include <linux/xattr.h>

#include "compat-config.h"

/* A block's number is the index of its page, and of the xarray: an unsigned long. */
#ifndef CONFIG_64BIT
#error "dedupfs needs a 64-bit kernel"
#endif

/* 6.3: leases and delegations have a header of their own. */
#ifdef DEDUPFS_HAVE_FILELOCK_H
#include <linux/filelock.h>
#endif

/*
 * 6.3: the idmapping of a mount has a type of its own.  Before, it was a user
 * namespace; renaming the type makes all prototypes and calls fit.
 */
#ifndef DEDUPFS_HAVE_MNT_IDMAP
static inline struct user_namespace *user_namespace(const struct vfsmount *mnt)
{
	return mnt_user_ns(mnt);
}

#define mnt_idmap	user_namespace		/* the type and the function */
#define nop_mnt_idmap	init_user_ns
#define old_mnt_idmap	old_mnt_userns		/* struct renamedata */
#define new_mnt_idmap	new_mnt_userns
#endif

/* 6.6: the times of an inode are behind functions; 6.7: all of them. */
#ifndef DEDUPFS_HAVE_INODE_CTIME
static inline struct timespec64 inode_get_ctime(const struct inode *inode)
{
	return inode->i_ctime;
}

static inline struct timespec64 inode_set_ctime_to_ts(struct inode *inode,
						      struct timespec64 ts)
{
	inode->i_ctime = ts;
	return ts;
}
#endif

#ifndef DEDUPFS_HAVE_INODE_TIMESTAMPS
static inline struct timespec64 inode_get_atime(const struct inode *inode)
{
	return inode->i_atime;
}

static inline struct timespec64 inode_get_mtime(const struct inode *inode)
{
	return inode->i_mtime;
}

static inline struct timespec64 inode_set_atime_to_ts(struct inode *inode,
						      struct timespec64 ts)
{
	inode->i_atime = ts;
	return ts;
}

static inline struct timespec64 inode_set_mtime_to_ts(struct inode *inode,
						      struct timespec64 ts)
{
	inode->i_mtime = ts;
	return ts;
}
#endif

/* 6.6: ->update_time() takes no time. */
#ifdef DEDUPFS_HAVE_UPDATE_TIME_FLAGS
#define DEDUPFS_UPDATE_TIME	dedupfs_update_time

static inline int dedupfs_lower_update_time(struct inode *inode, int flags)
{
	return inode_update_time(inode, flags);
}
#else
int dedupfs_update_time(struct inode *inode, int flags);

static inline int dedupfs_compat_update_time(struct inode *inode,
					     struct timespec64 *now, int flags)
{
	return dedupfs_update_time(inode, flags);
}

#define DEDUPFS_UPDATE_TIME	dedupfs_compat_update_time

static inline int dedupfs_lower_update_time(struct inode *inode, int flags)
{
	struct timespec64 now = current_time(inode);

	return inode_update_time(inode, &now, flags);
}
#endif

/*
 * 6.2: ACLs are set and read through a dentry, and bypass the xattr handlers.
 * Before, "system.posix_acl_*" reaches the handlers like any other name; only
 * servers call ->set_acl(), with an inode.
 */
int dedupfs_set_acl(struct mnt_idmap *idmap, struct dentry *dentry,
		    struct posix_acl *acl, int type);

#ifdef DEDUPFS_HAVE_DENTRY_ACL
#define DEDUPFS_ACL_OPS(get, set)	.get_inode_acl = (get), .set_acl = (set)
#else
static inline int dedupfs_compat_set_acl(struct mnt_idmap *idmap, struct inode *inode,
					 struct posix_acl *acl, int type)
{
	struct dentry *dentry = d_find_any_alias(inode);
	int err;

	if (!dentry)
		return -ESTALE;
	err = dedupfs_set_acl(idmap, dentry, acl, type);
	dput(dentry);
	return err;
}

#define DEDUPFS_ACL_OPS(get, set)	\
	.get_acl = (get), .set_acl = dedupfs_compat_set_acl

#define get_inode_acl	get_acl		/* the function of the VFS */

static inline int vfs_remove_acl(struct mnt_idmap *idmap, struct dentry *dentry,
				 const char *name)
{
	return vfs_removexattr(idmap, dentry, name);
}

static inline int vfs_set_acl(struct mnt_idmap *idmap, struct dentry *dentry,
			      const char *name, struct posix_acl *acl)
{
	size_t size = posix_acl_xattr_size(acl->a_count);
	void *value = kvmalloc(size, GFP_KERNEL);
	int err;

	if (!value)
		return -ENOMEM;
	err = posix_acl_to_xattr(&init_user_ns, acl, value, size);
	if (err >= 0)
		err = vfs_setxattr(idmap, dentry, name, value, size, 0);
	kvfree(value);
	return err;
}
#endif

/* 6.7: the array of xattr handlers is constant. */
#ifdef DEDUPFS_HAVE_XATTR_HANDLERS_CONST
#define DEDUPFS_XATTR(handlers)	(handlers)
#else
#define DEDUPFS_XATTR(handlers)	((const struct xattr_handler **)(handlers))
#endif

/*
 * 6.5: two ways to splice a file, by copying and from the page cache; before,
 * one way that calls ->read_iter with a pipe behind the iterator.
 */
#ifndef DEDUPFS_HAVE_COPY_SPLICE_READ
#define copy_splice_read	generic_file_splice_read
#define filemap_splice_read	generic_file_splice_read
#define DEDUPFS_SPLICE_CALLS_READ_ITER	true
#define dedupfs_iter_is_pipe	iov_iter_is_pipe
#else
#define DEDUPFS_SPLICE_CALLS_READ_ITER	false
#define dedupfs_iter_is_pipe(iter)	false
#endif

/* 6.5: a new name. */
#ifndef DEDUPFS_HAVE_KERNEL_TMPFILE_OPEN
#define kernel_tmpfile_open	vfs_tmpfile_open
#endif

/* 6.12: a temporary file is given its name in /proc by itself. */
#ifndef DEDUPFS_HAVE_MARK_TMPFILE
static inline void d_mark_tmpfile(struct file *file, struct inode *inode)
{
	struct dentry *dentry = file->f_path.dentry;

	spin_lock(&dentry->d_parent->d_lock);
	spin_lock_nested(&dentry->d_lock, DENTRY_D_LOCK_NESTED);
	dentry->d_name.len = sprintf(dentry->d_iname, "#%llu",
				     (unsigned long long)inode->i_ino);
	spin_unlock(&dentry->d_lock);
	spin_unlock(&dentry->d_parent->d_lock);
}
#endif

/*
 * Up to 6.2 nfsd asks an exported filesystem for the change attribute of a file;
 * later it is one of those of ->getattr.
 */
#ifdef DEDUPFS_HAVE_FETCH_IVERSION
#define DEDUPFS_FETCH_IVERSION_OPS(fetch)	.fetch_iversion = (fetch),
#else
#define DEDUPFS_FETCH_IVERSION_OPS(fetch)
#endif

/* 6.6: who freezes.  (To be passed below: ->freeze_fs has no such argument.) */
#ifndef DEDUPFS_HAVE_FREEZE_HOLDER
#define FREEZE_HOLDER_KERNEL	0
#define FREEZE_MAY_NEST		0
#define freeze_super(sb, who)	freeze_super(sb)
#define thaw_super(sb, who)	thaw_super(sb)
#endif

/* 6.9: the uuid's length is kept, too. */
#ifndef DEDUPFS_HAVE_SUPER_SET_UUID
static inline void super_set_uuid(struct super_block *sb, const u8 *uuid,
				  unsigned int len)
{
	memcpy(&sb->s_uuid, uuid, min_t(size_t, len, sizeof(sb->s_uuid)));
}
#endif

/* 6.6: an iocb says whether its submitter runs the end of direct I/O. */
#ifndef IOCB_DIO_CALLER_COMP
#define IOCB_DIO_CALLER_COMP	0
#endif

/* 6.7: every group of marks is safe in reclaim. */
#ifndef FSNOTIFY_GROUP_NOFS
#define FSNOTIFY_GROUP_NOFS	0
#endif

/*
 * 6.3: a folio that is not there is ERR_PTR(-ENOENT), no longer NULL.  Both
 * are right here, so that this needs no probe.
 */
static inline struct folio *dedupfs_get_folio(struct address_space *mapping,
					      pgoff_t index)
{
	return filemap_get_folio(mapping, index) ?: ERR_PTR(-ENOENT);
}

#define filemap_get_folio	dedupfs_get_folio

/* 6.3: vm_flags are changed under the VMA's own lock. */
#ifndef DEDUPFS_HAVE_VM_FLAGS_SET
static inline void vm_flags_set(struct vm_area_struct *vma, unsigned long flags)
{
	vma->vm_flags |= flags;
}

static inline void vm_flags_clear(struct vm_area_struct *vma, unsigned long flags)
{
	vma->vm_flags &= ~flags;
}
#endif

/* 6.4: a fault may hold the VMA's lock instead of mmap_lock. */
#ifndef DEDUPFS_HAVE_RELEASE_FAULT_LOCK
#define FAULT_FLAG_VMA_LOCK	0

static inline void release_fault_lock(struct vm_fault *vmf)
{
	mmap_read_unlock(vmf->vma->vm_mm);
}
#endif

/* 6.5: pages freed by a shrinker that are no slab pages. */
#ifndef DEDUPFS_HAVE_MM_ACCOUNT_RECLAIMED
static inline void mm_account_reclaimed_pages(unsigned long pages)
{
	if (current->reclaim_state)
		current->reclaim_state->reclaimed_slab += pages;
}
#endif

/*
 * 6.7: a shrinker is allocated by the kernel and carries private data.  Before,
 * it is a part of ours, and its callbacks find the whole.
 *
 * From here on "struct shrinker" is ours: include no mm header after this one.
 */
#ifndef DEDUPFS_HAVE_SHRINKER_ALLOC
struct dedupfs_shrinker {
	unsigned long (*count_objects)(struct dedupfs_shrinker *s,
				       struct shrink_control *sc);
	unsigned long (*scan_objects)(struct dedupfs_shrinker *s,
				      struct shrink_control *sc);
	long batch;
	int seeks;
	unsigned int flags;
	void *private_data;
	char *name;
	bool registered;
	struct shrinker vm;
};

static inline unsigned long dedupfs_shrinker_count(struct shrinker *vm,
						   struct shrink_control *sc)
{
	struct dedupfs_shrinker *s = container_of(vm, struct dedupfs_shrinker, vm);

	return s->count_objects(s, sc);
}

static inline unsigned long dedupfs_shrinker_scan(struct shrinker *vm,
						  struct shrink_control *sc)
{
	struct dedupfs_shrinker *s = container_of(vm, struct dedupfs_shrinker, vm);

	return s->scan_objects(s, sc);
}

static inline __printf(2, 3) struct dedupfs_shrinker *
shrinker_alloc(unsigned int flags, const char *fmt, ...)
{
	struct dedupfs_shrinker *s = kzalloc(sizeof(*s), GFP_KERNEL);
	va_list args;

	if (!s)
		return NULL;
	va_start(args, fmt);
	s->name = kvasprintf(GFP_KERNEL, fmt, args);
	va_end(args);
	if (!s->name) {
		kfree(s);
		return NULL;
	}
	s->flags = flags;
	s->seeks = DEFAULT_SEEKS;
	return s;
}

static inline void shrinker_register(struct dedupfs_shrinker *s)
{
	s->vm.count_objects = dedupfs_shrinker_count;
	s->vm.scan_objects = dedupfs_shrinker_scan;
	s->vm.batch = s->batch;
	s->vm.seeks = s->seeks;
	s->vm.flags = s->flags;
	s->registered = !register_shrinker(&s->vm, "%s", s->name);
}

static inline bool dedupfs_shrinker_is_registered(const struct dedupfs_shrinker *s)
{
	return s->registered;
}

static inline void shrinker_free(struct dedupfs_shrinker *s)
{
	if (!s)
		return;
	if (s->registered)
		unregister_shrinker(&s->vm);
	kfree(s->name);
	kfree(s);
}

#define shrinker	dedupfs_shrinker
#else
/* It cannot fail there. */
static inline bool dedupfs_shrinker_is_registered(const struct shrinker *s)
{
	return s;
}
#endif

/* The I/O controller's group of a task, for kthread_associate_blkcg(); NULL without it. */
static inline struct cgroup_subsys_state *dedupfs_io_group_of(struct task_struct *task)
{
#ifdef CONFIG_BLK_CGROUP
	return task_get_css(task, io_cgrp_id);
#else
	return NULL;
#endif
}

/* Before 6.6 __fput_sync() is for kernel threads alone. */
#define DEDUPFS_ANYBODY_MAY_FPUT_SYNC	(LINUX_VERSION_CODE >= KERNEL_VERSION(6, 6, 0))

/* Before 6.8 overlayfs opens its upper files without events for marks. */
#define DEDUPFS_OVERLAY_WRITES_UNSEEN	(LINUX_VERSION_CODE < KERNEL_VERSION(6, 8, 0))

#endif /* DEDUPFS_COMPAT_H */
