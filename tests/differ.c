// SPDX-License-Identifier: GPL-2.0-only
/*
 * timeout: 240
 *
 * Random sequences of system calls, each run in a directory of the lower
 * filesystem itself and in one of the mount.  After every step both must have
 * given the same results, and show the same files: attributes, names, extended
 * attributes, contents by read(2) and through mappings made before.  What
 * the mount shows must also be, to the nanosecond and block, what lies below.
 * Open files and mappings live on over many steps.  What is done to data, files
 * and names is done by io_uring, too.
 *
 * By one process; by several, each in a tree of its own; and by several in one
 * tree, taking turns in an order that follows from the seed.
 *
 * DIFFER_SEED chooses what is done (0: anew each time), DIFFER_SECONDS sets the
 * length of all together, DIFFER_STEPS ends each part after so many (1000).
 */
#include "common.h"
#include "uring.h"
#include <semaphore.h>
#include <linux/aio_abi.h>
#include <sys/file.h>

/* DIFFER_SECONDS says how long it takes. */
#undef TEST_TIMEOUT_DEFAULT
#define TEST_TIMEOUT_DEFAULT	7200

#define NFD		12
#define NMAP		8
#define WORKERS		4
#define HISTORY		30
#define SIDES		2
#define BUF		(64 * PAGE)
#define HEAD		(96 * PAGE)	/* of a file, compared at a time */
#define USER		1000

#define ARRAY(a)	(sizeof(a) / sizeof(*(a)))
#define FIRST(a, ...)	a
#define ONE_OF(...)	({						\
	const typeof((FIRST(__VA_ARGS__)) + 0) __l[] = { __VA_ARGS__ }; \
	__l[rnd(ARRAY(__l))];						\
})

/* Flags newer than the headers of Debian 12. */
#define RWF_NOAPPEND_	0x20
#define RWF_ATOMIC_	0x40
#define RWF_UNKNOWN_	0x8000

/* A side: the lower filesystem, or the mount. */
struct side {
	int root;			/* the directory of the tree */
	int fd[NFD];
	char *map[NMAP];
	aio_context_t aio;
	struct transcript said;
};

struct mapping {
	size_t len;
	off_t off;
	bool shared;
	ino_t ino;			/* on the first side */
};

/* In shared memory: whoever finds a difference, or survives, can tell. */
struct history {
	char line[HISTORY][512];
	unsigned long step;
	char who[HISTORY];
};

struct control {
	struct history history[WORKERS];
	sem_t turn[WORKERS];
	uint64_t turn_rng;
	double end;
	unsigned long steps, compared, worked, failed;
	bool stop, broken;
};

static struct control *c;
static struct history *history;
static struct side on[SIDES];
static struct mapping maps[NMAP];
static bool opened[NFD];
static int below = -1;			/* the mount's tree, as it lies below */
static int side, me;
static uint64_t seed, rng;
static uid_t as_uid;
static struct timespec started;
static char *buf;			/* BUF bytes, then a guard page */
static struct ring ring;		/* registered: all of buf */
static bool have_ring;
static unsigned char *seen[SIDES];	/* what was read last, for the report */

/* What the step has to do with, compared after it. */
static char touched[4][PATH_MAX];
static int nr_touched, touched_fd[3], nr_touched_fd, touched_map;
static struct stat stat_before[SIDES][4], stat_after[SIDES][4];
static struct stat fd_before[SIDES][3];
static bool have_before[4], keeps_fd[3];

static uint64_t rnd(uint64_t n)
{
	rng = rng * 6364136223846793005ULL + 1442695040888963407ULL;
	return n ? (rng >> 33) % n : 0;
}

static bool one_in(unsigned int n)
{
	return !rnd(n);
}

/* --- what a step is about -------------------------------------------------- */

static char *touch_path(const char *path)
{
	if (nr_touched == ARRAY(touched))
		return touched[0];
	snprintf(touched[nr_touched], PATH_MAX, "%s", path);
	return touched[nr_touched++];
}

static const char *long_name(int len)
{
	static char name[300];

	memset(name, 'L', len);
	name[len] = 0;
	return name;
}

/* A path in the tree, mostly of few names, so that they are met again. */
static const char *any_path(void)
{
	static const char * const dirs[] = {
		"", "", "", "", "d0/", "d0/", "d1/", "d0/e0/", "d1/e0/", "s0/", "d0/../d1/", "./",
	};
	static const char * const names[] = {
		"a", "b", "f0", "f1", "f2", "f3", "f4", "f5", "f0", "f1", "f2", "f3", "d0", "d1",
		"e0", "s0", "s1", "p0",
	};
	const char *dir = dirs[rnd(ARRAY(dirs))];
	char path[PATH_MAX];
	uint64_t what = rnd(200);

	if (what < 4)
		snprintf(path, sizeof(path), "%s%s", dir, long_name(255));
	else if (what == 4)
		snprintf(path, sizeof(path), "%s%s", dir, long_name(256));
	else if (what == 5)
		path[0] = 0;
	else if (what == 6)
		snprintf(path, sizeof(path), "%s.", dir);
	else if (what < 10)
		snprintf(path, sizeof(path), "%s%s/", dir, names[rnd(ARRAY(names))]);
	else if (what < 25)
		snprintf(path, sizeof(path), "%sname-%lu", dir, rnd(40));
	else
		snprintf(path, sizeof(path), "%s%s", dir, names[rnd(ARRAY(names))]);
	return touch_path(path);
}

static const char *any_file(void)
{
	char path[64];

	if (one_in(4))
		return any_path();
	snprintf(path, sizeof(path), "%sf%lu", one_in(4) ? "d0/" : "", rnd(6));
	return touch_path(path);
}

static const char *any_dir(void)
{
	if (one_in(4))
		return any_path();
	return touch_path(ONE_OF("d0", "d1", "d0/e0", ".", "d1/e0"));
}

/* A slot of the table of open files; an empty one now and then. */
static int any_fd(void)
{
	int i, slot = rnd(NFD);

	for (i = 0; i < 8 && !opened[slot]; i++)
		slot = rnd(NFD);
	if (nr_touched_fd < (int)ARRAY(touched_fd)) {
		keeps_fd[nr_touched_fd] = opened[slot];
		touched_fd[nr_touched_fd++] = slot;
	}
	return slot;
}

/* The step puts another file there. */
static void new_fd(int slot)
{
	keeps_fd[nr_touched_fd] = false;
	touched_fd[nr_touched_fd++] = slot;
}

static int any_map(void)
{
	int i, slot = rnd(NMAP);

	for (i = 0; i < 6 && !maps[slot].len; i++)
		slot = rnd(NMAP);
	touched_map = slot;
	return slot;
}

static off_t size_of(int slot)
{
	struct stat st;

	return fstat(on[0].fd[slot], &st) || !S_ISREG(st.st_mode) ? 0 : st.st_size;
}

static off_t any_off(off_t size)
{
	switch (rnd(32)) {
	case 0:
		return LLONG_MAX - ONE_OF(0L, 1L, 4094L, 4095L, 4096L, 4097L, 8191L, 65535L);
	case 1:
		return ONE_OF(1L << 62, 1L << 32, (1L << 32) - 1, (1L << 44) - 4096, 1L << 44,
			      (1L << 31) - 1, 1L << 31, -1L, LONG_MIN, -4096L);
	case 2 ... 5:
		return size + (off_t)rnd(3) - 1;
	case 6 ... 8:
		return (size + PAGE) / PAGE * PAGE - one_in(2);
	case 9 ... 13:
		return rnd((size > 0 && size < (1L << 30) ? size : 1) + 5000);
	case 14 ... 18:
		return rnd(48) * PAGE + rnd(3) - (one_in(2) ? 1 : 0);
	case 19:
		return 0;
	default:
		return rnd(48) * PAGE;
	}
}

/* Mostly within reach, so that huge files stay rare. */
static off_t near_off(off_t size)
{
	off_t off = any_off(size);

	return (off < 0 || off > (4L << 20)) && !one_in(6) ? (off_t)(rnd(48) * PAGE) : off;
}

static size_t any_len(void)
{
	switch (rnd(8)) {
	case 0:
		return rnd(3);
	case 1:
		return rnd(5000);
	case 2:
		return rnd(24) * PAGE + rnd(3) - 1 + PAGE;
	case 3:
		return rnd(24 * PAGE);
	default:
		return (1 + rnd(16)) * PAGE;
	}
}

static mode_t any_mode(void)
{
	if (one_in(3))
		return rnd(010000);
	return ONE_OF(0666, 0777, 0644, 0755, 0600, 06777, 02755, 04711, 0);
}

/* --- both sides ------------------------------------------------------------ */

static void tick(void)
{
	struct timespec a, b;

	/* Times are taken from this clock: what a step changes can be seen. */
	clock_gettime(CLOCK_REALTIME_COARSE, &a);
	do {
		clock_gettime(CLOCK_REALTIME_COARSE, &b);
	} while (a.tv_sec == b.tv_sec && a.tv_nsec == b.tv_nsec);
}

static void become(uid_t uid)
{
	if (geteuid() && seteuid(0))
		die("seteuid");
	if (setegid(uid))
		die("setegid");
	if (uid && seteuid(uid))
		die("seteuid");
}

static void enter(int to)
{
	side = to;
	become(0);
	if (to >= SIDES)
		return;
	dut = side;
	transcript = &on[side].said;
	if (fchdir(on[side].root))
		die("fchdir");
}

#define QUIETLY	for (enter(0); side < SIDES; enter(side + 1))

static void begin(const char *what)
{
	int i;

	snprintf(history->line[history->step % HISTORY], sizeof(history->line[0]), "%s%s",
		 as_uid ? "(user) " : "", what);
	history->who[history->step % HISTORY] = '0' + me;
	memset(have_before, 0, sizeof(have_before));
	/* On the way to these, links may be followed: relatime compares times of links, too. */
	for (i = 0; i < nr_touched; i++) {
		if (strchr(touched[i], '/')) {
			tick();
			break;
		}
	}
	/* Not always: to look a file up changes what is cached of it. */
	if (rnd(3)) {
		for (i = 0; i < nr_touched; i++)
			have_before[i] = true;
		QUIETLY {
			for (i = 0; i < nr_touched; i++)
				if (lstat(touched[i], &stat_before[side][i]))
					memset(&stat_before[side][i], 0, sizeof(struct stat));
		}
	}
	QUIETLY {
		for (i = 0; i < nr_touched_fd; i++)
			if (keeps_fd[i])
				fstat(on[side].fd[touched_fd[i]], &fd_before[side][i]);
	}
	tick();
}

static void enter_as(int to)
{
	enter(to);
	if (to < SIDES && as_uid)
		become(as_uid);
}

__attribute__((format(printf, 1, 2)))
static bool step(const char *fmt, ...)
{
	char line[480];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(line, sizeof(line), fmt, ap);
	va_end(ap);
	begin(line);
	return true;
}

/* What follows is done on both sides, by the user if it is his turn. */
#define BOTH	for (enter_as(0); side < SIDES; enter_as(side + 1))

#define HERE(slot)	(on[side].fd[slot])

/* Say what a read gave. */
static ssize_t say_bytes(const char *how, ssize_t n, const void *p)
{
	if (n < 0) {
		say("%s: %s", how, errname());
		return n;
	}
	say("%s: %zd bytes, %lx", how, n, hash(p, n, 1));
	if (p != seen[side])
		memcpy(seen[side], p, (size_t)n < HEAD ? (size_t)n : HEAD);
	return n;
}

/* --- memory that may be gone ------------------------------------------------ */

static volatile bool may_fault;

static void on_bad_access(int sig)
{
	if (!may_fault)
		_exit(100 + sig);
	siglongjmp(fault_env, sig);
}

/* FAULTS() of common.h without its system calls. */
#define TRY(statement) ({						\
	int __sig = sigsetjmp(fault_env, 0);				\
									\
	if (!__sig) {							\
		may_fault = true;					\
		statement;						\
	}								\
	may_fault = false;						\
	__sig;								\
})

