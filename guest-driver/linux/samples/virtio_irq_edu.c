// SPDX-License-Identifier: GPL-2.0-only
/*
 * Sample: a driver that programs an MSI message into its device
 *
 * QEMU's edu device (1234:11e8) has a DMA engine that writes any bytes to any
 * address, and an MSI is a DMA write. So it can play a device such as a Wi-Fi
 * card that holds messages in registers of its own: this driver tells it which
 * message to write, and counts the interrupts that come of it.
 *
 * With the pair that the guest's PCI layer knows, an assigned edu raises
 * nothing here. With the one that virtio-irq tells, it raises this driver's
 * interrupt. See edu_host_message() for how to ask, and edu_enable_msi() for
 * when.
 *
 * The dependency on virtio_irq is soft: a driver for a card must load on
 * machines that have no such module. symbol_request() leaves no reference
 * behind in modinfo's "depends", loads the module if it can, and says NULL if
 * there is none.
 *
 * The vector can also be a source, which virtio-irq delivers: see
 * edu_enable_source(). The function's own MSI stays off then.
 *
 * The attributes are in /sys/bus/pci/devices/.../virtio_irq_edu/.
 */
#include <linux/delay.h>
#include <linux/dma-mapping.h>
#include <linux/interrupt.h>
#include <linux/io-64-nonatomic-lo-hi.h>
#include <linux/iopoll.h>
#include <linux/irq.h>
#include <linux/module.h>
#include <linux/pci.h>
#include <linux/virtio_irq.h>

#include "sample.h"

#define EDU_VENDOR 0x1234
#define EDU_DEVICE 0x11e8

/* Registers of BAR 0, and the device's own buffer as its DMA engine sees it. */
#define EDU_IRQ_STATUS 0x24
#define EDU_IRQ_ACK 0x64
#define EDU_DMA_SOURCE 0x80
#define EDU_DMA_DESTINATION 0x88
#define EDU_DMA_COUNT 0x90
#define EDU_DMA_COMMAND 0x98
#define EDU_DMA_START BIT_ULL(0)
#define EDU_DMA_TO_MEMORY BIT_ULL(1)
#define EDU_BUFFER 0x40000

/* A transfer takes the device 100 ms. */
#define EDU_DMA_TIMEOUT_US (10 * USEC_PER_SEC)
#define EDU_FIRE_TIMEOUT_MS 500

static bool msi = true;
module_param(msi, bool, 0444);
MODULE_PARM_DESC(msi, "Enable MSI when a device is found (default Y)");

/**
 * struct edu_source - the vector as a source
 * @sources: it alone, NULL if there is none
 * @fn: the function
 * @get: and the rest: what of virtio_irq it takes, which cannot go meanwhile
 */
struct edu_source {
	struct virtio_irq_sources *sources;
	struct virtio_irq_function *fn;
	typeof(virtio_irq_get) *get;
	typeof(virtio_irq_put) *put;
	typeof(virtio_irq_alloc_sources) *alloc_sources;
	typeof(virtio_irq_free_sources) *free_sources;
	typeof(virtio_irq_source_irq) *source_irq;
	typeof(virtio_irq_source_message) *source_message;
	typeof(virtio_irq_sync_masks) *sync_masks;
};

/**
 * struct edu - an edu device
 * @pdev: the PCI function
 * @regs: BAR 0
 * @lock: protects everything below, and the DMA engine
 * @msi_enabled: whether the vector is allocated and its interrupt requested
 * @source: the vector as a source instead
 * @irq: the interrupt of either, 0 if there is none
 * @masked: whether @irq is disabled
 * @programmed: what the device writes when it fires
 * @is_programmed: whether there is something in @programmed
 * @data: the message's data, where the device fetches it
 * @data_dma: the address of @data
 * @fired: the handler ran
 * @handled: number of handler runs
 */
struct edu {
	struct pci_dev *pdev;
	void __iomem *regs;
	struct mutex lock;	/* all below, and the DMA engine */
	bool msi_enabled;
	struct edu_source source;
	int irq;
	bool masked;
	struct sample_pair programmed;
	bool is_programmed;
	__le32 *data;
	dma_addr_t data_dma;
	struct completion fired;
	atomic_t handled;
};

