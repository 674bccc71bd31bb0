// SPDX-License-Identifier: GPL-2.0-only
/*
 * Sample: a driver whose device has many rings, each with a message of its own
 *
 * The device is the model of a WCN6855 Wi-Fi card in tests/wcn6855 (17cb:1103).
 * Its rings are programmed as ath11k's HAL programs those of the card: through
 * a window, the lower half of the address, the upper half with an enable bit,
 * and the data. A page of registers that only the model has lets each ring send
 * its message on demand, so that what ath11k does to be interrupted by its
 * firmware can be tried without a firmware. The driver leaves a real card
 * alone.
 *
 * See wcn_power_up() for what a driver does after each enable.
 *
 * The attributes are in /sys/bus/pci/devices/.../virtio_irq_wcn6855/.
 */
#include <linux/interrupt.h>
#include <linux/iopoll.h>
#include <linux/module.h>
#include <linux/pci.h>
#include <linux/virtio_irq.h>

#include "sample.h"

#define WCN_VENDOR 0x17cb
#define WCN_DEVICE 0x1103

/* ath11k's pci.c: BAR 0 shows 512 KiB of the card's registers at a time. */
#define WCN_WINDOW 0x80000
#define WCN_WINDOW_SELECT 0x310c
#define WCN_WINDOW_ENABLE BIT(30)
#define WCN_WINDOW_SHIFT 19
#define WCN_WINDOW_OFFSET GENMASK(18, 0)

/* ath11k's hal.h: a ring's registers. */
#define WCN_RING_ADDRESS_LOW 0x0
#define WCN_RING_ADDRESS_HIGH 0x4
#define WCN_RING_ENABLE BIT(8)
#define WCN_RING_DATA 0x8

/* The model's own page. */
#define WCN_TEST 0x1ff000
#define WCN_TEST_MAGIC 0x35383657
#define WCN_TEST_RING_COUNT 0x04
#define WCN_TEST_KICK 0x08
#define WCN_TEST_WRITTEN 0x0c
#define WCN_TEST_FAILED 0x10
#define WCN_TEST_IGNORED 0x14
#define WCN_TEST_RINGS 0x100

/* More rings than the model has fit neither its page nor sysfs's. */
#define WCN_RINGS_MAX 32
#define WCN_VECTORS_MAX 32

/* A kick is answered before its ring has sent the message. */
#define WCN_SEND_TIMEOUT_US (10 * USEC_PER_SEC)
/* For a handler; and when one ring was not heard, most likely none is. */
#define WCN_FIRE_TIMEOUT_MS 5000
#define WCN_UNHEARD_TIMEOUT_MS 300

/**
 * struct wcn_vector - an interrupt that rings can raise
 * @wcn: whose
 * @irq: Linux's number
 * @handled: number of handler runs
 */
struct wcn_vector {
	struct wcn *wcn;
	int irq;
	atomic_t handled;
};

/**
 * struct wcn_ring - a ring
 * @address: the card's address of its first register
 * @programmed: the message in its registers
 * @vector: the vector that this message is to raise
 * @sent: how often it was told to send it
 * @handled: how often the handler of @vector ran then
 */
struct wcn_ring {
	u32 address;
	struct sample_pair programmed;
	unsigned int vector;
	unsigned int sent;
	unsigned int handled;
};

/* What is in the rings' registers, and has to be renewed by a resume. */
enum wcn_program { WCN_NOTHING, WCN_GUEST, WCN_HOST };

/* Who delivers interrupts: nobody, the function's own MSI, or virtio-irq. */
enum wcn_power { WCN_OFF, WCN_NATIVE, WCN_EVENT };
static const char * const wcn_powers[] = { "off", "native", "event" };

/**
 * struct wcn - the card
 * @pdev: the PCI function
 * @regs: BAR 0
 * @virtio_irq: what tells the host's messages; NULL if nothing does
 * @lock: protects everything below, and the window
 * @power: who delivers interrupts
 * @resume: what @power was before a suspend
 * @sources: those of virtio-irq; NULL unless @power is WCN_EVENT
 * @vectors: vectors that are enabled and requested
 * @vector_count: how many
 * @ring_count: how many there are of @rings
 * @rings: the rings
 * @program: what they were programmed with
 * @first: vector of the first ring
 * @strays: handler runs of vectors other than the ring's that was fired
 * @fired: a handler ran
 */
