// SPDX-License-Identifier: GPL-2.0-only
/*
 * An overlayfs whose layers lie on the mount, over what it was left with by an
 * earlier one, and with files that have other names than it knows: as with
 * layers on the lower filesystem.  (tests/mount_options.c has the rest.)
 */
#include "common.h"

static bool origin_known_below;

static void overlay(void)
{
	DO(mkdir("lower", 0755));
	DO(mkdir("upper", 0755));
	DO(mkdir("work", 0755));
	DO(mkdir("ovl", 0755));
	make_pooled("lower/f", 70000, 1);
	make_pooled("lower/g", 5000, 2);
}

static void mount_overlay(void)
{
	DO(mount("overlay", "ovl", "overlay", 0, "lowerdir=lower,upperdir=upper,workdir=work"));
}

static void say_stat(const char *path)
{
	struct stat st = {};

	DO(stat(path, &st));
	say("%s: %lld bytes, %lu links", path, (long long)st.st_size, (unsigned long)st.st_nlink);
}

static void append(const char *path)
{
	int fd = DO(open(path, O_WRONLY | O_APPEND));

	DO(write(fd, "more", 4));
	close(fd);
}

/* What was copied up before has its origin in the layer below: it is told by a handle. */
static void copied_up_before(void)
{
	struct stat st;
	int i;

	overlay();
	mount_overlay();
	append("ovl/f");
	append("ovl/g");
	DO(umount("ovl"));
	drop_caches("3");
	if (origin_known_below && dut && stat(low("dut/lower/f"), &st))
		die("stat");
	mount_overlay();
	for (i = 0; i < 3; i++) {
		say_stat("ovl/f");
		say_file("ovl/f");
		append("ovl/f");
	}
	/* A directory read, and then names of it. */
	DO(shell("ls -l ovl >list && rm list"));
	say_file("ovl/g");
	append("ovl/g");
	DO(rename("ovl/g", "ovl/h"));
	say_file("ovl/h");
	DO(unlink("ovl/h"));
	DO(umount("ovl"));
	say_file("lower/f");
	say_file("upper/f");
}

TEST(what_was_copied_up_before)
{
	origin_known_below = false;
	SAME(copied_up_before);
}

TEST(what_was_copied_up_and_is_known_below)
{
	origin_known_below = true;
	SAME(copied_up_before);
}

/* It knows an inode by the name that it met first. */
static void other_names(void)
{
	int i;

	overlay();
	mount_overlay();
	make_file("ovl/a", 5000, 3);
	DO(link("ovl/a", "ovl/b"));
	DO(link("ovl/a", "ovl/c"));
	say_stat("ovl/b");
	DO(unlink("ovl/a"));
	for (i = 0; i < 2; i++) {
		say_stat("ovl/b");
		say_file("ovl/c");
	}
	append("ovl/b");
	DO(unlink("ovl/b"));
	say_file("ovl/c");
	DO(rename("ovl/c", "ovl/d"));
	say_file("ovl/d");
	DO(chmod("ovl/d", 0600));
	DO(unlink("ovl/d"));
	DO(umount("ovl"));
}

TEST(other_names_than_the_first)
{
	SAME(other_names);
}

/* As a package manager replaces a program that runs. */
static void replaced_in_use(void)
{
	char page[PAGE];
	int fd, i;

	overlay();
	mount_overlay();
	make_file("ovl/foo", 5000, 4);
	fd = DO(open("ovl/foo", O_RDONLY));
	make_file("ovl/foo.new", 6000, 5);
	DO(link("ovl/foo", "ovl/foo.tmp"));
	DO(rename("ovl/foo.new", "ovl/foo"));
	for (i = 0; i < 2; i++) {
		say_stat("ovl/foo.tmp");
		say_file("ovl/foo");
	}
	DO(unlink("ovl/foo.tmp"));
	DO(pread(fd, page, PAGE, 0));
	say("%ld", mismatch(page, PAGE, 4, 0));
	close(fd);
	say_file("ovl/foo");
	DO(umount("ovl"));
	say_file("upper/foo");
}

TEST(replaced_while_it_is_used)
{
	SAME(replaced_in_use);
}

static void from_a_nameless_one(void)
{
	int fd, i;

	overlay();
	mount_overlay();
	fd = open("ovl", O_TMPFILE | O_RDWR, 0644);
	if (fd < 0) {
		say("O_TMPFILE: %s", errname());
		DO(umount("ovl"));
		return;
	}
	DO(write(fd, "something", 9));
	DO(linkat(AT_FDCWD, path_of("/proc/self/fd/%d", fd), AT_FDCWD, "ovl/named",
		  AT_SYMLINK_FOLLOW));
	for (i = 0; i < 3; i++) {
		say_stat("ovl/named");
		say_file("ovl/named");
	}
	append("ovl/named");
	DO(unlink("ovl/named"));
	close(fd);
	DO(umount("ovl"));
}

TEST(made_without_a_name)
{
	SAME(from_a_nameless_one);
}

TEST_HARNESS_MAIN
