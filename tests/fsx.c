// SPDX-License-Identifier: GPL-2.0-only
/*
 * timeout: 200
 *
 * Random operations on three files of the mount, each followed in memory: what
 * a file holds must at every moment be what its model holds, by read(2) and
 * through mappings old and new.  The files clone, dedupe and copy ranges from
 * each other, so they share blocks; a fourth, cloned now and then and never
 * written, must keep what it had.
 *
 * SEED repeats a run, SECONDS sets its length.
 */
#include "common.h"

#define FILES	3
#define MAX	(48 * PAGE)

struct file {
	char path[64];
	unsigned char *model;
	size_t size;
	int fd;
	char *map;		/* an old mapping, MAX bytes */
	bool map_stale;		/* changed below since: old pages may show */
};

static struct file files[FILES], twin;
static uint64_t seed, rng;
static unsigned long step;
static bool below;		/* some operations directly on the lower file */
static char log_ring[64][160];

static uint64_t rnd(uint64_t n)
{
	rng = rng * 6364136223846793005ULL + 1442695040888963407ULL;
	return n ? (rng >> 33) % n : 0;
}

__attribute__((format(printf, 1, 2)))
static void note(const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(log_ring[step % 64], sizeof(log_ring[0]), fmt, ap);
	va_end(ap);
}

__attribute__((noreturn))
static void fail(struct file *f, const char *how, size_t off, int got)
{
	unsigned long i;

	fprintf(stderr, "# SEED=%lu step %lu: %s by %s: offset %#zx holds %02x, should be %02x, size %#zx\n",
		seed, step, f->path, how, off, got, off < f->size ? f->model[off] : 0, f->size);
	for (i = step > 40 ? step - 40 : 0; i <= step; i++)
		fprintf(stderr, "#   %lu: %s\n", i, log_ring[i % 64]);
	_exit(1);
}

static void failed(const char *what)
{
	unsigned long i;

	fprintf(stderr, "# SEED=%lu step %lu: %s: %s\n", seed, step, what, strerror(errno));
	for (i = step > 20 ? step - 20 : 0; i <= step; i++)
		fprintf(stderr, "#   %lu: %s\n", i, log_ring[i % 64]);
	_exit(1);
}

static void compare(struct file *f, const char *how, const char *got, size_t off, size_t len)
{
	size_t i;

	if (!memcmp(got, f->model + off, len))
		return;
	for (i = 0; (unsigned char)got[i] == f->model[off + i]; i++)
		;
	fail(f, how, off + i, (unsigned char)got[i]);
}

static const char *side(struct file *f)
{
	if (below && !rnd(6)) {
		f->map_stale = true;
		return low("%s", f->path);
	}
	return up("%s", f->path);
}

static void resize(struct file *f, size_t size)
{
	if (size > f->size)
		memset(f->model + f->size, 0, size - f->size);
	f->size = size;
	if (size < MAX)
		memset(f->model + size, 0, MAX - size);
}

static void check_read(struct file *f, size_t off, size_t len)
{
	static char buf[MAX + PAGE];
	int fd = open(up("%s", f->path), O_RDONLY);
	size_t want = off >= f->size ? 0 : f->size - off < len ? f->size - off : len;
	ssize_t n = pread(fd, buf, len, off);

	close(fd);
	if (n != (ssize_t)want) {
		note("read %#zx at %#zx gave %#zx", len, off, n);
		fail(f, "size of a read", off, 0);
	}
	compare(f, "read", buf, off, want);
}

static void check_mapped(struct file *f, char *map, const char *how, size_t off, size_t len)
{
	size_t end;

	if (off >= f->size)
		return;
	if (len > f->size - off)
		len = f->size - off;
	compare(f, how, map + off, off, len);
	/* Behind the end of the last page there are zeroes. */
	if (off + len == f->size) {
		for (end = f->size; end % PAGE; end++) {
			if (map[end])
				fail(f, "bytes behind the end", end, map[end]);
		}
	}
}

