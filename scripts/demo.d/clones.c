// SPDX-License-Identifier: GPL-2.0-only
/*
 * The measuring half of the demo: reads, maps and runs whole trees, and says
 * what that cost.  Runs in the guest (scripts/demo.d/guest).
 *
 *	clones clone FROM TO		reflink every file (as cp -a --reflink=always,
 *					but for times: twice as fast in a guest)
 *	clones count DIR		files, bytes and pages of the tree
 *	clones walk DIR...		look at every name: metadata only
 *	clones read DIR			read every file; print a checksum
 *	clones map DIR...		a process for each DIR maps all its files and
 *					touches each page; then memory, Rss, Pss
 *	clones run DIR,DIR... PROGRAM [ARGUMENT]...
 *					run it by chroot in each DIR at once, until
 *					it prints a line; then Rss, Pss
 *	clones mem			what the page cache and the pools hold
 *	clones resident FILE...		pages of each file in its page cache
 *	clones blocks OFFSET FILE...	a checksum of 4 KiB of each file
 *	clones write OFFSET FILE	change 4 KiB, and wait for the disk
 *
 * Results are lines "name value".
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <glob.h>
#include <linux/fs.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAGE	4096
#define BUFFER	(128 << 10)

static unsigned long long files, bytes, pages;
static uint64_t sum;
static char buffer[BUFFER] __attribute__((aligned(PAGE)));

/* The second name of a file is linked to the clone of the first. */
static bool link_again(const struct stat *st, int to, const char *name, const char *path)
{
	static struct { ino_t ino; char *path; } *seen;
	static size_t nr;
	size_t i;

	if (st->st_nlink < 2)
		return false;
	for (i = 0; i < nr; i++) {
		if (seen[i].ino != st->st_ino)
			continue;
		if (linkat(AT_FDCWD, seen[i].path, to, name, 0))
			err(1, "%s", name);
		return true;
	}
	seen = realloc(seen, (nr + 1) * sizeof(*seen));
	if (!seen || asprintf(&seen[nr].path, "%s/%s", path, name) < 0)
		err(1, "memory");
	seen[nr++].ino = st->st_ino;
	return false;
}

/* Clone what is in @from to @to, the directory @path. */
static void clone_names(int from, int to, const char *path)
{
	char target[PAGE], below[PAGE];
	DIR *dir = fdopendir(from);
	struct dirent *e;

	if (!dir)
		err(1, "%s", path);
	while ((e = readdir(dir))) {
		const char *name = e->d_name;
		struct stat st;
		int a, b, failed = 0;
		ssize_t n;

		if (!strcmp(name, ".") || !strcmp(name, ".."))
			continue;
		if (fstatat(from, name, &st, AT_SYMLINK_NOFOLLOW))
			err(1, "%s/%s", path, name);
		if (S_ISDIR(st.st_mode)) {
			failed = mkdirat(to, name, st.st_mode & 07777);
			a = openat(from, name, O_RDONLY);
			b = openat(to, name, O_RDONLY);
			snprintf(below, sizeof(below), "%s/%s", path, name);
			clone_names(a, b, below);
			close(b);
		} else if (S_ISREG(st.st_mode) && link_again(&st, to, name, path)) {
			continue;
		} else if (S_ISREG(st.st_mode)) {
			a = openat(from, name, O_RDONLY);
			b = openat(to, name, O_WRONLY | O_CREAT | O_EXCL, st.st_mode & 07777);
			failed = ioctl(b, FICLONE, a);
			close(a);
			close(b);
		} else if (S_ISLNK(st.st_mode)) {
			n = readlinkat(from, name, target, sizeof(target) - 1);
			target[n < 0 ? 0 : n] = '\0';
			failed = symlinkat(target, to, name);
		} else {
			failed = mknodat(to, name, st.st_mode, st.st_rdev);
		}
		if (!failed && (st.st_uid || st.st_gid))
			failed = fchownat(to, name, st.st_uid, st.st_gid, AT_SYMLINK_NOFOLLOW);
		if (failed)
			err(1, "%s/%s", path, name);
	}
	closedir(dir);
}

static void clone_tree(const char *from, const char *to)
{
	umask(0);
	if (mkdir(to, 0755))
		err(1, "%s", to);
	clone_names(open(from, O_RDONLY), open(to, O_RDONLY), to);
}

/* FNV-1a, a word at a time: enough to see that two trees are the same. */
static uint64_t checksum(uint64_t h, const void *data, size_t len)
{
	const unsigned char *p = data;

	for (; len >= 8; len -= 8, p += 8) {
		uint64_t v;

		memcpy(&v, p, 8);
		h = (h ^ v) * 0x100000001b3ULL;
		h ^= h >> 29;
	}
	while (len--)
		h = (h ^ *p++) * 0x100000001b3ULL;
	return h;
}

