// SPDX-License-Identifier: GPL-2.0-only
/*
 * Names: create, remove, link, rename, unlinked and nameless files.  Each
 * call's result and what the tree then looks like are as below.
 */
#include "common.h"
#include <linux/openat2.h>

#define WHITEOUT	(1 << 2)	/* RENAME_WHITEOUT */
#define EXCHANGE	(1 << 1)
#define NOREPLACE	(1 << 0)

static int by_name(const struct dirent **a, const struct dirent **b)
{
	return strcmp((*a)->d_name, (*b)->d_name);
}

/* The whole tree, with what stat(2) shows of each file. */
static void say_tree(const char *dir)
{
	struct dirent **list;
	int i, n = scandir(dir, &list, NULL, by_name);
	char path[PATH_MAX + 300], target[256];
	struct stat st;
	ssize_t len;

	for (i = 0; i < n; i++) {
		if (list[i]->d_name[0] == '.' && strlen(list[i]->d_name) < 3)
			continue;
		snprintf(path, sizeof(path), "%s/%s", dir, list[i]->d_name);
		if (lstat(path, &st)) {
			say("%s: %s", path, errname());
			continue;
		}
		len = readlink(path, target, sizeof(target));
		say("%s type %d mode %o nlink %lu uid %d gid %d size %ld rdev %lx %.*s", path, list[i]->d_type,
		    st.st_mode, S_ISDIR(st.st_mode) ? 0 : (long)st.st_nlink, st.st_uid, st.st_gid,
		    S_ISDIR(st.st_mode) ? 0 : (long)st.st_size, st.st_rdev, len > 0 ? (int)len : 0, target);
		if (S_ISDIR(st.st_mode))
			say_tree(path);
	}
}

static void creates(void)
{
	DO(open("a", O_RDWR | O_CREAT | O_EXCL, 0640));
	DO(open("a", O_RDWR | O_CREAT | O_EXCL, 0640));
	DO(open("a", O_RDWR | O_CREAT, 0600));
	DO(creat("b", 06755));
	umask(077);
	DO(creat("c", 0777));
	umask(0);
	DO(mkdir("d", 01777));
	DO(mkdir("d", 0755));
	DO(mkdir("d/e/f", 0755));
	DO(mkdir("d/e", 02755));
	DO(mkdir("d/e/f", 0755));
	DO(creat("a/b", 0644));
	DO(open("nothing", O_RDONLY));
	DO(open("d", O_RDWR));
	DO(open("d", O_RDONLY | O_CREAT, 0644));
	DO(open("d/", O_RDWR | O_CREAT, 0644));
	DO(open("new/", O_RDWR | O_CREAT, 0644));
	DO(open("a", O_RDONLY | O_DIRECTORY));
	DO(open("a", O_PATH));
	DO(mknod("fifo", S_IFIFO | 0600, 0));
	DO(mknod("null", S_IFCHR | 0666, makedev(1, 3)));
	DO(mknod("block", S_IFBLK | 0600, makedev(7, 200)));
	DO(mknod("socket", S_IFSOCK | 0755, 0));
	DO(mknod("file", S_IFREG | 0444, 0));
	DO(mknod("dir", S_IFDIR | 0755, 0));
	DO(mknod("null", S_IFCHR | 0666, makedev(1, 3)));
	DO(open("null", O_RDWR));
	VAL(write(open("null", O_RDWR), "x", 1));
	DO(open("block", O_RDONLY));
	DO(open("socket", O_RDONLY));
	DO(open("fifo", O_WRONLY | O_NONBLOCK));
	DO(symlink("a", "link"));
	DO(symlink("d/e", "dirlink"));
	DO(symlink("nothing", "dangling"));
	DO(symlink("loop", "loop"));
	DO(symlink("", "empty"));
	DO(symlink("a", "link"));
	DO(open("link", O_RDONLY));
	DO(open("link", O_RDONLY | O_NOFOLLOW));
	DO(open("dangling", O_RDONLY));
	DO(open("dangling", O_RDWR | O_CREAT | O_EXCL, 0644));
	DO(open("dangling", O_RDWR | O_CREAT, 0644));
	DO(open("loop", O_RDONLY));
	DO(access("dirlink/f", F_OK));
	VAL(readlink("a", (char[10]) {}, 10));
	VAL(readlink("link", (char[1]) {}, 1));
	say_tree(".");
}