static void check_new_map(struct file *f, size_t off, size_t len)
{
	char *map = map_file(up("%s", f->path), MAX, PROT_READ, rnd(2) ? MAP_SHARED : MAP_PRIVATE);

	check_mapped(f, map, "new mapping", off, len);
	munmap(map, MAX);
}

static void check_old_map(struct file *f, size_t off, size_t len)
{
	if (f->map_stale) {
		madvise(f->map, MAX, MADV_DONTNEED);
		f->map_stale = false;
	}
	check_mapped(f, f->map, "old mapping", off, len);
}

static void do_write(struct file *f, size_t off, size_t len, bool direct)
{
	static char raw[MAX + PAGE] __attribute__((aligned(4096)));
	const char *path = side(f);
	int fd = open(path, O_RDWR | (direct ? O_DIRECT : 0));

	fill(raw, len, seed + step, off);
	note("%s %s %#zx+%#zx", direct ? "direct write" : "write", path, off, len);
	if (pwrite(fd, raw, len, off) != (ssize_t)len)
		failed("write");
	close(fd);
	if (off + len > f->size)
		resize(f, off + len);
	memcpy(f->model + off, raw, len);
}

static void do_store(struct file *f, size_t off, size_t len)
{
	const char *path = side(f);
	char *map;

	if (off >= f->size)
		return;
	if (len > f->size - off)
		len = f->size - off;
	note("store %s %#zx+%#zx", path, off, len);
	map = map_file(path, MAX, PROT_READ | PROT_WRITE, MAP_SHARED);
	fill(map + off, len, seed + step, off);
	fill(f->model + off, len, seed + step, off);
	if (!rnd(3) && msync(map, f->size, MS_SYNC))
		failed("msync");
	munmap(map, MAX);
}

static void do_truncate(struct file *f, size_t size)
{
	const char *path = side(f);

	note("truncate %s %#zx -> %#zx", path, f->size, size);
	if (truncate(path, size))
		failed("truncate");
	resize(f, size);
}

static void do_fallocate(struct file *f, size_t off, size_t len)
{
	static const int modes[] = {
		0, FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
		FALLOC_FL_ZERO_RANGE, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE,
		FALLOC_FL_COLLAPSE_RANGE, FALLOC_FL_INSERT_RANGE,
	};
	/* Not UNSHARE_RANGE: XFS of 6.1 itself loses data by it (same seed, no dedupfs). */
	int mode = modes[rnd(7)], fd;
	const char *path;

	if (mode & (FALLOC_FL_COLLAPSE_RANGE | FALLOC_FL_INSERT_RANGE)) {
		off &= -PAGE;
		len = (len & -PAGE) + PAGE;
		if (off + len >= f->size || ((mode & FALLOC_FL_INSERT_RANGE) && f->size + len > MAX))
			return;
	}
	path = side(f);
	note("fallocate %#x %s %#zx+%#zx", mode, path, off, len);
	fd = open(path, O_RDWR);
	if (fallocate(fd, mode, off, len)) {
		if (errno != EOPNOTSUPP)
			failed("fallocate");
		close(fd);
		return;
	}
	close(fd);
	if (mode & FALLOC_FL_COLLAPSE_RANGE) {
		memmove(f->model + off, f->model + off + len, f->size - off - len);
		resize(f, f->size - len);
		return;
	}
	if (mode & FALLOC_FL_INSERT_RANGE) {
		memmove(f->model + off + len, f->model + off, f->size - off);
		memset(f->model + off, 0, len);
		f->size += len;
		return;
	}
	if (!(mode & FALLOC_FL_KEEP_SIZE) && off + len > f->size)
		resize(f, off + len);
	if (mode & (FALLOC_FL_PUNCH_HOLE | FALLOC_FL_ZERO_RANGE) && off < f->size)
		memset(f->model + off, 0, (off + len < f->size ? off + len : f->size) - off);
}

