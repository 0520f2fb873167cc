// SPDX-License-Identifier: GPL-2.0-only
/*
 * timeout: 300
 *
 * A power cut loses nothing that was acknowledged.  Processes write through
 * the mount, on a disk that logs what reaches it (dm-log-writes: a write is in
 * the log once a flush made it durable); each fsync, msync(MS_SYNC), syncfs
 * and synchronous write that returned leaves a mark there.  Then the log is
 * cut at random entries and replayed onto the disk's first image, which is
 * mounted: for each block, what was acknowledged last, or something written
 * later, must be there.
 *
 * Prints its seed; SEED= repeats the choices, though not how the processes meet.
 */
#include "common.h"
#include "device.h"
#include <sys/prctl.h>

#define NAME		"dedupfs-cut"
#define WORKERS		3
#define FILES		3
#define BLOCKS		48U
#define SIZE		(BLOCKS * PAGE)
#define OPS		200
#define EVENTS_MAX	2000
#define CUTS		30
#define IMAGE_SIZE	"320M"

enum { EV_WRITE, EV_CLONE, EV_ACK, EV_ACK_ALL };

/*
 * What a worker is about to do (WRITE, CLONE), or has seen succeed (ACK):
 * blocks [first, first + nr) of a file.  Block i holds pattern seed + i, or
 * what block from + i of another file held.
 */
struct event {
	uint8_t type;
	uint8_t file;
	uint8_t other;
	uint16_t first;
	uint16_t nr;
	uint16_t from;
	uint32_t seed;
};

static struct shared {
	struct worker {
		unsigned int nr;
		unsigned int acks;
		unsigned int failed;
		struct event ev[EVENTS_MAX];
	} worker[WORKERS];
} *shared;

static unsigned long seed;
static char image[PATH_MAX], data[PATH_MAX], cut_image[PATH_MAX];

/* For the teardown, too, in whichever process that runs. */
__attribute__((constructor(1001)))
static void images(void)
{
	snprintf(image, sizeof(image), "%s", low("image"));
	snprintf(data, sizeof(data), "%s", low("data"));
	snprintf(cut_image, sizeof(cut_image), "%s", low("cut"));
}

static unsigned int rnd(uint64_t *state, unsigned int below_what)
{
	*state = *state * 6364136223846793005ULL + 1442695040888963407ULL;
	return (mix(*state) >> 20) % below_what;
}

/*
 * Where the disk can write through its cache (on 6.1 dm-log-writes says so), a
 * direct synchronous write in place is one such write and no flush.  The log
 * then has it before an older write of the same block that waits for a flush,
 * and a replay brings the old data back, as no disk would.
 */
static bool writes_through;

static void look_for_write_through(const char *dev)
{
	int fd = open(path_of("/sys/block/%s/queue/fua", strrchr(dev, '/') + 1), O_RDONLY);
	char c = '0';

	if (fd < 0 || read(fd, &c, 1) != 1)
		die("queue of %s", dev);
	close(fd);
	writes_through = c != '0';
}

static const char *options(void)
{
	return btrfs ? "max_inline=0" : "";
}

static const char *type(void)
{
	return btrfs ? "btrfs" : "xfs";
}

/* --- the workload ---------------------------------------------------------- */

struct state {
	struct worker *me;
	unsigned int nr;	/* which worker */
	uint64_t rng;
	uint32_t next_seed;
	int fd[FILES], sync_fd[FILES], dsync_fd[FILES], direct_fd[FILES], dir;
	char *map[FILES];
	uint32_t now[FILES][BLOCKS];
	char *buf;
};

static const char *file_of(unsigned int w, unsigned int f)
{
	return path_of("%s/w%u/f%u", through, w, f);
}

static void note(struct state *s, struct event ev)
{
	struct worker *me = s->me;

	if (me->nr == EVENTS_MAX)
		die("too many events");
	me->ev[me->nr] = ev;
	__atomic_store_n(&me->nr, me->nr + 1, __ATOMIC_RELEASE);
}

/* A call returned success: from here on it must last. */
static void acked(struct state *s, struct event ev)
{
	char text[64];

	note(s, ev);
	snprintf(text, sizeof(text), "mark %u:%u", s->nr, s->me->nr);
	if (dm_message(NAME, text))
		die("mark");
	s->me->acks++;
}

