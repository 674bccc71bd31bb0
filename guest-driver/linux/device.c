// SPDX-License-Identifier: GPL-2.0-only
/*
 * virtio-irq: the virtio driver
 *
 * Finds devices, sets them up, and takes them down again while handles to
 * their functions are still around. What a device says is only interpreted by
 * the Rust driver core.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/module.h>
#include <linux/pci.h>
#include <linux/slab.h>
#include <linux/virtio_config.h>
#include <linux/virtio_pci.h>

#include "virtio_irq.h"

/*
 * Experimental: the virtio specification has no id for this device. A device
 * is recognized by the magic in its configuration space, never by this alone.
 */
#define VIRTIO_ID_IRQ 37

#define VIRTIO_IRQ_F_NATIVE 0
#define VIRTIO_IRQ_F_EVENT 1

static const unsigned int features[] = {
	VIRTIO_IRQ_F_NATIVE,
	VIRTIO_IRQ_F_EVENT,
};

/* Protects devices, last_serial and the nodes. */
static DEFINE_MUTEX(devices_lock);
static LIST_HEAD(devices);
static u64 last_serial;

static void virtio_irq_free(struct kref *ref)
{
	struct virtio_irq *vi = container_of(ref, struct virtio_irq, ref);

	virtio_irq_sources_free(vi);
	virtio_irq_events_free(vi);
	virtio_irq_requests_free(vi);
	put_device(&vi->vdev->dev);
	mutex_destroy(&vi->functions_lock);
	kfree(vi);
}

void virtio_irq_release(struct virtio_irq *vi)
{
	kref_put(&vi->ref, virtio_irq_free);
}

/*
 * The bound device with the least serial above @after, with a reference, or
 * NULL. Walking by serial allows the walker to sleep between two devices.
 */
struct virtio_irq *virtio_irq_next(u64 after)
{
	struct virtio_irq *vi;

	guard(mutex)(&devices_lock);
	list_for_each_entry(vi, &devices, node) {
		if (vi->serial > after) {
			kref_get(&vi->ref);
			return vi;
		}
	}
	return NULL;
}

/*
 * The PCI transport has a BUG_ON() for reads beyond the configuration space,
 * and another kind of device may have a short one.
 */
static bool config_holds(struct virtio_device *vdev, u32 size)
{
	struct pci_dev *pdev;
	u32 length;
	u8 type;
	int pos;

	if (!vdev->config->get)
		return false;
	if (!dev_is_pci(vdev->dev.parent))
		return true;
	pdev = to_pci_dev(vdev->dev.parent);
	for (pos = pci_find_capability(pdev, PCI_CAP_ID_VNDR); pos;
	     pos = pci_find_next_capability(pdev, pos, PCI_CAP_ID_VNDR)) {
		pci_read_config_byte(pdev, pos + VIRTIO_PCI_CAP_CFG_TYPE, &type);
		if (type != VIRTIO_PCI_CAP_DEVICE_CFG)
			continue;
		pci_read_config_dword(pdev, pos + VIRTIO_PCI_CAP_LENGTH, &length);
		return length >= size;
	}
	return false;
}

static int read_device(struct virtio_device *vdev, struct rs_device *rs,
		       u32 *max_sources)
{
	struct rs_text why = {};
	unsigned int i;
	int err;

	if (!virtio_has_feature(vdev, VIRTIO_F_VERSION_1)) {
		dev_err(&vdev->dev, "left alone: a legacy device\n");
		return -ENODEV;
	}
	if (!config_holds(vdev, sizeof(rs->config))) {
		dev_err(&vdev->dev, "left alone: the configuration space is too short\n");
		return -ENODEV;
	}
	rs->features = 0;
	for (i = 0; i < ARRAY_SIZE(features); i++)
		if (virtio_has_feature(vdev, features[i]))
			rs->features |= BIT_ULL(features[i]);
	virtio_cread_bytes(vdev, 0, rs->config, sizeof(rs->config));
	err = virtio_irq_rs_probe(rs, max_sources, &why);
	if (err)
		dev_err(&vdev->dev, "left alone: %s\n", why.text);
	return err;
}

static int start(struct virtio_irq *vi)
{
	struct virtqueue_info infos[VIRTIO_IRQ_QUEUE_COUNT] = {
		[VIRTIO_IRQ_QUEUE_REQUEST] = { "request", virtio_irq_request_done },
		[VIRTIO_IRQ_QUEUE_EVENT] = { "event", virtio_irq_event_done },
	};
	struct virtqueue *vqs[VIRTIO_IRQ_QUEUE_COUNT];
	struct virtio_device *vdev = vi->vdev;
	int err;

	err = virtio_find_vqs(vdev, ARRAY_SIZE(vqs), vqs, infos, NULL);
	if (err)
		return err;
	err = virtio_irq_requests_start(vi, vqs[VIRTIO_IRQ_QUEUE_REQUEST]);
	if (err) {
		vdev->config->del_vqs(vdev);
		return err;
	}
	virtio_device_ready(vdev);
	virtio_irq_events_start(vi, vqs[VIRTIO_IRQ_QUEUE_EVENT]);
	virtio_irq_requests_up(vi);
	virtio_irq_sources_up(vi);
	return 0;
}