struct wcn {
	struct pci_dev *pdev;
	void __iomem *regs;
	struct virtio_irq_function *virtio_irq;
	struct mutex lock;	/* all below, and the window */
	enum wcn_power power;
	enum wcn_power resume;
	struct virtio_irq_sources *sources;
	struct wcn_vector vectors[WCN_VECTORS_MAX];
	unsigned int vector_count;
	unsigned int ring_count;
	struct wcn_ring rings[WCN_RINGS_MAX];
	enum wcn_program program;
	unsigned int first;
	unsigned int strays;
	struct completion fired;
};

static irqreturn_t wcn_irq(int irq, void *arg)
{
	struct wcn_vector *vector = arg;

	atomic_inc(&vector->handled);
	complete(&vector->wcn->fired);
	return IRQ_HANDLED;
}

static void wcn_free_irqs(struct wcn *wcn)
{
	lockdep_assert_held(&wcn->lock);
	while (wcn->vector_count) {
		struct wcn_vector *vector = &wcn->vectors[--wcn->vector_count];

		free_irq(vector->irq, vector);
	}
}

static int wcn_irq_of(struct wcn *wcn, unsigned int vector)
{
	if (wcn->sources)
		return virtio_irq_source_irq(wcn->sources, vector);
	return pci_irq_vector(wcn->pdev, vector);
}

static int wcn_request_irqs(struct wcn *wcn, unsigned int count)
{
	int err;

	lockdep_assert_held(&wcn->lock);
	while (wcn->vector_count < count) {
		struct wcn_vector *vector = &wcn->vectors[wcn->vector_count];

		vector->wcn = wcn;
		vector->irq = wcn_irq_of(wcn, wcn->vector_count);
		err = request_irq(vector->irq, wcn_irq, 0, KBUILD_MODNAME,
				  vector);
		if (err) {
			wcn_free_irqs(wcn);
			return err;
		}
		wcn->vector_count++;
	}
	return 0;
}

/*
 * From here on the host has messages for the vectors, and maybe others than the
 * last time. Without an IOMMU in the guest, Linux gives out one vector, which
 * all rings share.
 */
static int wcn_enable_msi(struct wcn *wcn)
{
	int count, err;

	lockdep_assert_held(&wcn->lock);
	count = pci_alloc_irq_vectors(wcn->pdev, 1, WCN_VECTORS_MAX,
				      PCI_IRQ_MSI);
	if (count < 0)
		return count;
	err = wcn_request_irqs(wcn, count);
	if (err) {
		pci_free_irq_vectors(wcn->pdev);
		return err;
	}
	wcn->power = WCN_NATIVE;
	return 0;
}

/* The host's vectors, whatever the guest's kernel could give out. */
static int wcn_allocate_sources(struct wcn *wcn)
{
	struct virtio_irq_sources *sources;
	int err;

	lockdep_assert_held(&wcn->lock);
	if (!wcn->virtio_irq)
		return -ENODEV;
	sources = virtio_irq_alloc_sources(wcn->virtio_irq,
					   VIRTIO_IRQ_TYPE_MSI, 0,
					   WCN_VECTORS_MAX, WCN_VECTORS_MAX,
					   VIRTIO_IRQ_CONTIGUOUS);
	if (IS_ERR(sources))
		return PTR_ERR(sources);
	wcn->sources = sources;
	err = wcn_request_irqs(wcn, virtio_irq_sources_count(sources));
	if (err) {
		wcn->sources = NULL;
		virtio_irq_free_sources(sources);
		return err;
	}
	wcn->power = WCN_EVENT;
	return 0;
}

static void wcn_disable_irqs(struct wcn *wcn)
{
	wcn_free_irqs(wcn);
	if (wcn->power == WCN_NATIVE)
		pci_free_irq_vectors(wcn->pdev);
	if (wcn->sources)
		virtio_irq_free_sources(wcn->sources);
	wcn->sources = NULL;
	wcn->power = WCN_OFF;
}

