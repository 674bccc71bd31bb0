// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What arbitrary bytes do to the codec and to a conversation: they are refused, and no more.

#![allow(clippy::unwrap_used, reason = "what fails to be what it must be fails the test")]

use proptest::collection::vec;
use proptest::prelude::*;
use virtio_irq_wcn6855::Session;
use virtio_irq_wcn6855::wire::{
    HEADER, Header, MAX_MESSAGE, Malformed, Request, command, dma_read_reply, request,
};
use zerocopy::IntoBytes;

/// A message and whether each of its parts is what it is said to be.
fn parse(bytes: &[u8]) -> (Header, &[u8]) {
    let (head, body) = bytes.split_at(HEADER);
    (Header::parse(head.try_into().unwrap()).unwrap(), body)
}

fn version() -> Vec<u8> {
    request(1, command::VERSION, &[&[0, 0, 1, 0], b"{\"capabilities\":{}}\0"])
}

fn agreed() -> Session {
    let mut session = Session::new();
    let message = version();
    let (header, body) = parse(&message);
    assert_eq!(session.take(&header, body, 0).unwrap().len(), 1);
    session
}

#[test]
fn a_header_announces_16_bytes_to_the_limit() {
    let header = |size: u32, flags: u32| {
        let mut bytes = [0; HEADER];
        bytes[4..8].copy_from_slice(&size.to_le_bytes());
        bytes[8..12].copy_from_slice(&flags.to_le_bytes());
        Header::parse(&bytes).map(|header| header.body())
    };
    assert_eq!(header(15, 0), Err(Malformed::Size(15)));
    assert_eq!(header(16, 0x31), Ok(0));
    assert_eq!(header(MAX_MESSAGE, 0), Ok(MAX_MESSAGE as usize - 16));
    assert_eq!(header(MAX_MESSAGE + 1, 0), Err(Malformed::Size(MAX_MESSAGE + 1)));
    assert_eq!(header(16, 2), Err(Malformed::Type(2)));
}

#[test]
fn a_body_has_exactly_the_length_of_its_command() {
    for (command, length) in [
        (command::DMA_MAP, 32),
        (command::DMA_UNMAP, 24),
        (command::GET_INFO, 16),
        (command::GET_REGION_INFO, 32),
        (command::GET_IRQ_INFO, 16),
        (command::SET_IRQS, 20),
        (command::REGION_READ, 16),
        (command::REGION_WRITE, 16),
        (command::RESET, 0),
    ] {
        for wrong in [0, 1, length - 1, length + 1, length + 4] {
            if wrong != length && wrong >= 0 {
                let body = vec![0; wrong as usize];
                let expected = Malformed::Length { command, length: body.len() };
                assert_eq!(Request::parse(command, &body, 0), Err(expected));
            }
        }
        assert!(Request::parse(command, &vec![0; length as usize], 0).is_ok(), "{command}");
    }
}

#[test]
fn a_write_carries_as_much_as_it_says() {
    let body = |count: u32, data: usize| {
        let mut body = vec![0; 16 + data];
        body[12..16].copy_from_slice(&count.to_le_bytes());
        Request::parse(command::REGION_WRITE, &body, 0).is_ok()
    };
    assert!(body(3, 3));
    assert!(!body(4, 3) && !body(2, 3) && !body(u32::MAX, 3));
}

#[test]
fn a_read_of_more_than_the_limit_is_malformed() {
    let mut body = [0; 16];
    body[12..16].copy_from_slice(&((1_u32 << 20) + 1).to_le_bytes());
    assert!(Request::parse(command::REGION_READ, &body, 0).is_err());
}

#[test]
fn only_those_who_take_descriptors_get_them() {
    let mut set = [0; 20];
    set[4..8].copy_from_slice(&0x24_u32.to_le_bytes());
    set[16..20].copy_from_slice(&3_u32.to_le_bytes());
    assert!(Request::parse(command::SET_IRQS, &set, 3).is_ok());
    assert!(Request::parse(command::SET_IRQS, &set, 4).is_err());
    assert!(Request::parse(command::DMA_MAP, &[0; 32], 1).is_ok());
    assert!(Request::parse(command::DMA_MAP, &[0; 32], 2).is_err());
    assert!(Request::parse(command::GET_INFO, &[0; 16], 1).is_err());
}

#[test]
fn the_reply_to_a_read_brings_what_was_asked_for() {
    let reply = |count: u64, data: usize| {
        let mut body = vec![0; 16 + data];
        body[8..16].copy_from_slice(&count.to_le_bytes());
        dma_read_reply(&body, 44).is_ok()
    };
    assert!(reply(44, 44));
    assert!(!reply(43, 44) && !reply(44, 43) && !reply(43, 43) && !reply(45, 45));
    assert!(dma_read_reply(&[0; 15], 0).is_err());
}