/*
 * The order matters: sources are given back while the device still listens
 * (IRQ-DRV-42); then calls learn that the device is down, so that nothing is
 * added to a queue and a notify callback in the event work does not wait for a
 * reply that cannot come; after the reset the device neither owns a buffer nor
 * calls back; only then do the queues go.
 */
static void stop(struct virtio_irq *vi, int why)
{
	virtio_irq_sources_down(vi, why);
	virtio_irq_requests_down(vi, why);
	virtio_reset_device(vi->vdev);
	if (!vi->request_vq)
		return;		/* It was suspended and did not come back. */
	virtio_irq_events_stop(vi);
	virtio_irq_requests_reclaim(vi);
	vi->vdev->config->del_vqs(vi->vdev);
}

static int virtio_irq_probe(struct virtio_device *vdev)
{
	struct virtio_irq *vi;
	u32 max_sources;
	int err;

	vi = kzalloc_obj(*vi);
	if (!vi)
		return -ENOMEM;
	kref_init(&vi->ref);
	INIT_LIST_HEAD(&vi->node);
	mutex_init(&vi->functions_lock);
	INIT_LIST_HEAD(&vi->functions);
	vi->vdev = vdev;
	get_device(&vdev->dev);
	vdev->priv = vi;

	virtio_irq_sources_init(vi);
	err = virtio_irq_requests_alloc(vi);
	if (!err)
		err = virtio_irq_events_alloc(vi);
	if (!err)
		err = read_device(vdev, &vi->rs, &max_sources);
	if (!err)
		err = virtio_irq_sources_alloc(vi, max_sources);
	if (!err)
		err = start(vi);
	if (err) {
		vdev->priv = NULL;
		virtio_irq_release(vi);
		return err;
	}

	guard(mutex)(&devices_lock);
	vi->serial = ++last_serial;
	list_add_tail(&vi->node, &devices);
	return 0;
}

static void virtio_irq_remove(struct virtio_device *vdev)
{
	struct virtio_irq *vi = vdev->priv;

	scoped_guard(mutex, &devices_lock)
		list_del_init(&vi->node);
	stop(vi, -ENODEV);
	virtio_irq_functions_gone(vi);
	vdev->priv = NULL;
	virtio_irq_release(vi);
}

static int virtio_irq_freeze(struct virtio_device *vdev)
{
	struct virtio_irq *vi = vdev->priv;

	stop(vi, -ESHUTDOWN);
	virtio_irq_sources_ended(vi);
	return 0;
}

static int virtio_irq_restore(struct virtio_device *vdev)
{
	struct virtio_irq *vi = vdev->priv;
	struct rs_device now;
	u32 max_sources;
	int err;

	err = read_device(vdev, &now, &max_sources);
	if (err)
		return err;
	/* Calls may be looking at vi->rs, so it must still describe the device. */
	if (memcmp(&now, &vi->rs, sizeof(now))) {
		dev_err(&vdev->dev, "not resumed: the host now has another device here\n");
		return -ENODEV;
	}
	WRITE_ONCE(vi->epoch, vi->epoch + 1);
	return start(vi);
}

static const struct virtio_device_id id_table[] = {
	{ VIRTIO_ID_IRQ, VIRTIO_DEV_ANY_ID },
	{}
};
MODULE_DEVICE_TABLE(virtio, id_table);

static struct virtio_driver virtio_irq_driver = {
	.driver.name = KBUILD_MODNAME,
	.id_table = id_table,
	.feature_table = features,
	.feature_table_size = ARRAY_SIZE(features),
	.probe = virtio_irq_probe,
	.remove = virtio_irq_remove,
	.freeze = pm_sleep_ptr(virtio_irq_freeze),
	.restore = pm_sleep_ptr(virtio_irq_restore),
#ifdef HAVE_VIRTIO_RESET
	/* A function level reset, which to the device is the same. */
	.reset_prepare = virtio_irq_freeze,
	.reset_done = virtio_irq_restore,
#endif
};
module_virtio_driver(virtio_irq_driver);

void __noreturn virtio_irq_rs_panic(const u8 *text, size_t len)
{
	pr_emerg("%.*s\n", (int)len, text);
	BUG();
}

MODULE_DESCRIPTION("virtio-irq: the real MSI messages of assigned PCI functions");
MODULE_AUTHOR("The virtio-irq authors");
/* A card probed before its virtio-irq device is there would take its own pair. */
MODULE_SOFTDEP("pre: virtio_pci");
MODULE_LICENSE("GPL");
