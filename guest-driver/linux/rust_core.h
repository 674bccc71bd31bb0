/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Boundary between the C stub and the Rust driver core (rust/).
 *
 * The constants that begin with RS_SIZE_ are read by the compiler on both
 * sides: by the static_asserts below, and by rust/src/abi.rs, which refuses to
 * build if a structure there has another size.
 */
#ifndef _VIRTIO_IRQ_RUST_CORE_H
#define _VIRTIO_IRQ_RUST_CORE_H

#include <linux/build_bug.h>
#include <linux/errno.h>
#include <linux/types.h>
#include <linux/virtio_irq.h>

#define RS_SIZE_CONFIG 16
#define RS_SIZE_DEVICE 24
#define RS_SIZE_TARGET 20
#define RS_SIZE_EVENT 16
#define RS_SIZE_MSG 16
#define RS_SIZE_TEXT 160
/* Longest request, and longest reply that a request asks for, in bytes. */
#define RS_SIZE_REQUEST 24
#define RS_SIZE_REPLY 2048

/* A device as it was found: the core looks at it again in each operation. */
struct rs_device {
	u64 features;			/* agreed on by both sides */
	u8 config[RS_SIZE_CONFIG];
};

/* A PCI function of this guest. */
struct rs_target {
	u32 class_revision;		/* configuration space dword 0x08 */
	u16 segment;
	u16 vendor;
	u16 device;
	u16 subsystem_vendor;
	u16 subsystem_device;
	u8 bus;
	u8 devfn;
	u8 ids_are_unique;		/* no other function has the same ids */
	u8 reserved[3];
};

/* One event of a buffer. */
struct rs_event {
	u32 kind;			/* enum virtio_irq_event */
	u32 type;			/* enum virtio_irq_type, or 0 */
	u16 function;
	u16 first;
	u16 count;
	u16 reserved;
};

/* A reason for a person to read; always ends with a zero byte. */
struct rs_text {
	char text[RS_SIZE_TEXT];
};

static_assert(sizeof(struct rs_device) == RS_SIZE_DEVICE);
static_assert(sizeof(struct rs_target) == RS_SIZE_TARGET);
static_assert(sizeof(struct rs_event) == RS_SIZE_EVENT);
static_assert(sizeof(struct rs_text) == RS_SIZE_TEXT);
static_assert(sizeof(struct virtio_irq_msg) == RS_SIZE_MSG);

/* rust/src/errno.rs has these numbers; some architectures have others. */
static_assert(EPERM == 1 && EIO == 5 && ENXIO == 6 && EAGAIN == 11);
static_assert(ENODEV == 19 && EINVAL == 22 && ENOSPC == 28 && ERANGE == 34);
static_assert(EPROTO == 71 && ENOTUNIQ == 76 && EOPNOTSUPP == 95);

/*
 * Offered by Rust. All return 0 or a negative errno; those that take @ctx call
 * virtio_irq_exchange() with it and therefore sleep. On failure @why, where
 * there is one, says in words what the errno cannot.
 */
int virtio_irq_rs_probe(const struct rs_device *device, struct rs_text *why);
int virtio_irq_rs_find(void *ctx, const struct rs_target *target, u16 *id,
		       struct rs_text *why);
int virtio_irq_rs_fetch(const struct rs_device *device, void *ctx, u16 id,
			u32 type, u32 first, u32 count,
			struct virtio_irq_msg *msgs);
int virtio_irq_rs_fetch_block(const struct rs_device *device, void *ctx, u16 id,
			      u32 type, u32 count, struct virtio_irq_msg *base);
/* Event number @index of a buffer. False: there are no more. */
bool virtio_irq_rs_event(const u8 *used, size_t len, size_t index,
			 struct rs_event *event);

/* Wanted by Rust. */

/**
 * virtio_irq_exchange() - send one request and wait for its reply
 * @ctx: struct virtio_irq_call
 * @request: the request, in any kernel memory
 * @request_len: its length, at most RS_SIZE_REQUEST
 * @reply_size: length of the longest reply, at most RS_SIZE_REPLY
 * @reply: where the address of the reply goes; the reply is memory that the
 *	device does not reach, and lives until the next exchange with @ctx
 *
 * Return: length of the reply, at most @reply_size, or a negative errno.
 */
ssize_t virtio_irq_exchange(void *ctx, const u8 *request, size_t request_len,
			    size_t reply_size, const u8 **reply);
void __noreturn virtio_irq_rs_panic(const u8 *text, size_t len);

#endif /* _VIRTIO_IRQ_RUST_CORE_H */
