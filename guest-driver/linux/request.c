// SPDX-License-Identifier: GPL-2.0-only
/*
 * virtio-irq: the request queue
 *
 * A call takes a slot, sends its request from the slot's buffers and waits. If
 * it times out, the buffers still belong to the device: the slot stays with
 * the device until the reply comes or the device is reset.
 */
#include <linux/jiffies.h>
#include <linux/moduleparam.h>
#include <linux/scatterlist.h>
#include <linux/slab.h>

#include "virtio_irq.h"

/* What a person would still call hanging: nothing here may wait for longer. */
#define TIMEOUT_MS_MAX 60000

static unsigned int timeout_ms = 5000;
module_param(timeout_ms, uint, 0644);
MODULE_PARM_DESC(timeout_ms, "Longest time in ms that one call waits for the host, 1 to 60000 (default 5000)");

static unsigned long time_left(const struct virtio_irq_call *call)
{
	unsigned long now = jiffies;

	return time_before(now, call->deadline) ? call->deadline - now : 0;
}

int virtio_irq_requests_alloc(struct virtio_irq *vi)
{
	struct virtio_irq_slot *slot;

	spin_lock_init(&vi->lock);
	INIT_LIST_HEAD(&vi->free_slots);
	init_waitqueue_head(&vi->slot_wait);
	INIT_LIST_HEAD(&vi->late_slots);
	init_waitqueue_head(&vi->late_wait);
	vi->down = -ENODEV;

	for (slot = vi->slots; slot < vi->slots + ARRAY_SIZE(vi->slots); slot++) {
		init_completion(&slot->done);
		slot->request = kzalloc(RS_SIZE_REQUEST, GFP_KERNEL);
		slot->reply = kzalloc(RS_SIZE_REPLY, GFP_KERNEL);
		slot->copy = kzalloc(RS_SIZE_REPLY, GFP_KERNEL);
		if (!slot->request || !slot->reply || !slot->copy)
			return -ENOMEM;
	}
	return 0;
}

/* The device must have been reset, or never started. */
void virtio_irq_requests_free(struct virtio_irq *vi)
{
	struct virtio_irq_slot *slot;

	for (slot = vi->slots; slot < vi->slots + ARRAY_SIZE(vi->slots); slot++) {
		kfree(slot->request);
		kfree(slot->reply);
		kfree(slot->copy);
	}
}

/* Before the device is ready; requests are still refused. */
int virtio_irq_requests_start(struct virtio_irq *vi, struct virtqueue *vq)
{
	/* A request and its reply take a descriptor each. */
	unsigned int fit = min_t(unsigned int, VIRTIO_IRQ_SLOTS,
				 virtqueue_get_vring_size(vq) / 2);
	unsigned int i;

	if (!fit || fit < vi->slot_count) {
		dev_err(&vi->vdev->dev, "the request queue is too short: %u\n",
			virtqueue_get_vring_size(vq));
		return -EINVAL;
	}

	guard(spinlock_irqsave)(&vi->lock);
	/* After a resume the slots are there, and some may be in use. */
	for (i = vi->slot_count; i < fit; i++)
		list_add_tail(&vi->slots[i].node, &vi->free_slots);
	vi->slot_count = fit;
	vi->request_vq = vq;
	return 0;
}

/* From now on requests are sent. */
void virtio_irq_requests_up(struct virtio_irq *vi)
{
	guard(spinlock_irqsave)(&vi->lock);
	vi->down = 0;
}

/*
 * From now on requests fail with @why, and so do those that wait for a reply.
 * The device may still write to the buffers of the latter; nobody can send
 * from them or free them before the device is reset.
 */
void virtio_irq_requests_down(struct virtio_irq *vi, int why)
{
	struct virtio_irq_slot *slot;

	guard(spinlock_irqsave)(&vi->lock);
	vi->down = why;
	for (slot = vi->slots; slot < vi->slots + vi->slot_count; slot++) {
		if (slot->state != SLOT_IN_FLIGHT)
			continue;
		slot->state = SLOT_HELD;
		slot->status = why;
		complete(&slot->done);
	}
	wake_up_all(&vi->slot_wait);
	wake_up_all(&vi->late_wait);
}

