// SPDX-License-Identifier: GPL-2.0-only
/*
 * Asynchronous I/O, by the kernel's own interfaces: io_submit() and io_uring,
 * with plain and registered buffers, buffered and direct.
 */
#include "common.h"
#include "uring.h"
#include <linux/aio_abi.h>

#define SIZE	(64 * PAGE)

static char *buf;

/* --- io_submit ------------------------------------------------------------- */

/* Results come in any order: say them in that of the requests. */
static void say_events(struct io_event *ev, int n)
{
	int i, k;

	for (k = 0; k < 8; k++) {
		for (i = 0; i < n; i++) {
			if (ev[i].data == (unsigned int)k)
				say("%d: %lld", k, (long long)ev[i].res);
		}
	}
}

static void libaio(int flags)
{
	struct iocb cb[8] = {}, *list[8];
	struct io_event ev[8];
	aio_context_t ctx = 0;
	int fd, i, n;

	fd = open("a", O_RDWR | flags);
	DO(syscall(SYS_io_setup, 8, &ctx));
	for (i = 0; i < 8; i++) {
		cb[i].aio_lio_opcode = i < 6 ? IOCB_CMD_PREAD : IOCB_CMD_PWRITE;
		cb[i].aio_fildes = fd;
		cb[i].aio_buf = (uintptr_t)(buf + i * 16 * PAGE);
		cb[i].aio_nbytes = (i + 1) * PAGE;
		cb[i].aio_offset = i == 5 ? SIZE - PAGE : i == 4 ? SIZE : i * 7 * PAGE;
		cb[i].aio_data = i;
		list[i] = &cb[i];
	}
	fill(buf + 6 * 16 * PAGE, 32 * PAGE, 9, 0);
	VAL(syscall(SYS_io_submit, ctx, 6, list));
	n = VAL(syscall(SYS_io_getevents, ctx, 6, 8, ev, NULL));
	say_events(ev, n);
	for (i = 0; i < 6; i++)
		say("%d: %lx", i, hash(buf + i * 16 * PAGE, (i + 1) * PAGE, 1));
	VAL(syscall(SYS_io_submit, ctx, 2, list + 6));
	n = VAL(syscall(SYS_io_getevents, ctx, 2, 8, ev, NULL));
	say_events(ev, n);
	memset(&cb[0], 0, sizeof(cb[0]));
	cb[0].aio_lio_opcode = IOCB_CMD_FDSYNC;
	cb[0].aio_fildes = fd;
	VAL(syscall(SYS_io_submit, ctx, 1, list));
	n = VAL(syscall(SYS_io_getevents, ctx, 1, 8, ev, NULL));
	say("%lld", (long long)ev[0].res);
	DO(syscall(SYS_io_destroy, ctx));
	close(fd);
	say_file("a");
	say_file("a.twin");
	say_file("plain");
}

static void libaio_both(void)
{
	buf = aligned_alloc(PAGE, 8 * 16 * PAGE);
	memset(buf, 0, 8 * 16 * PAGE);
	make_file("plain", SIZE, 2);
	make_pooled("a", SIZE, 1);
	libaio(0);
	drop_caches("3");
	libaio(O_DIRECT);
	drop_caches("3");
	say_file("a");
	say_file("a.twin");
}

TEST(io_submit)
{
	SAME(libaio_both);
}

/* --- io_uring --------------------------------------------------------------- */

static void uring(int flags)
{
	struct iovec fixed = { buf, 32 * PAGE }, iov[2] = { { buf, PAGE }, { buf + 8 * PAGE, 3 * PAGE } };
	struct ring r;
	int fd, async;

	if (DO(ring_start(&r)) < 0)
		return;
	DO(syscall(SYS_io_uring_register, r.fd, IORING_REGISTER_BUFFERS, &fixed, 1));
	fd = open("a", O_RDWR | flags);
	for (async = 0; async < 2; async++) {
		memset(buf, 0x11, 32 * PAGE);
		VAL(ring_do(&r, IORING_OP_READ, fd, buf, 8 * PAGE, PAGE, 0, async));
		VAL(ring_do(&r, IORING_OP_READ_FIXED, fd, buf + 8 * PAGE, 8 * PAGE, 20 * PAGE, 0, async));
		VAL(ring_do(&r, IORING_OP_READ, fd, buf + 16 * PAGE, 8 * PAGE, SIZE - PAGE, 0, async));
		VAL(ring_do(&r, IORING_OP_READ, fd, buf + 16 * PAGE, 8 * PAGE, SIZE, 0, async));
		say("%lx", hash(buf, 32 * PAGE, 1));
		VAL(ring_do(&r, IORING_OP_READV, fd, iov, 2, 30 * PAGE, 0, async));
		say("%lx", hash(buf, 32 * PAGE, 1));
		fill(buf, 32 * PAGE, 20 + async, 0);
		VAL(ring_do(&r, IORING_OP_WRITE, fd, buf, 2 * PAGE, 5 * PAGE, 0, async));
		VAL(ring_do(&r, IORING_OP_WRITE_FIXED, fd, buf + 4 * PAGE, 2 * PAGE, 9 * PAGE, 0, async));
		VAL(ring_do(&r, IORING_OP_WRITEV, fd, iov, 2, SIZE - 2 * PAGE, 0, async));
		VAL(ring_do(&r, IORING_OP_FSYNC, fd, NULL, 0, 0, 0, async));
		say_file("a");
	}
	close(fd);
	close(r.fd);
	say_file("a");
	say_file("a.twin");
}

static void uring_both(void)
{
	buf = aligned_alloc(PAGE, 32 * PAGE);
	make_pooled("a", SIZE, 1);
	uring(0);
	drop_caches("3");
	uring(O_DIRECT);
	drop_caches("3");
	say_file("a");
	say_file("a.twin");
}

TEST(io_uring)
{
	SAME(uring_both);
}

/* Registered buffers that are mappings of a file with shared blocks. */
static void registered_mapping(void)
{
	struct iovec fixed;
	struct ring r;
	int fd, out;
	char *p;

	make_pooled("a", SIZE, 1);
	make_file("b", SIZE, 2);
	if (DO(ring_start(&r)) < 0)
		return;
	p = map_file("a", SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE);
	touch(p, SIZE);
	fixed = (struct iovec) { p, SIZE };
	DO(syscall(SYS_io_uring_register, r.fd, IORING_REGISTER_BUFFERS, &fixed, 1));
	fd = open("b", O_RDONLY | O_DIRECT);
	out = open("out", O_RDWR | O_CREAT | O_DIRECT, 0644);
	VAL(ring_do(&r, IORING_OP_WRITE_FIXED, out, p, SIZE / 2, 0, 0, 0));
	VAL(ring_do(&r, IORING_OP_READ_FIXED, fd, p, SIZE / 2, 0, 0, 0));
	say("%lx", hash(p, SIZE, 1));
	say_file("out");
	say_file("a");
	say_file("a.twin");
	close(r.fd);
}

TEST(a_mapping_as_registered_buffer)
{
	SAME(registered_mapping);
}

TEST_HARNESS_MAIN
