/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * virtio-irq: asks the host for the real interrupt messages of assigned PCI
 * functions, and has it deliver interrupts of them.
 *
 * The text that goes with these numbers is virtio-irq.md beside this file.
 */

#ifndef _LINUX_VIRTIO_IRQ_H
#define _LINUX_VIRTIO_IRQ_H

#include <linux/types.h>

/*
 * Device id. Experimental: virtio has assigned none to this device. Look at
 * magic and version in the configuration space before touching anything else.
 */
#define VIRTIO_ID_IRQ				37

/* First field of the configuration space: the bytes V, I, R, Q */
#define VIRTIO_IRQ_MAGIC			0x51524956

/* Version of the protocol that this header describes */
#define VIRTIO_IRQ_VERSION			1

/* Virtqueues */
#define VIRTIO_IRQ_VQ_REQUEST			0
#define VIRTIO_IRQ_VQ_EVENT			1
#define VIRTIO_IRQ_VQ_COUNT			2

/* Feature bits */
#define VIRTIO_IRQ_F_NATIVE			0 /* GET_MESSAGES */
#define VIRTIO_IRQ_F_EVENT			1 /* sources */

/* Least value of max_vectors */
#define VIRTIO_IRQ_MIN_MAX_VECTORS		32

/**
 * struct virtio_irq_config - configuration space, read-only
 * @magic: VIRTIO_IRQ_MAGIC
 * @version: VIRTIO_IRQ_VERSION
 * @reserved0: zero
 * @max_sources: greatest number of sources to hold, zero without
 *	VIRTIO_IRQ_F_EVENT; ids of sources are below it
 * @max_vectors: greatest number of vectors that one request may name
 * @reserved1: zero
 */
struct virtio_irq_config {
	__le32 magic;
	__le16 version;
	__u8 reserved0[2];
	__le32 max_sources;
	__le16 max_vectors;
	__u8 reserved1[2];
};

/* Values of virtio_irq_req_head.type */
#define VIRTIO_IRQ_REQ_LIST_FUNCTIONS		1
#define VIRTIO_IRQ_REQ_GET_MESSAGES		2
/* With VIRTIO_IRQ_F_EVENT */
#define VIRTIO_IRQ_REQ_ALLOCATE			16
#define VIRTIO_IRQ_REQ_FREE			17
#define VIRTIO_IRQ_REQ_MASK			18
#define VIRTIO_IRQ_REQ_UNMASK			19
#define VIRTIO_IRQ_REQ_RESET_FUNCTION		20

/* Size of the longest request */
#define VIRTIO_IRQ_REQ_MAX_SIZE			24

/**
 * struct virtio_irq_req_head - begins every request
 * @type: VIRTIO_IRQ_REQ_*
 * @reserved: zero
 */
struct virtio_irq_req_head {
	__le16 type;
	__u8 reserved[6];
};

/* Values of virtio_irq_reply_head.status */
#define VIRTIO_IRQ_S_OK				0
#define VIRTIO_IRQ_S_UNSUPPORTED		1
#define VIRTIO_IRQ_S_INVALID			2
#define VIRTIO_IRQ_S_BUFFER_TOO_SMALL		3
#define VIRTIO_IRQ_S_NO_FUNCTION		4
#define VIRTIO_IRQ_S_NO_VECTOR			5
#define VIRTIO_IRQ_S_NOT_ENABLED		6
#define VIRTIO_IRQ_S_NOT_ISOLATED		7
#define VIRTIO_IRQ_S_HOST_ERROR			8
#define VIRTIO_IRQ_S_FUNCTION_GONE		9
#define VIRTIO_IRQ_S_NO_SOURCE			10
#define VIRTIO_IRQ_S_BUSY			11
#define VIRTIO_IRQ_S_NO_SPACE			12
#define VIRTIO_IRQ_S_NOT_CONTIGUOUS		13
#define VIRTIO_IRQ_S_NOT_READY			14

