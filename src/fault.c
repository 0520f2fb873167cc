// SPDX-License-Identifier: GPL-2.0-only
/*
 * mmap and faults.
 *
 * An upper VMA hangs in the lower inode's i_mmap tree (i_mapping is the lower
 * one), so pages of the lower page cache are mapped by filemap_fault() as if
 * the lower file were mapped.  A file that has something in the pool gets a
 * second kind of VMA, whose read faults map pool pages where there are any.
 *
 * Rule 8: a fault never waits for a lower i_rwsem; it has a worker fill,
 * drops its lock and waits killably for a bounded time, and takes the lower
 * page cache where it may not wait or waited in vain.
 * Rule 10: who maps a pool page is counted, so that a detach waits for us
 * before it zaps, with the extent looked up again once the page is held;
 * evict frees only pages whose references it can freeze.
 * A store goes to the lower page cache always: a pool page is never written.
 */
#include <linux/mm.h>
#include <linux/oom.h>
#include <linux/pagemap.h>
#include <linux/userfaultfd_k.h>
#include "pool.h"

/* Longer than a busy disk takes; who deadlocks with himself waits it out once. */
#define FAULT_WAIT		(3 * HZ)
/* Longer, once, where the page is seen being read. */
#define FAULT_WAIT_DISK		(6 * HZ)
#define FAULT_TRIES		3
/* In a row, for whatever pages of a file: those who populate have no count of their own. */
#define FAULT_FAILS		(2 * FAULT_TRIES)
/* A wait that brought the page counts less: it may be somebody else's who maps the file. */
#define TRY_FAILED		16U
#define TRY_DONE		1U
#define FAULT_AROUND		16U
#define FAULT_AROUND_MAX	128U

enum fault_source {
	FAULT_MAPPED,		/* done */
	FAULT_PAGE,		/* vmf->page is set */
	FAULT_LOWER,		/* not the pool's */
	FAULT_MISS,		/* not known, or not there: fill */
	FAULT_OOM
};

/*
 * The published pages of a range, from its first block on, with a reference
 * each, which keeps evict from freeing them.  The map is asked once more when
 * they are held: what it says then is what they are.  A page that was filled
 * as the end of another file is none of this one's (rule 7): @tail then.
 */
static unsigned int get_pages(struct dedupfs_map *map, const struct dedupfs_range *r,
			      unsigned int nr, loff_t size, struct page **pages, bool *tail)
{
	unsigned int n = 0, got;

	got = dedupfs_pool_find_batch(map->pool, r->block, min_t(pgoff_t, nr, r->nr), pages);
	while (n < got && dedupfs_page_valid(pages[n]) == dedupfs_valid_bytes(size, r->index + n))
		n++;
	*tail = got && !n;
	if (n && !dedupfs_still_attached(map, r, pages, n))
		n = 0;
	while (got > n)
		put_page(pages[--got]);
	return n;
}

static void put_pages(struct page **pages, unsigned int n)
{
	while (n)
		put_page(pages[--n]);
}

/*
 * Map pages[0..n) at @addr, as far as nothing is mapped there.
 * Return: 0 if the first one is mapped now, by us or by another fault.
 */
static int insert_pages(struct vm_area_struct *vma, unsigned long addr,
			struct page **pages, unsigned int n)
{
	unsigned long left = n;
	int err = vm_insert_pages(vma, addr, pages, &left);
	unsigned int i;

	for (i = 0; i < n - left; i++)
		dedupfs_page_used(pages[i]);
	return left < n || err == -EBUSY ? 0 : err;
}

/*
 * How many pages to map for a fault: more each time when faults come in the
 * order of the file.  A hint, shared by all who map the inode.
 */
static unsigned int neighbourhood(struct dedupfs_inode *di, pgoff_t index)
{
	unsigned int nr = FAULT_AROUND;

	if (index && index == READ_ONCE(di->around_next))
		nr = clamp(READ_ONCE(di->around_nr) * 2, FAULT_AROUND, FAULT_AROUND_MAX);
	WRITE_ONCE(di->around_nr, nr);
	return nr;
}