TEST(create)
{
	SAME(creates);
}

static void names(void)
{
	char name[300], path[5000];
	int i;

	memset(name, 'n', 299);
	name[256] = 0;
	DO(creat(name, 0644));
	name[255] = 0;
	DO(creat(name, 0644));
	DO(access(name, F_OK));
	DO(unlink(name));
	DO(creat("with\nnewline", 0644));
	DO(creat("\xff\xfe bytes", 0644));
	DO(creat("", 0644));
	DO(mkdir(".", 0755));
	DO(mkdir("..", 0755));
	DO(rmdir("."));
	DO(access("\xff\xfe bytes", F_OK));
	DO(access("with\nnewline/", F_OK));
	memset(path, 'x', sizeof(path));
	for (i = 100; i < 5000; i += 100)
		path[i] = '/';
	path[4999] = 0;
	DO(creat(path, 0644));
	memset(path, '.', 4000);
	memset(path, '/', 2);
	DO(chdir("/"));
}

TEST(odd_names)
{
	SAME(names);
}

static void links(void)
{
	struct stat st;
	int fd, i;
	char name[16];

	make_file("a", 5000, 1);
	DO(link("a", "b"));
	DO(link("a", "b"));
	mkdir("d", 0755);
	DO(link("a", "d/c"));
	DO(link("d", "e"));
	DO(link("nothing", "f"));
	symlink("a", "s");
	DO(link("s", "s2"));
	DO(linkat(AT_FDCWD, "s", AT_FDCWD, "s3", AT_SYMLINK_FOLLOW));
	DO(link("a", "/proc/x"));
	say_tree(".");
	/* One inode by every name. */
	stat("a", &st);
	for (i = 0; i < 3; i++) {
		static const char * const n[] = { "b", "d/c", "s3" };
		struct stat st2;

		stat(n[i], &st2);
		say("same %d", st2.st_ino == st.st_ino && st2.st_dev == st.st_dev);
	}
	fd = open("b", O_RDWR);
	pwrite(fd, "changed", 7, 0);
	say_file("a");
	say_file("d/c");
	DO(chmod("d/c", 0600));
	say_file("a");
	DO(unlink("a"));
	DO(unlink("d/c"));
	say_tree(".");
	fstat(fd, &st);
	say("nlink %ld", (long)st.st_nlink);
	for (i = 0; i < 20; i++) {
		sprintf(name, "l%d", i);
		link("b", name);
	}
	say_tree(".");
}

TEST(hard_links)
{
	SAME(links);
}

static void removes(void)
{
	mkdir("d", 0755);
	make_file("d/a", 10, 1);
	DO(rmdir("d"));
	DO(unlink("d"));
	DO(rmdir("d/a"));
	DO(unlink("d/a"));
	DO(unlink("d/a"));
	DO(rmdir("d"));
	DO(rmdir("d"));
	DO(unlinkat(AT_FDCWD, "nothing", 0));
	symlink("x", "s");
	DO(rmdir("s"));
	DO(unlink("s"));
	mkdir("e", 0755);
	DO(unlinkat(AT_FDCWD, "e", AT_REMOVEDIR));
	/* The working directory itself. */
	mkdir("w", 0755);
	if (chdir("w"))
		die("chdir");
	DO(rmdir("../w"));
	DO(creat("x", 0644));
	DO(mkdir("y", 0755));
	DO(access(".", F_OK));
	DO(open(".", O_RDONLY));
	DO(chdir(".."));
	say_tree(".");
}

TEST(removing)
{
	SAME(removes);
}

static int ren(const char *from, const char *to, unsigned int flags)
{
	return syscall(SYS_renameat2, AT_FDCWD, from, AT_FDCWD, to, flags);
}