static void free_slot(struct virtio_irq *vi, struct virtio_irq_slot *slot)
{
	lockdep_assert_held(&vi->lock);
	slot->state = SLOT_FREE;
	list_add_tail(&slot->node, &vi->free_slots);
	wake_up(&vi->slot_wait);
	if (slot->owes == CALL_PLAIN)
		return;
	slot->owes = CALL_PLAIN;
	if (--vi->late)
		return;
	wake_up_all(&vi->late_wait);
	/* It stops while there is something late. */
	mod_delayed_work(system_highpri_wq, &vi->mask_work, 0);
}

/* After the reset: takes back what the device had. */
void virtio_irq_requests_reclaim(struct virtio_irq *vi)
{
	struct virtio_irq_slot *slot;

	guard(spinlock_irqsave)(&vi->lock);
	while (virtqueue_detach_unused_buf(vi->request_vq))
		;
	for (slot = vi->slots; slot < vi->slots + vi->slot_count; slot++) {
		if (slot->state == SLOT_LATE)
			list_del(&slot->node);
		if (slot->state == SLOT_LATE || slot->state == SLOT_ABANDONED)
			free_slot(vi, slot);
	}
	vi->request_vq = NULL;
}

/* Neither the length nor that the reply stays as it is can be trusted. */
static void take_reply(struct virtio_irq *vi, struct virtio_irq_slot *slot,
		       unsigned int used)
{
	lockdep_assert_held(&vi->event_lock);
	lockdep_assert_held(&vi->lock);
	slot->used = min_t(size_t, used, slot->reply_size);
	memcpy(slot->copy, slot->reply, slot->used);
	slot->status = virtio_irq_rs_replied(&vi->table, &vi->rs, vi, slot->sent,
					     slot->request_len, slot->copy,
					     slot->used);
	if (slot->state == SLOT_IN_FLIGHT) {
		slot->state = SLOT_HELD;
		complete(&slot->done);
	} else if (slot->owes == CALL_ALLOCATE) {
		slot->state = SLOT_LATE;
		list_add_tail(&slot->node, &vi->late_slots);
		schedule_work(&vi->late_work);
	} else {
		free_slot(vi, slot);
	}
}

/*
 * Processes the replies that the device has returned, in any context: what an
 * event means can depend on them (IRQ-DRV-39). Callbacks are never disabled, so
 * there is no need to look again after the last one, and a broken queue cannot
 * keep this loop busy.
 */
void virtio_irq_replies_take(struct virtio_irq *vi)
{
	struct virtio_irq_slot *slot;
	unsigned int used;

	lockdep_assert_held(&vi->event_lock);
	guard(spinlock)(&vi->lock);
	if (!vi->request_vq)
		return;
	while ((slot = virtqueue_get_buf(vi->request_vq, &used))) {
		/* Of all others the device is being taken down. */
		if (slot->state == SLOT_IN_FLIGHT || slot->state == SLOT_ABANDONED)
			take_reply(vi, slot, used);
	}
}

/* Hard irq, and with INTx under the transport's own lock. */
void virtio_irq_request_done(struct virtqueue *vq)
{
	struct virtio_irq *vi = vq->vdev->priv;

	guard(spinlock_irqsave)(&vi->event_lock);
	virtio_irq_replies_take(vi);
}

/* Whether there is no need to wait: for a slot, or because of @err. */
static bool take_slot(struct virtio_irq_call *call, int *err)
{
	struct virtio_irq *vi = call->vi;

	guard(spinlock_irqsave)(&vi->lock);
	*err = vi->down;
	if (*err)
		return true;
	call->slot = list_first_entry_or_null(&vi->free_slots,
					      struct virtio_irq_slot, node);
	if (!call->slot)
		return false;
	list_del(&call->slot->node);
	call->slot->state = SLOT_HELD;
	return true;
}

static int wait_for_slot(struct virtio_irq_call *call)
{
	int err;

	/* Exclusive: one slot, one waiter, the one that has waited longest. */
	if (!wait_event_idle_exclusive_timeout(call->vi->slot_wait,
					       take_slot(call, &err),
					       time_left(call)))
		return -ETIMEDOUT;
	return err;
}