/*
 * Asks the host for the message that raises MSI vector 0.
 *
 * This is all that a card's driver needs. It asks rarely, once after each time
 * it enabled MSI, so it keeps neither the handle nor the module in between. A
 * driver that wants to hear of changed messages keeps both.
 */
static int edu_host_message(struct edu *edu, struct virtio_irq_msg *msg)
{
	typeof(virtio_irq_get_messages) *get_messages;
	typeof(virtio_irq_get) *get;
	typeof(virtio_irq_put) *put;
	struct virtio_irq_function *fn;
	int err;

	get = symbol_request(virtio_irq_get);
	if (!get)
		return -ENODEV;
	/* The same module, which cannot go away now. */
	put = symbol_get(virtio_irq_put);
	get_messages = symbol_get(virtio_irq_get_messages);
	if (WARN_ON(!put || !get_messages)) {
		err = -ENODEV;
		goto put_symbols;
	}

	fn = get(edu->pdev);
	if (IS_ERR(fn)) {
		err = PTR_ERR(fn);
		goto put_symbols;
	}
	err = get_messages(fn, VIRTIO_IRQ_TYPE_MSI, 0, 1, msg);
	put(fn);

put_symbols:
	if (get_messages)
		symbol_put(virtio_irq_get_messages);
	if (put)
		symbol_put(virtio_irq_put);
	symbol_put(virtio_irq_get);
	return err;
}

static irqreturn_t edu_irq(int irq, void *arg)
{
	struct edu *edu = arg;
	u32 status = readl(edu->regs + EDU_IRQ_STATUS);

	/* A message that the DMA engine wrote leaves no status. */
	if (status)
		writel(status, edu->regs + EDU_IRQ_ACK);
	atomic_inc(&edu->handled);
	complete(&edu->fired);
	return IRQ_HANDLED;
}

static int edu_request_irq(struct edu *edu, int irq)
{
	int err;

	lockdep_assert_held(&edu->lock);
	err = request_irq(irq, edu_irq, 0, KBUILD_MODNAME, edu);
	if (!err)
		edu->irq = irq;
	return err;
}

static void edu_free_irq(struct edu *edu)
{
	lockdep_assert_held(&edu->lock);
	if (edu->irq)
		free_irq(edu->irq, edu);
	edu->irq = 0;
	edu->masked = false;
}

/*
 * From here on there is a message. Whatever was programmed belongs to the time
 * before: the host may have allocated another vector.
 */
static int edu_enable_msi(struct edu *edu)
{
	int err;

	lockdep_assert_held(&edu->lock);
	if (edu->msi_enabled)
		return 0;
	if (edu->source.sources)
		return -EBUSY;
	err = pci_alloc_irq_vectors(edu->pdev, 1, 1, PCI_IRQ_MSI);
	if (err < 0)
		return err;
	err = edu_request_irq(edu, pci_irq_vector(edu->pdev, 0));
	if (err) {
		pci_free_irq_vectors(edu->pdev);
		return err;
	}
	edu->msi_enabled = true;
	return 0;
}

static void edu_disable_msi(struct edu *edu)
{
	lockdep_assert_held(&edu->lock);
	if (!edu->msi_enabled)
		return;
	edu_free_irq(edu);
	pci_free_irq_vectors(edu->pdev);
	edu->msi_enabled = false;
}

static void edu_put_symbols(struct edu_source *source)
{
	if (source->sync_masks)
		symbol_put(virtio_irq_sync_masks);
	if (source->source_message)
		symbol_put(virtio_irq_source_message);
	if (source->source_irq)
		symbol_put(virtio_irq_source_irq);
	if (source->free_sources)
		symbol_put(virtio_irq_free_sources);
	if (source->alloc_sources)
		symbol_put(virtio_irq_alloc_sources);
	if (source->put)
		symbol_put(virtio_irq_put);
	if (source->get)
		symbol_put(virtio_irq_get);
	memset(source, 0, sizeof(*source));
}

