// SPDX-License-Identifier: GPL-2.0-only
/*
 * Sample: vectors of any PCI function, with a counter for each
 *
 * Binds to whatever function it is told to (driver_override or new_id), enables
 * the function and its bus mastering, and does nothing to it. What makes the
 * function raise interrupts is user space, through the resourceN files.
 *
 * The attributes are in /sys/bus/pci/devices/.../virtio_irq_vectors/:
 *
 * enable	write "msi N", "msix N" or "off": N vectors of the function's own
 *		capability, as any driver allocates them
 * mask, unmask	write VECTOR: disable_irq() and enable_irq()
 * vectors	read: a line for each vector that is held,
 *		HOW TYPE VECTOR IRQ ADDRESS/DATA GENERATION COUNT STATE
 *
 * HOW is native; ADDRESS/DATA, in hexadecimal, and GENERATION are the message
 * that the host tells at that moment, or "-ERRNO -"; COUNT is the number of
 * interrupts; STATE is on, masked, or gone when the virtio-irq device has said
 * that the function is. What does not fit a page is cut off.
 */
#include <linux/interrupt.h>
#include <linux/list.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/pci.h>
#include <linux/slab.h>
#include <linux/virtio_irq.h>

#define VECTORS_MAX 2048

/**
 * struct vector - a vector of the function
 * @group: what it was allocated with
 * @number: index of the vector
 * @irq: Linux interrupt, 0 once it was given back
 * @count: handler runs
 * @masked: whether it is masked
 */
struct vector {
	struct group *group;
	unsigned int number;
	int irq;
	atomic_t count;
	bool masked;
};

/**
 * struct group - vectors that were allocated together
 * @node: in @groups of struct vectors
 * @type: of all of them
 * @count: number of vectors
 * @vectors: in ascending order
 */
struct group {
	struct list_head node;
	enum virtio_irq_type type;
	unsigned int count;
	struct vector vectors[] __counted_by(count);
};

/**
 * struct vectors - a function that this driver is bound to
 * @pdev: the function
 * @lock: protects @groups and @fn. Not taken by notify(), which the functions
 *	that are called under it can wait for.
 * @groups: all groups
 * @fn: from virtio_irq_get(), or NULL
 * @gone: @fn is of no use any more
 */
struct vectors {
	struct pci_dev *pdev;
	struct mutex lock;	/* groups and fn */
	struct list_head groups;
	struct virtio_irq_function *fn;
	bool gone;
};

static const char * const type_names[] = {
	[VIRTIO_IRQ_TYPE_INTX] = "intx",
	[VIRTIO_IRQ_TYPE_MSI] = "msi",
	[VIRTIO_IRQ_TYPE_MSIX] = "msix",
};

static irqreturn_t vector_irq(int irq, void *arg)
{
	struct vector *vector = arg;

	atomic_inc(&vector->count);
	return IRQ_HANDLED;
}

static void notify(void *data, enum virtio_irq_event event,
		   enum virtio_irq_type type, unsigned int first,
		   unsigned int count)
{
	struct vectors *v = data;

	if (event == VIRTIO_IRQ_EVENT_GONE)
		WRITE_ONCE(v->gone, true);
}

/* The handle to ask with; one whose device has gone is replaced. */
static struct virtio_irq_function *function(struct vectors *v)
{
	struct virtio_irq_function *fn;

	lockdep_assert_held(&v->lock);
	if (v->fn && !READ_ONCE(v->gone))
		return v->fn;
	virtio_irq_put(v->fn);
	v->fn = NULL;
	WRITE_ONCE(v->gone, false);
	fn = virtio_irq_get(v->pdev);
	if (IS_ERR(fn))
		return fn;
	virtio_irq_set_notify(fn, notify, v);
	v->fn = fn;
	return fn;
}

static struct group *new_group(enum virtio_irq_type type, unsigned int count)
{
	struct group *group;
	unsigned int i;

