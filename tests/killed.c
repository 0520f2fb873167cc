// SPDX-License-Identifier: GPL-2.0-only
/*
 * timeout: 180
 *
 * Processes that end at any moment: killed while they wait for a disk that
 * does not answer, and by the dozen while they share mappings.
 *
 * Who waits for the disk must die on SIGKILL wherever he would have died, or
 * not have waited at all, on the lower filesystem itself: the same scenes are
 * played there first, on the same suspended device.  When it answers again
 * everything goes on, and nothing is lost.
 *
 * SECONDS sets the length of the storm, SEED repeats its choices.
 */
#include "common.h"
#include "device.h"
#include <libgen.h>
#include <sys/prctl.h>

/* --- a disk that does not answer -------------------------------------------- */

#define NAME		"dedupfs-killed"
#define DEV_SIZE	(400 * MiB)
#define NR		32U
#define SIZE		(NR * PAGE)
#define OTHER		1000	/* seed of what is written */

static char device[64];
static const char * const side[] = { "ref", "dut" };	/* directories, in below */

struct files {
	char f[PATH_MAX];	/* what it is about */
	char g[PATH_MAX];	/* its clone */
	char h[PATH_MAX];	/* another to be */
};

/* Where a process is; shared with it. */
enum where { STARTED, WAITING, THROUGH };
static int *where;

static char *buffer(void)
{
	return mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
}

static int opened(const char *path, int flags)
{
	int fd = open(path, flags);

	if (fd < 0)
		_exit(1);
	return fd;
}

static char *mapped(const char *path, int prot, int flags)
{
	char *p = map_file(path, SIZE, prot, flags);

	if (p == MAP_FAILED)
		_exit(1);
	return p;
}

static void do_read(const struct files *x)
{
	int fd = opened(x->f, O_RDONLY);
	char *buf = buffer();

	*where = WAITING;
	if (pread(fd, buf, SIZE, 0) != SIZE || mismatch(buf, PAGE, 1, 0) >= 0)
		_exit(2);
}

static void do_read_clone(const struct files *x)
{
	int fd = opened(x->g, O_RDONLY);
	char *buf = buffer();

	*where = WAITING;
	if (pread(fd, buf, SIZE, 0) != SIZE || mismatch(buf, PAGE, 1, 0) >= 0)
		_exit(2);
}

static void do_direct_read(const struct files *x)
{
	int fd = opened(x->f, O_RDONLY | O_DIRECT);
	char *buf = buffer();

	*where = WAITING;
	if (pread(fd, buf, SIZE, 0) != SIZE || mismatch(buf, PAGE, 1, 0) >= 0)
		_exit(2);
}

static void do_splice(const struct files *x)
{
	int fd = opened(x->f, O_RDONLY), pipes[2];

	if (pipe(pipes))
		_exit(1);
	*where = WAITING;
	if (splice(fd, NULL, pipes[1], NULL, 4 * PAGE, 0) <= 0)
		_exit(2);
}

static void do_load(const struct files *x)
{
	char *p = mapped(x->f, PROT_READ, MAP_SHARED);

	*where = WAITING;
	if (mismatch(p, PAGE, 1, 0) >= 0)
		_exit(2);
}

static void do_load_clone(const struct files *x)
{
	char *p = mapped(x->g, PROT_READ, MAP_PRIVATE);

	*where = WAITING;
	if (mismatch(p, PAGE, 1, 0) >= 0)
		_exit(2);
}

static void do_private_store(const struct files *x)
{
	char *p = mapped(x->f, PROT_READ | PROT_WRITE, MAP_PRIVATE);

	*where = WAITING;
	p[5 * PAGE]++;
}

static void do_store(const struct files *x)
{
	char *p = mapped(x->f, PROT_READ | PROT_WRITE, MAP_SHARED);

	*where = WAITING;
	fill(p + 5 * PAGE, PAGE, OTHER, 5 * PAGE);
}

static void do_populate(const struct files *x)
{
	char *p = mapped(x->f, PROT_READ, MAP_SHARED);

	*where = WAITING;
	if (madvise(p, SIZE, MADV_POPULATE_READ))
		_exit(2);
}

static void do_advise(const struct files *x)
{
	int fd = opened(x->f, O_RDONLY);

	*where = WAITING;
	if (posix_fadvise(fd, 0, SIZE, POSIX_FADV_WILLNEED))
		_exit(2);
}