static void say_map(int slot)
{
	char *p = on[side].map[slot];
	volatile size_t off, good = 0;
	volatile uint64_t h = 1;
	int sig;

	if (!maps[slot].len)
		return;
	for (off = 0; off < maps[slot].len; off += PAGE) {
		unsigned char *to = seen[side] + off % HEAD;

		sig = TRY(memcpy(to, p + off, PAGE));
		if (sig)
			memset(to, 0xee, PAGE);
		else
			good++;
		h = hash(to, PAGE, h ^ sig);
	}
	say("mapping %d: %zu pages, %lx", slot, good, h);
}

/* --- the state of files ------------------------------------------------------ */

static void say_time(const char *what, const struct timespec *t, const struct timespec *before)
{
	bool set = t->tv_sec < started.tv_sec || t->tv_sec > started.tv_sec + 100000;
	bool moved = before && (t->tv_sec != before->tv_sec || t->tv_nsec != before->tv_nsec);

	if (set)
		say("  %s %lld.%09ld", what, (long long)t->tv_sec, t->tv_nsec);
	else
		say("  %s now%s", what, moved ? ", moved" : "");
}

static void say_stat(const char *what, const struct stat *st, const struct stat *before,
		     bool atime)
{
	if (before && before->st_ino != st->st_ino)
		before = NULL;
	say("%.40s: mode %o uid %u gid %u nlink %lu size %lld rdev %lx block %ld", what,
	    st->st_mode, st->st_uid, st->st_gid, (unsigned long)st->st_nlink,
	    (long long)st->st_size, (unsigned long)st->st_rdev, (long)st->st_blksize);
	/*
	 * Of a descriptor, only whether it was set: with relatime, a read in the
	 * clock tick of a write decides otherwise than one in the next, and a
	 * step may lie in one tick on one side and in two on the other.
	 */
	say_time("atime", &st->st_atim, before && atime ? &before->st_atim : NULL);
	say_time("mtime", &st->st_mtim, before ? &before->st_mtim : NULL);
	say_time("ctime", &st->st_ctim, before ? &before->st_ctim : NULL);
}

static bool same_stat(const struct stat *a, const struct stat *b)
{
	return a->st_ino == b->st_ino && a->st_mode == b->st_mode && a->st_nlink == b->st_nlink &&
	       a->st_uid == b->st_uid && a->st_gid == b->st_gid && a->st_size == b->st_size &&
	       a->st_blocks == b->st_blocks && a->st_blksize == b->st_blksize &&
	       a->st_rdev == b->st_rdev &&
	       !memcmp(&a->st_atim, &b->st_atim, sizeof(a->st_atim)) &&
	       !memcmp(&a->st_mtim, &b->st_mtim, sizeof(a->st_mtim)) &&
	       !memcmp(&a->st_ctim, &b->st_ctim, sizeof(a->st_ctim));
}

/* The mount's answer is the lower file's: nothing is as strict as that. */
static void check_below(const char *path)
{
	struct stat a, b;
	int i, ra = 0, rb = 0, ea = 0, eb = 0;

	for (i = 0; i < 5; i++) {
		ra = lstat(path, &a);
		ea = ra ? errno : 0;
		rb = fstatat(below, path, &b, AT_SYMLINK_NOFOLLOW);
		eb = rb ? errno : 0;
		/* Blocks come and go by themselves. */
		if (ea == eb && (ra || same_stat(&a, &b)))
			return;
	}
	say("%s is not what is below: %s, %s", path, strerror(ea), strerror(eb));
	if (!ra && !rb) {
		for (i = 0; i < 2; i++) {
			const struct stat *st = i ? &b : &a;

			say("  %s: ino %lu mode %o nlink %lu uid %u size %ld blocks %ld a %ld.%09ld m %ld.%09ld c %ld.%09ld",
			    i ? "below" : "above", st->st_ino, st->st_mode, st->st_nlink,
			    st->st_uid, st->st_size, st->st_blocks, st->st_atim.tv_sec,
			    st->st_atim.tv_nsec, st->st_mtim.tv_sec, st->st_mtim.tv_nsec,
			    st->st_ctim.tv_sec, st->st_ctim.tv_nsec);
		}
	}
}

/* The start and the end of what a descriptor shows; a whole small file. */
static void say_content(int fd, off_t size)
{
	ssize_t n = pread(fd, seen[side], HEAD, 0);

	say_bytes("content", n, seen[side]);
	if (size > (off_t)HEAD) {
		n = pread(fd, buf, 16 * PAGE, (size - 8 * PAGE) & -PAGE);
		say_bytes("its end", n, buf);
	}
}

static void say_mapped(int fd, off_t size, int flags)
{
	size_t len = size < (off_t)HEAD ? (size + PAGE - 1) & -PAGE : HEAD;
	char *p;

	if (!len)
		return;
	p = mmap(NULL, len, PROT_READ, flags, fd, 0);
	if (p == MAP_FAILED) {
		say("no mapping: %s", errname());
		return;
	}
	say("mapped: %d", TRY(memcpy(seen[side], p, len)));
	say("mapped: %lx", hash(seen[side], len, 1));
	munmap(p, len);
}

static void say_xattrs(const char *path)
{
	char list[8192], value[8192];
	ssize_t n = llistxattr(path, list, sizeof(list)), len, at;

	say("xattrs: %zd %s", n, n < 0 ? errname() : "");
	for (at = 0; at < n; at += strlen(list + at) + 1) {
		len = lgetxattr(path, list + at, value, sizeof(value));
		say("  %s: %zd %s %lx", list + at, len, len < 0 ? errname() : "",
		    len > 0 ? hash(value, len, 1) : 0);
	}
}

struct dirent64_ {
	uint64_t ino;
	int64_t off;
	unsigned short reclen;
	unsigned char type;
	char name[];
};

/* Entries as the filesystem gives them: order, positions and types, too. */
static off_t say_entries(const char *raw, long n)
{
	const struct dirent64_ *d;
	off_t last = -1;
	long at;

	for (at = 0; at < n; at += d->reclen) {
		d = (const void *)(raw + at);
		say("  %.40s type %d at %lld", d->name, d->type, (long long)d->off);
		last = d->off;
	}
	return last;
}

static void say_listing(int fd)
{
	static char raw[8192] __attribute__((aligned(8)));
	long n;

	lseek(fd, 0, SEEK_SET);
	while ((n = syscall(SYS_getdents64, fd, raw, sizeof(raw))) > 0)
		say_entries(raw, n);
	if (n < 0)
		say("listing: %s", errname());
}

/* All there is to know of a path.  Leaves no trace: O_NOATIME. */
static void say_file_at(const char *path, bool content)
{
	struct stat st;
	int fd;

	if (lstat(path, &st)) {
		say("%.40s: %s", path, errname());
		return;
	}
	if (!content)
		return;
	say_xattrs(path);
	if (!S_ISREG(st.st_mode) && !S_ISDIR(st.st_mode))
		return;
	fd = open(path, O_RDONLY | O_NOATIME | O_NOFOLLOW | O_NONBLOCK);
	if (fd < 0) {
		say("open: %s", errname());
		return;
	}
	if (S_ISDIR(st.st_mode)) {
		say_listing(fd);
	} else {
		if (content && st.st_size & 1)
			say_mapped(fd, st.st_size, MAP_SHARED);
		say_content(fd, st.st_size);
		say_mapped(fd, st.st_size, MAP_PRIVATE);
	}
	close(fd);
}

/* Everything below a directory, in the order of its entries. */
static void say_tree(int dir, int depth)
{
	static char raw[9][16384] __attribute__((aligned(8)));
	const struct dirent64_ *d;
	struct stat st;
	long n, at;
	int fd;

	if (depth > 8)
		return;
	say_listing(dir);
	lseek(dir, 0, SEEK_SET);
	while ((n = syscall(SYS_getdents64, dir, raw[depth], sizeof(raw[0]))) > 0) {
		for (at = 0; at < n; at += d->reclen) {
			d = (const void *)(raw[depth] + at);
			if (!strcmp(d->name, ".") || !strcmp(d->name, ".."))
				continue;
			if (fchdir(dir))
				die("fchdir");
			if (lstat(d->name, &st)) {
				say("%s: %s", d->name, errname());
				continue;
			}
			say_stat(d->name, &st, NULL, false);
			if (S_ISDIR(st.st_mode)) {
				say_xattrs(d->name);
				fd = open(d->name, O_RDONLY | O_DIRECTORY | O_NOATIME);
				say_tree(fd, depth + 1);
				close(fd);
			} else {
				say_file_at(d->name, true);
			}
		}
	}
	lseek(dir, 0, SEEK_SET);
}

/* --- the comparison --------------------------------------------------------- */

static void print_history(const char *why)
{
	unsigned long i, n = history->step;

	fprintf(stderr, "# DIFFER_SEED=%lu step %lu of worker %d: %s\n", seed, n, me, why);
	for (i = n >= HISTORY ? n - HISTORY + 1 : 0; i <= n; i++)
		fprintf(stderr, "#   %lu (%c): %s\n", i, history->who[i % HISTORY],
			history->line[i % HISTORY]);
}

static void differ(const char *why)
{
	const char *a = on[0].said.text, *b = on[1].said.text, *la, *lb;
	size_t i;
	int n = 0;

	c->broken = c->stop = true;
	print_history(why);
	while (*a || *b) {
		la = next_line(&a);
		lb = next_line(&b);
		if (!strcmp(la, lb)) {
			if (strlen(on[0].said.text) < 3000)
				fprintf(stderr, "#   both:  %s\n", la);
			continue;
		}
		fprintf(stderr, "#   lower: %s\n#   mount: %s\n", la, lb);
		if (++n > 12)
			break;
	}
	for (i = 0; i < HEAD && seen[0][i] == seen[1][i]; i++)
		;
	if (i < HEAD)
		fprintf(stderr, "#   what was read last differs first at %#zx: %02x, %02x\n", i,
			seen[0][i], seen[1][i]);
	fflush(NULL);
	_exit(1);
}

static void compare(const char *what)
{
	__atomic_add_fetch(&c->compared, 1, __ATOMIC_RELAXED);
	if (strcmp(on[0].said.text, on[1].said.text))
		differ(what);
	on[0].said.len = on[1].said.len = 0;
	on[0].said.text[0] = on[1].said.text[0] = 0;
}

/*
 * Blocks depend on when the filesystem wrote back, what it allocated in
 * advance, and where.  They cannot be far apart.
 */
static void compare_blocks(const struct stat *a, const struct stat *b)
{
	long bytes = labs(a->st_blocks - b->st_blocks) * 512;

	if (S_ISREG(a->st_mode) && bytes > (long)(2 * BUF) + 2 * a->st_blocks * 512) {
		fprintf(stderr, "# blocks: %ld, %ld\n", a->st_blocks, b->st_blocks);
		differ("blocks are far apart");
	}
}

static void check_step(void)
{
	bool content = one_in(3), whole = one_in(60);
	int i, extra = rnd(NMAP);
	struct stat st;

	if (content)
		tick();
	QUIETLY {
		for (i = 0; i < nr_touched; i++) {
			if (lstat(touched[i], &stat_after[side][i])) {
				say("%.40s: %s", touched[i], errname());
				memset(&stat_after[side][i], 0, sizeof(st));
			} else {
				say_stat(touched[i], &stat_after[side][i],
					 have_before[i] ? &stat_before[side][i] : NULL, true);
			}
			if (side)
				check_below(touched[i]);
		}
		for (i = 0; i < nr_touched_fd; i++) {
			if (!opened[touched_fd[i]])
				continue;
			if (!fstat(HERE(touched_fd[i]), &st))
				say_stat("descriptor", &st, keeps_fd[i] ? &fd_before[side][i] : NULL,
					 false);
			say("position %lld flags %x",
			    (long long)lseek(HERE(touched_fd[i]), 0, SEEK_CUR),
			    fcntl(HERE(touched_fd[i]), F_GETFL));
			if (content && S_ISREG(st.st_mode))
				say_content(HERE(touched_fd[i]), st.st_size);
		}
		if (touched_map >= 0)
			say_map(touched_map);
		say_map(extra);
	}
	for (i = 0; i < nr_touched; i++)
		compare_blocks(&stat_after[0][i], &stat_after[1][i]);
	compare("what is there then");
	if (content) {
		QUIETLY {
			for (i = 0; i < nr_touched; i++)
				say_file_at(touched[i], true);
		}
		compare("contents then");
	}
	if (whole) {
		QUIETLY
			say_tree(on[side].root, 0);
		compare("the tree then");
		QUIETLY {
			for (i = 0; i < NMAP; i++)
				say_map(i);
		}
		compare("the mappings then");
	}
}

