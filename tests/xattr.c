// SPDX-License-Identifier: GPL-2.0-only
/*
 * Extended attributes of every namespace, their limits, and POSIX ACLs with
 * default ACLs and umask: set, read, listed, removed and refused as below.
 */
#include "common.h"
#include <linux/capability.h>
#include <sched.h>
#include <sys/prctl.h>

static void say_list(const char *path)
{
	char list[8192], *names[200], *p;
	ssize_t n = llistxattr(path, list, sizeof(list));
	int nr = 0, i, k;

	say("%s: %ld bytes of names, %s", path, (long)n, n < 0 ? errname() : "");
	for (p = list; n > 0 && p < list + n && nr < 200; p += strlen(p) + 1)
		names[nr++] = p;
	for (i = 0; i < nr; i++) {	/* sorted */
		for (k = i + 1; k < nr; k++) {
			if (strcmp(names[i], names[k]) > 0) {
				p = names[i];
				names[i] = names[k];
				names[k] = p;
			}
		}
		say("  %s", names[i]);
	}
}

static void namespaces(void)
{
	static const char * const names[] = {
		"user.a", "user.", "user", "trusted.t", "security.foo", "security.capability", "system.foo",
		"nothing.x", "", "btrfs.compression", "user.\xff\xfe", "trusted.", "security.selinux",
		"system.posix_acl_access", "trusted.overlay.opaque",
	};
	static const char * const paths[] = { "a", "d", "s", "fifo", "null" };
	unsigned int i, k;
	char buf[100];

	make_pooled("a", 5000, 1);
	mkdir("d", 0755);
	symlink("a", "s");
	mkfifo("fifo", 0644);
	mknod("null", S_IFCHR | 0666, makedev(1, 3));
	for (k = 0; k < 5; k++) {
		for (i = 0; i < sizeof(names) / sizeof(*names); i++) {
			say("%s %s", paths[k], names[i]);
			VAL(lgetxattr(paths[k], names[i], buf, 100));
			DO(lsetxattr(paths[k], names[i], "value", 5, 0));
			VAL(lgetxattr(paths[k], names[i], buf, 100));
			VAL(lgetxattr(paths[k], names[i], buf, 0));
			VAL(lgetxattr(paths[k], names[i], buf, 2));
			DO(lsetxattr(paths[k], names[i], "new", 3, XATTR_CREATE));
			DO(lsetxattr(paths[k], names[i], "newer", 5, XATTR_REPLACE));
			DO(lsetxattr(paths[k], names[i], "", 0, 0));
			VAL(lgetxattr(paths[k], names[i], buf, 100));
		}
		say_list(paths[k]);
		DO(lremovexattr(paths[k], "user.a"));
		DO(lremovexattr(paths[k], "user.a"));
		DO(lremovexattr(paths[k], "trusted.t"));
		DO(lsetxattr(paths[k], "user.b", "x", 1, XATTR_REPLACE));
		DO(lsetxattr(paths[k], "user.b", "x", 1, 77));
		say_list(paths[k]);
	}
	drop_caches("3");
	for (k = 0; k < 5; k++)
		say_list(paths[k]);
	VAL(listxattr("s", buf, 100) >= 0);
	VAL(listxattr("a", buf, 1));
}

TEST(all_namespaces)
{
	SAME(namespaces);
}

static void limits(void)
{
	char name[300], *value = malloc(70000);
	int i;

	make_file("a", 100, 1);
	memset(value, 'v', 70000);
	memset(name, 'n', 300);
	memcpy(name, "user.", 5);
	name[256] = 0;
	DO(setxattr("a", name, "x", 1, 0));
	name[255] = 0;
	DO(setxattr("a", name, "x", 1, 0));
	VAL(getxattr("a", name, value, 100));
	/* What fits depends on the lower filesystem. */
	for (i = 1; i <= 70000; i *= 3)
		DO(setxattr("a", "user.big", value, i, 0));
	DO(setxattr("a", "user.big", value, 65536, 0));
	DO(setxattr("a", "user.big", value, 65537, 0));
	VAL(getxattr("a", "user.big", value, 70000));
	for (i = 0; i < 100; i++) {
		sprintf(name, "user.many%d", i);
		if (setxattr("a", name, value, i * 10, 0))
			say("%s: %s", name, errname());
	}
	say_list("a");
	drop_caches("3");
	say_list("a");
	VAL(getxattr("a", "user.many77", value, 70000));
}

