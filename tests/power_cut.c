// SPDX-License-Identifier: GPL-2.0-only
/*
 * timeout: 300
 *
 * A power cut loses nothing that was acknowledged.  Processes write through
 * the mount, on a disk with a write cache that this test is itself (a network
 * block device): it logs writes and flushes in the order in which it serves
 * them, and each fsync, msync(MS_SYNC), syncfs and synchronous write that
 * returned says how long the log was then.  Then the power fails at random
 * entries of the log: what was flushed, or written through the cache, is on
 * the disk, and of the rest, block by block, as much as chance has it.  That
 * is mounted: for each block, what was acknowledged last, or something
 * written later, must be there.
 *
 * Not dm-log-writes: where two flushes are under way at a time, it may log a
 * write after the acknowledgement that a flush gave for it, and an older write
 * of a block after a newer one.
 *
 * Prints its seed; SEED= repeats the choices, though not how the processes meet.
 */
#include "common.h"
#include "device.h"
#include <arpa/inet.h>
#include <endian.h>
#include <linux/fs.h>
#include <linux/nbd.h>
#include <sys/prctl.h>
#include <sys/socket.h>

#define DISK		"/dev/nbd0"
#define WORKERS		3
#define FILES		4
#define TAIL		(FILES - 1)	/* the file that is appended to, and truncated */
#define BLOCKS		48U
#define SIZE		(BLOCKS * PAGE)
#define OPS		240
#define EVENTS_MAX	2400
#define ENTRIES_MAX	(1 << 17)
#define CUTS		40
#define IMAGE_SIZE	"320M"
#define ABSENT		0		/* instead of a seed: the file ends before the block */

enum { EV_WRITE, EV_CLONE, EV_TRUNCATE, EV_ACK, EV_ACK_ALL };

/*
 * What a worker is about to do (WRITE, CLONE, TRUNCATE), or has seen succeed
 * (ACK), when the log had @at entries: blocks [first, first + nr) of a file.
 * Block i holds pattern seed + i, or what block from + i of another file held.
 */
struct event {
	unsigned int at;
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
	/* The disk's log. */
	unsigned int nr_entries;
	struct entry {
		uint64_t pos;		/* where its data lies in the log */
		uint64_t offset;
		uint32_t len;
		bool flush;		/* of all entries before it */
		bool through;		/* its data did not wait for a flush */
	} entry[ENTRIES_MAX];
} *shared;

static unsigned long seed;
static struct disk {
	pid_t server;
	pid_t starter;		/* within the kernel, until the device ends */
	int nbd;
} disk;
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

/* --- the disk --------------------------------------------------------------- */

static bool get(int sock, void *buf, size_t len)
{
	ssize_t n;

	for (; len; buf += n, len -= n) {
		n = read(sock, buf, len);
		if (n <= 0)
			return false;
	}
	return true;
}

static void put(int sock, const void *buf, size_t len)
{
	ssize_t n;

	for (; len; buf += n, len -= n) {
		n = write(sock, buf, len);
		if (n <= 0)
			_exit(1);
	}
}

/* One request after the other: the log's order is that of the answers. */
static void serve(int sock, int fd, int log)
{
	struct nbd_reply reply = { .magic = htonl(NBD_REPLY_MAGIC) };
	struct nbd_request req;
	unsigned int nr = 0;
	uint64_t pos = 0;
	char *buf = NULL;
	size_t room = 0;

	while (get(sock, &req, sizeof(req))) {
		uint32_t type = ntohl(req.type), len = ntohl(req.len);
		uint64_t offset = be64toh(req.from);
		struct entry *e = &shared->entry[nr];

		if (nr == ENTRIES_MAX) {
			fprintf(stderr, "# the log is full\n");
			_exit(1);
		}
		if (room < len) {
			room = len;
			buf = realloc(buf, room);
		}
		memcpy(reply.handle, req.handle, sizeof(reply.handle));
		reply.error = 0;
		switch (type & 0xffff) {
		case NBD_CMD_READ:
			if (pread(fd, buf, len, offset) != (ssize_t)len)
				reply.error = htonl(EIO);
			break;
		case NBD_CMD_WRITE:
			if (!get(sock, buf, len))
				_exit(1);
			if (pwrite(fd, buf, len, offset) != (ssize_t)len ||
			    pwrite(log, buf, len, pos) != (ssize_t)len)
				_exit(1);
			*e = (struct entry){ .pos = pos, .offset = offset, .len = len,
					     .through = type & NBD_CMD_FLAG_FUA };
			pos += len;
			nr++;
			break;
		case NBD_CMD_FLUSH:
			*e = (struct entry){ .flush = true };
			nr++;
			break;
		case NBD_CMD_DISC:
			_exit(0);
		default:
			reply.error = htonl(EINVAL);
		}
		/* Before anybody hears of it. */
		__atomic_store_n(&shared->nr_entries, nr, __ATOMIC_RELEASE);
		put(sock, &reply, sizeof(reply));
		if ((type & 0xffff) == NBD_CMD_READ && !reply.error)
			put(sock, buf, len);
	}
	_exit(0);
}