static void reopen(struct state *s, unsigned int f)
{
	const char *path = file_of(s->nr, f);

	if (s->map[f]) {
		munmap(s->map[f], SIZE);
		close(s->fd[f]);
		close(s->sync_fd[f]);
		close(s->dsync_fd[f]);
		close(s->direct_fd[f]);
	}
	s->fd[f] = open(path, O_RDWR);
	s->sync_fd[f] = open(path, O_RDWR | O_SYNC);
	s->dsync_fd[f] = open(path, O_RDWR | O_DSYNC);
	s->direct_fd[f] = open(path, O_RDWR | O_DIRECT | (writes_through ? 0 : O_DSYNC));
	s->map[f] = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, s->fd[f], 0);
	if (s->map[f] == MAP_FAILED || s->direct_fd[f] < 0)
		die("%s", path);
}

static uint32_t announce(struct state *s, unsigned int f, unsigned int first, unsigned int nr)
{
	uint32_t at = s->next_seed;
	unsigned int i;

	s->next_seed += nr;
	note(s, (struct event){ .type = EV_WRITE, .file = f, .first = first, .nr = nr, .seed = at });
	for (i = 0; i < nr; i++) {
		s->now[f][first + i] = at + i;
		fill(s->buf + i * PAGE, PAGE, at + i, 0);
	}
	return at;
}

/* Write a file anew beside the old one, and rename it over that. */
static void replace(struct state *s, unsigned int f)
{
	const char *tmp = path_of("%s/w%u/tmp", through, s->nr);
	int fd = open(tmp, O_RDWR | O_CREAT | O_TRUNC, 0644);

	if (fd < 0)
		die("%s", tmp);
	announce(s, f, 0, BLOCKS);
	write_all(fd, s->buf, SIZE, 0);
	if (fsync(fd) || rename(tmp, file_of(s->nr, f)) || fsync(s->dir))
		die("replace %s", tmp);
	close(fd);
	acked(s, (struct event){ .type = EV_ACK, .file = f, .nr = BLOCKS });
	reopen(s, f);
}

static void clone_range(struct state *s, unsigned int f, unsigned int first, unsigned int nr)
{
	unsigned int other = (f + 1 + rnd(&s->rng, FILES - 1)) % FILES, i;
	unsigned int from = rnd(&s->rng, BLOCKS - nr + 1);
	struct file_clone_range r = {
		.src_fd = s->fd[other],
		.src_offset = from * PAGE,
		.src_length = nr * PAGE,
		.dest_offset = first * PAGE,
	};

	note(s, (struct event){ .type = EV_CLONE, .file = f, .other = other, .first = first,
				.nr = nr, .from = from });
	for (i = 0; i < nr; i++)
		s->now[f][first + i] = s->now[other][from + i];
	if (ioctl(s->fd[f], FICLONERANGE, &r))
		die("clone");
}

static void check_now(struct state *s, unsigned int f)
{
	unsigned int i;

	if (pread(s->fd[f], s->buf, SIZE, 0) != SIZE)
		die("read");
	for (i = 0; i < BLOCKS; i++)
		if (mismatch(s->buf + i * PAGE, PAGE, s->now[f][i], 0) >= 0)
			s->me->failed++;
}

static void one_op(struct state *s)
{
	unsigned int f = rnd(&s->rng, FILES), nr = 1 + rnd(&s->rng, 6);
	unsigned int first = rnd(&s->rng, BLOCKS - nr + 1);
	const struct event range = { .type = EV_ACK, .file = f, .first = first, .nr = nr };
	const struct event all = { .type = EV_ACK, .file = f, .nr = BLOCKS };
	unsigned int op = rnd(&s->rng, 16);
	int fd;

	switch (op) {
	case 0: case 1: case 2:
		announce(s, f, first, nr);
		write_all(s->fd[f], s->buf, nr * PAGE, first * PAGE);
		break;
	case 3: case 4: case 5: case 6:
		fd = op == 3 ? s->sync_fd[f] : op == 4 ? s->dsync_fd[f] :
		     op == 5 ? s->direct_fd[f] : s->fd[f];
		announce(s, f, first, nr);
		if (op == 6) {
			struct iovec v = { s->buf, nr * PAGE };

			if (pwritev2(fd, &v, 1, first * PAGE, RWF_DSYNC) != (ssize_t)v.iov_len)
				die("pwritev2");
		} else {
			write_all(fd, s->buf, nr * PAGE, first * PAGE);
			if (op == 5 && writes_through && fdatasync(fd))
				die("fdatasync");
		}
		acked(s, range);
		break;
	case 7: case 8: case 9:
		announce(s, f, first, nr);
		memcpy(s->map[f] + first * PAGE, s->buf, nr * PAGE);
		if (op == 7)
			break;
		if (msync(s->map[f] + first * PAGE, nr * PAGE, MS_SYNC))
			die("msync");
		acked(s, range);
		break;
	case 10: case 11:
		if (op == 10 ? fsync(s->fd[f]) : fdatasync(s->fd[f]))
			die("fsync");
		acked(s, all);
		break;
	case 12:
		if (syncfs(s->dir))
			die("syncfs");
		acked(s, (struct event){ .type = EV_ACK_ALL });
		break;
	case 13:
		replace(s, f);
		break;
	case 14:
		clone_range(s, f, first, nr);
		if (fsync(s->fd[f]))
			die("fsync");
		acked(s, all);
		break;
	case 15:
		check_now(s, f);
		break;
	}
}

