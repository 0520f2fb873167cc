// SPDX-License-Identifier: GPL-2.0-only
/*
 * timeout: 240
 *
 * Torture: every 4 KiB block says which file wrote it, at which index and as
 * which generation, and carries a checksum.  Processes write, store, clone,
 * dedupe, truncate, punch, remove, rename, read and map the same files through
 * two mounts of different domains and directly below, while the filesystem
 * balances, defragments and makes snapshots, caches are dropped and memory is
 * short.  Nobody may ever see a block that is not allowed there.
 *
 * What is allowed (the oracle).  A logical clock ticks at the start and at the
 * end of each operation.  For each block of each file there is a ring of its
 * last versions, in shared memory: what it holds (the stamp of whoever wrote it
 * first, wherever it was cloned from since), when the operation that made it
 * began, and when it had returned.  Operations that change a block exclude each
 * other by locks on parts of the file; readers take none.  A read that lasted
 * from t0 to t1 may see version v if v's operation began before t1 and no later
 * version was finished before t0.  So a read that begins after a write returned
 * sees it, or a later one; and nobody sees what was not yet written.  A page
 * that changes under the reader may be a mixture: each byte of it must come
 * from an allowed version then.  The size of a file has versions as well.  A
 * clone of a file that is being written may hold any version that its source
 * had meanwhile: its version is the set of them.  The same holds for
 * snapshots, and for what an operation that failed halfway leaves.
 *
 * The contract for changes beneath the mount is taken at its word: the next
 * read(2), the next mmap and the next fault show them; a page that is mapped
 * already does so after the next read or open of the file through the mount.
 *
 * Environment: TORTURE_SEED repeats the choices that each process makes,
 * TORTURE_SECONDS sets the length (60), TORTURE_WORKERS the processes (6).
 */
#include "common.h"
#include <pthread.h>

#define FILES		48
#define HOT		5		/* of the files: half of all that is done */
#define BLOCKS		64
#define OBJECTS		(3 * FILES)	/* one that lost its name is known for some time */
#define PARTS		8		/* of a file, each with a lock */
#define PART		(BLOCKS / PARTS)
#define RING		6		/* versions of a block that are remembered */
#define SET		4		/* stamps that one version may have */
#define CANDIDATES	24
#define LOG		40
#define HANDLES		12
#define MAGIC		0x6b636f6c42655264ULL
#define NEVER		UINT64_MAX

/* A third of what the files hold. */
#define POOL_LIMIT	(FILES * BLOCKS * PAGE / 3)

enum side { UP, LOW, OTHER, SIDES };

struct stamp {
	uint32_t id;		/* of the file that wrote it */
	uint32_t gen;		/* 0: zeroes */
	uint16_t block;
	uint16_t len;		/* zeroes after that */
};

struct version {
	uint64_t begin, end;
	uint8_t nr;		/* stamps, any of which it may be */
	bool pending;		/* not known before the operation is over */
	bool unknown;		/* could be too much */
	struct stamp s[SET];
};

struct block {
	uint64_t made;		/* versions so far; the last is made - 1 */
	struct version v[RING];
};

struct size {
	uint64_t begin, end;
	uint32_t lo, hi;
};

struct event {
	uint64_t begin, end;
	const char *what;
	int pid, side, first, nr, arg;
	uint32_t gen;
};

/* A file, from its creation to some time after its removal. */
struct object {
	pthread_mutex_t part[PARTS];	/* held over changes: in order, of one object only */
	pthread_mutex_t lock;		/* protects all that follows; never over a system call */
	uint32_t id;			/* moves when the object becomes another file */
	uint32_t foreign;		/* changes made beneath the mount */
	bool named;
	struct block block[BLOCKS];
	uint64_t sizes;
	struct size size[RING];
	uint64_t events;
	struct event log[LOG];
};

/* A name. */
struct slot {
	pthread_mutex_t lock;	/* held while the name changes hands */
	uint32_t seq;		/* odd meanwhile */
	uint32_t object;
};

struct shared {
	uint64_t clock;
	uint32_t next_gen, next_id, next_object;
	pthread_mutex_t alloc;
	struct slot slot[FILES];
	struct object object[OBJECTS];
	uint64_t ops, checks, mixed, unchecked, snapshots, snap_checks, balances, tidied, dedupes;
	uint64_t clones, sets, refused, hogs, exact, old_maps, buses, collisions, doubts;
	long saved;
	bool stop;
	int failed;
};

struct handle {
	int fd, flags, slot;
	enum side side;
	struct object *o;
	uint32_t id;
	char *map;
	bool writable;		/* the mapping */
	uint32_t foreign;	/* changes beneath when all of it was unmapped */
};

static struct shared *s;
static uint64_t seed, rng;
static char side_dir[SIDES][PATH_MAX];
static const char * const side_name[] = { "mount", "below", "other mount" };
static struct handle handles[HANDLES];
static char io[BLOCKS * PAGE] __attribute__((aligned(4096)));

static uint64_t rnd(uint64_t n)
{
	rng = rng * 6364136223846793005ULL + 1442695040888963407ULL;
	return (rng >> 33) % n;
}

static uint64_t tick(void)
{
	return __atomic_add_fetch(&s->clock, 1, __ATOMIC_SEQ_CST);
}

static void count(uint64_t *n)
{
	__atomic_add_fetch(n, 1, __ATOMIC_RELAXED);
}

static const char *path(enum side side, int slot)
{
	return path_of("%s/w/f%d", side_dir[side], slot);
}

/* --- stamps --------------------------------------------------------------- */

static uint64_t checksum(const uint64_t *w)
{
	uint64_t sum = 0;
	unsigned int i;

	for (i = 0; i < PAGE / 8; i++)
		if (i != 3)
			sum = (sum ^ w[i]) * 0x9e3779b97f4a7c15ULL;
	return sum;
}

static void render(char *page, const struct stamp *st)
{
	uint64_t *w = (uint64_t *)page, x;
	unsigned int i;

	if (!st->gen) {
		memset(page, 0, PAGE);
		return;
	}
	w[0] = MAGIC;
	w[1] = (uint64_t)st->id << 32 | st->block;
	w[2] = st->gen;
	x = mix(w[1] + w[2] * 0x9e3779b97f4a7c15ULL);
	for (i = 4; i < PAGE / 8; i++) {
		x = x * 6364136223846793005ULL + 1442695040888963407ULL;
		w[i] = x ^ x >> 29;
	}
	w[3] = checksum(w);
	memset(page + st->len, 0, PAGE - st->len);
}

/* Whole blocks only. */
static bool decode(const char *page, struct stamp *st)
{
	const uint64_t *w = (const uint64_t *)page;

	if (w[0] != MAGIC || w[3] != checksum(w))
		return false;
	st->id = w[1] >> 32;
	st->block = w[1];
	st->gen = w[2];
	st->len = PAGE;
	return true;
}

static bool same_stamp(const struct stamp *a, const struct stamp *b)
{
	if (!a->gen || !b->gen)
		return a->gen == b->gen;
	return a->id == b->id && a->gen == b->gen && a->block == b->block && a->len == b->len;
}

/* Return: false if there is no room. */
static bool add_stamp(struct stamp *list, unsigned int *n, unsigned int max, const struct stamp *st)
{
	unsigned int i;

	for (i = 0; i < *n; i++)
		if (same_stamp(&list[i], st))
			return true;
	if (*n == max)
		return false;
	list[(*n)++] = *st;
	return true;
}

/* --- versions ------------------------------------------------------------- */

static struct version *newest(struct object *o, int b)
{
	return &o->block[b].v[(o->block[b].made - 1) % RING];
}

static struct size *newest_size(struct object *o)
{
	return &o->size[(o->sizes - 1) % RING];
}

/* Under the locks of the parts that it depends on, or as a hint. */
static uint32_t size_of(struct object *o)
{
	return newest_size(o)->hi;
}

static struct version *new_version(struct object *o, int b, uint64_t begin)
{
	struct version *v = &o->block[b].v[o->block[b].made++ % RING];

	memset(v, 0, sizeof(*v));
	v->begin = begin;
	v->end = NEVER;
	return v;
}

static void new_size(struct object *o, uint64_t begin, uint32_t size)
{
	struct size *z = &o->size[o->sizes++ % RING];

	z->begin = begin;
	z->end = NEVER;
	z->lo = z->hi = size;
}

