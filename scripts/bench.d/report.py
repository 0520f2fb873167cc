#!/usr/bin/python3
"""Turn the benchmark's lines into a table and JSON: report.py LINES FS KVER JSON"""
import json
import sys

lines, fs, kver, out = sys.argv[1:]
LIMIT = 1.25
cases, table = [], {}
section = ''
for line in open(lines):
    side, rest = line.rstrip('\n').split('\t')
    case, value, unit = rest.rsplit(' ', 2)
    # "  and fsync/..." continues the case above it.
    if case.startswith('  and'):
        case = section + ' and' + case[5:].split('/')[0] + '/' + case.split('/')[1]
    else:
        section = case.split('/')[0]
    if case not in table:
        cases.append((case, unit))
    table.setdefault(case, {})[side] = int(value)

rows = []
for case, unit in cases:
    v = table[case]
    rows.append({'case': case, 'per': unit, **v,
                 'overlayfs_ratio': round(v['overlayfs'] / v['plain'], 2),
                 'dedupfs_ratio': round(v['dedupfs'] / v['plain'], 2),
                 'beyond_limit': v['dedupfs'] / v['plain'] > LIMIT})
with open(out, 'w') as f:
    json.dump({'filesystem': fs, 'kernel': kver, 'unit': 'instructions',
               'limit': LIMIT, 'cases': rows}, f, indent=1)
    f.write('\n')

print()
print('Instructions, %s, Linux %s, one CPU' % (fs, kver))
print()
print('%-40s %-5s %9s %9s %9s %7s %7s' %
      ('', 'per', fs, 'overlayfs', 'dedupfs', 'ovl/' + fs[0], 'ded/' + fs[0]))
for r in rows:
    print('%-40s %-5s %9d %9d %9d %7.2f %7.2f%s' %
          (r['case'].replace('/', ', '), r['per'], r['plain'], r['overlayfs'], r['dedupfs'],
           r['overlayfs_ratio'], r['dedupfs_ratio'], '  <-- beyond %.2f' % LIMIT
           if r['beyond_limit'] else ''))
print()
n = sum(r['beyond_limit'] for r in rows)
print('%d of %d cases beyond %.2f; the same as JSON: %s' % (n, len(rows), LIMIT, out))
