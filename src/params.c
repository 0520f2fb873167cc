// SPDX-License-Identifier: GPL-2.0-only
/*
 * Mount options: parsing, checking and showing them.
 *
 *	mount -t dedupfs LOWERDIR MOUNTPOINT
 *	    -o lowerdir=DIR	overrides the source
 *	    -o pool_limit=SIZE	most memory of the pool: 512m, 4g, 25%; 0: no limit
 *	    -o domain=NAME	share only with mounts of the same domain
 *
 * A message goes to the kernel log in every case, and to the log of the
 * filesystem context too where the caller has one (fsopen(2)): see
 * dedupfs_complain().
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/ctype.h>
#include <linux/fs_context.h>
#include <linux/fs_parser.h>
#include <linux/overflow.h>
#include <linux/seq_file.h>
#include <linux/slab.h>

#include "dedupfs.h"

/* Together with the name of a device it must stay a file name in sysfs. */
#define DOMAIN_MAX	128

enum {
	OPT_LOWERDIR,
	OPT_POOL_LIMIT,
	OPT_DOMAIN,
};

const struct fs_parameter_spec dedupfs_parameters[] = {
	fsparam_string("lowerdir",	OPT_LOWERDIR),
	fsparam_string("pool_limit",	OPT_POOL_LIMIT),
	fsparam_string("domain",	OPT_DOMAIN),
	{}
};

/**
 * dedupfs_complain - say why a mount or remount is refused
 * @fc: its context
 * @err: negative error
 * @fmt: message without a newline, and what to do about it
 *
 * Return: @err.
 */
int dedupfs_complain(struct fs_context *fc, int err, const char *fmt, ...)
{
	va_list va;
	char *text;

	va_start(va, fmt);
	text = kvasprintf(GFP_KERNEL, fmt, va);
	va_end(va);
	if (!text)
		return err;
	/*
	 * What others wrote, such as options, stays on one line of the log; and
	 * a user in a namespace of his own does not fill it.
	 */
	if (ns_capable_noaudit(&init_user_ns, CAP_SYS_ADMIN))
		pr_err("%*pEhp\n", (int)strlen(text), text);
	else
		pr_err_ratelimited("%*pEhp\n", (int)strlen(text), text);
	/* Without a log of its own, the context's messages are the kernel's. */
	if (fc->log.log)
		errorfc(fc, "%s", text);
	kfree(text);
	return err;
}

static int suffix_shift(char suffix)
{
	switch (tolower(suffix)) {
	case 'k':
		return 10;
	case 'm':
		return 20;
	case 'g':
		return 30;
	case 't':
		return 40;
	default:
		return -1;
	}
}

/* "512m", "4G", "1048576" or "25%" -> pages, rounded up. */
static int parse_size(const char *text, unsigned long *pages)
{
	size_t digits = strspn(text, "0123456789");
	const char *suffix = text + digits;
	char number[24];
	u64 value;
	int shift = 0;

	if (!digits || digits >= sizeof(number))
		return -EINVAL;
	memcpy(number, text, digits);
	number[digits] = '\0';
	if (kstrtou64(number, 10, &value))
		return -EINVAL;
	if (!strcmp(suffix, "%")) {
		if (value > 100)
			return -EINVAL;
		*pages = mult_frac(totalram_pages(), (unsigned long)value, 100UL);
		if (value && !*pages)
			*pages = 1;
		return 0;
	}
	if (*suffix) {
		shift = suffix_shift(*suffix);
		if (shift < 0 || suffix[1])
			return -EINVAL;
	}
	if (check_shl_overflow(value, shift, &value) ||
	    check_add_overflow(value, (u64)PAGE_SIZE - 1, &value))
		return -EINVAL;
	*pages = value >> PAGE_SHIFT;
	return 0;
}

static bool domain_ok(const char *name)
{
	const char *p;

	if (!*name || strlen(name) > DOMAIN_MAX || *name == '.')
		return false;
	for (p = name; *p; p++)
		if (!isgraph(*p) || *p == '/' || *p == '!' || *p == ':')
			return false;
	return true;
}

/* Hand @param's string over to @slot. */
static void take_string(char **slot, struct fs_parameter *param)
{
	kfree(*slot);
	*slot = param->string;
	param->string = NULL;
}

