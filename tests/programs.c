// SPDX-License-Identifier: GPL-2.0-only
/*
 * Programs that people run, on files that share their blocks: what they print,
 * and the files that they leave, are as on the filesystem below.
 *
 * timeout: 600
 */
#include "common.h"

/* Run a script in which nothing may fail; say what it printed. */
static void run(const char *script)
{
	FILE *f = fopen("script", "w");

	if (!f || fputs(script, f) < 0 || fclose(f))
		die("script");
	if (say_output("bash -eu ./script 2>&1"))
		say("no result of the %s", dut ? "mount" : "lower filesystem");
	unlink("script");
}

/* What they read of the clones came from the pool. */
#define SAME_FROM_POOL(ops) do {					\
	long __hits = pool("hits");					\
									\
	SAME(ops);							\
	EXPECT_LT(__hits + 20, pool("hits"));				\
} while (0)

/* tree: one number for all that is in a directory.  fresh: nothing is cached. */
#define HELPERS								\
	"set -o pipefail\n"						\
	"tree() { (cd $1; find . ! -type d -printf '%y %m %s %p %l\\n' | sort\n"	\
	"	find . -type f -print0 | sort -z | xargs -0 md5sum) | md5sum; }\n"	\
	"fresh() { sync; echo 3 >/proc/sys/vm/drop_caches; }\n"

static void git(void)
{
	run(HELPERS
	    "export HOME=$PWD GIT_CONFIG_NOSYSTEM=1 TZ=UTC\n"
	    "export GIT_AUTHOR_DATE='1700000000 +0000' GIT_COMMITTER_DATE='1700000000 +0000'\n"
	    "printf '[user]\\nname=t\\nemail=t@example.org\\n[init]\\ndefaultBranch=main\\n[gc]\\nauto=0\\n' >.gitconfig\n"
	    "git init -q base; cd base; seq 1 7 200000 >big\n"
	    "for i in 1 2; do\n"
	    "	mkdir dir$i; for j in 1 2 3; do seq $i 40 $((j * 9000)) >dir$i/file$j; done\n"
	    "	sed -i \"${i}00s/^/$i /\" big; git add .; git commit -qm \"change $i\"\n"
	    "done\n"
	    "git repack -adq; cd ..\n"
	    /* Both read the same pack, through mappings. */
	    "for c in a b; do cp -a --reflink=always base $c; done; fresh\n"
	    "for c in a b; do cd $c; git status --porcelain; git fsck --full; git diff HEAD~ | md5sum; cd ..; done\n"
	    "cd a; git checkout -q -b side HEAD~; sed -i '9000s/^/side /' big; git commit -qam side\n"
	    "git rebase -q main; git rev-parse HEAD; seq 9 >dir1/file1; git stash -q; git status --porcelain\n"
	    "git stash pop -q; git commit -qam more; git gc -q --prune=now; git fsck --full; cd ..\n"
	    "git clone -q base linked; git -C linked repack -adq; fresh\n"
	    "cd b; git pull -q ../a side; git rev-parse HEAD; git status --porcelain; cd ..\n"
	    "git -C linked fsck --full; git -C base fsck --full; git -C base status --porcelain\n"
	    "md5sum */big */dir1/file1\n");
}

TEST(git_in_clones_of_a_repository)
{
	SAME_FROM_POOL(git);
}

