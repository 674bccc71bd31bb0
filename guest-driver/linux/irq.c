// SPDX-License-Identifier: GPL-2.0-only
/*
 * virtio-irq: the interrupts of sources
 *
 * A linear irq domain per device, demultiplexed from the event queue: a handler
 * runs inside of the virtio device's own interrupt, on the CPU that takes that,
 * and so the affinity of a source is the one of that interrupt and cannot be
 * set for itself.
 *
 * irq_mask() and irq_unmask() are called in hard irq with the descriptor locked,
 * where nobody can wait for a reply. They take note and leave the request to a
 * work, which compares what Linux wants with what the device was told, so that
 * a mask that was undone in time costs no request. What arrives in between is
 * kept by the flow handler, and replayed by enable_irq().
 */
#include <linux/irq.h>
#include <linux/irqdesc.h>
#include <linux/irqdomain.h>

#include "virtio_irq.h"

/* When to try again what the device did not do. */
#define RETRY_DELAY HZ

static void state_changed(struct virtio_irq_source *source)
{
	struct virtio_irq *vi = source->sources->vi;

	/* Pairs with the one of the work: it sees this, or is called again. */
	smp_mb__before_atomic();
	set_bit(source->hwirq, vi->changed);
	mod_delayed_work(system_highpri_wq, &vi->mask_work, 0);
}

static void source_mask(struct irq_data *data)
{
	struct virtio_irq_source *source = irq_data_get_irq_chip_data(data);

	set_bit(SOURCE_MASKED, &source->state);
	state_changed(source);
}

static void source_unmask(struct irq_data *data)
{
	struct virtio_irq_source *source = irq_data_get_irq_chip_data(data);

	clear_bit(SOURCE_MASKED, &source->state);
	state_changed(source);
}

/* An edge was taken out of the queue, and that is that. */
static void source_ack(struct irq_data *data)
{
}

/* The device masked the pin when it fired; now it is to be armed again. */
static void source_eoi(struct irq_data *data)
{
	struct virtio_irq_source *source = irq_data_get_irq_chip_data(data);

	clear_bit(SOURCE_IN_SERVICE, &source->state);
	state_changed(source);
}

static struct irq_chip source_chip = {
	.name = "virtio-irq",
	.irq_ack = source_ack,
	.irq_mask = source_mask,
	.irq_unmask = source_unmask,
	.irq_eoi = source_eoi,
	.flags = IRQCHIP_SKIP_SET_WAKE,
};

static int map(struct irq_domain *domain, unsigned int irq, irq_hw_number_t hwirq)
{
	struct virtio_irq *vi = domain->host_data;
	struct virtio_irq_source *source = vi->by_hwirq[hwirq];

	irq_set_chip_data(irq, source);
	if (source->sources->type == VIRTIO_IRQ_TYPE_INTX) {
		irq_set_chip_and_handler_name(irq, &source_chip,
					      handle_fasteoi_irq, "level");
		irq_set_status_flags(irq, IRQ_LEVEL);
	} else {
		irq_set_chip_and_handler_name(irq, &source_chip,
					      handle_edge_irq, "edge");
	}
	irq_set_noprobe(irq);
	return 0;
}

static const struct irq_domain_ops domain_ops = {
	.map = map,
};

int virtio_irq_domain_create(struct virtio_irq *vi)
{
	vi->fwnode = irq_domain_alloc_named_fwnode(dev_name(&vi->vdev->dev));
	if (!vi->fwnode)
		return -ENOMEM;
	vi->domain = irq_domain_create_linear(vi->fwnode, vi->source_limit,
					      &domain_ops, vi);
	return vi->domain ? 0 : -ENOMEM;
}

/* Every mapping has been disposed of. */
void virtio_irq_domain_remove(struct virtio_irq *vi)
{
	if (vi->domain)
		irq_domain_remove(vi->domain);
	if (vi->fwnode)
		irq_domain_free_fwnode(vi->fwnode);
}