/* --- names ------------------------------------------------------------------- */

static void put_fd(int slot, int fd)
{
	if (HERE(slot) >= 0)
		close(HERE(slot));
	HERE(slot) = fd;
	opened[slot] = fd >= 0;
}

static int any_open_flags(void)
{
	static const int extra[] = {
		O_APPEND, O_DIRECT, O_SYNC, O_DSYNC, O_TRUNC, O_EXCL, O_NOATIME, O_NOFOLLOW,
		O_DIRECTORY, O_CLOEXEC, O_LARGEFILE, O_NOCTTY, O_PATH, O_TMPFILE, O_ASYNC,
	};
	/* O_NONBLOCK: a fifo, or somebody's lease, must not stop all. */
	int flags = O_NONBLOCK | ONE_OF(O_RDWR, O_RDWR, O_RDWR, O_RDONLY, O_WRONLY, O_ACCMODE);

	if (!one_in(3))
		flags |= O_CREAT;
	while (one_in(3))
		flags |= extra[rnd(ARRAY(extra))];
	return flags;
}

static void op_open(void)
{
	int slot = rnd(NFD), flags = any_open_flags();
	const char *path = one_in(8) ? any_dir() : any_file();
	mode_t mode = any_mode();

	new_fd(slot);
	step("fd%d = open(%.60s, %#x, %o)", slot, path, flags, mode);
	BOTH {
		int fd = open(path, flags, mode);

		say("open: %s", fd < 0 ? errname() : "ok");
		put_fd(slot, fd);
	}
}

static void op_open_dir(void)
{
	int slot = rnd(NFD);
	const char *path = any_dir();

	new_fd(slot);
	step("fd%d = open(%.60s, O_DIRECTORY)", slot, path);
	BOTH {
		int fd = open(path, O_RDONLY | O_DIRECTORY);

		say("open: %s", fd < 0 ? errname() : "ok");
		put_fd(slot, fd);
	}
}

static void op_creat(void)
{
	const char *path = any_path();
	int slot = rnd(NFD);

	new_fd(slot);
	/* A fifo with no reader would block. */
	step("fd%d = creat(%.60s)", slot, path);
	BOTH {
		struct stat st;
		int fd = stat(path, &st) || !S_ISFIFO(st.st_mode) ? creat(path, 0666) : -1;

		say("creat: %s", fd < 0 ? errname() : "ok");
		put_fd(slot, fd);
	}
}

static void op_close(void)
{
	int slot = any_fd();

	step("close fd%d", slot);
	BOTH {
		VAL(close(HERE(slot)));
		HERE(slot) = -1;
	}
	opened[slot] = false;
}

static void op_tmpfile(void)
{
	const char *dir = any_dir(), *name = any_path();
	int slot = rnd(NFD), excl = one_in(4) ? O_EXCL : 0;
	bool by_proc = one_in(2), link = !one_in(3);
	char path[64];

	new_fd(slot);
	fill(buf, 3 * PAGE, rnd(1 << 30), 0);
	step("fd%d = open(%.60s, O_TMPFILE%s), linkat to %.60s", slot, dir, excl ? "|O_EXCL" : "",
	     name);
	BOTH {
		int fd = open(dir, O_TMPFILE | O_RDWR | excl, 0644);

		say("tmpfile: %s", fd < 0 ? errname() : "ok");
		put_fd(slot, fd);
		VAL(write(fd, buf, 2 * PAGE + 77));
		snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
		if (!link)
			continue;
		if (by_proc)
			say("link: %s", linkat(AT_FDCWD, path, AT_FDCWD, name, AT_SYMLINK_FOLLOW) ?
			    errname() : "ok");
		else
			VAL(linkat(fd, "", AT_FDCWD, name, AT_EMPTY_PATH));
	}
}

static void op_mkdir(void)
{
	const char *path = one_in(2) ? any_path() : any_dir();
	mode_t mode = any_mode() | (one_in(2) ? 0777 : 0);

	step("mkdir(%.60s, %o)", path, mode);
	BOTH
		VAL(mkdir(path, mode));
}

static void op_mknod(void)
{
	mode_t type = ONE_OF(S_IFIFO, S_IFSOCK, S_IFCHR, S_IFCHR, S_IFBLK, S_IFREG, S_IFDIR,
			     S_IFLNK, 0);
	const char *path = one_in(2) ? any_path() : touch_path("p0");
	dev_t dev = type == S_IFBLK ? makedev(7, 200) :
		makedev(1, ONE_OF(3, 5, 7));

	step("mknod(%.60s, %o, %lx)", path, type, dev);
	BOTH
		VAL(mknod(path, type | 0666, dev));
}

static void op_symlink(void)
{
	char target[5000];
	const char *path = one_in(3) ? any_path() : touch_path(one_in(2) ? "s0" : "s1");
	uint64_t how = rnd(12);
	size_t n;

	if (how < 9) {
		strcpy(target, ONE_OF("d0", "d1", "f0", "f1", "d0/e0", "s1", "nowhere", "f2", ""));
	} else {
		n = ONE_OF(59, 60, 255, 1000, 1023, 1024, 1025, 2047, 3000, 3800, 3900, 4094,
			   4095, 4096);
		memset(target, 'x', n);
		target[n] = 0;
	}
	step("symlink(%.20s (%zu), %.60s)", target, strlen(target), path);
	BOTH
		VAL(symlink(target, path));
}

static void op_readlink(void)
{
	const char *path = one_in(2) ? any_path() : touch_path(one_in(2) ? "s0" : "s1");
	size_t room = one_in(3) ? rnd(10) : 8192;

	step("readlink(%.60s, %zu)", path, room);
	BOTH {
		char text[8192];

		say_bytes("readlink", readlink(path, text, room), text);
	}
}

static void op_link(void)
{
	const char *a = any_path(), *b = any_path();
	int flags = one_in(3) ? AT_SYMLINK_FOLLOW : 0;

	step("linkat(%.60s, %.60s, %x)", a, b, flags);
	BOTH
		VAL(linkat(AT_FDCWD, a, AT_FDCWD, b, flags));
}

static void op_unlink(void)
{
	const char *path = any_path();

	step("unlink(%.60s)", path);
	BOTH
		VAL(unlink(path));
}

static void op_rmdir(void)
{
	const char *path = one_in(2) ? any_dir() : any_path();

	step("rmdir(%.60s)", path);
	BOTH
		VAL(rmdir(path));
}

static void op_rename(void)
{
	const char *a = any_path(), *b = one_in(8) ? any_dir() : any_path();
	unsigned int flags = ONE_OF(0, 0, 0, RENAME_NOREPLACE, RENAME_EXCHANGE, RENAME_EXCHANGE,
				    RENAME_WHITEOUT, RENAME_WHITEOUT | RENAME_NOREPLACE,
				    RENAME_WHITEOUT | RENAME_EXCHANGE, 8,
				    RENAME_NOREPLACE | RENAME_EXCHANGE);

	step("renameat2(%.60s, %.60s, %x)", a, b, flags);
	BOTH
		VAL(renameat2(AT_FDCWD, a, AT_FDCWD, b, flags));
}

/* A chain of long names, its full path longer than a path may be. */
static void op_deep(void)
{
	int levels = 15 + rnd(4);

	step("%d directories of 255 bytes in each other", levels);
	BOTH {
		char path[8192] = "", *end = path;
		int i, dir = open(".", O_RDONLY);

		for (i = 0; i < levels; i++) {
			VAL(mkdirat(dir, long_name(255), 0755));
			int next = openat(dir, long_name(255), O_RDONLY | O_DIRECTORY);

			close(dir);
			dir = next;
			end += sprintf(end, "%s%s", i ? "/" : "", long_name(255));
		}
		VAL(close(openat(dir, "f", O_CREAT | O_RDWR, 0600)));
		close(dir);
		strcpy(end, "/f");
		VAL(access(path, F_OK));
		VAL(truncate(path, 100));
		/* Down from the end, by steps that fit. */
		for (i = levels - 1; i >= 0; i--) {
			int at = open(".", O_RDONLY), k;

			for (k = 0; k < i; k++) {
				int next = openat(at, long_name(255), O_RDONLY | O_DIRECTORY);

				close(at);
				at = next;
			}
			if (i == levels - 1) {
				VAL(unlinkat(at, path_of("%s/f", long_name(255)), 0));
			}
			VAL(unlinkat(at, long_name(255), AT_REMOVEDIR));
			close(at);
		}
	}
}

/* So many names that the directory changes its form. */
static void op_many_names(void)
{
	const char *dir = any_dir();
	int from = rnd(40), nr = rnd(60), i;
	bool make = !one_in(2);
	char path[PATH_MAX + 32];

	step("%s %d names in %.60s", make ? "make" : "remove", nr, dir);
	BOTH {
		for (i = from; i < from + nr; i++) {
			snprintf(path, sizeof(path), "%s/name-%d", dir, i);
			if (make)
				say("%s", mknod(path, S_IFREG | 0644, 0) ? errname() : "ok");
			else
				say("%s", unlink(path) ? errname() : "ok");
		}
	}
}

static void op_getdents(void)
{
	int slot = any_fd();
	static int64_t cookie;
	size_t room = ONE_OF(24, 100, 280, 1000, 8192);
	bool seek = one_in(2);
	off_t to = one_in(3) ? 0 : one_in(20) ? any_off(1000) : cookie;

	step("fd%d: %s%lld, getdents64 %zu", slot, seek ? "seek to " : "no seek to ",
	     (long long)to, room);
	BOTH {
		char raw[8192] __attribute__((aligned(8)));
		long n;

		if (seek)
			VAL(lseek(HERE(slot), to, SEEK_SET));
		n = VAL(syscall(SYS_getdents64, HERE(slot), raw, room));
		if (n > 0) {
			off_t last = say_entries(raw, n);

			/* Both say the same, or this is the last step. */
			cookie = last;
		}
	}
}

/* --- attributes ---------------------------------------------------------------- */

static void op_chmod(void)
{
	const char *path = any_path();
	mode_t mode = any_mode();
	int slot = any_fd();
	bool by_fd = one_in(3);

	step("chmod(%.60s or fd%d: %d, %o)", path, slot, by_fd, mode);
	BOTH {
		if (by_fd)
			VAL(fchmod(HERE(slot), mode));
		else
			VAL(chmod(path, mode));
	}
}

static void op_chown(void)
{
	const char *path = any_path();
	uid_t uid = ONE_OF(-1, 0, USER, 7), gid = ONE_OF(-1, 0, USER, 7);
	int slot = any_fd(), how = rnd(3);

	step("chown(%.60s or fd%d, %d, %d) %d", path, slot, uid, gid, how);
	BOTH {
		if (how == 0)
			VAL(chown(path, uid, gid));
		else if (how == 1)
			VAL(lchown(path, uid, gid));
		else
			VAL(fchown(HERE(slot), uid, gid));
	}
}

static void op_utimens(void)
{
	const char *path = any_path();
	struct timespec ts[2];
	int slot = any_fd(), i, how = rnd(4);

	for (i = 0; i < 2; i++) {
		ts[i].tv_sec = ONE_OF(0L, 1L, -1L, 1000000000L, (1L << 31) - 1, 1L << 31,
				      1L << 32, 1L << 34, 1L << 40, -(1L << 31), -(1L << 31) - 1);
		ts[i].tv_nsec = ONE_OF(0L, 1L, 999999999L, UTIME_NOW, UTIME_OMIT, 1000000000L, 5L);
	}
	step("utimensat(%.60s or fd%d, %ld.%ld %ld.%ld) %d", path, slot, ts[0].tv_sec,
	     ts[0].tv_nsec, ts[1].tv_sec, ts[1].tv_nsec, how);
	BOTH {
		if (how == 0)
			VAL(futimens(HERE(slot), ts));
		else if (how == 1)
			VAL(utimensat(AT_FDCWD, path, NULL, 0));
		else
			VAL(utimensat(AT_FDCWD, path, ts, how == 2 ? AT_SYMLINK_NOFOLLOW : 0));
	}
}

