// SPDX-License-Identifier: GPL-2.0-only
/*
 * virtio-irq: the interface for drivers that let the host deliver vectors
 */
#include <linux/export.h>
#include <linux/interrupt.h>
#include <linux/irq.h>
#include <linux/irqdomain.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/slab.h>

#include "virtio_irq.h"

/* sources_lock, with nothing late. */
static int lock_settled(struct virtio_irq_call *call)
{
	struct virtio_irq *vi = call->vi;
	int err;

	for (;;) {
		err = virtio_irq_settle(call);
		if (err)
			return err;
		mutex_lock(&vi->sources_lock);
		if (virtio_irq_settled(vi))
			return 0;
		mutex_unlock(&vi->sources_lock);
	}
}

/* What is in the event queue by now is about former sources (IRQ-DRV-38). */
static void drain(struct virtio_irq *vi)
{
	bool must;

	lockdep_assert_held(&vi->sources_lock);
	scoped_guard(spinlock_irqsave, &vi->event_lock)
		must = virtio_irq_rs_must_drain(&vi->table);
	if (must)
		virtio_irq_events_take(vi);
}

/* Makes new sources known, with what has arrived for them already. */
static int publish(struct virtio_irq *vi, struct virtio_irq_sources *sources)
{
	struct virtio_irq_source *source, *end = sources->source + sources->count;
	int err;

	guard(spinlock_irqsave)(&vi->event_lock);
	for (source = sources->source; source < end; source++) {
		err = virtio_irq_rs_check(&vi->table, source->id, source->function);
		if (err)
			return err;
	}
	for (source = sources->source; source < end; source++) {
		vi->by_id[source->id] = source;
		virtio_irq_rs_listen(&vi->table, vi, source->id);
	}
	return 0;
}

static void unmap(struct virtio_irq *vi, struct virtio_irq_source *source)
{
	lockdep_assert_held(&vi->sources_lock);
	irq_dispose_mapping(source->irq);
	source->irq = 0;
	vi->by_hwirq[source->hwirq] = NULL;
	clear_bit(source->hwirq, vi->changed);
	ida_free(&vi->hwirqs, source->hwirq);
}

static int map(struct virtio_irq *vi, struct virtio_irq_source *source)
{
	int hwirq;

	lockdep_assert_held(&vi->sources_lock);
	hwirq = ida_alloc_max(&vi->hwirqs, vi->source_limit - 1, GFP_KERNEL);
	if (hwirq < 0)
		return hwirq;
	source->hwirq = hwirq;
	vi->by_hwirq[hwirq] = source;
	source->irq = irq_create_mapping(vi->domain, hwirq);
	if (source->irq)
		return 0;
	vi->by_hwirq[hwirq] = NULL;
	ida_free(&vi->hwirqs, hwirq);
	return -ENOMEM;
}

static int add(struct virtio_irq *vi, struct virtio_irq_sources *sources,
	       const struct rs_source *given, unsigned int count, u16 function)
{
	struct virtio_irq_source *source;
	unsigned int i;
	int err = 0;

	sources->count = count;
	for (i = 0; i < count; i++) {
		source = &sources->source[i];
		source->sources = sources;
		source->id = given[i].id;
		source->function = function;
		source->vector = given[i].vector;
		source->msg = given[i].msg;
		/* As an interrupt that nobody has requested is to Linux. */
		source->state = BIT(SOURCE_MASKED);
		err = map(vi, source);
		if (err)
			break;
	}
	if (!err)
		err = publish(vi, sources);
	if (err)
		while (i--)
			unmap(vi, &sources->source[i]);
	return err;
}

/**
 * virtio_irq_alloc_sources() - let the host deliver vectors of a function
 * @fn: handle from virtio_irq_get()
 * @type: kind of interrupt
 * @first: least vector that is of use
 * @least: least number of vectors, 1 or more
 * @most: greatest number of vectors, @least or more
 * @flags: 0, or VIRTIO_IRQ_CONTIGUOUS for a block
 *
 * May sleep, for about as long as the module parameter timeout_ms says.
 *
 * The vectors are the lowest from @first on that are free, or the first block of
 * them. Each has a Linux interrupt for request_irq(), which can be had at once:
 * what fires before that is kept. The function is to be told each vector's
 * message, and nothing is to be enabled in its own capability; nor may anything
 * be while it has sources. INTx has no message, and its interrupt is a level
 * that ends with the handler.
 *
 * Handlers run with interrupts disabled, in the virtio-irq device's own
 * interrupt or in a thread that looks through its events, and in the former case
 * on the CPU that takes that; the affinity of a source cannot be set.
 * disable_irq() and enable_irq() work from any context, and as with an MSI an
 * interrupt that comes meanwhile is handled by enable_irq(); if the mask has
 * reached the host before, several are one.
 *
 * Sources end when the function or the virtio-irq device goes, when the host
 * takes them back, and when the virtio-irq device suspends or is reset; the
 * handle's notify callback tells, and their interrupts are silent from then on.
 * They are to be freed all the same, and before this module can be unloaded.
 *
 * Return: sources for virtio_irq_free_sources(), or an ERR_PTR:
 *
 * * -EBUSY: the function's interrupts are in use: in its own capability, or as
 *   sources of another type
 * * -EAGAIN: the VMM did not hand the function over yet: ask again later
 * * -ENOSPC: fewer than @least are to be had
 * * -EADDRNOTAVAIL: the host has vectors, and no block of messages for them
 * * -ERANGE: the function does not have as many vectors of this type
 * * -EINVAL: @least is 0 or more than @most, or @type or @flags make no sense
 * * -EPERM: the host refuses: nothing isolates the function
 * * -ENODEV: the function or the virtio-irq device is gone
 * * -EOPNOTSUPP: the device delivers no interrupts, or not of this function
 * * -ETIMEDOUT: the host did not answer in time, or still owes an earlier answer
 * * -EIO, -EPROTO, -ESHUTDOWN, -ENOMEM: see virtio_irq_get_messages()
 */
