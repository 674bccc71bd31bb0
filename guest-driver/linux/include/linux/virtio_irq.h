/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * virtio-irq: the real MSI messages of assigned PCI functions
 *
 * In a guest, the address/data pair in a function's MSI capability or MSI-X
 * table is not what the hardware sends: the hypervisor keeps the real one to
 * itself. A driver that copies the pair into registers of its device must ask
 * virtio-irq for the real pair instead.
 *
 * There are two ways. Native: the driver enables MSI or MSI-X as always, its
 * interrupts come as always, and virtio_irq_get_messages() tells what the
 * hardware really sends. Event: the driver enables nothing, and allocates
 * sources with virtio_irq_alloc_sources(), which are vectors of the function
 * that the host enabled for it; each has a message and a Linux interrupt, and
 * the virtio-irq device delivers it. A function is used in one way at a time.
 */
#ifndef _LINUX_VIRTIO_IRQ_H
#define _LINUX_VIRTIO_IRQ_H

#include <linux/bits.h>
#include <linux/types.h>

struct pci_dev;
struct virtio_irq_function;
struct virtio_irq_sources;

/**
 * enum virtio_irq_type - kind of interrupt
 * @VIRTIO_IRQ_TYPE_INTX: the function's pin, vector 0. It has no message, and
 *	is only of use as a source.
 * @VIRTIO_IRQ_TYPE_MSI: vectors of the MSI capability
 * @VIRTIO_IRQ_TYPE_MSIX: vectors of the MSI-X table
 */
enum virtio_irq_type {
	VIRTIO_IRQ_TYPE_INTX = 0,
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
 *	left the guest; every later call on this handle fails with -ENODEV, and
 *	all sources of the function have ended
 * @VIRTIO_IRQ_EVENT_SOURCE_REVOKED: sources of this handle have ended: the host
 *	took them back, or the virtio-irq device was suspended or reset. Their
 *	interrupts do not come any more, and their messages must not be used.
 *	They are still to be freed, after which the driver can allocate anew.
 */
enum virtio_irq_event {
	VIRTIO_IRQ_EVENT_MESSAGE_CHANGED,
	VIRTIO_IRQ_EVENT_GONE,
	VIRTIO_IRQ_EVENT_SOURCE_REVOKED,
};

/**
 * typedef virtio_irq_notify_t - called when something happened to a function
 * @data: what was given to virtio_irq_set_notify()
 * @event: what happened
 * @type: kind of interrupt; not for GONE
 * @first: first vector; not for GONE
 * @count: number of vectors; not for GONE
 *
 * Runs in process context and may sleep, and may ask for messages and allocate
 * and free sources of its function. It must not call virtio_irq_put() or
 * virtio_irq_set_notify() for any function: both wait for it. A SOURCE_REVOKED
 * that was on its way can arrive after its source was freed.
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

/*
 * Flag of virtio_irq_alloc_sources(): the sources are a block, of consecutive
 * vectors whose messages have one address and data that counts up by 1.
 */
#define VIRTIO_IRQ_CONTIGUOUS BIT(0)

struct virtio_irq_sources *
virtio_irq_alloc_sources(struct virtio_irq_function *fn,
			 enum virtio_irq_type type, unsigned int first,
			 unsigned int least, unsigned int most,
			 unsigned int flags);
unsigned int virtio_irq_sources_count(const struct virtio_irq_sources *sources);
int virtio_irq_source_irq(const struct virtio_irq_sources *sources,
			  unsigned int nr);
int virtio_irq_source_vector(const struct virtio_irq_sources *sources,
			     unsigned int nr);
int virtio_irq_source_message(const struct virtio_irq_sources *sources,
			      unsigned int nr, struct virtio_irq_msg *msg);
int virtio_irq_sync_masks(struct virtio_irq_sources *sources);
int virtio_irq_free_source_range(struct virtio_irq_sources *sources,
				 unsigned int first, unsigned int count);
void virtio_irq_free_sources(struct virtio_irq_sources *sources);

#endif /* _LINUX_VIRTIO_IRQ_H */