/* Map the page of a read fault and its neighbourhood, between begin and end. */
static enum fault_source map_around(struct vm_fault *vmf, struct dedupfs_map *map,
				    const struct dedupfs_range *r, loff_t size)
{
	struct vm_area_struct *vma = vmf->vma;
	struct dedupfs_inode *di = DEDUPFS_I(file_inode(vma->vm_file));
	unsigned long addr = vmf->address & PAGE_MASK;
	unsigned int slot = (addr >> PAGE_SHIFT) % FAULT_AROUND, before, want, n, done;
	struct page *pages[FAULT_AROUND];
	struct dedupfs_range around = *r;
	bool tail = false;
	int err;

	/* Not beyond this page table. */
	want = min_t(unsigned long, neighbourhood(di, r->index) - slot,
		     (pmd_addr_end(addr, vma->vm_end) - addr) >> PAGE_SHIFT);
	for (done = 0; done < want; done += n) {
		around.index = r->index + done;
		around.block = r->block + done;
		around.nr = r->nr - done;
		n = get_pages(map, &around, min(want - done, FAULT_AROUND), size, pages, &tail);
		if (!n)
			break;
		err = insert_pages(vma, addr + ((unsigned long)done << PAGE_SHIFT), pages, n);
		put_pages(pages, n);
		if (err && !done)
			return err == -ENOMEM ? FAULT_OOM : FAULT_LOWER;
		if (err)
			break;
	}
	if (!done)
		return tail ? FAULT_LOWER : FAULT_MISS;
	dedupfs_count(map->pool, DEDUPFS_HITS, done);
	WRITE_ONCE(di->around_next, r->index + done);

	before = min3((unsigned long)slot, (unsigned long)r->index,
		      (addr - vma->vm_start) >> PAGE_SHIFT);
	if (before && dedupfs_map_lookup(map, r->index - before, &around) &&
	    around.reason == DEDUPFS_POOLED && around.block + before == r->block) {
		/* A hole may have been cut between the two since. */
		n = get_pages(map, &around, before, size, pages, &tail);
		if (n)
			insert_pages(vma, addr - ((unsigned long)before << PAGE_SHIFT), pages, n);
		put_pages(pages, n);
	}
	return FAULT_MAPPED;
}

/* Do huge pages of the file lie on huge pages of the address space? */
static bool huge_pages_line_up(const struct vm_area_struct *vma)
{
	return IS_ALIGNED((vma->vm_start >> PAGE_SHIFT) - vma->vm_pgoff, PMD_SIZE >> PAGE_SHIFT);
}

/*
 * In a VMA with VM_MIXEDMAP the kernel takes a huge page for a driver's, which
 * is not counted, and gives back nothing of it: so none may be mapped there.
 * Where there is a page table, none is; and no other way that a fault takes
 * comes before this.  With no pages vm_insert_pages() only allocates the table.
 * Made before dedupfs_mapping_begin(): a cgroup may hold up the allocation, and
 * a detach waits for us.
 */
static int make_table(struct vm_fault *vmf)
{
	unsigned long none = 0;
	pmd_t pmd = READ_ONCE(*vmf->pmd);

	if (likely(!pmd_none(pmd)))
		return WARN_ON_ONCE(pmd_trans_huge(pmd)) ? -EFAULT : 0;
	return vm_insert_pages(vmf->vma, vmf->address & PAGE_MASK, NULL, &none);
}

/*
 * With READ_ONLY_THP_FOR_FS khugepaged frees the page tables of all mappings
 * that could take its huge page, and knows nothing of pool pages in them.
 */
static bool table_can_be_freed(const struct vm_area_struct *vma)
{
	return IS_ENABLED(CONFIG_READ_ONLY_THP_FOR_FS) && huge_pages_line_up(vma);
}

/* Map from the pool, or say why not.  On a write fault only vmf->page is set. */
static enum fault_source map_from_pool(struct vm_fault *vmf, struct inode *inode)
{
	struct dedupfs_inode *di = DEDUPFS_I(inode);
	struct dedupfs_map *map = dedupfs_map_of(di);
	enum fault_source source;
	struct dedupfs_range r;
	unsigned int turn;
	struct page *page;
	loff_t size;
	bool tail;