static void work(unsigned int nr)
{
	struct state s = { .me = &shared->worker[nr], .nr = nr };
	unsigned int f, i;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	s.rng = seed * 1000 + nr;
	s.next_seed = (nr + 1) << 24;
	s.buf = aligned_alloc(PAGE, SIZE);
	s.dir = open(path_of("%s/w%u", through, nr), O_RDONLY);
	for (f = 0; f < FILES; f++) {
		for (i = 0; i < BLOCKS; i++)
			s.now[f][i] = 1 + i;
		reopen(&s, f);
	}
	for (i = 0; i < OPS; i++)
		one_op(&s);
	for (f = 0; f < FILES; f++)
		check_now(&s, f);
	_exit(s.me->failed ? 1 : 0);
}

/* --- the log: drivers/md/dm-log-writes.c ------------------------------------ */

#define LOG_MAGIC	0x6a736677736872ULL
#define LOG_DISCARD	4
#define LOG_MARK	8

struct log_super {
	uint64_t magic;
	uint64_t version;
	uint64_t nr_entries;
	uint32_t sectorsize;
};

struct log_entry {
	uint64_t sector;
	uint64_t nr_sectors;
	uint64_t flags;
	uint64_t data_len;
};

static struct entry {
	uint64_t at;		/* where its data lies in the log */
	uint64_t sector;
	uint64_t nr_sectors;
	unsigned int flags;
	int worker;		/* of a mark of ours, or -1 */
	unsigned int acked;
} *entries;

static uint64_t nr_entries, log_sector;

static void read_log(int log)
{
	char buf[PAGE];
	struct log_super *super = (void *)buf;
	struct log_entry *e = (void *)buf;
	uint64_t at, i;

	if (pread(log, buf, PAGE, 0) != PAGE || super->magic != LOG_MAGIC)
		die("no log");
	nr_entries = super->nr_entries;
	log_sector = super->sectorsize;
	entries = calloc(nr_entries, sizeof(*entries));
	at = log_sector;
	for (i = 0; i < nr_entries; i++) {
		if (pread(log, buf, SECTOR, at) != SECTOR)
			die("entry %lu of the log", i);
		at += log_sector;
		entries[i] = (struct entry){
			.at = at,
			.sector = e->sector,
			.nr_sectors = e->nr_sectors,
			.flags = e->flags,
			.worker = -1,
		};
		if (e->flags & LOG_MARK) {
			buf[sizeof(*e) + e->data_len] = 0;
			if (sscanf(buf + sizeof(*e), "%d:%u", &entries[i].worker,
				   &entries[i].acked) != 2)
				entries[i].worker = -1;
		} else if (!(e->flags & LOG_DISCARD)) {
			at += e->nr_sectors * log_sector;
		}
	}
}

/* Entries [from, to) onto the image. */
static void replay(int log, int fd, uint64_t from, uint64_t to)
{
	char *buf = malloc(MiB);
	uint64_t i, done, len, n;

	for (i = from; i < to; i++) {
		const struct entry *e = &entries[i];

		len = e->nr_sectors * log_sector;
		if (e->flags & LOG_DISCARD) {
			fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
				  e->sector * log_sector, len);
			continue;
		}
		for (done = 0; done < len; done += n) {
			n = len - done < MiB ? len - done : MiB;
			if (pread(log, buf, n, e->at + done) != (ssize_t)n)
				die("data of entry %lu", i);
			write_all(fd, buf, n, e->sector * log_sector + done);
		}
	}
	free(buf);
}