/* What a block may hold for a read in [t0, t1].  o->lock held. */
static int gather(struct object *o, int b, uint64_t t0, uint64_t t1, struct stamp *list,
		  bool *pending)
{
	struct block *blk = &o->block[b];
	unsigned int n = 0, i;
	struct version *v;
	uint64_t k;

	for (k = blk->made; k-- > 0; ) {
		if (blk->made - k > RING)
			return 0;	/* forgotten: nothing can be said */
		v = &blk->v[k % RING];
		if (v->begin > t1)
			continue;
		if (v->pending)
			*pending = true;
		if (v->unknown)
			return 0;
		for (i = 0; i < v->nr; i++)
			if (!add_stamp(list, &n, CANDIDATES, &v->s[i]))
				return 0;
		if (v->end <= t0)
			break;
	}
	return n;
}

/*
 * @wait: for what is not known yet.  Not with a change of one's own pending:
 * two files may be cloned onto each other.
 * Return: how many stamps are allowed; 0 if that is not known; -1 if the file
 * is not known any more.
 */
static int allowed(struct object *o, uint32_t id, int b, uint64_t t0, uint64_t t1,
		   struct stamp *list, bool wait)
{
	bool pending;
	int n;

	do {
		pending = false;
		pthread_mutex_lock(&o->lock);
		n = o->id == id ? gather(o, b, t0, t1, list, &pending) : -1;
		pthread_mutex_unlock(&o->lock);
		if (!pending || n < 0)
			return n;
		if (wait)
			usleep(2000);
	} while (wait && !s->failed);
	return 0;
}

/* Sizes that a file may have had in [t0, t1].  Return: false if not known. */
static bool sizes(struct object *o, uint32_t id, uint64_t t0, uint64_t t1, uint32_t *lo,
		  uint32_t *hi)
{
	bool known = false;
	struct size *z;
	uint64_t k;

	*lo = UINT32_MAX;
	*hi = 0;
	pthread_mutex_lock(&o->lock);
	for (k = o->sizes; o->id == id && k-- > 0 && o->sizes - k <= RING && !known; ) {
		z = &o->size[k % RING];
		if (z->begin > t1)
			continue;
		*lo = z->lo < *lo ? z->lo : *lo;
		*hi = z->hi > *hi ? z->hi : *hi;
		known = z->end <= t0;
	}
	pthread_mutex_unlock(&o->lock);
	return known;
}

/* --- what goes wrong ------------------------------------------------------ */

static void print_stamp(const char *lead, const struct stamp *st)
{
	if (!st->gen)
		fprintf(stderr, "#   %szeroes\n", lead);
	else
		fprintf(stderr, "#   %sfile %u block %u generation %u, %u bytes\n", lead, st->id,
			st->block, st->gen, st->len);
}

static void print_page(const char *lead, const char *page)
{
	const uint64_t *w = (const uint64_t *)page;
	struct stamp st, found;
	char want[PAGE];
	int i, begin;

	for (i = 0; i < (int)PAGE && !page[i]; i++)
		;
	if (i == (int)PAGE) {
		fprintf(stderr, "#   %szeroes\n", lead);
	} else if (decode(page, &found)) {
		print_stamp(lead, &found);
	} else if (w[0] == MAGIC) {
		st = (struct stamp){ w[1] >> 32, w[2], w[1], PAGE };
		print_stamp(lead, &st);
		render(want, &st);
		for (i = 0; i < (int)PAGE && want[i] == page[i]; i++)
			;
		for (begin = i; i < (int)PAGE && !page[i]; i++)
			;
		fprintf(stderr, "#     but only %d bytes of it, then zeroes up to %d\n", begin, i);
	} else {
		fprintf(stderr, "#   %sno stamp: %016lx %016lx %016lx\n", lead, w[0], w[1], w[2]);
	}
}

static void print_block(struct object *o, int b)
{
	struct block *blk = &o->block[b];
	struct version *v;
	uint64_t k;
	int i;

	for (k = blk->made > RING ? blk->made - RING : 0; k < blk->made; k++) {
		v = &blk->v[k % RING];
		fprintf(stderr, "#   version %lu of [%lu, %lu]%s:\n", k, v->begin,
			v->end == NEVER ? 0 : v->end,
			v->unknown ? " (not known)" : v->pending ? " (not yet known)" : "");
		for (i = 0; i < v->nr; i++)
			print_stamp("  ", &v->s[i]);
	}
}

static void print_history(struct object *o, int b)
{
	uint64_t k;

	fprintf(stderr, "# last operations on it (those on block %d are marked):\n", b);
	for (k = o->events > LOG ? o->events - LOG : 0; k < o->events; k++) {
		struct event *e = &o->log[k % LOG];

		fprintf(stderr, "#  %c[%lu, %lu] pid %d: %s, %s, blocks %d to %d", e->first <= b &&
			b < e->first + e->nr ? '*' : ' ', e->begin, e->end == NEVER ? 0 : e->end,
			e->pid, e->what, side_name[e->side], e->first, e->first + e->nr - 1);
		if (e->arg >= 0)
			fprintf(stderr, ", %d", e->arg);
		if (e->gen)
			fprintf(stderr, ", from generation %u on", e->gen);
		fprintf(stderr, "\n");
	}
}

/* Only the first one speaks. */
static void first_failure(void)
{
	int none = 0;

	if (__atomic_compare_exchange_n(&s->failed, &none, getpid(), false, __ATOMIC_SEQ_CST,
					__ATOMIC_SEQ_CST)) {
		s->stop = true;
		fprintf(stderr, "# FAILED with TORTURE_SEED=%lu, pid %d\n", seed, getpid());
		return;
	}
	_exit(1);
}

/* What the filesystem itself says of the block now. */
static void print_lower(const struct handle *h, int b)
{
	static char page[PAGE] __attribute__((aligned(4096)));
	int direct, fd;
	ssize_t n;

	if (&s->object[s->slot[h->slot].object] != h->o) {
		fprintf(stderr, "#   (f%d is another file by now)\n", h->slot);
		return;
	}
	for (direct = 0; direct < 2; direct++) {
		memset(page, 0, PAGE);
		fd = open(path(LOW, h->slot), O_RDONLY | (direct ? O_DIRECT : 0));
		n = pread(fd, page, PAGE, b * PAGE);
		close(fd);
		fprintf(stderr, "#   below now, %s: %zd bytes\n", direct ? "direct" : "buffered", n);
		print_page("  ", page);
	}
}

__attribute__((noreturn))
static void wrong_block(const char *how, const struct handle *h, int b, const char *got,
			uint64_t t0, uint64_t t1, const struct stamp *list, int n)
{
	struct object *o = h->o;
	int i;

	first_failure();
	fprintf(stderr, "# %s of f%d (file %u) by the %s, offset %lu (block %d), in [%lu, %lu]\n",
		how, h->slot, h->id, side_name[h->side], b * PAGE, b, t0, t1);
	print_page("found: ", got);
	for (i = 0; i < n; i++)
		print_stamp("allowed: ", &list[i]);
	print_lower(h, b);
	pthread_mutex_lock(&o->lock);
	print_block(o, b);
	print_history(o, b);
	pthread_mutex_unlock(&o->lock);
	_exit(1);
}

__attribute__((noreturn, format(printf, 2, 3)))
static void wrong(const struct handle *h, const char *fmt, ...)
{
	int err = errno;
	va_list ap;

	first_failure();
	fprintf(stderr, "# f%d (file %u) by the %s: ", h->slot, h->id, side_name[h->side]);
	va_start(ap, fmt);
	vfprintf(stderr, fmt, ap);
	va_end(ap);
	fprintf(stderr, " (%s)\n", strerror(err));
	pthread_mutex_lock(&h->o->lock);
	print_history(h->o, -1);
	pthread_mutex_unlock(&h->o->lock);
	_exit(1);
}

/* --- checks --------------------------------------------------------------- */

/* @bytes of a block that was read in [t0, t1], against a list of stamps. */
static bool matches(const char *got, int bytes, const struct stamp *list, int n)
{
	static char want[CANDIDATES][PAGE] __attribute__((aligned(8)));
	int i, at;

	for (i = 0; i < n; i++) {
		if (bytes >= 24 && list[i].len >= 24 && list[i].gen &&
		    ((const uint64_t *)got)[2] != list[i].gen)
			continue;
		render(want[i], &list[i]);
		if (!memcmp(got, want[i], bytes))
			return true;
	}
	if (n < 2)
		return false;
	/* Changed while it was copied: each byte is one of theirs. */
	for (i = 0; i < n; i++)
		render(want[i], &list[i]);
	for (at = 0; at < bytes; at++) {
		for (i = 0; i < n && want[i][at] != got[at]; i++)
			;
		if (i == n)
			return false;
	}
	count(&s->mixed);
	return true;
}

static bool check_block(const char *how, const struct handle *h, int b, const char *got, int bytes,
			uint64_t t0, uint64_t t1)
{
	struct stamp list[CANDIDATES];
	int n = allowed(h->o, h->id, b, t0, t1, list, true);

	if (n <= 0) {
		count(&s->unchecked);
		return n == 0;
	}
	if (!matches(got, bytes, list, n))
		wrong_block(how, h, b, got, t0, t1, list, n);
	count(&s->checks);
	if (n == 1)
		count(&s->exact);
	return true;
}