	group = kvzalloc(struct_size(group, vectors, count), GFP_KERNEL);
	if (!group)
		return NULL;
	group->type = type;
	group->count = count;
	for (i = 0; i < count; i++)
		group->vectors[i].group = group;
	return group;
}

/* Before the interrupts themselves are given back. */
static void free_irqs(struct group *group)
{
	struct vector *vector;

	for (vector = group->vectors; vector < group->vectors + group->count; vector++) {
		if (vector->irq)
			free_irq(vector->irq, vector);
		vector->irq = 0;
	}
}

static void disable_native(struct vectors *v)
{
	struct group *group;

	lockdep_assert_held(&v->lock);
	group = list_first_entry_or_null(&v->groups, struct group, node);
	if (!group)
		return;
	free_irqs(group);
	pci_free_irq_vectors(v->pdev);
	list_del(&group->node);
	kvfree(group);
}

static int enable_native(struct vectors *v, enum virtio_irq_type type,
			 unsigned int count)
{
	unsigned int flag = type == VIRTIO_IRQ_TYPE_MSI ? PCI_IRQ_MSI : PCI_IRQ_MSIX;
	struct vector *vector;
	struct group *group;
	unsigned int i;
	int irq, err;

	lockdep_assert_held(&v->lock);
	if (!list_empty(&v->groups))
		return -EBUSY;
	group = new_group(type, count);
	if (!group)
		return -ENOMEM;
	err = pci_alloc_irq_vectors(v->pdev, count, count, flag);
	if (err < 0) {
		kvfree(group);
		return err;
	}
	list_add_tail(&group->node, &v->groups);
	for (i = 0; i < count; i++) {
		vector = &group->vectors[i];
		irq = pci_irq_vector(v->pdev, i);
		vector->number = i;
		err = request_irq(irq, vector_irq, 0, KBUILD_MODNAME, vector);
		if (err) {
			disable_native(v);
			return err;
		}
		vector->irq = irq;
	}
	return 0;
}

static int parse_type(const char *name, enum virtio_irq_type *type)
{
	int found = match_string(type_names, ARRAY_SIZE(type_names), name);

	if (found < 0)
		return -EINVAL;
	*type = found;
	return 0;
}

static ssize_t enable_store(struct device *dev, struct device_attribute *attr,
			    const char *buf, size_t len)
{
	struct vectors *v = dev_get_drvdata(dev);
	enum virtio_irq_type type;
	unsigned int count;
	char name[8];
	int err;

	guard(mutex)(&v->lock);
	if (sysfs_streq(buf, "off")) {
		disable_native(v);
		return len;
	}
	if (sscanf(buf, "%7s %u", name, &count) != 2)
		return -EINVAL;
	err = parse_type(name, &type);
	if (err)
		return err;
	if (type == VIRTIO_IRQ_TYPE_INTX)
		return -EINVAL;
	if (!count || count > VECTORS_MAX)
		return -ERANGE;
	err = enable_native(v, type, count);
	return err ?: len;
}
static DEVICE_ATTR_WO(enable);

/* The vector that user space names. */
static struct vector *find_vector(struct vectors *v, const char *buf)
{
	struct group *group;
	unsigned int number, i;
	int err;

	lockdep_assert_held(&v->lock);
	err = kstrtouint(buf, 0, &number);
	if (err)
		return ERR_PTR(err);
	list_for_each_entry(group, &v->groups, node)
		for (i = 0; i < group->count; i++)
			if (group->vectors[i].irq && group->vectors[i].number == number)
				return &group->vectors[i];
	return ERR_PTR(-ENOENT);
}

static ssize_t mask_store(struct device *dev, struct device_attribute *attr,
			  const char *buf, size_t len)
{
	struct vectors *v = dev_get_drvdata(dev);
	struct vector *vector;

	guard(mutex)(&v->lock);
	vector = find_vector(v, buf);
	if (IS_ERR(vector))
		return PTR_ERR(vector);
	if (vector->masked)
		return -EALREADY;
	disable_irq(vector->irq);
	vector->masked = true;
	return len;
}
static DEVICE_ATTR_WO(mask);

