// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One test per rule of the protocol.

use super::*;
use virtio_irq_proto::{Function, FunctionFlags, IrqType, PciAddress, PciIds, VectorRange};

const UNSUPPORTED: &[u8] = &[1, 0, 0, 0, 0, 0, 0, 0];
const INVALID: &[u8] = &[2, 0, 0, 0, 0, 0, 0, 0];
const BUFFER_TOO_SMALL: &[u8] = &[3, 0, 0, 0, 0, 0, 0, 0];
const NO_FUNCTION: &[u8] = &[4, 0, 0, 0, 0, 0, 0, 0];
const NO_VECTOR: &[u8] = &[5, 0, 0, 0, 0, 0, 0, 0];
const NOT_ENABLED: &[u8] = &[6, 0, 0, 0, 0, 0, 0, 0];
const NOT_ISOLATED: &[u8] = &[7, 0, 0, 0, 0, 0, 0, 0];
const HOST_ERROR: &[u8] = &[8, 0, 0, 0, 0, 0, 0, 0];
const FUNCTION_GONE: &[u8] = &[9, 0, 0, 0, 0, 0, 0, 0];

const PLENTY: usize = 1 << 22;

const NO_SOURCES: Quota = Quota { guest: 0, function: 0 };

/// Functions 3 (32 MSI vectors), 0x107 (10 MSI-X vectors) and 0x200 (refused).
fn device() -> Device {
    let wifi = Function {
        id: FunctionId(3),
        flags: FunctionFlags::ISOLATED.with(FunctionFlags::NATIVE, true),
        guest_address: Some(PciAddress { segment: 0, bus: 0, devfn: 6 << 3 }),
        ids: PciIds {
            vendor: 0x17cb,
            device: 0x1103,
            subsystem_vendor: 0x17cb,
            subsystem_device: 0x0108,
            class_revision: 0x0280_0001,
        },
        intx_count: 1,
        msi_count: 32,
        msix_count: 0,
    };
    let nic = Function {
        id: FunctionId(0x107),
        guest_address: None,
        intx_count: 0,
        msi_count: 0,
        msix_count: 10,
        ..wifi
    };
    let refused = Function { id: FunctionId(0x200), flags: FunctionFlags::NATIVE, ..wifi };
    let functions = vec![
        Assigned { function: refused, refused: true },
        Assigned { function: wifi, refused: false },
        Assigned { function: nic, refused: false },
    ];
    let mut device = Device::new(functions, NO_SOURCES).unwrap();
    device.negotiated(1);
    device
}

fn list(start: u16, count: u16) -> Vec<u8> {
    let [s0, s1] = start.to_le_bytes();
    let [c0, c1] = count.to_le_bytes();
    vec![1, 0, 0, 0, 0, 0, 0, 0, s0, s1, c0, c1, 0, 0, 0, 0]
}

fn get(function: u16, irq_type: u8, first: u16, count: u16) -> Vec<u8> {
    let [f0, f1] = function.to_le_bytes();
    let [v0, v1] = first.to_le_bytes();
    let [c0, c1] = count.to_le_bytes();
    vec![2, 0, 0, 0, 0, 0, 0, 0, f0, f1, irq_type, 0, v0, v1, c0, c1]
}

#[track_caller]
fn done(step: Step) -> Vec<u8> {
    match step {
        Step::Done(reply) => reply.bytes().to_vec(),
        call => panic!("expected a reply, got {call:?}"),
    }
}

#[track_caller]
fn call(step: Step) -> ReadMessages {
    match step {
        Step::ReadMessages(call) => call,
        other => panic!("expected a call, got {other:?}"),
    }
}

/// A request that the device answers by itself.
#[track_caller]
fn ask(device: &mut Device, request: &[u8]) -> Vec<u8> {
    done(device.request(request, PLENTY))
}

/// A GET_MESSAGES for which the host gives `result`.
#[track_caller]
fn ask_host(device: &mut Device, request: &[u8], result: Result<Vec<Pair>, Failure>) -> Vec<u8> {
    let call = call(device.request(request, PLENTY));
    done(device.messages_read(call, result))
}

