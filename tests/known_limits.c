// SPDX-License-Identifier: GPL-2.0-only
/*
 * What mappings of pooled files cannot do, and the lower filesystem's can (see
 * README.md).  Each either works, or fails in the one way that is documented;
 * it never does something else.
 */
#include "common.h"
#include <linux/userfaultfd.h>

#define SIZE	(64 * PAGE)

FIXTURE(mapping) {
	char *p;
};

FIXTURE_SETUP(mapping)
{
	make_file(low("a"), SIZE, 1);
	make_clone(low("a"), low("twin"));
	drop_caches("3");
	self->p = map_file(up("a"), SIZE, PROT_READ, MAP_PRIVATE);
	ASSERT_NE(MAP_FAILED, self->p);
	EXPECT_EQ(-1, mismatch(self->p, SIZE, 1, 0));
}

FIXTURE_TEARDOWN(mapping)
{
	unlink(low("a"));
	unlink(low("twin"));
}

/* The kernel does not extend a VM_MIXEDMAP mapping in place. */
TEST_F(mapping, growing_by_mremap)
{
	char *q = mremap(self->p, SIZE, 10 * PAGE, 0);

	ASSERT_EQ(self->p, q);
	q = mremap(self->p, 10 * PAGE, SIZE, MREMAP_MAYMOVE);
	if (q == MAP_FAILED) {
		EXPECT_EQ(ENOMEM, errno);
		EXPECT_EQ(-1, mismatch(self->p, 10 * PAGE, 1, 0));
	} else {
		EXPECT_EQ(-1, mismatch(q, SIZE, 1, 0));
	}
}

/* Nor lets it such a mapping into core dumps again. */
TEST_F(mapping, madvise_dodump)
{
	EXPECT_EQ(0, madvise(self->p, SIZE, MADV_DONTDUMP));
	if (madvise(self->p, SIZE, MADV_DODUMP))
		EXPECT_EQ(EINVAL, errno);
	EXPECT_EQ(-1, mismatch(self->p, SIZE, 1, 0));
}

/* mlock succeeds without effect: the pages may go, and come back. */
TEST_F(mapping, mlock_has_no_effect)
{
	EXPECT_EQ(0, mlock(self->p, SIZE));
	drop_caches("3");
	EXPECT_EQ(-1, mismatch(self->p, SIZE, 1, 0));
	EXPECT_EQ(0, munlock(self->p, SIZE));
}

/* Can stores to a mapping be followed by userfaultfd?  0 or errno. */
static int follow(char *p, size_t size)
{
	struct uffdio_api api = { .api = UFFD_API };
	struct uffdio_register reg = {
		.range = { (uintptr_t)p, size }, .mode = UFFDIO_REGISTER_MODE_WP,
	};
	int fd = syscall(SYS_userfaultfd, O_CLOEXEC | UFFD_USER_MODE_ONLY), err = 0;

#ifdef UFFD_FEATURE_WP_ASYNC
	api.features = UFFD_FEATURE_WP_ASYNC;
#else
	api.features = 1 << 15;
#endif
	if (fd < 0 || ioctl(fd, UFFDIO_API, &api) || ioctl(fd, UFFDIO_REGISTER, &reg))
		err = errno;
	close(fd);
	return err;
}

/* Where it is done for any file (Linux 6.7 and later), it is not for these. */
TEST_F(mapping, userfaultfd)
{
	char *below = map_file(low("a"), SIZE, PROT_READ, MAP_PRIVATE);
	int err = follow(self->p, SIZE), err_below = follow(below, SIZE);

	TH_LOG("below: %s, mount: %s", strerror(err_below), strerror(err));
	if (err)
		EXPECT_EQ(EINVAL, err);
	if (err_below)
		EXPECT_NE(0, err);
	EXPECT_EQ(-1, mismatch(self->p, SIZE, 1, 0));
}

/* The VFS goes by what a descriptor's inode was when it was last looked up. */
TEST(descriptors_of_what_was_immutable)
{
	int flags = FS_IMMUTABLE_FL, none = 0, below, fd;
	struct stat st;

	make_file(low("f"), PAGE, 1);
	fd = open(up("f"), O_RDONLY);
	below = open(low("f"), O_RDONLY);
	ASSERT_EQ(0, ioctl(below, FS_IOC_SETFLAGS, &flags));
	ASSERT_EQ(0, stat(up("f"), &st));
	ASSERT_EQ(0, ioctl(below, FS_IOC_SETFLAGS, &none));
	if (fchmod(fd, 0600))
		EXPECT_EQ(EPERM, errno);
	/* What it is looked up for is right. */
	EXPECT_EQ(0, chmod(up("f"), 0640));
	EXPECT_EQ(0, fchmod(fd, 0600));
	ASSERT_EQ(0, stat(low("f"), &st));
	EXPECT_EQ(0100600, st.st_mode);
	close(fd);
	close(below);
	unlink(low("f"));
}

/* Layers on two mounts: what is written to is copied, and not cloned. */
TEST(overlayfs_over_two_mounts)
{
	char at[] = "mnt.XXXXXX", ovl[] = "ovl.XXXXXX", *opt;
	struct fiemap_extent was[4], is[4];
	int fd;

	if (!have_pool)
		SKIP(return, "no dedupfs to test");
	ASSERT_NE(NULL, mkdtemp(at));
	ASSERT_NE(NULL, mkdtemp(ovl));
	ASSERT_EQ(0, shell("cd %s && mkdir lower second second/upper second/work", lower_dir));
	make_file(low("lower/f"), MiB, 1);
	ASSERT_EQ(0, mount(low("second"), at, "dedupfs", 0, NULL));
	if (asprintf(&opt, "lowerdir=%s,upperdir=%s/upper,workdir=%s/work", up("lower"), at, at) < 0)
		die("asprintf");
	ASSERT_EQ(0, mount("overlay", ovl, "overlay", 0, opt));
	fd = open(path_of("%s/f", ovl), O_WRONLY | O_APPEND);
	EXPECT_EQ(1, write(fd, "x", 1));
	close(fd);
	EXPECT_EQ(0, umount(ovl));
	EXPECT_EQ(0, umount(at));
	ASSERT_LE(1, fiemap(low("lower/f"), was, 4));
	ASSERT_LE(1, fiemap(low("second/upper/f"), is, 4));
	TH_LOG("%s", was[0].fe_physical == is[0].fe_physical ? "cloned" : "copied");
	EXPECT_EQ(-1, check_file(low("lower/f"), MiB, 1));
	rmdir(at);
	rmdir(ovl);
	free(opt);
}

TEST_HARNESS_MAIN