static void do_open(const struct files *x)
{
	*where = WAITING;
	opened(x->f, O_RDONLY);
}

static void do_open_to_write(const struct files *x)
{
	*where = WAITING;
	opened(x->f, O_RDWR);
}

static void do_stat(const struct files *x)
{
	struct stat st;

	*where = WAITING;
	if (stat(x->f, &st) || st.st_size > SIZE)
		_exit(2);
}

static void write_at(const char *path, size_t off, size_t len)
{
	int fd = opened(path, O_WRONLY);
	char *buf = buffer();

	fill(buf, len, OTHER, off);
	*where = WAITING;
	if (pwrite(fd, buf, len, off) != (ssize_t)len)
		_exit(2);
}

static void do_write(const struct files *x)
{
	write_at(x->f, 2 * PAGE, 4 * PAGE);
}

static void do_write_clone(const struct files *x)
{
	write_at(x->g, 2 * PAGE, 4 * PAGE);
}

/* The rest of the page is read first. */
static void do_write_part(const struct files *x)
{
	write_at(x->f, 3 * PAGE + 1000, 100);
}

static void do_write_part_below(const struct files *x)
{
	write_at(path_of("%s/%s", below, strstr(x->f, side[dut])), 3 * PAGE + 1000, 100);
}

static void do_truncate(const struct files *x)
{
	*where = WAITING;
	if (truncate(x->f, SIZE / 2))
		_exit(2);
}

static void do_fsync(const struct files *x)
{
	int fd = opened(x->f, O_WRONLY);
	char *buf = buffer();

	fill(buf, PAGE, OTHER, 7 * PAGE);
	if (pwrite(fd, buf, PAGE, 7 * PAGE) != PAGE)
		_exit(1);
	*where = WAITING;
	if (fsync(fd))
		_exit(2);
}

static void do_clone(const struct files *x)
{
	int in = opened(x->f, O_RDONLY), out = open(x->h, O_RDWR | O_CREAT, 0644);

	if (out < 0)
		_exit(1);
	*where = WAITING;
	if (ioctl(out, FICLONE, in))
		_exit(2);
}

static void do_unlink(const struct files *x)
{
	*where = WAITING;
	if (unlink(x->g))
		_exit(2);
}

typedef void (*op)(const struct files *);

/*
 * @first waits already when @then comes, and is killed after it.  @waits: it
 * is not a scene of this kind if @then did not have to wait.
 */
static const struct scene {
	const char *name;
	op first, then;
	bool waits;
} scenes[] = {
	{ "read", NULL, do_read, true },
	{ "load", NULL, do_load, true },
	{ "private store", NULL, do_private_store, true },
	{ "store", NULL, do_store, true },
	{ "MADV_POPULATE_READ", NULL, do_populate, true },
	{ "splice", NULL, do_splice, true },
	{ "direct read", NULL, do_direct_read, true },
	{ "write of a part", NULL, do_write_part, true },
	{ "fsync", NULL, do_fsync, true },
	{ "open", NULL, do_open },
	{ "clone", NULL, do_clone },
	{ "WILLNEED", NULL, do_advise },
	{ "read, read", do_read, do_read, true },
	{ "read, read of the clone", do_read, do_read_clone, true },
	{ "read, load", do_read, do_load, true },
	{ "read, open", do_read, do_open },
	{ "read, open to write", do_read, do_open_to_write },
	{ "read, stat", do_read, do_stat },
	{ "read, write", do_read, do_write },
	{ "read, write to the clone", do_read, do_write_clone },
	{ "read, write of a part", do_read, do_write_part },
	{ "read, store", do_read, do_store, true },
	{ "read, truncate", do_read, do_truncate },
	{ "read, clone", do_read, do_clone },
	{ "read, unlink of the clone", do_read, do_unlink },
	{ "load, read", do_load, do_read, true },
	{ "load, load", do_load, do_load, true },
	{ "load, load of the clone", do_load, do_load_clone, true },
	{ "load, write", do_load, do_write },
	{ "load, truncate", do_load, do_truncate },
	{ "load, clone", do_load, do_clone },
	{ "write of a part, open", do_write_part, do_open },
	{ "write of a part, read", do_write_part, do_read, true },
	{ "write of a part, load", do_write_part, do_load, true },
	{ "write of a part below, open", do_write_part_below, do_open },
	{ "write of a part below, read", do_write_part_below, do_read, true },
	{ "write of a part below, load", do_write_part_below, do_load, true },
};