	if (dedupfs_is_plain(di))
		return FAULT_LOWER;
	if (!map)
		return FAULT_MISS;
	/* What userfaultfd leaves in a table looks like a page to who inserts one. */
	if (!(vmf->flags & FAULT_FLAG_WRITE) && userfaultfd_armed(vmf->vma))
		return FAULT_LOWER;
	turn = dedupfs_mapping_begin(map);
	size = i_size_read(di->lower);
	source = FAULT_MISS;
	if (!dedupfs_map_valid(map) || !dedupfs_map_lookup(map, vmf->pgoff, &r))
		goto out;
	source = FAULT_LOWER;
	if (r.reason != DEDUPFS_POOLED || !dedupfs_valid_bytes(size, vmf->pgoff))
		goto out;
	source = FAULT_MISS;
	if (vmf->flags & FAULT_FLAG_WRITE) {
		/* do_cow_fault() makes a private copy of it, and locks it itself for that. */
		if (get_pages(map, &r, 1, size, &page, &tail)) {
			vmf->page = page;
			dedupfs_page_used(page);
			dedupfs_count(map->pool, DEDUPFS_HITS, 1);
			source = FAULT_PAGE;
		} else if (tail) {
			source = FAULT_LOWER;
		}
	} else {
		source = map_around(vmf, map, &r, size);
	}
out:
	dedupfs_mapping_end(map, turn);
	return source;
}

/*
 * May this fault wait for a fill once more?  Counted by page and not by
 * FAULT_FLAG_TRIED, which MADV_POPULATE and mlock do not set; and when a wait
 * ends, as many may wait for the same page of a file that all of them map.
 */
static bool may_wait(struct vm_fault *vmf, struct dedupfs_inode *di)
{
	bool another = READ_ONCE(di->fault_index) != vmf->pgoff;

	if (!(vmf->flags & FAULT_FLAG_ALLOW_RETRY) || (vmf->flags & FAULT_FLAG_RETRY_NOWAIT))
		return false;
	/* Whoever waits in turn with another, each for his page, would never end. */
	if (another && (vmf->flags & FAULT_FLAG_TRIED))
		return false;
	if (time_after(jiffies, READ_ONCE(di->fault_time) + 2 * FAULT_WAIT)) {
		another = true;
		WRITE_ONCE(di->fault_fails, 0);
		WRITE_ONCE(di->fault_time, jiffies);
	}
	if (another) {
		WRITE_ONCE(di->fault_index, vmf->pgoff);
		WRITE_ONCE(di->fault_tries, 0);
	}
	return READ_ONCE(di->fault_tries) < FAULT_TRIES * TRY_FAILED &&
	       READ_ONCE(di->fault_fails) < FAULT_FAILS;
}

/*
 * How far is the pool with a page of the file?  @elsewhere: it is known that
 * the page is not to come from there.
 */
static enum dedupfs_state look_for_page(struct dedupfs_inode *di, pgoff_t index, bool *elsewhere)
{
	struct dedupfs_map *map = dedupfs_map_of(di);
	struct dedupfs_range r;

	*elsewhere = false;
	if (!map || !dedupfs_map_valid(map) || !dedupfs_map_lookup(map, index, &r))
		return DEDUPFS_ABSENT;
	if (r.reason == DEDUPFS_POOLED)
		return dedupfs_pool_state(map->pool, r.block);
	*elsewhere = true;
	return DEDUPFS_ABSENT;
}

/* A fault has waited for a fill of its page. */
static void note_try(struct dedupfs_inode *di, pgoff_t index)
{
	bool elsewhere, done = look_for_page(di, index, &elsewhere) == DEDUPFS_THERE;

	/* To learn that a page is none of the pool's is what was waited for, too. */
	done |= elsewhere;
	/* Ages from now on: the wait may have taken long. */
	WRITE_ONCE(di->fault_time, jiffies);
	WRITE_ONCE(di->fault_fails, done ? 0 : READ_ONCE(di->fault_fails) + 1);
	if (READ_ONCE(di->fault_index) == index)
		WRITE_ONCE(di->fault_tries,
			   READ_ONCE(di->fault_tries) + (done ? TRY_DONE : TRY_FAILED));
}