static void do_remap(struct file *from, struct file *to, size_t src, size_t dst, size_t len, int how)
{
	char raw[sizeof(struct file_dedupe_range) + sizeof(struct file_dedupe_range_info)] = {};
	struct file_dedupe_range *dedupe = (void *)raw;
	struct file_clone_range range = {};
	off_t pos_in = src, pos_out = dst;
	const char *path_in, *path_out;
	unsigned char *tmp;
	bool equal;
	int in, out;
	ssize_t n;

	if (how != 2) {
		src &= -PAGE;
		dst &= -PAGE;
		len = (len & -PAGE) + PAGE;
	}
	if (src >= from->size)
		return;
	if (len > from->size - src)
		len = how == 2 ? from->size - src : (from->size - src) & -PAGE;
	if (!len || dst + len > MAX || (from == to && src < dst + len && dst < src + len))
		return;
	if (how == 1 && dst + len > to->size)
		return;
	path_in = up("%s", from->path);
	path_out = side(to);
	note("%s %s %#zx+%#zx -> %s %#zx", how == 2 ? "copy" : how ? "dedupe" : "clone",
	     path_in, src, len, path_out, dst);
	in = open(path_in, O_RDWR);

	out = open(path_out, O_RDWR);
	/* A clone needs both in one mount. */
	if (strncmp(path_out, upper_dir, strlen(upper_dir))) {
		close(in);
		in = open(low("%s", from->path), O_RDWR);
	}
	switch (how) {
	case 0:
		range.src_fd = in;
		range.src_offset = src;
		range.src_length = len;
		range.dest_offset = dst;
		if (ioctl(out, FICLONERANGE, &range))
			failed("clone");
		break;
	case 1:
		equal = !memcmp(from->model + src, to->model + dst, len);
		if (!equal && rnd(3)) {
			/* Make them equal first. */
			if (pwrite(out, from->model + src, len, dst) != (ssize_t)len)
				failed("write");
			memcpy(to->model + dst, from->model + src, len);
			equal = true;
		}
		dedupe->src_offset = src;
		dedupe->src_length = len;
		dedupe->dest_count = 1;
		dedupe->info[0].dest_fd = out;
		dedupe->info[0].dest_offset = dst;
		if (ioctl(in, FIDEDUPERANGE, dedupe))
			failed("dedupe");
		if (dedupe->info[0].status != (equal ? FILE_DEDUPE_RANGE_SAME : FILE_DEDUPE_RANGE_DIFFERS)) {
			errno = -dedupe->info[0].status;
			failed("the dedupe's status");
		}
		close(in);
		close(out);
		return;
	case 2:
		n = copy_file_range(in, &pos_in, out, &pos_out, len, 0);
		if (n <= 0)
			failed("copy_file_range");
		len = n;
		break;
	}
	close(in);
	close(out);
	tmp = malloc(len);
	memcpy(tmp, from->model + src, len);
	if (dst + len > to->size)
		resize(to, dst + len);
	memcpy(to->model + dst, tmp, len);
	free(tmp);
}

static void new_twin(struct file *f)
{
	int in = open(up("%s", f->path), O_RDONLY);
	int out = open(up("%s", twin.path), O_RDWR | O_CREAT | O_TRUNC, 0644);

	note("clone %s to the twin", f->path);
	if (ioctl(out, FICLONE, in))
		failed("clone to the twin");
	close(in);
	close(out);
	memcpy(twin.model, f->model, MAX);
	twin.size = f->size;
}

