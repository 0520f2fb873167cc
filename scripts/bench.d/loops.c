// SPDX-License-Identifier: GPL-2.0-only
/*
 * The loops of the benchmark.  In a guest that counts instructions (scripts/vm
 * -i) a nanosecond of the clock is one instruction.
 *
 *	loops make DIR		files below DIR: each case's own, shared (cloned)
 *				and unshared
 *	loops run DIR		measure; prints "case value unit"
 *
 * Where the disk takes part, a process of the idle class takes up all time in
 * which nothing else runs, and its time is left out: what remains is the work
 * of the system, kernel threads included, and no waiting.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define PAGE		4096
#define CHUNK		(128 << 10)
#define BIG		(16 << 20)	/* bytes of a big file */
#define SMALL		3000		/* bytes of a small file */
#define NR_SMALL	400
#define NR_RANDOM	3000
#define NR_WRITES	1000
#define NR_EXEC		20
#define ROUNDS		3		/* the best counts */

static char buffer[CHUNK] __attribute__((aligned(PAGE)));
static char path[PAGE], path2[PAGE];

#define CHECK(what) ({ long _r = (what); if (_r < 0) err(1, "%s: %s", path, #what); _r; })

static const char *at(const char *dir, const char *name)
{
	snprintf(path, sizeof(path), "%s/%s", dir, name);
	return path;
}

/* Small files are used by their last name, so that no path is walked. */
static char nth[NR_SMALL][8];

static void enter(const char *dir, const char *name)
{
	if (chdir(at(dir, name)))
		err(1, "%s", path);
	for (int i = 0; i < NR_SMALL; i++)
		snprintf(nth[i], sizeof(nth[i]), "%04d", i);
}

/* --- time ------------------------------------------------------------------- */

static pid_t idler;
static clockid_t idler_clock;

static uint64_t clock_ns(clockid_t clock)
{
	struct timespec t;

	if (clock_gettime(clock, &t))
		err(1, "clock");
	return t.tv_sec * 1000000000ULL + t.tv_nsec;
}

static uint64_t now(void)
{
	uint64_t t = clock_ns(CLOCK_MONOTONIC);

	return idler ? t - clock_ns(idler_clock) : t;
}

static void start_idler(void)
{
	struct sched_param param = { 0 };

	idler = fork();
	if (idler < 0)
		err(1, "fork");
	if (!idler) {
		sched_setscheduler(0, SCHED_IDLE, &param);
		for (;;)
			;
	}
	if (clock_getcpuclockid(idler, &idler_clock))
		errx(1, "no clock");
	usleep(20000);
}

static void stop_idler(void)
{
	kill(idler, SIGKILL);
	waitpid(idler, NULL, 0);
	idler = 0;
}

static void result(const char *name, const char *kind, uint64_t ns, uint64_t n, const char *unit)
{
	printf("%s%s%s %.0f %s\n", name, *kind ? "/" : "", kind, (double)ns / n, unit);
	fflush(stdout);
}

#define BEST(code) ({						\
	uint64_t _best = UINT64_MAX, _t;			\
	for (int _i = 0; _i < ROUNDS; _i++) {			\
		_t = now();					\
		code;						\
		_t = now() - _t;				\
		if (_t < _best)					\
			_best = _t;				\
	}							\
	_best; })

/* --- the files -------------------------------------------------------------- */

static uint64_t seed = 88172645463325252ULL;

static uint64_t next_random(void)
{
	seed ^= seed << 13;
	seed ^= seed >> 7;
	seed ^= seed << 17;
	return seed;
}

static void make_file(const char *name, size_t size)
{
	int fd = CHECK(open(name, O_RDWR | O_CREAT | O_TRUNC, 0644));

	while (size) {
		size_t n = size < CHUNK ? size : CHUNK;

		for (size_t i = 0; i + 8 <= n; i += 8)
			*(uint64_t *)(buffer + i) = next_random();
		if (write(fd, buffer, n) != (ssize_t)n)
			err(1, "%s", name);
		size -= n;
	}
	close(fd);
}

static void clone_file(const char *from, const char *to)
{
	int a = open(from, O_RDONLY), b = open(to, O_RDWR | O_CREAT | O_TRUNC, 0644);

	if (a < 0 || b < 0 || ioctl(b, FICLONE, a))
		err(1, "clone %s to %s", from, to);
	close(a);
	close(b);
}