/**
 * struct virtio_irq_reply_head - begins every reply
 * @status: VIRTIO_IRQ_S_*; the reply ends here unless it is VIRTIO_IRQ_S_OK and
 *	the request has a longer one
 * @reserved: zero
 */
struct virtio_irq_reply_head {
	__le16 status;
	__u8 reserved[6];
};

/**
 * struct virtio_irq_list_functions - asks for functions, ascending by id
 * @head: type VIRTIO_IRQ_REQ_LIST_FUNCTIONS
 * @start: least id of interest
 * @count: greatest number of functions to return, not zero
 * @reserved: zero
 */
struct virtio_irq_list_functions {
	struct virtio_irq_req_head head;
	__le16 start;
	__le16 count;
	__u8 reserved[4];
};

/**
 * struct virtio_irq_function_list - reply to struct virtio_irq_list_functions
 * @head: status VIRTIO_IRQ_S_OK
 * @count: number of struct virtio_irq_function that follow
 * @remaining: number of functions with still greater ids
 * @reserved: zero
 */
struct virtio_irq_function_list {
	struct virtio_irq_reply_head head;
	__le16 count;
	__le16 remaining;
	__u8 reserved[4];
};

/* Bits of virtio_irq_function.flags */
#define VIRTIO_IRQ_FN_GUEST_ADDRESS		(1 << 0)
#define VIRTIO_IRQ_FN_ISOLATED			(1 << 1)
#define VIRTIO_IRQ_FN_STABLE			(1 << 2)
#define VIRTIO_IRQ_FN_NATIVE			(1 << 3)
#define VIRTIO_IRQ_FN_EVENT			(1 << 4)

/**
 * struct virtio_irq_function - a PCI function that is assigned to the guest
 * @id: names it in requests and events
 * @flags: VIRTIO_IRQ_FN_*
 * @guest_address: segment << 16 | bus << 8 | device << 3 | function where the
 *	guest sees it, zero without VIRTIO_IRQ_FN_GUEST_ADDRESS
 * @vendor: PCI vendor id
 * @device: PCI device id
 * @subsystem_vendor: PCI subsystem vendor id
 * @subsystem_device: PCI subsystem id
 * @class_revision: class code << 8 | revision
 * @intx_count: number of INTx pins
 * @msi_count: number of vectors of the MSI capability
 * @msix_count: number of entries of the MSI-X table
 * @reserved: zero
 */
struct virtio_irq_function {
	__le16 id;
	__le16 flags;
	__le32 guest_address;
	__le16 vendor;
	__le16 device;
	__le16 subsystem_vendor;
	__le16 subsystem_device;
	__le32 class_revision;
	__le16 intx_count;
	__le16 msi_count;
	__le16 msix_count;
	__u8 reserved[6];
};

/* Interrupt types */
#define VIRTIO_IRQ_TYPE_INTX			0
#define VIRTIO_IRQ_TYPE_MSI			1
#define VIRTIO_IRQ_TYPE_MSIX			2

/**
 * struct virtio_irq_get_messages - asks for the messages of vectors
 * @head: type VIRTIO_IRQ_REQ_GET_MESSAGES
 * @function: id of the function
 * @irq_type: VIRTIO_IRQ_TYPE_MSI or VIRTIO_IRQ_TYPE_MSIX
 * @reserved: zero
 * @first: first vector
 * @count: number of vectors, not zero, at most max_vectors
 */
struct virtio_irq_get_messages {
	struct virtio_irq_req_head head;
	__le16 function;
	__u8 irq_type;
	__u8 reserved;
	__le16 first;
	__le16 count;
};

/**
 * struct virtio_irq_message_list - reply to struct virtio_irq_get_messages
 * @head: status VIRTIO_IRQ_S_OK
 * @count: number of struct virtio_irq_message that follow, as asked for
 * @reserved: zero
 */
struct virtio_irq_message_list {
	struct virtio_irq_reply_head head;
	__le16 count;
	__u8 reserved[6];
};

