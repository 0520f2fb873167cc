/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Where the data of a file lie on the disk, and what is there: what a read of
 * the file cannot tell, direct or not, as that writes dirty pages back first.
 */
#ifndef DEDUPFS_TESTS_DISK_H
#define DEDUPFS_TESTS_DISK_H

#include <linux/btrfs_tree.h>

/* Bytes of the device. */
struct part {
	uint64_t start;
	uint64_t len;
};

static struct part chunks[64];
static uint64_t chunk_logical[64], chunk_type[64];
static unsigned int nr_chunks;

/* Of the btrfs that @path is on; each on one device, at its first copy. */
static void read_chunks(const char *path)
{
	struct btrfs_ioctl_search_args args = { .key = {
		.tree_id = BTRFS_CHUNK_TREE_OBJECTID,
		.min_objectid = BTRFS_FIRST_CHUNK_TREE_OBJECTID,
		.max_objectid = BTRFS_FIRST_CHUNK_TREE_OBJECTID,
		.min_type = BTRFS_CHUNK_ITEM_KEY,
		.max_type = BTRFS_CHUNK_ITEM_KEY,
		.max_offset = -1,
		.max_transid = -1,
		.nr_items = 64,
	} };
	struct btrfs_ioctl_search_header h;
	struct btrfs_chunk chunk;
	int fd = open(path, O_RDONLY);
	unsigned int i, at = 0;

	if (ioctl(fd, BTRFS_IOC_TREE_SEARCH, &args))
		die("chunks");
	close(fd);
	nr_chunks = args.key.nr_items;
	for (i = 0; i < nr_chunks; i++) {
		memcpy(&h, args.buf + at, sizeof(h));
		memcpy(&chunk, args.buf + at + sizeof(h), sizeof(chunk));
		at += sizeof(h) + h.len;
		chunk_logical[i] = h.offset;
		chunk_type[i] = chunk.type;
		chunks[i] = (struct part){ chunk.stripe.offset, chunk.length };
	}
}

/* Where on the device that lies which FIEMAP of @path says is at @physical. */
static uint64_t on_device(const char *path, uint64_t physical)
{
	unsigned int k;

	if (!btrfs)
		return physical;
	read_chunks(path);
	for (k = 0; k < nr_chunks; k++)
		if (physical >= chunk_logical[k] && physical < chunk_logical[k] + chunks[k].len)
			return chunks[k].start + physical - chunk_logical[k];
	die("no chunk of %s has %llx", path, (unsigned long long)physical);
}

/* Where on the device a page of a file lies. */
__maybe_unused static uint64_t place_of(const char *path, unsigned int page)
{
	struct fiemap_extent ext[64];
	uint64_t off = page * PAGE;
	long i, n = fiemap(path, ext, 64);

	for (i = 0; i < n; i++)
		if (off >= ext[i].fe_logical && off < ext[i].fe_logical + ext[i].fe_length)
			return on_device(path, ext[i].fe_physical + off - ext[i].fe_logical);
	die("place of %s, page %u", path, page);
}

#define NOT_THERE	(FIEMAP_EXTENT_UNKNOWN | FIEMAP_EXTENT_DELALLOC | FIEMAP_EXTENT_UNWRITTEN | \
			 FIEMAP_EXTENT_ENCODED | FIEMAP_EXTENT_DATA_INLINE)

/*
 * Does the disk hold these bytes as a file of the lower filesystem, now?  By
 * its block map as it is (FIEMAP_FLAG_SYNC would write) and from the device:
 * nothing is written meanwhile, and no cache can help.
 */
static bool is_on_disk(const char *lower_path, const void *want, size_t size)
{
	const unsigned int max = 256;
	struct fiemap *fm = calloc(1, sizeof(*fm) + max * sizeof(fm->fm_extents[0]));
	size_t room = (size + PAGE - 1) & -PAGE;
	char *got = aligned_alloc(PAGE, room);
	int fd = open(lower_path, O_RDONLY), dev = open(getenv("DEDUPFS_DEV"), O_RDONLY | O_DIRECT);
	struct fiemap_extent *e;
	struct stat st;
	size_t len;
	bool there;

	if (dev < 0 || fstat(fd, &st))
		die("%s or its disk", lower_path);
	fm->fm_length = FIEMAP_MAX_OFFSET;
	fm->fm_extent_count = max;
	if (ioctl(fd, FS_IOC_FIEMAP, fm) || fm->fm_mapped_extents == max)
		die("extents of %s", lower_path);
	memset(got, 0, room);
	there = st.st_size == (off_t)size;
	for (e = fm->fm_extents; there && e < fm->fm_extents + fm->fm_mapped_extents; e++) {
		if (e->fe_logical >= room)
			break;	/* allocated beyond the end */
		len = e->fe_length < room - e->fe_logical ? e->fe_length : room - e->fe_logical;
		if (e->fe_flags & NOT_THERE)
			there = false;
		else if (pread(dev, got + e->fe_logical, len, on_device(lower_path, e->fe_physical)) !=
			 (ssize_t)len)
			die("read of the disk of %s", lower_path);
	}
	there = there && !memcmp(got, want, size);
	close(dev);
	close(fd);
	free(got);
	free(fm);
	return there;
}

/*
 * The same, after a call that must have put them there.  When btrfs says so
 * the data are where they belong, and the tree log tells where; the file's
 * block map follows in a moment.  (Long before anybody writes them unasked.)
 */
__maybe_unused static bool got_to_disk(const char *lower_path, const void *want, size_t size)
{
	double until = now() + (btrfs ? 5 * TIME_FACTOR : 0);
	unsigned int looks = btrfs ? 100 : 0;
	bool there;

	do {
		there = is_on_disk(lower_path, want, size);
	} while (!there && (now() < until || looks--) && !usleep(10000));
	return there;
}

#endif