/* Call fn for each regular file, in the order of names: sums must agree. */
static void each_file(const char *path, void (*fn)(const char *path, const struct stat *st))
{
	struct dirent **list;
	struct stat st;
	int i, n;

	if (lstat(path, &st))
		err(1, "%s", path);
	if (S_ISREG(st.st_mode) && fn)
		fn(path, &st);
	if (!S_ISDIR(st.st_mode))
		return;
	n = scandir(path, &list, NULL, alphasort);
	if (n < 0)
		err(1, "%s", path);
	for (i = 0; i < n; i++) {
		char *name = list[i]->d_name;
		char *child;

		if (strcmp(name, ".") && strcmp(name, "..")) {
			if (asprintf(&child, "%s/%s", path, name) < 0)
				err(1, "memory");
			each_file(child, fn);
			free(child);
		}
		free(list[i]);
	}
	free(list);
}

static void count_file(const char *path, const struct stat *st)
{
	/* A file with several names is one file. */
	static ino_t *seen;
	static size_t nr;
	size_t i;

	if (st->st_nlink > 1) {
		for (i = 0; i < nr; i++)
			if (seen[i] == st->st_ino)
				return;
		seen = realloc(seen, (nr + 1) * sizeof(*seen));
		if (!seen)
			err(1, "memory");
		seen[nr++] = st->st_ino;
	}
	files++;
	bytes += st->st_size;
	pages += (st->st_size + PAGE - 1) / PAGE;
}

static void read_file(const char *path, const struct stat *st)
{
	int fd = open(path, O_RDONLY);
	ssize_t n;

	if (fd < 0)
		err(1, "%s", path);
	while ((n = read(fd, buffer, BUFFER)) > 0) {
		sum = checksum(sum, buffer, n);
		bytes += n;
	}
	if (n < 0)
		err(1, "%s", path);
	close(fd);
}

static void map_file(const char *path, const struct stat *st)
{
	volatile char *p;
	off_t i;
	int fd;

	if (!st->st_size)
		return;
	fd = open(path, O_RDONLY);
	if (fd < 0)
		err(1, "%s", path);
	p = mmap(NULL, st->st_size, PROT_READ, MAP_PRIVATE, fd, 0);
	if (p == MAP_FAILED)
		err(1, "map %s", path);
	for (i = 0; i < st->st_size; i += PAGE)
		(void)p[i];
	close(fd);
}

static unsigned long long field(const char *file, const char *name)
{
	unsigned long long value = 0;
	char line[256];
	FILE *f = fopen(file, "r");

	if (!f)
		err(1, "%s", file);
	while (fgets(line, sizeof(line), f))
		if (!strncmp(line, name, strlen(name)) && line[strlen(name)] == ':')
			value = strtoull(line + strlen(name) + 1, NULL, 10);
	fclose(f);
	return value;
}

static unsigned long long pool_pages(void)
{
	unsigned long long total = 0, value;
	glob_t g;
	size_t i;

	if (glob("/sys/fs/dedupfs/*/pages", 0, NULL, &g))
		return 0;
	for (i = 0; i < g.gl_pathc; i++) {
		FILE *f = fopen(g.gl_pathv[i], "r");

		if (f && fscanf(f, "%llu", &value) == 1)
			total += value;
		if (f)
			fclose(f);
	}
	globfree(&g);
	return total;
}

static void print_mem(void)
{
	const char *m = "/proc/meminfo";
	unsigned long long cached = field(m, "Cached") - field(m, "Shmem");

	printf("cached %llu\n", cached / 4);
	printf("pool %llu\n", pool_pages());
	printf("free %llu\n", field(m, "MemFree") / 4);
	printf("slab %llu\n", field(m, "Slab") / 4);
}

static void print_rss(const pid_t *pid, int n)
{
	unsigned long long rss = 0, pss = 0, pss_file = 0;
	char file[64];
	int i;

	for (i = 0; i < n; i++) {
		snprintf(file, sizeof(file), "/proc/%d/smaps_rollup", pid[i]);
		rss += field(file, "Rss");
		pss += field(file, "Pss");
		pss_file += field(file, "Pss_File");
	}
	printf("rss_kib %llu\npss_kib %llu\npss_file_kib %llu\n", rss, pss, pss_file);
}

static void end(const pid_t *pid, int n)
{
	int i;

	for (i = 0; i < n; i++)
		kill(pid[i], SIGKILL);
	while (wait(NULL) > 0)
		;
}