static int wcn_guest_pair(struct wcn *wcn, unsigned int vector,
			  struct sample_pair *pair)
{
	lockdep_assert_held(&wcn->lock);
	if (wcn->power != WCN_NATIVE)
		return -ENODATA;
	sample_guest_pair(wcn->vectors[vector].irq, pair);
	return 0;
}

/* Asks for all messages at once, as a driver with many rings should. */
static int wcn_host_pairs(struct wcn *wcn, struct sample_pair *pairs)
{
	struct virtio_irq_msg msgs[WCN_VECTORS_MAX];
	unsigned int i;
	int err = 0;

	lockdep_assert_held(&wcn->lock);
	if (!wcn->virtio_irq)
		return -ENODEV;
	if (!wcn->sources)
		err = virtio_irq_get_messages(wcn->virtio_irq,
					      VIRTIO_IRQ_TYPE_MSI, 0,
					      wcn->vector_count, msgs);
	for (i = 0; i < wcn->vector_count && wcn->sources && !err; i++)
		err = virtio_irq_source_message(wcn->sources, i, &msgs[i]);
	if (err)
		return err;
	for (i = 0; i < wcn->vector_count; i++)
		pairs[i] = sample_pair_of(&msgs[i]);
	return 0;
}

static void wcn_write(struct wcn *wcn, u32 address, u32 value)
{
	lockdep_assert_held(&wcn->lock);
	writel(WCN_WINDOW_ENABLE | address >> WCN_WINDOW_SHIFT,
	       wcn->regs + WCN_WINDOW_SELECT);
	/* The window must have moved before it is written to. */
	readl(wcn->regs + WCN_WINDOW_SELECT);
	writel(value, wcn->regs + WCN_WINDOW + (address & WCN_WINDOW_OFFSET));
}

/* As ath11k_hal_srng_src_hw_init() and its like do it. */
static void wcn_program_ring(struct wcn *wcn, struct wcn_ring *ring,
			     const struct sample_pair *pair, unsigned int vector)
{
	wcn_write(wcn, ring->address + WCN_RING_ADDRESS_LOW,
		  lower_32_bits(pair->address));
	wcn_write(wcn, ring->address + WCN_RING_ADDRESS_HIGH,
		  upper_32_bits(pair->address) | WCN_RING_ENABLE);
	wcn_write(wcn, ring->address + WCN_RING_DATA, pair->data);
	ring->programmed = *pair;
	ring->vector = vector;
}

/* Gives each ring the message of a vector: the first that of @first, and so on in a circle. */
static int wcn_program(struct wcn *wcn, enum wcn_program program,
		       unsigned int first)
{
	struct sample_pair pairs[WCN_VECTORS_MAX];
	unsigned int i;
	int err = 0;

	lockdep_assert_held(&wcn->lock);
	if (!wcn->vector_count)
		return -ENODATA;
	if (first >= wcn->vector_count)
		return -ERANGE;
	if (program == WCN_HOST)
		err = wcn_host_pairs(wcn, pairs);
	for (i = 0; i < wcn->vector_count && program == WCN_GUEST && !err; i++)
		err = wcn_guest_pair(wcn, i, &pairs[i]);
	if (err)
		return err;
	for (i = 0; i < wcn->ring_count; i++) {
		unsigned int vector = (first + i) % wcn->vector_count;

		wcn_program_ring(wcn, &wcn->rings[i], &pairs[vector], vector);
	}
	wcn->program = program;
	wcn->first = first;
	return 0;
}

/* Forgets what the rings were programmed with: the vectors go away. */
static void wcn_stop_rings(struct wcn *wcn)
{
	unsigned int i;

	lockdep_assert_held(&wcn->lock);
	for (i = 0; i < wcn->ring_count; i++)
		wcn_write(wcn, wcn->rings[i].address + WCN_RING_ADDRESS_HIGH, 0);
	wcn->program = WCN_NOTHING;
}

/* As ath11k powers its card down: the rings stop, and their vectors go. */
static void wcn_power_down(struct wcn *wcn)
{
	enum wcn_program program = wcn->program;

	wcn_stop_rings(wcn);
	wcn_disable_irqs(wcn);
	wcn->program = program;
}