static bool lock_parts(const struct handle *h, int b, int nr);
static void unlock_parts(const struct handle *h, int b, int nr);

/* Never a direct read with locks of the file held. */
static void check_read(const struct handle *h, int b, int nr)
{
	const char *how = h->flags & O_DIRECT ? "direct read" : "read";
	uint32_t lo, hi, from = b * PAGE, len = nr * PAGE, end;
	uint64_t t0, t1;
	ssize_t n;
	int k;

	t0 = tick();
	n = pread(h->fd, io, len, from);
	if (n < 0 && errno == EIO && !btrfs && (h->flags & O_DIRECT)) {
		/*
		 * XFS gives up a direct read that meets a block which a store or
		 * a write has just made.  While nothing changes it must succeed;
		 * some race without the lock.
		 */
		if (!lock_parts(h, 0, BLOCKS))
			return;
		count(&s->collisions);
		/* (errno is that of the last read, and not of the lock.) */
		k = 0;
		do {
			usleep(k * 1000);
			t0 = tick();
			n = pread(h->fd, io, len, from);
		} while (n < 0 && errno == EIO && ++k < 20);
		t1 = tick();
		unlock_parts(h, 0, BLOCKS);
	} else {
		t1 = tick();
	}
	if (n < 0)
		wrong(h, "%s of blocks %d to %d", how, b, b + nr - 1);
	end = from + n;
	if (!sizes(h->o, h->id, t0, t1, &lo, &hi)) {
		count(&s->unchecked);
		return;
	}
	if ((n && end > hi) || (n < len && end < lo) || (n && n < len && end > hi))
		wrong(h, "%s in [%lu, %lu] of %u bytes at %u gave %zd; size is %u to %u", how, t0,
		      t1, len, from, n, lo, hi);
	for (k = 0; k * (ssize_t)PAGE < n; k++)
		check_block(how, h, b + k, io + k * PAGE,
			    n - k * (ssize_t)PAGE < (ssize_t)PAGE ? n - k * PAGE : PAGE, t0, t1);
}

static void map_handle(struct handle *h)
{
	int prot = PROT_READ;

	if (h->map)
		munmap(h->map, BLOCKS * PAGE);
	h->foreign = __atomic_load_n(&h->o->foreign, __ATOMIC_SEQ_CST);
	h->writable = (h->flags & O_ACCMODE) == O_RDWR && rnd(3);
	if (h->writable)
		prot |= PROT_WRITE;
	h->map = mmap(NULL, BLOCKS * PAGE, prot,
		      h->writable || rnd(3) ? MAP_SHARED : MAP_PRIVATE, h->fd, 0);
	if (h->map == MAP_FAILED) {
		h->map = NULL;
		wrong(h, "mmap");
	}
}

/* Return: 0, or the signal that it drew. */
__attribute__((noinline)) static int copy_page(char *to, const char *from)
{
	return FAULTS(memcpy(to, from, PAGE));
}

/* @since: what is seen was found after that. */
static void check_mapped(const char *how, const struct handle *h, int b, int nr, uint64_t since,
			 bool own_only)
{
	uint32_t lo, hi;
	uint64_t t0, t1;
	int k, sig;

	for (k = 0; k < nr; k++) {
		t0 = since ? since : tick();
		sig = copy_page(io, h->map + (b + k) * PAGE);
		t1 = tick();
		if (own_only && __atomic_load_n(&h->o->foreign, __ATOMIC_SEQ_CST) != h->foreign)
			return;
		if (!sizes(h->o, h->id, t0, t1, &lo, &hi)) {
			count(&s->unchecked);
			return;
		}
		if (sig ? lo > (b + k) * PAGE : hi <= (b + k) * PAGE)
			wrong(h, "%s of block %d in [%lu, %lu]: signal %d; size is %u to %u", how,
			      b + k, t0, t1, sig, lo, hi);
		if (sig)
			count(&s->buses);
		else
			check_block(how, h, b + k, io, PAGE, t0, t1);
	}
}

static void check_map(struct handle *h, int b, int nr)
{
	uint64_t t0 = tick();

	if (!h->map || !rnd(3)) {
		map_handle(h);
		check_mapped("a new mapping", h, b, nr, t0, false);
		return;
	}
	h->foreign = __atomic_load_n(&h->o->foreign, __ATOMIC_SEQ_CST);
	madvise(h->map, BLOCKS * PAGE, MADV_DONTNEED);
	check_mapped("new faults", h, b, nr, t0, false);
}

/* What is mapped already. */
static void check_old_map(struct handle *h, int b, int nr)
{
	uint64_t t0;
	char c;
	int fd;

	if (!h->map || h->side == LOW)
		return;
	count(&s->old_maps);
	if (h->foreign == __atomic_load_n(&h->o->foreign, __ATOMIC_SEQ_CST)) {
		/* Changes through any mount are seen at once. */
		check_mapped("an old mapping", h, b, nr, 0, true);
		return;
	}
	t0 = tick();
	if (!(h->flags & O_DIRECT) && rnd(2)) {
		if (pread(h->fd, &c, 1, rnd(BLOCKS) * PAGE) < 0)
			wrong(h, "read of one byte");
	} else {
		/* The name may be another file's by now: by way of the descriptor. */
		fd = open(path_of("/proc/self/fd/%d", h->fd), O_RDONLY);
		if (fd < 0)
			wrong(h, "open again");
		close(fd);
	}
	check_mapped("an old mapping after a read or open", h, b, nr, t0, false);
}

/* --- handles -------------------------------------------------------------- */

static void close_handle(struct handle *h)
{
	if (h->map)
		munmap(h->map, BLOCKS * PAGE);
	if (h->o)
		close(h->fd);
	h->map = NULL;
	h->o = NULL;
}

/* Return: false if the name was changing hands all the time. */
static bool open_handle(struct handle *h, int slot, enum side side, int flags)
{
	struct slot *f = &s->slot[slot];
	uint32_t seq, id;
	int try;

	h->map = NULL;
	h->slot = slot;
	h->side = side;
	h->flags = flags;
	for (try = 0; try < 20; try++) {
		seq = __atomic_load_n(&f->seq, __ATOMIC_SEQ_CST);
		h->o = &s->object[f->object];
		id = h->o->id;
		h->id = id;
		h->fd = open(path(side, slot), flags | O_CLOEXEC);
		if (!(seq & 1) && seq == __atomic_load_n(&f->seq, __ATOMIC_SEQ_CST)) {
			if (h->fd < 0)
				wrong(h, "open with %#x", flags);
			return true;
		}
		if (h->fd >= 0)
			close(h->fd);
		usleep(1000);
	}
	h->o = NULL;
	return false;
}

/* Some files are wanted by everybody. */
static int some_slot(void)
{
	return rnd(2) ? rnd(FILES) : rnd(HOT);
}

static struct handle *some_handle(void)
{
	static const int flags[] = { O_RDONLY, O_RDONLY, O_RDONLY | O_DIRECT, O_RDWR, O_RDWR,
				     O_RDWR | O_DIRECT };
	struct handle *h = &handles[rnd(HANDLES)];
	enum side side;

	if (h->o && h->o->id == h->id && rnd(4))
		return h;
	close_handle(h);
	side = rnd(8) < 4 ? UP : rnd(2) ? LOW : OTHER;
	return open_handle(h, some_slot(), side, flags[rnd(6)]) ? h : NULL;
}

/* The locks of [b, b + nr).  Return: false, without them, if the file is gone. */
static bool lock_parts(const struct handle *h, int b, int nr)
{
	int p;

	for (p = b / PART; p <= (b + nr - 1) / PART; p++)
		pthread_mutex_lock(&h->o->part[p]);
	if (h->o->id == h->id)
		return true;
	for (p = b / PART; p <= (b + nr - 1) / PART; p++)
		pthread_mutex_unlock(&h->o->part[p]);
	return false;
}

static void unlock_parts(const struct handle *h, int b, int nr)
{
	int p;

	for (p = b / PART; p <= (b + nr - 1) / PART; p++)
		pthread_mutex_unlock(&h->o->part[p]);
}

/* --- changes -------------------------------------------------------------- */

struct change {
	const struct handle *h;
	int first, nr;
	uint64_t event;
};

/* Announce it.  o->lock is held afterwards, for the new versions; see started(). */
static uint64_t start(struct change *c, const struct handle *h, const char *what, int first, int nr,
		      int arg, uint32_t gen)
{
	struct object *o = h->o;
	uint64_t begin;

	if (h->side == LOW)
		__atomic_add_fetch(&o->foreign, 1, __ATOMIC_SEQ_CST);
	pthread_mutex_lock(&o->lock);
	begin = tick();
	c->h = h;
	c->first = first;
	c->nr = nr;
	c->event = o->events++;
	o->log[c->event % LOG] = (struct event){ begin, NEVER, what, getpid(), h->side, first, nr,
						 arg, gen };
	return begin;
}

