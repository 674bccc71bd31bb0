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
 * allocate	write "TYPE any|contiguous LEAST MOST FIRST", TYPE being msi, msix
 *		or intx: sources, which virtio-irq delivers; several allocations
 *		can be held at a time
 * free		write "VECTOR COUNT": gives sources back
 * mask, unmask	write VECTOR: disable_irq(), when it returns in the host as well,
 *		and enable_irq()
 * vectors	read: a line for each vector that is held,
 *		HOW TYPE VECTOR IRQ ADDRESS/DATA GENERATION COUNT STATE
 *
 * HOW is native or event; ADDRESS/DATA, in hexadecimal, and GENERATION are the
 * message: the one that the host tells at that moment, or "-ERRNO -", of a native
 * vector, and the one that came with the allocation of a source; COUNT is the
 * number of interrupts; STATE is on, masked, revoked, or gone when the virtio-irq
 * device has said that the function is. What does not fit a page is cut off.
 *
 * An INTx source masks itself when it fires, since this driver cannot tell the
 * function to release its pin; write to "unmask" after having done that.
 */
#include <linux/interrupt.h>
#include <linux/irq.h>
#include <linux/list.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/pci.h>
#include <linux/slab.h>
#include <linux/spinlock.h>
#include <linux/virtio_irq.h>

#define VECTORS_MAX 2048

/**
 * struct vector - a vector of the function
 * @group: what it was allocated with
 * @number: index of the vector
 * @irq: Linux interrupt, 0 once it was given back
 * @count: handler runs
 * @masked: whether it is masked; written by the handler of INTx
 * @revoked: whether the host has taken it back
 */
struct vector {
	struct group *group;
	unsigned int number;
	int irq;
	atomic_t count;
	bool masked;
	bool revoked;
};

/**
 * struct group - vectors that were allocated together
 * @node: in @groups of struct vectors
 * @type: of all of them
 * @sources: what they are, NULL if native
 * @count: number of vectors
 * @vectors: in ascending order
 */
struct group {
	struct list_head node;
	enum virtio_irq_type type;
	struct virtio_irq_sources *sources;
	unsigned int count;
	struct vector vectors[] __counted_by(count);
};

/**
 * struct vectors - a function that this driver is bound to
 * @pdev: the function
 * @lock: protects @groups and @fn. Not taken by notify(), which the functions
 *	that are called under it can wait for.
 * @list_lock: protects the links of @groups as well, for notify()
 * @groups: all groups
 * @fn: from virtio_irq_get(), or NULL
 * @gone: @fn is of no use any more
 */
struct vectors {
	struct pci_dev *pdev;
	struct mutex lock;	/* groups and fn */
	spinlock_t list_lock;	/* links of groups */
	struct list_head groups;
	struct virtio_irq_function *fn;
	bool gone;
};

static const char * const type_names[] = {
	[VIRTIO_IRQ_TYPE_INTX] = "intx",
	[VIRTIO_IRQ_TYPE_MSI] = "msi",
	[VIRTIO_IRQ_TYPE_MSIX] = "msix",
};

static irqreturn_t handle_vector(int irq, void *arg)
{
	struct vector *vector = arg;

	atomic_inc(&vector->count);
	if (vector->group->type == VIRTIO_IRQ_TYPE_INTX) {
		WRITE_ONCE(vector->masked, true);
		disable_irq_nosync(irq);
	}
	return IRQ_HANDLED;
}

static void revoke(struct vectors *v, enum virtio_irq_type type,
		   unsigned int first, unsigned int count)
{
	struct vector *vector;
	struct group *group;
	unsigned int i;

	guard(spinlock)(&v->list_lock);
	list_for_each_entry(group, &v->groups, node) {
		if (!group->sources || group->type != type)
			continue;
		for (i = 0; i < group->count; i++) {
			vector = &group->vectors[i];
			if (vector->number >= first && vector->number - first < count)
				WRITE_ONCE(vector->revoked, true);
		}
	}
}