#define SCENES	ARRAY_SIZE(scenes)

/* What became of a process. */
enum fate {
	NONE,
	CAME_BACK,	/* before it was killed */
	DIED,		/* at once */
	STUCK,		/* until the disk answered */
};

static const char * const fate_name[] = { "", "came back", "died", "stuck" };

struct actor {
	pid_t pid;
	int where;
	enum fate fate;
	int status;
	double begun, waited;	/* until it was killed */
};

struct play {
	struct actor first[SCENES], then[SCENES];
	struct files files[SCENES];
};

static struct play *plays[2];

static void start(struct actor *a, op run, const struct files *x)
{
	double begun = now();
	pid_t pid = fork();

	/* (What it points to is shared with the child.) */
	if (pid) {
		a->pid = pid;
		a->begun = begun;
		return;
	}
	where = &a->where;
	run(x);
	*where = THROUGH;
	_exit(0);
}

/* Those who ended since are @fate.  Return: how many have not, of whom @other says that they do. */
static int collect(struct actor *a, enum fate fate, const struct actor *other)
{
	unsigned int i;
	int left = 0;

	for (i = 0; i < SCENES; i++) {
		if (!a[i].pid || (a[i].fate && a[i].fate != STUCK))
			continue;
		if (waitpid(a[i].pid, &a[i].status, WNOHANG) == a[i].pid)
			a[i].fate = a[i].fate ?: fate;
		else if (!other || other[i].fate != STUCK)
			left++;
	}
	return left;
}

static void say_where(const struct actor *a, const char *name)
{
	char stack[4096], *line, *rest = stack;

	if (read_text(path_of("/proc/%d/stack", a->pid), stack, sizeof(stack)) <= 0)
		return;
	fprintf(stderr, "# %s: process %d cannot be killed:\n", name, a->pid);
	while ((line = strsep(&rest, "\n")) && *line)
		fprintf(stderr, "#   %s\n", line);
}

/*
 * Kill them all; who is through within some time died at once.  @other: what
 * became of them on the lower filesystem.
 */
static void kill_all(struct actor *a, const struct actor *other)
{
	double end = now() + (other ? 10 : 2) * TIME_FACTOR;
	unsigned int i, looks = 0;

	collect(a, CAME_BACK, NULL);
	for (i = 0; i < SCENES; i++) {
		if (!a[i].pid || a[i].fate)
			continue;
		a[i].waited = now() - a[i].begun;
		kill(a[i].pid, SIGKILL);
	}
	/* (They need their turns, too, however long the machine stood still.) */
	while (collect(a, DIED, other) && (now() < end || looks++ < 100))
		usleep(20000);
	for (i = 0; i < SCENES; i++) {
		if (!a[i].pid || a[i].fate)
			continue;
		a[i].fate = STUCK;
		if (other && other[i].fate != STUCK)
			say_where(&a[i], scenes[i].name);
	}
}

/* After the disk answered: nobody is left. */
static int remaining(struct actor *a)
{
	unsigned int i;
	int n = 0;

	for (i = 0; i < SCENES; i++)
		if (a[i].fate == STUCK && a[i].pid) {
			if (waitpid(a[i].pid, &a[i].status, WNOHANG) == a[i].pid)
				a[i].pid = 0;
			else
				n++;
		}
	return n;
}

static void name_files(struct play *play, const char *parent, const char *name)
{
	unsigned int i;
	char dir[PATH_MAX];

	strcpy(dir, path_of("%s/%s", parent, name));

	for (i = 0; i < SCENES; i++) {
		/* A directory for each: it is locked while a name is made or removed. */
		strcpy(play->files[i].f, path_of("%s/%u/f", dir, i));
		strcpy(play->files[i].g, path_of("%s/%u/g", dir, i));
		strcpy(play->files[i].h, path_of("%s/%u/h", dir, i));
	}
}

static void make_files(const struct play *play)
{
	unsigned int i;

	for (i = 0; i < SCENES; i++) {
		if (mkdir(dirname(strdup(play->files[i].f)), 0755))
			die("%s", play->files[i].f);
		make_file(play->files[i].f, SIZE, 1);
		make_clone(play->files[i].f, play->files[i].g);
	}
}

