/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * dedupfs: types, lock order, and the interface of each source file under its
 * name.  That of the data path is in src/pool.h and src/extent.h.
 *
 * The picture.  A dedupfs inode ("upper") stands on one inode of an XFS or
 * btrfs filesystem ("lower").  The lower file is always the truth: its page
 * cache holds what is new, its disk what is settled.  A pool, one for each
 * lower superblock and domain, keeps proven clean copies of shared disk
 * blocks, keyed by physical block.  Data is served from the pool where an
 * extent of the file is attached to it, and from the lower page cache
 * everywhere else.
 *
 *   upper inode --> map (one per lower inode) --> extents, by file page
 *                                                   |  the same objects
 *   pool --> attached extents, by physical block <--+
 *        \-> entries: physical block -> PFN entry of a pool page
 *
 * A regular upper inode has no page cache of its own: its i_mapping is the
 * lower inode's.  So every mapping of an upper file hangs in the lower
 * i_mmap tree, where truncation, write-back and rmap of the lower filesystem
 * find it, and a page of the lower page cache can be mapped, dirtied and
 * cleaned there as if the lower file were mapped.
 *
 * LOCK ORDER (outer first)
 *
 *   freeze protection: the mount's, then the lower filesystem's, which is also
 *                         taken inside the upper i_rwsem; a fault takes the
 *                         lower one only
 *   s_umount              upper, then lower: mount, sync, freeze, which waits for
 *                         the lower freeze protection with the upper one held
 *   pipe lock             (a splice has both freeze protections by then)
 *   upper inode i_rwsem
 *     lower inode i_rwsem, lower filesystem locks     (never from a fault; a
 *                         read of the lower page cache holds it shared, and
 *                         none of ours, with page faults disabled)
 *   mmap_lock or the VMA lock
 *     lower invalidate_lock (shared, trylock: fault-around from the lower page
 *                          cache; else it is the lower filesystem's)
 *     map->mapping        not a lock, but waited for as one: a fault counts
 *                         itself in while it maps pool pages, and never waits
 *                         for that; a detach waits for such faults before it
 *                         zaps, under map->zap_mutex
 *   map->fill_sem         read: a fill while it is in the lower filesystem;
 *                         write: sampling a baseline; with either, extents of
 *                         this map or another are detached and zapped.  Memory
 *                         is allocated without I/O meanwhile
 *     lower inode i_rwsem (trylock for the baseline; shared inside FIEMAP
 *                          and direct reads of the lower filesystem, for a
 *                          moment before a FIEMAP and after a fill (that of
 *                          another's file, in a worker, and on btrfs by trylock
 *                          for a bounded time), and by trylock for a copy from
 *                          the lower page cache)
 *   pools_lock            (pool.c; mount and umount)
 *     names_lock          (stats.c)
 *   pools_srcu            (pool.c, read: a change, where there are several pools,
 *                         with all from here on but page locks, and zap_mutex
 *                         of the other pools' maps; umount waits for it)
 *   pool page lock        a claimed page stays locked from dedupfs_fill_start()
 *                         until it is published or given up, across the lower
 *                         i_rwsem of the read and of the second FIEMAP.  So it
 *                         is waited for only in dedupfs_wait_for_fill(), with no
 *                         fill_sem, lower lock or claim held.  Published pages
 *                         are locked only by the kernel, to copy them for a
 *                         private store.  (If a reader is killed, the end of the
 *                         read queues work that gives the pages up; umount waits
 *                         for dedupfs_sb.works.)
 *     pool->sem           write: attach, detach, publish; read: evict
 *       map->attach_mutex (a change takes it without pool->sem)
 *       i_mmap_rwsem      (evict zaps while it walks the attached extents)
 *       map->lock         (also inside a mark's lock: mark.c)
 *       upper inode i_lock (writers of a file that has no map yet, handed over)
 *       xa_lock of pool->entries, bucket locks of pool->maps
 *       pool_node->lock
 *
 *   Apart from these: a lower d_lock is taken inside the upper dentry's; and
 *   owner and mode of a file are copied under its upper i_rwsem and, inside,
 *   the lower one (shared), both by trylock, whatever else is held (inode.c; for
 *   half a second, with neither held, where a set-id program is looked up);
 *   a fill looks by trylock for a writer of the lower file before it claims.
 *   Nothing is taken inside dedupfs_sb.lock or a file's f_lock.
 *
 * pool->sem is never held while a lower i_rwsem, a page lock, fill_sem or
 * zap_mutex is waited for, and memory is allocated under it with GFP_NOIO and
 * __GFP_NORETRY only, so that a fault, a shrinker inside a lower transaction
 * and a lower writer that faults on an upper mapping can all take it or give up
 * on it.
 */
#ifndef DEDUPFS_H
#define DEDUPFS_H

#include <linux/file.h>
#include <linux/fs.h>
#include <linux/fs_context.h>
#include <linux/fs_parser.h>
#include <linux/mm.h>
#include <linux/page-flags.h>
#include <linux/iversion.h>
#include <linux/xarray.h>
#include <linux/rbtree.h>
#include <linux/rhashtable.h>
#include <linux/mutex.h>
#include <linux/rwsem.h>
#include <linux/seqlock.h>
#include <linux/percpu.h>
#include <linux/shrinker.h>
#include <linux/kobject.h>
#include <linux/fsnotify_backend.h>
#include <linux/errseq.h>

#include "compat.h"

#define DEDUPFS_NAME	"dedupfs"
#define DEDUPFS_MAGIC	0x64645546	/* "ddUF" */

/* Why a byte is served by the lower page cache and not by the pool. */
enum dedupfs_reason {
	/* Extent not shared (XFS).  0, so never returned where 0 means success. */
	DEDUPFS_PLAIN,
	DEDUPFS_HOLE,
	DEDUPFS_UNWRITTEN,
	DEDUPFS_DIRTY,		/* dirty or under write-back below */
	DEDUPFS_DELALLOC,
	DEDUPFS_INLINE,
	DEDUPFS_ENCODED,	/* compressed or encrypted */
	DEDUPFS_UNALIGNED,	/* not page aligned on disk or in the file */
	DEDUPFS_NOCOW,		/* NOCOW, realtime, DAX, swap: overwritten in place */
	/* The file, or all files together, are attached to the block often enough. */
	DEDUPFS_REPEATED,
	DEDUPFS_UNSTABLE,	/* a writer, direct I/O or a writable mapping below */
	DEDUPFS_CHANGING,	/* an operation of ours is changing it now */
	DEDUPFS_FOREIGN,	/* moved below while it was being resolved */
	DEDUPFS_UNRESOLVED,	/* no FIEMAP observer, no memory, an I/O error */
	DEDUPFS_TAIL,		/* end of file differs from the shared page's */
	DEDUPFS_NR_REASONS
};

/* Per-CPU event counters of a pool; stats.c names them. */
enum dedupfs_stat {
	DEDUPFS_HITS,		/* pages read or mapped from the pool */
	DEDUPFS_FILLS,		/* pages filled from disk */
	DEDUPFS_FILL_BYTES,
	DEDUPFS_JOINS,		/* extents attached to pages filled for another */
	DEDUPFS_JOINS_REFUSED,	/* no valid witness */
	DEDUPFS_EVICTIONS,	/* pages dropped by the shrinker or the limit */
	DEDUPFS_COPY_UPS,	/* pool pages replaced by a page of the writer */
	DEDUPFS_STALE,		/* maps dropped after a foreign change */
	DEDUPFS_CARRIED,	/* baselines carried over a change of ours */
	DEDUPFS_NOT_SHARED,	/* bytes, by reason: DEDUPFS_NOT_SHARED + reason */
	DEDUPFS_NR_STATS = DEDUPFS_NOT_SHARED + DEDUPFS_NR_REASONS
};

struct dedupfs_stats {
	u64 count[DEDUPFS_NR_STATS];
};

/* The pool pages of one memory node, for the shrinker (shrink.c). */
struct dedupfs_pool_node {
	spinlock_t lock;	/* protects the lists and nr */
	struct list_head active;
	struct list_head inactive;
	unsigned long nr;	/* pages on both lists */
	unsigned long nr_active;
};

struct dedupfs_window;		/* extent.h */

/**
 * struct dedupfs_pool - the pages shared by the files of one lower superblock
 * @list:	in the list of all pools (pools_lock, pool.c; read: also pools_srcu)
 * @refs:	mounts that use it (pools_lock)
 * @lower_sb:	the key, with @domain; pinned by the mounts
 * @domain:	NULL, or a name: files share inside one domain only
 * @counter_tells_mapping: (XFS) a lower change counter that did not move
 *		means a mapping that did not move; false on btrfs
 * @needs_shared_flag: (XFS) only extents with FIEMAP_EXTENT_SHARED can be
 *		pooled; on btrfs every regular extent is copy-on-write
 * @reads_locked: (XFS) who reads the lower page cache holds the lower i_rwsem:
 *		what takes pages out of it may zero a part of a large folio
 *		first, also for bytes that stay (a dedupe, a clone, a shift)
 * @cache_is_true: (XFS) what is clean in the lower page cache is what the blocks
 *		hold, but for what fill.c knows.  btrfs leaves pages clean that a failed
 *		truncate zeroed in part, that a failed write stored to, or whose
 *		write-back failed
 * @fiemap_stops: (XFS) ->fiemap stops when it is told that there is no room for
 *		more extents, even if it was asked to count them
 * @fiemap_sync: (btrfs) FIEMAP is right only with FIEMAP_FLAG_SYNC
 * @cleans_failed: (btrfs) pages whose write-back failed are clean before the error
 *		is noted
 * @has_subvolumes: (btrfs) a subvolume can be deleted with the files in it, whose
 *		link counts do not say so
 * @observer:	the FIEMAP observer passed its self-test; else all is plain
 * @entries:	physical block -> PFN entry (pool.c explains the bits)
 * @sem:	see the lock order
 * @attached:	extents by physical block (write: @sem)
 * @maps:	maps by lower inode (@sem)
 * @map_list:	all of them (write: @sem)
 * @nr_idle:	maps in there that no upper inode has (write: @sem)
 * @reap_soon:	bit 0: pages were evicted, the reaper has been told
 * @ask_at:	when it asks again for deleted subvolumes, in jiffies (only the
 *		reaper uses it)
 * @nr_pages:	published pages in @entries
 * @nr_attached: extents in @attached
 * @limit:	most pages it may hold; 0: no limit but memory
 * @scratch:	memory to resolve with, for who takes it (xchg)
 * @nodes:	its pages by memory node, for eviction (shrink.c)
 * @shrinker:	what calls for that
 * @stats:	event counters, for each CPU
 * @reaper:	lets go of maps that nobody needs any more (map.c)
 * @kobj:	its directory in sysfs (stats.c)
 * @kobj_gone:	the last reference to @kobj was dropped
 */
struct dedupfs_pool {
	struct list_head list;
	int refs;
	struct super_block *lower_sb;
	char *domain;
	bool counter_tells_mapping;
	bool needs_shared_flag;
	bool reads_locked;
	bool cache_is_true;
	bool fiemap_stops;
	bool fiemap_sync;
	bool cleans_failed;
	bool has_subvolumes;
	bool observer;

	struct xarray entries;
	struct rw_semaphore sem;
	struct rb_root_cached attached;
	struct rhashtable maps;
	struct list_head map_list;
	unsigned int nr_idle;
	unsigned long reap_soon;
	unsigned long ask_at;
	atomic_long_t nr_pages;
	atomic_long_t nr_attached;
	unsigned long limit;

	struct dedupfs_window *scratch;
	struct dedupfs_pool_node *nodes;
	struct shrinker *shrinker;
	struct dedupfs_stats __percpu *stats;
	struct delayed_work reaper;
	struct kobject kobj;
	struct completion kobj_gone;
};

/**
 * struct dedupfs_extent - a range of a lower file, and where its data comes from
 * @file_node:	in map->extents, by @index (write: map->lock)
 * @block_node:	in pool->attached, by @block (write: pool->sem); unused
 *		where @reason says that the lower page cache serves the range
 * @subtree_last: of the interval tree
 * @map:	the map that owns it
 * @index:	first page of the range in the file
 * @nr:		pages
 * @block:	physical block (in pages) of @index
 * @reason:	< 0: attached to the pool; else why it is not
 * @rcu:	readers may still look at it
 *
 * @index, @nr and @block change under map->lock and map->seq only.
 */
struct dedupfs_extent {
	struct rb_node file_node;
	struct rb_node block_node;
	u64 subtree_last;
	struct dedupfs_map *map;
	pgoff_t index;
	pgoff_t nr;
	u64 block;
	int reason;
	struct rcu_head rcu;
};

#define DEDUPFS_POOLED		(-1)		/* dedupfs_extent.reason */
#define DEDUPFS_UNARMED		(~0ULL)		/* dedupfs_map.baseline */

/**
 * struct dedupfs_map - what is known of one lower inode, proven at @baseline
 * @node:	in pool->maps, by @lower (write: pool->sem)
 * @list:	in pool->map_list (write: pool->sem)
 * @ref:	one for being in pool->maps, and one for each zap list entry, witness
 *		or task that looks at it; upper inodes count in @users
 * @pool:	pinned by the mounts
 * @lower:	lower inode, held
 * @baseline:	change counter at which all extents were true, or
 *		DEDUPFS_UNARMED.  Write: map->lock
 * @lock:	protects @extents, @seq (write side), @baseline, @foreign, @tracked
 *		(cleared in dedupfs_map_leave() under pool->sem), @settled,
 *		@wrote_first, @wrote_last
 * @seq:	lets readers walk @extents under RCU alone
 * @extents:	non-overlapping, by file page
 * @nr_extents:	in @extents
 * @attach_mutex: held from the last look at @changing until everything is
 *		attached; a change takes it between @changing and its own look
 * @changing:	operations of ours that are modifying the data now
 * @change_seq:	moves at the start and end of each of them
 * @writers:	lower files that we hold open for writing (all mounts of this pool):
 *		another domain's count as foreign
 * @zaps:	detached ranges that are not unmapped yet; raised before the extents
 *		go, lowered when nothing of them is mapped
 * @settled:	(btrfs) nothing written before @baseline is unfinished below
 * @wrote_first: the first of the file pages that we changed since then: FIEMAP
 *		can be wrong about them; ULONG_MAX: none
 * @wrote_last:	the last of them
 * @unstable_until: jiffies; no use in trying to resolve before
 * @plain_until: jiffies; what was found plain is read below until then, also
 *		after changes
 * @mapping:	faults that are mapping pool pages, by the @turn that they saw
 * @turn:	which of the two counts is that of new ones (write: @zap_mutex)
 * @zap_mutex:	held by who waits for them
 * @fill_sem:	see the lock order
 * @mark:	set at our first modification: tells foreign changes from ours
 * @tracked:	@mark has been in place since @baseline was sampled
 * @foreign:	@mark saw a foreign change since then
 * @gone:	(btrfs) its subvolume was deleted; only the reaper's work, of
 *		which there is one at a time, looks at it
 * @truncating:	task inside a truncate of ours: its event is not foreign; one task
 *		at a time, another's event counts as foreign, which costs only the
 *		carry-over
 * @users:	upper inodes that point here (pool->sem)
 * @idle:	counted in pool->nr_idle (pool->sem)
 * @rcu:	readers may still look at it
 */
struct dedupfs_map {
	struct rhash_head node;
	struct list_head list;
	refcount_t ref;
	struct dedupfs_pool *pool;
	struct inode *lower;
	u64 baseline;
	spinlock_t lock;		/* see above */
	seqcount_spinlock_t seq;
	struct rb_root extents;
	unsigned int nr_extents;
	struct mutex attach_mutex;	/* see above */
	atomic_t changing;
	atomic_t change_seq;
	atomic_t writers;
	atomic_t zaps;
	unsigned long unstable_until;
	unsigned long plain_until;
	bool settled;
	pgoff_t wrote_first;
	pgoff_t wrote_last;
	atomic_t mapping[2];
	unsigned int turn;
	struct mutex zap_mutex;		/* see above */
	struct rw_semaphore fill_sem;
	struct dedupfs_mark *mark;
	bool tracked;
	bool foreign;
	bool gone;
	struct task_struct *truncating;
	unsigned int users;
	bool idle;
	struct rcu_head rcu;
};

/**
 * struct dedupfs_inode - an upper inode
 * @vfs_inode:	its i_mapping is the lower inode's for regular files
 * @lower:	lower inode, held for the life of the upper one
 * @map:	NULL until something of the file was found poolable, or it is
 *		about to be changed; then for the inode's life
 * @writers:	lower files that we hold open for writing while there is no
 *		map (i_lock)
 * @plain_at:	change counter at which nothing was found poolable, or
 *		DEDUPFS_UNARMED
 * @plain_until: when to look again, in jiffies
 * @shared_at:	change counter at which something was
 * @around_next: file page after the last fault's neighbourhood, which had
 *		@around_nr pages
 * @fault_index: page that a fault last waited for; @fault_tries weighs the
 *		waits for it that have ended since it was last mapped
 * @fault_fails: waits in a row, for any page, that did not bring it
 * @fault_time:	when the last wait ended, in jiffies
 */
struct dedupfs_inode {
	struct inode vfs_inode;
	struct inode *lower;

	struct dedupfs_map *map;
	int writers;
	u64 plain_at;
	unsigned long plain_until;
	u64 shared_at;
	pgoff_t around_next;
	unsigned int around_nr;
	pgoff_t fault_index;
	unsigned int fault_tries;
	unsigned int fault_fails;
	unsigned long fault_time;
};

/* Mount options (params.c). */
struct dedupfs_config {
	char *lowerdir;		/* as given */
	char *domain;		/* NULL: the default */
	unsigned long pool_limit;	/* pages; 0: no limit */
	char *pool_limit_text;	/* as given, for /proc/mounts; NULL: none was */
};

struct dedupfs_sb {
	struct path lower;		/* root of the lower tree, held */
	struct dedupfs_pool *pool;
	const struct cred *cred;	/* of the mounter: fills, and opens of lower files */
	struct dedupfs_config config;
	u64 root_bits;			/* what LOWERDIR's subvolume adds to inode numbers */
	const struct vm_operations_struct *lower_vm_ops; /* learnt by fault.c */
	errseq_t lower_errseq;		/* of the lower s_wb_err, for syncfs */
	spinlock_t lock;		/* lower_errseq, config.pool_limit_text */
	bool froze_lower;		/* by our freeze (s_umount) */
	atomic_t works;			/* queued or running; each holds an inode */
};

static inline struct dedupfs_inode *DEDUPFS_I(const struct inode *inode)
{
	return container_of(inode, struct dedupfs_inode, vfs_inode);
}

static inline struct inode *dedupfs_lower(const struct inode *inode)
{
	return DEDUPFS_I(inode)->lower;
}

static inline struct dedupfs_sb *DEDUPFS_SB(const struct super_block *sb)
{
	return sb->s_fs_info;
}

static inline struct dedupfs_pool *dedupfs_pool(const struct inode *inode)
{
	return DEDUPFS_SB(inode->i_sb)->pool;
}

/* A positive or negative upper dentry holds a reference to its lower one. */
static inline struct dentry *dedupfs_lower_dentry(const struct dentry *dentry)
{
	return READ_ONCE(dentry->d_fsdata);
}

/* @path is borrowed: valid while @dentry is held. */
static inline void dedupfs_lower_path(const struct dentry *dentry, struct path *path)
{
	path->mnt = DEDUPFS_SB(dentry->d_sb)->lower.mnt;
	path->dentry = dedupfs_lower_dentry(dentry);
}

static inline struct dedupfs_map *dedupfs_map_of(const struct dedupfs_inode *di)
{
	/* NULL, or the map, whole: pairs with the store in dedupfs_map_get(). */
	return smp_load_acquire(&di->map);
}

static inline u64 dedupfs_counter(const struct inode *lower)
{
	return inode_peek_iversion_raw(lower) >> I_VERSION_QUERIED_SHIFT;
}

/*
 * Without extents there is nothing to share, and without change counters
 * nothing could be proven.  XFS and btrfs have them on the kernels tested.
 */
static inline bool dedupfs_can_prove(const struct dedupfs_pool *pool)
{
	return pool->observer && (READ_ONCE(pool->lower_sb->s_flags) & SB_I_VERSION);
}

/* One load and one compare: may the map's extents be used now? */
static inline bool dedupfs_map_valid(const struct dedupfs_map *map)
{
	return dedupfs_counter(map->lower) == READ_ONCE(map->baseline);
}

static inline bool dedupfs_is_plain(const struct dedupfs_inode *di)
{
	return dedupfs_counter(di->lower) == READ_ONCE(di->plain_at);
}

/* A kernel thread's last fput() would be put off, with the lower mount still in use. */
static inline void dedupfs_fput(struct file *file)
{
	if (current->flags & PF_KTHREAD)
		__fput_sync(file);
	else
		fput(file);
}

/* In ->release, where nobody holds a lock: to put it off costs more. */
static inline void dedupfs_release_lower(struct file *file)
{
	if (DEDUPFS_ANYBODY_MAY_FPUT_SYNC)
		__fput_sync(file);
	else
		dedupfs_fput(file);
}

static inline void dedupfs_count(struct dedupfs_pool *pool, int stat, u64 n)
{
	this_cpu_add(pool->stats->count[stat], n);
}

/* main.c */
extern struct kmem_cache *dedupfs_inode_cachep;

/* params.c */
extern const struct fs_parameter_spec dedupfs_parameters[];
int dedupfs_init_fs_context(struct fs_context *fc);
int dedupfs_show_options(struct seq_file *m, struct dentry *root);
void dedupfs_free_config(struct dedupfs_config *config);
__printf(3, 4)
int dedupfs_complain(struct fs_context *fc, int err, const char *fmt, ...);

/* super.c */
int dedupfs_fill_super(struct super_block *sb, struct fs_context *fc);
void dedupfs_kill_sb(struct super_block *sb);
int dedupfs_reconfigure(struct fs_context *fc);
void dedupfs_show_wb_err(struct super_block *sb);

/* namei.c */
extern const struct inode_operations dedupfs_dir_iops;
extern const struct dentry_operations dedupfs_dops;
void dedupfs_set_lower(struct dentry *dentry, struct dentry *lower);
bool dedupfs_set_first_lower(struct dentry *dentry, struct dentry *lower);

/* inode.c */
extern const struct inode_operations dedupfs_file_iops;
extern const struct inode_operations dedupfs_symlink_iops;
extern const struct inode_operations dedupfs_special_iops;
struct inode *dedupfs_iget(struct super_block *sb, struct inode *lower);
u64 dedupfs_lower_ino(struct inode *lower);
bool dedupfs_attr_differs(const struct inode *inode);
void dedupfs_copy_attr(struct inode *inode);
void dedupfs_copy_attr_patiently(struct inode *inode);
void dedupfs_copy_attr_locked(struct inode *inode);
int dedupfs_permission(struct mnt_idmap *idmap, struct inode *inode, int mask);
int dedupfs_getattr(struct mnt_idmap *idmap, const struct path *path,
		    struct kstat *stat, u32 request_mask, unsigned int flags);
int dedupfs_setattr(struct mnt_idmap *idmap, struct dentry *dentry, struct iattr *attr);
int dedupfs_fileattr_get(struct dentry *dentry, struct fileattr *fa);
int dedupfs_fileattr_set(struct mnt_idmap *idmap, struct dentry *dentry, struct fileattr *fa);
int dedupfs_update_time(struct inode *inode, int flags);

/* dir.c */
extern const struct file_operations dedupfs_dir_fops;

/* xattr.c */
extern const struct xattr_handler * const dedupfs_xattr_handlers[];
ssize_t dedupfs_listxattr(struct dentry *dentry, char *list, size_t size);
struct posix_acl *dedupfs_get_inode_acl(struct inode *inode, int type, bool rcu);
int dedupfs_set_acl(struct mnt_idmap *idmap, struct dentry *dentry,
		    struct posix_acl *acl, int type);

/* export.c */
extern const struct export_operations dedupfs_export_ops;

/* file.c: open, pass-through of what is not data */
extern const struct file_operations dedupfs_file_fops;
struct file *dedupfs_open_lower(struct super_block *sb, const struct path *path,
				unsigned int flags);
struct file *dedupfs_lower_file(struct file *file);
errseq_t dedupfs_wb_err_begin(const struct file *file, struct file *lower);
void dedupfs_wb_err_end(struct file *file, const struct file *lower, errseq_t before);
void dedupfs_data_init(struct dedupfs_inode *di);

/* read.c */
ssize_t dedupfs_read_iter(struct kiocb *iocb, struct iov_iter *iter);
ssize_t dedupfs_splice_read(struct file *in, loff_t *ppos, struct pipe_inode_info *pipe,
			    size_t len, unsigned int flags);
int dedupfs_fadvise(struct file *file, loff_t offset, loff_t len, int advice);

/* work.c, for main.c and super.c */
int dedupfs_work_init(void);
void dedupfs_work_exit(void);
void dedupfs_work_flush(struct dedupfs_sb *sbi);

/* fault.c */
int dedupfs_mmap(struct file *file, struct vm_area_struct *vma);

/* write.c: everything that modifies data */
int dedupfs_write_init(void);
void dedupfs_write_exit(void);
ssize_t dedupfs_splice_write(struct pipe_inode_info *pipe, struct file *out, loff_t *ppos,
			     size_t len, unsigned int flags);
ssize_t dedupfs_write_iter(struct kiocb *iocb, struct iov_iter *iter);
long dedupfs_fallocate(struct file *file, int mode, loff_t offset, loff_t len);
void dedupfs_touch(struct inode *inode);
int dedupfs_change_prepare(struct inode *inode);
loff_t dedupfs_change_offset(struct inode *inode, loff_t pos);
void dedupfs_change_begin(struct inode *inode, loff_t start, loff_t last);
void dedupfs_change_end(struct inode *inode);
int dedupfs_truncate_begin(struct inode *inode, loff_t start);
void dedupfs_truncate_end(struct inode *inode);

/* remap.c */
loff_t dedupfs_remap_file_range(struct file *in, loff_t pos_in, struct file *out,
				loff_t pos_out, loff_t len, unsigned int flags);
ssize_t dedupfs_copy_file_range(struct file *in, loff_t pos_in, struct file *out,
				loff_t pos_out, size_t len, unsigned int flags);

/*
 * The rest of the data path is in src/pool.h and src/extent.h: nothing outside
 * of it may call that.
 */

/* map.c, for super.c */
void dedupfs_map_leave(struct dedupfs_inode *di);

/* extent.c, for stats.c */
u64 dedupfs_pool_saved(struct dedupfs_pool *pool);

/* pool.c, for super.c */
struct dedupfs_pool *dedupfs_pool_get(struct super_block *lower_sb, const char *domain);
void dedupfs_pool_put(struct dedupfs_pool *pool);
void dedupfs_pool_set_limit(struct dedupfs_pool *pool, unsigned long limit);

/* mark.c, for main.c */
int dedupfs_mark_init(void);
void dedupfs_mark_exit(void);

/* fiemap.c, for main.c */
int dedupfs_fiemap_init(void);
void dedupfs_fiemap_exit(void);

/* stats.c */
int dedupfs_stats_init(void);
void dedupfs_stats_exit(void);
int dedupfs_stats_add(struct dedupfs_pool *pool);
void dedupfs_stats_remove(struct dedupfs_pool *pool);

#endif /* DEDUPFS_H */