static int edu_get_symbols(struct edu_source *source)
{
	source->get = symbol_request(virtio_irq_get);
	if (!source->get)
		return -ENODEV;
	source->put = symbol_get(virtio_irq_put);
	source->alloc_sources = symbol_get(virtio_irq_alloc_sources);
	source->free_sources = symbol_get(virtio_irq_free_sources);
	source->source_irq = symbol_get(virtio_irq_source_irq);
	source->source_message = symbol_get(virtio_irq_source_message);
	source->sync_masks = symbol_get(virtio_irq_sync_masks);
	if (source->put && source->alloc_sources && source->free_sources &&
	    source->source_irq && source->source_message && source->sync_masks)
		return 0;
	/* An older module, which delivers nothing. */
	edu_put_symbols(source);
	return -EOPNOTSUPP;
}

/*
 * In this order: nothing fires any more, nobody handles it, it is given back.
 * That nothing fires is for whoever writes the attributes to see to.
 */
static void edu_disable_source(struct edu *edu)
{
	struct edu_source *source = &edu->source;

	lockdep_assert_held(&edu->lock);
	if (!source->get)
		return;
	edu_free_irq(edu);
	if (source->sources)
		source->free_sources(source->sources);
	if (source->fn)
		source->put(source->fn);
	edu_put_symbols(source);
}

/*
 * This is all that a driver needs whose device has interrupts that the guest's
 * own capability does not cover. The message comes with the allocation.
 */
static int edu_enable_source(struct edu *edu)
{
	struct edu_source *source = &edu->source;
	int err;

	lockdep_assert_held(&edu->lock);
	if (source->sources)
		return 0;
	if (edu->msi_enabled)
		return -EBUSY;
	err = edu_get_symbols(source);
	if (err)
		return err;
	source->fn = source->get(edu->pdev);
	if (IS_ERR(source->fn)) {
		err = PTR_ERR(source->fn);
		source->fn = NULL;
		goto disable;
	}
	source->sources = source->alloc_sources(source->fn, VIRTIO_IRQ_TYPE_MSI,
						0, 1, 1, 0);
	if (IS_ERR(source->sources)) {
		err = PTR_ERR(source->sources);
		source->sources = NULL;
		goto disable;
	}
	err = edu_request_irq(edu, source->source_irq(source->sources, 0));
	if (err)
		goto disable;
	/* So that a masked source is silent in the host, too. */
	irq_set_status_flags(edu->irq, IRQ_DISABLE_UNLAZY);
	edu->is_programmed = false;
	return 0;

disable:
	edu_disable_source(edu);
	return err;
}

static int edu_source_message(struct edu *edu, struct virtio_irq_msg *msg)
{
	lockdep_assert_held(&edu->lock);
	return edu->source.source_message(edu->source.sources, 0, msg);
}

static int edu_guest_pair(struct edu *edu, struct sample_pair *pair)
{
	lockdep_assert_held(&edu->lock);
	if (!edu->msi_enabled)
		return -ENODATA;
	sample_guest_pair(pci_irq_vector(edu->pdev, 0), pair);
	return 0;
}

static int edu_dma(struct edu *edu, u64 source, u64 destination, u64 command)
{
	u64 busy;

	lockdep_assert_held(&edu->lock);
	writeq(source, edu->regs + EDU_DMA_SOURCE);
	writeq(destination, edu->regs + EDU_DMA_DESTINATION);
	writeq(sizeof(*edu->data), edu->regs + EDU_DMA_COUNT);
	writeq(command | EDU_DMA_START, edu->regs + EDU_DMA_COMMAND);
	return readq_poll_timeout(edu->regs + EDU_DMA_COMMAND, busy,
				  !(busy & EDU_DMA_START), 1000,
				  EDU_DMA_TIMEOUT_US);
}

/* Tells the device which message to write. */
static int edu_program(struct edu *edu, const struct sample_pair *pair)
{
	int err;

	lockdep_assert_held(&edu->lock);
	edu->is_programmed = false;
	*edu->data = cpu_to_le32(pair->data);
	err = edu_dma(edu, edu->data_dma, EDU_BUFFER, 0);
	if (err)
		return err;
	edu->programmed = *pair;
	edu->is_programmed = true;
	return 0;
}