static void notify(void *data, enum virtio_irq_event event,
		   enum virtio_irq_type type, unsigned int first,
		   unsigned int count)
{
	struct vectors *v = data;

	switch (event) {
	case VIRTIO_IRQ_EVENT_GONE:
		WRITE_ONCE(v->gone, true);
		break;
	case VIRTIO_IRQ_EVENT_SOURCE_REVOKED:
		revoke(v, type, first, count);
		break;
	case VIRTIO_IRQ_EVENT_MESSAGE_CHANGED:
		/* Whoever reads the vectors sees it. */
		break;
	}
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

/* Before the interrupt itself is given back. */
static void free_vector(struct vector *vector)
{
	if (vector->irq)
		free_irq(vector->irq, vector);
	vector->irq = 0;
}

static void add_group(struct vectors *v, struct group *group)
{
	lockdep_assert_held(&v->lock);
	guard(spinlock)(&v->list_lock);
	list_add_tail(&group->node, &v->groups);
}

static void free_group(struct vectors *v, struct group *group)
{
	unsigned int i;

	lockdep_assert_held(&v->lock);
	for (i = 0; i < group->count; i++)
		free_vector(&group->vectors[i]);
	scoped_guard(spinlock, &v->list_lock)
		list_del(&group->node);
	if (group->sources)
		virtio_irq_free_sources(group->sources);
	else
		pci_free_irq_vectors(v->pdev);
	kvfree(group);
}

static void free_native(struct vectors *v)
{
	struct group *group;

	/* There is no other beside it. */
	group = list_first_entry_or_null(&v->groups, struct group, node);
	if (group && !group->sources)
		free_group(v, group);
}

static int request(struct vector *vector, unsigned int number, int irq)
{
	int err = request_irq(irq, handle_vector, 0, KBUILD_MODNAME, vector);

	vector->number = number;
	if (!err)
		vector->irq = irq;
	return err;
}

static int enable_native(struct vectors *v, enum virtio_irq_type type,
			 unsigned int count)
{
	unsigned int flag = type == VIRTIO_IRQ_TYPE_MSI ? PCI_IRQ_MSI : PCI_IRQ_MSIX;
	struct group *group;
	unsigned int i;
	int err;

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
	add_group(v, group);
	for (i = 0; i < count; i++) {
		err = request(&group->vectors[i], i, pci_irq_vector(v->pdev, i));
		if (err) {
			free_group(v, group);
			return err;
		}
	}
	return 0;
}

static int allocate(struct vectors *v, enum virtio_irq_type type,
		    unsigned int flags, unsigned int least, unsigned int most,
		    unsigned int first)
{
	struct virtio_irq_sources *sources;
	struct virtio_irq_function *fn;
	struct group *group;
	unsigned int i;
	int irq, err;

	lockdep_assert_held(&v->lock);
	group = list_first_entry_or_null(&v->groups, struct group, node);
	if (group && !group->sources)
		return -EBUSY;
	fn = function(v);
	if (IS_ERR(fn))
		return PTR_ERR(fn);
	sources = virtio_irq_alloc_sources(fn, type, first, least, most, flags);
	if (IS_ERR(sources))
		return PTR_ERR(sources);
	group = new_group(type, virtio_irq_sources_count(sources));
	if (!group) {
		virtio_irq_free_sources(sources);
		return -ENOMEM;
	}
	group->sources = sources;
	add_group(v, group);
	for (i = 0; i < group->count; i++) {
		irq = virtio_irq_source_irq(sources, i);
		/* So that "mask" masks in the host, and not at the next edge. */
		irq_set_status_flags(irq, IRQ_DISABLE_UNLAZY);
		err = request(&group->vectors[i],
			      virtio_irq_source_vector(sources, i), irq);
		if (err) {
			free_group(v, group);
			return err;
		}
	}
	return 0;
}

/* Gives back those of the vectors that are sources. */
static int free_sources(struct vectors *v, unsigned int first, unsigned int count)
{
	struct group *group, *next;
	struct vector *vector;
	bool found = false;
	unsigned int i;

	lockdep_assert_held(&v->lock);
	list_for_each_entry_safe(group, next, &v->groups, node) {
		bool empty = true;

		if (!group->sources)
			continue;
		for (i = 0; i < group->count; i++) {
			vector = &group->vectors[i];
			if (vector->irq && vector->number >= first &&
			    vector->number - first < count) {
				free_vector(vector);
				virtio_irq_free_source_range(group->sources, i, 1);
				found = true;
			}
			if (vector->irq)
				empty = false;
		}
		if (empty)
			free_group(v, group);
	}
	return found ? 0 : -ENOENT;
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
		free_native(v);
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

static ssize_t allocate_store(struct device *dev, struct device_attribute *attr,
			      const char *buf, size_t len)
{
	struct vectors *v = dev_get_drvdata(dev);
	unsigned int least, most, first, flags;
	enum virtio_irq_type type;
	char name[8], layout[16];
	int err;

	if (sscanf(buf, "%7s %15s %u %u %u", name, layout, &least, &most, &first) != 5)
		return -EINVAL;
	err = parse_type(name, &type);
	if (err)
		return err;
	if (!strcmp(layout, "any"))
		flags = 0;
	else if (!strcmp(layout, "contiguous"))
		flags = VIRTIO_IRQ_CONTIGUOUS;
	else
		return -EINVAL;
	guard(mutex)(&v->lock);
	err = allocate(v, type, flags, least, most, first);
	return err ?: len;
}
static DEVICE_ATTR_WO(allocate);

static ssize_t free_store(struct device *dev, struct device_attribute *attr,
			  const char *buf, size_t len)
{
	struct vectors *v = dev_get_drvdata(dev);
	unsigned int first, count;
	int err;

	if (sscanf(buf, "%u %u", &first, &count) != 2)
		return -EINVAL;
	guard(mutex)(&v->lock);
	err = free_sources(v, first, count);
	return err ?: len;
}
static DEVICE_ATTR_WO(free);

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
	int err = 0;

	guard(mutex)(&v->lock);
	vector = find_vector(v, buf);
	if (IS_ERR(vector))
		return PTR_ERR(vector);
	if (READ_ONCE(vector->masked))
		return -EALREADY;
	disable_irq(vector->irq);
	/* INTx: its handler may have run just before, and have done the same. */
	if (READ_ONCE(vector->masked))
		enable_irq(vector->irq);
	WRITE_ONCE(vector->masked, true);
	if (vector->group->sources)
		err = virtio_irq_sync_masks(vector->group->sources);
	return err ?: len;
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
	if (!READ_ONCE(vector->masked))
		return -EALREADY;
	WRITE_ONCE(vector->masked, false);
	enable_irq(vector->irq);
	return len;
}
static DEVICE_ATTR_WO(unmask);

/* The vector's message as text, or why there is none. */
static void print_message(struct vectors *v, const struct group *group,
			  unsigned int nr, char *text, size_t size)
{
	struct virtio_irq_function *fn;
	struct virtio_irq_msg msg;
	int err;

	if (group->sources) {
		err = virtio_irq_source_message(group->sources, nr, &msg);
	} else {
		fn = function(v);
		err = PTR_ERR_OR_ZERO(fn);
		if (!err)
			err = virtio_irq_get_message(fn, group->type, nr, &msg);
	}
	if (err)
		scnprintf(text, size, "%d -", err);
	else
		scnprintf(text, size, "%08llx/%04x %u", msg.address, msg.data,
			  msg.generation);
}

static const char *state(const struct vectors *v, const struct vector *vector)
{
	if (READ_ONCE(v->gone))
		return "gone";
	if (READ_ONCE(vector->revoked))
		return "revoked";
	return READ_ONCE(vector->masked) ? "masked" : "on";
}

static ssize_t vectors_show(struct device *dev, struct device_attribute *attr,
			    char *buf)
{
	struct vectors *v = dev_get_drvdata(dev);
	const struct vector *vector;
	const struct group *group;
	unsigned int i;
	char text[48];
	int at = 0;

	guard(mutex)(&v->lock);
	list_for_each_entry(group, &v->groups, node) {
		for (i = 0; i < group->count; i++) {
			vector = &group->vectors[i];
			if (!vector->irq)
				continue;
			print_message(v, group, i, text, sizeof(text));
			at += sysfs_emit_at(buf, at, "%s %s %u %d %s %d %s\n",
					    group->sources ? "event" : "native",
					    type_names[group->type],
					    vector->number, vector->irq, text,
					    atomic_read(&vector->count),
					    state(v, vector));
		}
	}
	return at;
}
static DEVICE_ATTR_RO(vectors);

static struct attribute *vectors_attrs[] = {
	&dev_attr_enable.attr,
	&dev_attr_allocate.attr,
	&dev_attr_free.attr,
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
	spin_lock_init(&v->list_lock);
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

	struct group *group, *next;

	pci_clear_master(pdev);
	scoped_guard(mutex, &v->lock)
		list_for_each_entry_safe(group, next, &v->groups, node)
			free_group(v, group);
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
