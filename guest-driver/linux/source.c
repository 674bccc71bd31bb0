// SPDX-License-Identifier: GPL-2.0-only
/*
 * virtio-irq: sources, vectors that the device allocates and delivers
 *
 * Requests about sources go one at a time, under sources_lock. That makes the
 * life of an id simple: between the reply that frees it and the request that
 * may give it out again, the event queue is looked through, so that what comes
 * later is about the new source (IRQ-DRV-38). A request that timed out still
 * has its effect at some time, and nothing is allocated before that.
 *
 * The device may report an interrupt of a source before anyone has read the
 * reply that gave it. While an allocation is with the device, what arrives for
 * unknown sources of its function is kept (IRQ-DRV-39).
 */
#include <linux/export.h>
#include <linux/interrupt.h>
#include <linux/irq.h>
#include <linux/irqdomain.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/pci.h>
#include <linux/slab.h>

#include "virtio_irq.h"

/* Bits of early. */
#define EARLY_FIRED BIT(0)
#define EARLY_REVOKED BIT(1)

static void late_work(struct work_struct *work);

/* @max_sources: what the device says, 0 without event delivery */
int virtio_irq_sources_alloc(struct virtio_irq *vi, u32 max_sources)
{
	unsigned int limit = min_t(u32, max_sources, VIRTIO_IRQ_SOURCES_MAX);

	if (!limit)
		return 0;
	vi->by_hwirq = kvcalloc(limit, sizeof(*vi->by_hwirq), GFP_KERNEL);
	vi->by_id = kvcalloc(limit, sizeof(*vi->by_id), GFP_KERNEL);
	vi->early = kvzalloc(limit, GFP_KERNEL);
	vi->changed = bitmap_zalloc(limit, GFP_KERNEL);
	vi->late_given = kcalloc(RS_SIZE_REPLY / RS_SIZE_SOURCE,
				 sizeof(*vi->late_given), GFP_KERNEL);
	if (!vi->by_hwirq || !vi->by_id || !vi->early || !vi->changed ||
	    !vi->late_given)
		return -ENOMEM;
	vi->source_limit = limit;
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
	kvfree(vi->early);
	bitmap_free(vi->changed);
	kfree(vi->late_given);
	mutex_destroy(&vi->sources_lock);
}

/* From now on sources are allocated. */
void virtio_irq_sources_up(struct virtio_irq *vi)
{
	guard(mutex)(&vi->sources_lock);
	vi->sources_down = 0;
}

static bool is_held(const struct virtio_irq_source *source)
{
	return source->irq && !test_bit(SOURCE_ENDED, &source->state);
}

/* From now on nothing is delivered of the source. */
static void forget(struct virtio_irq *vi, struct virtio_irq_source *source)
{
	guard(spinlock_irqsave)(&vi->event_lock);
	/* The function may have gone just now, and its ids be others'. */
	if (!test_bit(SOURCE_ENDED, &source->state))
		vi->by_id[source->id] = NULL;
}

static int free_ids(struct virtio_irq_call *call, u32 first, unsigned int count)
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
static void free_given(struct virtio_irq_call *call,
		       const struct rs_source *given, unsigned int count)
{
	unsigned int begin = 0, i;

	for (i = 1; i <= count; i++) {
		if (i < count && given[i].id == given[i - 1].id + 1)
			continue;
		free_ids(call, given[begin].id, i - begin);
		begin = i;
	}
	virtio_irq_events_take(call->vi);
}

/*
 * The device gave sources of the function, and nobody knows which
 * (IRQ-DRV-44). What would free them takes the others along.
 */
static void free_unknown(struct virtio_irq_call *call, u16 function)
{
	struct virtio_irq *vi = call->vi;
	unsigned int i;

	lockdep_assert_held(&vi->sources_lock);
	for (i = 0; i < vi->source_limit; i++)
		if (vi->by_hwirq[i] && is_held(vi->by_hwirq[i]) &&
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
		err = virtio_irq_rs_allocated(&vi->rs, slot->request,
					      slot->request_len, slot->copy,
					      slot->used, vi->late_given,
					      &count, &function);
		if (!vi->sources_down && (!err || err == -EBADMSG)) {
			virtio_irq_call_begin(&call, vi);
			call.kind = CALL_CHANGE;
			if (err)
				free_unknown(&call, function);
			else
				free_given(&call, vi->late_given, count);
			virtio_irq_call_end(&call);
		}
		virtio_irq_late_end(vi, slot);
	}
}

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

static void expect(struct virtio_irq *vi, u16 function)
{
	/* What is in the queue by now is about others. */
	virtio_irq_events_take(vi);
	guard(spinlock_irqsave)(&vi->event_lock);
	vi->allocating_for = function;
	vi->early_gone = false;
	vi->allocating = true;
}