/* Lets the device write its message once, and waits a little for the handler. */
static int edu_fire(void *arg)
{
	struct edu *edu = arg;
	int err;

	lockdep_assert_held(&edu->lock);
	if (!edu->is_programmed)
		return -ENODATA;
	reinit_completion(&edu->fired);
	err = edu_dma(edu, EDU_BUFFER, edu->programmed.address,
		      EDU_DMA_TO_MEMORY);
	if (err || !edu->irq)
		return err;
	return sample_wait(&edu->fired, EDU_FIRE_TIMEOUT_MS);
}

static ssize_t msi_show(struct device *dev, struct device_attribute *attr,
			char *buf)
{
	struct edu *edu = dev_get_drvdata(dev);

	guard(mutex)(&edu->lock);
	return sysfs_emit(buf, "%d\n", edu->msi_enabled);
}

/* For an attribute that is written as a truth value. */
static ssize_t edu_switch(struct device *dev, const char *buf, size_t len,
			  int (*enable)(struct edu *edu),
			  void (*disable)(struct edu *edu))
{
	struct edu *edu = dev_get_drvdata(dev);
	bool on;
	int err;

	err = kstrtobool(buf, &on);
	if (err)
		return err;
	guard(mutex)(&edu->lock);
	if (on)
		err = enable(edu);
	else
		disable(edu);
	return err ?: len;
}

static ssize_t msi_store(struct device *dev, struct device_attribute *attr,
			 const char *buf, size_t len)
{
	return edu_switch(dev, buf, len, edu_enable_msi, edu_disable_msi);
}
static DEVICE_ATTR_RW(msi);

static ssize_t source_show(struct device *dev, struct device_attribute *attr,
			   char *buf)
{
	struct edu *edu = dev_get_drvdata(dev);

	guard(mutex)(&edu->lock);
	return sysfs_emit(buf, "%d\n", !!edu->source.sources);
}

static ssize_t source_store(struct device *dev, struct device_attribute *attr,
			    const char *buf, size_t len)
{
	return edu_switch(dev, buf, len, edu_enable_source, edu_disable_source);
}
static DEVICE_ATTR_RW(source);

static ssize_t masked_show(struct device *dev, struct device_attribute *attr,
			   char *buf)
{
	struct edu *edu = dev_get_drvdata(dev);

	guard(mutex)(&edu->lock);
	return sysfs_emit(buf, "%d\n", edu->masked);
}

static ssize_t masked_store(struct device *dev, struct device_attribute *attr,
			    const char *buf, size_t len)
{
	struct edu *edu = dev_get_drvdata(dev);
	bool mask;
	int err;

	err = kstrtobool(buf, &mask);
	if (err)
		return err;
	guard(mutex)(&edu->lock);
	if (!edu->irq)
		return -ENODATA;
	if (mask == edu->masked)
		return len;
	if (mask)
		disable_irq(edu->irq);
	else
		enable_irq(edu->irq);
	edu->masked = mask;
	/* Otherwise the host would learn of it some time later. */
	if (edu->source.sources)
		err = edu->source.sync_masks(edu->source.sources);
	return err ?: len;
}
static DEVICE_ATTR_RW(masked);

static ssize_t guest_pair_show(struct device *dev,
			       struct device_attribute *attr, char *buf)
{
	struct edu *edu = dev_get_drvdata(dev);
	struct sample_pair pair;
	int err;

	guard(mutex)(&edu->lock);
	err = edu_guest_pair(edu, &pair);
	return err ?: sample_emit_pair(buf, &pair);
}
static DEVICE_ATTR_RO(guest_pair);

static ssize_t host_pair_show(struct device *dev,
			      struct device_attribute *attr, char *buf)
{
	struct edu *edu = dev_get_drvdata(dev);
	struct virtio_irq_msg msg;
	int err;

	/* No lock: this does not touch the device, and may take seconds. */
	err = edu_host_message(edu, &msg);
	if (err)
		return err;
	return sysfs_emit(buf, "%08llx/%04x %u\n", msg.address, msg.data,
			  msg.generation);
}
static DEVICE_ATTR_RO(host_pair);

static ssize_t program_show(struct device *dev, struct device_attribute *attr,
			    char *buf)
{
	struct edu *edu = dev_get_drvdata(dev);

	guard(mutex)(&edu->lock);
	if (!edu->is_programmed)
		return -ENODATA;
	return sample_emit_pair(buf, &edu->programmed);
}