static ssize_t unmask_store(struct device *dev, struct device_attribute *attr,
			    const char *buf, size_t len)
{
	struct vectors *v = dev_get_drvdata(dev);
	struct vector *vector;

	guard(mutex)(&v->lock);
	vector = find_vector(v, buf);
	if (IS_ERR(vector))
		return PTR_ERR(vector);
	if (!vector->masked)
		return -EALREADY;
	vector->masked = false;
	enable_irq(vector->irq);
	return len;
}
static DEVICE_ATTR_WO(unmask);

/* The message that the host tells, as text. */
static void native_message(struct vectors *v, const struct vector *vector,
			   char *text, size_t size)
{
	struct virtio_irq_function *fn = function(v);
	struct virtio_irq_msg msg;
	int err = PTR_ERR_OR_ZERO(fn);

	if (!err)
		err = virtio_irq_get_message(fn, vector->group->type,
					     vector->number, &msg);
	if (err)
		scnprintf(text, size, "%d -", err);
	else
		scnprintf(text, size, "%08llx/%04x %u", msg.address, msg.data,
			  msg.generation);
}

static ssize_t vectors_show(struct device *dev, struct device_attribute *attr,
			    char *buf)
{
	struct vectors *v = dev_get_drvdata(dev);
	const struct vector *vector;
	const struct group *group;
	const char *state;
	unsigned int i;
	char text[48];
	int at = 0;

	guard(mutex)(&v->lock);
	list_for_each_entry(group, &v->groups, node) {
		for (i = 0; i < group->count; i++) {
			vector = &group->vectors[i];
			native_message(v, vector, text, sizeof(text));
			state = vector->masked ? "masked" : "on";
			if (READ_ONCE(v->gone))
				state = "gone";
			at += sysfs_emit_at(buf, at, "native %s %u %d %s %d %s\n",
					    type_names[group->type],
					    vector->number, vector->irq, text,
					    atomic_read(&vector->count), state);
		}
	}
	return at;
}
static DEVICE_ATTR_RO(vectors);

static struct attribute *vectors_attrs[] = {
	&dev_attr_enable.attr,
	&dev_attr_mask.attr,
	&dev_attr_unmask.attr,
	&dev_attr_vectors.attr,
	NULL,
};

static const struct attribute_group vectors_group = {
	.name = "virtio_irq_vectors",
	.attrs = vectors_attrs,
};

static const struct attribute_group *vectors_groups[] = {
	&vectors_group,
	NULL,
};

static int vectors_probe(struct pci_dev *pdev, const struct pci_device_id *id)
{
	struct vectors *v;
	int err;

	v = devm_kzalloc(&pdev->dev, sizeof(*v), GFP_KERNEL);
	if (!v)
		return -ENOMEM;
	v->pdev = pdev;
	INIT_LIST_HEAD(&v->groups);
	err = devm_mutex_init(&pdev->dev, &v->lock);
	if (err)
		return err;
	err = pcim_enable_device(pdev);
	if (err)
		return err;
	/* Before any message is written: that is DMA. */
	pci_set_master(pdev);
	pci_set_drvdata(pdev, v);
	return 0;
}

/* The attributes are gone, and nobody is in them. */
static void vectors_remove(struct pci_dev *pdev)
{
	struct vectors *v = pci_get_drvdata(pdev);

	pci_clear_master(pdev);
	scoped_guard(mutex, &v->lock)
		disable_native(v);
	virtio_irq_put(v->fn);
}

/* None: it is bound by driver_override or new_id only. */
static const struct pci_device_id vectors_ids[] = {
	{}
};

static struct pci_driver vectors_driver = {
	.name = KBUILD_MODNAME,
	.id_table = vectors_ids,
	.probe = vectors_probe,
	.remove = vectors_remove,
	.dev_groups = vectors_groups,
};
module_pci_driver(vectors_driver);

MODULE_DESCRIPTION("virtio-irq sample: count the interrupts of any PCI function's vectors");
MODULE_AUTHOR("The virtio-irq authors");
MODULE_LICENSE("GPL");
