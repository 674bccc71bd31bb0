// SPDX-License-Identifier: GPL-2.0-only
/*
 * virtio-irq: sources, vectors that the device allocates and delivers
 *
 * Which sources there are, and what a reply or an event means for them, is
 * decided by the Rust core; its table takes both in the order in which the
 * device returned them, where the queues are. Here is what is Linux: who waits
 * for what, and the interrupts of clients.
 *
 * Requests about sources go one at a time, under sources_lock. A request that
 * timed out still has its effect at some time, and nothing is allocated before
 * that.
 */
#include <linux/mm.h>
#include <linux/slab.h>

#include "virtio_irq.h"

static void late_work(struct work_struct *work);

/* @max_sources: what the device says, 0 without event delivery */
int virtio_irq_sources_alloc(struct virtio_irq *vi, u32 max_sources)
{
	unsigned int limit = min_t(u32, max_sources, VIRTIO_IRQ_SOURCES_MAX);

	if (!limit)
		return 0;
	vi->by_hwirq = kvcalloc(limit, sizeof(*vi->by_hwirq), GFP_KERNEL);
	vi->by_id = kvcalloc(limit, sizeof(*vi->by_id), GFP_KERNEL);
	vi->slots_of_table = kvcalloc(limit, RS_SIZE_SLOT, GFP_KERNEL);
	vi->changed = bitmap_zalloc(limit, GFP_KERNEL);
	vi->late_given = kcalloc(RS_SIZE_REPLY / RS_SIZE_SOURCE,
				 sizeof(*vi->late_given), GFP_KERNEL);
	if (!vi->by_hwirq || !vi->by_id || !vi->slots_of_table || !vi->changed ||
	    !vi->late_given)
		return -ENOMEM;
	vi->source_limit = limit;
	virtio_irq_rs_table_init(&vi->table, vi->slots_of_table, limit);
	return virtio_irq_domain_create(vi);
}

/* Before anything can fail, and without the device. */
void virtio_irq_sources_init(struct virtio_irq *vi)
{
	mutex_init(&vi->sources_lock);
	ida_init(&vi->hwirqs);
	INIT_DELAYED_WORK(&vi->mask_work, virtio_irq_mask_work);
	INIT_WORK(&vi->late_work, late_work);
	vi->sources_down = -ENODEV;
	virtio_irq_rs_table_init(&vi->table, NULL, 0);
}

/* Nobody has sources. */
void virtio_irq_sources_free(struct virtio_irq *vi)
{
	cancel_delayed_work_sync(&vi->mask_work);
	cancel_work_sync(&vi->late_work);
	virtio_irq_domain_remove(vi);
	ida_destroy(&vi->hwirqs);
	kvfree(vi->by_hwirq);
	kvfree(vi->by_id);
	kvfree(vi->slots_of_table);
	bitmap_free(vi->changed);
	kfree(vi->late_given);
	mutex_destroy(&vi->sources_lock);
}

/* The device was reset, and has none. From now on sources are allocated. */
void virtio_irq_sources_up(struct virtio_irq *vi)
{
	guard(mutex)(&vi->sources_lock);
	scoped_guard(spinlock_irqsave, &vi->event_lock)
		virtio_irq_rs_table_reset(&vi->table);
	vi->sources_down = 0;
}

bool virtio_irq_is_held(const struct virtio_irq_source *source)
{
	return source->irq && !test_bit(SOURCE_ENDED, &source->state);
}

/* From now on nothing is delivered of the source. */
void virtio_irq_forget(struct virtio_irq *vi, struct virtio_irq_source *source)
{
	guard(spinlock_irqsave)(&vi->event_lock);
	/* The function may have gone just now, and its ids be others'. */
	if (test_bit(SOURCE_ENDED, &source->state))
		return;
	vi->by_id[source->id] = NULL;
	virtio_irq_rs_leave(&vi->table, source->id);
}