static void started(struct change *c)
{
	pthread_mutex_unlock(&c->h->o->lock);
}

/* It has returned.  @resized: it made a new size. */
static void finish(struct change *c, bool resized)
{
	struct object *o = c->h->o;
	uint64_t end;
	int b;

	pthread_mutex_lock(&o->lock);
	end = tick();
	for (b = c->first; b < c->first + c->nr; b++)
		if (newest(o, b)->end == NEVER)
			newest(o, b)->end = end;
	if (resized)
		newest_size(o)->end = end;
	if (o->events - c->event <= LOG)
		o->log[c->event % LOG].end = end;
	pthread_mutex_unlock(&o->lock);
}

/* It failed halfway: blocks may be what they were before. */
static void doubtful(struct change *c)
{
	struct object *o = c->h->o;
	struct version *v, *old;
	unsigned int n, i;
	int b;

	count(&s->refused);
	pthread_mutex_lock(&o->lock);
	for (b = c->first; b < c->first + c->nr; b++) {
		v = newest(o, b);
		if (v->end != NEVER || o->block[b].made < 2)
			continue;
		old = &o->block[b].v[(o->block[b].made - 2) % RING];
		n = v->nr;
		v->unknown |= old->unknown;
		for (i = 0; i < old->nr; i++)
			v->unknown |= !add_stamp(v->s, &n, SET, &old->s[i]);
		v->nr = n;
	}
	pthread_mutex_unlock(&o->lock);
}

/* A failed call, or one whose outcome depends on others, left some size. */
static void settle_size(const struct handle *h)
{
	struct size *z;
	struct stat st;

	if (fstat(h->fd, &st))
		wrong(h, "fstat");
	pthread_mutex_lock(&h->o->lock);
	z = newest_size(h->o);
	if (st.st_size < z->lo || st.st_size > z->hi) {
		pthread_mutex_unlock(&h->o->lock);
		wrong(h, "size is %ld, and should be %u to %u", st.st_size, z->lo, z->hi);
	}
	z->lo = z->hi = st.st_size;
	pthread_mutex_unlock(&h->o->lock);
}

static bool no_room(void)
{
	return errno == ENOSPC || errno == EDQUOT;
}

/* The same blocks by another way, while nobody can change them. */
static void check_now(const struct handle *h, int b, int nr)
{
	struct handle now;

	if (rnd(3) || !open_handle(&now, h->slot, rnd(3) ? UP : OTHER, O_RDONLY))
		return;
	if (now.o == h->o && now.id == h->id) {
		check_read(&now, b, nr);
		if (rnd(2))
			check_map(&now, b, nr);
	}
	close_handle(&now);
}

static void set_versions(struct object *o, uint64_t begin, int b, int nr, const struct stamp *st)
{
	struct version *v;
	int k;

	for (k = 0; k < nr; k++) {
		v = new_version(o, b + k, begin);
		v->nr = 1;
		v->s[0] = st[k];
	}
}

/* Write @nr blocks of given stamps from @buf.  The locks are held. */
static bool write_blocks(const struct handle *h, const char *what, int b, int nr, const char *buf,
			 const struct stamp *st)
{
	uint32_t old = size_of(h->o), end = (b + nr) * PAGE;
	struct change c;
	uint64_t begin;
	ssize_t n;

	begin = start(&c, h, what, b, nr, h->flags & O_DIRECT ? 1 : 0, st[0].gen);
	set_versions(h->o, begin, b, nr, st);
	if (end > old)
		new_size(h->o, begin, end);
	started(&c);
	n = pwrite(h->fd, buf, nr * PAGE, b * PAGE);
	if (n != nr * (ssize_t)PAGE) {
		if (n < 0 && !no_room())
			wrong(h, "write of blocks %d to %d", b, b + nr - 1);
		doubtful(&c);
		if (end > old) {
			newest_size(h->o)->lo = old;
			settle_size(h);
		}
	}
	finish(&c, end > old);
	return n == nr * (ssize_t)PAGE;
}

/* Blocks that a change of [b, b + nr) excludes others from. */
static void range_to_lock(const struct handle *h, int *b, int *nr)
{
	/*
	 * Direct writes and stores beside each other in one folio confuse the
	 * page cache of any filesystem; and the size belongs to all blocks.
	 */
	if ((h->flags & O_DIRECT) || (*b + *nr) * PAGE > size_of(h->o)) {
		*b = 0;
		*nr = BLOCKS;
	}
}

/* Return: false if the file is gone; else *@lb and *@lnr are locked. */
static bool lock_for(const struct handle *h, int b, int nr, int *lb, int *lnr)
{
	for (;;) {
		int b2, nr2;

		*lb = b;
		*lnr = nr;
		range_to_lock(h, lb, lnr);
		if (!lock_parts(h, *lb, *lnr))
			return false;
		/* It may have been cut meanwhile. */
		b2 = b;
		nr2 = nr;
		range_to_lock(h, &b2, &nr2);
		if (nr2 <= *lnr)
			return true;
		unlock_parts(h, *lb, *lnr);
	}
}

static void new_stamps(const struct handle *h, int b, int nr, struct stamp *st)
{
	uint32_t gen = __atomic_fetch_add(&s->next_gen, nr, __ATOMIC_SEQ_CST) + 1;
	int k;

	for (k = 0; k < nr; k++)
		st[k] = (struct stamp){ h->id, gen + k, b + k, PAGE };
}

static void do_write(const struct handle *h)
{
	int nr = 1 + rnd(rnd(4) ? 4 : 16), b = rnd(BLOCKS - nr + 1), lb, lnr, k;
	struct stamp st[16];

	if (!lock_for(h, b, nr, &lb, &lnr))
		return;
	new_stamps(h, b, nr, st);
	for (k = 0; k < nr; k++)
		render(io + k * PAGE, &st[k]);
	write_blocks(h, "write", b, nr, io, st);
	if (!rnd(3) && fsync(h->fd) && !no_room())
		wrong(h, "fsync");
	check_now(h, b, nr);
	unlock_parts(h, lb, lnr);
}

static void do_store(struct handle *h)
{
	int nr = 1 + rnd(4), b = rnd(BLOCKS - nr + 1), k, sig = 0;
	struct stamp st[4];
	struct change c;
	uint64_t begin;

	if (!h->map || !h->writable)
		map_handle(h);
	if (!h->writable || !lock_parts(h, b, nr))
		return;
	if ((b + nr) * PAGE > size_of(h->o))
		goto out;
	new_stamps(h, b, nr, st);
	begin = start(&c, h, "store", b, nr, -1, st[0].gen);
	set_versions(h->o, begin, b, nr, st);
	started(&c);
	for (k = 0; k < nr && !sig; k++) {
		render(io, &st[k]);
		sig = copy_page(h->map + (b + k) * PAGE, io);
	}
	if (sig)
		doubtful(&c);
	else if (!rnd(4) && msync(h->map + b * PAGE, nr * PAGE, MS_SYNC) && !no_room())
		wrong(h, "msync");
	finish(&c, false);
	check_now(h, b, nr);
out:
	unlock_parts(h, b, nr);
}

/* Zeroes from @size on.  o->lock held. */
static void zero_from(struct object *o, uint64_t begin, uint32_t size)
{
	struct version *v, *old;
	int b, i;

	for (b = size / PAGE; b < BLOCKS; b++) {
		uint32_t keep = b == (int)(size / PAGE) ? size % PAGE : 0;

		old = newest(o, b);
		if (old->nr == 1 && !old->unknown && (!old->s[0].gen || old->s[0].len <= keep))
			continue;
		v = new_version(o, b, begin);
		old = &o->block[b].v[(o->block[b].made - 2) % RING];
		v->nr = 1;
		if (!keep)
			continue;
		v->nr = old->nr;
		v->unknown = old->unknown;
		memcpy(v->s, old->s, sizeof(v->s));
		for (i = 0; i < v->nr; i++)
			if (v->s[i].len > keep)
				v->s[i].len = keep;
	}
}

/* The locks are held. */
static void resize(const struct handle *h, uint32_t size)
{
	uint32_t old = size_of(h->o);
	struct change c;
	uint64_t begin;

	begin = start(&c, h, "truncate", 0, BLOCKS, size, 0);
	if (size < old)
		zero_from(h->o, begin, size);
	new_size(h->o, begin, size);
	started(&c);
	if (ftruncate(h->fd, size)) {
		if (!no_room())
			wrong(h, "truncate");
		doubtful(&c);
		newest_size(h->o)->lo = size < old ? size : old;
		newest_size(h->o)->hi = size < old ? old : size;
		settle_size(h);
	}
	finish(&c, true);
}

