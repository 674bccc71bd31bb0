// SPDX-License-Identifier: GPL-2.0-only
/*
 * virtio-irq: the event queue
 *
 * A buffer is the device's from the moment it is added until the device has
 * completed it. Its content is copied before anything looks at it.
 */
#include <linux/scatterlist.h>
#include <linux/slab.h>

#include "virtio_irq.h"

static void event_work(struct work_struct *work);

int virtio_irq_events_alloc(struct virtio_irq *vi)
{
	unsigned int i;

	INIT_WORK(&vi->event_work, event_work);
	disable_work(&vi->event_work);
	for (i = 0; i < VIRTIO_IRQ_EVENT_BUFFERS; i++) {
		vi->event_buffers[i].data = kzalloc(VIRTIO_IRQ_EVENT_SIZE, GFP_KERNEL);
		if (!vi->event_buffers[i].data)
			return -ENOMEM;
	}
	return 0;
}

/* The device must have been reset, or never started. */
void virtio_irq_events_free(struct virtio_irq *vi)
{
	unsigned int i;

	for (i = 0; i < VIRTIO_IRQ_EVENT_BUFFERS; i++)
		kfree(vi->event_buffers[i].data);
}

/*
 * Gives the device every buffer that it does not have. One that could not be
 * added, for want of memory or of room in the queue, is tried again the next
 * time.
 */
static void refill(struct virtio_irq *vi)
{
	struct virtio_irq_event_buffer *buffer;
	struct scatterlist sg;
	unsigned int i;

	for (i = 0; i < VIRTIO_IRQ_EVENT_BUFFERS; i++) {
		buffer = &vi->event_buffers[i];
		if (buffer->with_device)
			continue;
		sg_init_one(&sg, buffer->data, VIRTIO_IRQ_EVENT_SIZE);
		if (virtqueue_add_inbuf(vi->event_vq, &sg, 1, buffer, GFP_KERNEL))
			break;
		buffer->with_device = true;
	}
	virtqueue_kick(vi->event_vq);
}

/*
 * The device is ready. From now on only the work touches the queue. When this
 * returns the device has the buffers, before the first request (IRQ-DRV-16).
 */
void virtio_irq_events_start(struct virtio_irq *vi, struct virtqueue *vq)
{
	vi->event_vq = vq;
	enable_work(&vi->event_work);
	schedule_work(&vi->event_work);
	flush_work(&vi->event_work);
}

/* The device has been reset, but a hostile one may still raise interrupts. */
void virtio_irq_events_stop(struct virtio_irq *vi)
{
	struct virtio_irq_event_buffer *buffer;

	disable_work_sync(&vi->event_work);
	while ((buffer = virtqueue_detach_unused_buf(vi->event_vq)))
		buffer->with_device = false;
	vi->event_vq = NULL;
}

/* Hard irq, and with INTx under the transport's own lock. */
void virtio_irq_event_done(struct virtqueue *vq)
{
	struct virtio_irq *vi = vq->vdev->priv;

	schedule_work(&vi->event_work);
}

static void dispatch(struct virtio_irq *vi, const u8 *used, size_t len)
{
	struct rs_event event;
	size_t i;

	for (i = 0; virtio_irq_rs_event(used, len, i, &event); i++)
		virtio_irq_functions_notify(vi, &event);
}

static void event_work(struct work_struct *work)
{
	struct virtio_irq *vi = container_of(work, struct virtio_irq, event_work);
	struct virtio_irq_event_buffer *buffer;
	u8 used[VIRTIO_IRQ_EVENT_SIZE];
	unsigned int budget, len;

	refill(vi);
	for (budget = VIRTIO_IRQ_EVENT_BUFFERS; budget; budget--) {
		buffer = virtqueue_get_buf(vi->event_vq, &len);
		if (!buffer)
			return;
		len = min_t(unsigned int, len, sizeof(used));
		memcpy(used, buffer->data, len);
		/* What is not written next time must not be read as an event again. */
		memset(buffer->data, 0, VIRTIO_IRQ_EVENT_SIZE);
		buffer->with_device = false;
		refill(vi);
		dispatch(vi, used, len);
	}
	/* There may be more; let others have the worker first. */
	schedule_work(&vi->event_work);
}