static void one_step(void)
{
	struct file *f = &files[rnd(FILES)], *g = &files[rnd(FILES)];
	size_t off = rnd(MAX), len = 1 + rnd(rnd(2) ? 3 * PAGE : 12 * PAGE), size = rnd(MAX + 1);
	int fd;

	if (rnd(2))
		off = rnd(f->size + 1);
	if (off + len > MAX)
		len = MAX - off;
	if (!len)
		return;
	note("nothing");
	switch (rnd(26)) {
	case 0: case 1: case 2:
		do_write(f, off, len, false);
		break;
	case 3:
		off &= -PAGE;
		do_write(f, off, off + ((len & -PAGE) + PAGE) > MAX ? PAGE : (len & -PAGE) + PAGE, true);
		break;
	case 4: case 5: case 6:
		do_store(f, off, len);
		break;
	case 7: case 8:
		do_truncate(f, size);
		break;
	case 9: case 10: case 11:
		do_fallocate(f, off, len);
		break;
	case 12: case 13: case 14:
		do_remap(f, g, off, rnd(MAX), len, 0);
		break;
	case 15: case 16:
		do_remap(f, g, off, rnd(MAX), len, 1);
		break;
	case 17:
		do_remap(f, g, off, rnd(MAX), len, 2);
		break;
	case 18:
		new_twin(f);
		break;
	case 19:
		note("fsync %s", f->path);
		fd = open(up("%s", f->path), O_RDWR);
		if (fsync(fd))
			failed("fsync");
		close(fd);
		break;
	case 20:
		if (rnd(3))
			break;
		note("sync, drop_caches");
		sync();
		write_text("/proc/sys/vm/drop_caches", rnd(2) ? "3" : rnd(2) ? "1" : "2");
		break;
	case 21:
		note("DONTNEED %s", f->path);
		madvise(f->map, MAX, MADV_DONTNEED);
		posix_fadvise(f->fd, 0, 0, POSIX_FADV_DONTNEED);
		break;
	case 22:
		check_read(&twin, rnd(twin.size + 1), len);
		break;
	case 23:
		check_new_map(&twin, rnd(twin.size + 1), len);
		break;
	default:
		check_read(f, off, len);
		break;
	}
	/* Look at what was touched, and at something else. */
	switch (rnd(4)) {
	case 0:
		check_read(f, off, len);
		check_old_map(g, rnd(MAX), len);
		break;
	case 1:
		check_old_map(f, off, len);
		check_read(g, rnd(MAX), len);
		break;
	case 2:
		check_new_map(f, off, len);
		check_old_map(f, 0, MAX);
		break;
	case 3:
		check_old_map(g, 0, MAX);
		break;
	}
}

static void check_everything(void)
{
	int i;

	for (i = 0; i < FILES; i++) {
		check_old_map(&files[i], 0, MAX);
		check_read(&files[i], 0, MAX + PAGE);
		check_new_map(&files[i], 0, MAX);
	}
	check_read(&twin, 0, MAX + PAGE);
	check_new_map(&twin, 0, MAX);
}

static void start_file(struct file *f, const char *name)
{
	strcpy(f->path, name);
	make_file(up("%s", name), 0, 0);
	f->model = calloc(1, MAX + PAGE);
	f->size = 0;
	f->fd = open(up("%s", name), O_RDONLY);
	f->map = mmap(NULL, MAX, PROT_READ, MAP_SHARED, f->fd, 0);
	f->map_stale = false;
}

static int run(bool with_changes_below, int seconds)
{
	const char *env = getenv("SEED"), *sec = getenv("SECONDS");
	double end;
	int i;

	seed = env && *env ? strtoul(env, NULL, 0) : (uint64_t)time(NULL) * 1000 + getpid();
	seconds = sec && *sec ? atoi(sec) : seconds;
	rng = mix(seed);
	below = with_changes_below;
	for (i = 0; i < FILES; i++)
		start_file(&files[i], path_of("f%d", i));
	start_file(&twin, "twin");
	end = now() + seconds;
	for (step = 0; now() < end; step++) {
		one_step();
		if (step % 50 == 49)
			check_everything();
	}
	check_everything();
	sync();
	write_text("/proc/sys/vm/drop_caches", "3");
	check_everything();
	/* And what reached the lower filesystem. */
	for (i = 0; i < FILES; i++) {
		if (differs_from(low("%s", files[i].path), (char *)files[i].model, files[i].size) != -1)
			fail(&files[i], "read below", 0, 0);
	}
	fprintf(stderr, "# SEED=%lu: %lu steps\n", seed, step);
	return 0;
}

TEST(through_the_mount)
{
	EXPECT_EQ(0, run(false, 25));
}

TEST(with_changes_below)
{
	EXPECT_EQ(0, run(true, 25));
}

TEST_HARNESS_MAIN
