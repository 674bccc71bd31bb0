// SPDX-License-Identifier: GPL-2.0-only
/*
 * virtio-irq: the interface for drivers of assigned functions
 */
#include <linux/device.h>
#include <linux/export.h>
#include <linux/module.h>
#include <linux/pci.h>
#include <linux/slab.h>

#include "virtio_irq.h"

static bool same_ids(const struct pci_dev *a, const struct pci_dev *b)
{
	return a->vendor == b->vendor && a->device == b->device &&
	       a->subsystem_vendor == b->subsystem_vendor &&
	       a->subsystem_device == b->subsystem_device &&
	       a->class == b->class && a->revision == b->revision;
}

static bool ids_are_unique(const struct pci_dev *pdev)
{
	struct pci_dev *other = NULL;

	for_each_pci_dev(other) {
		if (other != pdev && same_ids(other, pdev)) {
			pci_dev_put(other);
			return false;
		}
	}
	return true;
}

/* Asks the device of @call for the id of @pdev. */
static int find(struct virtio_irq_call *call, struct pci_dev *pdev, u16 *id)
{
	int segment = pci_domain_nr(pdev->bus);
	struct rs_target target = {
		.class_revision = pdev->class << 8 | pdev->revision,
		.segment = segment,
		.vendor = pdev->vendor,
		.device = pdev->device,
		.subsystem_vendor = pdev->subsystem_vendor,
		.subsystem_device = pdev->subsystem_device,
		.bus = pdev->bus->number,
		.devfn = pdev->devfn,
		.ids_are_unique = ids_are_unique(pdev),
	};
	struct rs_text why = {};
	int err;

	/* A bus that the guest made up: no host can have put a function there. */
	if (segment < 0 || segment > U16_MAX)
		return -ENODEV;
	err = virtio_irq_rs_find(call, &target, id, &why);
	if (err && why.text[0])
		dev_warn_ratelimited(&pdev->dev, "virtio-irq: %s\n", why.text);
	return err;
}

/*
 * The function's id, which a reset of the device may have changed
 * (IRQ-DRV-17).
 */
int virtio_irq_function_id(struct virtio_irq_function *fn,
			   struct virtio_irq_call *call, u16 *id)
{
	unsigned int epoch = READ_ONCE(fn->vi->epoch);
	int err;

	guard(mutex)(&fn->lock);
	if (fn->epoch != epoch) {
		err = find(call, fn->pdev, id);
		if (err)
			return err;
		WRITE_ONCE(fn->id, *id);
		WRITE_ONCE(fn->gone, false);
		fn->epoch = epoch;
	}
	if (READ_ONCE(fn->gone))
		return -ENODEV;
	*id = fn->id;
	return 0;
}

/**
 * virtio_irq_get() - find out which virtio-irq device knows a PCI function
 * @pdev: the function
 *
 * May sleep, for as long as the module parameter timeout_ms says per device.
 *
 * A handle outlives its virtio-irq device: when that goes away, calls fail
 * with -ENODEV, and virtio_irq_put() and a new virtio_irq_get() may find the
 * function again. It keeps this module loaded.
 *
 * While there is a handle, the function suspends before and resumes after its
 * virtio-irq device.
 *
 * Return: a handle for virtio_irq_put(), or an ERR_PTR:
 *
 * * -ENODEV: no virtio-irq device knows the function
 * * -ENOTUNIQ: several functions have the same ids, and the host was not told
 *   their guest addresses
 * * -ENXIO: the host was told a wrong guest address: it names another model
 * * -ENOMEM, -ETIMEDOUT, -EIO, -EPROTO, -EOPNOTSUPP, -ESHUTDOWN: see
 *   virtio_irq_get_messages()
 */
struct virtio_irq_function *virtio_irq_get(struct pci_dev *pdev)
{
	struct virtio_irq_function *fn;
	struct virtio_irq_call call;
	struct virtio_irq *vi;
	int err = -ENODEV;
	u64 after = 0;

	might_sleep();
	fn = kzalloc_obj(*fn);
	if (!fn)
		return ERR_PTR(-ENOMEM);

	while ((vi = virtio_irq_next(after))) {
		int ret;

		after = vi->serial;
		fn->epoch = READ_ONCE(vi->epoch);
		virtio_irq_call_begin(&call, vi);
		ret = find(&call, pdev, &fn->id);
		virtio_irq_call_end(&call);
		if (!ret) {
			fn->vi = vi;
			break;
		}
		virtio_irq_release(vi);
		/* That a device failed says more than that others do not know. */
		if (err == -ENODEV)
			err = ret;
	}
	if (!fn->vi) {
		kfree(fn);
		return ERR_PTR(err);
	}

	/* The caller uses a symbol of this module, so it cannot be going. */
	__module_get(THIS_MODULE);
	fn->pdev = pci_dev_get(pdev);
	mutex_init(&fn->lock);
	/* Only a matter of order; without it the driver resumes as well. */
	device_link_add(&pdev->dev, &fn->vi->vdev->dev, DL_FLAG_STATELESS);
	scoped_guard(mutex, &fn->vi->functions_lock)
		list_add_tail(&fn->node, &fn->vi->functions);
	return fn;
}
EXPORT_SYMBOL_GPL(virtio_irq_get);

/**
 * virtio_irq_put() - give a handle back
 * @fn: handle from virtio_irq_get(); NULL and ERR_PTRs are ignored
 *
 * May sleep: waits for a notify callback that runs.
 */