static void make_all(const char *dir)
{
	static const char *const dirs[] = {
		"small.origin", "small.unshared", "small.shared", "small.shared2",
	};
	int i, j;

	make_file(at(dir, "big.unshared"), BIG);
	make_file(at(dir, "big.origin"), BIG);
	for (i = 0; i < 4; i++)
		mkdir(at(dir, dirs[i]), 0755);
	for (i = 0; i < 2; i++) {
		enter(dir, dirs[i]);
		for (j = 0; j < NR_SMALL; j++)
			make_file(nth[j], SMALL);
	}
	sync();
	strcpy(path2, at(dir, "big.origin"));
	clone_file(path2, at(dir, "big.shared"));
	clone_file(path2, at(dir, "big.shared2"));
	clone_file(path2, at(dir, "big.towrite"));
	for (i = 2; i < 4; i++) {
		enter(dir, dirs[i]);
		for (j = 0; j < NR_SMALL; j++) {
			snprintf(path2, sizeof(path2), "../small.origin/%s", nth[j]);
			clone_file(path2, nth[j]);
		}
	}
	sync();
}

/* --- the loops -------------------------------------------------------------- */

static void drop_caches(void)
{
	int fd;

	sync();
	fd = open("/proc/sys/vm/drop_caches", O_WRONLY);
	if (fd < 0 || write(fd, "3", 1) != 1)
		err(1, "drop_caches");
	close(fd);
}

static void read_through(int fd)
{
	CHECK(lseek(fd, 0, SEEK_SET));
	while (CHECK(read(fd, buffer, CHUNK)) > 0)
		;
}

static void sequential_read(const char *dir, const char *kind, const char *name)
{
	int fd = CHECK(open(at(dir, name), O_RDONLY));

	read_through(fd);
	read_through(fd);
	result("read 128k", kind, BEST(read_through(fd)), BIG / PAGE, "page");
	close(fd);
}

static void random_reads(int fd)
{
	for (int i = 0; i < NR_RANDOM; i++)
		CHECK(pread(fd, buffer, PAGE, next_random() % (BIG / PAGE) * PAGE));
}

static void random_read(const char *dir, const char *kind, const char *name)
{
	int fd = CHECK(open(at(dir, name), O_RDONLY));

	read_through(fd);
	random_reads(fd);
	result("read random 4k", kind, BEST(random_reads(fd)), NR_RANDOM, "read");
	close(fd);
}

static void read_small_files(void)
{
	for (int i = 0; i < NR_SMALL; i++) {
		int fd = CHECK(open(nth[i], O_RDONLY));

		CHECK(read(fd, buffer, PAGE));
		close(fd);
	}
}

static void small_files(const char *dir, const char *kind, const char *name)
{
	enter(dir, name);
	read_small_files();
	read_small_files();
	result("small file open+read+close", kind, BEST(read_small_files()), NR_SMALL, "file");
}

static uint64_t map_and_touch(int fd)
{
	volatile char *p = mmap(NULL, BIG, PROT_READ, MAP_SHARED, fd, 0);
	uint64_t t;

	if (p == MAP_FAILED)
		err(1, "mmap %s", path);
	t = now();
	for (size_t i = 0; i < BIG; i += PAGE)
		(void)p[i];
	t = now() - t;
	munmap((void *)p, BIG);
	return t;
}

static void mmap_faults(const char *dir, const char *kind, const char *name)
{
	int fd = CHECK(open(at(dir, name), O_RDONLY));
	uint64_t best = UINT64_MAX, t;

	read_through(fd);
	map_and_touch(fd);
	for (int i = 0; i < ROUNDS; i++) {
		t = map_and_touch(fd);
		if (t < best)
			best = t;
	}
	result("mmap fault", kind, best, BIG / PAGE, "page");
	close(fd);
}

static void fork_and_exec(const char *root)
{
	static char *const argv[] = { "/true", NULL };
	int status;

	for (int i = 0; i < NR_EXEC; i++) {
		pid_t pid = fork();

		if (!pid) {
			if (chroot(root))
				_exit(1);
			execv(argv[0], argv);
			_exit(1);
		}
		waitpid(pid, &status, 0);
		if (pid < 0 || status)
			errx(1, "cannot run %s/true", root);
	}
}

static void exec_program(const char *dir, const char *kind, const char *name)
{
	at(dir, name);
	fork_and_exec(path);
	result("fork+exec", kind, BEST(fork_and_exec(path)), NR_EXEC, "exec");
}

static void sequential_write(const char *dir)
{
	int fd = CHECK(open(at(dir, "written"), O_RDWR | O_CREAT | O_TRUNC, 0644));
	uint64_t t, t2;

	sync();
	start_idler();
	t = now();
	for (size_t i = 0; i < BIG; i += CHUNK)
		CHECK(write(fd, buffer, CHUNK));
	t2 = now();
	CHECK(fsync(fd));
	result("write 128k", "new file", t2 - t, BIG / PAGE, "page");
	result("  and fsync", "new file", now() - t, BIG / PAGE, "page");
	stop_idler();
	close(fd);
}

