// SPDX-License-Identifier: GPL-2.0-only
/*
 * virtio-irq: the event queue
 *
 * A buffer is the device's from the moment it is added until the device has
 * completed it. Its content is copied before anything looks at it.
 *
 * Interrupts are delivered in the queue's own interrupt. Other events are for
 * process context: a buffer with such an event waits for the work, and is only
 * then given back to the device. So a device that says more than clients can
 * listen to runs out of buffers, and nothing piles up here.
 */
#include <linux/scatterlist.h>
#include <linux/slab.h>

#include "virtio_irq.h"

static void event_work(struct work_struct *work);

int virtio_irq_events_alloc(struct virtio_irq *vi)
{
	struct virtio_irq_event_buffer *buffer;
	unsigned int i;

	spin_lock_init(&vi->event_lock);
	INIT_LIST_HEAD(&vi->event_backlog);
	INIT_WORK(&vi->event_work, event_work);
	disable_work(&vi->event_work);
	for (i = 0; i < VIRTIO_IRQ_EVENT_BUFFERS; i++) {
		buffer = &vi->event_buffers[i];
		buffer->data = kzalloc(VIRTIO_IRQ_EVENT_SIZE, GFP_KERNEL);
		buffer->copy = kzalloc(VIRTIO_IRQ_EVENT_SIZE, GFP_KERNEL);
		if (!buffer->data || !buffer->copy)
			return -ENOMEM;
	}
	return 0;
}

/* The device must have been reset, or never started. */
void virtio_irq_events_free(struct virtio_irq *vi)
{
	unsigned int i;

	for (i = 0; i < VIRTIO_IRQ_EVENT_BUFFERS; i++) {
		kfree(vi->event_buffers[i].data);
		kfree(vi->event_buffers[i].copy);
	}
}

/*
 * Gives the device every buffer that nobody uses. One that could not be added,
 * because the queue is shorter, is tried again the next time.
 */
static void refill(struct virtio_irq *vi)
{
	struct virtio_irq_event_buffer *buffer;
	struct scatterlist sg;
	unsigned int i;

	lockdep_assert_held(&vi->event_lock);
	for (i = 0; i < VIRTIO_IRQ_EVENT_BUFFERS; i++) {
		buffer = &vi->event_buffers[i];
		if (buffer->state != BUFFER_FREE)
			continue;
		/* What is not written must not be read as an event again. */
		memset(buffer->data, 0, VIRTIO_IRQ_EVENT_SIZE);
		sg_init_one(&sg, buffer->data, VIRTIO_IRQ_EVENT_SIZE);
		if (virtqueue_add_inbuf(vi->event_vq, &sg, 1, buffer, GFP_ATOMIC))
			break;
		buffer->state = BUFFER_WITH_DEVICE;
	}
	virtqueue_kick(vi->event_vq);
}

/*
 * The device is ready. When this returns it has the buffers, before the first
 * request (IRQ-DRV-16, IRQ-DRV-36).
 */
void virtio_irq_events_start(struct virtio_irq *vi, struct virtqueue *vq)
{
	enable_work(&vi->event_work);
	guard(spinlock_irqsave)(&vi->event_lock);
	vi->event_vq = vq;
	refill(vi);
}

/* The device has been reset, but a hostile one may still raise interrupts. */
void virtio_irq_events_stop(struct virtio_irq *vi)
{
	struct virtio_irq_event_buffer *buffer;
	struct virtqueue *vq;

	scoped_guard(spinlock_irqsave, &vi->event_lock) {
		vq = vi->event_vq;
		vi->event_vq = NULL;
	}
	/* The work only adds to the queue under the lock, and if there is one. */
	disable_work_sync(&vi->event_work);
	while ((buffer = virtqueue_detach_unused_buf(vq)))
		buffer->state = BUFFER_FREE;
	/* What was said before the reset means nothing after it. */
	while ((buffer = list_first_entry_or_null(&vi->event_backlog,
						  struct virtio_irq_event_buffer,
						  node))) {
		list_del(&buffer->node);
		buffer->state = BUFFER_FREE;
	}
}