/* Its page is mapped: whoever comes next begins anew. */
static void note_mapped(struct dedupfs_inode *di, pgoff_t index)
{
	if (READ_ONCE(di->fault_tries) && READ_ONCE(di->fault_index) == index)
		WRITE_ONCE(di->fault_tries, 0);
}

/*
 * Have a worker fill, and wait for it without the mmap lock.
 * Return: VM_FAULT_RETRY with the lock dropped, or 0 with it held.
 */
static vm_fault_t fill_for_fault(struct vm_fault *vmf, struct inode *inode)
{
	struct file_ra_state *ra = &vmf->vma->vm_file->f_ra;
	pgoff_t page = vmf->pgoff, index = round_down(page, FAULT_AROUND);
	struct dedupfs_inode *di = DEDUPFS_I(inode);
	struct dedupfs_wait *wait;
	unsigned int nr = DEDUPFS_FILL_MIN, max = dedupfs_fill_max(dedupfs_pool(inode));
	struct file *file;
	bool elsewhere;
	long left;

	/* The first try may have ended before this page, at a changed one. */
	if (READ_ONCE(di->fault_tries) >= TRY_FAILED)
		index = page;
	if (vmf->vma->vm_flags & VM_RAND_READ)
		nr = FAULT_AROUND;
	else if (index == ra->start)
		nr = clamp(ra->size * 2, DEDUPFS_FILL_MIN, DEDUPFS_FILL_MAX);
	if (nr > max) {
		nr = max;
		index = page;
	}
	wait = dedupfs_wait_new();
	if (!wait)
		return 0;
	if (!dedupfs_populate_async(inode, index, nr, dedupfs_wait_get(wait), false)) {
		dedupfs_wait_put(wait);
		dedupfs_wait_put(wait);
		return 0;
	}
	ra->start = index + nr;
	ra->size = nr;

	/* The VMA may go as soon as its lock is dropped. */
	file = get_file(vmf->vma->vm_file);
	release_fault_lock(vmf);
	left = wait_for_completion_killable_timeout(&wait->done, FAULT_WAIT);
	if (!left && look_for_page(di, page, &elsewhere) == DEDUPFS_FILLING)
		left = wait_for_completion_killable_timeout(&wait->done, FAULT_WAIT_DISK);
	if (!left)
		/* Perhaps this very task holds what the worker waits for. */
		dedupfs_unstable_for(dedupfs_map_of(di), FAULT_WAIT);
	dedupfs_wait_put(wait);
	note_try(di, page);
	fput(file);
	return VM_FAULT_RETRY | VM_FAULT_MAJOR;
}

/* Would a fill be in vain? */
static bool unstable_now(struct dedupfs_inode *di)
{
	struct dedupfs_map *map = dedupfs_map_of(di);

	if (dedupfs_lower_failed(di->lower) ||
	    (map && (atomic_read(&map->changing) ||
		     time_before(jiffies, READ_ONCE(map->unstable_until)))))
		return true;
	return dedupfs_lower_dirty(di->lower) && !(map && READ_ONCE(map->tracked));
}

/* Is the page served from the pool, or about to be stored to? */
static bool shared_here(struct vm_fault *vmf, struct dedupfs_inode *di)
{
	struct dedupfs_map *map = dedupfs_map_of(di);
	struct dedupfs_range r;

	return map && dedupfs_map_lookup(map, vmf->pgoff, &r) &&
	       (r.reason == DEDUPFS_POOLED || r.reason == DEDUPFS_CHANGING);
}

/*
 * Who stores into a shared range, or gave up waiting for the pool, wants one
 * page of the lower page cache, and not what readahead would bring around it.
 */