/// The pairs of an MSI block: `data` is vector 0's.
fn block(address: u64, data: u32, vectors: std::ops::Range<u32>) -> Result<Vec<Pair>, Failure> {
    Ok(vectors.map(|vector| Pair { address, data: data.wrapping_add(vector) }).collect())
}

#[track_caller]
fn generations(reply: &[u8]) -> Vec<u32> {
    assert_eq!(reply[..2], [0, 0], "the status is OK");
    reply[16..].chunks(16).map(|m| u32::from_le_bytes(m[12..].try_into().unwrap())).collect()
}

mod a_request {
    use super::*;

    #[test]
    fn without_room_for_a_head_is_given_back_untouched() {
        assert_eq!(done(device().request(&list(0, 1), 0)), b"");
        assert_eq!(done(device().request(&list(0, 1), 7)), b"");
        assert_eq!(done(device().request(&[], 7)), b"");
    }

    #[test]
    fn without_a_whole_head_is_invalid() {
        for length in 0..8 {
            assert_eq!(ask(&mut device(), &get(3, 1, 0, 1)[..length]), INVALID);
        }
        assert_eq!(done(device().request(&[], 8)), INVALID);
    }

    #[test]
    fn of_an_unknown_type_is_unsupported_whatever_follows() {
        for kind in [0u16, 3, 15, 21, 0x0101, 0x0200, 0xffff] {
            let mut request = vec![0xaa; 17];
            request[..2].copy_from_slice(&kind.to_le_bytes());
            assert_eq!(ask(&mut device(), &request), UNSUPPORTED, "type {kind}");
            assert_eq!(ask(&mut device(), &request[..8]), UNSUPPORTED, "type {kind}, head only");
            assert_eq!(done(device().request(&request, 8)), UNSUPPORTED, "type {kind}, room for a head");
        }
    }

    #[test]
    fn of_a_feature_that_was_not_negotiated_is_unsupported_whatever_follows() {
        let mut device = device();
        device.negotiated(0);
        assert_eq!(ask(&mut device, &get(3, 1, 5, 1)), UNSUPPORTED);
        assert_eq!(ask(&mut device, &get(3, 1, 5, 1)[..8]), UNSUPPORTED);
        device.negotiated(0xffff_fffe);
        assert_eq!(ask(&mut device, &get(3, 1, 5, 1)), UNSUPPORTED);
        assert_eq!(ask(&mut device, &list(0, 1))[..2], [0, 0]);
        device.negotiated(1);
        let _ = call(device.request(&get(3, 1, 5, 1), PLENTY));
    }

    #[test]
    fn that_is_too_short_or_too_long_is_invalid() {
        for request in [list(0, 1), get(3, 1, 5, 1)] {
            for length in 8..16 {
                assert_eq!(ask(&mut device(), &request[..length]), INVALID);
            }
            let mut long = request.clone();
            long.push(0);
            assert_eq!(ask(&mut device(), &long), INVALID);
        }
    }

    #[test]
    fn with_a_reserved_byte_that_is_not_zero_is_invalid() {
        let reserved =
            [(list(0, 1), vec![2, 3, 4, 5, 6, 7, 12, 13, 14, 15]), (get(3, 1, 5, 1), vec![2, 7, 11])];
        for (request, places) in reserved {
            for place in places {
                let mut request = request.clone();
                request[place] = 0x80;
                assert_eq!(ask(&mut device(), &request), INVALID, "byte {place}");
            }
        }
    }

    #[test]
    fn for_nothing_is_invalid() {
        assert_eq!(ask(&mut device(), &list(3, 0)), INVALID);
        assert_eq!(ask(&mut device(), &get(3, 1, 5, 0)), INVALID);
    }

    #[test]
    fn for_messages_of_a_type_that_has_none_is_invalid() {
        for irq_type in [0, 3, 0xff] {
            assert_eq!(ask(&mut device(), &get(3, irq_type, 0, 1)), INVALID);
        }
    }