static void op_truncate(void)
{
	const char *path = any_file();
	int slot = any_fd();
	bool by_fd = one_in(2);
	off_t size = near_off(by_fd ? size_of(slot) : (off_t)rnd(48 * PAGE));

	step("truncate(%.60s or fd%d: %d, %#lx)", path, slot, by_fd, size);
	BOTH {
		if (by_fd)
			VAL(ftruncate(HERE(slot), size));
		else
			VAL(truncate(path, size));
	}
}

static const char *any_xattr(void)
{
	return ONE_OF("user.a", "user.b", "user.c", "user.", "trusted.a", "trusted.b", "security.a",
		      "security.capability", "system.a", "nothing.a", "user", "",
		      "system.posix_acl_access", "system.posix_acl_default", "trusted.overlay.x",
		      "btrfs.compression", "security.selinux");
}

static void op_setxattr(void)
{
	const char *path = any_path(), *name = any_xattr();
	int flags = ONE_OF(0, 0, 0, XATTR_CREATE, XATTR_REPLACE, 4), slot = any_fd(), how = rnd(3);
	size_t len = ONE_OF(0, 1, 10, 20, 300, 2000, 3800, 4096, 5000);

	fill(buf, len + 1, rnd(1000), 0);
	step("setxattr(%.60s or fd%d, %s, %zu, %d) %d", path, slot, name, len, flags, how);
	BOTH {
		if (how == 0)
			VAL(setxattr(path, name, buf, len, flags));
		else if (how == 1)
			VAL(lsetxattr(path, name, buf, len, flags));
		else
			VAL(fsetxattr(HERE(slot), name, buf, len, flags));
	}
}

static void op_getxattr(void)
{
	const char *path = any_path(), *name = any_xattr();
	size_t room = ONE_OF(0, 1, 10, 8192);
	int slot = any_fd(), how = rnd(5);

	step("getxattr(%.60s or fd%d, %s, %zu) %d", path, slot, name, room, how);
	BOTH {
		ssize_t n;

		if (how == 0)
			n = getxattr(path, name, buf, room);
		else if (how == 1)
			n = lgetxattr(path, name, buf, room);
		else if (how == 2)
			n = fgetxattr(HERE(slot), name, buf, room);
		else if (how == 3)
			n = listxattr(path, buf, room);
		else
			n = flistxattr(HERE(slot), buf, room);
		if (n >= 0 && !room)
			say("room for %zd", n);
		else
			say_bytes("xattr", n, buf);
	}
}

static void op_removexattr(void)
{
	const char *path = any_path(), *name = any_xattr();
	int slot = any_fd(), how = rnd(3);

	step("removexattr(%.60s or fd%d, %s) %d", path, slot, name, how);
	BOTH {
		if (how == 0)
			VAL(removexattr(path, name));
		else if (how == 1)
			VAL(lremovexattr(path, name));
		else
			VAL(fremovexattr(HERE(slot), name));
	}
}

struct acl_entry {
	uint16_t tag, perm;
	uint32_t id;
};

static void op_acl(void)
{
	const char *path = one_in(3) ? any_dir() : any_path();
	const char *name = one_in(3) ? "system.posix_acl_default" : "system.posix_acl_access";
	struct {
		uint32_t version;
		struct acl_entry e[6];
	} acl = { .version = one_in(20) ? 1 : 2 };
	unsigned int n = 0;
	bool named = !one_in(4);

	acl.e[n++] = (struct acl_entry){ 1, rnd(8), -1 };
	if (named)
		acl.e[n++] = (struct acl_entry){ 2, rnd(8), USER };
	acl.e[n++] = (struct acl_entry){ 4, rnd(8), -1 };
	if (named && one_in(2))
		acl.e[n++] = (struct acl_entry){ 8, rnd(8), 7 };
	if (named && !one_in(12))
		acl.e[n++] = (struct acl_entry){ 16, rnd(8), -1 };
	acl.e[n++] = (struct acl_entry){ 32, rnd(8), -1 };
	if (one_in(20))
		acl.e[0].tag = rnd(64);
	step("setxattr(%.60s, %s, %u entries, %o)", path, name, n, acl.e[0].perm);
	BOTH
		VAL(setxattr(path, name, &acl, 4 + n * sizeof(acl.e[0]), 0));
}

static void op_access(void)
{
	const char *path = any_path();
	int mode = rnd(8), flags = ONE_OF(0, AT_EACCESS, AT_SYMLINK_NOFOLLOW, AT_EACCESS, 0x40000);

	step("faccessat2(%.60s, %d, %x)", path, mode, flags);
	BOTH {
		VAL(access(path, mode));
		VAL(syscall(SYS_faccessat2, AT_FDCWD, path, mode, flags));
	}
}

static void op_statx(void)
{
	const char *path = any_path();
	int flags = ONE_OF(0, AT_SYMLINK_NOFOLLOW, AT_STATX_FORCE_SYNC, AT_STATX_DONT_SYNC,
			   AT_NO_AUTOMOUNT, AT_STATX_SYNC_TYPE);
	unsigned int mask = ONE_OF(STATX_ALL, STATX_BASIC_STATS, STATX_BTIME, 0u, 0x2fffu, 0xffffu,
				   1u << 31);

	step("statx(%.60s, %x, %x)", path, flags, mask);
	BOTH {
		struct statx sx = {};

		VAL(statx(AT_FDCWD, path, flags, mask, &sx));
		/* The mount that a file is in is another. */
		say("mask %x attributes %llx of %llx dio %llx", sx.stx_mask & ~0x5000,
		    (long long)sx.stx_attributes & ~STATX_ATTR_MOUNT_ROOT,
		    (long long)sx.stx_attributes_mask, (long long)sx.__spare3[0]);
		say("btime %s", sx.stx_btime.tv_sec ? "there" : "not there");
	}
}

static void op_statfs(void)
{
	int slot = any_fd();

	step("statfs, fstatfs fd%d", slot);
	BOTH {
		struct statfs a = {}, b = {};

		VAL(statfs(".", &a));
		VAL(fstatfs(HERE(slot), &b));
		say("block %ld name %ld frag %ld blocks %lu", (long)a.f_bsize, (long)a.f_namelen,
		    (long)a.f_frsize, (unsigned long)a.f_blocks);
	}
}

static void op_flags(void)
{
	static const int all[] = {
		FS_IMMUTABLE_FL, FS_APPEND_FL, FS_NODUMP_FL, FS_NOATIME_FL, FS_SYNC_FL,
		FS_DIRSYNC_FL, FS_NOCOW_FL, FS_COMPR_FL, FS_NOCOMP_FL, FS_PROJINHERIT_FL,
		FS_UNRM_FL, 0x40000000,
	};
	int slot = any_fd(), flags = one_in(2) ? 0 : all[rnd(ARRAY(all))];
	const char *path = any_path();
	bool stays = one_in(2) && !(flags & (FS_IMMUTABLE_FL | FS_APPEND_FL));

	if (one_in(3))
		flags |= all[rnd(ARRAY(all))];
	step("FS_IOC_SETFLAGS(fd%d, %.60s, %#x)", slot, path, flags);
	BOTH {
		int got = 0;

		VAL(ioctl(HERE(slot), FS_IOC_GETFLAGS, &got));
		say("%x", got);
		VAL(ioctl(HERE(slot), FS_IOC_SETFLAGS, &flags));
		VAL(ioctl(HERE(slot), FS_IOC_GETFLAGS, &got));
		say("%x", got);
		/* While it has them. */
		VAL(pwrite(HERE(slot), "x", 1, 0));
		VAL(ftruncate(HERE(slot), 3000));
		VAL(fchmod(HERE(slot), 0666));
		VAL(unlink(path));
		if (stays)
			continue;
		got &= ~(FS_IMMUTABLE_FL | FS_APPEND_FL);
		VAL(ioctl(HERE(slot), FS_IOC_SETFLAGS, &got));
	}
}

static void op_fsxattr(void)
{
	int slot = any_fd();
	unsigned int xflags = ONE_OF(0u, 0u, FS_XFLAG_NODUMP, FS_XFLAG_NOATIME, FS_XFLAG_SYNC,
				     FS_XFLAG_EXTSIZE, FS_XFLAG_COWEXTSIZE, FS_XFLAG_PROJINHERIT,
				     FS_XFLAG_EXTSZINHERIT, FS_XFLAG_REALTIME, FS_XFLAG_DAX,
				     FS_XFLAG_NODEFRAG, FS_XFLAG_NOSYMLINKS, 1u << 30);
	unsigned int hint = ONE_OF(0, 4096, 16384, 65536, 100), project = rnd(3);

	step("FS_IOC_FSSETXATTR(fd%d, %#x, %u, project %u)", slot, xflags, hint, project);
	BOTH {
		struct fsxattr x = {};
		int i;

		for (i = 0; i < 2; i++) {
			VAL(ioctl(HERE(slot), FS_IOC_FSGETXATTR, &x));
			say("%x %u %u %u", x.fsx_xflags, x.fsx_extsize, x.fsx_projid,
			    x.fsx_cowextsize);
			if (i)
				break;
			x.fsx_xflags = xflags;
			x.fsx_projid = project;
			x.fsx_extsize = xflags & (FS_XFLAG_EXTSIZE | FS_XFLAG_EXTSZINHERIT) ?
				hint : 0;
			x.fsx_cowextsize = xflags & FS_XFLAG_COWEXTSIZE ? hint : 0;
			VAL(ioctl(HERE(slot), FS_IOC_FSSETXATTR, &x));
		}
	}
}

static void op_ioctl(void)
{
	int slot = any_fd();

	step("ioctls of fd%d", slot);
	BOTH {
		/* On a device they mean something else, on a fifo as well. */
		struct stat st = {};
		long long n = 0;

		if (!fstat(HERE(slot), &st) && !S_ISREG(st.st_mode) && !S_ISDIR(st.st_mode))
			continue;
		VAL(ioctl(HERE(slot), FIGETBSZ, &n));
		say("%d", (int)n);
		n = 0;
		VAL(ioctl(HERE(slot), FIONREAD, &n));
		say("%d", (int)n);
		/* How much: the VFS tells what it last knew of blocks, and asks nobody. */
		VAL(ioctl(HERE(slot), FIOQSIZE, &n));
		VAL(ioctl(HERE(slot), 0x1234567, &n));
		VAL(ioctl(HERE(slot), _IOW('X', 1, int), &n));
	}
	/*
	 * Known limit: "ioctls other than file attributes, FICLONE, FICLONERANGE,
	 * FIDEDUPERANGE and FIEMAP are ENOTTY".
	 */
	if (!opened[slot] || (fcntl(on[1].fd[slot], F_GETFL) & O_PATH))
		return;
	enter(1);
	{
		static const unsigned long not_built[] = {
			FS_IOC_GETVERSION, FITRIM, BTRFS_IOC_INO_LOOKUP, BTRFS_IOC_SUBVOL_CREATE,
		};
		struct stat st;
		char arg[4096] = {};
		unsigned int i;

		fstat(on[1].fd[slot], &st);
		if (S_ISREG(st.st_mode) || S_ISDIR(st.st_mode)) {
			for (i = 0; i < ARRAY(not_built); i++) {
				errno = 0;
				ioctl(on[1].fd[slot], not_built[i], arg);
				if (errno != ENOTTY)
					say("ioctl %lx: %s", not_built[i], errname());
			}
		}
	}
}

#define NO_DATA	(FIEMAP_EXTENT_UNWRITTEN | FIEMAP_EXTENT_DELALLOC)

/* Data, allocated but not written, or nothing: by block, up to the end. */
static void block_kinds(int fd, off_t size, char *kinds, int *err)
{
	struct {
		struct fiemap fm;
		struct fiemap_extent ext[128];
	} f = { .fm.fm_length = FIEMAP_MAX_OFFSET, .fm.fm_flags = FIEMAP_FLAG_SYNC,
		.fm.fm_extent_count = 128 };
	uint64_t b;
	unsigned int i;

	memset(kinds, '.', HEAD / PAGE);
	kinds[HEAD / PAGE] = 0;
	*err = ioctl(fd, FS_IOC_FIEMAP, &f) ? errno : 0;
	for (i = 0; !*err && i < f.fm.fm_mapped_extents; i++) {
		for (b = f.ext[i].fe_logical / PAGE;
		     b * PAGE < f.ext[i].fe_logical + f.ext[i].fe_length &&
		     b < HEAD / PAGE && (off_t)(b * PAGE) < size; b++)
			kinds[b] = f.ext[i].fe_flags & NO_DATA ? 'u' : 'd';
	}
}

