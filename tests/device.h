/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Block devices of a test's own: device-mapper tables and loop devices, by
 * their ioctls (a program for each message would take longer than the test).
 */
#ifndef DEDUPFS_TESTS_DEVICE_H
#define DEDUPFS_TESTS_DEVICE_H

#include <linux/dm-ioctl.h>
#include <linux/loop.h>

#define SECTOR	512UL

static char below[PATH_MAX], through[PATH_MAX];	/* where a filesystem of the test's own goes */
static const char *spare;			/* an empty disk */

/* For the teardown, too, in whichever process that runs. */
__attribute__((constructor(1001)))
static void places(void)
{
	spare = getenv("DEDUPFS_SPARE");
	snprintf(below, sizeof(below), "%s/below", getcwd(NULL, 0));
	snprintf(through, sizeof(through), "%s/through", getcwd(NULL, 0));
	mkdir(below, 0755);
	mkdir(through, 0755);
}

PATHS_IN(dn, below)
PATHS_IN(th, through)

/* One line of a table; in sectors. */
struct dm_line {
	uint64_t start;
	uint64_t len;
	const char *type;
	char params[128];
};

static int dm_call(unsigned long cmd, struct dm_ioctl *io, const char *name, size_t size)
{
	int fd = open("/dev/mapper/control", O_RDWR | O_CLOEXEC), ret;

	if (fd < 0)
		return -1;
	io->version[0] = DM_VERSION_MAJOR;
	io->data_size = size;
	io->data_start = sizeof(*io);
	snprintf(io->name, sizeof(io->name), "%s", name);
	ret = ioctl(fd, cmd, io);
	close(fd);
	return ret;
}

static int dm_simple(unsigned long cmd, const char *name, unsigned int flags)
{
	struct dm_ioctl io = { .flags = flags };

	return dm_call(cmd, &io, name, sizeof(io));
}

static int dm_load(const char *name, const struct dm_line *line, unsigned int nr)
{
	size_t size = sizeof(struct dm_ioctl) + nr * (sizeof(struct dm_target_spec) + 128), at;
	struct dm_ioctl *io = calloc(1, size);
	struct dm_target_spec *spec;
	unsigned int i;
	int ret;

	at = sizeof(*io);
	for (i = 0; i < nr; i++) {
		spec = (void *)io + at;
		spec->sector_start = line[i].start;
		spec->length = line[i].len;
		snprintf(spec->target_type, sizeof(spec->target_type), "%s", line[i].type);
		strcpy((char *)(spec + 1), line[i].params);
		spec->next = sizeof(*spec) + 128;
		at += spec->next;
	}
	io->target_count = nr;
	ret = dm_call(DM_TABLE_LOAD, io, name, size);
	free(io);
	return ret;
}

/* Another table for a device in use; its filesystem is not asked to sync. */
__maybe_unused
static void dm_change(const char *name, const struct dm_line *line, unsigned int nr)
{
	if (dm_load(name, line, nr) ||
	    dm_simple(DM_DEV_SUSPEND, name, DM_SUSPEND_FLAG | DM_SKIP_LOCKFS_FLAG) ||
	    dm_simple(DM_DEV_SUSPEND, name, 0))
		die("table of %s", name);
}

/* The path of a new device. */
__maybe_unused
static char *dm_make(const char *name, const struct dm_line *line, unsigned int nr)
{
	struct dm_ioctl io = { };

	if (dm_call(DM_DEV_CREATE, &io, name, sizeof(io)))
		die("device %s", name);
	if (dm_load(name, line, nr) || dm_simple(DM_DEV_SUSPEND, name, 0))
		die("table of %s", name);
	return path_of("/dev/dm-%u", minor(io.dev));
}

/* Also where it is not there: 0 if it is gone. */
__maybe_unused static int dm_remove(const char *name)
{
	int i;

	for (i = 0; i < 100; i++) {
		if (!dm_simple(DM_DEV_REMOVE, name, 0) || errno != EBUSY)
			break;
		usleep(50000);
	}
	return dm_simple(DM_DEV_STATUS, name, 0) ? 0 : -1;
}

/* A loop device over a file, which ends with its last user; in @path. */
__maybe_unused static int loop_open(const char *file, char *path, size_t size)
{
	struct loop_info64 info = { .lo_flags = LO_FLAGS_AUTOCLEAR };
	int control, nr, fd = -1, back, tries;

	back = open(file, O_RDWR | O_CLOEXEC);
	control = open("/dev/loop-control", O_RDWR | O_CLOEXEC);
	if (back < 0 || control < 0)
		die("loop device of %s", file);
	for (tries = 0; tries < 10; tries++) {
		nr = ioctl(control, LOOP_CTL_GET_FREE);
		snprintf(path, size, "/dev/loop%d", nr);
		fd = open(path, O_RDWR | O_CLOEXEC);
		if (fd >= 0 && !ioctl(fd, LOOP_SET_FD, back) &&
		    !ioctl(fd, LOOP_SET_STATUS64, &info))
			break;
		close(fd);
		fd = -1;
	}
	if (fd < 0)
		die("loop device of %s", file);
	close(control);
	close(back);
	return fd;
}

/* Others may hold a mount for a moment (a worker that closes a file). */
__maybe_unused static int umount_soon(const char *at)
{
	int i, ret = -1;

	for (i = 0; i < 100; i++) {
		ret = umount2(at, 0);
		if (!ret || errno != EBUSY)
			break;
		usleep(50000);
	}
	return ret;
}

/* btrfs knows its devices by their filesystem's id: let it forget the unused. */
__maybe_unused static void forget_devices(void)
{
	struct btrfs_ioctl_vol_args args = { };
	int fd = open("/dev/btrfs-control", O_RDWR | O_CLOEXEC);

	if (fd >= 0) {
		ioctl(fd, BTRFS_IOC_FORGET_DEV, &args);
		close(fd);
	}
}

/* Whatever is there of a mount through, the one below it, and its mapped device (or NULL). */
__maybe_unused static void tear_down(const char *through, const char *below, const char *name)
{
	umount2(through, MNT_DETACH);
	umount_soon(below);
	umount2(below, MNT_DETACH);
	if (name)
		dm_remove(name);
	if (btrfs)
		forget_devices();
}

#endif