static void do_truncate(const struct handle *h)
{
	uint32_t size = rnd(BLOCKS + 1) * PAGE;

	if (!rnd(3) && size)
		size -= rnd(PAGE);
	if (!lock_parts(h, 0, BLOCKS))
		return;
	resize(h, size);
	check_now(h, 0, BLOCKS);
	unlock_parts(h, 0, BLOCKS);
}

static void do_punch(const struct handle *h)
{
	int nr = 1 + rnd(8), b = rnd(BLOCKS - nr + 1), k;
	int mode = rnd(3) ? FALLOC_FL_PUNCH_HOLE : FALLOC_FL_ZERO_RANGE;
	struct stamp st[8] = {};
	struct change c;
	uint64_t begin;

	/* It takes pages out of the page cache, as a direct write does. */
	if (!lock_parts(h, 0, BLOCKS))
		return;
	begin = start(&c, h, mode == FALLOC_FL_PUNCH_HOLE ? "punch" : "zero", b, nr, -1, 0);
	for (k = 0; k < nr; k++)
		st[k].block = b + k;
	set_versions(h->o, begin, b, nr, st);
	started(&c);
	if (fallocate(h->fd, mode | FALLOC_FL_KEEP_SIZE, b * PAGE, nr * PAGE)) {
		if (!no_room() && errno != EOPNOTSUPP)
			wrong(h, "fallocate %d", mode);
		doubtful(&c);
	}
	finish(&c, false);
	check_now(h, b, nr);
	unlock_parts(h, 0, BLOCKS);
}

/* Somebody's handle of another file by the same way, else a new one. */
static bool source_for(const struct handle *h, struct handle *src)
{
	int i, from = rnd(HANDLES);

	for (i = 0; i < HANDLES; i++) {
		struct handle *x = &handles[(from + i) % HANDLES];

		if (x->o && x->side == h->side && x->o != h->o && x->o->id == x->id && rnd(3)) {
			*src = *x;
			src->map = NULL;
			src->fd = dup(x->fd);
			return src->fd >= 0;
		}
	}
	if (!open_handle(src, rnd(FILES), h->side, O_RDONLY))
		return false;
	if (src->o != h->o)
		return true;
	close_handle(src);
	return false;
}

/*
 * What was pending is known: what the source held in [t0, now].  On top of
 * what it was before, where the call failed.
 */
static void cloned(struct change *c, const struct handle *src, int from, uint64_t t0, bool failed)
{
	struct object *o = c->h->o;
	struct stamp list[CANDIDATES];
	uint64_t t1 = tick();
	struct version *v;
	unsigned int m;
	int k, n, i;

	for (k = 0; k < c->nr; k++) {
		n = allowed(src->o, src->id, from + k, t0, t1, list, false);
		pthread_mutex_lock(&o->lock);
		v = newest(o, c->first + k);
		for (m = 0, i = 0; i < n; i++)
			v->unknown |= !add_stamp(v->s, &m, SET, &list[i]);
		v->unknown |= n <= 0;
		v->nr = m;
		pthread_mutex_unlock(&o->lock);
		if (n > 1)
			count(&s->sets);
	}
	if (failed)
		doubtful(c);
	pthread_mutex_lock(&o->lock);
	for (k = 0; k < c->nr; k++)
		newest(o, c->first + k)->pending = false;
	pthread_mutex_unlock(&o->lock);
}

static void pend(struct object *o, uint64_t begin, int b, int nr)
{
	int k;

	for (k = 0; k < nr; k++)
		new_version(o, b + k, begin)->pending = true;
}

/* May a clone of a file that others change fail so? */
static bool may_fail(void)
{
	/* Cut off at the source's end, which moved. */
	return no_room() || errno == EINVAL;
}

static void do_clone_range(const struct handle *h, const struct handle *src)
{
	uint32_t have = size_of(src->o) / PAGE, old;
	struct file_clone_range range = {};
	int nr, from, to, lb, lnr;
	struct change c;
	bool failed;
	uint64_t t0;

	if (!have)
		return;
	nr = 1 + rnd(have < 32 ? have : 32);
	from = rnd(have - nr + 1);
	to = rnd(BLOCKS - nr + 1);
	if (!lock_for(h, to, nr, &lb, &lnr))
		return;
	old = size_of(h->o);
	range.src_fd = src->fd;
	range.src_offset = from * PAGE;
	range.src_length = nr * PAGE;
	range.dest_offset = to * PAGE;
	t0 = start(&c, h, "clone range", to, nr, src->id, 0);
	pend(h->o, t0, to, nr);
	if ((to + nr) * PAGE > old)
		new_size(h->o, t0, (to + nr) * PAGE);
	started(&c);
	failed = ioctl(h->fd, FICLONERANGE, &range);
	if (failed && !may_fail())
		wrong(h, "clone range from file %u", src->id);
	cloned(&c, src, from, t0, failed);
	if (failed && (to + nr) * PAGE > old) {
		newest_size(h->o)->lo = old;
		settle_size(h);
	}
	finish(&c, (to + nr) * PAGE > old);
	if (!failed)
		count(&s->clones);
	if (!rnd(3) && fsync(h->fd) && !no_room())
		wrong(h, "fsync");
	check_now(h, to, nr);
	unlock_parts(h, lb, lnr);
}

static void do_clone(const struct handle *h, const struct handle *src)
{
	uint32_t lo, hi;
	struct change c;
	bool failed;
	uint64_t t0;

	if (!lock_parts(h, 0, BLOCKS))
		return;
	resize(h, 0);
	t0 = start(&c, h, "clone", 0, BLOCKS, src->id, 0);
	pend(h->o, t0, 0, BLOCKS);
	new_size(h->o, t0, BLOCKS * PAGE);
	newest_size(h->o)->lo = 0;
	started(&c);
	failed = ioctl(h->fd, FICLONE, src->fd);
	if (failed && !may_fail())
		wrong(h, "clone of file %u", src->id);
	cloned(&c, src, 0, t0, failed);
	if (!failed && sizes(src->o, src->id, t0, tick(), &lo, &hi)) {
		newest_size(h->o)->lo = lo;
		newest_size(h->o)->hi = hi;
	}
	settle_size(h);
	finish(&c, true);
	if (!failed)
		count(&s->clones);
	if (rnd(2) && fsync(h->fd) && !no_room())
		wrong(h, "fsync");
	check_now(h, 0, BLOCKS);
	unlock_parts(h, 0, BLOCKS);
}

/* Write what another file holds, stamps and all, and deduplicate the two. */
static void do_dedupe(const struct handle *h, const struct handle *src)
{
	char raw[sizeof(struct file_dedupe_range) + sizeof(struct file_dedupe_range_info)] = {};
	struct file_dedupe_range *range = (void *)raw;
	static char buf[16 * PAGE] __attribute__((aligned(4096)));
	int nr, from, to, lb, lnr, k;
	uint32_t have = size_of(src->o) / PAGE;
	struct stamp st[16];

	if (!have)
		return;
	nr = 1 + rnd(have < 16 ? have : 16);
	from = rnd(have - nr + 1);
	to = rnd(4) ? from : (int)rnd(BLOCKS - nr + 1);
	if (pread(src->fd, buf, nr * PAGE, from * PAGE) != nr * (ssize_t)PAGE)
		return;
	for (k = 0; k < nr; k++)
		if (!decode(buf + k * PAGE, &st[k]))
			return;
	if (!lock_for(h, to, nr, &lb, &lnr))
		return;
	write_blocks(h, "copy", to, nr, buf, st);
	if (rnd(2) && fsync(h->fd) && !no_room())
		wrong(h, "fsync");
	if (rnd(2))
		unlock_parts(h, lb, lnr), lnr = 0;
	/* Content stays as it is, whoever writes meanwhile. */
	range->src_offset = from * PAGE;
	range->src_length = nr * PAGE;
	range->dest_count = 1;
	range->info[0].dest_fd = h->fd;
	range->info[0].dest_offset = to * PAGE;
	if (h->side == LOW)
		__atomic_add_fetch(&h->o->foreign, 1, __ATOMIC_SEQ_CST);
	if (ioctl(src->fd, FIDEDUPERANGE, range) && !may_fail())
		wrong(h, "dedupe with file %u", src->id);
	if (range->info[0].status == FILE_DEDUPE_RANGE_SAME && range->info[0].bytes_deduped)
		count(&s->dedupes);
	if (lnr) {
		check_now(h, to, nr);
		unlock_parts(h, lb, lnr);
	}
}

/* --- names ---------------------------------------------------------------- */