TEST(limits_of_size)
{
	SAME(limits);
}

static void privileges(void)
{
	char buf[100];

	make_file("a", 100, 1);
	make_file("own", 100, 1);
	chmod(".", 0777);
	chown("own", 65534, 65534);
	setxattr("a", "user.u", "v", 1, 0);
	setxattr("own", "trusted.t", "v", 1, 0);
	setxattr("own", "security.s", "v", 1, 0);
	if (setresgid(65534, 65534, 65534) || setresuid(65534, 65534, 65534))
		die("setuid");
	VAL(getxattr("a", "user.u", buf, 100));
	DO(setxattr("a", "user.u", "w", 1, 0));
	DO(setxattr("own", "user.u", "w", 1, 0));
	VAL(getxattr("own", "trusted.t", buf, 100));
	DO(setxattr("own", "trusted.t", "w", 1, 0));
	VAL(getxattr("own", "security.s", buf, 100));
	DO(setxattr("own", "security.s", "w", 1, 0));
	DO(setxattr("own", "security.capability", "\1\0\0\2\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0", 20, 0));
	say_list("own");
	say_list("a");
}

TEST(of_an_unprivileged_user)
{
	SAME(privileges);
}

/* --- ACLs, by the tools that people use -------------------------------------- */

static void acls(void)
{
	mkdir("d", 0775);
	make_pooled("a", 5000, 1);
	chmod(".", 0755);
	say_output("setfacl -m u:1000:rw,g:100:r,m::rw a; getfacl -cn a; stat -c %a a");
	say_output("chmod 600 a; getfacl -cn a; stat -c %a a");
	say_output("chmod 660 a; getfacl -cn a");
	say_output("setfacl -d -m u:1000:rwx,g::rx,o::--- d; getfacl -cn d");
	say_output("umask 077; touch d/f; mkdir d/sub; getfacl -cn d/f d/sub; stat -c '%a %n' d/f d/sub");
	say_output("umask 000; touch d/g; getfacl -cn d/g; stat -c %a d/g");
	say_output("setfacl -d -m u:1000:rw a 2>/dev/null");
	say_output("setfacl -x u:1000 a; getfacl -cn a");
	say_output("setfacl -b a; getfacl -cn a; stat -c %a a");
	say_output("setfacl -k d; getfacl -cn d");
	say_output("ln -s a s; setfacl -m u:7:r s; getfacl -cn a");
	say_output("cp -p a b; getfacl -cn b");
	say_output("setfacl -m u:65534:r d/f; chmod 711 d; chmod 600 d/g");
	drop_caches("3");
	say_output("getfacl -cn a d d/f d/sub b");
	if (!fork()) {
		if (setresgid(65533, 65533, 65533) || setresuid(65534, 65534, 65534))
			_exit(1);
		DO(open("d/f", O_RDONLY));
		DO(open("d/f", O_RDWR));
		DO(open("d/g", O_RDONLY));
		DO(access("d/f", R_OK));
		DO(setxattr("d/f", "system.posix_acl_access", "\2\0\0\0", 4, 0));
		DO(removexattr("d/f", "system.posix_acl_access"));
		_exit(0);
	}
	wait(NULL);
	/* Raw, and wrong ones. */
	DO(setxattr("a", "system.posix_acl_access", "junk", 4, 0));
	DO(setxattr("a", "system.posix_acl_access", "\2\0\0\0", 4, 0));
	DO(setxattr("a", "system.posix_acl_default", "\2\0\0\0", 4, 0));
	DO(removexattr("a", "system.posix_acl_access"));
	DO(removexattr("d", "system.posix_acl_default"));
	say_list("a");
	say_list("d");
	say_list("d/f");
}