void virtio_irq_deliver(struct virtio_irq *vi, struct virtio_irq_source *source)
{
	lockdep_assert_held(&vi->event_lock);
	if (source->sources->type == VIRTIO_IRQ_TYPE_INTX)
		set_bit(SOURCE_IN_SERVICE, &source->state);
	/* Not only from hard irq: also from a thread that looks for events. */
	generic_handle_domain_irq_safe(vi->domain, source->hwirq);
}

/* Sources with consecutive ids for which the device is told the same. */
struct run {
	u32 change;
	u32 first;
	u16 count;
};

/* What the run asks for is to be looked at again. */
static void again(struct virtio_irq *vi, const struct run *run)
{
	struct virtio_irq_source *source;
	u32 id;

	guard(spinlock_irqsave)(&vi->event_lock);
	for (id = run->first; id < run->first + run->count; id++) {
		source = vi->by_id[id];
		if (source)
			set_bit(source->hwirq, vi->changed);
	}
}

static int send(struct virtio_irq_call *call, struct run *run)
{
	struct virtio_irq *vi = call->vi;
	int err;

	if (!run->count)
		return 0;
	err = virtio_irq_rs_change(call, run->change, run->first, run->count);
	switch (err) {
	case 0:
	case -ENODEV:
	case -ESHUTDOWN:
	case -ENOENT:		/* A function is gone; its event is on the way. */
		break;
	case -ETIMEDOUT:
		again(vi, run);
		break;
	default:
		dev_warn_ratelimited(&vi->vdev->dev,
				     "cannot %s sources %u to %u: error %d\n",
				     run->change == RS_MASK ? "mask" : "unmask",
				     run->first, run->first + run->count - 1, err);
		/*
		 * A pin that the host did not arm has to be (IRQ-DEV-71). A
		 * source that was not masked is no harm: what it delivers is
		 * kept for its client.
		 */
		if (run->change == RS_UNMASK)
			again(vi, run);
	}
	run->count = 0;
	return err;
}

/* As far as it has said so. A pin it masks by itself, when it fires. */
static bool device_masks(struct virtio_irq *vi,
			 const struct virtio_irq_source *source)
{
	guard(spinlock_irqsave)(&vi->event_lock);
	return virtio_irq_rs_is_masked(&vi->table, source->id);
}

void virtio_irq_mask_work(struct work_struct *work)
{
	struct virtio_irq *vi = container_of(to_delayed_work(work),
					     struct virtio_irq, mask_work);
	struct virtio_irq_source *source;
	struct virtio_irq_call call;
	struct run run = {};
	unsigned long hwirq;
	int err = 0;
	u32 change;

	guard(mutex)(&vi->sources_lock);
	/* Requests that are late may do the opposite: this comes after them. */
	if (vi->sources_down || !virtio_irq_settled(vi))
		return;
	virtio_irq_call_begin(&call, vi);
	call.kind = CALL_CHANGE;
	for_each_set_bit(hwirq, vi->changed, vi->source_limit) {
		bool wanted;

		clear_bit(hwirq, vi->changed);
		/* Pairs with the one of state_changed(). */
		smp_mb__after_atomic();
		source = vi->by_hwirq[hwirq];
		if (!source || test_bit(SOURCE_ENDED, &source->state) ||
		    test_bit(SOURCE_REVOKED, &source->state))
			continue;
		wanted = test_bit(SOURCE_MASKED, &source->state) ||
			 test_bit(SOURCE_IN_SERVICE, &source->state);
		if (wanted == device_masks(vi, source))
			continue;
		change = wanted ? RS_MASK : RS_UNMASK;
		if (run.count && (run.change != change || run.count == U16_MAX ||
				  run.first + run.count != source->id)) {
			err = send(&call, &run);
			if (err == -ETIMEDOUT) {
				set_bit(hwirq, vi->changed);
				break;
			}
		}
		if (!run.count)
			run = (struct run){ .change = change, .first = source->id };
		run.count++;
	}
	if (err != -ETIMEDOUT)
		err = send(&call, &run);
	virtio_irq_call_end(&call);
	/* Does not put off what was called for in the meantime. */
	if (!bitmap_empty(vi->changed, vi->source_limit))
		queue_delayed_work(system_highpri_wq, &vi->mask_work, RETRY_DELAY);
}
