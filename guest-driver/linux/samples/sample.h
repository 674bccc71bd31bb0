/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What samples have in common whose device is told messages and sends them
 *
 * Such a device has BAR 0, sends a message when it is told to ("fire"), and
 * counts nothing itself; its driver counts, in attributes of the function.
 */
#ifndef _SAMPLE_H
#define _SAMPLE_H

#include <linux/cleanup.h>
#include <linux/completion.h>
#include <linux/irq.h>
#include <linux/jiffies.h>
#include <linux/kstrtox.h>
#include <linux/msi.h>
#include <linux/mutex.h>
#include <linux/pci.h>
#include <linux/sysfs.h>
#include <linux/virtio_irq.h>

#define SAMPLE_FIRE_MAX 1000

/**
 * struct sample_pair - a message
 * @address: where it is written
 * @data: what is written
 */
struct sample_pair {
	u64 address;
	u32 data;
};

/* The group of attributes that are in NAME_attrs, in a directory that is called like the module. */
#define SAMPLE_GROUPS(_name)						\
static const struct attribute_group _name##_group = {			\
	.name = KBUILD_MODNAME,						\
	.attrs = _name##_attrs,						\
};									\
__ATTRIBUTE_GROUPS(_name)

/* Enables the function, and maps its BAR 0. Nothing has to be undone. */
static inline int sample_claim(struct pci_dev *pdev, struct mutex *lock,
			       void __iomem **regs)
{
	int err;

	err = devm_mutex_init(&pdev->dev, lock);
	if (err)
		return err;
	err = pcim_enable_device(pdev);
	if (err)
		return err;
	*regs = pcim_iomap_region(pdev, 0, KBUILD_MODNAME);
	return PTR_ERR_OR_ZERO(*regs);
}

/* What the guest's PCI layer knows of an interrupt of the function's own MSI. */
static inline void sample_guest_pair(int irq, struct sample_pair *pair)
{
	struct msi_msg msg;

	get_cached_msi_msg(irq, &msg);
	pair->address = (u64)msg.address_hi << 32 | msg.address_lo;
	pair->data = msg.data;
}

static inline struct sample_pair
sample_pair_of(const struct virtio_irq_msg *msg)
{
	return (struct sample_pair){ msg->address, msg->data };
}

static inline ssize_t sample_emit_pair(char *buf,
				       const struct sample_pair *pair)
{
	return sysfs_emit(buf, "%08llx/%04x\n", pair->address, pair->data);
}

/**
 * sample_fire() - let the device fire as often as an attribute is told to
 * @buf: what was written to the attribute
 * @len: how much
 * @lock: taken for each time alone: the whole run may take minutes
 * @fire: lets the device fire once, and waits for the handler
 * @arg: for @fire
 *
 * Return: @len, or an errno.
 */
static inline ssize_t sample_fire(const char *buf, size_t len,
				  struct mutex *lock, int (*fire)(void *arg),
				  void *arg)
{
	unsigned int count;
	int err;

	err = kstrtouint(buf, 0, &count);
	if (err)
		return err;
	if (!count || count > SAMPLE_FIRE_MAX)
		return -ERANGE;
	while (count--) {
		guard(mutex)(lock);
		err = fire(arg);
		if (err)
			return err;
	}
	return len;
}

/* Waits a little for a handler. That none ran is for the reader of a count to see. */
static inline int sample_wait(struct completion *fired, unsigned int ms)
{
	long left;

	left = wait_for_completion_killable_timeout(fired,
						    msecs_to_jiffies(ms));
	return left < 0 ? -EINTR : 0;
}

#endif /* _SAMPLE_H */