static int submit(struct virtio_irq *vi, struct virtio_irq_slot *slot,
		  size_t request_len, size_t reply_size)
{
	struct scatterlist out, in, *sgs[] = { &out, &in };
	int err;

	slot->request_len = request_len;
	slot->reply_size = reply_size;
	sg_init_one(&out, slot->request, request_len);
	sg_init_one(&in, slot->reply, reply_size);
	reinit_completion(&slot->done);
	slot->status = 0;

	guard(spinlock_irqsave)(&vi->lock);
	if (vi->down)
		return vi->down;
	err = virtqueue_add_sgs(vi->request_vq, sgs, 1, 1, slot, GFP_ATOMIC);
	if (err)
		return err == -ENOSPC ? -EIO : err;
	slot->state = SLOT_IN_FLIGHT;
	/* Under the lock: after it, the queue may be gone. */
	virtqueue_kick(vi->request_vq);
	return 0;
}

/* Leaves the slot to the device, unless the reply is there by now. */
static bool abandon(struct virtio_irq_call *call)
{
	struct virtio_irq_slot *slot = call->slot;

	guard(spinlock_irqsave)(&call->vi->lock);
	if (slot->state != SLOT_IN_FLIGHT)
		return false;
	slot->state = SLOT_ABANDONED;
	slot->owes = call->kind;
	if (slot->owes != CALL_PLAIN)
		call->vi->late++;
	call->slot = NULL;
	return true;
}

ssize_t virtio_irq_exchange(void *ctx, const u8 *request, size_t request_len,
			    size_t reply_size, const u8 **reply)
{
	struct virtio_irq_call *call = ctx;
	struct virtio_irq_slot *slot;
	int err;

	if (WARN_ON_ONCE(request_len > RS_SIZE_REQUEST ||
			 reply_size > RS_SIZE_REPLY))
		return -EINVAL;
	if (!call->slot) {
		err = wait_for_slot(call);
		if (err)
			return err;
	}
	slot = call->slot;
	memcpy(slot->request, request, request_len);
	memcpy(slot->sent, request, request_len);
	/* A device that claims more than it wrote must not show an old reply. */
	memset(slot->reply, 0, reply_size);

	err = submit(call->vi, slot, request_len, reply_size);
	if (err)
		return err;
	call->sent = true;
	if (!wait_for_completion_timeout(&slot->done, time_left(call)) &&
	    abandon(call))
		return -ETIMEDOUT;
	if (slot->status)
		return slot->status;

	*reply = slot->copy;
	return slot->used;
}

void virtio_irq_call_begin(struct virtio_irq_call *call, struct virtio_irq *vi)
{
	unsigned int ms = clamp(READ_ONCE(timeout_ms), 1U, TIMEOUT_MS_MAX);

	call->vi = vi;
	call->kind = CALL_PLAIN;
	call->sent = false;
	call->slot = NULL;
	call->deadline = jiffies + msecs_to_jiffies(ms);
}

void virtio_irq_call_end(struct virtio_irq_call *call)
{
	if (!call->slot)
		return;
	guard(spinlock_irqsave)(&call->vi->lock);
	free_slot(call->vi, call->slot);
}

/* Whether every request about sources has had its effect. */
bool virtio_irq_settled(struct virtio_irq *vi)
{
	guard(spinlock_irqsave)(&vi->lock);
	return !vi->late;
}

/* Waits until that is so. Not under sources_lock, which late_work takes. */
int virtio_irq_settle(struct virtio_irq_call *call)
{
	struct virtio_irq *vi = call->vi;

	if (!wait_event_idle_timeout(vi->late_wait,
				     READ_ONCE(vi->down) || virtio_irq_settled(vi),
				     time_left(call)))
		return -ETIMEDOUT;
	return READ_ONCE(vi->down);
}

/* The next request that may have allocated sources too late, or NULL. */
struct virtio_irq_slot *virtio_irq_late_begin(struct virtio_irq *vi)
{
	struct virtio_irq_slot *slot;

	guard(spinlock_irqsave)(&vi->lock);
	slot = list_first_entry_or_null(&vi->late_slots, struct virtio_irq_slot,
					node);
	if (!slot)
		return NULL;
	list_del(&slot->node);
	slot->state = SLOT_HELD;
	return slot;
}

void virtio_irq_late_end(struct virtio_irq *vi, struct virtio_irq_slot *slot)
{
	guard(spinlock_irqsave)(&vi->lock);
	free_slot(vi, slot);
}
