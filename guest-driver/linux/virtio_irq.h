/* SPDX-License-Identifier: GPL-2.0-only */
/* Inside of virtio_irq.ko. */
#ifndef _VIRTIO_IRQ_PRIVATE_H
#define _VIRTIO_IRQ_PRIVATE_H

#include <linux/completion.h>
#include <linux/idr.h>
#include <linux/kref.h>
#include <linux/list.h>
#include <linux/mutex.h>
#include <linux/slab.h>
#include <linux/spinlock.h>
#include <linux/virtio.h>
#include <linux/wait.h>
#include <linux/workqueue.h>

#include "rust_core.h"

#ifndef kzalloc_obj		/* Linux 6 */
#define kzalloc_obj(object) kzalloc(sizeof(object), GFP_KERNEL)
#endif

/*
 * Requests that can be with the device at one time. A device that stops
 * answering keeps their buffers until it is reset, so this also bounds the
 * memory that it can hold on to.
 */
#define VIRTIO_IRQ_SLOTS 8

/* Buffers of the event queue, and the events and bytes that fit each. */
#define VIRTIO_IRQ_EVENT_BUFFERS 16
#define VIRTIO_IRQ_EVENTS 16
#define VIRTIO_IRQ_EVENT_SIZE (VIRTIO_IRQ_EVENTS * RS_SIZE_RECORD)

/* More than any host has; a device may say any number. */
#define VIRTIO_IRQ_SOURCES_MAX 8192

enum virtio_irq_queue {
	VIRTIO_IRQ_QUEUE_REQUEST,
	VIRTIO_IRQ_QUEUE_EVENT,
	VIRTIO_IRQ_QUEUE_COUNT,
};

enum virtio_irq_slot_state {
	SLOT_FREE,		/* on free_slots */
	SLOT_HELD,		/* a call's, the device does not know it */
	SLOT_IN_FLIGHT,		/* the device's, and a call waits */
	SLOT_ABANDONED,		/* the device's, the call has timed out */
	SLOT_LATE,		/* on late_slots: what it allocated is to be freed */
};

/* What becomes of a request that nobody waits for any more. */
enum virtio_irq_call_kind {
	CALL_PLAIN,		/* nothing */
	CALL_CHANGE,		/* it changes sources at some time to come */
	CALL_ALLOCATE,		/* it gives sources that nobody knows */
};

/* A request and its reply. Each buffer is an allocation of its own for DMA. */
struct virtio_irq_slot {
	struct list_head node;
	enum virtio_irq_slot_state state;
	enum virtio_irq_call_kind owes;	/* not CALL_PLAIN: counted in late */
	struct completion done;
	size_t request_len;
	size_t reply_size;
	int status;		/* 0: the device completed it */
	size_t used;		/* length of the copy of the reply */
	u8 *request;		/* device-readable */
	u8 *reply;		/* device-writable */
	u8 sent[RS_SIZE_REQUEST];	/* the request, and */
	u8 *copy;		/* the reply, where the device cannot reach */
};

enum virtio_irq_buffer_state {
	BUFFER_FREE,
	BUFFER_WITH_DEVICE,
	BUFFER_TOLD,		/* on event_backlog */
};

struct virtio_irq_event_buffer {
	struct list_head node;
	enum virtio_irq_buffer_state state;
	u8 *data;		/* device-writable */
	u8 *copy;		/* of it, where the device cannot reach */
	unsigned int told_count;
	struct rs_event told[VIRTIO_IRQ_EVENTS];	/* what is for clients */
};

/* Bits of a source's state. */
enum virtio_irq_source_bit {
	SOURCE_MASKED,		/* Linux wants it masked */
	SOURCE_IN_SERVICE,	/* INTx: its handler has not ended yet */
	SOURCE_REVOKED,		/* it delivers nothing, and is still held */
	SOURCE_ENDED,		/* the device does not know it any more */
	SOURCE_TOLD,		/* its client knows that it is over */
};

/**
 * struct virtio_irq_source - a source that the driver holds
 * @sources: the allocation that it is from
 * @irq: Linux interrupt, 0 once freed
 * @hwirq: its number in the irq domain. Not @id, which the device can give out
 *	again while the client still has the interrupt of a source that ended.
 * @id: the device's number of it, below source_limit
 * @function: whose it is
 * @vector: which one
 * @msg: as told when it was allocated
 * @state: SOURCE_ bits
 */
struct virtio_irq_source {
	struct virtio_irq_sources *sources;
	unsigned int irq;
	unsigned int hwirq;
	u32 id;
	u16 function;
	u16 vector;
	struct virtio_irq_msg msg;
	unsigned long state;
};

