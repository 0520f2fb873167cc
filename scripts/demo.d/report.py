#!/usr/bin/python3
"""Turn the demo's notes into a table and JSON: report.py NOTES FS KVER CLONES JSON"""
import json
import sys

notes, fs, kver, clones, out = sys.argv[1:]
n = int(clones)
raw = {}
for line in open(notes):
    side, name, value = line.split(None, 2)
    value = value.strip()
    raw.setdefault(side, {})[name] = int(value) if value.isdigit() else value

tree = raw['tree']
mib = lambda pages: pages / 256


def measure(side):
    r = raw[side]
    grown = lambda a, b: sum(r[b + k] - r[a + k] for k in ('_cached', '_pool'))
    read, mapped = grown('before', 'read'), grown('before', 'map')
    return {
        'ram_read_mib': round(mib(read), 1),
        'ram_read_copies': round(read / tree['pages'], 3),
        'ram_mapped_mib': round(mib(mapped), 1),
        'ram_mapped_copies': round(mapped / tree['pages'], 3),
        'mapped_rss_mib': round(r['map_rss_kib'] / 1024, 1),
        'mapped_pss_mib': round(r['map_pss_kib'] / 1024, 1),
        'mapped_pss_copies': round(r['map_pss_kib'] / 4 / tree['pages'], 3),
        'sectors_first': r['first_sectors'],
        'sectors_others': r['other_sectors'],
        'program_processes': r['run_processes'],
        'program_rss_mib': round(r['run_rss_kib'] / 1024, 1),
        'program_pss_mib': round(r['run_pss_kib'] / 1024, 1),
        'program_pss_file_mib': round(r['run_pss_file_kib'] / 1024, 1),
        'change_seen_by_writer': bool(r['change_seen_by_writer']),
        'change_seen_by_others': r['change_seen'] - r['change_seen_by_writer'],
        'change_pages_more': grown('unchanged', 'changed'),
        # A new block is in the page cache below (XFS), or in the pool (btrfs).
        'change_pages_apart': r['apart_writer'] + r['changed_pool'] - r['unchanged_pool']
            if side == 'dedupfs' else None,
        'changed_clone_same_as_below': r['again_sum'] == r['lower_sum'],
        'free_mib_at_end': round(mib(r['changed_free']), 1),
    }


plain, dedup = measure('plain'), measure('dedupfs')
reads = {s: [raw[s]['read_%d_sum' % i] for i in range(1, n + 1)] for s in ('plain', 'dedupfs')}
# The last clone was changed through dedupfs before the filesystem itself read it.
same = (len(set(reads['dedupfs'])) == 1 and reads['plain'][:-1] == reads['dedupfs'][:-1] and
        reads['plain'][-1] == raw['dedupfs']['again_sum'] != reads['dedupfs'][-1])
result = {
    'filesystem': fs, 'kernel': kver, 'clones': n,
    'tree': {'files': tree['files'], 'bytes': tree['bytes'], 'pages': tree['pages']},
    'plain': plain, 'dedupfs': dedup, 'same_data_as_plain': same,
    'statistics': {k[5:]: v for k, v in raw['dedupfs'].items() if k.startswith('stat_')},
    'raw': raw,
}
with open(out, 'w') as f:
    json.dump(result, f, indent=1)
    f.write('\n')

rows = []


def row(what, value):
    rows.append((what, value(plain), value(dedup)))


yes = lambda b: 'yes' if b else 'NO'
row('RAM after all clones were read', lambda s: '%.0f MiB' % s['ram_read_mib'])
row('  copies of the tree in RAM', lambda s: '%.2f' % s['ram_read_copies'])
row('RAM while all are mapped by %d processes' % n, lambda s: '%.0f MiB' % s['ram_mapped_mib'])
row('  copies of the tree in RAM', lambda s: '%.2f' % s['ram_mapped_copies'])
row('  sum of Rss', lambda s: '%.0f MiB' % s['mapped_rss_mib'])
row('  sum of Pss', lambda s: '%.0f MiB' % s['mapped_pss_mib'])
row('read from disk for clone 1', lambda s: '%d sectors' % s['sectors_first'])
row('read from disk for clones 2..%d' % n, lambda s: '%d sectors' % s['sectors_others'])
row('python3 in %d clones at once: sum of Rss' % dedup['program_processes'],
    lambda s: '%.1f MiB' % s['program_rss_mib'])
row('  sum of Pss', lambda s: '%.1f MiB' % s['program_pss_mib'])
row('  of it, pages of files', lambda s: '%.1f MiB' % s['program_pss_file_mib'])
row('all files of all clones read the same', lambda s: yes(same))
row('4 KiB written in one clone: it sees the change', lambda s: yes(s['change_seen_by_writer']))
row('  others that see it (of %d)' % (n - 1), lambda s: '%d' % s['change_seen_by_others'])
row('  pages of the file no longer shared',
    lambda s: '-' if s['change_pages_apart'] is None else '%d' % s['change_pages_apart'])
row('  the whole clone agrees with the disk', lambda s: yes(s['changed_clone_same_as_below']))

print()
print('%d clones of a Debian root: %d files, %.0f MiB; %s, Linux %s' %
      (n, tree['files'], mib(tree['pages']), fs, kver))
print()
print('%-48s %14s %14s' % ('', fs, 'dedupfs'))
for what, a, b in rows:
    print('%-48s %14s %14s' % (what, a, b))
print()
print('the same as JSON: %s' % out)
bad = [name for name, ok in (
    ('not all clones read the same', same),
    ('the change is not seen by its clone', dedup['change_seen_by_writer']),
    ('the change is seen by another clone', dedup['change_seen_by_others'] == 0),
    ('the changed clone differs from the disk', dedup['changed_clone_same_as_below']),
    ('more than 1.03 copies in RAM', max(dedup['ram_read_copies'],
                                         dedup['ram_mapped_copies']) <= 1.03),
) if not ok]
for b in bad:
    print('demo: WRONG: ' + b)
sys.exit(bool(bad))