/* A disk over a file, with or without writes through its cache. */
static void disk_start(struct disk *d, const char *file, const char *log, bool fua)
{
	unsigned long flags = NBD_FLAG_HAS_FLAGS | NBD_FLAG_SEND_FLUSH |
			      (fua ? NBD_FLAG_SEND_FUA : 0);
	int fd = open(file, O_RDWR | O_CLOEXEC), logfd = open(log, O_RDWR | O_CLOEXEC);
	int sock[2], i;
	uint64_t size;
	struct stat st;

	d->nbd = open(DISK, O_RDWR | O_CLOEXEC);
	if (fd < 0 || logfd < 0 || d->nbd < 0 || fstat(fd, &st) ||
	    socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sock))
		die("disk");
	d->server = fork();
	if (!d->server) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		prctl(PR_SET_IO_FLUSHER, 1);
		close(sock[1]);
		close(d->nbd);
		serve(sock[0], fd, logfd);
	}
	d->starter = fork();
	if (!d->starter) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		close(sock[0]);
		if (ioctl(d->nbd, NBD_SET_BLKSIZE, SECTOR) ||
		    ioctl(d->nbd, NBD_SET_SIZE_BLOCKS, st.st_size / SECTOR) ||
		    ioctl(d->nbd, NBD_SET_FLAGS, flags) ||
		    ioctl(d->nbd, NBD_SET_SOCK, sock[1]))
			die(DISK);
		ioctl(d->nbd, NBD_DO_IT);
		_exit(0);
	}
	close(sock[0]);
	close(sock[1]);
	close(fd);
	close(logfd);
	for (i = 0; ioctl(d->nbd, BLKGETSIZE64, &size) || !size; i++) {
		if (i == 200)
			die(DISK);
		usleep(50000);
	}
}

static void disk_stop(struct disk *d)
{
	if (!d->server)
		return;
	ioctl(d->nbd, NBD_DISCONNECT);
	waitpid(d->starter, NULL, 0);
	waitpid(d->server, NULL, 0);
	ioctl(d->nbd, NBD_CLEAR_SOCK);
	close(d->nbd);
	d->server = 0;
}

static unsigned int log_now(void)
{
	return __atomic_load_n(&shared->nr_entries, __ATOMIC_ACQUIRE);
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
	unsigned int tail;	/* blocks in the file that is appended to */
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
	ev.at = log_now();
	me->ev[me->nr++] = ev;
}

/* A call returned success: from here on it must last. */
static void acked(struct state *s, struct event ev)
{
	note(s, ev);
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
	s->direct_fd[f] = open(path, O_RDWR | O_DIRECT | O_DSYNC);
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
	unsigned int other = (f + 1 + rnd(&s->rng, TAIL - 1)) % TAIL, i;
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
	unsigned int i, nr = f == TAIL ? s->tail : BLOCKS;

	if (pread(s->fd[f], s->buf, SIZE, 0) != (ssize_t)(nr * PAGE))
		die("read");
	for (i = 0; i < nr; i++)
		if (mismatch(s->buf + i * PAGE, PAGE, s->now[f][i], 0) >= 0)
			s->me->failed++;
}