static int edu_parse_pair(const char *buf, struct sample_pair *pair)
{
	int end = 0;

	if (sscanf(buf, "%llx/%x%n", &pair->address, &pair->data, &end) != 2)
		return -EINVAL;
	return buf[end] == '\0' || sysfs_streq(buf + end, "") ? 0 : -EINVAL;
}

static ssize_t program_store(struct device *dev, struct device_attribute *attr,
			     const char *buf, size_t len)
{
	struct edu *edu = dev_get_drvdata(dev);
	struct virtio_irq_msg msg;
	struct sample_pair pair;
	int err;

	guard(mutex)(&edu->lock);
	if (sysfs_streq(buf, "guest")) {
		err = edu_guest_pair(edu, &pair);
	} else if (sysfs_streq(buf, "host")) {
		err = edu->source.sources ? edu_source_message(edu, &msg) :
					    edu_host_message(edu, &msg);
		pair = sample_pair_of(&msg);
	} else {
		err = edu_parse_pair(buf, &pair);
	}
	if (!err)
		err = edu_program(edu, &pair);
	return err ?: len;
}
static DEVICE_ATTR_RW(program);

static ssize_t fire_store(struct device *dev, struct device_attribute *attr,
			  const char *buf, size_t len)
{
	struct edu *edu = dev_get_drvdata(dev);

	return sample_fire(buf, len, &edu->lock, edu_fire, edu);
}
static DEVICE_ATTR_WO(fire);

static ssize_t handled_show(struct device *dev, struct device_attribute *attr,
			    char *buf)
{
	struct edu *edu = dev_get_drvdata(dev);

	return sysfs_emit(buf, "%d\n", atomic_read(&edu->handled));
}
static DEVICE_ATTR_RO(handled);

static struct attribute *edu_attrs[] = {
	&dev_attr_msi.attr,
	&dev_attr_source.attr,
	&dev_attr_masked.attr,
	&dev_attr_guest_pair.attr,
	&dev_attr_host_pair.attr,
	&dev_attr_program.attr,
	&dev_attr_fire.attr,
	&dev_attr_handled.attr,
	NULL,
};

SAMPLE_GROUPS(edu);

static int edu_probe(struct pci_dev *pdev, const struct pci_device_id *id)
{
	struct edu *edu;
	int err;

	edu = devm_kzalloc(&pdev->dev, sizeof(*edu), GFP_KERNEL);
	if (!edu)
		return -ENOMEM;
	edu->pdev = pdev;
	init_completion(&edu->fired);
	err = sample_claim(pdev, &edu->lock, &edu->regs);
	if (err)
		return err;
	err = dma_set_mask_and_coherent(&pdev->dev, DMA_BIT_MASK(32));
	if (err)
		return err;
	edu->data = dmam_alloc_coherent(&pdev->dev, sizeof(*edu->data),
					&edu->data_dma, GFP_KERNEL);
	if (!edu->data)
		return -ENOMEM;
	/* Before any DMA: an MSI is one. */
	pci_set_master(pdev);
	pci_set_drvdata(pdev, edu);

	if (!msi)
		return 0;
	guard(mutex)(&edu->lock);
	return edu_enable_msi(edu);
}

/* The attributes are gone, and nobody is in them. */
static void edu_remove(struct pci_dev *pdev)
{
	struct edu *edu = pci_get_drvdata(pdev);

	scoped_guard(mutex, &edu->lock) {
		edu_disable_source(edu);
		edu_disable_msi(edu);
	}
	pci_clear_master(pdev);
}

static const struct pci_device_id edu_ids[] = {
	{ PCI_DEVICE(EDU_VENDOR, EDU_DEVICE) },
	{}
};
MODULE_DEVICE_TABLE(pci, edu_ids);

static struct pci_driver edu_driver = {
	.name = KBUILD_MODNAME,
	.id_table = edu_ids,
	.probe = edu_probe,
	.remove = edu_remove,
	.dev_groups = edu_groups,
};
module_pci_driver(edu_driver);

MODULE_DESCRIPTION("virtio-irq sample: program an MSI message into QEMU's edu device");
MODULE_AUTHOR("The virtio-irq authors");
MODULE_LICENSE("GPL");
MODULE_SOFTDEP("pre: virtio_irq");
