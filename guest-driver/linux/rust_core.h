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
#define RS_SIZE_EVENT 20
/* One event as the device writes it. */
#define RS_SIZE_RECORD 16
#define RS_SIZE_MSG 16
#define RS_SIZE_WANTED 24
#define RS_SIZE_SOURCE 24
#define RS_SIZE_TEXT 160
#define RS_SIZE_SLOT 8
#define RS_SIZE_TABLE 32
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

/* What an event means; the first three are those of enum virtio_irq_event. */
enum rs_event_kind {
	RS_EVENT_FIRED = VIRTIO_IRQ_EVENT_SOURCE_REVOKED + 1,
	/* Take the replies that are there, and ask again. */
	RS_EVENT_AFTER_REPLIES,
	RS_EVENT_NOTHING,
};

/* One event of a buffer. */
struct rs_event {
	u32 kind;			/* enum virtio_irq_event or the above */
	u32 type;			/* only for MESSAGE_CHANGED */
	u32 source;			/* only for FIRED, SOURCE_REVOKED */
	u16 function;
	u16 first;			/* only for MESSAGE_CHANGED */
	u16 count;			/* only for MESSAGE_CHANGED */
	u16 reserved;
};

/* The sources that this driver holds, with RS_SIZE_SLOT bytes for each. */
struct rs_table {
	u64 opaque[RS_SIZE_TABLE / sizeof(u64)];
};

/* An allocation as the caller of virtio_irq_alloc_sources() wants it. */
struct rs_wanted {
	u32 type;			/* enum virtio_irq_type */
	u32 flags;			/* VIRTIO_IRQ_CONTIGUOUS */
	u32 first;
	u32 least;
	u32 most;
	u16 function;
	u16 reserved;
};

/* A source as the device gave it. */
struct rs_source {
	struct virtio_irq_msg msg;
	u32 id;				/* below the device's max_sources */
	u16 vector;
	u16 reserved;
};

/* What can be asked for sources; the numbers are in rust/src/operation.rs. */
enum rs_change {
	RS_FREE = 0,
	RS_MASK = 1,
	RS_UNMASK = 2,
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
static_assert(sizeof(struct rs_wanted) == RS_SIZE_WANTED);
static_assert(sizeof(struct rs_source) == RS_SIZE_SOURCE);
static_assert(sizeof(struct rs_table) == RS_SIZE_TABLE);

/* rust/src/errno.rs has these numbers; some architectures have others. */
static_assert(EPERM == 1 && ENOENT == 2 && EIO == 5 && ENXIO == 6);
static_assert(EAGAIN == 11 && EBUSY == 16 && ENODEV == 19 && EINVAL == 22);
static_assert(ENOSPC == 28 && ERANGE == 34 && EPROTO == 71 && EBADMSG == 74);
static_assert(ENOTUNIQ == 76 && EOPNOTSUPP == 95 && EADDRNOTAVAIL == 99);

/*
 * Offered by Rust. All return 0 or a negative errno; those that take @ctx call
 * virtio_irq_exchange() with it and therefore sleep. On failure @why, where
 * there is one, says in words what the errno cannot.
 */
int virtio_irq_rs_probe(const struct rs_device *device, u32 *max_sources,
			struct rs_text *why);
int virtio_irq_rs_find(void *ctx, const struct rs_target *target, u16 *id,
		       struct rs_text *why);
int virtio_irq_rs_fetch(const struct rs_device *device, void *ctx, u16 id,
			u32 type, u32 first, u32 count,
			struct virtio_irq_msg *msgs);
int virtio_irq_rs_fetch_block(const struct rs_device *device, void *ctx, u16 id,
			      u32 type, u32 count, struct virtio_irq_msg *base);
/*
 * Asks for sources, with as many requests as it takes, and gives back what it
 * got if that is not enough. @sources has room for @wanted->most, and @count
 * is how many there are. -EBADMSG: the device gave sources, and nobody knows
 * which.
 */
int virtio_irq_rs_allocate(const struct rs_device *device, void *ctx,
			   const struct rs_wanted *wanted,
			   struct rs_source *sources, u32 *count);
/*
 * What an answer to one of those requests gave that came when nobody waited
 * for it any more. @sources has room for RS_SIZE_REPLY / RS_SIZE_SOURCE.
 * Every errno means that it gave nothing that is known.
 */
int virtio_irq_rs_allocated(const struct rs_device *device, const u8 *request,
			    size_t request_len, const u8 *reply,
			    size_t reply_len, struct rs_source *sources,
			    u32 *count, u16 *function);
/* Frees, masks or unmasks the sources @first to @first + @count - 1. */
int virtio_irq_rs_change(void *ctx, u32 change, u32 first, u16 count);
/* Frees all sources of the function, known or not. */
int virtio_irq_rs_reset_function(void *ctx, u16 function);

/*
 * The table, always under event_lock; these do not sleep. They call
 * virtio_irq_source_fired() and virtio_irq_function_ended() with @ctx.
 */
void virtio_irq_rs_table_init(struct rs_table *table, void *slots, u32 count);
/* The device was reset, and has no sources. */
void virtio_irq_rs_table_reset(struct rs_table *table);
/*
 * Takes a reply, whoever waits for it: all, and in the order of the used ring.
 * What an allocation gives counts as masked until virtio_irq_rs_listen().
 * -EBADMSG: the device gave sources, and nobody knows which.
 */
int virtio_irq_rs_replied(struct rs_table *table,
			  const struct rs_device *device, void *ctx,
			  const u8 *request, size_t request_len,
			  const u8 *reply, size_t reply_len);
/*
 * Event number @index of a buffer; false: there are no more. @after_replies:
 * the replies that are there have been taken, as the first answer wanted.
 */
bool virtio_irq_rs_event(struct rs_table *table, const u8 *used, size_t len,
			 size_t index, bool after_replies,
			 struct rs_event *event);
/* Event buffers are to be looked through before the next allocation. */
bool virtio_irq_rs_must_drain(const struct rs_table *table);
/* All that the device has returned were looked through. */
void virtio_irq_rs_drained(struct rs_table *table);
/* The source is about to be freed; -ENOENT: it is not held. */
int virtio_irq_rs_leave(struct rs_table *table, u32 source);
/* -ENODEV: the function has no such source any more; -EBUSY: it is revoked. */
int virtio_irq_rs_check(const struct rs_table *table, u32 source, u16 function);
/* The client is there; what the source has fired since it was given comes now. */
void virtio_irq_rs_listen(struct rs_table *table, void *ctx, u32 source);
bool virtio_irq_rs_is_masked(const struct rs_table *table, u32 source);

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
/* @ctx of these two is struct virtio_irq; its event_lock is held. */
void virtio_irq_source_fired(void *ctx, u32 source);
/* All sources of the function have ended, and their ids can be others'. */
void virtio_irq_function_ended(void *ctx, u16 function);
void __noreturn virtio_irq_rs_panic(const u8 *text, size_t len);

#endif /* _VIRTIO_IRQ_RUST_CORE_H */