/* A file that has had no name for the longest time becomes a new one. */
static struct object *new_object(void)
{
	struct object *o;
	int p, b;

	pthread_mutex_lock(&s->alloc);
	do {
		o = &s->object[s->next_object++ % OBJECTS];
	} while (o->named);
	o->named = true;
	pthread_mutex_unlock(&s->alloc);
	for (p = 0; p < PARTS; p++)
		pthread_mutex_lock(&o->part[p]);
	pthread_mutex_lock(&o->lock);
	o->id = __atomic_add_fetch(&s->next_id, 1, __ATOMIC_SEQ_CST);
	o->foreign = 0;
	o->events = 0;
	for (b = 0; b < BLOCKS; b++) {
		o->block[b].made = 0;
		new_version(o, b, 0)->end = 0;
		newest(o, b)->nr = 1;
	}
	o->sizes = 0;
	new_size(o, 0, 0);
	newest_size(o)->end = 0;
	pthread_mutex_unlock(&o->lock);
	for (p = 0; p < PARTS; p++)
		pthread_mutex_unlock(&o->part[p]);
	return o;
}

static enum side any_side(void)
{
	return rnd(4) < 2 ? UP : rnd(2) ? LOW : OTHER;
}

/* The name is free, and its lock held. */
static void create(int slot)
{
	struct handle h = { .slot = slot, .side = any_side() };
	int fd;

	h.o = new_object();
	h.id = h.o->id;
	fd = open(path(h.side, slot), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
	if (fd < 0)
		wrong(&h, "create");
	close(fd);
	s->slot[slot].object = h.o - s->object;
}

static void begin_rename(struct slot *f)
{
	pthread_mutex_lock(&f->lock);
	__atomic_add_fetch(&f->seq, 1, __ATOMIC_SEQ_CST);
}

static void end_rename(struct slot *f)
{
	__atomic_add_fetch(&f->seq, 1, __ATOMIC_SEQ_CST);
	pthread_mutex_unlock(&f->lock);
}

static void fill_new(int slot)
{
	struct handle h, src;

	if (!open_handle(&h, slot, any_side(), O_RDWR))
		return;
	if (rnd(4) && source_for(&h, &src)) {
		do_clone(&h, &src);
		close_handle(&src);
	} else {
		do_write(&h);
	}
	close_handle(&h);
}

static void do_recreate(int slot)
{
	struct slot *f = &s->slot[slot];
	struct handle h = { .slot = slot, .side = any_side() };

	begin_rename(f);
	h.o = &s->object[f->object];
	h.id = h.o->id;
	if (unlink(path(h.side, slot)))
		wrong(&h, "unlink");
	h.o->named = false;
	create(slot);
	end_rename(f);
	fill_new(slot);
}

static void do_rename(int a, int b)
{
	struct slot *f = &s->slot[a], *g = &s->slot[b];
	struct handle h = { .slot = a, .side = any_side() };

	if (a == b)
		return;
	begin_rename(a < b ? f : g);
	begin_rename(a < b ? g : f);
	h.o = &s->object[f->object];
	h.id = h.o->id;
	if (rename(path(h.side, a), path(h.side, b)))
		wrong(&h, "rename to f%d", b);
	s->object[g->object].named = false;
	g->object = f->object;
	create(a);
	end_rename(f);
	end_rename(g);
	fill_new(a);
}

/* --- the processes -------------------------------------------------------- */

static void one_op(void)
{
	struct handle *h = some_handle(), src;
	int op = rnd(100), nr = 1 + rnd(rnd(2) ? 8 : BLOCKS), b = rnd(BLOCKS - nr + 1), have;

	if (!h)
		return;
	have = size_of(h->o) / PAGE;
	if (have && rnd(8)) {
		b = rnd(have);
		nr = nr < have - b ? nr : have - b;
	}
	count(&s->ops);
	if (op < 28)
		check_read(h, b, nr);
	else if (op < 46)
		check_map(h, b, nr);
	else if (op < 58)
		check_old_map(h, b, nr);
	else if (op >= 96)
		op < 98 ? do_recreate(some_slot()) : do_rename(some_slot(), some_slot());
	else if ((h->flags & O_ACCMODE) == O_RDONLY)
		check_read(h, b, nr);
	else if (op < 66)
		do_write(h);
	else if (op < 74)
		do_store(h);
	else if (op < 76)
		do_truncate(h);
	else if (op < 78)
		do_punch(h);
	else if (source_for(h, &src)) {
		if (op < 85)
			do_clone_range(h, &src);
		else if (op < 90)
			do_clone(h, &src);
		else
			do_dedupe(h, &src);
		close_handle(&src);
	}
}

static void worker(void)
{
	while (!s->stop)
		one_op();
}

static void nap(int ms)
{
	for (; ms > 0 && !s->stop; ms -= 50)
		usleep(50000);
}

static void dropper(void)
{
	long saved;

	while (!s->stop) {
		nap(200 + rnd(600));
		saved = pool("saved_bytes");
		if (saved > s->saved)
			s->saved = saved;
		if (!rnd(3))
			sync();
		/* The pool is dropped seldom: what is old in it shall meet what is new. */
		write_text("/proc/sys/vm/drop_caches", rnd(8) ? "1" : rnd(2) ? "2" : "3");
	}
}

/* Takes most of the memory for a moment, again and again. */
static void hog(void)
{
	size_t size, off;
	pid_t pid;
	char *p;

	while (!s->stop) {
		nap(2000 + rnd(3000));
		pid = fork();
		if (pid) {
			waitpid(pid, NULL, 0);
			count(&s->hogs);
			continue;
		}
		write_text("/proc/self/oom_score_adj", "1000");
		size = meminfo("MemAvailable") / 100 * 90;
		p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		for (off = 0; p != MAP_FAILED && off < size && !s->stop; off += PAGE)
			p[off] = 1;
		nap(300);
		_exit(0);
	}
}

/* Lower blocks move, and content does not. */
static void tidy(void)
{
	struct btrfs_ioctl_defrag_range_args args;
	char cmd[PATH_MAX + 64];
	int fd, slot;

	while (!s->stop) {
		nap(btrfs ? 50 + rnd(150) : 300 + rnd(1000));
		slot = some_slot();
		if (!btrfs) {
			snprintf(cmd, sizeof(cmd), "xfs_fsr -v %s >/dev/null 2>&1", path(LOW, slot));
			if (!system(cmd))
				count(&s->tidied);
			continue;
		}
		fd = open(path(LOW, slot), O_RDWR | O_CLOEXEC);
		if (fd < 0)
			continue;
		memset(&args, 0, sizeof(args));
		args.len = -1;
		args.flags = rnd(2) ? BTRFS_DEFRAG_RANGE_START_IO : 0;
		args.extent_thresh = 32 * MiB;
		if (!rnd(3)) {
			args.flags |= BTRFS_DEFRAG_RANGE_COMPRESS;
			args.compress_type = 1;
		}
		if (!ioctl(fd, BTRFS_IOC_DEFRAG_RANGE, &args))
			count(&s->tidied);
		close(fd);
		/* What it left is free from now on. */
		if (!rnd(4))
			sync();
	}
}

static void balance(void)
{
	int fd = open(side_dir[LOW], O_RDONLY | O_CLOEXEC);

	while (!s->stop) {
		struct btrfs_ioctl_balance_args args = {
			.flags = BTRFS_BALANCE_DATA | BTRFS_BALANCE_METADATA |
				 BTRFS_BALANCE_SYSTEM | BTRFS_BALANCE_FORCE };

		if (!ioctl(fd, BTRFS_IOC_BALANCE_V2, &args))
			count(&s->balances);
		/* It gives all data new addresses: leave time for some to be used again. */
		nap(3000 + rnd(6000));
	}
	close(fd);
}

/* --- snapshots ------------------------------------------------------------ */

/* A snapshot is many clones at one moment: what each block may be is fixed. */
struct snapshot {
	bool exists, known[FILES];
	uint32_t lo[FILES], hi[FILES];
	struct version v[FILES][BLOCKS];
	/* To explain a failure: when it was made, and what was known then. */
	uint64_t t0, t1;
	struct object object[FILES];
};

#define SNAPSHOTS	2

static const char *snap_path(enum side side, int nr, int slot)
{
	return path_of("%s/snap%d/f%d", side_dir[side], nr, slot);
}

static void drop_snapshot(int nr)
{
	if (subvol_delete(path_of("%s/snap%d", side_dir[LOW], nr)))
		die("cannot remove snapshot %d", nr);
}

static bool make_snapshot(struct snapshot *snap, int nr)
{
	struct btrfs_ioctl_vol_args_v2 args = { .flags = rnd(2) ? BTRFS_SUBVOL_RDONLY : 0 };
	uint32_t seq[FILES], object[FILES], id[FILES];
	struct stamp list[CANDIDATES];
	int fd, f, b, n, i;
	uint64_t t0, t1;
	unsigned int m;

	for (f = 0; f < FILES; f++) {
		seq[f] = __atomic_load_n(&s->slot[f].seq, __ATOMIC_SEQ_CST);
		object[f] = s->slot[f].object;
		id[f] = s->object[object[f]].id;
	}
	fd = open(side_dir[LOW], O_RDONLY | O_CLOEXEC);
	args.fd = open(path_of("%s/w", side_dir[LOW]), O_RDONLY | O_CLOEXEC);
	snprintf(args.name, sizeof(args.name), "snap%d", nr);
	t0 = tick();
	n = ioctl(fd, BTRFS_IOC_SNAP_CREATE_V2, &args);
	t1 = tick();
	close(args.fd);
	close(fd);
	if (n) {
		if (no_room())
			return false;
		first_failure();
		die("cannot make snapshot %d", nr);
	}
	for (f = 0; f < FILES; f++) {
		struct object *o = &s->object[object[f]];

		snap->known[f] = !(seq[f] & 1) &&
			seq[f] == __atomic_load_n(&s->slot[f].seq, __ATOMIC_SEQ_CST) &&
			sizes(o, id[f], t0, t1, &snap->lo[f], &snap->hi[f]);
		for (b = 0; b < BLOCKS && snap->known[f]; b++) {
			struct version *v = &snap->v[f][b];

			memset(v, 0, sizeof(*v));
			n = allowed(o, id[f], b, t0, t1, list, true);
			for (m = 0, i = 0; i < n; i++)
				v->unknown |= !add_stamp(v->s, &m, SET, &list[i]);
			v->unknown |= n <= 0;
			v->nr = m;
		}
		memcpy(&snap->object[f], o, sizeof(*o));
	}
	snap->t0 = t0;
	snap->t1 = t1;
	snap->exists = true;
	count(&s->snapshots);
	return true;
}

/* Do the disk and the filesystem below show the same, for good? */
static bool lower_agrees(int nr, int f, int b, const char *got)
{
	static char page[PAGE] __attribute__((aligned(4096)));
	int i, fd;
	ssize_t n;

	for (i = 0; i < 2; i++) {
		fd = open(snap_path(LOW, nr, f), O_RDONLY | O_CLOEXEC | (i ? O_DIRECT : 0));
		memset(page, 0, PAGE);
		n = pread(fd, page, PAGE, b * PAGE);
		close(fd);
		if (n <= 0 || memcmp(page, got, n))
			return false;
	}
	return true;
}

/*
 * What should not be in a snapshot is there.  Where the filesystem below says
 * the same, the mount does not lie, but who is to blame is not known: that was
 * seen once, on 6.1.  Once is told, and twice fails.
 */
static void wrong_snapshot(struct snapshot *snap, int nr, enum side side, int f, int b,
			   const char *how, const char *got)
{
	bool agrees = lower_agrees(nr, f, b, got);
	struct version *v = &snap->v[f][b];
	int i;

	if (agrees && __atomic_add_fetch(&s->doubts, 1, __ATOMIC_RELAXED) == 1)
		fprintf(stderr, "# The filesystem below shows this as well:\n");
	else
		first_failure();
	fprintf(stderr, "# %s of f%d in snapshot %d by the %s, offset %lu (block %d)\n", how, f, nr,
		side_name[side], b * PAGE, b);
	print_page("found: ", got);
	for (i = 0; i < v->nr; i++)
		print_stamp("allowed: ", &v->s[i]);
	i = open(snap_path(LOW, nr, f), O_RDONLY | O_CLOEXEC);
	memset(io, 0, PAGE);
	pread(i, io, PAGE, b * PAGE);
	print_page("below now: ", io);
	fprintf(stderr, "# the snapshot of [%lu, %lu] was made of file %u:\n", snap->t0, snap->t1,
		snap->object[f].id);
	print_block(&snap->object[f], b);
	print_history(&snap->object[f], b);
	if (s->failed)
		_exit(1);
	snap->known[f] = false;
}

static void check_snapshot(struct snapshot *snap, int nr)
{
	enum side side = rnd(3) ? UP : OTHER;
	int f = rnd(FILES), b, fd, bytes;
	struct stat st;
	char *p;

	if (!snap->exists || !snap->known[f])
		return;
	fd = open(snap_path(side, nr, f), O_RDONLY | O_CLOEXEC);
	if (fd < 0 || fstat(fd, &st)) {
		first_failure();
		die("snapshot %d, f%d", nr, f);
	}
	memset(io, 0, sizeof(io));
	if (pread(fd, io, sizeof(io), 0) != st.st_size || st.st_size < snap->lo[f] ||
	    st.st_size > snap->hi[f]) {
		first_failure();
		fprintf(stderr, "# snapshot %d: size of f%d is %ld and should be %u to %u\n", nr, f,
			st.st_size, snap->lo[f], snap->hi[f]);
		_exit(1);
	}
	p = st.st_size ? mmap(NULL, st.st_size, PROT_READ, MAP_SHARED, fd, 0) : NULL;
	for (b = 0; b * (long)PAGE < st.st_size; b++) {
		struct version *v = &snap->v[f][b];

		if (v->unknown || !snap->known[f])
			continue;
		bytes = st.st_size - b * PAGE < PAGE ? st.st_size - b * PAGE : PAGE;
		if (!matches(io + b * PAGE, bytes, v->s, v->nr))
			wrong_snapshot(snap, nr, side, f, b, "read", io + b * PAGE);
		else if (!matches(p + b * PAGE, bytes, v->s, v->nr))
			wrong_snapshot(snap, nr, side, f, b, "mapping", p + b * PAGE);
		count(&s->snap_checks);
	}
	if (p)
		munmap(p, st.st_size);
	close(fd);
}

static void snapshots(void)
{
	struct snapshot *snap = calloc(SNAPSHOTS, sizeof(*snap));
	int nr = 0, i, k;

	while (!s->stop) {
		/* Snapshots keep blocks from being freed: often there is none. */
		for (i = 0; i < SNAPSHOTS && !rnd(3); i++) {
			if (snap[i].exists)
				drop_snapshot(i);
			snap[i].exists = false;
		}
		nap(rnd(4000));
		if (snap[nr].exists)
			drop_snapshot(nr);
		snap[nr].exists = false;
		make_snapshot(&snap[nr], nr);
		nr = (nr + 1) % SNAPSHOTS;
		for (i = 0; i < 12 && !s->stop; i++) {
			k = rnd(SNAPSHOTS);
			check_snapshot(&snap[k], k);
			nap(100 + rnd(200));
		}
	}
}

/* --- all of it ------------------------------------------------------------ */

static const struct {
	const char *name;
	void (*run)(void);
	bool btrfs_only;
} helpers[] = {
	{ "dropper", dropper }, { "hog", hog }, { "tidy", tidy },
	{ "balance", balance, true }, { "snapshots", snapshots, true },
};

#define NR_HELPERS	(sizeof(helpers) / sizeof(*helpers))

FIXTURE(torture) {
};

FIXTURE_SETUP(torture)
{
	const char *dev = getenv("DEDUPFS_SPARE");
	static char pool_dir[PATH_MAX];
	char cwd[PATH_MAX - 16], options[64];

	if (!have_pool)
		SKIP(return, "no dedupfs to test");
	ASSERT_NE(NULL, dev);
	/* A small filesystem: blocks that were freed are soon used again. */
	ASSERT_EQ(0, btrfs ? shell("mkfs.btrfs -q -f -b 256M -m single -d single %s >/dev/null 2>&1", dev) :
		  shell("mkfs.xfs -q -f -m reflink=1 -d size=400m %s", dev));
	ASSERT_NE(NULL, getcwd(cwd, sizeof(cwd)));
	snprintf(side_dir[UP], PATH_MAX, "%s/up", cwd);
	snprintf(side_dir[LOW], PATH_MAX, "%s/low", cwd);
	snprintf(side_dir[OTHER], PATH_MAX, "%s/other", cwd);
	ASSERT_EQ(0, mkdir(side_dir[UP], 0755));
	ASSERT_EQ(0, mkdir(side_dir[LOW], 0755));
	ASSERT_EQ(0, mkdir(side_dir[OTHER], 0755));
	ASSERT_EQ(0, mount(dev, side_dir[LOW], btrfs ? "btrfs" : "xfs", 0,
			   btrfs ? "commit=1" : NULL));
	snprintf(options, sizeof(options), "pool_limit=%lu", POOL_LIMIT);
	ASSERT_EQ(0, mount_on(side_dir[LOW], side_dir[UP], options));
	snprintf(options, sizeof(options), "domain=torture,pool_limit=%lu", POOL_LIMIT);
	ASSERT_EQ(0, mount_on(side_dir[LOW], side_dir[OTHER], options));
	snprintf(pool_dir, sizeof(pool_dir), "/sys/fs/dedupfs/%s", strrchr(dev, '/') + 1);
	setenv("DEDUPFS_POOL", pool_dir, 1);
	ASSERT_EQ(0, btrfs ? shell("btrfs -q subvolume create %s/w", side_dir[LOW]) :
		  mkdir(path_of("%s/w", side_dir[LOW]), 0755));
}

FIXTURE_TEARDOWN(torture)
{
	umount2(side_dir[OTHER], MNT_DETACH);
	umount2(side_dir[UP], MNT_DETACH);
	umount2(side_dir[LOW], MNT_DETACH);
}

static void setup_shared(void)
{
	pthread_mutexattr_t attr;
	int i, p;

	s = mmap(NULL, sizeof(*s), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	pthread_mutexattr_init(&attr);
	pthread_mutexattr_setpshared(&attr, PTHREAD_PROCESS_SHARED);
	pthread_mutex_init(&s->alloc, &attr);
	for (i = 0; i < OBJECTS; i++) {
		pthread_mutex_init(&s->object[i].lock, &attr);
		for (p = 0; p < PARTS; p++)
			pthread_mutex_init(&s->object[i].part[p], &attr);
	}
	for (i = 0; i < FILES; i++)
		pthread_mutex_init(&s->slot[i].lock, &attr);
}

/* Every block of every file, when nobody changes anything. */
static void check_all(void)
{
	struct handle h;
	int i, side;

	for (i = 0; i < FILES; i++) {
		for (side = 0; side < SIDES; side++) {
			if (!open_handle(&h, i, side, O_RDONLY))
				wrong(&h, "open");
			check_read(&h, 0, BLOCKS);
			check_map(&h, 0, BLOCKS);
			close_handle(&h);
		}
	}
}

static void start_files(void)
{
	struct handle h;
	int i, k;

	for (i = 0; i < FILES; i++) {
		begin_rename(&s->slot[i]);
		create(i);
		end_rename(&s->slot[i]);
		if (i % 4 == 0) {
			open_handle(&h, i, LOW, O_RDWR);
			lock_parts(&h, 0, BLOCKS);
			for (k = 0; k < BLOCKS; k += 16) {
				struct stamp st[16];
				int j;

				new_stamps(&h, k, 16, st);
				for (j = 0; j < 16; j++)
					render(io + j * PAGE, &st[j]);
				write_blocks(&h, "write", k, 16, io, st);
			}
			unlock_parts(&h, 0, BLOCKS);
			close_handle(&h);
		} else {
			struct handle src;

			open_handle(&h, i, LOW, O_RDWR);
			open_handle(&src, i - i % 4, LOW, O_RDONLY);
			do_clone(&h, &src);
			close_handle(&src);
			close_handle(&h);
		}
	}
	sync();
}

static pid_t spawn(int nr, void (*run)(void))
{
	pid_t pid = fork();

	if (pid)
		return pid;
	rng = mix(seed + nr * 1000003);
	run();
	fflush(NULL);
	_exit(0);
}

static void in_child(struct __test_metadata *_metadata, void (*run)(void))
{
	pid_t pid = spawn(1000, run);
	int status;

	ASSERT_EQ(pid, waitpid(pid, &status, 0));
	ASSERT_EQ(0, status);
}

TEST_F_TIMEOUT(torture, stamped_blocks, 1000000)
{
	int workers = number("TORTURE_WORKERS", 6), seconds = number("TORTURE_SECONDS", 60);
	long evictions, joins, refused, hits, stale, carried, copy_ups;
	int i, n = 0, status;
	bool hung = false;
	double begun, end;
	pid_t pid[64];

	if (workers > 32)
		workers = 32;
	seed = getenv("TORTURE_SEED") && *getenv("TORTURE_SEED") ?
		strtoul(getenv("TORTURE_SEED"), NULL, 0) : (uint64_t)time(NULL) * 1000 + getpid();
	TH_LOG("TORTURE_SEED=%lu, %d s", seed, seconds);
	setup_shared();
	in_child(_metadata, start_files);
	begun = now();
	end = begun + seconds;
	for (i = 0; i < workers; i++)
		pid[n++] = spawn(i, worker);
	for (i = 0; i < (int)NR_HELPERS; i++)
		if (btrfs || !helpers[i].btrfs_only)
			pid[n++] = spawn(100 + i, helpers[i].run);
	/* (The balance that is under way at the end does not count.) */
	while ((now() < end || (btrfs && !s->balances && now() < end + 60)) && !s->stop) {
		usleep(100000);
		for (i = 0; i < n; i++) {
			if (pid[i] <= 0 || waitpid(pid[i], &status, WNOHANG) != pid[i])
				continue;
			EXPECT_TRUE(s->stop) TH_LOG("process %d ended: %#x", i, status);
			pid[i] = 0;
			s->failed |= !s->stop;
			s->stop = true;
		}
	}
	s->stop = true;
	seconds = now() - begun + 0.5;
	if (btrfs) {
		i = open(side_dir[LOW], O_RDONLY);
		ioctl(i, BTRFS_IOC_BALANCE_CTL, BTRFS_BALANCE_CTL_CANCEL);
		close(i);
	}
	/* Who does not come back waits for one that failed, or hangs in the kernel. */
	end = now() + (s->failed ? 10 : 60);
	for (i = 0; i < n; i++) {
		while (pid[i] > 0 && waitpid(pid[i], &status, WNOHANG) == 0) {
			if (now() < end) {
				usleep(20000);
				continue;
			}
			EXPECT_NE(0, s->failed) TH_LOG("process %d hangs", i);
			if (!s->failed) {
				char stack[4096] = "";

				read_text(path_of("/proc/%d/stack", pid[i]), stack, sizeof(stack));
				fprintf(stderr, "%s", stack);
				hung = true;
			}
			kill(pid[i], SIGKILL);
			waitpid(pid[i], &status, 0);
			status = 0;
			break;
		}
		if (pid[i] > 0 && !s->failed)
			EXPECT_EQ(0, status) TH_LOG("process %d", i);
	}
	ASSERT_EQ(0, s->failed) TH_LOG("TORTURE_SEED=%lu", seed);
	ASSERT_FALSE(hung);

	s->stop = false;
	in_child(_metadata, check_all);
	sync();
	drop_caches("3");
	in_child(_metadata, check_all);

	evictions = pool("evictions");
	joins = pool("joins");
	refused = pool("joins_refused");
	hits = pool("hits");
	stale = pool("stale");
	carried = pool("carried");
	copy_ups = pool("copy_ups");
	TH_LOG("%lu operations, %lu/s; %lu blocks checked, %lu of them exactly, %lu mixed, %lu not known",
	       s->ops, s->ops / (seconds ?: 1), s->checks, s->exact, s->mixed, s->unchecked);
	TH_LOG("%u generations, %u files, %lu clones, %lu blocks of racing ones, %lu dedupes, %lu old maps, %lu SIGBUS",
	       s->next_gen, s->next_id, s->clones, s->sets, s->dedupes, s->old_maps, s->buses);
	TH_LOG("%lu balances, %lu defragmentations, %lu snapshots (%lu blocks, %lu in doubt), %lu hogs, %lu calls failed, %lu direct reads collided",
	       s->balances, s->tidied, s->snapshots, s->snap_checks, s->doubts, s->hogs,
	       s->refused, s->collisions);
	TH_LOG("pool: %ld evictions, %ld joins, %ld refused joins, %ld hits, %ld stale, %ld carried, %ld copy-ups, saved up to %ld KiB",
	       evictions, joins, refused, hits, stale, carried, copy_ups, s->saved / 1024);
	/* Else it proves nothing. */
	EXPECT_LT(0, evictions);
	EXPECT_LT(0, joins);
	EXPECT_LT(0, hits);
	EXPECT_LT(0, s->saved);
	EXPECT_LT(0, s->clones);
	EXPECT_LT(0, s->dedupes);
	EXPECT_LT(0, s->old_maps);
	EXPECT_LT(0, stale);
	EXPECT_LT(0, s->hogs);
	EXPECT_LT(s->unchecked, s->checks / 4);
	if (btrfs) {
		/* (One takes longer than all of this on a debug kernel.) */
		if (TIME_FACTOR == 1 || seconds >= 600)
			EXPECT_LT(0, s->balances);
		EXPECT_LT(0, s->snap_checks);
	}
	/* Rarer. */
	if (seconds >= 600) {
		EXPECT_LT(0, refused);
		EXPECT_LT(0, s->tidied);
	}
}

TEST_HARNESS_MAIN