static void read_one_page(struct vm_fault *vmf, struct dedupfs_inode *di)
{
	struct address_space *mapping = vmf->vma->vm_file->f_mapping;
	struct folio *folio;

	if ((vmf->flags & FAULT_FLAG_RETRY_NOWAIT) ||
	    !dedupfs_valid_bytes(i_size_read(di->lower), vmf->pgoff) ||
	    !filemap_invalidate_trylock_shared(mapping))
		return;
	folio = read_mapping_folio(mapping, vmf->pgoff, vmf->vma->vm_file);
	if (!IS_ERR(folio))
		folio_put(folio);
	filemap_invalidate_unlock_shared(mapping);
}

static void read_shared_page(struct vm_fault *vmf, struct dedupfs_inode *di)
{
	if (shared_here(vmf, di))
		read_one_page(vmf, di);
}

static vm_fault_t pooled_fault(struct vm_fault *vmf)
{
	struct inode *inode = file_inode(vmf->vma->vm_file);
	struct dedupfs_inode *di = DEDUPFS_I(inode);
	vm_fault_t ret;
	int err;

	/* What is mapped elsewhere, too, and wherever this page comes from. */
	dedupfs_look_for_changes(di);
	err = make_table(vmf);
	if (err)
		return vmf_error(err);
	/* As finish_fault() does: what was private, and is reaped, must not be the file's. */
	if (!(vmf->vma->vm_flags & VM_SHARED)) {
		ret = check_stable_address_space(vmf->vma->vm_mm);
		if (ret)
			return ret;
	}
	if ((vmf->flags & FAULT_FLAG_WRITE) && (vmf->vma->vm_flags & VM_SHARED)) {
		read_shared_page(vmf, di);
		return filemap_fault(vmf);
	}

	switch (map_from_pool(vmf, inode)) {
	case FAULT_MAPPED:
		note_mapped(di, vmf->pgoff);
		return VM_FAULT_NOPAGE;
	case FAULT_PAGE:
		note_mapped(di, vmf->pgoff);
		return 0;
	case FAULT_OOM:
		return VM_FAULT_OOM;
	case FAULT_LOWER:
		read_shared_page(vmf, di);
		break;
	case FAULT_MISS:
		dedupfs_drop_if_stale(dedupfs_map_of(di));
		if (unstable_now(di)) {
			read_shared_page(vmf, di);
			break;
		}
		if (may_wait(vmf, di)) {
			ret = fill_for_fault(vmf, inode);
			if (ret)
				return ret;
		}
		read_one_page(vmf, di);
		break;
	}
	return filemap_fault(vmf);
}

/*
 * filemap_map_pages(), but for pages that are being taken out of the cache: a
 * part of a large folio may be zeroed first, for bytes that are to stay.
 */
static vm_fault_t map_cached_pages(struct vm_fault *vmf, pgoff_t start, pgoff_t end)
{
	struct address_space *mapping = vmf->vma->vm_file->f_mapping;
	vm_fault_t ret;

	/* (It may be called under RCU, and must not sleep.) */
	if (!filemap_invalidate_trylock_shared(mapping))
		return 0;
	ret = filemap_map_pages(vmf, start, end);
	filemap_invalidate_unlock_shared(mapping);
	return ret;
}

/* Map what is around in the lower page cache, where the pool has nothing. */
static vm_fault_t pooled_map_pages(struct vm_fault *vmf, pgoff_t start, pgoff_t end)
{
	struct dedupfs_inode *di = DEDUPFS_I(file_inode(vmf->vma->vm_file));
	struct dedupfs_map *map = dedupfs_map_of(di);
	struct dedupfs_range r;

	/* What may have been changed beneath is for ->fault to unmap, which may sleep. */
	if (dedupfs_may_be_stale(map))
		return 0;
	/* And so is it to make a page table where this would map a huge page. */
	if (pmd_none(READ_ONCE(*vmf->pmd)) && huge_pages_line_up(vmf->vma))
		return 0;
	if (!map || !dedupfs_map_valid(map) || !dedupfs_map_lookup(map, vmf->pgoff, &r))
		return dedupfs_is_plain(di) || unstable_now(di) ?
			map_cached_pages(vmf, start, end) : 0;
	if (r.reason == DEDUPFS_POOLED)
		return 0;
	return map_cached_pages(vmf, start, min(end, r.index + r.nr - 1));
}