static void dpkg(void)
{
	run(HELPERS
	    "package() {\n"
	    "	rm -rf p; mkdir -p p/DEBIAN p/usr/bin p/usr/lib/probe p/etc\n"
	    "	printf 'Package: probe\\nVersion: %s\\nArchitecture: all\\nMaintainer: T <t@example.org>\\nDescription: probe\\n' $1 >p/DEBIAN/control\n"
	    "	echo /etc/probe.conf >p/DEBIAN/conffiles; echo default $1 >p/etc/probe.conf\n"
	    "	for i in $(seq 12); do seq $i $2 $((i * 7000)) >p/usr/lib/probe/data$i; done\n"
	    "	ln -s data1 p/usr/lib/probe/link; ln p/usr/lib/probe/data2 p/usr/lib/probe/hard\n"
	    "	printf '#!/bin/sh\\necho probe %s\\n' $1 >p/usr/bin/probe; chmod 4755 p/usr/bin/probe\n"
	    "	[ $1 = 1 ] || rm p/usr/lib/probe/data12\n"
	    "	dpkg-deb -Znone --root-owner-group -b p probe_$1.deb >/dev/null\n"
	    "}\n"
	    "package 1 7; package 2 8\n"
	    "mkdir -p root/var/lib/dpkg/info root/var/lib/dpkg/updates; : >root/var/lib/dpkg/status\n"
	    "dpkg --root=$PWD/root -i probe_1.deb >/dev/null; root/usr/bin/probe\n"
	    "for c in one two; do cp -a --reflink=always root $c; done; fresh\n"
	    "for c in one two; do dpkg --root=$PWD/$c --verify; tree $c/usr; done\n"
	    "echo mine >>one/etc/probe.conf\n"
	    "dpkg --root=$PWD/one --force-confold -i probe_2.deb >/dev/null 2>&1; one/usr/bin/probe\n"
	    "dpkg --root=$PWD/one --verify; tree one/usr; tree one/etc; fresh\n"
	    "dpkg --root=$PWD/root --verify; root/usr/bin/probe; tree root/usr; tree one/usr\n"
	    "dpkg --root=$PWD/two -r probe >/dev/null; dpkg --root=$PWD/two -P probe >/dev/null; find two -name 'probe*' -o -name 'data*' | sort\n"
	    "dpkg --root=$PWD/one -l probe | tail -n 1; tree root/usr; ls -l one/usr/bin | cut -c1-10\n");
}

TEST(dpkg_in_clones_of_a_root)
{
	SAME_FROM_POOL(dpkg);
}

/*
 * Money is moved between accounts of a database, by several at once, one of
 * whom is killed; there is as much of it at the end, and the base is untouched.
 */
static void sqlite(void)
{
	run(HELPERS
	    "cat >sql.py <<'PY'\n"
	    "import os, signal, sqlite3, sys, random\n"
	    "def open_db(name, mode):\n"
	    "    db = sqlite3.connect(name, timeout=60, isolation_level=None)\n"
	    "    db.execute('pragma mmap_size=67108864'); db.execute('pragma journal_mode=' + mode)\n"
	    "    db.execute('pragma synchronous=normal')\n"
	    "    return db\n"
	    "def total(db):\n"
	    "    return db.execute('select sum(money), count(*) from account').fetchone()\n"
	    "what, name, mode = sys.argv[1:4]\n"
	    "db = open_db(name, mode)\n"
	    "if what == 'make':\n"
	    "    db.execute('create table account(id integer primary key, money int, pad blob)')\n"
	    "    db.execute('begin')\n"
	    "    for i in range(3000):\n"
	    "        db.execute('insert into account values(?, 100, ?)', (i, bytes([i % 251]) * 900))\n"
	    "    db.execute('commit')\n"
	    "    print(total(db))\n"
	    "elif what == 'move':\n"
	    "    r = random.Random(int(sys.argv[4]))\n"
	    "    for n in range(24):\n"
	    "        a, b, m = r.randrange(3000), r.randrange(3000), r.randrange(50)\n"
	    "        db.execute('begin immediate')\n"
	    "        db.execute('update account set money = money - ? where id = ?', (m, a))\n"
	    "        if n == 18 and sys.argv[5:] == ['die']:\n"
	    "            db.execute('pragma cache_size=4'); db.execute('update account set pad = pad')\n"
	    "            os.kill(os.getpid(), signal.SIGKILL)\n"
	    "        db.execute('update account set money = money + ? where id = ?', (m, b))\n"
	    "        db.execute('commit')\n"
	    "elif what == 'watch':\n"
	    "    for n in range(8):\n"
	    "        if total(db) != (300000, 3000):\n"
	    "            print('inconsistent', total(db))\n"
	    "elif what == 'check':\n"
	    "    print(db.execute('pragma integrity_check').fetchall(), total(db))\n"
	    "    if mode == 'wal':\n"
	    "        print(db.execute('pragma wal_checkpoint(truncate)').fetchone())\n"
	    "PY\n"
	    "export PYTHONDONTWRITEBYTECODE=1\n"
	    "/usr/bin/python3 -I sql.py make base.db delete; sync\n"
	    "for mode in delete wal; do\n"
	    "	cp --reflink=always base.db $mode.db; fresh\n"
	    "	/usr/bin/python3 -I sql.py check $mode.db $mode\n"
	    "	/usr/bin/python3 -I sql.py move $mode.db $mode 1 & one=$!\n"
	    "	/usr/bin/python3 -I sql.py move $mode.db $mode 2 & two=$!\n"
	    "	/usr/bin/python3 -I sql.py watch $mode.db $mode & watch=$!\n"
	    "	died=0; /usr/bin/python3 -I sql.py move $mode.db $mode 3 die || died=$?\n"
	    "	wait $one; wait $two; wait $watch; [ $died = 137 ]\n"
	    "	fresh; /usr/bin/python3 -I sql.py check $mode.db $mode\n"
	    "	md5sum base.db\n"
	    "done 2>&1 | tee log | grep -v Killed\n"
	    "[ $(grep -c '(300000, 3000)' log) = 4 ]\n");
}