struct virtio_irq_sources *
virtio_irq_alloc_sources(struct virtio_irq_function *fn,
			 enum virtio_irq_type type, unsigned int first,
			 unsigned int least, unsigned int most,
			 unsigned int flags)
{
	struct rs_wanted wanted = {
		.type = type,
		.flags = flags,
		.first = first,
		.least = least,
	};
	struct virtio_irq_sources *sources;
	struct virtio_irq *vi = fn->vi;
	struct virtio_irq_call call;
	struct rs_source *given;
	u32 count;
	int err;

	might_sleep();
	if (!vi->source_limit)
		return ERR_PTR(-EOPNOTSUPP);
	if (!least || most < least)
		return ERR_PTR(-EINVAL);
	if (least > vi->source_limit)
		return ERR_PTR(-ENOSPC);
	wanted.most = min(most, vi->source_limit);

	sources = kvzalloc(struct_size(sources, source, wanted.most), GFP_KERNEL);
	given = kvcalloc(wanted.most, sizeof(*given), GFP_KERNEL);
	if (!sources || !given) {
		err = -ENOMEM;
		goto free_memory;
	}
	sources->vi = vi;
	sources->fn = fn;
	sources->type = type;

	virtio_irq_call_begin(&call, vi);
	err = lock_settled(&call);
	if (err)
		goto end_call;
	err = vi->sources_down;
	if (!err)
		err = virtio_irq_function_id(fn, &call, &wanted.function);
	if (err)
		goto unlock;
	drain(vi);
	call.kind = CALL_ALLOCATE;
	err = virtio_irq_rs_allocate(&vi->rs, &call, &wanted, given, &count);
	call.kind = CALL_CHANGE;
	if (!err) {
		err = add(vi, sources, given, count, wanted.function);
		/* Of a function that is gone there is nothing to be freed. */
		if (err && err != -ENODEV)
			virtio_irq_free_given(&call, given, count);
	} else if (err == -EBADMSG) {
		err = -EPROTO;
		virtio_irq_free_unknown(&call, wanted.function);
	}
	if (!err) {
		kref_get(&vi->ref);
		/* The caller uses a symbol of this module. */
		__module_get(THIS_MODULE);
	}
unlock:
	mutex_unlock(&vi->sources_lock);
end_call:
	virtio_irq_call_end(&call);
free_memory:
	kvfree(given);
	if (!err)
		return sources;
	kvfree(sources);
	return ERR_PTR(err);
}
EXPORT_SYMBOL_GPL(virtio_irq_alloc_sources);

/* Frees those of the range that are not free yet. */
static void free_range(struct virtio_irq_sources *sources, unsigned int first,
		       unsigned int count)
{
	struct virtio_irq_source *source = sources->source + first;
	struct virtio_irq_source *end = source + count, *run = NULL;
	struct virtio_irq *vi = sources->vi;
	struct virtio_irq_call call;

	virtio_irq_call_begin(&call, vi);
	call.kind = CALL_CHANGE;
	guard(mutex)(&vi->sources_lock);
	for (; source < end; source++) {
		if (run && (!virtio_irq_is_held(source) || source->id != source[-1].id + 1)) {
			virtio_irq_free_ids(&call, run->id, source - run);
			run = NULL;
		}
		if (!virtio_irq_is_held(source))
			continue;
		virtio_irq_forget(vi, source);
		if (!run)
			run = source;
	}
	if (run)
		virtio_irq_free_ids(&call, run->id, end - run);
	virtio_irq_call_end(&call);
	for (source = sources->source + first; source < end; source++) {
		if (!source->irq)
			continue;
		/* The client forgot free_irq(), and nothing good can come. */
		WARN_ON(irq_has_action(source->irq));
		unmap(vi, source);
	}
}

/**
 * virtio_irq_free_source_range() - give some sources back
 * @sources: from virtio_irq_alloc_sources()
 * @first: first of them, counted from 0
 * @count: number of them
 *
 * May sleep, as virtio_irq_alloc_sources(). The driver has made its function
 * stop raising them and called free_irq() for each. The others keep their
 * numbers. Nobody else may use @sources meanwhile.
 *
 * Return: 0, or -EINVAL: @sources does not have these
 */