/* Metadata is in memory, data is not: the disk is wanted for that alone. */
static void warm_up(const char *name)
{
	const char *path;
	char page[PAGE];
	struct stat st;
	unsigned int i;
	int fd;

	for (i = 0; i < 2 * SCENES; i++) {
		path = path_of("%s/%s/%u/%c", below, name, i / 2, "fg"[i % 2]);
		fiemap(path, NULL, 0);
		fd = open(path, O_RDONLY);
		posix_fadvise(fd, 0, 0, POSIX_FADV_RANDOM);
		if (fd < 0 || fstat(fd, &st) || pread(fd, page, PAGE, SIZE - PAGE) != PAGE)
			die("%s", path);
		posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
		close(fd);
	}
}

/* Sleeping, where it is meant to be, or dead. */
static bool settled(const struct actor *a)
{
	char state;

	if (!a->pid || a->where == THROUGH)
		return true;
	state = process_state(a->pid);
	return !state || state == 'Z' || (strchr("DS", state) && a->where == WAITING);
}

static void until_they_wait(const struct actor *a)
{
	double end = now() + 10 * TIME_FACTOR;
	unsigned int i = 0;

	while (i < SCENES && now() < end) {
		if (settled(&a[i]))
			i++;
		else
			usleep(10000);
	}
	usleep(200000 * TIME_FACTOR);
}

static void act(struct play *play, const struct play *other)
{
	unsigned int i;

	if (dm_simple(DM_DEV_SUSPEND, NAME, DM_SUSPEND_FLAG | DM_SKIP_LOCKFS_FLAG))
		die("suspend");
	for (i = 0; i < SCENES; i++)
		if (scenes[i].first)
			start(&play->first[i], scenes[i].first, &play->files[i]);
	until_they_wait(play->first);
	for (i = 0; i < SCENES; i++)
		start(&play->then[i], scenes[i].then, &play->files[i]);
	until_they_wait(play->then);
	kill_all(play->then, other ? other->then : NULL);
	kill_all(play->first, other ? other->first : NULL);
	if (dm_simple(DM_DEV_SUSPEND, NAME, 0))
		die("resume");
}

/* Each byte is as it was, or as somebody may have written it. */
static long lost(const char *path, const struct scene *scene)
{
	bool truncated = scene->then == do_truncate;
	char *buf = buffer(), was[PAGE], written[PAGE];
	int fd = open(path, O_RDONLY);
	size_t off, i;
	ssize_t n;

	n = fd < 0 ? 0 : pread(fd, buf, SIZE, 0);
	close(fd);
	if (n != SIZE && !(truncated && n == SIZE / 2))
		return n;
	for (off = 0; off < (size_t)n; off += PAGE) {
		fill(was, PAGE, 1, off);
		fill(written, PAGE, OTHER, off);
		for (i = 0; i < PAGE; i++)
			if (buf[off + i] != was[i] &&
			    (buf[off + i] != written[i] || off < 2 * PAGE || off > 7 * PAGE))
				return off + i;
	}
	munmap(buf, SIZE);
	return -1;
}

static void check_files(struct __test_metadata *_metadata, const char *top, const char *when)
{
	const struct scene *scene;
	const char *path;
	struct stat st;
	unsigned int i;

	for (i = 0; i < SCENES; i++) {
		scene = &scenes[i];
		path = path_of("%s/dut/%u/f", top, i);
		EXPECT_EQ(-1, lost(path, scene)) {
			TH_LOG("%s: %s: %s", when, scene->name, path);
		}
		path = path_of("%s/dut/%u/g", top, i);
		if (scene->then != do_unlink || !access(path, F_OK)) {
			EXPECT_EQ(-1, lost(path, scene)) {
				TH_LOG("%s: %s: %s", when, scene->name, path);
			}
		}
		path = path_of("%s/dut/%u/h", top, i);
		if (!stat(path, &st) && st.st_size) {
			EXPECT_EQ(-1, check_file(path, SIZE, 1)) {
				TH_LOG("%s: %s: %s", when, scene->name, path);
			}
		}
	}
}

static int mount_below(void)
{
	return mount(device, below, btrfs ? "btrfs" : "xfs", 0, btrfs ? "max_inline=0" : "");
}

