// SPDX-License-Identifier: GPL-2.0-only
/*
 * timeout: 200
 *
 * Several processes create, write, map, clone, dedupe, rename, truncate, punch
 * and remove the same files, while caches are dropped.  Each 4 KiB block is
 * stamped with a generation from which its whole content follows; which
 * generation each block of each file holds is kept in shared memory.  A file's
 * lock is held over an operation on it and over its check, so any byte that
 * is not the right one is an error.
 *
 * SEED repeats the choices, SECONDS sets the length, WORKERS the processes.
 */
#include "common.h"
#include <pthread.h>

#define FILES	24
#define BLOCKS	48
#define MAPS	6

struct slot {
	pthread_rwlock_t lock;
	uint32_t gen[BLOCKS];	/* 0: zeroes */
	uint32_t blocks;	/* size of the file */
	uint32_t inode;		/* moves when another file takes the name */
	uint32_t foreign;	/* moves with each change made below */
	bool exists;
};

struct shared {
	struct slot slot[FILES];
	uint32_t next_gen, next_inode;
	uint64_t ops, checks;
	bool stop, failed;
};

struct old_map {
	char *p;
	int slot;
	uint32_t inode, foreign;
};

static struct shared *s;
static uint64_t seed, rng;
static struct old_map maps[MAPS];

static uint64_t rnd(uint64_t n)
{
	rng = rng * 6364136223846793005ULL + 1442695040888963407ULL;
	return (rng >> 33) % n;
}

static const char *name(int i)
{
	return up("f%d", i);
}

/* Mostly through the mount, sometimes directly below. */
static const char *any_side(int i)
{
	if (rnd(8))
		return name(i);
	s->slot[i].foreign++;
	return low("f%d", i);
}

static void wrong(const char *how, int i, int block, const char *got)
{
	uint32_t gen = s->slot[i].gen[block];
	char want[PAGE];
	int at;

	fill(want, PAGE, gen, 0);
	if (!gen)
		memset(want, 0, PAGE);
	for (at = 0; at < (int)PAGE && want[at] == got[at]; at++)
		;
	fprintf(stderr, "# SEED=%lu: %s of f%d, block %d, byte %d: generation should be %u\n",
		seed, how, i, block, at, gen);
	for (gen = 1; gen <= s->next_gen; gen++) {
		fill(want, 8, gen, 0);
		if (!memcmp(want, got, 8))
			fprintf(stderr, "#   it is %u, now also in:\n", gen);
	}
	s->failed = s->stop = true;
	_exit(1);
}

static void broken(const char *what, int i)
{
	fprintf(stderr, "# SEED=%lu: %s f%d: %s\n", seed, what, i, strerror(errno));
	s->failed = s->stop = true;
	_exit(1);
}

static void check_block(const char *how, int i, int block, const char *got)
{
	static const char zero[PAGE];
	uint32_t gen = s->slot[i].gen[block];
	char want[PAGE];

	if (gen)
		fill(want, PAGE, gen, 0);
	if (memcmp(got, gen ? want : zero, PAGE))
		wrong(how, i, block, got);
	__atomic_add_fetch(&s->checks, 1, __ATOMIC_RELAXED);
}

static void check_read(int i, bool direct)
{
	static char buf[BLOCKS * PAGE] __attribute__((aligned(4096)));
	struct slot *f = &s->slot[i];
	uint32_t b;
	ssize_t n;
	int fd;

	fd = open(name(i), O_RDONLY | (direct ? O_DIRECT : 0));
	if (fd < 0)
		broken("open", i);
	/*
	 * XFS fails a direct read that meets space which it keeps for later
	 * writes, and that is beyond the end of the file: read no further.
	 */
	n = pread(fd, buf, direct ? f->blocks * PAGE : sizeof(buf), 0);
	if (n < 0)
		broken(direct ? "direct read" : "read", i);
	close(fd);
	if (n != (ssize_t)(f->blocks * PAGE)) {
		errno = 0;
		broken(direct ? "size of a direct read of" : "size of a read of", i);
	}
	for (b = 0; b < f->blocks; b++)
		check_block(direct ? "direct read" : "read", i, b, buf + b * PAGE);
}