/**
 * struct virtio_irq - a virtio-irq device
 * @ref: the driver's reference while bound, one per handle and one per call
 *	that walks the devices
 * @node: in the list of bound devices
 * @serial: greater than that of every device that was bound before
 * @vdev: the virtio device; its struct device is kept, its driver may be gone
 * @rs: configuration and features, constant once probed
 * @epoch: counts resets of the device; function ids are only good within one.
 *	Written while the device is down.
 * @lock: protects @down, the request queue, @free_slots, @late_slots, @late and
 *	the slots' state. Taken in hard irq, inside of @event_lock.
 * @down: 0, or the errno with which requests fail
 * @request_vq: request queue; NULL while there are no queues
 * @free_slots: slots that nobody uses
 * @slot_wait: for a free slot, or @down
 * @slots: all slots
 * @slot_count: how many of them fit the queue
 * @late: number of requests about sources that nobody waits for any more and
 *	whose effect is still to come
 * @late_slots: those that have allocated something
 * @late_wait: for @late to become 0, or @down
 * @late_work: frees what @late_slots have allocated
 * @event_lock: protects the event queue and its buffers, @table and @by_id.
 *	Taken in hard irq, and held while handlers of sources run.
 * @event_vq: event queue; NULL while there are no queues
 * @event_backlog: buffers with events that are not only interrupts
 * @event_work: tells clients what is in them
 * @event_buffers: all buffers of the event queue
 * @functions_lock: protects @functions and their notify callbacks; held while
 *	one runs
 * @functions: handles of this device
 * @source_limit: ids of sources are below it; 0 without event delivery
 * @sources_lock: serializes requests about sources; protects @sources_down,
 *	@hwirqs, @by_hwirq and what they ask for. Taken inside of functions_lock.
 * @sources_down: 0, or the errno with which allocations fail
 * @domain: of the sources' interrupts
 * @fwnode: its name
 * @hwirqs: numbers in @domain that are taken
 * @by_hwirq: sources, by their number there
 * @table: which sources there are to the Rust core: those that the device has
 *	given, also the ones that nobody knows of yet
 * @slots_of_table: its memory
 * @by_id: sources with a client, by their id
 * @changed: sources whose mask may have changed, by hwirq
 * @mask_work: tells the device of those
 * @late_given: room for what one of @late_slots gave
 */
struct virtio_irq {
	struct kref ref;
	struct list_head node;
	u64 serial;
	struct virtio_device *vdev;
	struct rs_device rs;
	unsigned int epoch;

	spinlock_t lock;	/* down, the request queue, the slots */
	int down;
	struct virtqueue *request_vq;
	struct list_head free_slots;
	wait_queue_head_t slot_wait;
	struct virtio_irq_slot slots[VIRTIO_IRQ_SLOTS];
	unsigned int slot_count;

	unsigned int late;
	struct list_head late_slots;
	wait_queue_head_t late_wait;
	struct work_struct late_work;

	spinlock_t event_lock;	/* the event queue, table and by_id */
	struct virtqueue *event_vq;
	struct list_head event_backlog;
	struct work_struct event_work;
	struct virtio_irq_event_buffer event_buffers[VIRTIO_IRQ_EVENT_BUFFERS];

	struct mutex functions_lock;	/* functions, while they are notified */
	struct list_head functions;

	unsigned int source_limit;
	struct mutex sources_lock;	/* requests about sources */
	int sources_down;
	struct irq_domain *domain;
	struct fwnode_handle *fwnode;
	struct ida hwirqs;
	struct virtio_irq_source **by_hwirq;
	struct virtio_irq_source **by_id;
	struct rs_table table;
	void *slots_of_table;
	unsigned long *changed;
	struct delayed_work mask_work;
	struct rs_source *late_given;
};

/**
 * struct virtio_irq_function - handle to a function that a device lists
 * @vi: the device, with a reference
 * @pdev: the function, with a reference
 * @node: in @vi->functions, under its functions_lock
 * @lock: protects @id and @epoch. Taken inside of functions_lock, when a
 *	notify callback asks for messages, and of sources_lock.
 * @id: what the device calls the function. Written under @lock; events are
 *	compared with it without.
 * @epoch: epoch of the device that @id belongs to
 * @gone: the device said within @epoch that the function is gone, which is
 *	final (IRQ-DRV-29)
 * @notify: under functions_lock
 * @data: under functions_lock
 */
struct virtio_irq_function {
	struct virtio_irq *vi;
	struct pci_dev *pdev;
	struct list_head node;
	struct mutex lock;	/* id and epoch */
	u16 id;
	unsigned int epoch;
	bool gone;
	virtio_irq_notify_t notify;
	void *data;
};