/* --- what may be there after a cut ------------------------------------------ */

#define CANDIDATES	EVENTS_MAX

struct block {
	unsigned int nr;
	uint32_t seed[CANDIDATES];
};

static struct block (*expected)[BLOCKS];

static void may_be(struct block *b, uint32_t one)
{
	b->seed[b->nr++] = one;
}

static void settle(struct block *b)
{
	b->seed[0] = b->seed[b->nr - 1];
	b->nr = 1;
}

/*
 * A worker's files if events before @acked were acknowledged (where they say
 * so), and those before @issued may have happened.
 */
static void expect(const struct worker *w, unsigned int acked_until, unsigned int issued)
{
	unsigned int i, k, f;

	for (f = 0; f < FILES; f++)
		for (k = 0; k < BLOCKS; k++)
			expected[f][k] = (struct block){ .nr = 1, .seed = { 1 + k } };
	for (i = 0; i < issued; i++) {
		const struct event *ev = &w->ev[i];
		struct block *b = &expected[ev->file][ev->first];

		switch (ev->type) {
		case EV_WRITE:
			for (k = 0; k < ev->nr; k++)
				may_be(&b[k], ev->seed + k);
			break;
		case EV_CLONE:
			for (k = 0; k < ev->nr; k++) {
				struct block *from = &expected[ev->other][ev->from + k];

				may_be(&b[k], from->seed[from->nr - 1]);
			}
			break;
		case EV_ACK:
			for (k = 0; k < ev->nr && i < acked_until; k++)
				settle(&b[k]);
			break;
		case EV_ACK_ALL:
			for (f = 0; f < FILES && i < acked_until; f++)
				for (k = 0; k < BLOCKS; k++)
					settle(&expected[f][k]);
			break;
		}
	}
}

/* A block may be torn between what it may be, but not if that is one thing. */
static bool block_ok(const char *p, const struct block *b)
{
	uint64_t word, want;
	unsigned int i, c;

	for (c = b->nr; c-- > 0; )
		if (mismatch(p, PAGE, b->seed[c], 0) < 0)
			return true;
	if (b->nr == 1)
		return false;
	for (i = 0; i < PAGE / 8; i++) {
		memcpy(&word, p + i * 8, 8);
		for (c = 0; c < b->nr; c++) {
			want = pattern_word(b->seed[c], i);
			if (word == want)
				break;
		}
		if (c == b->nr)
			return false;
	}
	return true;
}

/* What a block holds instead: by whom, and when, it was written. */
static void explain(const struct worker *w, unsigned int f, unsigned int block, const char *p,
		    unsigned int acked_until)
{
	static const char zero[PAGE];
	unsigned int i, k;
	const char *how;

	for (i = 0; i < w->nr; i++) {
		const struct event *ev = &w->ev[i];
		bool here = ev->file == f && ev->first <= block && block < ev->first + ev->nr;

		for (k = 0; ev->type == EV_WRITE && k < ev->nr; k++)
			if (mismatch(p, PAGE, ev->seed + k, 0) < 0)
				fprintf(stderr, "#   it holds block %u of event %u, to f%u\n",
					ev->first + k, i, ev->file);
		if (i + 40 < acked_until || (!here && ev->type != EV_ACK_ALL))
			continue;
		how = ev->type == EV_WRITE ? "write" : ev->type == EV_CLONE ? "clone" :
		      ev->type == EV_ACK ? "acknowledged" : "all acknowledged";
		fprintf(stderr, "#   event %u: %s %u+%u%s%s\n", i, how, ev->first, ev->nr,
			i < acked_until ? "" : " (later)",
			ev->type == EV_CLONE ? path_of(" of f%u at %u", ev->other, ev->from) : "");
	}
	for (k = 0; k < BLOCKS; k++)
		if (mismatch(p, PAGE, 1 + k, 0) < 0)
			fprintf(stderr, "#   it holds the first block %u\n", k);
	if (!memcmp(p, zero, PAGE))
		fprintf(stderr, "#   it holds zeroes\n");
}

struct tally {
	unsigned long blocks;
	unsigned long certain;	/* could be one thing only, and not the first one */
	unsigned long lost;
	unsigned long differ;	/* the mount does not show what is below */
};