/* Takes what can be taken now, and keeps what is to be told later. */
static void take(struct virtio_irq *vi, struct virtio_irq_event_buffer *buffer,
		 size_t used)
{
	struct rs_event event;
	size_t i;

	lockdep_assert_held(&vi->event_lock);
	buffer->told_count = 0;
	for (i = 0; i < VIRTIO_IRQ_EVENTS; i++) {
		if (!virtio_irq_rs_event(&vi->table, buffer->copy, used, i, false,
					 &event))
			return;
		if (event.kind == RS_EVENT_AFTER_REPLIES) {
			virtio_irq_replies_take(vi);
			virtio_irq_rs_event(&vi->table, buffer->copy, used, i,
					    true, &event);
		}
		switch (event.kind) {
		case RS_EVENT_FIRED:
			virtio_irq_source_fired(vi, event.source);
			continue;
		case RS_EVENT_NOTHING:
			continue;
		case VIRTIO_IRQ_EVENT_SOURCE_REVOKED:
			virtio_irq_source_revoked(vi, &event);
			break;
		case VIRTIO_IRQ_EVENT_GONE:
			virtio_irq_function_ended(vi, event.function);
			break;
		}
		buffer->told[buffer->told_count++] = event;
	}
}

/*
 * Processes the buffers that the device has returned, in any context. They are
 * given back only after the last one, so that a device that fills them at once
 * cannot keep this loop busy.
 */
void virtio_irq_events_take(struct virtio_irq *vi)
{
	struct virtio_irq_event_buffer *buffer;
	unsigned int used;

	guard(spinlock_irqsave)(&vi->event_lock);
	if (!vi->event_vq)
		return;
	while ((buffer = virtqueue_get_buf(vi->event_vq, &used))) {
		used = min(used, VIRTIO_IRQ_EVENT_SIZE);
		memcpy(buffer->copy, buffer->data, used);
		buffer->state = BUFFER_FREE;
		take(vi, buffer, used);
		if (!buffer->told_count)
			continue;
		buffer->state = BUFFER_TOLD;
		list_add_tail(&buffer->node, &vi->event_backlog);
		schedule_work(&vi->event_work);
	}
	virtio_irq_rs_drained(&vi->table);
	refill(vi);
}

/* Hard irq, and with INTx under the transport's own lock. */
void virtio_irq_event_done(struct virtqueue *vq)
{
	virtio_irq_events_take(vq->vdev->priv);
}

static void tell(struct virtio_irq *vi, const struct virtio_irq_event_buffer *buffer)
{
	const struct rs_event *event;

	for (event = buffer->told; event < buffer->told + buffer->told_count; event++) {
		if (event->kind == VIRTIO_IRQ_EVENT_SOURCE_REVOKED)
			virtio_irq_source_tell(vi, event);
		else
			virtio_irq_functions_notify(vi, event);
	}
}

static struct virtio_irq_event_buffer *next_told(struct virtio_irq *vi)
{
	struct virtio_irq_event_buffer *buffer;

	guard(spinlock_irqsave)(&vi->event_lock);
	buffer = list_first_entry_or_null(&vi->event_backlog,
					  struct virtio_irq_event_buffer, node);
	if (buffer)
		list_del(&buffer->node);
	return buffer;
}

static void event_work(struct work_struct *work)
{
	struct virtio_irq *vi = container_of(work, struct virtio_irq, event_work);
	struct virtio_irq_event_buffer *buffer;
	unsigned int budget;

	for (budget = VIRTIO_IRQ_EVENT_BUFFERS; budget; budget--) {
		buffer = next_told(vi);
		if (!buffer)
			return;
		tell(vi, buffer);
		guard(spinlock_irqsave)(&vi->event_lock);
		buffer->state = BUFFER_FREE;
		if (vi->event_vq)
			refill(vi);
	}
	/* There may be more; let others have the worker first. */
	schedule_work(&vi->event_work);
}