int virtio_irq_free_source_range(struct virtio_irq_sources *sources,
				 unsigned int first, unsigned int count)
{
	might_sleep();
	if (first > sources->count || count > sources->count - first)
		return -EINVAL;
	free_range(sources, first, count);
	return 0;
}
EXPORT_SYMBOL_GPL(virtio_irq_free_source_range);

/**
 * virtio_irq_free_sources() - give all sources back
 * @sources: from virtio_irq_alloc_sources(); NULL and ERR_PTRs are ignored
 *
 * See virtio_irq_free_source_range(). Works whatever has become of the function
 * and of the virtio-irq device, also after virtio_irq_put().
 */
void virtio_irq_free_sources(struct virtio_irq_sources *sources)
{
	if (IS_ERR_OR_NULL(sources))
		return;
	might_sleep();
	free_range(sources, 0, sources->count);
	virtio_irq_release(sources->vi);
	kvfree(sources);
	module_put(THIS_MODULE);
}
EXPORT_SYMBOL_GPL(virtio_irq_free_sources);

/**
 * virtio_irq_sources_count() - number of sources that were allocated
 * @sources: from virtio_irq_alloc_sources()
 *
 * Return: at least 1; freeing some does not change it
 */
unsigned int virtio_irq_sources_count(const struct virtio_irq_sources *sources)
{
	return sources->count;
}
EXPORT_SYMBOL_GPL(virtio_irq_sources_count);

static const struct virtio_irq_source *
get_source(const struct virtio_irq_sources *sources, unsigned int nr)
{
	if (nr >= sources->count || !sources->source[nr].irq)
		return NULL;
	return &sources->source[nr];
}

/**
 * virtio_irq_source_irq() - Linux interrupt of a source
 * @sources: from virtio_irq_alloc_sources()
 * @nr: which, counted from 0 in ascending order of the vectors
 *
 * Return: number for request_irq(), or -EINVAL: there is none
 */
int virtio_irq_source_irq(const struct virtio_irq_sources *sources,
			  unsigned int nr)
{
	const struct virtio_irq_source *source = get_source(sources, nr);

	return source ? source->irq : -EINVAL;
}
EXPORT_SYMBOL_GPL(virtio_irq_source_irq);

/**
 * virtio_irq_source_vector() - vector that a source is
 * @sources: from virtio_irq_alloc_sources()
 * @nr: which, counted from 0
 *
 * Return: vector, or -EINVAL: there is none
 */
int virtio_irq_source_vector(const struct virtio_irq_sources *sources,
			     unsigned int nr)
{
	const struct virtio_irq_source *source = get_source(sources, nr);

	return source ? source->vector : -EINVAL;
}
EXPORT_SYMBOL_GPL(virtio_irq_source_vector);

/**
 * virtio_irq_source_message() - message that raises a source
 * @sources: from virtio_irq_alloc_sources()
 * @nr: which, counted from 0; 0 is the base of a block
 * @msg: where it goes; all zeros for INTx
 *
 * It is the message as it was told when the source was allocated. After
 * VIRTIO_IRQ_EVENT_MESSAGE_CHANGED virtio_irq_get_messages() tells the new one.
 *
 * Return: 0, or -EINVAL: there is none
 */
int virtio_irq_source_message(const struct virtio_irq_sources *sources,
			      unsigned int nr, struct virtio_irq_msg *msg)
{
	const struct virtio_irq_source *source = get_source(sources, nr);

	if (!source)
		return -EINVAL;
	*msg = source->msg;
	return 0;
}
EXPORT_SYMBOL_GPL(virtio_irq_source_message);

/* Whether the host was told all that Linux wants of them. */
static bool told_masks(const struct virtio_irq_sources *sources)
{
	const struct virtio_irq_source *source;
	unsigned int i;

	for (i = 0; i < sources->count; i++) {
		source = &sources->source[i];
		if (virtio_irq_is_held(source) &&
		    test_bit(source->hwirq, sources->vi->changed))
			return false;
	}
	return true;
}

/**
 * virtio_irq_sync_masks() - wait until masks have reached the host
 * @sources: from virtio_irq_alloc_sources()
 *
 * May sleep, as virtio_irq_alloc_sources(). disable_irq() takes effect at once
 * for the handler, and later for the host; after this a masked source costs
 * nothing until it is unmasked. Linux itself masks late, when a disabled
 * interrupt arrives; IRQ_DISABLE_UNLAZY makes it mask at disable_irq().
 *
 * Return: 0, or -ETIMEDOUT: the host did not do it yet
 */
int virtio_irq_sync_masks(struct virtio_irq_sources *sources)
{
	struct virtio_irq *vi = sources->vi;

	might_sleep();
	flush_delayed_work(&vi->mask_work);
	/* Other clients may have sources whose masks change all the time. */
	if (!virtio_irq_settled(vi) || !told_masks(sources))
		return -ETIMEDOUT;
	return 0;
}
EXPORT_SYMBOL_GPL(virtio_irq_sync_masks);
