// SPDX-License-Identifier: GPL-2.0-only
/*
 * Programs that confine themselves to paths (Landlock): what their rules allow
 * they may do on the mount, and what they do not allow is denied, as below.
 */
#include "common.h"
#include <linux/landlock.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#define READS	(LANDLOCK_ACCESS_FS_READ_FILE | LANDLOCK_ACCESS_FS_READ_DIR)
#define ALL	(READS | LANDLOCK_ACCESS_FS_WRITE_FILE)

static int may(int rules, const char *path, uint64_t access)
{
	struct landlock_path_beneath_attr rule = {
		.allowed_access = access,
		.parent_fd = open(path, O_PATH | O_CLOEXEC),
	};
	int ret = syscall(SYS_landlock_add_rule, rules, LANDLOCK_RULE_PATH_BENEATH, &rule, 0);

	close(rule.parent_fd);
	return ret;
}

static int new_rules(void)
{
	struct landlock_ruleset_attr attr = { .handled_access_fs = ALL };

	return syscall(SYS_landlock_create_ruleset, &attr, sizeof(attr), 0);
}

static void confine(int rules)
{
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) ||
	    syscall(SYS_landlock_restrict_self, rules, 0))
		die("landlock");
	close(rules);
}

static void use(const char *dir)
{
	static char buf[PAGE] __attribute__((aligned(PAGE)));
	const char *a = strdup(path_of("%s/a", dir)), *new = strdup(path_of("%s/new", dir));
	int fd;

	say("%s", dir);
	DO(open(dir, O_RDONLY | O_DIRECTORY));
	fd = DO(open(a, O_RDONLY));
	VAL(pread(fd, buf, 10, 5000));
	DO(fsync(fd));
	fd = DO(open(a, O_RDWR));
	VAL(pwrite(fd, "x", 1, 9000));
	DO(ftruncate(fd, 30000));
	DO(fallocate(fd, 0, 0, 50000));
	fd = DO(open(a, O_RDONLY | O_DIRECT));
	VAL(pread(fd, buf, PAGE, 0));
	fd = DO(open(a, O_RDWR));
	DO(mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0));
	fd = DO(open(new, O_RDWR | O_CREAT, 0644));
	VAL(write(fd, "new", 3));
	DO(rename(new, path_of("%s/renamed", dir)));
	DO(unlink(path_of("%s/renamed", dir)));
}

static void confined(void)
{
	int rules;

	mkdir("all", 0755);
	mkdir("reads", 0755);
	mkdir("none", 0755);
	make_pooled("all/a", 5 * PAGE, 1);
	make_pooled("reads/a", 5 * PAGE, 2);
	make_pooled("none/a", 5 * PAGE, 3);
	rules = new_rules();
	if (rules < 0 || may(rules, "all", ALL) || may(rules, "reads", READS))
		die("landlock");
	confine(rules);
	use("all");
	use("reads");
	use("none");
	use("reads/../all");
}

TEST(by_path)
{
	int rules = new_rules();

	if (rules < 0)
		SKIP(return, "this kernel has no Landlock");
	close(rules);
	SAME(confined);
}

/* Not so: a file without a name (README, limits).  Denied, or right; nothing else. */
TEST(tmpfile_is_denied)
{
	int rules = new_rules(), status, below;
	pid_t pid;

	if (rules < 0)
		SKIP(return, "this kernel has no Landlock");
	ASSERT_EQ(0, may(rules, lower_dir, ALL));
	ASSERT_EQ(0, may(rules, upper_dir, ALL));
	pid = fork();
	if (!pid) {
		confine(rules);
		below = open(lower_dir, O_TMPFILE | O_RDWR, 0644);
		if (open(upper_dir, O_TMPFILE | O_RDWR, 0644) < 0 && errno != EACCES)
			_exit(2);
		_exit(below < 0);
	}
	waitpid(pid, &status, 0);
	EXPECT_EQ(0, status);
	close(rules);
}

TEST_HARNESS_MAIN