static void check_map(int i)
{
	struct slot *f = &s->slot[i];
	struct old_map *m = &maps[rnd(MAPS)];
	uint32_t b;

	if (m->p)
		munmap(m->p, BLOCKS * PAGE);
	m->p = map_file(name(i), BLOCKS * PAGE, PROT_READ, MAP_SHARED);
	if (m->p == MAP_FAILED)
		broken("mmap", i);
	m->slot = i;
	m->inode = f->inode;
	m->foreign = f->foreign;
	for (b = 0; b < f->blocks; b++)
		check_block("mapping", i, b, m->p + b * PAGE);
}

/* A mapping made earlier sees what was written through the mount since. */
static void check_old_map(void)
{
	struct old_map *m = &maps[rnd(MAPS)];
	struct slot *f = &s->slot[m->slot];
	uint32_t b;

	if (!m->p)
		return;
	pthread_rwlock_rdlock(&f->lock);
	if (f->exists && f->inode == m->inode) {
		if (f->foreign != m->foreign)
			madvise(m->p, BLOCKS * PAGE, MADV_DONTNEED);
		m->foreign = f->foreign;
		for (b = 0; b < f->blocks; b++)
			check_block("old mapping", m->slot, b, m->p + b * PAGE);
	}
	pthread_rwlock_unlock(&f->lock);
}

static uint32_t new_gen(void)
{
	return __atomic_add_fetch(&s->next_gen, 1, __ATOMIC_RELAXED);
}

static void grow(struct slot *f, uint32_t blocks)
{
	if (blocks > f->blocks) {
		memset(f->gen + f->blocks, 0, (blocks - f->blocks) * sizeof(f->gen[0]));
		f->blocks = blocks;
	}
}

static void do_write(int i, bool direct)
{
	static char buf[8 * PAGE] __attribute__((aligned(4096)));
	struct slot *f = &s->slot[i];
	uint32_t nr = 1 + rnd(8), b = rnd(BLOCKS - nr + 1), k;
	int fd = open(any_side(i), O_RDWR | (direct ? O_DIRECT : 0));

	if (fd < 0)
		broken("open", i);
	grow(f, b + nr);
	for (k = 0; k < nr; k++) {
		f->gen[b + k] = new_gen();
		fill(buf + k * PAGE, PAGE, f->gen[b + k], 0);
	}
	if (pwrite(fd, buf, nr * PAGE, b * PAGE) != (ssize_t)(nr * PAGE))
		broken("write", i);
	if (!rnd(4) && fsync(fd))
		broken("fsync", i);
	close(fd);
}

static void do_store(int i)
{
	struct slot *f = &s->slot[i];
	uint32_t b, k, nr;
	char *p;

	if (!f->blocks)
		return;
	p = map_file(any_side(i), BLOCKS * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED);
	if (p == MAP_FAILED)
		broken("mmap", i);
	b = rnd(f->blocks);
	nr = 1 + rnd(4);
	for (k = b; k < b + nr && k < f->blocks; k++) {
		f->gen[k] = new_gen();
		fill(p + k * PAGE, PAGE, f->gen[k], 0);
	}
	if (!rnd(4) && msync(p, f->blocks * PAGE, MS_SYNC))
		broken("msync", i);
	munmap(p, BLOCKS * PAGE);
}

static void do_truncate(int i)
{
	struct slot *f = &s->slot[i];
	uint32_t blocks = rnd(BLOCKS + 1);

	if (truncate(any_side(i), blocks * PAGE))
		broken("truncate", i);
	grow(f, blocks);
	f->blocks = blocks;
}

static void do_punch(int i)
{
	struct slot *f = &s->slot[i];
	uint32_t b, nr;
	int fd;

	if (!f->blocks)
		return;
	b = rnd(f->blocks);
	nr = 1 + rnd(f->blocks - b);
	fd = open(any_side(i), O_RDWR);
	if (fallocate(fd, FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE, b * PAGE, nr * PAGE))
		broken("punch", i);
	close(fd);
	memset(f->gen + b, 0, nr * sizeof(f->gen[0]));
}

static void do_create(int i)
{
	struct slot *f = &s->slot[i];
	int fd;

	if (f->exists && unlink(any_side(i)))
		broken("unlink", i);
	fd = open(name(i), O_RDWR | O_CREAT | O_EXCL, 0644);
	if (fd < 0)
		broken("create", i);
	close(fd);
	f->exists = true;
	f->blocks = 0;
	f->inode = __atomic_add_fetch(&s->next_inode, 1, __ATOMIC_RELAXED);
}