/* The vectors are new ones, so their messages are asked for anew. */
static int wcn_power_up(struct wcn *wcn, enum wcn_power power)
{
	int err;

	lockdep_assert_held(&wcn->lock);
	if (power == WCN_EVENT)
		err = wcn_allocate_sources(wcn);
	else
		err = wcn_enable_msi(wcn);
	if (!err && wcn->program != WCN_NOTHING)
		err = wcn_program(wcn, wcn->program, wcn->first);
	return err;
}

static u32 wcn_test_read(struct wcn *wcn, unsigned int offset)
{
	return readl(wcn->regs + WCN_TEST + offset);
}

/* Messages that the rings sent, or could not. */
static u32 wcn_ended(struct wcn *wcn)
{
	return wcn_test_read(wcn, WCN_TEST_WRITTEN) +
	       wcn_test_read(wcn, WCN_TEST_FAILED) +
	       wcn_test_read(wcn, WCN_TEST_IGNORED);
}

static unsigned int wcn_handled(struct wcn *wcn)
{
	unsigned int i, handled = 0;

	for (i = 0; i < WCN_VECTORS_MAX; i++)
		handled += atomic_read(&wcn->vectors[i].handled);
	return handled;
}

/* Lets a ring send its message once, and waits for a handler, @timeout_ms at most. */
static int wcn_fire(struct wcn *wcn, unsigned int index,
		    unsigned int *timeout_ms)
{
	struct wcn_ring *ring = &wcn->rings[index];
	struct wcn_vector *vector = &wcn->vectors[ring->vector];
	unsigned int own = atomic_read(&vector->handled);
	unsigned int all = wcn_handled(wcn);
	u32 before = wcn_ended(wcn), ended;
	int err;

	lockdep_assert_held(&wcn->lock);
	reinit_completion(&wcn->fired);
	writel(index, wcn->regs + WCN_TEST + WCN_TEST_KICK);
	ring->sent++;
	err = read_poll_timeout(wcn_ended, ended, ended != before, 100,
				WCN_SEND_TIMEOUT_US, false, wcn);
	if (err)
		return err;
	err = sample_wait(&wcn->fired, *timeout_ms);
	if (err)
		return err;
	own = atomic_read(&vector->handled) - own;
	all = wcn_handled(wcn) - all;
	if (!all)
		*timeout_ms = WCN_UNHEARD_TIMEOUT_MS;
	ring->handled += own;
	wcn->strays += all - own;
	return 0;
}

/* Each ring in turn. */
static int wcn_fire_all(void *arg)
{
	unsigned int i, timeout_ms = WCN_FIRE_TIMEOUT_MS;
	struct wcn *wcn = arg;
	int err = 0;

	lockdep_assert_held(&wcn->lock);
	if (wcn->program == WCN_NOTHING)
		return -ENODATA;
	for (i = 0; i < wcn->ring_count && !err; i++)
		err = wcn_fire(wcn, i, &timeout_ms);
	return err;
}

static ssize_t vectors_show(struct device *dev, struct device_attribute *attr,
			    char *buf)
{
	struct wcn *wcn = dev_get_drvdata(dev);

	guard(mutex)(&wcn->lock);
	return sysfs_emit(buf, "%u\n", wcn->vector_count);
}
static DEVICE_ATTR_RO(vectors);

static ssize_t power_show(struct device *dev, struct device_attribute *attr,
			  char *buf)
{
	struct wcn *wcn = dev_get_drvdata(dev);

	guard(mutex)(&wcn->lock);
	return sysfs_emit(buf, "%s\n", wcn_powers[wcn->power]);
}

static ssize_t power_store(struct device *dev, struct device_attribute *attr,
			   const char *buf, size_t len)
{
	struct wcn *wcn = dev_get_drvdata(dev);
	int power, err = 0;

	power = sysfs_match_string(wcn_powers, buf);
	if (power < 0)
		return power;
	guard(mutex)(&wcn->lock);
	if (power == wcn->power)
		return len;
	if (wcn->power != WCN_OFF)
		wcn_power_down(wcn);
	if (power != WCN_OFF)
		err = wcn_power_up(wcn, power);
	return err ?: len;
}
static DEVICE_ATTR_RW(power);