static void take_down(void)
{
	dm_simple(DM_DEV_SUSPEND, NAME, 0);
	tear_down(through, below, NAME);
}

/* Also where a test ended before its teardown. */
__attribute__((destructor))
static void at_end(void)
{
	if (getpid() == main_pid && spare)
		take_down();
}

static bool is_fault(op run)
{
	return run == do_load || run == do_load_clone || run == do_private_store ||
	       run == do_store || run == do_populate;
}

/* Who can be stuck though he would not be on the lower filesystem. */
static bool excused(const struct scene *scene, bool second, const struct actor *a)
{
	/*
	 * A fault waits for the pool for 3 s: when it turns to the lower
	 * filesystem then, it comes after others, who may hold locks there.
	 */
	if (is_fault(second ? scene->then : scene->first) && a->waited > 2.5)
		return true;
	/* The pool is filled by direct reads, which btrfs keeps from changes. */
	return second && btrfs && (scene->first == do_read || scene->first == do_load) &&
	       (scene->then == do_write || scene->then == do_store ||
		scene->then == do_truncate || scene->then == do_clone);
}

FIXTURE(suspended) {
};

FIXTURE_SETUP(suspended)
{
	struct dm_line line = { 0, DEV_SIZE / SECTOR, "linear" };
	int i;

	if (!spare)
		SKIP(return, "DEDUPFS_SPARE is not set");
	if (shell("modprobe -qa dm_mod; test -e /dev/mapper/control"))
		SKIP(return, "no device-mapper");
	snprintf(line.params, sizeof(line.params), "%s 0", spare);
	snprintf(device, sizeof(device), "%s", dm_make(NAME, &line, 1));
	if (shell("mkfs.%s -q -f -K %s %s >/dev/null", btrfs ? "btrfs" : "xfs",
		  btrfs ? "-m single -d single" : "-m reflink=1", device) || mount_below())
		die("a filesystem on %s", device);
	for (i = 0; i < 2; i++) {
		plays[i] = mmap(NULL, sizeof(*plays[i]), PROT_READ | PROT_WRITE,
				MAP_SHARED | MAP_ANONYMOUS, -1, 0);
		mkdir(path_of("%s/%s", below, side[i]), 0755);
		name_files(plays[i], below, side[i]);
		make_files(plays[i]);
	}
	/* From now on only through the mount. */
	name_files(plays[1], through, side[1]);
}

FIXTURE_TEARDOWN(suspended)
{
	if (spare)
		take_down();
}

TEST_F_TIMEOUT(suspended, who_waits_can_be_killed, 120 * TIME_FACTOR)
{
	struct actor *ref, *mnt;
	unsigned int i, k;
	double end;

	for (i = 0; i < 2; i++) {
		dut = i;
		/* In turn: a mount of one's own has no history. */
		if (dut)
			ASSERT_EQ(0, mount_on(below, through, NULL));
		drop_caches("3");
		warm_up(side[dut]);
		act(plays[i], dut ? plays[0] : NULL);
		end = now() + 30 * TIME_FACTOR;
		while ((remaining(plays[i]->then) || remaining(plays[i]->first)) && now() < end)
			usleep(50000);
		EXPECT_EQ(0, remaining(plays[i]->then) + remaining(plays[i]->first)) {
			TH_LOG("somebody waits for a disk that answers");
		}
	}

	TH_LOG("%-30s %-10s %-10s", "", "lower", "mount");
	for (i = 0; i < SCENES; i++)
		for (k = 0; k < 2; k++) {
			ref = k ? &plays[0]->then[i] : &plays[0]->first[i];
			mnt = k ? &plays[1]->then[i] : &plays[1]->first[i];
			if (!ref->fate)
				continue;
			TH_LOG("%-30s %-10s %-10s%s", scenes[i].name, fate_name[ref->fate],
			       fate_name[mnt->fate], k ? "" : " (the first)");
			if (ref->fate != STUCK && !excused(&scenes[i], k, mnt))
				EXPECT_NE(STUCK, mnt->fate) {
					TH_LOG("%s: the %s cannot be killed", scenes[i].name,
					       k ? "second" : "first");
				}
			/* Who came back before the disk did must have been right. */
			if (mnt->fate == CAME_BACK && ref->status == 0)
				EXPECT_EQ(0, mnt->status);
			if ((!k || scenes[i].waits) && ref->fate != CAME_BACK)
				EXPECT_NE(CAME_BACK, mnt->fate) {
					TH_LOG("%s: nothing was waited for", scenes[i].name);
				}
		}

	check_files(_metadata, through, "through the mount");
	check_files(_metadata, below, "below");
	EXPECT_EQ(0, umount_soon(through));
	EXPECT_EQ(0, umount_soon(below));
	ASSERT_EQ(0, mount_below());
	ASSERT_EQ(0, mount_on(below, through, NULL));
	check_files(_metadata, through, "mounted again");
	EXPECT_EQ(0, umount_soon(through));
	EXPECT_EQ(0, umount_soon(below));
	EXPECT_EQ(0, dm_remove(NAME));
}