    #[test]
    fn for_more_vectors_than_the_configuration_allows_is_invalid_whatever_the_room() {
        assert_eq!(device().config().max_vectors.get(), 2048);
        assert_eq!(ask(&mut device(), &get(3, 1, 5, 2049)), INVALID);
        assert_eq!(done(device().request(&get(3, 1, 5, 2049), 8)), INVALID);
        assert_eq!(ask(&mut device(), &get(3, 1, 5, 2048)), NO_VECTOR);
    }

    #[test]
    fn that_is_not_sound_is_answered_before_the_room_is_looked_at() {
        assert_eq!(done(device().request(&get(3, 1, 5, 0), 8)), INVALID);
    }

    #[test]
    fn whose_longest_reply_has_no_room_is_refused() {
        assert_eq!(done(device().request(&list(0, 2), 16 + 2 * 32 - 1)), BUFFER_TOO_SMALL);
        assert_eq!(done(device().request(&list(0, 0xffff), 16 + 3 * 32)), BUFFER_TOO_SMALL);
        assert_eq!(done(device().request(&get(3, 1, 5, 3), 16 + 3 * 16 - 1)), BUFFER_TOO_SMALL);
        assert_eq!(done(device().request(&get(999, 1, 5, 3), 16 + 3 * 16 - 1)), BUFFER_TOO_SMALL);
        let _ = call(device().request(&get(3, 1, 5, 3), 16 + 3 * 16));
    }
}

mod list_functions {
    use super::*;

    #[rustfmt::skip]
    const WIFI: [u8; 32] = [
        3, 0, 0x0b, 0, 0x30, 0, 0, 0, 0xcb, 0x17, 0x03, 0x11, 0xcb, 0x17, 0x08, 0x01,
        0x01, 0, 0x80, 0x02, 1, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0,
    ];
    #[rustfmt::skip]
    const NIC: [u8; 32] = [
        0x07, 0x01, 0x0a, 0, 0, 0, 0, 0, 0xcb, 0x17, 0x03, 0x11, 0xcb, 0x17, 0x08, 0x01,
        0x01, 0, 0x80, 0x02, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0, 0, 0,
    ];

    fn head(count: u8, remaining: u8) -> Vec<u8> {
        vec![0, 0, 0, 0, 0, 0, 0, 0, count, 0, remaining, 0, 0, 0, 0, 0]
    }

    #[test]
    fn gives_them_in_the_order_of_their_ids() {
        let reply = ask(&mut device(), &list(0, 9));
        assert_eq!(reply[..16], head(3, 0));
        assert_eq!(reply[16..48], WIFI);
        assert_eq!(reply[48..80], NIC);
        assert_eq!(reply[80..82], [0x00, 0x02]);
        assert_eq!(reply.len(), 16 + 3 * 32);
    }

    #[test]
    fn begins_at_start_and_says_what_remains() {
        assert_eq!(ask(&mut device(), &list(4, 1)), [&head(1, 1)[..], &NIC].concat());
        assert_eq!(ask(&mut device(), &list(0x107, 1)), [&head(1, 1)[..], &NIC].concat());
        assert_eq!(ask(&mut device(), &list(0, 1)), [&head(1, 2)[..], &WIFI].concat());
    }

    #[test]
    fn beyond_the_last_is_empty() {
        assert_eq!(ask(&mut device(), &list(0x201, 4)), head(0, 0));
        assert_eq!(ask(&mut device(), &list(0xffff, 0xffff)), head(0, 0));
    }

    #[test]
    fn leaves_out_what_is_gone() {
        let mut device = device();
        ask_host(&mut device, &get(3, 1, 5, 1), Err(Failure::Gone));
        let reply = ask(&mut device, &list(0, 9));
        assert_eq!(reply[..16], head(2, 0));
        assert_eq!(reply[16..48], NIC);
    }
}

mod get_messages {
    use super::*;