proptest! {
    #[test]
    fn any_header_is_read_or_refused(bytes: [u8; HEADER]) {
        if let Ok(header) = Header::parse(&bytes) {
            prop_assert_eq!(header.as_bytes(), bytes);
            prop_assert!(header.body() <= MAX_MESSAGE as usize);
        }
    }

    #[test]
    fn any_body_is_read_or_refused(command in 0_u16..20, body in vec(any::<u8>(), 0..80), descriptors in 0_usize..10) {
        let parsed = Request::parse(command, &body, descriptors);
        if let Ok(Request::RegionWrite(access, data)) = &parsed {
            prop_assert_eq!(access.count.get() as usize, data.len());
        }
        if let Ok(Request::SetIrqs(set)) = &parsed {
            prop_assert!(descriptors <= set.count.get() as usize);
        }
    }

    /// Messages with bodies of the right length and any content, after an agreement: each request gets one reply, the
    /// conversation ends only for a violation, and memory does not grow with what is said.
    #[test]
    fn any_conversation_is_carried_on_or_ended(
        messages in vec((0_u16..16, 0_u32..4, vec(any::<u8>(), 0..64)), 0..60),
    ) {
        let mut session = agreed();
        for (command, flags, mut body) in messages {
            let length = match command {
                2 | 5 => 32, 3 => 24, 4 | 7 | 9 => 16, 8 => 20, 13 => 0, _ => body.len(),
            };
            body.resize(length, 0);
            if command == 9 && length == 16 {
                // A short read of anywhere in the configuration space.
                let offset = u64::from(body[0]);
                body[..8].copy_from_slice(&offset.to_le_bytes());
                body[8..].copy_from_slice(&[7, 0, 0, 0, 4, 0, 0, 0]);
            }
            let mut message = request(7, command, &[&body]);
            message[8..12].copy_from_slice(&flags.to_le_bytes());
            let Ok(header) = Header::parse(message[..HEADER].try_into().unwrap()) else { continue };
            let Ok(output) = session.take(&header, &body, 0) else { break };
            prop_assert_eq!(output.len(), usize::from(!header.is_reply()));
        }
    }

    /// Whatever a driver writes wherever, and whatever its memory holds, the card's DMA stays in bounds: at most one
    /// read is outstanding, and the number of transfers in flight is limited.
    #[test]
    fn any_driver_is_survived(
        accesses in vec((prop_oneof![0_u64..0x1000, 0x3000_u64..0x3200, 0x8_0000_u64..0x8_1000, 0x1f_f000_u64..0x1f_f020,
            0_u64..0x20_0000], vec(any::<u8>(), 1..9), any::<bool>(), any::<u64>()), 0..200),
    ) {
        let mut session = agreed();
        let mut in_flight: Vec<(Header, usize)> = Vec::new();
        for (offset, data, answer, memory) in accesses {
            let mut access = offset.to_le_bytes().to_vec();
            access.extend([0; 4]);
            access.extend((data.len() as u32).to_le_bytes());
            let message = request(9, command::REGION_WRITE, &[&access, &data]);
            let (header, body) = parse(&message);
            let mut output = session.take(&header, body, 0).unwrap();
            prop_assert!(parse(&output.remove(0)).0.is_reply());
            loop {
                for message in output.drain(..) {
                    let (header, body) = parse(&message);
                    prop_assert!(!header.is_reply());
                    in_flight.push((header, u64::from_le_bytes(body[8..16].try_into().unwrap()) as usize));
                }
                let reads = in_flight.iter().filter(|(header, _)| header.command.get() == command::DMA_READ);
                prop_assert!(reads.count() <= 1);
                prop_assert!(in_flight.len() <= 32);
                if !answer || in_flight.is_empty() {
                    break;
                }
                let (request, count) = in_flight.remove(0);
                let data = memory.to_le_bytes().repeat(count.div_ceil(8));
                let mut head = [0_u8; 16];
                head[8..].copy_from_slice(&(count as u64).to_le_bytes());
                let reply = if request.command.get() == command::DMA_READ {
                    virtio_irq_wcn6855::wire::reply(&request, &[&head, &data[..count]])
                } else {
                    virtio_irq_wcn6855::wire::reply(&request, &[])
                };
                let (header, body) = parse(&reply);
                output = session.take(&header, body, 0).unwrap();
            }
        }
    }
}