static void check_worker(unsigned int w, struct tally *t, uint64_t at, unsigned int acked_until,
			 bool quiet)
{
	char *buf = malloc(SIZE), *low_buf = malloc(SIZE);
	unsigned int f, k;
	int fd;

	for (f = 0; f < FILES; f++) {
		fd = open(file_of(w, f), O_RDONLY);
		memset(buf, 0, SIZE);
		if (fd < 0 || pread(fd, buf, SIZE, 0) != SIZE) {
			if (!quiet)
				fprintf(stderr, "# entry %lu: w%u/f%u: %s\n", at, w, f,
					fd < 0 ? strerror(errno) : "too short");
			t->lost++;
		}
		close(fd);
		fd = open(path_of("%s/w%u/f%u", below, w, f), O_RDONLY);
		memset(low_buf, 0, SIZE);
		if (pread(fd, low_buf, SIZE, 0) < 0 || memcmp(buf, low_buf, SIZE))
			t->differ++;
		close(fd);
		for (k = 0; k < BLOCKS; k++) {
			const struct block *b = &expected[f][k];

			t->blocks++;
			t->certain += b->nr == 1 && b->seed[0] != 1 + k;
			if (block_ok(buf + k * PAGE, b))
				continue;
			if (quiet || t->lost++ >= 10) {
				t->lost += quiet;
				continue;
			}
			fprintf(stderr, "# entry %lu: w%u/f%u block %u is none of the %u that it may be\n",
				at, w, f, k, b->nr);
			explain(&shared->worker[w], f, k, buf + k * PAGE, acked_until);
		}
	}
	free(buf);
	free(low_buf);
}

/* Last acknowledged, and all that may have been issued, at an entry. */
static void check_all(uint64_t at, struct tally *t, bool quiet)
{
	unsigned int w, acked_until, issued;
	uint64_t i;

	for (w = 0; w < WORKERS; w++) {
		acked_until = 0;
		issued = shared->worker[w].nr;
		for (i = 0; i < nr_entries; i++) {
			if (entries[i].worker != (int)w)
				continue;
			if (i < at) {
				acked_until = entries[i].acked;
			} else {
				issued = entries[i].acked;
				break;
			}
		}
		expect(&shared->worker[w], acked_until, issued);
		check_worker(w, t, at, acked_until, quiet);
	}
}

/* --- the test --------------------------------------------------------------- */

static void mount_image(const char *dev, unsigned long flags)
{
	if (mount(dev, below, type(), flags, options()) || mount_on(below, through, NULL))
		die("mount of %s", dev);
}

static int umount_both(void)
{
	int ret = umount_soon(through) ?: umount_soon(below);

	if (btrfs)
		forget_devices();
	return ret;
}

static void clean_up(void)
{
	tear_down(through, below, NAME);
	unlink(image);
	unlink(data);
	unlink(cut_image);
}

/* Also where a test ended before its teardown. */
__attribute__((destructor))
static void at_end(void)
{
	if (getpid() == main_pid)
		clean_up();
}

FIXTURE(disk) {
	char loop[64];
	int log;
	int loop_fd;
};

FIXTURE_SETUP(disk)
{
	const char *log = spare, *orig, *dev;
	struct dm_line line = { .type = "log-writes" };
	struct stat st;
	unsigned int w, f;

	if (!log)
		SKIP(return, "DEDUPFS_SPARE is not set");
	shell("modprobe -qa dm_mod dm-log-writes loop");
	if (access("/dev/mapper/control", F_OK) || access("/dev/loop-control", F_OK))
		SKIP(return, "no device-mapper, or no loop devices");
	seed = getenv("SEED") ? strtoul(getenv("SEED"), NULL, 0) : (unsigned long)time(NULL) % 1000000;
	printf("# seed %lu\n", seed);
	if (shell("truncate -s %s %s && mkfs.%s -q -f %s %s >/dev/null 2>&1", IMAGE_SIZE, image,
		  type(), btrfs ? "-m single" : "-m reflink=1", image))
		die("mkfs");

	/* The files at the beginning: clones of each other. */
	self->loop_fd = loop_open(image, self->loop, sizeof(self->loop));
	mount_image(self->loop, 0);
	close(self->loop_fd);
	orig = path_of("%s/orig", below);
	{
		char *buf = malloc(PAGE);
		int fd = open(orig, O_RDWR | O_CREAT, 0644);
		unsigned int k;

		for (k = 0; k < BLOCKS; k++) {
			fill(buf, PAGE, 1 + k, 0);
			write_all(fd, buf, PAGE, k * PAGE);
		}
		close(fd);
		free(buf);
	}
	for (w = 0; w < WORKERS; w++) {
		mkdir(path_of("%s/w%u", below, w), 0755);
		for (f = 0; f < FILES; f++)
			make_clone(orig, path_of("%s/w%u/f%u", below, w, f));
	}
	ASSERT_EQ(0, umount_both());

	make_clone(image, data);
	self->loop_fd = loop_open(data, self->loop, sizeof(self->loop));
	stat(data, &st);
	line.len = st.st_size / SECTOR;
	snprintf(line.params, sizeof(line.params), "%s %s", self->loop, log);
	dev = dm_make(NAME, &line, 1);
	look_for_write_through(dev);
	mount_image(dev, 0);
	close(self->loop_fd);
	self->log = open(log, O_RDONLY | O_CLOEXEC);
	shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE,
		      MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	expected = malloc(FILES * sizeof(*expected));
}