    #[test]
    fn asks_the_host_for_the_range_and_tells_what_it_says() {
        let mut device = device();
        let call = call(device.request(&get(3, 1, 14, 2), PLENTY));
        assert_eq!(call.function(), FunctionId(3));
        assert_eq!(call.vectors(), VectorRange::of_messages(IrqType::Msi, 14, 2).unwrap());
        let pairs = vec![
            Pair { address: 0x1234_5678_fee0_0578, data: 0x4002_000e },
            Pair { address: 0x1234_5678_fee0_0578, data: 0x4002_000f },
        ];
        #[rustfmt::skip]
        assert_eq!(done(device.messages_read(call, Ok(pairs))), [
            0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0,
            0x78, 0x05, 0xe0, 0xfe, 0x78, 0x56, 0x34, 0x12, 0x0e, 0, 0x02, 0x40, 1, 0, 0, 0,
            0x78, 0x05, 0xe0, 0xfe, 0x78, 0x56, 0x34, 0x12, 0x0f, 0, 0x02, 0x40, 1, 0, 0, 0,
        ]);
    }

    #[test]
    fn of_an_unknown_function_is_refused() {
        for id in [0, 2, 4, 0x0103, 0xffff] {
            assert_eq!(ask(&mut device(), &get(id, 1, 5, 1)), NO_FUNCTION, "id {id}");
        }
    }

    #[test]
    fn beyond_the_vectors_is_refused() {
        for (first, count) in [(32, 1), (31, 2), (5, 28), (0, 33), (0xffff, 1), (0xffff, 2048)] {
            assert_eq!(ask(&mut device(), &get(3, 1, first, count)), NO_VECTOR, "{first}+{count}");
        }
        let _ = call(device().request(&get(3, 1, 31, 1), PLENTY));
        let _ = call(device().request(&get(3, 1, 5, 27), PLENTY));
    }

    #[test]
    fn of_a_type_that_the_function_does_not_have_is_beyond_its_vectors() {
        assert_eq!(ask(&mut device(), &get(3, 2, 5, 1)), NO_VECTOR);
        assert_eq!(ask(&mut device(), &get(0x107, 1, 5, 1)), NO_VECTOR);
    }

    /// Statuses of allocations are none of this request.
    #[test]
    fn for_which_the_host_has_no_answer_of_its_own_is_a_host_error() {
        for failure in [Failure::Busy, Failure::NotReady] {
            assert_eq!(ask_host(&mut device(), &get(3, 1, 5, 1), Err(failure)), HOST_ERROR);
        }
    }

    #[test]
    fn of_a_refused_function_says_so_after_the_range_was_looked_at() {
        assert_eq!(ask(&mut device(), &get(0x200, 1, 5, 1)), NOT_ISOLATED);
        assert_eq!(ask(&mut device(), &get(0x200, 1, 32, 1)), NO_VECTOR);
    }

    #[test]
    fn of_a_function_without_native_delivery_is_unsupported_after_the_range_was_looked_at() {
        let function = Function {
            id: FunctionId(9),
            flags: FunctionFlags::ISOLATED,
            intx_count: 1,
            msi_count: 4,
            ..Function::default()
        };
        let mut device = Device::new(vec![Assigned { function, refused: true }], NO_SOURCES).unwrap();
        device.negotiated(1);
        assert_eq!(ask(&mut device, &get(9, 1, 3, 1)), UNSUPPORTED);
        assert_eq!(ask(&mut device, &get(9, 1, 3, 2)), NO_VECTOR);
    }

    #[test]
    fn of_vectors_that_are_not_enabled_tells_none() {
        let mut device = device();
        assert_eq!(ask_host(&mut device, &get(3, 1, 5, 3), Err(Failure::NotEnabled)), NOT_ENABLED);
    }