/* Append to the last file; to one that is full, after it was emptied. */
static void append(struct state *s, unsigned int nr, bool synced)
{
	const struct event all = { .type = EV_ACK, .file = TAIL, .nr = BLOCKS };
	unsigned int keep;

	if (s->tail + nr > BLOCKS) {
		keep = rnd(&s->rng, BLOCKS / 2);
		note(s, (struct event){ .type = EV_TRUNCATE, .file = TAIL, .first = keep,
					.nr = BLOCKS - keep });
		if (ftruncate(s->fd[TAIL], keep * PAGE))
			die("truncate");
		s->tail = keep;
		if (synced) {
			if (fsync(s->fd[TAIL]))
				die("fsync");
			acked(s, all);
		}
	}
	announce(s, TAIL, s->tail, nr);
	write_all(s->fd[TAIL], s->buf, nr * PAGE, s->tail * PAGE);
	s->tail += nr;
	if (synced) {
		if (fdatasync(s->fd[TAIL]))
			die("fdatasync");
		acked(s, all);
	}
}

static void one_op(struct state *s)
{
	unsigned int f = rnd(&s->rng, TAIL), nr = 1 + rnd(&s->rng, 6);
	unsigned int first = rnd(&s->rng, BLOCKS - nr + 1);
	const struct event range = { .type = EV_ACK, .file = f, .first = first, .nr = nr };
	const struct event all = { .type = EV_ACK, .file = f, .nr = BLOCKS };
	unsigned int op = rnd(&s->rng, 20);
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
		check_now(s, rnd(&s->rng, FILES));
		break;
	case 16: case 17: case 18: case 19:
		append(s, nr, op & 1);
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
	s.tail = BLOCKS;
	for (i = 0; i < OPS; i++)
		one_op(&s);
	for (f = 0; f < FILES; f++)
		check_now(&s, f);
	_exit(s.me->failed ? 1 : 0);
}

/* --- the power fails --------------------------------------------------------- */

/*
 * Entries [from, to) of the log onto an image; of what waited for a flush, @keep
 * blocks in four.
 */
static void replay(int log, int fd, unsigned int from, unsigned int to, unsigned int keep,
		   uint64_t *rng)
{
	const uint32_t step = keep == 4 ? MiB : PAGE;
	char *buf = malloc(step);
	uint32_t done, n;
	unsigned int i;

	for (i = from; i < to; i++) {
		const struct entry *e = &shared->entry[i];

		for (done = 0; done < e->len; done += n) {
			n = e->len - done < step ? e->len - done : step;
			if (keep < 4 && !e->through && rnd(rng, 4) >= keep)
				continue;
			if (pread(log, buf, n, e->pos + done) != (ssize_t)n)
				die("data of entry %u", i);
			write_all(fd, buf, n, e->offset + done);
		}
	}
	free(buf);
}

/* The last flush before an entry of the log. */
static unsigned int flushed(unsigned int at)
{
	while (at > 0 && !shared->entry[at - 1].flush)
		at--;
	return at;
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

/* A worker's files after @cut entries of the log. */
static void expect(const struct worker *w, unsigned int cut)
{
	unsigned int i, k, f;

	for (f = 0; f < FILES; f++)
		for (k = 0; k < BLOCKS; k++)
			expected[f][k] = (struct block){ .nr = 1, .seed = { 1 + k } };
	for (i = 0; i < w->nr; i++) {
		const struct event *ev = &w->ev[i];
		struct block *b = &expected[ev->file][ev->first];

		/* What had not begun, and what was not yet promised. */
		if (ev->at > cut || (ev->at == cut && ev->type < EV_ACK))
			break;
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
		case EV_TRUNCATE:
			for (k = 0; k < ev->nr; k++)
				may_be(&b[k], ABSENT);
			break;
		case EV_ACK:
			for (k = 0; k < ev->nr; k++)
				settle(&b[k]);
			break;
		case EV_ACK_ALL:
			for (f = 0; f < FILES; f++)
				for (k = 0; k < BLOCKS; k++)
					settle(&expected[f][k]);
			break;
		}
	}
}

static const char zero[PAGE];

/*
 * A block may be torn between what it may be, but not if that is one thing.
 * @p is NULL for one behind the end.
 */