/* --- many who share mappings ------------------------------------------------- */

#define PAGES	64
#define CHILDREN 12

static uint64_t rng;

static uint64_t rnd(uint64_t n)
{
	rng = rng * 6364136223846793005ULL + 1442695040888963407ULL;
	return (rng >> 33) % n;
}

struct maps {
	char *shared;	/* of "a" */
	char *private;	/* of "b", stored to by children, never by the parent */
	char *own;	/* of "c", shared, stored to */
};

/* What a store to page @i of "c" leaves; the same from everybody. */
static uint64_t stamp(int i)
{
	return mix(i + 77);
}

static uint64_t word(const char *map, size_t off)
{
	return *(volatile uint64_t *)(map + off);
}

static void child(const struct maps *m)
{
	int depth = 0, i, n = 5 + rnd(60);
	uint64_t own[PAGES] = {}, got;
	size_t at;

	while (n--) {
		i = rnd(PAGES);
		at = 8 * rnd(PAGE / 8);
		switch (rnd(8)) {
		case 0: case 1: case 2:
			if (word(m->shared, i * PAGE + at) !=
			    pattern_word(1, (i * PAGE + at) / 8))
				_exit(10);
			break;
		case 3: case 4:
			own[i] = rnd(1000) + 1;
			*(volatile uint64_t *)(m->private + i * PAGE) = own[i];
			break;
		case 5:
			got = word(m->private, i * PAGE);
			if (got != (own[i] ?: pattern_word(1, i * PAGE / 8)))
				_exit(11);
			break;
		case 6:
			*(volatile uint64_t *)(m->own + i * PAGE) = stamp(i);
			break;
		case 7:
			/* It goes on from here, with the parent's private pages. */
			if (depth < 2 && !rnd(12) && !fork()) {
				depth++;
				rng = mix(rng + getpid());
			}
			if (!rnd(20))
				madvise(m->shared, PAGES * PAGE, MADV_DONTNEED);
			break;
		}
	}
	if (!rnd(3))
		munmap(m->shared, PAGES / 2 * PAGE);
	_exit(0);
}