    #[test]
    fn that_the_host_fails_at_can_work_the_next_time() {
        let mut device = device();
        assert_eq!(ask_host(&mut device, &get(3, 1, 5, 1), Err(Failure::Failed)), HOST_ERROR);
        let reply = ask_host(&mut device, &get(3, 1, 5, 1), block(0xfee0_0578, 0, 5..6));
        assert_eq!(generations(&reply), [1]);
    }

    #[test]
    fn for_which_the_host_gives_another_number_of_pairs_is_a_host_error() {
        for pairs in [0..0, 5..6, 5..8] {
            let result = block(0xfee0_0578, 0, pairs);
            assert_eq!(ask_host(&mut device(), &get(3, 1, 5, 2), result), HOST_ERROR);
        }
    }

    #[test]
    fn of_a_function_that_left_says_so_from_then_on_without_asking_the_host() {
        let mut device = device();
        assert_eq!(ask_host(&mut device, &get(3, 1, 5, 1), Err(Failure::Gone)), FUNCTION_GONE);
        assert_eq!(ask(&mut device, &get(3, 1, 5, 1)), FUNCTION_GONE);
        assert_eq!(ask(&mut device, &get(3, 1, 99, 1)), FUNCTION_GONE);
        let _ = call(device.request(&get(0x107, 2, 9, 1), PLENTY));
    }

    #[test]
    fn whose_result_comes_after_a_reset_fails_and_is_not_remembered() {
        let mut device = device();
        let late = call(device.request(&get(3, 1, 5, 1), PLENTY));
        assert_eq!(device.reset(), []);
        assert_eq!(done(device.messages_read(late, block(0xfee0_0578, 0, 5..6))), HOST_ERROR);
        assert_eq!(generations(&ask_host(&mut device, &get(3, 1, 5, 1), block(0xfee0_0578, 0, 5..6))), [1]);
    }
}

mod a_generation {
    use super::*;

    fn told(device: &mut Device, request: &[u8], pairs: Result<Vec<Pair>, Failure>) -> Vec<u32> {
        generations(&ask_host(device, request, pairs))
    }

    #[test]
    fn stays_while_the_message_does() {
        let mut device = device();
        for _ in 0..3 {
            assert_eq!(told(&mut device, &get(3, 1, 5, 2), block(0xfee0_0578, 0, 5..7)), [1, 1]);
        }
    }

    #[test]
    fn changes_with_the_address_and_with_the_data_of_its_vector_only() {
        let mut device = device();
        let request = get(0x107, 2, 4, 3);
        let mut pairs = vec![Pair { address: 0x1000, data: 7 }; 3];
        assert_eq!(told(&mut device, &request, Ok(pairs.clone())), [1, 1, 1]);
        pairs[1].address = 0x1_0000_1000;
        assert_eq!(told(&mut device, &request, Ok(pairs.clone())), [1, 2, 1]);
        pairs[2].data = 0x1_0007;
        assert_eq!(told(&mut device, &request, Ok(pairs.clone())), [1, 2, 3]);
        pairs[1].address = 0x1000;
        assert_eq!(told(&mut device, &request, Ok(pairs)), [1, 4, 3]);
    }

    #[test]
    fn is_kept_while_the_vector_is_disabled() {
        let mut device = device();
        assert_eq!(told(&mut device, &get(3, 1, 5, 1), block(0xfee0_0578, 0, 5..6)), [1]);
        assert_eq!(ask_host(&mut device, &get(3, 1, 5, 1), Err(Failure::NotEnabled)), NOT_ENABLED);
        assert_eq!(told(&mut device, &get(3, 1, 5, 1), block(0xfee0_0578, 0, 5..6)), [1]);
        assert_eq!(told(&mut device, &get(3, 1, 5, 1), block(0xfee0_0598, 0, 5..6)), [2]);
    }

    #[test]
    fn belongs_to_one_type_of_one_function() {
        let mut device = device();
        assert_eq!(told(&mut device, &get(3, 1, 5, 1), block(0xfee0_0578, 0, 5..6)), [1]);
        assert_eq!(told(&mut device, &get(0x107, 2, 5, 1), block(0xfee0_0598, 0, 5..6)), [2]);
        assert_eq!(told(&mut device, &get(3, 1, 5, 1), block(0xfee0_0578, 0, 5..6)), [1]);
    }