static void random_write(const char *dir, const char *kind, const char *name)
{
	int fd = CHECK(open(at(dir, name), O_RDWR));
	uint64_t t, t2;

	read_through(fd);
	CHECK(pwrite(fd, buffer, PAGE, 0));
	CHECK(fsync(fd));
	sync();
	start_idler();
	t = now();
	for (int i = 0; i < NR_WRITES; i++)
		CHECK(pwrite(fd, buffer, PAGE, next_random() % (BIG / PAGE) * PAGE));
	t2 = now();
	CHECK(fsync(fd));
	result("write random 4k", kind, t2 - t, NR_WRITES, "write");
	result("  and fsync", kind, now() - t, NR_WRITES, "write");
	stop_idler();
	close(fd);
}

static void cold_read(const char *dir, const char *kind, const char *name, int drop)
{
	struct stat st;
	uint64_t t;
	int fd;

	if (drop)
		drop_caches();
	/* The name is not what is measured here. */
	CHECK(stat(at(dir, name), &st));
	start_idler();
	t = now();
	fd = CHECK(open(path, O_RDONLY));
	read_through(fd);
	close(fd);
	result("cold read", kind, now() - t, BIG / PAGE, "page");
	stop_idler();
}

static void cold_small_files(const char *dir, const char *kind, const char *name, int drop)
{
	struct stat st;
	uint64_t t;

	if (drop)
		drop_caches();
	enter(dir, name);
	for (int i = 0; i < NR_SMALL; i++)
		CHECK(stat(nth[i], &st));
	start_idler();
	t = now();
	read_small_files();
	result("cold small file", kind, now() - t, NR_SMALL, "file");
	stop_idler();
	CHECK(chdir("/"));
}

static void names(const char *dir)
{
	struct stat st;
	uint64_t t;
	int i, fd;

	CHECK(mkdir(at(dir, "names"), 0755));
	enter(dir, "names");
	start_idler();
	t = now();
	for (i = 0; i < NR_SMALL; i++)
		close(CHECK(open(nth[i], O_WRONLY | O_CREAT | O_EXCL, 0644)));
	result("create", "", now() - t, NR_SMALL, "file");
	stop_idler();
	result("stat", "", BEST(for (i = 0; i < NR_SMALL; i++)
				CHECK(stat(nth[i], &st))), NR_SMALL, "file");
	fd = CHECK(open(".", O_RDONLY | O_DIRECTORY));
	result("readdir", "", BEST(({
			CHECK(lseek(fd, 0, SEEK_SET));
			while (CHECK(syscall(SYS_getdents64, fd, buffer, 32768)) > 0)
				;
		})), NR_SMALL, "name");
	close(fd);
	start_idler();
	t = now();
	for (i = 0; i < NR_SMALL; i++)
		CHECK(unlink(nth[i]));
	result("unlink", "", now() - t, NR_SMALL, "file");
	stop_idler();
	CHECK(chdir("/"));
}

static void run_all(const char *dir)
{
	static const char *const kinds[] = { "unshared", "shared" };
	char big[32], small[32], root[32];

	for (int i = 0; i < 2; i++) {
		const char *kind = kinds[i];

		snprintf(big, sizeof(big), "big.%s", kind);
		snprintf(small, sizeof(small), "small.%s", kind);
		snprintf(root, sizeof(root), "root.%s", kind);
		drop_caches();
		sequential_read(dir, kind, big);
		random_read(dir, kind, big);
		mmap_faults(dir, kind, big);
		small_files(dir, kind, small);
		exec_program(dir, kind, root);
	}
	CHECK(chdir("/"));
	cold_read(dir, "unshared", "big.unshared", 1);
	cold_read(dir, "clone 1", "big.shared", 1);
	cold_read(dir, "clone 2", "big.shared2", 0);
	cold_small_files(dir, "unshared", "small.unshared", 1);
	cold_small_files(dir, "clone 1", "small.shared", 1);
	cold_small_files(dir, "clone 2", "small.shared2", 0);
	names(dir);
	sequential_write(dir);
	random_write(dir, "unshared", "written");
	random_write(dir, "shared", "big.towrite");
}

int main(int argc, char **argv)
{
	if (argc == 3 && !strcmp(argv[1], "make"))
		make_all(argv[2]);
	else if (argc == 3 && !strcmp(argv[1], "run"))
		run_all(argv[2]);
	else
		errx(2, "usage: loops make|run DIR");
	return 0;
}