static bool block_ok(const char *p, const struct block *b)
{
	uint64_t word, want;
	unsigned int i, c;

	for (c = b->nr; c-- > 0; )
		if (!p || b->seed[c] == ABSENT ? !p && b->seed[c] == ABSENT :
		    mismatch(p, PAGE, b->seed[c], 0) < 0)
			return true;
	if (b->nr == 1 || !p)
		return false;
	/*
	 * An append that nobody was promised: btrfs (without items for holes)
	 * takes the size of now along when an earlier extent is finished, and
	 * so may have its size, and no data.
	 */
	for (c = 0; btrfs && c < b->nr; c++)
		if (b->seed[c] == ABSENT && !memcmp(p, zero, PAGE))
			return true;
	for (i = 0; i < PAGE / 8; i++) {
		memcpy(&word, p + i * 8, 8);
		for (c = 0; c < b->nr; c++) {
			want = pattern_word(b->seed[c], i);
			if (b->seed[c] != ABSENT && word == want)
				break;
		}
		if (c == b->nr)
			return false;
	}
	return true;
}

/* What a block holds instead: by whom, and when, it was written. */
static void explain(const struct worker *w, unsigned int f, unsigned int block, const char *p,
		    unsigned int cut)
{
	static const char *const what[] = {
		[EV_WRITE] = "write", [EV_CLONE] = "clone", [EV_TRUNCATE] = "truncate",
		[EV_ACK] = "acknowledged", [EV_ACK_ALL] = "all acknowledged",
	};
	unsigned int i, k;

	for (i = 0; i < w->nr; i++) {
		const struct event *ev = &w->ev[i];
		bool here = ev->file == f && ev->first <= block && block < ev->first + ev->nr;

		for (k = 0; p && ev->type == EV_WRITE && k < ev->nr; k++)
			if (mismatch(p, PAGE, ev->seed + k, 0) < 0)
				fprintf(stderr, "#   it holds block %u of event %u, to f%u\n",
					ev->first + k, i, ev->file);
		if (ev->at + 200 < cut || ev->at > cut + 20 || (!here && ev->type != EV_ACK_ALL))
			continue;
		fprintf(stderr, "#   event %u, at entry %u: %s %u+%u%s\n", i, ev->at,
			what[ev->type], ev->first, ev->nr,
			ev->type == EV_CLONE ? path_of(" of f%u at %u", ev->other, ev->from) : "");
	}
	if (!p) {
		fprintf(stderr, "#   it is behind the end of the file\n");
		return;
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

static void check_worker(unsigned int w, struct tally *t, unsigned int cut, bool quiet)
{
	char *buf = malloc(SIZE), *low_buf = malloc(SIZE);
	unsigned int f, k;
	ssize_t len;
	int fd;

	for (f = 0; f < FILES; f++) {
		fd = open(file_of(w, f), O_RDONLY);
		memset(buf, 0, SIZE);
		len = fd < 0 ? -1 : pread(fd, buf, SIZE, 0);
		if (len < 0 || len % PAGE || (f != TAIL && len != SIZE)) {
			if (!quiet)
				fprintf(stderr, "# entry %u: w%u/f%u: %zd bytes: %s\n", cut, w, f,
					len, len < 0 ? strerror(errno) : "no such size was given");
			t->lost++;
		}
		close(fd);
		fd = open(path_of("%s/w%u/f%u", below, w, f), O_RDONLY);
		memset(low_buf, 0, SIZE);
		if (pread(fd, low_buf, SIZE, 0) != len || memcmp(buf, low_buf, SIZE))
			t->differ++;
		close(fd);
		for (k = 0; k < BLOCKS; k++) {
			const struct block *b = &expected[f][k];
			const char *p = (ssize_t)(k * PAGE) < len ? buf + k * PAGE : NULL;

			t->blocks++;
			t->certain += b->nr == 1 && b->seed[0] != 1 + k;
			if (block_ok(p, b))
				continue;
			if (quiet || t->lost++ >= 10) {
				t->lost += quiet;
				continue;
			}
			fprintf(stderr, "# entry %u: w%u/f%u block %u is none of the %u that it may be\n",
				cut, w, f, k, b->nr);
			explain(&shared->worker[w], f, k, p, cut);
		}
	}
	free(buf);
	free(low_buf);
}

static void check_all(unsigned int cut, struct tally *t, bool quiet)
{
	unsigned int w;

	for (w = 0; w < WORKERS; w++) {
		expect(&shared->worker[w], cut);
		check_worker(w, t, cut, quiet);
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
	tear_down(through, below, NULL);
	disk_stop(&disk);
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
	const char *log = spare, *orig;
	unsigned int w, f;

	if (!log)
		SKIP(return, "DEDUPFS_SPARE is not set");
	shell("modprobe -q loop; modprobe -q nbd nbds_max=1");
	if (access(DISK, F_OK) || access("/dev/loop-control", F_OK))
		SKIP(return, "no network block devices, or no loop devices");
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
	shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE,
		      MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	disk_start(&disk, data, log, seed & 1);
	mount_image(DISK, 0);
	self->log = open(log, O_RDONLY | O_CLOEXEC);
	expected = malloc(FILES * sizeof(*expected));
}

FIXTURE_TEARDOWN(disk)
{
	clean_up();
}

static int by_number(const void *a, const void *b)
{
	unsigned int x = *(unsigned int *)a, y = *(unsigned int *)b;

	return x < y ? -1 : x > y;
}

TEST_F_TIMEOUT(disk, keeps_what_was_acknowledged, 280 * TIME_FACTOR)
{
	unsigned int w, i, k, acks = 0, cuts[CUTS], at = 0, last, flushes = 0, waiting = 0;
	struct tally t = { }, wrong = { };
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
		EXPECT_EQ(0, shell("grep -qv '^0$' /sys/fs/dedupfs/nbd0/hits"));
	/* It goes on to the end: the last entries are those of an unmount. */
	ASSERT_EQ(0, umount_both());
	disk_stop(&disk);
	last = shared->nr_entries;
	for (k = 0; k < last; k++)
		flushes += shared->entry[k].flush;
	printf("# %u acknowledged, %u log entries, %u of them flushes, %.0f s\n", acks, last,
	       flushes, now() - start);

	/* Anywhere, and right behind an acknowledgement. */
	for (i = 0; i < CUTS; i++) {
		w = rnd(&rng, WORKERS);
		cuts[i] = rnd(&rng, last) + 1;
		for (k = 0; i % 2 && k < shared->worker[w].nr; k++) {
			const struct event *ev = &shared->worker[w].ev[k];

			if (ev->type >= EV_ACK && ev->at >= cuts[i]) {
				cuts[i] = ev->at;
				break;
			}
		}
	}
	qsort(cuts, CUTS, sizeof(cuts[0]), by_number);

	/* @img has all up to the last flush before the cut, @cut_image some of the rest. */
	img = open(image, O_RDWR | O_CLOEXEC);
	for (i = 0; i < CUTS; i++) {
		k = flushed(cuts[i]);
		replay(self->log, img, at, k, 4, NULL);
		at = k;
		make_clone(image, cut_image);
		fd = open(cut_image, O_RDWR | O_CLOEXEC);
		replay(self->log, fd, at, cuts[i], rnd(&rng, 5), &rng);
		close(fd);
		waiting += cuts[i] - at;
		fd = loop_open(cut_image, loop, sizeof(loop));
		mount_image(loop, 0);
		close(fd);
		check_all(cuts[i], &t, false);
		/* The check can tell: what came later cannot be there. */
		if (i == CUTS / 2)
			check_all(last, &wrong, true);
		ASSERT_EQ(0, umount_both());
	}
	close(img);
	printf("# %u cuts: %lu blocks checked, %lu of them acknowledged and not the first ones; %u entries waited for a flush; %.0f s\n",
	       CUTS, t.blocks, t.certain, waiting, now() - start);
	EXPECT_EQ(0, t.lost);
	EXPECT_EQ(0, t.differ);
	EXPECT_LT(1000, t.certain);
	EXPECT_LT(0, waiting);
	EXPECT_LT(0, wrong.lost);
}

TEST_HARNESS_MAIN