int virtio_irq_free_ids(struct virtio_irq_call *call, u32 first,
			unsigned int count)
{
	struct virtio_irq *vi = call->vi;
	int err;

	if (!count)
		return 0;
	call->sent = false;
	err = virtio_irq_rs_change(call, RS_FREE, first, count);
	/* Not worth a word: it is gone, or does it later. */
	if (err && err != -ENODEV && err != -ESHUTDOWN && err != -ENOENT &&
	    !(err == -ETIMEDOUT && call->sent))
		dev_warn_ratelimited(&vi->vdev->dev,
				     "cannot free sources %u to %u, which are lost until the device is reset: error %d\n",
				     first, first + count - 1, err);
	return err;
}

/* Frees what the device gave and nobody has taken. */
void virtio_irq_free_given(struct virtio_irq_call *call,
			   const struct rs_source *given, unsigned int count)
{
	struct virtio_irq *vi = call->vi;
	unsigned int begin = 0, i;

	scoped_guard(spinlock_irqsave, &vi->event_lock)
		for (i = 0; i < count; i++)
			virtio_irq_rs_leave(&vi->table, given[i].id);
	for (i = 1; i <= count; i++) {
		if (i < count && given[i].id == given[i - 1].id + 1)
			continue;
		virtio_irq_free_ids(call, given[begin].id, i - begin);
		begin = i;
	}
}

/*
 * The device gave sources of the function, and nobody knows which
 * (IRQ-DRV-44). What would free them takes the others along.
 */
void virtio_irq_free_unknown(struct virtio_irq_call *call, u16 function)
{
	struct virtio_irq *vi = call->vi;
	unsigned int i;

	lockdep_assert_held(&vi->sources_lock);
	for (i = 0; i < vi->source_limit; i++)
		if (vi->by_hwirq[i] && virtio_irq_is_held(vi->by_hwirq[i]) &&
		    vi->by_hwirq[i]->function == function)
			break;
	if (i == vi->source_limit &&
	    !virtio_irq_rs_reset_function(call, function))
		return;
	dev_warn_ratelimited(&vi->vdev->dev,
			     "sources of function %u are lost until the device is reset: its reply makes no sense\n",
			     function);
}

/* Frees what was allocated after the caller had given up. */
static void late_work(struct work_struct *work)
{
	struct virtio_irq *vi = container_of(work, struct virtio_irq, late_work);
	struct virtio_irq_slot *slot;
	struct virtio_irq_call call;
	u16 function;
	u32 count;
	int err;

	guard(mutex)(&vi->sources_lock);
	while ((slot = virtio_irq_late_begin(vi))) {
		err = virtio_irq_rs_allocated(&vi->rs, slot->sent,
					      slot->request_len, slot->copy,
					      slot->used, vi->late_given,
					      &count, &function);
		if (!vi->sources_down && (!err || slot->status)) {
			virtio_irq_call_begin(&call, vi);
			call.kind = CALL_CHANGE;
			if (slot->status)
				virtio_irq_free_unknown(&call, function);
			else
				virtio_irq_free_given(&call, vi->late_given, count);
			virtio_irq_call_end(&call);
		}
		virtio_irq_late_end(vi, slot);
	}
}

/*
 * Gives everything back and refuses to allocate more. The clients still have
 * their interrupts, which are silent from now on.
 */
void virtio_irq_sources_down(struct virtio_irq *vi, int why)
{
	struct virtio_irq_source *source;
	struct virtio_irq_call call;
	unsigned int i;
	u32 first = 0, count = 0;
	int err = 0;

	guard(mutex)(&vi->sources_lock);
	if (vi->sources_down)
		return;
	vi->sources_down = why;
	virtio_irq_call_begin(&call, vi);
	call.kind = CALL_CHANGE;
	for (i = 0; i < vi->source_limit; i++) {
		source = vi->by_hwirq[i];
		if (!source || !virtio_irq_is_held(source))
			continue;
		virtio_irq_forget(vi, source);
		set_bit(SOURCE_ENDED, &source->state);
		if (count && source->id != first + count) {
			/* One that does not answer is not asked again. */
			if (!err)
				err = virtio_irq_free_ids(&call, first, count);
			count = 0;
		}
		if (!count)
			first = source->id;
		count++;
	}
	if (!err)
		virtio_irq_free_ids(&call, first, count);
	virtio_irq_call_end(&call);
}