static void expect_no_more(struct virtio_irq *vi)
{
	guard(spinlock_irqsave)(&vi->event_lock);
	vi->allocating = false;
	memset(vi->early, 0, vi->source_limit);
}

/* All sources of a function have ended, and their ids can be others'. */
static void end_sources(struct virtio_irq *vi, u16 function)
{
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

/* Makes new sources known, with what has arrived for them already. */
static int publish(struct virtio_irq *vi, struct virtio_irq_sources *sources)
{
	struct virtio_irq_source *end = sources->source + sources->count;
	struct virtio_irq_source *source, *former;

	guard(spinlock_irqsave)(&vi->event_lock);
	if (vi->early_gone)
		return -ENODEV;
	for (source = sources->source; source < end; source++) {
		former = vi->by_id[source->id];
		/* A device that gives what it gave already. */
		if (former && former->function == source->function)
			return -EPROTO;
		/* The other function is gone, and its event on the way. */
		if (former)
			end_sources(vi, former->function);
		if (vi->early[source->id] & EARLY_REVOKED)
			return -EBUSY;
	}
	for (source = sources->source; source < end; source++) {
		vi->by_id[source->id] = source;
		if (vi->early[source->id] & EARLY_FIRED)
			virtio_irq_deliver(vi, source);
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
		err = source->id < vi->source_limit ? map(vi, source) : -ENOSPC;
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
	expect(vi, wanted.function);
	call.kind = CALL_ALLOCATE;
	err = virtio_irq_rs_allocate(&vi->rs, &call, &wanted, given, &count);
	call.kind = CALL_CHANGE;
	if (!err) {
		err = add(vi, sources, given, count, wanted.function);
		/* Of a function that is gone there is nothing to be freed. */
		if (err && err != -ENODEV && err != -EPROTO)
			free_given(&call, given, count);
	} else if (err == -EBADMSG) {
		err = -EPROTO;
		free_unknown(&call, wanted.function);
	}
	expect_no_more(vi);
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
		if (run && (!is_held(source) || source->id != source[-1].id + 1)) {
			free_ids(&call, run->id, source - run);
			run = NULL;
		}
		if (!is_held(source))
			continue;
		forget(vi, source);
		if (!run)
			run = source;
	}
	if (run)
		free_ids(&call, run->id, end - run);
	/* Before their ids can be others' (IRQ-DRV-38). */
	virtio_irq_events_take(vi);
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
	if (!virtio_irq_settled(vi) || !bitmap_empty(vi->changed, vi->source_limit))
		return -ETIMEDOUT;
	return 0;
}
EXPORT_SYMBOL_GPL(virtio_irq_sync_masks);

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
		if (!source || !is_held(source))
			continue;
		forget(vi, source);
		set_bit(SOURCE_ENDED, &source->state);
		if (count && source->id != first + count) {
			/* One that does not answer is not asked again. */
			if (!err)
				err = free_ids(&call, first, count);
			count = 0;
		}
		if (!count)
			first = source->id;
		count++;
	}
	if (!err)
		free_ids(&call, first, count);
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

/* The source that the event is about (IRQ-DRV-40), or NULL. */
static struct virtio_irq_source *find_source(struct virtio_irq *vi,
					     const struct rs_event *event,
					     u8 early)
{
	struct virtio_irq_source *source;

	lockdep_assert_held(&vi->event_lock);
	if (event->source >= vi->source_limit)
		return NULL;
	source = vi->by_id[event->source];
	/* Of another function it can be one that is gone, and its id given out again. */
	if (source && source->function == event->function)
		return source;
	if (vi->allocating && vi->allocating_for == event->function)
		vi->early[event->source] |= early;
	return NULL;
}

void virtio_irq_source_fired(struct virtio_irq *vi, const struct rs_event *event)
{
	struct virtio_irq_source *source = find_source(vi, event, EARLY_FIRED);

	if (source)
		virtio_irq_deliver(vi, source);
}

void virtio_irq_source_revoked(struct virtio_irq *vi, const struct rs_event *event)
{
	struct virtio_irq_source *source = find_source(vi, event, EARLY_REVOKED);

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
		source = find_source(vi, event, 0);
		if (!source || !test_bit(SOURCE_REVOKED, &source->state) ||
		    test_and_set_bit(SOURCE_TOLD, &source->state))
			return;
		fn = source->sources->fn;
		type = source->sources->type;
		vector = source->vector;
	}
	virtio_irq_function_revoked(vi, fn, type, vector);
}

void virtio_irq_sources_gone(struct virtio_irq *vi, const struct rs_event *event)
{
	end_sources(vi, event->function);
	if (vi->allocating && vi->allocating_for == event->function)
		vi->early_gone = true;
}
