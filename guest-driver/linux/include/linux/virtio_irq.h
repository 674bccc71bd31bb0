/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * virtio-irq: the real MSI messages of assigned PCI functions
 *
 * In a guest, the address/data pair in a function's MSI capability or MSI-X
 * table is not what the hardware sends: the hypervisor keeps the real one to
 * itself. A driver that copies the pair into registers of its device must ask
 * virtio-irq for the real pair instead.
 */
#ifndef _LINUX_VIRTIO_IRQ_H
#define _LINUX_VIRTIO_IRQ_H

#include <linux/types.h>

struct pci_dev;
struct virtio_irq_function;

/**
 * enum virtio_irq_type - kind of interrupt that has messages
 * @VIRTIO_IRQ_TYPE_MSI: vectors of the MSI capability
 * @VIRTIO_IRQ_TYPE_MSIX: vectors of the MSI-X table
 */
enum virtio_irq_type {
	VIRTIO_IRQ_TYPE_MSI = 1,
	VIRTIO_IRQ_TYPE_MSIX = 2,
};

/**
 * struct virtio_irq_msg - what a device writes to raise one vector
 * @address: where it writes; opaque to the guest
 * @data: what it writes, as a 32-bit little-endian value
 * @generation: differs whenever @address or @data of this vector changed; not
 *	to be compared across a suspend, nor with that of another handle
 */
struct virtio_irq_msg {
	u64 address;
	u32 data;
	u32 generation;
};

/**
 * enum virtio_irq_event - what happened to a function
 * @VIRTIO_IRQ_EVENT_MESSAGE_CHANGED: messages that were told before are not
 *	valid any more: ask again, program them again, and then act as if each
 *	vector had been raised once, since an interrupt may have been lost. An
 *	answer to a call that began before the event may be the old message.
 * @VIRTIO_IRQ_EVENT_GONE: the function left the host, or the virtio-irq device
 *	left the guest; every later call on this handle fails with -ENODEV
 */
enum virtio_irq_event {
	VIRTIO_IRQ_EVENT_MESSAGE_CHANGED,
	VIRTIO_IRQ_EVENT_GONE,
};

/**
 * typedef virtio_irq_notify_t - called when something happened to a function
 * @data: what was given to virtio_irq_set_notify()
 * @event: what happened
 * @type: kind of interrupt; only for MESSAGE_CHANGED
 * @first: first vector; only for MESSAGE_CHANGED
 * @count: number of vectors; only for MESSAGE_CHANGED
 *
 * Runs in process context and may sleep, and may ask for messages of its
 * function. It must not call virtio_irq_put() or virtio_irq_set_notify() for
 * any function: both wait for it.
 */
typedef void (*virtio_irq_notify_t)(void *data, enum virtio_irq_event event,
				    enum virtio_irq_type type,
				    unsigned int first, unsigned int count);

struct virtio_irq_function *virtio_irq_get(struct pci_dev *pdev);
void virtio_irq_put(struct virtio_irq_function *fn);
void virtio_irq_set_notify(struct virtio_irq_function *fn,
			   virtio_irq_notify_t notify, void *data);

int virtio_irq_get_messages(struct virtio_irq_function *fn,
			    enum virtio_irq_type type, unsigned int first,
			    unsigned int count, struct virtio_irq_msg *msgs);
int virtio_irq_get_block(struct virtio_irq_function *fn,
			 enum virtio_irq_type type, unsigned int count,
			 struct virtio_irq_msg *base);

/**
 * virtio_irq_get_message() - ask for the message of one vector
 * @fn: function from virtio_irq_get()
 * @type: kind of interrupt
 * @vector: vector, counted from 0
 * @msg: where the message goes; undefined after an error
 *
 * See virtio_irq_get_messages().
 *
 * Return: 0, or an errno of virtio_irq_get_messages().
 */
static inline int virtio_irq_get_message(struct virtio_irq_function *fn,
					 enum virtio_irq_type type,
					 unsigned int vector,
					 struct virtio_irq_msg *msg)
{
	return virtio_irq_get_messages(fn, type, vector, 1, msg);
}

#endif /* _LINUX_VIRTIO_IRQ_H */
