# dedupfs: build, install, test.  `make help` lists what there is.
#
# The module is built out of tree, in build/KVER, so that builds for several
# kernels live side by side.  That directory holds links to src/*.c, the
# result of the compile probes (include/compat-config.h), and the objects.

top := $(CURDIR)
version := $(shell sed -n 's/^PACKAGE_VERSION="\(.*\)"/\1/p' dkms.conf)

# Which kernel: KDIR=headers, or KVER=release; else the running one where its
# headers are there; else the newest whose headers are.
no_headers :=
asked := $(KVER)$(KDIR)
ifneq ($(KDIR),)
  override KDIR := $(abspath $(KDIR))
  KVER ?= $(shell sed -n 's/^\#define UTS_RELEASE "\(.*\)"/\1/p' \
	    $(KDIR)/include/generated/utsrelease.h 2>/dev/null)
endif
ifeq ($(KVER),)
  KVER := $(shell uname -r)
  ifeq ($(wildcard /lib/modules/$(KVER)/build/Makefile),)
    no_headers := $(KVER)
    KVER := $(notdir $(patsubst %/build/Makefile,%,$(lastword \
	      $(shell ls -d /lib/modules/*/build/Makefile 2>/dev/null | sort -V))))
  endif
endif
KDIR ?= /lib/modules/$(KVER)/build

# The kernel headers know their compiler; only `make CC=...` overrides it.
ifneq ($(origin CC),command line)
  CC :=
endif

out := $(top)/build/$(KVER)
jobs = $(if $(findstring jobserver,$(MAKEFLAGS))$(filter -j%,$(MAKEFLAGS)),,-j$(shell nproc))
kbuild = $(MAKE) $(jobs) --no-print-directory -C $(KDIR) M=$(out) DEDUPFS_TOP=$(top) DEDUPFS_VERSION=$(version)

.DEFAULT_GOAL := modules
.PHONY: modules prepare prepare-locked running-headers install uninstall dkms-install dkms-remove setup \
	check check-debug torture mutants tests style demo bench clean distclean help

modules: prepare
	+@flock $(out)/.lock $(kbuild) modules

# The links, and the probes.
prepare:
	$(if $(no_headers),@echo "dedupfs: no headers for the running kernel $(no_headers); building for $(or $(KVER),none)")
	@test -e "$(KDIR)/Makefile" || { \
	  echo "dedupfs: no kernel headers in $(KDIR);" \
	       "install linux-headers-$(KVER), or give KDIR= or KVER=" >&2; exit 1; }
	@mkdir -p $(out)/include
	+@flock $(out)/.lock $(MAKE) --no-print-directory prepare-locked

# Others may build for the same kernel.
prepare-locked:
	@find $(out) -maxdepth 1 -type l ! -exec test -e {} \; -delete
	@ln -sf $(top)/src/*.c $(top)/Kbuild $(out)/
	@scripts/probe $(KDIR) $(out) CC="$(CC)" $(foreach v,LLVM ARCH CROSS_COMPILE,$(if $($(v)),$(v)=$($(v))))

install: running-headers modules
	install -D -m 644 $(out)/dedupfs.ko $(DESTDIR)/lib/modules/$(KVER)/updates/dedupfs.ko
	$(if $(DESTDIR),,depmod $(KVER))

uninstall:
	rm -f $(DESTDIR)/lib/modules/$(KVER)/updates/dedupfs.ko
	$(if $(DESTDIR),,depmod $(KVER))

# What is built for another kernel is no use to install on this one, if nobody asked for it.
running-headers:
	$(if $(no_headers),@echo "dedupfs: no headers for the running kernel:" \
		"apt install linux-headers-$(no_headers); or reboot into the newest kernel; or give KVER=" >&2; exit 1)

# DKMS rebuilds the module when a kernel is installed.  Only the sources go
# to /usr/src, not build/.
# dkms reads the output of a make of its own, so it must not know of this one.
# Kernels that are there already get it now: they may be booted next.
# DKMS_ROOT: a directory to do all of it in, instead of this machine's (a trial).
dkms_src = $(DKMS_ROOT)/usr/src/dedupfs-$(version)
dkms = env -u MAKEFLAGS -u MAKELEVEL -u MFLAGS dkms
dkms += $(if $(DKMS_ROOT),--dkmstree $(DKMS_ROOT)/var/lib/dkms --sourcetree $(DKMS_ROOT)/usr/src \
	--installtree $(DKMS_ROOT)/lib/modules)
other_kernels = $(if $(DKMS_ROOT),,$(filter-out $(KVER),$(foreach k,$(notdir $(wildcard /lib/modules/*)), \
	$(if $(wildcard /lib/modules/$(k)/build/Makefile),$(if $(wildcard /lib/modules/$(k)/kernel),$(k))))))
# All that are there: this version may be another than what was installed.
dkms_versions = $(patsubst dedupfs-%,%,$(notdir $(wildcard $(DKMS_ROOT)/usr/src/dedupfs-*)))

# $(1): versions that are taken away, with their sources.
dkms_drop = for v in $(1); do $(dkms) remove dedupfs/$$v --all && \
	rm -rf $(DKMS_ROOT)/usr/src/dedupfs-$$v || exit 1; done

# (That it builds is seen before anything is taken away.)
dkms-install: running-headers modules
	@command -v dkms >/dev/null || { echo "dedupfs: install dkms first" >&2; exit 1; }
	$(if $(DKMS_ROOT),@mkdir -p $(DKMS_ROOT)/var/lib/dkms $(DKMS_ROOT)/lib/modules/$(KVER))
	@$(dkms) remove dedupfs/$(version) --all >/dev/null 2>&1 || true
	rm -rf $(dkms_src)
	mkdir -p $(dkms_src)
	cp -a --no-preserve=ownership Makefile Kbuild dkms.conf include src $(dkms_src)/
	mkdir $(dkms_src)/scripts
	cp -a --no-preserve=ownership scripts/probe scripts/probes $(dkms_src)/scripts/
	chmod -R go-w $(dkms_src)
	$(dkms) add dedupfs/$(version)
	$(dkms) build dedupfs/$(version) -k $(KVER)
	$(dkms) install dedupfs/$(version) -k $(KVER) --force
	@for k in $(other_kernels); do $(dkms) install dedupfs/$(version) -k $$k --force || \
		echo "dedupfs: not built for $$k, an installed kernel" >&2; done
	@($(call dkms_drop,$(filter-out $(version),$(dkms_versions)))) || \
		echo "dedupfs: another version is still there: see dkms status" >&2

dkms-remove:
	@test -n '$(dkms_versions)' || { echo "dedupfs: none is installed by DKMS" >&2; exit 1; }
	$(call dkms_drop,$(dkms_versions))

setup:
	@scripts/setup

check:
	@scripts/check $(if $(K),-k $(K)) $(if $(FS),-f $(FS)) $(if $(CPUS),-c $(CPUS)) $(T)

# KASAN, lockdep, kmemleak and fault injection; builds that kernel first.
check-debug:
	@scripts/setup
	@scripts/debug-kernel
	@scripts/check -k debug -x 6 -m 2G $(if $(FS),-f $(FS)) $(T)

# T=30m, 90s, 2h or seconds.
seconds = $(shell n=$$(echo '$(1)' | sed -n 's/^\([0-9][0-9]*\)h$$/\1*3600/p; s/^\([0-9][0-9]*\)m$$/\1*60/p; s/^\([0-9][0-9]*\)s*$$/\1/p'); \
	    [ -z "$$n" ] || echo $$(($$n)))
torture:
	@test -n '$(call seconds,$(or $(T),60))' || { echo 'torture: T=$(T) is no time: 30m, 90s, 2h' >&2; exit 2; }
	@TORTURE_SECONDS=$(call seconds,$(or $(T),60)) TORTURE_SEED=$(SEED) \
		scripts/check $(if $(K),-k $(K)) $(if $(FS),-f $(FS)) $(if $(CPUS),-c $(CPUS)) torture

mutants:
	@scripts/mutants $(if $(K),-k $(K)) $(T)

ifneq ($(wildcard scripts/demo),)
demo:
	@scripts/demo
endif

ifneq ($(wildcard scripts/bench),)
bench:
	@scripts/bench
endif

# The test programs, for scripts/check.  TIME_FACTOR=n: for a slow kernel.
TIME_FACTOR ?= 1
tests_dir := build/tests$(if $(filter-out 1,$(TIME_FACTOR)),-x$(TIME_FACTOR))
test_programs := $(patsubst tests/%.c,$(tests_dir)/%,$(wildcard tests/*.c))
tests: $(test_programs)
$(tests_dir)/%: tests/%.c $(wildcard tests/*.h)
	@mkdir -p $(@D)
	@rm -f $@
	@echo "  CC      $@"
	@$(or $(CC),cc) -O2 -g -Wall -Wextra -Wno-unused-parameter -Wno-sign-compare \
		-Wno-missing-field-initializers -Wno-clobbered -pthread -Ibuild/kselftest -DTIME_FACTOR=$(TIME_FACTOR) \
		-o $@.$$$$ $< && mv -f $@.$$$$ $@ || \
		{ rm -f $@.$$$$; exit 1; }

style:
	@scripts/checkstyle

clean:
	rm -rf $(filter-out $(addprefix build/,kernels kselftest vm),$(wildcard build/*))

distclean:
	rm -rf build

help:
	@echo 'make                  build dedupfs.ko in build/KVER/'
	@echo '     KVER=release     ... for that kernel (default: the running one)'
	@echo '     KDIR=directory   ... for these kernel headers'
	@echo '     W=1  C=1  V=1    ... with more warnings, with sparse, verbose'
	@echo 'make install          install it for KVER (uninstall)'
	@echo 'make dkms-install     have DKMS build it for each kernel (dkms-remove)'
	@echo 'make setup            install what the tests need; Debian 12'
	@echo 'make check            the tests: kernels 6.1 and 6.12, XFS and btrfs'
	@echo '     T=name           ... only tests/name'
	@echo '     K=6.12  FS=xfs   ... only on that kernel, that filesystem'
	@echo '     CPUS=2           ... in guests with two processors'
	@echo 'make check-debug      all tests on a kernel with KASAN and lockdep; hours'
	@echo 'make torture          stamped blocks, changed from all sides at once'
	@echo '     T=30m            ... that long (60 s); 90s, 2h'
	@echo '     SEED=number      ... with the choices of an earlier run'
	@echo '     CPUS=2           ... in a guest with two processors'
	@echo 'make mutants          break each rule on purpose: do the tests notice?'
	@echo 'make style            checkpatch --strict on all sources'
	@$(if $(wildcard scripts/demo),echo 'make demo             see it work in a guest')
	@$(if $(wildcard scripts/bench),echo 'make bench            measure it in a guest')
	@echo 'make clean            remove the builds (distclean: downloads too)'
