/* SPDX-License-Identifier: GPL-2.0-only */
/* Inside of virtio_irq.ko. */
#ifndef _VIRTIO_IRQ_PRIVATE_H
#define _VIRTIO_IRQ_PRIVATE_H

#include <linux/completion.h>
#include <linux/kref.h>
#include <linux/list.h>
#include <linux/mutex.h>
#include <linux/spinlock.h>
#include <linux/virtio.h>
#include <linux/wait.h>
#include <linux/workqueue.h>

#include "rust_core.h"

/*
 * Requests that can be with the device at one time. A device that stops
 * answering keeps their buffers until it is reset, so this also bounds the
 * memory that it can hold on to.
 */
#define VIRTIO_IRQ_SLOTS 8

/* Buffers of the event queue, and the size of each: 16 events. */
#define VIRTIO_IRQ_EVENT_BUFFERS 8
#define VIRTIO_IRQ_EVENT_SIZE 256

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
};

/* A request and its reply. Each buffer is an allocation of its own for DMA. */
struct virtio_irq_slot {
	struct list_head node;
	enum virtio_irq_slot_state state;
	struct completion done;
	int status;		/* 0: the device completed it */
	unsigned int used;	/* bytes that the device says it wrote */
	u8 *request;		/* device-readable */
	u8 *reply;		/* device-writable */
	u8 *copy;		/* of the reply, where the device cannot reach */
};

struct virtio_irq_event_buffer {
	bool with_device;
	u8 *data;
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
 * @lock: protects @down, the request queue, @free_slots and the slots' state.
 *	Taken in hard irq.
 * @down: 0, or the errno with which requests fail
 * @request_vq: request queue; NULL while there are no queues
 * @free_slots: slots that nobody uses
 * @slot_wait: for a free slot, or @down
 * @slots: all slots
 * @slot_count: how many of them fit the queue
 * @event_vq: event queue; only @event_work touches it while that is enabled
 * @event_work: fills the queue and takes events from it
 * @event_buffers: all buffers of the event queue
 * @functions_lock: protects @functions and their notify callbacks; held while
 *	one runs
 * @functions: handles of this device
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

	struct virtqueue *event_vq;
	struct work_struct event_work;
	struct virtio_irq_event_buffer event_buffers[VIRTIO_IRQ_EVENT_BUFFERS];

	struct mutex functions_lock;	/* functions, while they are notified */
	struct list_head functions;
};

/* One operation of the Rust core: its exchanges share a slot and a deadline. */
struct virtio_irq_call {
	struct virtio_irq *vi;
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
void virtio_irq_call_begin(struct virtio_irq_call *call, struct virtio_irq *vi);
void virtio_irq_call_end(struct virtio_irq_call *call);

/* event.c */
int virtio_irq_events_alloc(struct virtio_irq *vi);
void virtio_irq_events_free(struct virtio_irq *vi);
void virtio_irq_events_start(struct virtio_irq *vi, struct virtqueue *vq);
void virtio_irq_events_stop(struct virtio_irq *vi);
void virtio_irq_event_done(struct virtqueue *vq);

/* function.c */
void virtio_irq_functions_notify(struct virtio_irq *vi,
				 const struct rs_event *event);
void virtio_irq_functions_gone(struct virtio_irq *vi);

#endif /* _VIRTIO_IRQ_PRIVATE_H */