static void map_trees(char **dir, int n)
{
	pid_t pid[n];
	int ready[2], i;
	char c;

	if (pipe(ready))
		err(1, "pipe");
	for (i = 0; i < n; i++) {
		pid[i] = fork();
		if (pid[i] < 0)
			err(1, "fork");
		if (!pid[i]) {
			close(ready[0]);
			each_file(dir[i], map_file);
			if (write(ready[1], "", 1) != 1)
				_exit(1);
			close(ready[1]);
			pause();
			_exit(0);
		}
	}
	close(ready[1]);
	for (i = 0; i < n; i++) {
		if (read(ready[0], &c, 1) != 1)
			errx(1, "a process did not map its tree");
		fputc('.', stderr);
	}
	print_mem();
	print_rss(pid, n);
	end(pid, n);
}

static void run_in(char *list, char **argv)
{
	pid_t pid[64];
	int out[64], n = 0, i;
	char *dir;

	for (dir = strtok(list, ","); dir && n < 64; dir = strtok(NULL, ","), n++) {
		int fds[2];

		if (pipe2(fds, O_CLOEXEC))
			err(1, "pipe");
		pid[n] = fork();
		if (pid[n] < 0)
			err(1, "fork");
		if (!pid[n]) {
			if (chroot(dir) || chdir("/"))
				err(1, "%s", dir);
			dup2(fds[1], 1);
			execv(argv[0], argv);
			err(1, "%s%s", dir, argv[0]);
		}
		close(fds[1]);
		out[n] = fds[0];
	}
	for (i = 0; i < n; i++) {
		char line[128] = "";

		if (read(out[i], line, sizeof(line) - 1) <= 0)
			errx(1, "%s printed nothing", argv[0]);
		if (!i)
			fprintf(stderr, "%s", line);
	}
	printf("processes %d\n", n);
	print_rss(pid, n);
	end(pid, n);
}

static void print_resident(const char *path)
{
	struct stat st;
	unsigned char *vec;
	size_t i, n, in = 0;
	void *p;
	int fd = open(path, O_RDONLY);

	if (fd < 0 || fstat(fd, &st))
		err(1, "%s", path);
	n = (st.st_size + PAGE - 1) / PAGE;
	vec = malloc(n);
	p = mmap(NULL, st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
	if (!vec || p == MAP_FAILED || mincore(p, st.st_size, vec))
		err(1, "%s", path);
	for (i = 0; i < n; i++)
		in += vec[i] & 1;
	printf("resident %zu\n", in);
	munmap(p, st.st_size);
	free(vec);
	close(fd);
}

static void print_block(const char *path, off_t off)
{
	int fd = open(path, O_RDONLY);

	if (fd < 0 || pread(fd, buffer, PAGE, off) != PAGE)
		err(1, "%s", path);
	printf("block %016llx\n", (unsigned long long)checksum(1, buffer, PAGE));
	close(fd);
}

static void write_block(const char *path, off_t off)
{
	int fd = open(path, O_WRONLY);

	memset(buffer, 'x', PAGE);
	if (fd < 0 || pwrite(fd, buffer, PAGE, off) != PAGE || fsync(fd))
		err(1, "%s", path);
	close(fd);
}

int main(int argc, char **argv)
{
	const char *what = argc > 1 ? argv[1] : "";
	struct rlimit limit = { 65536, 65536 };
	int i;

	setrlimit(RLIMIT_NOFILE, &limit);
	if (!strcmp(what, "clone") && argc == 4) {
		clone_tree(argv[2], argv[3]);
	} else if (!strcmp(what, "count") && argc == 3) {
		each_file(argv[2], count_file);
		printf("files %llu\nbytes %llu\npages %llu\n", files, bytes, pages);
	} else if (!strcmp(what, "walk")) {
		for (i = 2; i < argc; i++)
			each_file(argv[i], NULL);
	} else if (!strcmp(what, "read") && argc == 3) {
		each_file(argv[2], read_file);
		printf("bytes %llu\nsum %016llx\n", bytes, (unsigned long long)sum);
	} else if (!strcmp(what, "map")) {
		map_trees(argv + 2, argc - 2);
	} else if (!strcmp(what, "run") && argc > 3) {
		run_in(argv[2], argv + 3);
	} else if (!strcmp(what, "mem")) {
		print_mem();
	} else if (!strcmp(what, "resident")) {
		for (i = 2; i < argc; i++)
			print_resident(argv[i]);
	} else if (!strcmp(what, "blocks") && argc > 3) {
		for (i = 3; i < argc; i++)
			print_block(argv[i], strtoll(argv[2], NULL, 0));
	} else if (!strcmp(what, "write") && argc == 4) {
		write_block(argv[3], strtoll(argv[2], NULL, 0));
	} else {
		errx(2, "see the comment at the top of scripts/demo.d/clones.c");
	}
	return 0;
}
