// SPDX-License-Identifier: GPL-2.0-only
/*
 * Programs run from the mount: static and dynamic, with shared libraries from
 * the mount, scripts, in several clones at once; ETXTBSY as below.
 */
#include "common.h"
#include <endian.h>
#include <linux/capability.h>
#include <sys/prctl.h>

static void copy(const char *from, const char *to)
{
	if (shell("cp -L %s %s && chmod 755 %s", from, to, to))
		die("cp %s", from);
}

/* bash and all that it needs, in the working directory, and a clone of it. */
static void make_root(void)
{
	copy("/bin/busybox", "busybox");
	copy("/bin/bash", "bash");
	mkdir("lib", 0755);
	if (shell("cp -L $(ldd /bin/bash | grep -o '/[^ ]*') lib"))
		die("libraries");
	mkdir("clone", 0755);
	if (shell("cp -r --reflink=always bash busybox lib clone"))
		die("clone");
	drop_caches("3");
}

static int run(const char *fmt, ...)
{
	char cmd[1024];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(cmd, sizeof(cmd), fmt, ap);
	va_end(ap);
	return say_output(cmd);
}

#define LDSO	"lib/ld-linux-x86-64.so.2 --library-path "

static void programs(void)
{
	int i;

	make_root();
	for (i = 0; i < 2; i++) {
		run("./busybox echo static");
		run(LDSO "lib ./bash -c 'echo dynamic $((6 * 7)); [ -r bash ] && type type'");
		run("clone/" LDSO "clone/lib clone/bash -c 'echo clone; exit 3' 2>&1");
		run(LDSO "lib ./bash -c 'for i in 1 2 3; do ./busybox echo $i & done; wait' | sort");
		run("clone/busybox seq 300 | clone/busybox md5sum");
		drop_caches("3");
	}
}

TEST(programs_and_libraries)
{
	SAME(programs);
}

static void at_once(void)
{
	make_root();
	run("for i in 1 2 3; do " LDSO "lib ./bash -c 'x=0; for ((i = 0; i < 100; i++)); do ((x += i)); done; echo $x' & "
	    "clone/" LDSO "clone/lib clone/bash -c 'x=1; for ((i = 0; i < 100; i++)); do ((x += i)); done; echo $x' & done | sort");
}

TEST(several_at_once)
{
	SAME(at_once);
}

static void scripts(void)
{
	char text[PATH_MAX + 64];
	int fd;

	make_root();
	snprintf(text, sizeof(text), "#!%s/busybox sh\necho script $1\n", getcwd(NULL, 0));
	fd = open("s", O_RDWR | O_CREAT, 0755);
	write_all(fd, text, strlen(text), 0);
	close(fd);
	say("%d", shell("./s argument >out"));
	say_file("out");
	DO(chmod("s", 0644));
	say("%d", shell("./s argument 2>/dev/null"));
	DO(chmod("busybox", 0644));
	DO(execl("./busybox", "busybox", "true", NULL));
	DO(access("busybox", X_OK));
	DO(execl("./lib", "lib", NULL));
	DO(execl("./nothing", "nothing", NULL));
	make_file("junk", 5000, 1);
	DO(chmod("junk", 0755));
	DO(execl("./junk", "junk", NULL));
}

TEST(scripts_and_errors)
{
	SAME(scripts);
}

static void text_busy(void)
{
	int fd, go[2], status, n;
	pid_t pid;

	make_root();
	if (pipe(go))
		die("pipe");
	pid = fork();
	if (!pid) {
		dup2(go[0], 0);
		dup2(open("/dev/null", O_WRONLY), 1);
		close(go[1]);
		execl("./busybox", "busybox", "cat", NULL);
		_exit(127);
	}
	close(go[0]);
	/* It runs once it has taken what is in its pipe. */
	write(go[1], "x", 1);
	for (n = 1; n; usleep(1000))
		if (ioctl(go[1], FIONREAD, &n))
			break;
	/* It runs: no writing. */
	DO(open("busybox", O_RDWR));
	DO(open("busybox", O_WRONLY | O_TRUNC));
	DO(truncate("busybox", 10));
	DO(open("clone/busybox", O_RDWR));
	DO(rename("busybox", "busy"));
	DO(open("busy", O_RDWR));
	close(go[1]);
	waitpid(pid, &status, 0);
	say("it ended with %d", status);
	fd = DO(open("busy", O_RDWR));
	/* It is written to: no running. */
	DO(execl("./busy", "busybox", "true", NULL));
	close(fd);
	say("%d", shell("./busy true 2>/dev/null"));
	say_file("busy");
}

TEST(what_runs_is_busy)
{
	SAME(text_busy);
}

/* A changed clone runs changed, the other one as before. */
static void changed(void)
{
	make_root();
	run("./busybox echo one");
	run("clone/busybox echo two");
	DO(truncate("clone/busybox", 20000));
	run("(clone/busybox echo three) 2>/dev/null");
	run("./busybox echo four");
	DO(chmod("bash", 04755));
	run("sh -c 'chown 12 bash; stat -c %%a bash; cp busybox busybox2; chmod 4755 busybox2; chown 65534 busybox2; stat -c %%a busybox2'");
	DO(chmod("busybox2", 04755));
	run("./busybox2 id -u; ./busybox2 grep -i ^uid /proc/self/status");
}

TEST(changed_and_setuid_programs)
{
	SAME(changed);
}

#define AS_NOBODY	"setpriv --reuid 65534 --regid 65534 --clear-groups "

/* Programs with capabilities of their own, and such as may be run but not read. */
static void privileges(void)
{
	struct vfs_cap_data caps = {
		.magic_etc = htole32(VFS_CAP_REVISION_2 | VFS_CAP_FLAGS_EFFECTIVE),
		.data[0].permitted = htole32(1 << CAP_NET_RAW | 1 << CAP_CHOWN),
	};
	int fd;

	make_root();
	DO(setxattr("clone/busybox", "security.capability", &caps, sizeof(caps), 0));
	run(AS_NOBODY "clone/busybox grep ^Cap /proc/self/status");
	run(AS_NOBODY "./busybox grep ^Cap /proc/self/status");
	run(AS_NOBODY "clone/busybox chown 65534 bash; stat -c %%u bash");
	/* Whoever writes to it takes them away. */
	fd = DO(open("clone/busybox", O_WRONLY));
	DO(pwrite(fd, "x", 1, 100 * MiB));
	close(fd);
	run(AS_NOBODY "clone/busybox grep ^Cap /proc/self/status");
	DO(getxattr("clone/busybox", "security.capability", &caps, sizeof(caps)));

	DO(chmod("busybox", 0711));
	run(AS_NOBODY "cat busybox 2>&1");
	run(AS_NOBODY "./busybox echo it runs");
	run(AS_NOBODY "cp busybox /tmp/stolen.$$ 2>/dev/null; ls /tmp/stolen.$$ 2>/dev/null");
	run(AS_NOBODY "./busybox cat /proc/self/maps >/dev/null; ./busybox cat /proc/self/mem 2>/dev/null | head -c 1 | wc -c");
	DO(chmod("busybox", 0444));
	run(AS_NOBODY "./busybox true 2>/dev/null");
	DO(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
	DO(setxattr("clone/busybox", "security.capability", &caps, sizeof(caps), 0));
	run("clone/busybox grep ^CapE /proc/self/status");
}

TEST(capabilities_and_programs_not_to_be_read)
{
	SAME(privileges);
}

TEST_HARNESS_MAIN