static void do_rename(int i, int j)
{
	struct slot *f = &s->slot[i], *g = &s->slot[j];

	if (rnd(4) ? rename(name(i), name(j)) : rename(low("f%d", i), low("f%d", j)))
		broken("rename", i);
	memcpy(g->gen, f->gen, sizeof(g->gen));
	g->blocks = f->blocks;
	g->inode = f->inode;
	g->foreign = f->foreign = __atomic_add_fetch(&s->next_inode, 1, __ATOMIC_RELAXED);
	f->exists = false;
	do_create(i);
}

static void do_clone(int i, int j)
{
	struct slot *f = &s->slot[i], *g = &s->slot[j];
	bool below = !rnd(6);
	int in = open(below ? low("f%d", i) : name(i), O_RDONLY);
	int out = open(below ? low("f%d", j) : name(j), O_RDWR | O_TRUNC);

	if (below)
		g->foreign++;
	if (ioctl(out, FICLONE, in))
		broken("clone", i);
	if (!rnd(3) && fsync(out))
		broken("fsync", j);
	close(in);
	close(out);
	memcpy(g->gen, f->gen, sizeof(g->gen));
	g->blocks = f->blocks;
}

static void do_clone_range(int i, int j)
{
	struct slot *f = &s->slot[i], *g = &s->slot[j];
	struct file_clone_range range = {};
	uint32_t nr, from, to;

	if (!f->blocks)
		return;
	nr = 1 + rnd(f->blocks);
	from = rnd(f->blocks - nr + 1);
	to = rnd(BLOCKS - nr + 1);
	range.src_fd = open(name(i), O_RDONLY);
	range.src_offset = from * PAGE;
	range.src_length = nr * PAGE;
	range.dest_offset = to * PAGE;
	{
		int out = open(name(j), O_RDWR);

		if (ioctl(out, FICLONERANGE, &range))
			broken("clone range", i);
		close(out);
	}
	close(range.src_fd);
	grow(g, to + nr);
	memmove(g->gen + to, f->gen + from, nr * sizeof(g->gen[0]));
}

static void do_dedupe(int i, int j)
{
	char raw[sizeof(struct file_dedupe_range) + sizeof(struct file_dedupe_range_info)] = {};
	struct file_dedupe_range *range = (void *)raw;
	struct slot *f = &s->slot[i], *g = &s->slot[j];
	uint32_t nr = f->blocks < g->blocks ? f->blocks : g->blocks, k;
	bool equal = true;
	int in, out;

	if (!nr)
		return;
	in = open(name(i), O_RDONLY);
	out = open(name(j), O_RDWR);
	if (rnd(2)) {
		/* The same bytes by writing, then the same blocks. */
		static char buf[BLOCKS * PAGE];

		if (pread(in, buf, nr * PAGE, 0) != (ssize_t)(nr * PAGE) ||
		    pwrite(out, buf, nr * PAGE, 0) != (ssize_t)(nr * PAGE))
			broken("copy", i);
		memcpy(g->gen, f->gen, nr * sizeof(g->gen[0]));
	}
	for (k = 0; k < nr; k++)
		equal &= f->gen[k] == g->gen[k];
	range->src_length = nr * PAGE;
	range->dest_count = 1;
	range->info[0].dest_fd = out;
	if (ioctl(in, FIDEDUPERANGE, range))
		broken("dedupe", i);
	if (range->info[0].status != (equal ? FILE_DEDUPE_RANGE_SAME : FILE_DEDUPE_RANGE_DIFFERS)) {
		errno = -range->info[0].status;
		broken("dedupe's status", i);
	}
	close(in);
	close(out);
}

/* No lock: whatever is read may be changing; it must only not hurt. */
static void look(int i)
{
	static char buf[BLOCKS * PAGE];
	int fd = open(name(i), O_RDONLY);
	struct stat st;
	char *p;

	if (fd < 0)
		return;
	pread(fd, buf, sizeof(buf), 0);
	fstat(fd, &st);
	p = mmap(NULL, BLOCKS * PAGE, PROT_READ, MAP_PRIVATE, fd, 0);
	if (st.st_size)
		FAULTS(touch(p, st.st_size));
	munmap(p, BLOCKS * PAGE);
	close(fd);
}