/* The handle goes, its sources stay. */
void virtio_irq_sources_orphan(struct virtio_irq *vi,
			       const struct virtio_irq_function *fn)
{
	unsigned int i;

	guard(mutex)(&vi->sources_lock);
	for (i = 0; i < vi->source_limit; i++)
		if (vi->by_hwirq[i] && vi->by_hwirq[i]->sources->fn == fn)
			vi->by_hwirq[i]->sources->fn = NULL;
}

static struct virtio_irq_source *next_untold(struct virtio_irq *vi)
{
	struct virtio_irq_source *source;
	unsigned int i;

	lockdep_assert_held(&vi->sources_lock);
	for (i = 0; i < vi->source_limit; i++) {
		source = vi->by_hwirq[i];
		if (source && test_bit(SOURCE_ENDED, &source->state) &&
		    !test_and_set_bit(SOURCE_TOLD, &source->state))
			return source;
	}
	return NULL;
}

/* Tells clients that their sources have ended with the device's reset. */
void virtio_irq_sources_ended(struct virtio_irq *vi)
{
	const struct virtio_irq_function *fn;
	struct virtio_irq_source *source;
	enum virtio_irq_type type;
	u16 vector;

	for (;;) {
		scoped_guard(mutex, &vi->sources_lock) {
			source = next_untold(vi);
			if (!source)
				return;
			fn = source->sources->fn;
			type = source->sources->type;
			vector = source->vector;
		}
		/* The client may free the source in its callback. */
		virtio_irq_function_revoked(vi, fn, type, vector);
	}
}

/* The client's source; it can have none of a source that the device gave. */
static struct virtio_irq_source *find_source(struct virtio_irq *vi, u32 id)
{
	lockdep_assert_held(&vi->event_lock);
	return id < vi->source_limit ? vi->by_id[id] : NULL;
}

void virtio_irq_source_fired(void *ctx, u32 id)
{
	struct virtio_irq *vi = ctx;
	struct virtio_irq_source *source = find_source(vi, id);

	if (source)
		virtio_irq_deliver(vi, source);
}

void virtio_irq_source_revoked(struct virtio_irq *vi, const struct rs_event *event)
{
	struct virtio_irq_source *source = find_source(vi, event->source);

	if (source)
		set_bit(SOURCE_REVOKED, &source->state);
}

/* Of a revocation that virtio_irq_source_revoked() has seen (IRQ-DRV-41). */
void virtio_irq_source_tell(struct virtio_irq *vi, const struct rs_event *event)
{
	const struct virtio_irq_function *fn;
	struct virtio_irq_source *source;
	enum virtio_irq_type type;
	u16 vector;

	scoped_guard(spinlock_irqsave, &vi->event_lock) {
		source = find_source(vi, event->source);
		if (!source || !test_bit(SOURCE_REVOKED, &source->state) ||
		    test_and_set_bit(SOURCE_TOLD, &source->state))
			return;
		fn = source->sources->fn;
		type = source->sources->type;
		vector = source->vector;
	}
	virtio_irq_function_revoked(vi, fn, type, vector);
}

/* All sources of the function have ended, and their ids can be others'. */
void virtio_irq_function_ended(void *ctx, u16 function)
{
	struct virtio_irq *vi = ctx;
	struct virtio_irq_source *source;
	unsigned int i;

	lockdep_assert_held(&vi->event_lock);
	for (i = 0; i < vi->source_limit; i++) {
		source = vi->by_id[i];
		if (!source || source->function != function)
			continue;
		set_bit(SOURCE_ENDED, &source->state);
		/* The function's handles are told of that. */
		set_bit(SOURCE_TOLD, &source->state);
		vi->by_id[i] = NULL;
	}
}