    /// Queues that stop can mean a pause of the machine (IRQ-DEV-43).
    #[test]
    fn is_kept_while_the_queues_are_stopped() {
        let mut device = device();
        assert_eq!(told(&mut device, &get(3, 1, 5, 1), block(0xfee0_0578, 0, 5..6)), [1]);
        let late = call(device.request(&get(3, 1, 5, 1), PLENTY));
        assert_eq!(device.stopped().detaches(), []);
        assert_eq!(generations(&done(device.messages_read(late, block(0xfee0_0578, 0, 5..6)))), [1]);
        assert_eq!(told(&mut device, &get(3, 1, 5, 1), block(0xfee0_0598, 0, 5..6)), [2]);
    }

    #[test]
    fn is_forgotten_at_a_reset_but_never_used_for_another_message() {
        let mut device = device();
        assert_eq!(told(&mut device, &get(3, 1, 5, 1), block(0xfee0_0578, 0, 5..6)), [1]);
        assert_eq!(device.reset(), []);
        assert_eq!(told(&mut device, &get(3, 1, 5, 1), block(0xfee0_0598, 0, 5..6)), [2]);
    }
}

mod events {
    use super::*;

    const GONE_3: [u8; 16] = [4, 0, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    const GONE_107: [u8; 16] = [4, 0, 0x07, 0x01, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

    fn next(device: &Device, room: usize) -> Vec<u8> {
        zerocopy::IntoBytes::as_bytes(device.next_events(room).as_slice()).to_vec()
    }

    /// Tells vectors 5 to 9 and 20 of function 3, then moves the block and asks for vector 7.
    fn moved() -> Device {
        let mut device = device();
        ask_host(&mut device, &get(3, 1, 5, 5), block(0xfee0_0578, 0, 5..10));
        ask_host(&mut device, &get(3, 1, 20, 1), block(0xfee0_0578, 0, 20..21));
        assert!(!device.has_events());
        ask_host(&mut device, &get(3, 1, 7, 1), block(0xfee0_0998, 0, 7..8));
        device
    }

    #[test]
    fn wait_until_they_are_taken() {
        let mut device = device();
        ask_host(&mut device, &get(3, 1, 5, 1), Err(Failure::Gone));
        ask_host(&mut device, &get(0x107, 2, 5, 1), Err(Failure::Gone));
        assert_eq!(next(&device, 0), b"");
        assert_eq!(next(&device, 1), GONE_3);
        assert_eq!(next(&device, 9), [GONE_3, GONE_107].concat());
        device.events_taken(0);
        assert_eq!(next(&device, 1), GONE_3);
        device.events_taken(1);
        assert_eq!(next(&device, 9), GONE_107);
        assert!(device.has_events());
        device.events_taken(1);
        assert!(!device.has_events());
        assert_eq!(next(&device, 9), b"");
    }

    #[test]
    fn of_a_function_that_left_come_once() {
        let mut device = device();
        let first = call(device.request(&get(3, 1, 5, 1), PLENTY));
        let second = call(device.request(&get(3, 1, 6, 1), PLENTY));
        assert_eq!(done(device.messages_read(first, Err(Failure::Gone))), FUNCTION_GONE);
        assert_eq!(done(device.messages_read(second, Err(Failure::Gone))), FUNCTION_GONE);
        assert_eq!(next(&device, 9), GONE_3);
    }

    #[test]
    fn are_forgotten_at_a_reset_while_the_function_stays_gone() {
        let mut device = device();
        ask_host(&mut device, &get(3, 1, 5, 1), Err(Failure::Gone));
        assert_eq!(device.reset(), []);
        assert!(!device.has_events());
        assert_eq!(ask(&mut device, &get(3, 1, 5, 1)), FUNCTION_GONE);
        assert!(!device.has_events());
    }

    #[test]
    fn wait_while_the_queues_are_stopped() {
        let mut device = device();
        ask_host(&mut device, &get(3, 1, 5, 1), Err(Failure::Gone));
        assert_eq!(device.stopped().detaches(), []);
        assert_eq!(next(&device, 9), GONE_3);
    }

    #[test]
    fn name_the_vectors_of_a_moved_block_beyond_the_request() {
        // One range from 5 to 20: the vector of the request lies in it, which costs the driver one more fetch.
        assert_eq!(next(&moved(), 9), [2, 0, 3, 0, 0, 0, 0, 0, 5, 0, 16, 0, 1, 0, 0, 0]);
    }

    #[test]
    fn of_a_block_that_moves_again_merge_into_the_one_that_waits() {
        let mut device = moved();
        ask_host(&mut device, &get(3, 1, 2, 1), block(0xfee0_0b98, 0, 2..3));
        assert_eq!(next(&device, 9), [2, 0, 3, 0, 0, 0, 0, 0, 5, 0, 16, 0, 1, 0, 0, 0]);
        device.events_taken(1);
        ask_host(&mut device, &get(3, 1, 30, 2), block(0xfee0_0d98, 0, 30..32));
        assert_eq!(next(&device, 9), [2, 0, 3, 0, 0, 0, 0, 0, 2, 0, 1, 0, 1, 0, 0, 0]);
    }

    #[test]
    fn that_a_message_moved_give_way_to_the_one_that_the_function_left() {
        let mut device = moved();
        ask_host(&mut device, &get(3, 1, 5, 1), Err(Failure::Gone));
        assert_eq!(next(&device, 9), GONE_3);
    }

    #[test]
    fn do_not_follow_from_one_entry_of_a_table_for_another() {
        let mut device = device();
        ask_host(&mut device, &get(0x107, 2, 4, 2), block(0xfee0_0578, 0, 4..6));
        ask_host(&mut device, &get(0x107, 2, 5, 1), block(0xfee0_0998, 0, 5..6));
        assert!(!device.has_events());
    }

    #[test]
    fn are_not_raised_for_what_the_reply_itself_tells() {
        let mut device = device();
        ask_host(&mut device, &get(3, 1, 5, 5), block(0xfee0_0578, 0, 5..10));
        ask_host(&mut device, &get(3, 1, 5, 5), block(0xfee0_0578, 0x20, 5..10));
        assert!(!device.has_events());
    }
}

#[test]
fn the_configuration_space_is_that_of_the_protocol() {
    let config = device().config();
    assert_eq!(
        zerocopy::IntoBytes::as_bytes(&config),
        [b'V', b'I', b'R', b'Q', 1, 0, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0]
    );
}

#[test]
fn only_known_features_are_offered_and_taken() {
    assert_eq!(device().features(), 1);
}

#[test]
fn two_functions_with_one_id_are_refused() {
    let twice = device().functions.find(FunctionId(3)).unwrap().assigned.clone();
    assert_eq!(Device::new(vec![twice.clone(), twice], NO_SOURCES).unwrap_err(), DuplicateId(FunctionId(3)));
}

proptest::proptest! {
    #[test]
    fn any_request_has_one_reply_that_fits(
        bytes in proptest::collection::vec(0u8..4, 0..20),
        room in 0usize..200,
    ) {
        let mut device = device();
        let reply = match device.request(&bytes, room) {
            Step::Done(reply) => reply,
            Step::ReadMessages(call) => {
                let vectors = call.vectors();
                let pairs = vec![Pair { address: 0xfee0_0578, data: 0 }; vectors.len()];
                match device.messages_read(call, Ok(pairs)) {
                    Step::Done(reply) => reply,
                    other => unreachable!("one call is enough: {other:?}"),
                }
            }
            other => unreachable!("there are no sources: {other:?}"),
        };
        proptest::prop_assert!(reply.bytes().len() <= room);
        proptest::prop_assert_eq!(reply.bytes().is_empty(), room < 8);
    }
}