static void op_fiemap(void)
{
	int slot = any_fd();

	step("FS_IOC_FIEMAP(fd%d)", slot);
	BOTH {
		char kinds[HEAD / PAGE + 1], *k;
		struct stat st = {};
		int err;

		/* XFS takes the number of a device for extents, and complains. */
		if (!fstat(HERE(slot), &st) && !S_ISREG(st.st_mode) && !S_ISDIR(st.st_mode))
			continue;
		block_kinds(HERE(slot), st.st_size, kinds, &err);
		/* What is allocated in advance is XFS's guess. */
		for (k = kinds; *k; k++)
			if (*k == 'u')
				*k = '.';
		say("fiemap: %s %s", err ? strerrorname_np(err) : "ok", kinds);
	}
}

/* --- locks ---------------------------------------------------------------------- */

static void op_flock(void)
{
	int slot = any_fd(), how = ONE_OF(LOCK_SH, LOCK_EX, LOCK_UN, LOCK_SH | LOCK_EX, 0);

	step("flock(fd%d, %d)", slot, how);
	BOTH
		VAL(flock(HERE(slot), how | LOCK_NB));
}

static void op_fcntl_lock(void)
{
	int slot = any_fd(), cmd = ONE_OF(F_SETLK, F_OFD_SETLK, F_OFD_SETLK, F_GETLK, F_OFD_GETLK);
	short type = ONE_OF(F_RDLCK, F_WRLCK, F_UNLCK, F_RDLCK, F_WRLCK, 7);
	short whence = ONE_OF(SEEK_SET, SEEK_SET, SEEK_CUR, SEEK_END);
	off_t start = one_in(8) ? any_off(PAGE) : rnd(8) * 100;
	off_t len = one_in(8) ? any_off(PAGE) : rnd(4) * 100;

	step("fcntl(fd%d, %d, type %d, whence %d, %lld, %lld)", slot, cmd, type, whence,
	     (long long)start, (long long)len);
	BOTH {
		struct flock l = {
			.l_type = type, .l_whence = whence, .l_start = start, .l_len = len,
		};

		VAL(fcntl(HERE(slot), cmd, &l));
		say("%d %d %lld %lld %s", l.l_type, l.l_whence, (long long)l.l_start,
		    (long long)l.l_len, l.l_pid == getpid() ? "mine" : l.l_pid < 0 ? "OFD" :
		    l.l_pid ? "another's" : "-");
	}
}

/* It lasts as long as the step: to break one takes 45 s. */
static void op_lease(void)
{
	int slot = any_fd(), type = ONE_OF(F_RDLCK, F_WRLCK);
	const char *path = any_file();

	step("lease(fd%d, %d), open of %.60s", slot, type, path);
	BOTH {
		int fd;

		VAL(fcntl(HERE(slot), F_SETLEASE, type));
		VAL(fcntl(HERE(slot), F_GETLEASE));
		fd = open(path, O_RDONLY | O_NONBLOCK);
		say("open to read: %s", fd < 0 ? errname() : "ok");
		if (fd >= 0)
			close(fd);
		fd = open(path, O_WRONLY | O_NONBLOCK);
		say("open to write: %s", fd < 0 ? errname() : "ok");
		if (fd >= 0)
			close(fd);
		VAL(fcntl(HERE(slot), F_GETLEASE));
		VAL(fcntl(HERE(slot), F_SETLEASE, F_UNLCK));
	}
}

static void op_setfl(void)
{
	int slot = any_fd(), flags = O_NONBLOCK;

	while (one_in(2))
		flags |= ONE_OF(O_APPEND, O_DIRECT, O_NOATIME, O_ASYNC, O_SYNC);
	step("fcntl(fd%d, F_SETFL, %#x)", slot, flags);
	BOTH
		VAL(fcntl(HERE(slot), F_SETFL, flags));
}

/* --- data ------------------------------------------------------------------------ */

/* Within the buffer; now and then not aligned, or running into the guard page. */
static char *any_buf(size_t len)
{
	if (one_in(40) && len < BUF)
		return buf + BUF - len / 2;
	if (len + 7 < BUF && one_in(3))
		return buf + 1 + rnd(6);
	return buf;
}

static void op_read(void)
{
	int slot = any_fd(), how = rnd(8);
	off_t off = any_off(size_of(slot));
	size_t len = any_len();
	char *to = any_buf(len);
	int flags = ONE_OF(0, RWF_HIPRI, RWF_NOWAIT, RWF_NOWAIT, RWF_DSYNC, RWF_UNKNOWN_,
			   RWF_APPEND);

	step("read %d (fd%d, %zu at %#lx, to %+ld) flags %x", how, slot, len, off, to - buf, flags);
	BOTH {
		struct iovec v[3] = {
			{ to, len / 3 }, { to + len / 3, 0 }, { to + len / 3, len - len / 3 },
		};
		ssize_t n, more;

		memset(buf, 0xa5, BUF);
		if (how < 2) {
			n = read(HERE(slot), to, len);
		} else if (how < 4) {
			n = pread(HERE(slot), to, len, off);
		} else if (how == 4) {
			n = readv(HERE(slot), v, 3);
		} else if (how == 5) {
			n = preadv(HERE(slot), v, 3, off);
		} else {
			n = preadv2(HERE(slot), v, 3, off, flags);
			/* What is cached is the one thing that may differ. */
			if ((flags & RWF_NOWAIT) && (n >= 0 || errno == EAGAIN)) {
				n = n < 0 ? 0 : n;
				if (n > (ssize_t)len)
					say("too much: %zd", n);
				more = pread(HERE(slot), to, len, off);
				if (n > more)
					say("read %zd without waiting, %zd with", n, more);
				n = more;
			}
		}
		/* Beyond the end of the buffer is nothing to look at. */
		if (n > 0 && to + n > buf + BUF)
			say("%zd bytes in too small a buffer", n);
		else
			say_bytes("read", n, to);
		say("the rest: %lx", hash(buf, BUF, 1));
	}
}

static void op_write(void)
{
	int slot = any_fd(), how = rnd(9), m = any_map();
	off_t off = near_off(size_of(slot));
	size_t len = any_len();
	char *from = any_buf(len);
	int flags = ONE_OF(0, RWF_DSYNC, RWF_SYNC, RWF_APPEND, RWF_APPEND, RWF_NOWAIT, RWF_HIPRI,
			   RWF_UNKNOWN_, RWF_NOAPPEND_, RWF_ATOMIC_);
	struct stat st;
	bool from_map;

	if (off < 0 && !one_in(4))
		off = 0;
	/* Out of the mapping of another file. */
	from_map = one_in(6) && maps[m].len && !fstat(on[0].fd[slot], &st) &&
		   st.st_ino != maps[m].ino;
	if (from_map && len > maps[m].len)
		len = maps[m].len;
	/*
	 * How much btrfs takes of a buffer that ends early depends on how many
	 * pages this task has dirtied lately.
	 */
	if (btrfs && from_map && len > PAGE)
		len = PAGE;
	if (btrfs && !from_map && from + len > buf + BUF)
		from = buf + BUF;
	fill(buf, BUF, rnd(1 << 30), 0);
	step("write %d (fd%d, %zu at %#lx, from %s%+ld) flags %x", how, slot, len, off,
	     from_map ? "a mapping " : "", from_map ? m : from - buf, flags);
	BOTH {
		char *p = from_map ? on[side].map[m] : from;
		struct iovec v[3] = { { p, len / 3 }, { p, 0 }, { p + len / 3, len - len / 3 } };

		if (how < 3) {
			VAL(write(HERE(slot), p, len));
		} else if (how < 6) {
			VAL(pwrite(HERE(slot), p, len, off));
		} else if (how == 6) {
			VAL(writev(HERE(slot), v, 3));
		} else if (how == 7) {
			VAL(pwritev(HERE(slot), v, 3, off));
		} else {
			ssize_t n = pwritev2(HERE(slot), v, 3, off, flags);

			/* As with reads; the kernel decides what can be done at once. */
			if ((flags & RWF_NOWAIT) && (n >= 0 || errno == EAGAIN))
				n = pwritev2(HERE(slot), v, 3, off, 0);
			say("pwritev2: %zd %s", n, n < 0 ? errname() : "");
		}
	}
}

static void op_rlimit(void)
{
	int slot = any_fd();
	off_t limit = rnd(20) * PAGE + rnd(3), off = rnd(20) * PAGE;
	size_t len = any_len();

	fill(buf, BUF, rnd(1 << 30), 0);
	step("RLIMIT_FSIZE %#lx: fd%d, %zu at %#lx", limit, slot, len, off);
	BOTH {
		struct rlimit old, new;

		getrlimit(RLIMIT_FSIZE, &old);
		new = old;
		new.rlim_cur = limit;
		setrlimit(RLIMIT_FSIZE, &new);
		VAL(pwrite(HERE(slot), buf, len, off));
		VAL(write(HERE(slot), buf, 100));
		VAL(ftruncate(HERE(slot), limit + 1));
		VAL(fallocate(HERE(slot), 0, limit, PAGE));
		setrlimit(RLIMIT_FSIZE, &old);
	}
}

static void op_lseek(void)
{
	int slot = any_fd(), whence = ONE_OF(SEEK_SET, SEEK_CUR, SEEK_END, SEEK_DATA, SEEK_HOLE,
					     SEEK_DATA, SEEK_HOLE, 9);
	off_t size = size_of(slot), off = any_off(size);
	off_t at[SIDES] = {}, res[SIDES] = {};
	int err[SIDES] = {};
	struct stat st = {};

	/* Of a directory, XFS seeks to the end that it had when it was last loaded. */
	if (whence != SEEK_CUR && !fstat(on[0].fd[slot], &st) && S_ISDIR(st.st_mode))
		whence = SEEK_SET;
	step("lseek(fd%d, %#lx, %d)", slot, off, whence);
	BOTH {
		at[side] = lseek(HERE(slot), 0, SEEK_CUR);
		res[side] = lseek(HERE(slot), off, whence);
		err[side] = res[side] < 0 ? errno : 0;
	}
	if ((whence == SEEK_DATA || whence == SEEK_HOLE) &&
	    (res[0] != res[1] || err[0] != err[1])) {
		char kinds[HEAD / PAGE + 1];
		bool unwritten = false;
		int e;

		/*
		 * Whether an allocated block that was never written is data or a
		 * hole depends on what the page cache holds, on XFS itself.
		 */
		QUIETLY {
			block_kinds(HERE(slot), size, kinds, &e);
			unwritten |= !!strchr(kinds, 'u');
		}
		if (unwritten) {
			QUIETLY
				lseek(HERE(slot), at[0], SEEK_SET);
			return;
		}
	}
	QUIETLY {
		fstat(HERE(slot), &st);
		say("lseek: %lld %s, mode %o, size %lld", (long long)res[side],
		    err[side] ? strerrorname_np(err[side]) : "", st.st_mode, (long long)st.st_size);
	}
}

static void op_fallocate(void)
{
	/* Not FALLOC_FL_UNSHARE_RANGE: XFS of 6.1 loses data by itself. */
	int slot = any_fd(), mode = ONE_OF(0, FALLOC_FL_KEEP_SIZE,
					   FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE,
					   FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE,
					   FALLOC_FL_ZERO_RANGE,
					   FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE,
					   FALLOC_FL_COLLAPSE_RANGE, FALLOC_FL_COLLAPSE_RANGE,
					   FALLOC_FL_INSERT_RANGE, FALLOC_FL_INSERT_RANGE,
					   FALLOC_FL_PUNCH_HOLE, 0x80,
					   FALLOC_FL_COLLAPSE_RANGE | FALLOC_FL_KEEP_SIZE);
	off_t off = any_off(size_of(slot));
	off_t len = any_len();

	/* Not so long that it fills the disk. */
	if (one_in(20))
		len = ONE_OF(0L, -1L, LONG_MAX, LONG_MAX - 4095);
	if (len > (1L << 20) && off >= 0 && off < (1L << 60) && mode != FALLOC_FL_COLLAPSE_RANGE)
		off = LLONG_MAX - 4096;
	step("fallocate(fd%d, %#x, %#lx, %#lx)", slot, mode, off, len);
	BOTH
		VAL(fallocate(HERE(slot), mode, off, len));
}