static ssize_t guest_pair_show(struct device *dev,
			       struct device_attribute *attr, char *buf)
{
	struct wcn *wcn = dev_get_drvdata(dev);
	struct sample_pair pair;
	int err;

	guard(mutex)(&wcn->lock);
	err = wcn_guest_pair(wcn, 0, &pair);
	return err ?: sample_emit_pair(buf, &pair);
}
static DEVICE_ATTR_RO(guest_pair);

/* Asks even while the card is off, to show what the host says then. */
static ssize_t host_pair_show(struct device *dev,
			      struct device_attribute *attr, char *buf)
{
	struct wcn *wcn = dev_get_drvdata(dev);
	struct virtio_irq_msg msg;
	struct sample_pair pair;
	int err;

	guard(mutex)(&wcn->lock);
	if (!wcn->virtio_irq)
		return -ENODEV;
	err = virtio_irq_get_message(wcn->virtio_irq, VIRTIO_IRQ_TYPE_MSI, 0,
				     &msg);
	if (err)
		return err;
	pair = sample_pair_of(&msg);
	return sample_emit_pair(buf, &pair);
}
static DEVICE_ATTR_RO(host_pair);

static ssize_t program_store(struct device *dev, struct device_attribute *attr,
			     const char *buf, size_t len)
{
	struct wcn *wcn = dev_get_drvdata(dev);
	enum wcn_program program;
	unsigned int first;
	int err;

	if (sscanf(buf, "guest %u", &first) == 1)
		program = WCN_GUEST;
	else if (sscanf(buf, "host %u", &first) == 1)
		program = WCN_HOST;
	else
		return -EINVAL;
	guard(mutex)(&wcn->lock);
	err = wcn_program(wcn, program, first);
	return err ?: len;
}
static DEVICE_ATTR_WO(program);

static ssize_t fire_store(struct device *dev, struct device_attribute *attr,
			  const char *buf, size_t len)
{
	struct wcn *wcn = dev_get_drvdata(dev);

	return sample_fire(buf, len, &wcn->lock, wcn_fire_all, wcn);
}
static DEVICE_ATTR_WO(fire);

/* A line for each ring: message, vector, how often sent, how often handled. */
static ssize_t rings_show(struct device *dev, struct device_attribute *attr,
			  char *buf)
{
	struct wcn *wcn = dev_get_drvdata(dev);
	unsigned int i;
	int at = 0;

	guard(mutex)(&wcn->lock);
	for (i = 0; i < wcn->ring_count; i++) {
		struct wcn_ring *ring = &wcn->rings[i];

		at += sysfs_emit_at(buf, at, "%08llx/%04x %u %u %u\n",
				    ring->programmed.address,
				    ring->programmed.data, ring->vector,
				    ring->sent, ring->handled);
	}
	return at;
}
static DEVICE_ATTR_RO(rings);

static ssize_t strays_show(struct device *dev, struct device_attribute *attr,
			   char *buf)
{
	struct wcn *wcn = dev_get_drvdata(dev);

	guard(mutex)(&wcn->lock);
	return sysfs_emit(buf, "%u\n", wcn->strays);
}
static DEVICE_ATTR_RO(strays);

/* What the card says of its messages: written, failed, ignored. */
static ssize_t messages_show(struct device *dev, struct device_attribute *attr,
			     char *buf)
{
	struct wcn *wcn = dev_get_drvdata(dev);

	guard(mutex)(&wcn->lock);
	return sysfs_emit(buf, "%u %u %u\n",
			  wcn_test_read(wcn, WCN_TEST_WRITTEN),
			  wcn_test_read(wcn, WCN_TEST_FAILED),
			  wcn_test_read(wcn, WCN_TEST_IGNORED));
}
static DEVICE_ATTR_RO(messages);

static struct attribute *wcn_attrs[] = {
	&dev_attr_vectors.attr,
	&dev_attr_power.attr,
	&dev_attr_guest_pair.attr,
	&dev_attr_host_pair.attr,
	&dev_attr_program.attr,
	&dev_attr_fire.attr,
	&dev_attr_rings.attr,
	&dev_attr_strays.attr,
	&dev_attr_messages.attr,
	NULL,
};