FIXTURE_TEARDOWN(disk)
{
	clean_up();
}

static int by_number(const void *a, const void *b)
{
	uint64_t x = *(uint64_t *)a, y = *(uint64_t *)b;

	return x < y ? -1 : x > y;
}

TEST_F_TIMEOUT(disk, keeps_what_was_acknowledged, 280)
{
	unsigned int w, i, acks = 0, seen = 0;
	struct tally t = { }, wrong = { };
	uint64_t cuts[CUTS], k, at = 0;
	double start = now();
	char loop[64];
	int status[WORKERS], fd, img;
	pid_t pid[WORKERS];
	uint64_t rng = seed;

	for (w = 0; w < WORKERS; w++) {
		pid[w] = fork();
		if (!pid[w])
			work(w);
	}
	for (w = 0; w < WORKERS; w++)
		waitpid(pid[w], &status[w], 0);
	for (w = 0; w < WORKERS; w++) {
		ASSERT_EQ(0, status[w]) TH_LOG("worker %u: %u wrong blocks", w, shared->worker[w].failed);
		acks += shared->worker[w].acks;
	}
	/* Without this the test would be one of the filesystem alone. */
	if (have_pool)
		EXPECT_EQ(0, shell("grep -qv '^0$' /sys/fs/dedupfs/dm-*/hits"));
	/* It goes on to the end, so that the log is complete. */
	ASSERT_EQ(0, umount_both());
	ASSERT_EQ(0, dm_remove(NAME));
	posix_fadvise(self->log, 0, 0, POSIX_FADV_DONTNEED);
	read_log(self->log);
	for (k = 0; k < nr_entries; k++)
		seen += entries[k].worker >= 0;
	ASSERT_EQ(acks, seen) TH_LOG("the log is not complete");
	printf("# %u acknowledged, %lu log entries, %.0f s\n", acks, nr_entries, now() - start);

	/* Anywhere, and right behind an acknowledgement. */
	for (i = 0; i < CUTS; i++) {
		cuts[i] = rnd(&rng, nr_entries) + 1;
		while (i % 2 && cuts[i] < nr_entries && entries[cuts[i] - 1].worker < 0)
			cuts[i]++;
	}
	qsort(cuts, CUTS, sizeof(cuts[0]), by_number);

	img = open(image, O_RDWR | O_CLOEXEC);
	for (i = 0; i < CUTS; i++) {
		replay(self->log, img, at, cuts[i]);
		at = cuts[i];
		make_clone(image, cut_image);
		fd = loop_open(cut_image, loop, sizeof(loop));
		mount_image(loop, 0);
		close(fd);
		check_all(at, &t, false);
		/* The check can tell: what came later cannot be there. */
		if (i == CUTS / 2)
			check_all(nr_entries, &wrong, true);
		ASSERT_EQ(0, umount_both());
	}
	close(img);
	printf("# %u cuts: %lu blocks checked, %lu of them acknowledged and not the first ones; %.0f s\n",
	       CUTS, t.blocks, t.certain, now() - start);
	EXPECT_EQ(0, t.lost);
	EXPECT_EQ(0, t.differ);
	EXPECT_LT(1000, t.certain);
	EXPECT_LT(0, wrong.lost);
}

TEST_HARNESS_MAIN