static int parse_param(struct fs_context *fc, struct fs_parameter *param)
{
	struct dedupfs_config *config = fc->fs_private;
	struct fs_parse_result result;
	int opt;

	/* The VFS keeps the source. */
	if (!strcmp(param->key, "source"))
		return -ENOPARAM;
	opt = fs_parse(fc, dedupfs_parameters, param, &result);
	if (opt == -ENOPARAM)
		return dedupfs_complain(fc, -EINVAL,
					"unknown option '%s'; there are lowerdir, pool_limit and domain",
					param->key);
	if (opt < 0)
		return dedupfs_complain(fc, opt, "option '%s' needs a value: %s=VALUE",
					param->key, param->key);
	switch (opt) {
	case OPT_LOWERDIR:
		if (!*param->string)
			return dedupfs_complain(fc, -EINVAL,
						"lowerdir= is empty; give the directory to mount");
		take_string(&config->lowerdir, param);
		return 0;
	case OPT_POOL_LIMIT:
		if (parse_size(param->string, &config->pool_limit))
			return dedupfs_complain(fc, -EINVAL,
						"bad pool_limit '%s'; give a size such as 512m, 4g or 25%%",
						param->string);
		take_string(&config->pool_limit_text, param);
		return 0;
	case OPT_DOMAIN:
		if (!domain_ok(param->string))
			return dedupfs_complain(fc, -EINVAL,
						"bad domain '%s'; give up to %d printable characters without / : !",
						param->string, DOMAIN_MAX);
		take_string(&config->domain, param);
		return 0;
	}
	return -EINVAL;
}

/**
 * dedupfs_free_config - free what the options point to, not @config itself
 * @config: parsed options, or zeros
 */
void dedupfs_free_config(struct dedupfs_config *config)
{
	kfree(config->lowerdir);
	kfree(config->domain);
	kfree(config->pool_limit_text);
}

static void free_context(struct fs_context *fc)
{
	struct dedupfs_config *config = fc->fs_private;

	if (!config)
		return;
	dedupfs_free_config(config);
	kfree(config);
}

static int get_tree(struct fs_context *fc)
{
	struct dedupfs_config *config = fc->fs_private;

	if (!config->lowerdir && fc->source) {
		config->lowerdir = kstrdup(fc->source, GFP_KERNEL);
		if (!config->lowerdir)
			return -ENOMEM;
	}
	if (!config->lowerdir || !*config->lowerdir)
		return dedupfs_complain(fc, -EINVAL,
					"no lower directory; use: mount -t dedupfs LOWERDIR MOUNTPOINT");
	return get_tree_nodev(fc, dedupfs_fill_super);
}

static const struct fs_context_operations dedupfs_context_ops = {
	.free		= free_context,
	.parse_param	= parse_param,
	.get_tree	= get_tree,
	.reconfigure	= dedupfs_reconfigure,
};

/**
 * dedupfs_init_fs_context - prepare a mount or a remount
 * @fc: filesystem context; its fs_private becomes a struct dedupfs_config
 *
 * Return: 0, or -ENOMEM.
 */
int dedupfs_init_fs_context(struct fs_context *fc)
{
	struct dedupfs_config *config;

	config = kzalloc(sizeof(*config), GFP_KERNEL);
	if (!config)
		return -ENOMEM;
	fc->fs_private = config;
	fc->ops = &dedupfs_context_ops;
	return 0;
}

/**
 * dedupfs_show_options - the options for /proc/mounts
 * @m: where to print them
 * @root: of the mount
 *
 * Context: a remount may replace pool_limit meanwhile: dedupfs_sb.lock keeps it.
 * Return: 0.
 */
int dedupfs_show_options(struct seq_file *m, struct dentry *root)
{
	struct dedupfs_sb *sbi = DEDUPFS_SB(root->d_sb);
	struct dedupfs_config *config = &sbi->config;

	seq_show_option(m, "lowerdir", config->lowerdir);
	if (config->domain)
		seq_show_option(m, "domain", config->domain);
	spin_lock(&sbi->lock);
	if (config->pool_limit_text)
		seq_show_option(m, "pool_limit", config->pool_limit_text);
	spin_unlock(&sbi->lock);
	return 0;
}