static void one_op(void)
{
	int i = rnd(FILES), j = rnd(FILES), op = rnd(20);
	struct slot *f = &s->slot[i], *g = &s->slot[j];

	__atomic_add_fetch(&s->ops, 1, __ATOMIC_RELAXED);
	if (op < 6) {
		pthread_rwlock_rdlock(&f->lock);
		if (op < 3)
			check_read(i, op == 2);
		else
			check_map(i);
		pthread_rwlock_unlock(&f->lock);
		return;
	}
	if (op < 8) {
		check_old_map();
		return;
	}
	if (op == 8) {
		look(i);
		return;
	}
	if (op < 14) {
		pthread_rwlock_wrlock(&f->lock);
		switch (op) {
		case 9:
			do_write(i, false);
			break;
		case 10:
			do_write(i, true);
			break;
		case 11:
			do_store(i);
			break;
		case 12:
			rnd(2) ? do_truncate(i) : do_punch(i);
			break;
		case 13:
			rnd(4) ? do_store(i) : do_create(i);
			break;
		}
		if (!rnd(3))
			check_read(i, false);
		pthread_rwlock_unlock(&f->lock);
		return;
	}
	if (i == j)
		return;
	pthread_rwlock_wrlock(i < j ? &f->lock : &g->lock);
	pthread_rwlock_wrlock(i < j ? &g->lock : &f->lock);
	switch (op) {
	case 14: case 15: case 16:
		do_clone(i, j);
		break;
	case 17:
		do_clone_range(i, j);
		break;
	case 18:
		do_dedupe(i, j);
		break;
	case 19:
		do_rename(i, j);
		break;
	}
	if (!rnd(3))
		check_map(j);
	pthread_rwlock_unlock(&f->lock);
	pthread_rwlock_unlock(&g->lock);
}

static void worker(int nr)
{
	rng = mix(seed + nr * 1000003);
	while (!s->stop)
		one_op();
	_exit(0);
}

static void dropper(void)
{
	rng = mix(seed + 99);
	while (!s->stop) {
		usleep(300000);
		if (!rnd(4))
			sync();
		write_text("/proc/sys/vm/drop_caches", rnd(2) ? "3" : rnd(2) ? "2" : "1");
	}
	_exit(0);
}

TEST(stamped_blocks)
{
	int workers = number("WORKERS", 6), seconds = number("SECONDS", 45), i, status;
	pthread_rwlockattr_t attr;
	pid_t pid[64];
	double end;

	seed = getenv("SEED") && *getenv("SEED") ? strtoul(getenv("SEED"), NULL, 0) :
		(uint64_t)time(NULL) * 1000 + getpid();
	TH_LOG("SEED=%lu", seed);
	s = mmap(NULL, sizeof(*s), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	pthread_rwlockattr_init(&attr);
	pthread_rwlockattr_setpshared(&attr, PTHREAD_PROCESS_SHARED);
	for (i = 0; i < FILES; i++) {
		pthread_rwlock_init(&s->slot[i].lock, &attr);
		do_create(i);
	}
	rng = 1;
	for (i = 0; i < FILES; i += 3)
		do_write(i, false);

	for (i = 0; i <= workers; i++) {
		pid[i] = fork();
		if (!pid[i])
			i ? worker(i) : dropper();
	}
	end = now() + seconds;
	while (now() < end && !s->stop)
		usleep(200000);
	s->stop = true;
	/* Who does not come back holds a lock, or hangs in the kernel. */
	end = now() + 30;
	for (i = 0; i <= workers; i++) {
		while (waitpid(pid[i], &status, WNOHANG) == 0) {
			if (now() > end || s->failed) {
				EXPECT_TRUE(s->failed) TH_LOG("process %d hangs", i);
				kill(pid[i], SIGKILL);
				waitpid(pid[i], &status, 0);
				status = 0;
				break;
			}
			usleep(20000);
		}
		EXPECT_EQ(0, status) TH_LOG("process %d", i);
	}
	ASSERT_FALSE(s->failed);

	rng = 2;
	for (i = 0; i < FILES; i++) {
		check_read(i, false);
		check_map(i);
	}
	sync();
	drop_caches("3");
	for (i = 0; i < FILES; i++) {
		check_map(i);
		check_read(i, false);
	}
	drop_caches("3");
	for (i = 0; i < FILES; i++) {
		if (hash_read(low("f%d", i), MiB) != hash_read(name(i), MiB))
			EXPECT_TRUE(false) TH_LOG("f%d differs from what is below", i);
	}
	TH_LOG("%lu operations, %lu blocks checked, %u generations", s->ops, s->checks, s->next_gen);
}

TEST_HARNESS_MAIN