static bool ended_well(int status)
{
	return !status || (WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
}

/* Children come and go while pages of "a" (@fd) are unmapped.  Return: how many did not end well. */
static int storm(const struct maps *m, int fd)
{
	double end = now() + number("SECONDS", 8 * TIME_FACTOR);
	unsigned long born = 0, killed = 0, drops = 0;
	pid_t pid[CHILDREN] = {};
	int i, k, status, bad = 0;
	char page[PAGE];

	while (now() < end && !bad) {
		i = rnd(CHILDREN);
		if (pid[i] && rnd(2)) {
			kill(pid[i], SIGKILL);
			killed++;
		}
		if (pid[i] && (waitpid(pid[i], &status, 0) != pid[i] || !ended_well(status)))
			bad++;
		rng = mix(rng);
		pid[i] = fork();
		if (pid[i] < 0)
			die("fork");
		if (!pid[i])
			child(m);
		born++;
		/* What is mapped is unmapped behind everybody's back. */
		if (!rnd(10)) {
			write_text("/proc/sys/vm/drop_caches", "2");
			drops++;
		}
		if (!rnd(10)) {
			k = rnd(PAGES);
			fill(page, PAGE, 1, k * PAGE);
			write_all(fd, page, PAGE, k * PAGE);
		}
	}
	for (i = 0; i < CHILDREN; i++)
		if (pid[i])
			kill(pid[i], SIGKILL);
	/* Their children, too. */
	while (waitpid(-1, &status, 0) > 0)
		bad += !ended_well(status);
	fprintf(stderr, "# %lu children, %lu killed, caches dropped %lu times\n", born, killed, drops);
	return bad;
}

FIXTURE(storm) {
};

FIXTURE_SETUP(storm)
{
	make_file(low("o"), PAGES * PAGE, 1);
	make_clone(low("o"), low("a"));
	make_clone(low("o"), low("b"));
	make_clone(low("o"), low("c"));
	make_clone(low("o"), low("d"));
	drop_caches("3");
}

FIXTURE_TEARDOWN(storm)
{
	unlink(low("o"));
	unlink(low("a"));
	unlink(low("b"));
	unlink(low("c"));
	unlink(low("d"));
}

TEST_F_TIMEOUT(storm, of_forks_and_kills, 90 * TIME_FACTOR)
{
	const size_t size = PAGES * PAGE;
	uint64_t seed = number("SEED", time(NULL));
	struct maps m;
	int i, fd, tries;

	TH_LOG("SEED=%lu", seed);
	rng = mix(seed);
	/* Grandchildren whose parent was killed come to us. */
	ASSERT_EQ(0, prctl(PR_SET_CHILD_SUBREAPER, 1));
	m.shared = map_file(up("a"), size, PROT_READ, MAP_SHARED);
	m.private = map_file(up("b"), size, PROT_READ | PROT_WRITE, MAP_PRIVATE);
	m.own = map_file(up("c"), size, PROT_READ | PROT_WRITE, MAP_SHARED);
	ASSERT_NE(MAP_FAILED, m.shared);
	ASSERT_NE(MAP_FAILED, m.private);
	ASSERT_NE(MAP_FAILED, m.own);
	touch(m.shared, size);
	touch(m.private, size);
	fd = open(up("a"), O_RDWR);
	ASSERT_LE(0, fd);

	ASSERT_EQ(0, storm(&m, fd));
	close(fd);

	/* What the parent has. */
	EXPECT_EQ(-1, mismatch(m.shared, size, 1, 0));
	EXPECT_EQ(-1, mismatch(m.private, size, 1, 0));
	for (i = 0; i < PAGES; i++) {
		uint64_t got = word(m.own, i * PAGE);

		if (got != stamp(i))
			EXPECT_EQ(pattern_word(1, i * PAGE / 8), got) TH_LOG("page %d of c", i);
		EXPECT_EQ(-1, mismatch(m.own + i * PAGE + 8, PAGE - 8, 1, i * PAGE + 8));
	}
	/* None of c's pages is in the pool any more. */
	for (i = 0; i < PAGES; i++)
		*(uint64_t *)(m.own + i * PAGE) = stamp(i);
	/* (What was still being dropped is unmapped until it is touched.) */
	for (tries = 0; tries < 5; tries++) {
		touch(m.shared, size);
		touch(m.private, size);
		touch(m.own, size);
	}
	EXPECT_EQ(size, smaps(getpid(), up("a"), "Rss"));
	EXPECT_EQ(size, smaps(getpid(), up("b"), "Rss"));
	EXPECT_EQ(size, smaps(getpid(), up("c"), "Rss"));
	/* What is in the pool is mapped by two. */
	EXPECT_LE(size, smaps(getpid(), up("a"), "Pss") + smaps(getpid(), up("b"), "Pss"));
	EXPECT_EQ(0, msync(m.own, size, MS_SYNC));
	EXPECT_EQ(hash_map(up("c"), size, MAP_SHARED), hash_read(low("c"), size));
	EXPECT_EQ(0, munmap(m.shared, size));
	EXPECT_EQ(0, munmap(m.private, size));
	EXPECT_EQ(0, munmap(m.own, size));
	EXPECT_EQ(-1, check_file(up("d"), size, 1));
	EXPECT_EQ(-1, check_file(low("o"), size, 1));

	/* A page that somebody still counts as mapped would stay. */
	for (tries = 0; tries < 20 && pool("pages"); tries++)
		drop_caches("3");
	EXPECT_EQ(0, pool("pages"));
	EXPECT_EQ(-1, check_file(up("a"), size, 1));
	EXPECT_EQ(-1, check_file(up("b"), size, 1));
}

TEST_HARNESS_MAIN