static void renames(void)
{
	int fd;

	make_pooled("a", 5000, 1);
	make_file("b", 6000, 2);
	mkdir("d", 0755);
	mkdir("d/sub", 0755);
	mkdir("e", 0755);
	make_file("d/in", 10, 3);
	symlink("a", "s");
	fd = open("b", O_RDWR);
	DO(rename("a", "c"));
	DO(rename("c", "b"));
	say_file("b");
	pwrite(fd, "x", 1, 0);
	say_file("b");
	DO(rename("nothing", "b"));
	DO(rename("b", "d"));
	DO(rename("d", "b"));
	DO(rename("e", "d"));
	DO(rename("d", "e"));
	DO(rename("e", "e/sub/x"));
	DO(rename("e", "e"));
	DO(rename("e/in", "in"));
	DO(rename("e/sub", "sub"));
	DO(rename("s", "s2"));
	DO(rename("b", "b"));
	DO(rename("b", "nodir/b"));
	DO(rename(".", "x"));
	DO(rename("b", "/proc/x"));
	link("b", "hard");
	DO(rename("b", "hard"));
	say_tree(".");
	DO(ren("in", "b", NOREPLACE));
	DO(ren("in", "in2", NOREPLACE));
	DO(ren("in2", "b", EXCHANGE));
	say_file("b");
	say_file("in2");
	DO(ren("b", "e", EXCHANGE));
	DO(ren("b", "nothing", EXCHANGE));
	DO(ren("b", "e/x", EXCHANGE));
	DO(ren("e", "in2", EXCHANGE | NOREPLACE));
	say_tree(".");
	DO(ren("in2", "white", WHITEOUT));
	DO(ren("in2", "white", WHITEOUT | EXCHANGE));
	DO(ren("hard", "white", 0x80));
	say_tree(".");
	say_file("white");
}

TEST(rename_with_all_flags)
{
	SAME(renames);
}

static void nameless(void)
{
	char path[64];
	struct stat st;
	int fd;

	fd = DO(open(".", O_TMPFILE | O_RDWR, 0644));
	if (fd < 0)
		return;
	VAL(write(fd, "hello", 5));
	fstat(fd, &st);
	say("nlink %ld mode %o size %ld", (long)st.st_nlink, st.st_mode, (long)st.st_size);
	say_tree(".");
	sprintf(path, "/proc/self/fd/%d", fd);
	DO(linkat(AT_FDCWD, path, AT_FDCWD, "linked", AT_SYMLINK_FOLLOW));
	DO(linkat(fd, "", AT_FDCWD, "linked2", AT_EMPTY_PATH));
	say_tree(".");
	say_file("linked");
	VAL(write(fd, " world", 6));
	say_file("linked");
	close(fd);
	fd = DO(open(".", O_TMPFILE | O_RDWR | O_EXCL, 0644));
	sprintf(path, "/proc/self/fd/%d", fd);
	DO(linkat(AT_FDCWD, path, AT_FDCWD, "no", AT_SYMLINK_FOLLOW));
	DO(open(".", O_TMPFILE | O_RDONLY, 0644));
	DO(open("linked", O_TMPFILE | O_RDWR, 0644));
	/* A nameless file that becomes a clone, mapped before. */
	make_pooled("a", 9000, 1);
	{
		char *p = mmap(NULL, 3 * PAGE, PROT_READ, MAP_SHARED, fd, 0);

		DO(ioctl(fd, FICLONE, open("a", O_RDONLY)));
		say("%lx", hash(p, 9000, 1));
	}
	fstat(fd, &st);
	say("size %ld", (long)st.st_size);
}

TEST(nameless_files)
{
	SAME(nameless);
}