TEST(posix_acls)
{
	SAME(acls);
}

/* May an unprivileged user open it?  0, or the error. */
static int opened_by_nobody(const char *path)
{
	int status;

	if (!fork()) {
		if (setresuid(65534, 65534, 65534))
			_exit(1);
		_exit(open(path, O_RDONLY) < 0 ? errno : 0);
	}
	wait(&status);
	return WEXITSTATUS(status);
}

TEST(both_sides_agree)
{
	char buf[10];

	make_file(low("a"), 100, 1);
	EXPECT_EQ(0, setxattr(up("a"), "user.up", "1", 1, 0));
	EXPECT_EQ(1, getxattr(low("a"), "user.up", buf, 10));
	EXPECT_EQ(0, setxattr(low("a"), "user.low", "22", 2, 0));
	EXPECT_EQ(2, getxattr(up("a"), "user.low", buf, 10));
	EXPECT_EQ(0, removexattr(low("a"), "user.up"));
	EXPECT_EQ(-1, getxattr(up("a"), "user.up", buf, 10));
	EXPECT_EQ(ENODATA, errno);

	/* An ACL set below is obeyed above. */
	EXPECT_EQ(0, chmod(low("a"), 0600));
	EXPECT_EQ(EACCES, opened_by_nobody(up("a")));
	EXPECT_EQ(0, shell("setfacl -m u:65534:r %s", low("a")));
	EXPECT_EQ(0, opened_by_nobody(up("a")));
	EXPECT_EQ(0, shell("setfacl -b %s", low("a")));
	EXPECT_EQ(EACCES, opened_by_nobody(up("a")));
}

/* Root of a user namespace in which only @id is known; false without such. */
static bool enter_namespace_of(unsigned int id)
{
	return !unshare(CLONE_NEWUSER) && !write_text("/proc/self/setgroups", "deny") &&
	       !write_text("/proc/self/uid_map", path_of("0 %u 1", id)) &&
	       !write_text("/proc/self/gid_map", path_of("0 %u 1", id));
}

/* Who owned a file when he opened it, and owns it no more. */
static int set_capability(const char *path, bool *changed)
{
	struct vfs_cap_data cap = { .magic_etc = VFS_CAP_REVISION_2 };
	int fd;

	if (setresgid(1000, 1000, 1000) || setresuid(1000, 1000, 1000) ||
	    prctl(PR_SET_DUMPABLE, 1) || !enter_namespace_of(1000))
		return -1;
	fd = open(path, O_RDWR);
	if (fd < 0)
		return -2;
	*changed = false;
	while (!*(volatile bool *)changed)
		usleep(1000);
	return fsetxattr(fd, "security.capability", &cap, sizeof(cap), 0) ? errno : 0;
}

TEST(a_capability_by_who_owned_the_file)
{
	bool *changed = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	int status, side, result[2];
	pid_t pid;

	for (side = 0; side < 2; side++) {
		make_file(low("f"), 100, 1);
		ASSERT_EQ(0, chown(low("f"), 1000, 1000));
		ASSERT_EQ(0, chmod(low("."), 0755));
		*changed = true;
		pid = fork();
		if (!pid)
			_exit(set_capability(side ? up("f") : low("f"), changed));
		while (*(volatile bool *)changed && !waitpid(pid, &status, WNOHANG))
			usleep(1000);
		if (*changed)
			SKIP(return, "no user namespaces");
		ASSERT_EQ(0, chown(low("f"), 0, 0));
		*changed = true;
		ASSERT_EQ(pid, waitpid(pid, &status, 0));
		result[side] = WEXITSTATUS(status);
		EXPECT_EQ(-1, getxattr(low("f"), "security.capability", NULL, 0));
		unlink(low("f"));
	}
	EXPECT_EQ(EPERM, result[0]);
	EXPECT_EQ(result[0], result[1]);
}

TEST_HARNESS_MAIN
