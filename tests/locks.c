// SPDX-License-Identifier: GPL-2.0-only
/*
 * flock, POSIX and OFD locks, leases: held, refused and given back as below.
 */
#include "common.h"
#include <sys/file.h>

static struct flock range(int type, off_t start, off_t len)
{
	return (struct flock) { .l_type = type, .l_whence = SEEK_SET, .l_start = start, .l_len = len };
}

static int lock(int fd, int cmd, int type, off_t start, off_t len)
{
	struct flock l = range(type, start, len);
	int ret = fcntl(fd, cmd, &l);

	if (!ret && (cmd == F_GETLK || cmd == F_OFD_GETLK))
		say("  type %d start %ld len %ld pid %d", l.l_type, (long)l.l_start, (long)l.l_len, l.l_pid > 0);
	return ret;
}

/* In another process, whose locks conflict with ours. */
static void other(void (*f)(void))
{
	int status;

	if (!fork()) {
		f();
		_exit(0);
	}
	wait(&status);
	say("other: %d", status);
}

static void other_flock(void)
{
	int fd = open("a", O_RDWR);

	DO(flock(fd, LOCK_EX | LOCK_NB));
	DO(flock(fd, LOCK_SH | LOCK_NB));
	DO(flock(fd, LOCK_UN));
	/* Nothing to do with POSIX locks. */
	DO(lock(fd, F_SETLK, F_WRLCK, 0, 0));
}

static void flocks(void)
{
	int fd, fd2;

	make_pooled("a", 5000, 1);
	fd = open("a", O_RDONLY);
	DO(flock(fd, LOCK_SH));
	other(other_flock);
	DO(flock(fd, LOCK_EX));
	other(other_flock);
	fd2 = dup(fd);
	DO(flock(fd2, LOCK_SH));
	other(other_flock);
	close(fd);
	other(other_flock);
	close(fd2);
	other(other_flock);
	fd = open(".", O_RDONLY);
	DO(flock(fd, LOCK_EX));
	DO(flock(fd, 77));
	fd = open("a", O_PATH);
	DO(flock(fd, LOCK_SH));
}

TEST(flock_locks)
{
	SAME(flocks);
}

static void other_posix(void)
{
	int fd = open("a", O_RDWR);

	DO(lock(fd, F_GETLK, F_WRLCK, 0, 0));
	DO(lock(fd, F_SETLK, F_RDLCK, 0, 10));
	DO(lock(fd, F_SETLK, F_WRLCK, 0, 10));
	DO(lock(fd, F_SETLK, F_WRLCK, 100, 10));
	DO(lock(fd, F_OFD_SETLK, F_WRLCK, 205, 1));
	DO(flock(fd, LOCK_EX | LOCK_NB));
}

static void posix_locks(void)
{
	int fd, fd2;

	make_pooled("a", 5000, 1);
	fd = open("a", O_RDWR);
	DO(lock(fd, F_SETLK, F_RDLCK, 0, 10));
	DO(lock(fd, F_SETLK, F_WRLCK, 100, 50));
	DO(lock(fd, F_SETLK, F_WRLCK, 200, 0));
	other(other_posix);
	DO(lock(fd, F_SETLK, F_UNLCK, 110, 10));
	other(other_posix);
	DO(lock(fd, F_GETLK, F_WRLCK, 0, 0));
	DO(lock(fd, F_SETLK, F_WRLCK, -1, 5));
	DO(lock(open("a", O_RDONLY), F_SETLK, F_WRLCK, 0, 5));
	DO(lock(open("a", O_WRONLY), F_SETLK, F_RDLCK, 0, 5));
	/* Closing any descriptor of the file gives all up. */
	fd2 = open("a", O_RDONLY);
	close(fd2);
	other(other_posix);
	VAL(lockf(fd, F_TLOCK, 100));
	other(other_posix);
}

TEST(posix_record_locks)
{
	SAME(posix_locks);
}

static void ofd_locks(void)
{
	int fd, fd2;

	make_pooled("a", 5000, 1);
	fd = open("a", O_RDWR);
	fd2 = open("a", O_RDWR);
	DO(lock(fd, F_OFD_SETLK, F_WRLCK, 0, 100));
	DO(lock(fd2, F_OFD_SETLK, F_WRLCK, 50, 100));
	DO(lock(fd2, F_OFD_GETLK, F_WRLCK, 50, 100));
	DO(lock(fd2, F_SETLK, F_WRLCK, 50, 100));
	DO(lock(fd2, F_OFD_SETLK, F_WRLCK, 100, 100));
	other(other_posix);
	close(fd);
	DO(lock(fd2, F_OFD_SETLK, F_WRLCK, 0, 100));
}

TEST(ofd_record_locks)
{
	SAME(ofd_locks);
}