static void op_sync(void)
{
	int slot = any_fd(), how = rnd(6);
	off_t off = any_off(size_of(slot)), len = any_off(0);

	step("sync %d of fd%d, %#lx %#lx", how, slot, off, len);
	BOTH {
		switch (how) {
		case 0: case 1:
			VAL(fsync(HERE(slot)));
			break;
		case 2:
			VAL(fdatasync(HERE(slot)));
			break;
		case 3: case 4:
			VAL(sync_file_range(HERE(slot), off, len, 7));
			break;
		case 5:
			VAL(syncfs(HERE(slot)));
			break;
		}
	}
}

static void op_advise(void)
{
	int slot = any_fd(), how = rnd(8);
	off_t off = any_off(size_of(slot)), len = any_off(0);

	step("fadvise %d of fd%d, %#lx %#lx", how, slot, off, len);
	BOTH {
		if (how == 7)
			VAL(readahead(HERE(slot), off, 64 * PAGE));
		else
			VAL(posix_fadvise(HERE(slot), off, len, how));
	}
}

/* Two descriptors and two places. */
struct pair {
	int in, out;
	off_t from, to;
	size_t len;
};

static struct pair any_pair(void)
{
	struct pair p = { any_fd(), any_fd() };

	if (one_in(8))
		p.out = p.in;
	p.from = any_off(size_of(p.in));
	p.to = near_off(size_of(p.out));
	p.len = any_len();
	return p;
}

/*
 * Known limit: "copy_file_range that copies does not move the access time of
 * its source".  Both do so here.
 */
static void access_time_moves(int slot)
{
	char path[32], byte;
	struct stat st;
	int fd;

	QUIETLY {
		if (fstat(HERE(slot), &st) || !S_ISREG(st.st_mode))
			continue;
		snprintf(path, sizeof(path), "/proc/self/fd/%d", HERE(slot));
		fd = open(path, O_RDONLY | O_NONBLOCK);
		pread(fd, &byte, 1, 0);
		close(fd);
	}
}

static void op_copy_file_range(void)
{
	struct pair p = any_pair();
	bool place_in = one_in(2), place_out = one_in(2);
	int flags = one_in(20) ? 1 : 0;

	step("copy_file_range(fd%d %#lx %d, fd%d %#lx %d, %zu, %d)", p.in, p.from, place_in, p.out,
	     p.to, place_out, p.len, flags);
	BOTH {
		off_t from = p.from, to = p.to;

		VAL(copy_file_range(HERE(p.in), place_in ? &from : NULL, HERE(p.out),
				    place_out ? &to : NULL, p.len, flags));
		say("%lld %lld", (long long)from, (long long)to);
	}
	access_time_moves(p.in);
}

/*
 * Known limit: "splice and sendfile copy pooled data".  What is in the pipe
 * does not change any more when the file does: not within one file.
 */
static bool one_file(const struct pair *p)
{
	struct stat a, b;

	return !fstat(on[0].fd[p->in], &a) && !fstat(on[0].fd[p->out], &b) && a.st_ino == b.st_ino;
}

static void op_sendfile(void)
{
	struct pair p = any_pair();
	bool place = one_in(2);

	if (one_file(&p))
		p.len = 0;

	step("sendfile(fd%d, fd%d, %#lx %d, %zu)", p.out, p.in, p.from, place, p.len);
	BOTH {
		off_t from = p.from;

		VAL(sendfile(HERE(p.out), HERE(p.in), place ? &from : NULL, p.len));
		say("%lld", (long long)from);
	}
}

/* By io_uring, places are values: they are moved here. */
static ssize_t splice_by(bool uring, int in, off_t *from, int out, off_t *to, size_t len)
{
	struct io_uring_sqe sqe = {
		.opcode = IORING_OP_SPLICE, .fd = out, .splice_fd_in = in, .len = len,
		.splice_off_in = from ? *from : -1, .off = to ? *to : -1,
		.splice_flags = SPLICE_F_NONBLOCK,
	};
	int n;

	/* There, -1 is no place at all. */
	if (!uring || (from && *from == -1) || (to && *to == -1))
		return splice(in, from, out, to, len, SPLICE_F_NONBLOCK);
	n = ring_run(&ring, &sqe);
	if (n < 0) {
		errno = -n;
		return -1;
	}
	if (from)
		*from += n;
	if (to)
		*to += n;
	return n;
}

static void op_splice(void)
{
	struct pair p = any_pair();
	bool place_in = !one_in(3), place_out = !one_in(3), uring = have_ring && one_in(3);

	if (one_file(&p))
		p.len = 0;
	if (p.len > 16 * PAGE)
		p.len = 16 * PAGE;
	step("splice%s(fd%d %#lx %d, fd%d %#lx %d, %zu)", uring ? " by io_uring" : "", p.in, p.from,
	     place_in, p.out, p.to, place_out, p.len);
	BOTH {
		off_t from = p.from, to = p.to;
		ssize_t n, m, got = 0, put = 0;
		int pipes[2];

		if (pipe2(pipes, O_NONBLOCK))
			die("pipe");
		/* How much one call moves is the filesystem's choice. */
		while (got < (ssize_t)p.len) {
			n = splice_by(uring, HERE(p.in), place_in ? &from : NULL, pipes[1], NULL,
				      p.len - got);
			if (n <= 0) {
				if (n < 0 && errno != EAGAIN)
					say("in: %s", errname());
				if (n == 0 || errno != EAGAIN || !got)
					break;
			}
			got += n > 0 ? n : 0;
			m = splice_by(uring, pipes[0], NULL, HERE(p.out), place_out ? &to : NULL,
				      p.len);
			if (m <= 0) {
				say("out: %s", m ? errname() : "0");
				break;
			}
			put += m;
		}
		say("splice: %zd %zd, %lld %lld", got, put, (long long)from, (long long)to);
		close(pipes[0]);
		close(pipes[1]);
	}
}

static void op_clone(void)
{
	struct pair p = any_pair();
	bool range = one_in(2), sync = one_in(3);

	if (one_in(2)) {
		p.from &= -PAGE;
		p.to &= -PAGE;
		p.len = (p.len + PAGE - 1) & -PAGE;
	}
	if (one_in(8))
		p.len = 0;
	if (one_in(30))
		p.len = SIZE_MAX - rnd(PAGE * 2);
	step("%s(fd%d %#lx, fd%d %#lx, %#zx)%s", range ? "FICLONERANGE" : "FICLONE", p.in, p.from,
	     p.out, p.to, p.len, sync ? ", fsync" : "");
	BOTH {
		struct file_clone_range r = { HERE(p.in), p.from, p.len, p.to };

		if (range)
			VAL(ioctl(HERE(p.out), FICLONERANGE, &r));
		else
			VAL(ioctl(HERE(p.out), FICLONE, HERE(p.in)));
		if (sync)
			VAL(fsync(HERE(p.out)));
	}
}

static void op_dedupe(void)
{
	struct pair p = any_pair();
	bool copy = one_in(2), aligned = !one_in(4);
	int third = any_fd();

	if (aligned) {
		p.from &= -PAGE;
		p.to &= -PAGE;
		p.len = (p.len + PAGE - 1) & -PAGE;
	}
	step("FIDEDUPERANGE(fd%d %#lx, fd%d %#lx and fd%d, %zu)%s", p.in, p.from, p.out, p.to,
	     third, p.len, copy ? " after a copy" : "");
	BOTH {
		char raw[sizeof(struct file_dedupe_range) +
			 2 * sizeof(struct file_dedupe_range_info)] = {};
		struct file_dedupe_range *r = (void *)raw;
		ssize_t n;

		if (copy) {
			n = pread(HERE(p.in), buf, p.len, p.from);
			VAL(pwrite(HERE(p.out), buf, n > 0 ? n : 0, p.to));
		}
		r->src_offset = p.from;
		r->src_length = p.len;
		r->dest_count = 2;
		r->info[0].dest_fd = HERE(p.out);
		r->info[0].dest_offset = p.to;
		r->info[1].dest_fd = HERE(third);
		r->info[1].dest_offset = p.from;
		VAL(ioctl(HERE(p.in), FIDEDUPERANGE, r));
		say("%d %lld, %d %lld", r->info[0].status, (long long)r->info[0].bytes_deduped,
		    r->info[1].status, (long long)r->info[1].bytes_deduped);
	}
}

/* What makes a pool: settled blocks that two files have in common. */
static void op_share(void)
{
	const char *a = any_file(), *b = any_file();
	size_t len = (8 + rnd(40)) * PAGE - (one_in(3) ? rnd(PAGE) : 0);
	uint64_t gen = rnd(1 << 30);

	fill(buf, len, gen, 0);
	step("new data in %.60s, cloned to %.60s", a, b);
	BOTH {
		int in = open(a, O_RDWR | O_CREAT | O_TRUNC | O_NONBLOCK, 0666), out;

		say("open: %s", in < 0 ? errname() : "ok");
		VAL(pwrite(in, buf, len, 0));
		VAL(fsync(in));
		out = open(b, O_RDWR | O_CREAT | O_NONBLOCK, 0666);
		say("open: %s", out < 0 ? errname() : "ok");
		VAL(ioctl(out, FICLONE, in));
		VAL(fsync(out));
		close(in);
		close(out);
	}
}

static void op_aio(void)
{
	int slot = any_fd(), i, nr = 1 + rnd(6);
	int code[8], pages[8];
	uint64_t gen;
	off_t off[8];

	for (i = 0; i < nr; i++) {
		/* Apart from each other: they may be done in any order. */
		code[i] = ONE_OF(IOCB_CMD_PREAD, IOCB_CMD_PWRITE, IOCB_CMD_PREAD, IOCB_CMD_PWRITE,
				 IOCB_CMD_PREAD, IOCB_CMD_FDSYNC);
		pages[i] = 1 + rnd(7);
		off[i] = i * 8 * PAGE + (one_in(6) ? 1 + rnd(510) : 0);
	}
	if (one_in(10))
		off[nr - 1] = any_off(0);
	gen = rnd(1 << 30);
	step("io_submit(fd%d, %d, the first: %d at %#lx)", slot, nr, code[0], off[0]);
	BOTH {
		struct iocb cb[8] = {}, *list[8];
		struct io_event ev[8] = {};
		long n, k;

		fill(buf, BUF, gen, 0);
		for (i = 0; i < nr; i++) {
			cb[i].aio_lio_opcode = code[i];
			cb[i].aio_fildes = HERE(slot);
			if (code[i] != IOCB_CMD_FDSYNC) {
				cb[i].aio_buf = (uintptr_t)buf + i * 8 * PAGE;
				cb[i].aio_nbytes = pages[i] * PAGE;
				cb[i].aio_offset = off[i];
			}
			cb[i].aio_data = i;
			list[i] = &cb[i];
		}
		n = VAL(syscall(SYS_io_submit, on[side].aio, nr, list));
		if (n > 0 && syscall(SYS_io_getevents, on[side].aio, n, 8, ev, NULL) != n)
			die("io_getevents");
		for (k = 0; k < n; k++) {
			for (i = 0; i < n; i++) {
				if ((long)ev[i].data == k)
					say("%ld: %lld", k, (long long)ev[i].res);
			}
		}
		/* A write beyond the end may come before a read there, or not. */
		for (k = 0; k < n && code[k] == IOCB_CMD_PREAD; k++)
			say("%ld: %lx", k, hash(buf + k * 8 * PAGE, 8 * PAGE, 1));
	}
}

/* --- the same by io_uring ---------------------------------------------------------- */

static const char *uring_error(int res)
{
	return res < 0 ? strerrorname_np(-res) ?: "?" : "ok";
}