void virtio_irq_put(struct virtio_irq_function *fn)
{
	if (IS_ERR_OR_NULL(fn))
		return;
	might_sleep();
	scoped_guard(mutex, &fn->vi->functions_lock)
		list_del(&fn->node);
	virtio_irq_sources_orphan(fn->vi, fn);
	/* Finds nothing if the virtio device was removed, which is fine. */
	device_link_remove(&fn->pdev->dev, &fn->vi->vdev->dev);
	virtio_irq_release(fn->vi);
	pci_dev_put(fn->pdev);
	mutex_destroy(&fn->lock);
	kfree(fn);
	module_put(THIS_MODULE);
}
EXPORT_SYMBOL_GPL(virtio_irq_put);

/**
 * virtio_irq_set_notify() - be told of what happens to a function
 * @fn: handle from virtio_irq_get()
 * @notify: called for each event, or NULL for nothing any more
 * @data: for @notify
 *
 * May sleep. When it returns, the callback that was set before does not run
 * any more.
 */
void virtio_irq_set_notify(struct virtio_irq_function *fn,
			   virtio_irq_notify_t notify, void *data)
{
	might_sleep();
	guard(mutex)(&fn->vi->functions_lock);
	fn->notify = notify;
	fn->data = data;
}
EXPORT_SYMBOL_GPL(virtio_irq_set_notify);

/**
 * virtio_irq_get_messages() - ask for the messages of consecutive vectors
 * @fn: handle from virtio_irq_get()
 * @type: kind of interrupt
 * @first: first vector
 * @count: number of vectors
 * @msgs: where @count messages go; undefined after an error
 *
 * May sleep, for as long as the module parameter timeout_ms says.
 *
 * A message is valid from the moment its vector is enabled in the function's
 * own capability, as by pci_alloc_irq_vectors() and request_irq(), until it is
 * disabled or virtio_irq_notify_t says that it changed. Enabling it again may
 * give another message, so ask after each time: also after a resume.
 *
 * Return: 0, or
 *
 * * -EAGAIN: a vector is not enabled yet: enable it and ask again
 * * -ENODEV: the function or the virtio-irq device is gone
 * * -EPERM: the host refuses: nothing isolates the function
 * * -ERANGE: the function does not have these vectors
 * * -EINVAL: @count is 0 or @type is none
 * * -ETIMEDOUT: the host did not answer in time; it may later
 * * -EIO: the host failed, its log says why; or the device is broken
 * * -EPROTO: the device's answer makes no sense, or is newer than this driver
 * * -EOPNOTSUPP: the device does not do this
 * * -ESHUTDOWN: the virtio-irq device is suspended
 * * -ENOMEM: no memory to send the request
 */
int virtio_irq_get_messages(struct virtio_irq_function *fn,
			    enum virtio_irq_type type, unsigned int first,
			    unsigned int count, struct virtio_irq_msg *msgs)
{
	struct virtio_irq_call call;
	int err;
	u16 id;

	might_sleep();
	virtio_irq_call_begin(&call, fn->vi);
	err = virtio_irq_function_id(fn, &call, &id);
	if (!err)
		err = virtio_irq_rs_fetch(&fn->vi->rs, &call, id, type, first,
					  count, msgs);
	virtio_irq_call_end(&call);
	return err;
}
EXPORT_SYMBOL_GPL(virtio_irq_get_messages);

/**
 * virtio_irq_get_block() - ask for the first message of a contiguous block
 * @fn: handle from virtio_irq_get()
 * @type: kind of interrupt
 * @count: number of vectors, counted from vector 0
 * @base: message of vector 0; undefined after an error
 *
 * For devices that are told one address and one base data and derive the data
 * of vector n as base + n. See virtio_irq_get_messages().
 *
 * Return: 0, or an errno of virtio_irq_get_messages(), or
 *
 * * -ENOSPC: the messages do not have one address and data that counts up
 */
int virtio_irq_get_block(struct virtio_irq_function *fn,
			 enum virtio_irq_type type, unsigned int count,
			 struct virtio_irq_msg *base)
{
	struct virtio_irq_call call;
	int err;
	u16 id;

	might_sleep();
	virtio_irq_call_begin(&call, fn->vi);
	err = virtio_irq_function_id(fn, &call, &id);
	if (!err)
		err = virtio_irq_rs_fetch_block(&fn->vi->rs, &call, id, type,
						count, base);
	virtio_irq_call_end(&call);
	return err;
}
EXPORT_SYMBOL_GPL(virtio_irq_get_block);

/* Tells the handles of one function. */
void virtio_irq_functions_notify(struct virtio_irq *vi,
				 const struct rs_event *event)
{
	struct virtio_irq_function *fn;

	guard(mutex)(&vi->functions_lock);
	list_for_each_entry(fn, &vi->functions, node) {
		if (READ_ONCE(fn->id) != event->function)
			continue;
		if (event->kind == VIRTIO_IRQ_EVENT_GONE)
			WRITE_ONCE(fn->gone, true);
		if (fn->notify)
			fn->notify(fn->data, event->kind, event->type,
				   event->first, event->count);
	}
}

/* Tells all handles that their device is gone. */
void virtio_irq_functions_gone(struct virtio_irq *vi)
{
	struct virtio_irq_function *fn;

	guard(mutex)(&vi->functions_lock);
	list_for_each_entry(fn, &vi->functions, node)
		if (fn->notify)
			fn->notify(fn->data, VIRTIO_IRQ_EVENT_GONE, 0, 0, 0);
}

/* Tells the handle that allocated a source, if there still is one. */
void virtio_irq_function_revoked(struct virtio_irq *vi,
				 const struct virtio_irq_function *fn,
				 enum virtio_irq_type type, u16 vector)
{
	struct virtio_irq_function *each;

	guard(mutex)(&vi->functions_lock);
	list_for_each_entry(each, &vi->functions, node)
		if (each == fn && each->notify)
			each->notify(each->data,
				     VIRTIO_IRQ_EVENT_SOURCE_REVOKED, type,
				     vector, 1);
}