SAMPLE_GROUPS(wcn);

static int wcn_find_rings(struct wcn *wcn)
{
	unsigned int i;

	if (wcn_test_read(wcn, 0) != WCN_TEST_MAGIC)
		return -ENODEV;
	wcn->ring_count = wcn_test_read(wcn, WCN_TEST_RING_COUNT);
	if (!wcn->ring_count || wcn->ring_count > WCN_RINGS_MAX)
		return -EIO;
	for (i = 0; i < wcn->ring_count; i++)
		wcn->rings[i].address =
			wcn_test_read(wcn, WCN_TEST_RINGS + 4 * i);
	return 0;
}

static int wcn_probe(struct pci_dev *pdev, const struct pci_device_id *id)
{
	struct virtio_irq_function *function;
	struct wcn *wcn;
	int err;

	wcn = devm_kzalloc(&pdev->dev, sizeof(*wcn), GFP_KERNEL);
	if (!wcn)
		return -ENOMEM;
	wcn->pdev = pdev;
	init_completion(&wcn->fired);
	err = sample_claim(pdev, &wcn->lock, &wcn->regs);
	if (err)
		return err;
	err = wcn_find_rings(wcn);
	if (err)
		return err;
	/* Before any DMA: a message is one. */
	pci_set_master(pdev);
	pci_set_drvdata(pdev, wcn);

	function = virtio_irq_get(pdev);
	if (function == ERR_PTR(-ENODEV))
		function = NULL;
	if (IS_ERR(function)) {
		err = dev_err_probe(&pdev->dev, PTR_ERR(function),
				    "failed to look for a virtio-irq device\n");
		goto clear_master;
	}
	wcn->virtio_irq = function;

	guard(mutex)(&wcn->lock);
	err = wcn_enable_msi(wcn);
	if (err)
		goto put_function;
	return 0;

put_function:
	if (function)
		virtio_irq_put(function);
clear_master:
	pci_clear_master(pdev);
	return err;
}

/* The attributes are gone, and nobody is in them. */
static void wcn_remove(struct pci_dev *pdev)
{
	struct wcn *wcn = pci_get_drvdata(pdev);

	scoped_guard(mutex, &wcn->lock) {
		wcn_stop_rings(wcn);
		wcn_disable_irqs(wcn);
	}
	if (wcn->virtio_irq)
		virtio_irq_put(wcn->virtio_irq);
	pci_clear_master(pdev);
}

static int wcn_suspend(struct device *dev)
{
	struct wcn *wcn = dev_get_drvdata(dev);

	guard(mutex)(&wcn->lock);
	wcn->resume = wcn->power;
	wcn_power_down(wcn);
	return 0;
}

/* virtio_irq_get() has made a device link, by which the virtio-irq device has resumed before. */
static int wcn_resume(struct device *dev)
{
	struct wcn *wcn = dev_get_drvdata(dev);
	int err = 0;

	guard(mutex)(&wcn->lock);
	if (wcn->resume != WCN_OFF)
		err = wcn_power_up(wcn, wcn->resume);
	if (err)
		dev_err(dev, "failed to get interrupts back: %d\n", err);
	return err;
}

static DEFINE_SIMPLE_DEV_PM_OPS(wcn_pm_ops, wcn_suspend, wcn_resume);

static const struct pci_device_id wcn_ids[] = {
	{ PCI_DEVICE(WCN_VENDOR, WCN_DEVICE) },
	{}
};

/* No device table for modprobe: a real card is for ath11k. */
static struct pci_driver wcn_driver = {
	.name = KBUILD_MODNAME,
	.id_table = wcn_ids,
	.probe = wcn_probe,
	.remove = wcn_remove,
	.dev_groups = wcn_groups,
	.driver.pm = pm_sleep_ptr(&wcn_pm_ops),
};
module_pci_driver(wcn_driver);

MODULE_DESCRIPTION("virtio-irq sample: program MSI messages into the rings of a model of a WCN6855");
MODULE_AUTHOR("The virtio-irq authors");
MODULE_LICENSE("GPL");