static void until_it_sleeps(pid_t pid)
{
	int tries;

	for (tries = 0; process_state(pid) != 'S'; tries++) {
		if (tries == 1000)
			die("process %d does not wait", pid);
		usleep(10000);
	}
}

/* A lock that is waited for comes when it is given up; a cycle is refused. */
static void waiting(void)
{
	int fd, status, go[2];
	pid_t pid;
	char c;

	make_pooled("a", 5000, 1);
	if (pipe(go))
		die("pipe");
	fd = open("a", O_RDWR);
	DO(lock(fd, F_SETLK, F_WRLCK, 0, 10));
	pid = fork();
	if (!pid) {
		fd = open("a", O_RDWR);
		lock(fd, F_SETLK, F_WRLCK, 10, 10);
		write(go[1], "x", 1);
		_exit(lock(fd, F_SETLKW, F_WRLCK, 0, 10) ? errno : 0);
	}
	read(go[0], &c, 1);
	until_it_sleeps(pid);
	DO(lock(fd, F_SETLKW, F_WRLCK, 10, 10));
	DO(lock(fd, F_SETLK, F_UNLCK, 0, 0));
	waitpid(pid, &status, 0);
	say("the other got it: %d", status);
	pid = fork();
	if (!pid) {
		alarm(1);
		flock(open("a", O_RDWR), LOCK_EX);
		_exit(0);
	}
	DO(flock(fd, LOCK_EX));
	waitpid(pid, &status, 0);
}

TEST(waiting_for_a_lock)
{
	SAME(waiting);
}

static volatile int signals;

static void on_break(int sig)
{
	signals++;
}

static void leases(void)
{
	int fd, fd2;

	make_pooled("a", 5000, 1);
	signal(SIGIO, on_break);
	fd = open("a", O_RDONLY);
	VAL(fcntl(fd, F_GETLEASE));
	DO(fcntl(fd, F_SETLEASE, F_RDLCK));
	VAL(fcntl(fd, F_GETLEASE));
	fd2 = DO(open("a", O_RDONLY));
	close(fd2);
	DO(open("a", O_WRONLY | O_NONBLOCK));
	say("signals %d", signals);
	VAL(fcntl(fd, F_GETLEASE));
	DO(fcntl(fd, F_SETLEASE, F_UNLCK));
	DO(open("a", O_WRONLY | O_NONBLOCK));
	DO(fcntl(fd, F_SETLEASE, F_RDLCK));
	make_file("b", 100, 1);
	fd = open("b", O_RDWR);
	DO(fcntl(fd, F_SETLEASE, F_WRLCK));
	VAL(fcntl(fd, F_GETLEASE));
	DO(open("b", O_RDONLY | O_NONBLOCK));
	say("signals %d", signals);
	DO(fcntl(fd, F_SETLEASE, F_UNLCK));
	fd = open(".", O_RDONLY);
	DO(fcntl(fd, F_SETLEASE, F_RDLCK));
	DO(fcntl(fd, F_SETLEASE, F_UNLCK));
	DO(fcntl(fd, F_NOTIFY, DN_CREATE));
	close(creat("new", 0644));
	say("signals %d", signals);
}

TEST(leases_and_notification)
{
	SAME(leases);
}

/* Who has a lease on one of the clones below, and keeps it, keeps no other from being read. */
TEST(a_lease_below)
{
	int ready[2], fd, status;
	pid_t holder, reader;
	double begun;
	char c;

	make_file(low("leased"), MiB, 1);
	make_clone(low("leased"), low("free"));
	drop_caches("3");
	ASSERT_EQ(0, pipe(ready));
	holder = fork();
	if (!holder) {
		signal(SIGIO, SIG_IGN);
		fd = open(low("leased"), O_RDONLY);
		c = fcntl(fd, F_SETLEASE, F_WRLCK) ? 'x' : 'o';
		if (write(ready[1], &c, 1) == 1)
			pause();
		_exit(0);
	}
	ASSERT_EQ(1, read(ready[0], &c, 1));
	ASSERT_EQ('o', c) TH_LOG("no lease");
	reader = fork();
	if (!reader)
		_exit(check_file(up("leased"), MiB, 1) != -1);
	usleep(300000);
	begun = now();
	EXPECT_EQ(-1, check_file(up("free"), MiB, 1));
	EXPECT_GT(2 * TIME_FACTOR, now() - begun);
	/* And it is read itself: through the mount nothing of it is opened below. */
	ASSERT_EQ(reader, waitpid(reader, &status, 0));
	EXPECT_EQ(0, status);
	EXPECT_GT(5 * TIME_FACTOR, now() - begun);
	kill(holder, SIGKILL);
	waitpid(holder, NULL, 0);
	close(ready[0]);
	close(ready[1]);
	unlink(low("leased"));
	unlink(low("free"));
}

TEST_HARNESS_MAIN