/*
 * Call the lower filesystem's page_mkwrite as if the lower file were mapped:
 * it looks at vm_file, page, and nothing else of the VMA.
 */
static vm_fault_t lower_page_mkwrite(struct vm_fault *vmf, struct file *lower)
{
	struct dedupfs_sb *sbi = DEDUPFS_SB(file_inode(vmf->vma->vm_file)->i_sb);
	const struct vm_operations_struct *ops = sbi->lower_vm_ops;
	struct vm_area_struct vma = *vmf->vma;
	struct vm_fault fault = {
		.vma		= &vma,
		.gfp_mask	= vmf->gfp_mask,
		.pgoff		= vmf->pgoff,
		.address	= vmf->address,
		.real_address	= vmf->real_address,
		.flags		= vmf->flags,
		.page		= vmf->page,
	};

	vma.vm_file = lower;
	vma.vm_ops = ops;
	return ops->page_mkwrite(&fault);
}

static vm_fault_t page_mkwrite(struct vm_fault *vmf)
{
	struct file *file = vmf->vma->vm_file, *lower = READ_ONCE(file->private_data);
	struct inode *inode = file_inode(file);
	struct page *page = vmf->page;
	struct folio *folio = page_folio(page);
	loff_t pos, last;
	vm_fault_t ret;

	if (WARN_ON_ONCE(!lower))
		return VM_FAULT_SIGBUS;

	/*
	 * No freeze protection of the mount's own: whoever reads from the lower
	 * file into this mapping holds its i_rwsem, and our freeze waits for
	 * that.  The lower filesystem, which is frozen with us, stops the store.
	 */
	if (READ_ONCE(folio->mapping) != file->f_mapping) {
		/*
		 * A pool page, or one that was just truncated: the store comes
		 * back and finds a page of the lower cache, even if it is one
		 * that loads first and so comes back as a read.
		 */
		if (dedupfs_pool_has(dedupfs_pool(inode), page)) {
			dedupfs_serve_from_below(DEDUPFS_I(inode)->map, vmf->pgoff);
			dedupfs_count(dedupfs_pool(inode), DEDUPFS_COPY_UPS, 1);
		} else {
			unmap_mapping_pages(file->f_mapping, vmf->pgoff, 1, false);
		}
		return VM_FAULT_NOPAGE;
	}
	/*
	 * The lower filesystem makes all of a large folio dirty, and more than
	 * this page may be mapped writable (a huge page): no other store into
	 * it need come here.  Our reference keeps it from being split.
	 */
	pos = folio_pos(folio);
	last = pos + folio_size(folio) - 1;
	dedupfs_change_begin(inode, pos, last);
	ret = lower_page_mkwrite(vmf, lower);
	dedupfs_change_end(inode);
	return ret;
}

/* Nothing of the pool is mapped here; but elsewhere may be what has been changed beneath. */
static vm_fault_t plain_fault(struct vm_fault *vmf)
{
	dedupfs_look_for_changes(DEDUPFS_I(file_inode(vmf->vma->vm_file)));
	return filemap_fault(vmf);
}

static vm_fault_t plain_map_pages(struct vm_fault *vmf, pgoff_t start, pgoff_t end)
{
	if (dedupfs_may_be_stale(dedupfs_map_of(DEDUPFS_I(file_inode(vmf->vma->vm_file)))))
		return 0;
	return map_cached_pages(vmf, start, end);
}

static const struct vm_operations_struct plain_vm_ops = {
	.fault		= plain_fault,
	.map_pages	= plain_map_pages,
	.page_mkwrite	= page_mkwrite,
};

/*
 * It is moved with its page tables, perhaps to where they can be freed: there
 * it becomes one of the plain kind.
 */