TEST(databases_that_are_clones)
{
	SAME_FROM_POOL(sqlite);
}

static void archives(void)
{
	run(HELPERS
	    "mkdir base; cd base; for i in $(seq 20); do seq $i 11 $((i * 9000)) >f$i; done\n"
	    "mkdir -p d/e; seq 100000 >d/e/long; ln d/e/long d/hard; ln -s e/long d/soft; mkfifo d/fifo\n"
	    "truncate -s 9M d/sparse; echo end >>d/sparse; setfattr -n user.note -v yes f1; setfacl -m u:7:r f2; cd ..\n"
	    "for c in one two; do cp -a --reflink=always base $c; done; fresh\n"
	    "tar -C one --sort=name --acls --xattrs -S -cf one.tar .; tar -tf one.tar | md5sum\n"
	    "mkdir out; tar -C out --acls --xattrs -xf one.tar; tree out; diff -r --no-dereference -x fifo base out\n"
	    "getfattr -n user.note --only-values out/f1; echo; getfacl -c out/f2; stat -c %h out/d/hard\n"
	    "seq 5 >two/f3; touch -d @3000 two/f3; sed -i 's/^77$/xx/' two/d/e/long; touch -d @2000 two/d/e/long; rm two/f4; touch -d @1000 two/f5\n"
	    "rsync -aOHAX --sparse --delete --itemize-changes two/ out/\n"
	    "tree out; diff -r --no-dereference -x fifo two out; fresh\n"
	    "rsync -aOHAX --inplace --no-whole-file --checksum --delete --itemize-changes base/ two/\n"
	    "tree two; tree base; tree one; diff -r --no-dereference -x fifo base two\n"
	    "gzip -nc base/d/e/long >long.gz; xz -k base/f20; zcat long.gz | cmp - one/d/e/long; xzcat base/f20.xz | cmp - one/f20\n"
	    "find one -name 'f*' -print0 | sort -z | cpio -0 --quiet -o -H newc --reproducible | cpio --quiet -t | md5sum\n");
}

TEST(archives_and_copies)
{
	SAME_FROM_POOL(archives);
}

static void build(void)
{
	run(HELPERS
	    "mkdir base; cd base\n"
	    "for i in 1 2 3; do echo \"int f$i(int x) { return x * $i + $i; }\" >f$i.c; done\n"
	    "echo 'int f1(int), f2(int), f3(int); int printf(const char *, ...);' >f.h\n"
	    "printf '#include \"f.h\"\\nint main(void) { printf(\"%%d\\\\n\", f1(f2(f3(4)))); return 0; }\\n' >main.c\n"
	    "printf 'main: main.o libf.so\\n\\tgcc -o $@ main.o -L. -lf -Wl,-rpath,. -Wl,--build-id=none\\nlibf.so: f1.o f2.o libs.a\\n\\tgcc -shared -o $@ f1.o f2.o -Wl,--whole-archive libs.a -Wl,--no-whole-archive -Wl,--build-id=none\\n"
	    "libs.a: f3.o\\n\\tar Drc $@ f3.o\\n%%.o: %%.c f.h\\n\\tgcc -O1 -fPIC -c -o $@ $<\\n' >Makefile\n"
	    "make -s; ./main; cd ..; cp -a --reflink=always base clone; fresh\n"
	    "cd clone; make -q && echo made; ./main; sed -i 's/x \\* 3/x * 5/' f3.c; make | wc -l; ./main\n"
	    "cd ../base; ./main; make -q && echo made; cd ..; md5sum */*.o */*.so */main\n"
	    "cd clone; strip main; ./main\n");
}

TEST(compiler_and_what_it_makes)
{
	SAME_FROM_POOL(build);
}

TEST_HARNESS_MAIN