/**
 * struct virtio_irq_message - what raises one vector
 * @address: where the function writes
 * @data: what it writes
 * @generation: tells messages of one vector apart
 */
struct virtio_irq_message {
	__le64 address;
	__le32 data;
	__le32 generation;
};

/* How the messages of an allocation relate */
#define VIRTIO_IRQ_LAYOUT_ANY			0
#define VIRTIO_IRQ_LAYOUT_CONTIGUOUS		1

/* How the interrupts of a source are delivered */
#define VIRTIO_IRQ_DELIVERY_EVENT		1

/**
 * struct virtio_irq_allocate - asks for sources of a function
 * @head: type VIRTIO_IRQ_REQ_ALLOCATE
 * @function: id of the function
 * @irq_type: VIRTIO_IRQ_TYPE_*
 * @layout: VIRTIO_IRQ_LAYOUT_*
 * @least: least number of sources that is of use, not zero
 * @most: greatest number of sources that is of use, at most max_vectors
 * @first: least vector that is of use
 * @delivery: VIRTIO_IRQ_DELIVERY_*
 * @reserved: zero
 */
struct virtio_irq_allocate {
	struct virtio_irq_req_head head;
	__le16 function;
	__u8 irq_type;
	__u8 layout;
	__le16 least;
	__le16 most;
	__le16 first;
	__u8 delivery;
	__u8 reserved[5];
};

/**
 * struct virtio_irq_source_list - reply to struct virtio_irq_allocate
 * @head: status VIRTIO_IRQ_S_OK
 * @count: number of struct virtio_irq_source that follow
 * @reserved: zero
 */
struct virtio_irq_source_list {
	struct virtio_irq_reply_head head;
	__le16 count;
	__u8 reserved[6];
};

/**
 * struct virtio_irq_source - a source that was allocated
 * @id: names it in requests and events, below max_sources
 * @vector: which vector of the function it is
 * @reserved: zero
 * @message: what raises it, zeros for VIRTIO_IRQ_TYPE_INTX
 */
struct virtio_irq_source {
	__le32 id;
	__le16 vector;
	__u8 reserved[2];
	struct virtio_irq_message message;
};

/**
 * struct virtio_irq_sources - does something with a range of sources
 * @head: type VIRTIO_IRQ_REQ_FREE, VIRTIO_IRQ_REQ_MASK or VIRTIO_IRQ_REQ_UNMASK
 * @first: id of the first source
 * @count: number of sources, not zero
 * @reserved: zero
 */
struct virtio_irq_sources {
	struct virtio_irq_req_head head;
	__le32 first;
	__le16 count;
	__u8 reserved[2];
};

/**
 * struct virtio_irq_reset_function - frees all sources of a function
 * @head: type VIRTIO_IRQ_REQ_RESET_FUNCTION
 * @function: id of the function
 * @reserved: zero
 */
struct virtio_irq_reset_function {
	struct virtio_irq_req_head head;
	__le16 function;
	__u8 reserved[6];
};

/* Values of virtio_irq_event.type */
#define VIRTIO_IRQ_EVT_INTERRUPT		1
#define VIRTIO_IRQ_EVT_MESSAGE_CHANGED		2
#define VIRTIO_IRQ_EVT_SOURCE_REVOKED		3
#define VIRTIO_IRQ_EVT_FUNCTION_GONE		4

/**
 * struct virtio_irq_event - one record of an event buffer
 * @type: VIRTIO_IRQ_EVT_*
 * @function: id of the function
 * @source: zero where the event has none
 * @first: first vector, zero where the event has none
 * @count: number of vectors, zero where the event has none
 * @irq_type: VIRTIO_IRQ_TYPE_*, zero where the event has none
 * @reserved: zero
 */
struct virtio_irq_event {
	__le16 type;
	__le16 function;
	__le32 source;
	__le16 first;
	__le16 count;
	__u8 irq_type;
	__u8 reserved[3];
};

#endif /* _LINUX_VIRTIO_IRQ_H */