static void unlinked(void)
{
	char buf[PAGE], path[64];
	struct stat st;
	int fd, fd2;

	make_pooled("a", 9000, 1);
	fd = open("a", O_RDWR);
	DO(unlink("a"));
	DO(unlink("a.twin"));
	DO(access("a", F_OK));
	make_file("a", 100, 2);
	VAL(pread(fd, buf, PAGE, PAGE));
	say("%lx", hash(buf, PAGE, 1));
	VAL(pwrite(fd, "x", 1, 5));
	VAL(pread(fd, buf, PAGE, 0));
	say("%lx", hash(buf, PAGE, 1));
	fstat(fd, &st);
	say("nlink %ld size %ld", (long)st.st_nlink, (long)st.st_size);
	drop_caches("3");
	VAL(pread(fd, buf, PAGE, 0));
	say("%lx", hash(buf, PAGE, 1));
	sprintf(path, "/proc/self/fd/%d", fd);
	fd2 = DO(open(path, O_RDWR));
	DO(ftruncate(fd2, 20000));
	DO(fchmod(fd2, 0600));
	DO(fsetxattr(fd2, "user.x", "y", 1, 0));
	fstat(fd, &st);
	say("mode %o size %ld", st.st_mode, (long)st.st_size);
	DO(linkat(AT_FDCWD, path, AT_FDCWD, "back", AT_SYMLINK_FOLLOW));
	say_file("a");
	/* A directory, removed while open. */
	mkdir("d", 0755);
	fd = open("d", O_RDONLY);
	DO(rmdir("d"));
	DO(openat(fd, "x", O_RDWR | O_CREAT, 0644));
	fstat(fd, &st);
	say("nlink %ld", (long)st.st_nlink);
	DO(fchmod(fd, 0700));
}

TEST(unlinked_and_open)
{
	SAME(unlinked);
}

static void lookups(void)
{
	struct open_how how = { .flags = O_RDONLY };
	int dir;

	mkdir("d", 0755);
	mkdir("d/e", 0755);
	make_file("d/e/f", 10, 1);
	symlink("../..", "d/e/up");
	DO(access("d/e/up/d/e/f", F_OK));
	DO(access("d/e/f/", F_OK));
	DO(access("d/e/f/x", F_OK));
	DO(access("d/../d/./e//f", F_OK));
	DO(access("d/nothing/../e", F_OK));
	DO(access("d/nothing", F_OK));
	DO(creat("d/nothing", 0644));
	DO(access("d/nothing", F_OK));
	dir = open("d", O_RDONLY);
	DO(openat(dir, "e/f", O_RDONLY));
	how.resolve = RESOLVE_BENEATH;
	DO(syscall(SYS_openat2, dir, "e/f", &how, sizeof(how)));
	DO(syscall(SYS_openat2, dir, "e/up/d", &how, sizeof(how)));
	how.resolve = RESOLVE_NO_SYMLINKS;
	DO(syscall(SYS_openat2, dir, "e/up", &how, sizeof(how)));
	how.resolve = RESOLVE_NO_XDEV;
	DO(syscall(SYS_openat2, dir, "e/f", &how, sizeof(how)));
	how.resolve = RESOLVE_CACHED;
	DO(syscall(SYS_openat2, dir, "e/f", &how, sizeof(how)));
	how.resolve = RESOLVE_IN_ROOT;
	DO(syscall(SYS_openat2, dir, "/e/f", &how, sizeof(how)));
	DO(faccessat(dir, "e", W_OK, AT_EACCESS));
	drop_caches("2");
	DO(access("d/e/f", F_OK));
	DO(access("d/e/g", F_OK));
	say_tree(".");
}

TEST(lookup)
{
	SAME(lookups);
}

/* Many processes in one directory. */
static void crowd(void)
{
	int i, k, status;
	char name[32], to[32];

	for (k = 0; k < 4; k++) {
		if (fork())
			continue;
		for (i = 0; i < 60; i++) {
			sprintf(name, "f%d", (i * 7 + k) % 20);
			sprintf(to, "f%d", (i * 11 + k) % 20);
			switch ((i + k) % 5) {
			case 0:
			case 1:
				close(open(name, O_RDWR | O_CREAT, 0644));
				break;
			case 2:
				unlink(name);
				break;
			case 3:
				rename(name, to);
				break;
			case 4:
				link(name, to);
				break;
			}
		}
		_exit(0);
	}
	while (wait(&status) > 0)
		say("%d", status);
	/* What is left differs by timing; it must agree with itself. */
	for (i = 0; i < 20; i++) {
		sprintf(name, "f%d", i);
		if (!access(name, F_OK) && unlink(name))
			say("%s: %s", name, errname());
	}
	say_tree(".");
}

TEST(several_processes)
{
	SAME(crowd);
}

TEST_HARNESS_MAIN