static int pooled_mremap(struct vm_area_struct *vma)
{
	if (table_can_be_freed(vma)) {
		unmap_mapping_pages(vma->vm_file->f_mapping, vma->vm_pgoff, vma_pages(vma), false);
		vm_flags_clear(vma, VM_MIXEDMAP | VM_NOHUGEPAGE);
		vma->vm_ops = &plain_vm_ops;
	}
	return 0;
}

static const struct vm_operations_struct pooled_vm_ops = {
	.fault		= pooled_fault,
	.map_pages	= pooled_map_pages,
	.page_mkwrite	= page_mkwrite,
	.mremap		= pooled_mremap,
};

/* Are stores to it seen by our page_mkwrite? */
bool dedupfs_is_our_vma(const struct vm_area_struct *vma)
{
	return vma->vm_ops == &plain_vm_ops || vma->vm_ops == &pooled_vm_ops;
}

/* Learn the lower filesystem's vm_ops, from its own ->mmap on a copy of the VMA. */
static int learn_lower_vm_ops(struct file *file, const struct vm_area_struct *vma)
{
	struct dedupfs_sb *sbi = DEDUPFS_SB(file_inode(file)->i_sb);
	struct file *lower = dedupfs_lower_file(file);
	struct vm_area_struct copy = *vma;
	int err;

	if (IS_ERR(lower))
		return PTR_ERR(lower);
	if (READ_ONCE(sbi->lower_vm_ops))
		return 0;
	if (!lower->f_op->mmap)
		return -ENODEV;
	copy.vm_file = lower;
	copy.vm_ops = NULL;
	err = lower->f_op->mmap(lower, &copy);
	if (err)
		return err;
	if (copy.vm_file != lower || !copy.vm_ops || !copy.vm_ops->page_mkwrite)
		return -ENODEV;
	WRITE_ONCE(sbi->lower_vm_ops, copy.vm_ops);
	return 0;
}

/* A DAX file has no pages that could be cached: its memory is mapped as below. */
static int mmap_dax(struct file *file, struct vm_area_struct *vma)
{
	struct file *lower = dedupfs_lower_file(file);

	if (IS_ERR(lower))
		return PTR_ERR(lower);
	file_accessed(file);
	vma_set_file(vma, lower);
	return lower->f_op->mmap(lower, vma);
}

/**
 * dedupfs_mmap - ->mmap
 * @file:	upper file
 * @vma:	new VMA
 *
 * What kind of VMA it gets was decided at open, because mmap_lock is held.
 * A VMA of the plain kind stays right when the file becomes pooled later: it
 * maps the lower page cache, which is always true.
 *
 * Return: 0 or -errno.
 */
int dedupfs_mmap(struct file *file, struct vm_area_struct *vma)
{
	struct dedupfs_inode *di = DEDUPFS_I(file_inode(file));
	struct dedupfs_map *map;
	int err;

	if (IS_DAX(di->lower))
		return mmap_dax(file, vma);
	if (!file->f_mapping->a_ops->read_folio)
		return -ENODEV;
	if ((vma->vm_flags & (VM_SHARED | VM_MAYWRITE)) == (VM_SHARED | VM_MAYWRITE)) {
		/* As the VFS says, who may not know of it yet. */
		if (IS_APPEND(di->lower))
			return -EACCES;
		err = dedupfs_change_prepare(file_inode(file));
		if (err)
			return err;
		err = learn_lower_vm_ops(file, vma);
		if (err)
			return err;
	}
	map = dedupfs_map_of(di);
	if (dedupfs_is_plain(di) || table_can_be_freed(vma) ||
	    (dedupfs_lower_dirty(di->lower) && !(map && READ_ONCE(map->nr_extents)))) {
		vma->vm_ops = &plain_vm_ops;
	} else {
		/* vm_insert_pages() wants the first; huge pages would hide pool pages. */
		vm_flags_set(vma, VM_MIXEDMAP | VM_NOHUGEPAGE);
		vma->vm_ops = &pooled_vm_ops;
	}
	/* (It moves the change counter, and what is known by it.) */
	file_accessed(file);
	return 0;
}