/* Inside the buffer: what is cut short by a bad address may differ. */
static void op_uring_data(void)
{
	int slot = any_fd(), async = one_in(2);
	int code = ONE_OF(IORING_OP_READ, IORING_OP_READ, IORING_OP_READV, IORING_OP_READ_FIXED,
			  IORING_OP_WRITE, IORING_OP_WRITE, IORING_OP_WRITEV, IORING_OP_WRITE_FIXED);
	bool reads = code == IORING_OP_READ || code == IORING_OP_READV ||
		     code == IORING_OP_READ_FIXED;
	off_t off = reads ? any_off(size_of(slot)) : near_off(size_of(slot));
	size_t len = any_len(), at;
	int flags = one_in(4) ? ONE_OF(RWF_DSYNC, RWF_SYNC, RWF_HIPRI, RWF_UNKNOWN_, RWF_APPEND) : 0;
	uint64_t gen = rnd(1 << 30);

	if (one_in(5))
		off = -1;	/* the descriptor's position */
	else if (off < 0 && !one_in(4))
		off = 0;
	at = one_in(3) ? 1 + rnd(6) : 0;
	if (len > BUF - at)
		len = BUF - at;
	step("io_uring: %d of fd%d, %zu at %#lx, buffer +%zu, flags %x%s", code, slot, len, off, at,
	     flags, async ? ", asynchronous" : "");
	BOTH {
		char *p = buf + at;
		struct iovec v[3] = { { p, len / 3 }, { p, 0 }, { p + len / 3, len - len / 3 } };
		bool many = code == IORING_OP_READV || code == IORING_OP_WRITEV;
		struct io_uring_sqe sqe = {
			.opcode = code, .fd = HERE(slot), .off = off, .rw_flags = flags,
			.addr = many ? (uintptr_t)v : (uintptr_t)p, .len = many ? 3 : len,
			.flags = async ? IOSQE_ASYNC : 0,
		};
		long n;

		if (reads)
			memset(buf, 0xa5, BUF);
		else
			fill(buf, BUF, gen, 0);
		n = ring_run(&ring, &sqe);
		/* What could not be done without waiting: that depends on what is cached. */
		if (n == -EAGAIN) {
			n = reads ? preadv2(HERE(slot), v, 3, off, flags) :
				    pwritev2(HERE(slot), v, 3, off, flags);
			n = n < 0 ? -errno : n;
		}
		say("%ld %s", n, uring_error(n));
		if (reads && n > 0)
			say_bytes("read", n, p);
		say("buffer %lx", hash(buf, BUF, 1));
	}
}

static void op_uring_file(void)
{
	int slot = any_fd(), what = rnd(4), async = one_in(2);
	off_t off = near_off(size_of(slot)), len = any_len();
	int mode = ONE_OF(0, FALLOC_FL_KEEP_SIZE, FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE,
			  FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE, FALLOC_FL_ZERO_RANGE,
			  FALLOC_FL_COLLAPSE_RANGE, FALLOC_FL_INSERT_RANGE, 0x80);
	int flags = one_in(2) ? IORING_FSYNC_DATASYNC : 0, advice = rnd(7);

	step("io_uring: %s of fd%d, %#lx %#lx, %#x %d %d%s",
	     what == 0 ? "fsync" : what == 1 ? "fallocate" : what == 2 ? "sync_file_range" : "fadvise",
	     slot, off, len, mode, flags, advice, async ? ", asynchronous" : "");
	BOTH {
		struct io_uring_sqe sqe = { .fd = HERE(slot), .flags = async ? IOSQE_ASYNC : 0 };
		int res;

		switch (what) {
		case 0:
			sqe.opcode = IORING_OP_FSYNC;
			sqe.fsync_flags = flags;
			break;
		case 1:
			sqe.opcode = IORING_OP_FALLOCATE;
			sqe.off = off;
			sqe.addr = len;
			sqe.len = mode;
			break;
		case 2:
			sqe.opcode = IORING_OP_SYNC_FILE_RANGE;
			sqe.off = off;
			sqe.len = len;
			sqe.sync_range_flags = 7;
			break;
		case 3:
			sqe.opcode = IORING_OP_FADVISE;
			sqe.off = off;
			sqe.len = len;
			sqe.fadvise_advice = advice;
			break;
		}
		res = ring_run(&ring, &sqe);
		say("%d %s", res, uring_error(res));
	}
}

static void op_uring_open(void)
{
	int slot = rnd(NFD), flags = any_open_flags(), async = one_in(3);
	const char *path = one_in(8) ? any_dir() : any_file();
	mode_t mode = any_mode();

	new_fd(slot);
	step("io_uring: fd%d = openat(%.60s, %#x, %o)%s", slot, path, flags, mode,
	     async ? ", asynchronous" : "");
	BOTH {
		struct io_uring_sqe sqe = {
			.opcode = IORING_OP_OPENAT, .fd = AT_FDCWD, .addr = (uintptr_t)path,
			.len = mode, .open_flags = flags, .flags = async ? IOSQE_ASYNC : 0,
		};
		int fd = ring_run(&ring, &sqe);

		say("open: %s", uring_error(fd));
		put_fd(slot, fd < 0 ? -1 : fd);
	}
}

static void op_uring_name(void)
{
	int what = rnd(4), async = one_in(3);
	const char *path = any_path(), *to = what == 0 ? any_path() : "";
	unsigned int mode = any_mode();
	int flags = what == 0 ? ONE_OF(0, 0, RENAME_NOREPLACE, RENAME_EXCHANGE) :
		    what == 1 ? ONE_OF(0, 0, AT_REMOVEDIR) :
				ONE_OF(0, AT_SYMLINK_NOFOLLOW, AT_STATX_FORCE_SYNC);

	step("io_uring: %s %.60s %.60s %x %o%s",
	     what == 0 ? "rename" : what == 1 ? "unlink" : what == 2 ? "mkdir" : "statx", path, to,
	     flags, mode, async ? ", asynchronous" : "");
	BOTH {
		struct io_uring_sqe sqe = {
			.fd = AT_FDCWD, .addr = (uintptr_t)path, .flags = async ? IOSQE_ASYNC : 0,
		};
		struct statx sx = {};
		int res;

		switch (what) {
		case 0:
			sqe.opcode = IORING_OP_RENAMEAT;
			sqe.len = AT_FDCWD;
			sqe.addr2 = (uintptr_t)to;
			sqe.rename_flags = flags;
			break;
		case 1:
			sqe.opcode = IORING_OP_UNLINKAT;
			sqe.unlink_flags = flags;
			break;
		case 2:
			sqe.opcode = IORING_OP_MKDIRAT;
			sqe.len = mode;
			break;
		case 3:
			sqe.opcode = IORING_OP_STATX;
			sqe.len = STATX_BASIC_STATS;
			sqe.addr2 = (uintptr_t)&sx;
			sqe.statx_flags = flags;
			break;
		}
		res = ring_run(&ring, &sqe);
		say("%d %s", res, uring_error(res));
		if (what == 3)
			say("mask %x mode %o size %lld nlink %u uid %u", sx.stx_mask & ~0x5000,
			    sx.stx_mode, (long long)sx.stx_size, sx.stx_nlink, sx.stx_uid);
	}
}

/* --- mappings ---------------------------------------------------------------------- */

static void op_mmap(void)
{
	int slot = any_fd(), m = rnd(NMAP), prot = ONE_OF(PROT_READ, PROT_READ | PROT_WRITE,
							  PROT_READ | PROT_WRITE,
							  PROT_READ | PROT_EXEC, PROT_NONE);
	int flags = ONE_OF(MAP_SHARED, MAP_SHARED, MAP_PRIVATE, MAP_SHARED_VALIDATE);
	size_t len = (1 + rnd(24)) * PAGE;
	off_t off = one_in(20) ? any_off(0) : (off_t)(rnd(4) ? rnd(8) : rnd(48)) * PAGE;
	struct stat st;

	if (one_in(4))
		flags |= MAP_POPULATE;
	touched_map = m;
	step("map%d = mmap(%zu pages, %d, %#x, fd%d, %#lx)", m, len / PAGE, prot, flags, slot, off);
	BOTH {
		char *p = mmap(NULL, len, prot, flags, HERE(slot), off);

		say("mmap: %s", p == MAP_FAILED ? errname() : "ok");
		if (maps[m].len && on[side].map[m])
			munmap(on[side].map[m], maps[m].len);
		on[side].map[m] = p == MAP_FAILED ? NULL : p;
	}
	maps[m].len = on[0].map[m] ? len : 0;
	maps[m].off = off;
	maps[m].shared = !(flags & MAP_PRIVATE);
	maps[m].ino = fstat(on[0].fd[slot], &st) ? 0 : st.st_ino;
}

static void op_munmap(void)
{
	int m = any_map();

	step("munmap(map%d)", m);
	BOTH {
		if (maps[m].len)
			VAL(munmap(on[side].map[m], maps[m].len));
		on[side].map[m] = NULL;
	}
	maps[m].len = 0;
}

static void op_store(void)
{
	int m = any_map();
	size_t len = one_in(2) ? 1 + rnd(100) : 1 + rnd(3 * PAGE), off;
	bool load = one_in(2);
	unsigned char byte = rnd(256);

	off = maps[m].len ? rnd(maps[m].len) : 0;
	if (len > maps[m].len - off)
		len = maps[m].len - off;
	step("store to map%d, %zu at %#zx%s", m, len, off, load ? ", loaded first" : "");
	BOTH {
		volatile unsigned char *p = (void *)on[side].map[m];
		volatile size_t i, from;
		int sig;

		for (i = 0; i < len; i = from) {
			from = (off + i + PAGE) / PAGE * PAGE - off;
			if (from > len)
				from = len;
			if (load)
				say("load: %d", TRY((void)p[off + i]));
			/* Whole pages at a time: what was done is known after a fault. */
			sig = TRY(memset((void *)p + off + i, byte + i / PAGE, from - i));
			say("store: %d", sig);
		}
	}
}

static void op_madvise(void)
{
	int m = any_map(), advice = ONE_OF(MADV_DONTNEED, MADV_DONTNEED, MADV_WILLNEED, MADV_RANDOM,
					   MADV_SEQUENTIAL, MADV_NORMAL, MADV_COLD, MADV_PAGEOUT,
					   MADV_POPULATE_READ, MADV_POPULATE_WRITE, MADV_FREE,
					   MADV_REMOVE, 77);

	step("madvise(map%d, %d)", m, advice);
	BOTH {
		if (maps[m].len)
			VAL(madvise(on[side].map[m], maps[m].len, advice));
	}
}

static void op_msync(void)
{
	int m = any_map(), flags = ONE_OF(MS_SYNC, MS_SYNC, MS_ASYNC, MS_SYNC | MS_INVALIDATE,
					  MS_SYNC | MS_ASYNC);

	step("msync(map%d, %d)", m, flags);
	BOTH {
		if (maps[m].len)
			VAL(msync(on[side].map[m], maps[m].len, flags));
	}
}

static void op_mprotect(void)
{
	int m = any_map(), prot = ONE_OF(PROT_READ, PROT_READ | PROT_WRITE, PROT_NONE,
					 PROT_READ | PROT_EXEC);

	step("mprotect(map%d, %d)", m, prot);
	BOTH {
		if (maps[m].len)
			VAL(mprotect(on[side].map[m], maps[m].len, prot));
	}
}

static void op_mremap(void)
{
	int m = any_map();
	size_t len = (1 + rnd(24)) * PAGE;
	bool grown = true;
	int err[SIDES] = {};

	if (!maps[m].len)
		return;
	step("mremap(map%d, %zu to %zu pages)", m, maps[m].len / PAGE, len / PAGE);
	BOTH {
		char *p = mremap(on[side].map[m], maps[m].len, len, MREMAP_MAYMOVE);

		err[side] = p == MAP_FAILED ? errno : 0;
		if (p != MAP_FAILED)
			on[side].map[m] = p;
	}
	/*
	 * Known limit: "growing a pool mapping by mremap can fail with ENOMEM".
	 * The other side goes back.
	 */
	if (err[1] == ENOMEM && !err[0] && len > maps[m].len) {
		grown = false;
		if (mremap(on[0].map[m], len, maps[m].len, 0) == MAP_FAILED)
			die("mremap back");
	} else {
		QUIETLY
			say("mremap: %s", err[side] ? strerrorname_np(err[side]) : "ok");
		grown = !err[0];
	}
	if (grown)
		maps[m].len = len;
}