/**
 * struct virtio_irq_sources - sources that were allocated together
 * @vi: the device, with a reference
 * @fn: the handle to tell of their end, or NULL; under sources_lock
 * @type: of all of them
 * @count: their number
 * @source: in ascending order of the vectors
 */
struct virtio_irq_sources {
	struct virtio_irq *vi;
	const struct virtio_irq_function *fn;
	enum virtio_irq_type type;
	unsigned int count;
	struct virtio_irq_source source[] __counted_by(count);
};

/*
 * One operation of the Rust core: its exchanges share a slot and a deadline.
 * @sent tells of a request that timed out whether the device has it.
 */
struct virtio_irq_call {
	struct virtio_irq *vi;
	enum virtio_irq_call_kind kind;
	bool sent;
	struct virtio_irq_slot *slot;
	unsigned long deadline;
};

/* device.c */
struct virtio_irq *virtio_irq_next(u64 after);
void virtio_irq_release(struct virtio_irq *vi);

/* request.c */
int virtio_irq_requests_alloc(struct virtio_irq *vi);
void virtio_irq_requests_free(struct virtio_irq *vi);
int virtio_irq_requests_start(struct virtio_irq *vi, struct virtqueue *vq);
void virtio_irq_requests_up(struct virtio_irq *vi);
void virtio_irq_requests_down(struct virtio_irq *vi, int why);
void virtio_irq_requests_reclaim(struct virtio_irq *vi);
void virtio_irq_request_done(struct virtqueue *vq);
void virtio_irq_replies_take(struct virtio_irq *vi);
void virtio_irq_call_begin(struct virtio_irq_call *call, struct virtio_irq *vi);
void virtio_irq_call_end(struct virtio_irq_call *call);
bool virtio_irq_settled(struct virtio_irq *vi);
int virtio_irq_settle(struct virtio_irq_call *call);
struct virtio_irq_slot *virtio_irq_late_begin(struct virtio_irq *vi);
void virtio_irq_late_end(struct virtio_irq *vi, struct virtio_irq_slot *slot);

/* event.c */
int virtio_irq_events_alloc(struct virtio_irq *vi);
void virtio_irq_events_free(struct virtio_irq *vi);
void virtio_irq_events_start(struct virtio_irq *vi, struct virtqueue *vq);
void virtio_irq_events_stop(struct virtio_irq *vi);
void virtio_irq_event_done(struct virtqueue *vq);
void virtio_irq_events_take(struct virtio_irq *vi);

/* function.c */
int virtio_irq_function_id(struct virtio_irq_function *fn,
			   struct virtio_irq_call *call, u16 *id);
void virtio_irq_functions_notify(struct virtio_irq *vi,
				 const struct rs_event *event);
void virtio_irq_functions_gone(struct virtio_irq *vi);
void virtio_irq_function_revoked(struct virtio_irq *vi,
				 const struct virtio_irq_function *fn,
				 enum virtio_irq_type type, u16 vector);

/* source.c */
bool virtio_irq_is_held(const struct virtio_irq_source *source);
void virtio_irq_forget(struct virtio_irq *vi, struct virtio_irq_source *source);
int virtio_irq_free_ids(struct virtio_irq_call *call, u32 first,
			unsigned int count);
void virtio_irq_free_given(struct virtio_irq_call *call,
			   const struct rs_source *given, unsigned int count);
void virtio_irq_free_unknown(struct virtio_irq_call *call, u16 function);
void virtio_irq_sources_init(struct virtio_irq *vi);
int virtio_irq_sources_alloc(struct virtio_irq *vi, u32 max_sources);
void virtio_irq_sources_free(struct virtio_irq *vi);
void virtio_irq_sources_up(struct virtio_irq *vi);
void virtio_irq_sources_down(struct virtio_irq *vi, int why);
void virtio_irq_sources_ended(struct virtio_irq *vi);
void virtio_irq_sources_orphan(struct virtio_irq *vi,
			       const struct virtio_irq_function *fn);
void virtio_irq_source_revoked(struct virtio_irq *vi, const struct rs_event *event);
void virtio_irq_source_tell(struct virtio_irq *vi, const struct rs_event *event);

/* irq.c */
int virtio_irq_domain_create(struct virtio_irq *vi);
void virtio_irq_domain_remove(struct virtio_irq *vi);
void virtio_irq_mask_work(struct work_struct *work);
void virtio_irq_deliver(struct virtio_irq *vi, struct virtio_irq_source *source);

#endif /* _VIRTIO_IRQ_PRIVATE_H */