static void op_fork(void)
{
	int m = any_map();
	size_t off = maps[m].len ? rnd(maps[m].len / PAGE) * PAGE : 0;

	step("a child stores to map%d at %#zx", m, off);
	BOTH {
		int status = 0;
		pid_t pid = fork();

		if (!pid) {
			volatile char *p = on[side].map[m] + off;
			int sig = 0;

			if (maps[m].len)
				sig = TRY(p[0]++);
			_exit(sig ? sig : maps[m].len && !TRY((void)p[1]) ? (p[1] & 63) + 64 : 0);
		}
		waitpid(pid, &status, 0);
		say("child: %d", status);
	}
}

/* --- of both sides at once ------------------------------------------------------------ */

static void op_drop_caches(void)
{
	const char *what = ONE_OF("1", "2", "3", "3");
	bool first = one_in(2);

	step("%sdrop_caches %s", first ? "sync, " : "", what);
	if (first)
		sync();
	write_text("/proc/sys/vm/drop_caches", what);
}

static const struct {
	void (*op)(void);
	int weight;
} ops[] = {
	{ op_open, 22 }, { op_open_dir, 3 }, { op_creat, 2 }, { op_close, 4 }, { op_tmpfile, 3 },
	{ op_mkdir, 5 }, { op_mknod, 4 }, { op_symlink, 4 }, { op_readlink, 3 }, { op_link, 5 },
	{ op_unlink, 6 }, { op_rmdir, 2 }, { op_rename, 8 }, { op_deep, 1 }, { op_many_names, 2 },
	{ op_getdents, 5 }, { op_chmod, 5 }, { op_chown, 4 }, { op_utimens, 4 }, { op_truncate, 7 },
	{ op_setxattr, 5 }, { op_getxattr, 3 }, { op_removexattr, 2 }, { op_acl, 4 },
	{ op_access, 4 }, { op_statx, 3 }, { op_statfs, 1 }, { op_flags, 4 }, { op_fsxattr, 3 },
	{ op_ioctl, 2 }, { op_fiemap, 3 }, { op_flock, 3 }, { op_fcntl_lock, 6 }, { op_lease, 2 },
	{ op_setfl, 4 }, { op_read, 16 }, { op_write, 20 }, { op_rlimit, 2 }, { op_lseek, 7 },
	{ op_fallocate, 10 }, { op_sync, 5 }, { op_advise, 4 }, { op_copy_file_range, 6 },
	{ op_sendfile, 4 }, { op_splice, 5 }, { op_clone, 10 }, { op_dedupe, 6 }, { op_share, 8 },
	{ op_aio, 6 }, { op_mmap, 14 }, { op_munmap, 2 }, { op_store, 16 }, { op_madvise, 6 },
	{ op_msync, 4 }, { op_mprotect, 4 }, { op_mremap, 4 }, { op_fork, 2 },
	{ op_drop_caches, 3 }, { op_uring_data, 16 }, { op_uring_file, 5 }, { op_uring_open, 6 },
	{ op_uring_name, 5 },
};

static void one_step(void)
{
	unsigned int i, total = 0, at;

	for (i = 0; i < ARRAY(ops); i++)
		total += ops[i].weight;
	at = rnd(total);
	for (i = 0; at >= (unsigned int)ops[i].weight; i++)
		at -= ops[i].weight;

	nr_touched = nr_touched_fd = 0;
	touched_map = -1;
	as_uid = one_in(6) ? USER : 0;
	umask(one_in(4) ? 0 : one_in(8) ? 077 : 022);
	/* Where io_uring is turned off, plain calls are left. */
	if (!have_ring && (ops[i].op == op_uring_data || ops[i].op == op_uring_file ||
			   ops[i].op == op_uring_open || ops[i].op == op_uring_name))
		i = 0;
	alarm(100);
	ops[i].op();
	enter(SIDES);
	compare("what it gave");
	check_step();
	alarm(0);
	history->step++;
	__atomic_add_fetch(&c->steps, 1, __ATOMIC_RELAXED);
}

/* --- processes -------------------------------------------------------------------------- */

static const char *tree(int s, const char *name)
{
	return s ? up("dut-%s", name) : low("ref-%s", name);
}

static void plant(const char *name)
{
	int s, i;

	for (s = 0; s < SIDES; s++) {
		if (mkdir(tree(s, name), 0777) || chmod(tree(s, name), 0777))
			die("%s", tree(s, name));
		on[s].root = open(tree(s, name), O_RDONLY | O_DIRECTORY);
		if (on[s].root < 0 || fchdir(on[s].root))
			die("%s", tree(s, name));
		if (mkdir("d0", 0777) || mkdir("d1", 0777) || mkdir("d0/e0", 0777))
			die("mkdir");
		make_file("f0", 40 * PAGE, 1);
		make_file("f1", 33 * PAGE + 100, 2);
		for (i = 2; i < 6; i++)
			make_clone(i % 2 ? "f1" : "f0", path_of("f%d", i));
		close(on[s].root);
	}
}

static void start(const char *name, int nr, struct history *h)
{
	struct sigaction sa = { .sa_handler = on_bad_access, .sa_flags = SA_NODEFER };
	int s, i;

	me = nr;
	history = h;
	rng = mix(seed + 1000003 * (nr + 1));
	clock_gettime(CLOCK_REALTIME, &started);
	started.tv_sec -= 3600;
	sigaction(SIGBUS, &sa, NULL);
	sigaction(SIGSEGV, &sa, NULL);
	signal(SIGIO, SIG_IGN);
	signal(SIGXFSZ, SIG_IGN);
	signal(SIGPIPE, SIG_IGN);
	buf = mmap(NULL, BUF + PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	mprotect(buf + BUF, PAGE, PROT_NONE);
	have_ring = !ring_start(&ring);
	if (have_ring) {
		struct iovec all = { buf, BUF };

		if (syscall(SYS_io_uring_register, ring.fd, IORING_REGISTER_BUFFERS, &all, 1))
			die("registered buffers");
	}
	for (s = 0; s < SIDES; s++) {
		seen[s] = calloc(1, HEAD + PAGE);
		on[s].root = open(tree(s, name), O_RDONLY | O_DIRECTORY | O_NOATIME);
		if (on[s].root < 0)
			die("%s", tree(s, name));
		for (i = 0; i < NFD; i++)
			on[s].fd[i] = -1;
		if (syscall(SYS_io_setup, 16, &on[s].aio))
			die("io_setup");
	}
	below = open(low("dut-%s", name), O_RDONLY | O_DIRECTORY);
	tick();
}

static bool over(void)
{
	return c->stop || now() > c->end || history->step >= number("DIFFER_STEPS", 1000);
}

static void worker(const char *name, int nr)
{
	start(name, nr, &c->history[nr]);
	while (!over())
		one_step();
	_exit(0);
}

/* One step, then whose turn it is is drawn. */
static void turn_worker(const char *name, int nr)
{
	start(name, nr, &c->history[0]);
	for (;;) {
		while (sem_wait(&c->turn[nr]))
			;
		if (over())
			c->stop = true;
		if (c->stop)
			break;
		one_step();
		c->turn_rng = mix(c->turn_rng + history->step);
		sem_post(&c->turn[(c->turn_rng >> 20) % WORKERS]);
	}
	for (nr = 0; nr < WORKERS; nr++)
		sem_post(&c->turn[nr]);
	_exit(0);
}

static int let_go(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
	int fd, flags = 0;

	if (S_ISREG(st->st_mode) || S_ISDIR(st->st_mode)) {
		fd = open(path, O_RDONLY | O_NOFOLLOW);
		ioctl(fd, FS_IOC_SETFLAGS, &flags);
		close(fd);
	}
	return 0;
}

/* At rest: the same on both sides, and above as below; twice, once uncached. */
static bool same_trees(const char *name)
{
	static struct transcript *t[3];
	bool same = true;
	int i, pass;

	clock_gettime(CLOCK_REALTIME, &started);
	started.tv_sec -= 3600;
	for (i = 0; i < 3; i++)
		t[i] = calloc(1, sizeof(*t[i]));
	for (i = 0; i < SIDES; i++)
		seen[i] = calloc(1, HEAD + PAGE);
	buf = malloc(BUF);
	for (pass = 0; pass < 2; pass++) {
		if (pass)
			drop_caches("3");
		for (i = 0; i < 3; i++) {
			const char *path = i == 2 ? low("dut-%s", name) : tree(i, name);
			int fd = open(path, O_RDONLY | O_DIRECTORY | O_NOATIME);

			side = !!i;
			transcript = t[i];
			t[i]->len = 0;
			if (fd < 0)
				die("%s", path);
			say_tree(fd, 0);
			close(fd);
		}
		for (i = 0; i < 2; i++) {
			const char *a = t[i]->text, *b = t[i + 1]->text, *la, *lb;
			int n = 0;

			while ((*a || *b) && n < 8) {
				la = next_line(&a);
				lb = next_line(&b);
				if (!strcmp(la, lb))
					continue;
				n++;
				same = false;
				fprintf(stderr, "# pass %d: %s: %s\n#   %s: %s\n", pass,
					i ? "mount" : "lower", la, i ? "below it" : "mount", lb);
			}
		}
	}
	return same;
}

/* @workers processes in @trees trees (one each, or one for all) for @seconds. */
static bool run(const char *const *names, int workers, int trees, double seconds)
{
	long hits = pool("hits"), fills = pool("fills");
	int i, status, left;
	pid_t pid[WORKERS];
	char old[32] = "";
	bool good = true;

	seed = number("DIFFER_SEED", 1) ?: (uint64_t)time(NULL) * 1000 + getpid();
	c = mmap(NULL, sizeof(*c), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	fprintf(stderr, "# DIFFER_SEED=%lu\n", seed);
	/* What is written back by itself moves times at the next store. */
	read_text("/proc/sys/vm/dirty_writeback_centisecs", old, sizeof(old));
	write_text("/proc/sys/vm/dirty_writeback_centisecs", "0");
	for (i = 0; i < trees; i++)
		plant(names[i]);
	drop_caches("3");
	c->end = now() + seconds;
	c->turn_rng = mix(seed);
	for (i = 0; i < workers; i++) {
		sem_init(&c->turn[i], 1, trees < workers && !i);
		pid[i] = fork();
		if (pid[i])
			continue;
		if (trees < workers)
			turn_worker(names[0], i);
		else
			worker(names[i], i);
	}
	/* A worker that finds a difference, or dies, ends the others. */
	for (left = workers; left;) {
		pid_t p = waitpid(-1, &status, 0);

		for (i = 0; i < workers && pid[i] != p; i++)
			;
		if (i == workers)
			continue;
		left--;
		if (!status)
			continue;
		good = false;
		if (WIFSIGNALED(status) || WEXITSTATUS(status) != 1) {
			history = &c->history[trees < workers ? 0 : i];
			me = i;
			print_history(WIFSIGNALED(status) ? strsignal(WTERMSIG(status)) :
				      "died of a bad access of its own");
		}
		c->stop = true;
		for (i = 0; i < workers; i++)
			sem_post(&c->turn[i]);
	}
	write_text("/proc/sys/vm/dirty_writeback_centisecs", old);
	for (i = 0; i < trees && good; i++)
		good = same_trees(names[i]);
	fprintf(stderr, "# %lu steps, %lu comparisons, pool: %ld hits, %ld fills\n",
		c->steps, c->compared, pool("hits") - hits, pool("fills") - fills);
	/* Else nothing of it was tested. */
	if (have_pool && (pool("hits") == hits || pool("fills") == fills)) {
		fprintf(stderr, "# the pool was not used\n");
		good = false;
	}
	for (i = 0; i < trees; i++) {
		nftw(low("ref-%s", names[i]), let_go, 16, FTW_PHYS);
		nftw(low("dut-%s", names[i]), let_go, 16, FTW_PHYS);
	}
	return good;
}

static double third(void)
{
	return number("DIFFER_SECONDS", 45) / 3.0;
}

TEST(one_process)
{
	EXPECT_TRUE(run((const char *const []){ "one" }, 1, 1, third()));
}

TEST(each_in_a_tree_of_its_own)
{
	EXPECT_TRUE(run((const char *const []){ "a", "b", "c", "d" }, WORKERS, WORKERS, third()));
}

TEST(taking_turns_in_one_tree)
{
	EXPECT_TRUE(run((const char *const []){ "all" }, WORKERS, 1, third()));
}

TEST_HARNESS_MAIN
