// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A client's view of the model, over a real socket.

#![allow(clippy::unwrap_used, reason = "what fails to be what it must be fails the test")]

use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::thread::JoinHandle;
use virtio_irq_wcn6855::ring::RINGS;
use virtio_irq_wcn6855::wire::{HEADER, Header, command, failure, reply, request};
use virtio_irq_wcn6855::{ServeError, Violation, serve_client, test_page};

struct Client {
    stream: UnixStream,
    model: JoinHandle<Result<(), ServeError>>,
}

impl Client {
    fn connect() -> Self {
        let (stream, theirs) = UnixStream::pair().unwrap();
        Self { stream, model: std::thread::spawn(move || serve_client(theirs)) }
    }

    fn agree() -> Self {
        let mut client = Self::connect();
        let (header, body) = client.call(command::VERSION, &[&[0, 0, 7, 0], b"{}\0"]);
        assert_eq!((header.failure(), &body[..4]), (None, [0, 0, 1, 0].as_slice()));
        assert!(body.ends_with(b"}\0"));
        client
    }

    fn send(&mut self, message: &[u8]) {
        self.stream.write_all(message).unwrap();
    }

    fn receive(&mut self) -> (Header, Vec<u8>) {
        let mut head = [0; HEADER];
        self.stream.read_exact(&mut head).unwrap();
        let header = Header::parse(&head).unwrap();
        let mut body = vec![0; header.body()];
        self.stream.read_exact(&mut body).unwrap();
        (header, body)
    }

    fn call(&mut self, command: u16, body: &[&[u8]]) -> (Header, Vec<u8>) {
        self.send(&request(0x4711, command, body));
        let (header, body) = self.receive();
        assert_eq!((header.is_reply(), header.id.get(), header.command.get()), (true, 0x4711, command));
        (header, body)
    }

    fn access(region: u32, offset: u64, count: u32) -> Vec<u8> {
        [&offset.to_le_bytes()[..], &region.to_le_bytes(), &count.to_le_bytes()].concat()
    }

    fn read(&mut self, region: u32, offset: u32) -> u32 {
        let (header, body) = self.call(command::REGION_READ, &[&Self::access(region, offset.into(), 4)]);
        assert_eq!(header.failure(), None);
        u32::from_le_bytes(body[16..].try_into().unwrap())
    }

    fn write(&mut self, region: u32, offset: u32, value: u32) {
        let access = Self::access(region, offset.into(), 4);
        let (header, _) = self.call(command::REGION_WRITE, &[&access, &value.to_le_bytes()]);
        assert_eq!(header.failure(), None);
    }

    fn program(&mut self, ring: usize, address: u32, data: u32) {
        for (offset, value) in [(0, address), (4, 0x100), (8, data)] {
            let register = RINGS[ring].register + offset;
            self.write(0, 0x310c, 0x4000_0000 | register >> 19);
            self.write(0, 0x8_0000 + (register & 0x7_ffff), value);
        }
    }

    /// Hangs up and says how the model took it.
    fn end(self) -> Result<(), ServeError> {
        drop(self.stream);
        self.model.join().unwrap()
    }
}

#[test]
fn the_device_is_a_pci_function_with_a_bar_and_32_vectors() {
    let mut client = Client::agree();
    let (_, info) = client.call(command::GET_INFO, &[&[0; 16]]);
    assert_eq!(info, [16, 0, 0, 0, 3, 0, 0, 0, 9, 0, 0, 0, 5, 0, 0, 0]);
    for (index, size) in [(0_u32, 0x20_0000_u64), (1, 0), (7, 0x100), (8, 0)] {
        let mut asked = [0; 32];
        asked[8..12].copy_from_slice(&index.to_le_bytes());
        let (_, info) = client.call(command::GET_REGION_INFO, &[&asked]);
        assert_eq!(info[16..24], size.to_le_bytes(), "region {index}");
    }
    for (index, count) in [(0_u32, 1_u32), (1, 32), (2, 0), (4, 0)] {
        let mut asked = [0; 16];
        asked[8..12].copy_from_slice(&index.to_le_bytes());
        let (_, info) = client.call(command::GET_IRQ_INFO, &[&asked]);
        assert_eq!(info[12..16], count.to_le_bytes(), "interrupts {index}");
    }
    assert_eq!(client.read(7, 0), 0x1103_17cb);
    assert!(client.end().is_ok());
}

#[test]
fn a_kick_is_answered_before_the_message_is_written() {
    let mut client = Client::agree();
    client.program(4, 0xfee0_0578, 0x15);
    client.write(0, test_page::OFFSET + test_page::KICK, 4);
    let (header, body) = client.receive();
    assert_eq!((header.is_reply(), header.command.get()), (false, command::DMA_WRITE));
    assert_eq!(body, [0x78, 5, 0xe0, 0xfe, 0, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0x15, 0, 0, 0]);
    client.send(&reply(&header, &[]));
    assert_eq!(client.read(0, test_page::OFFSET + test_page::WRITTEN), 1);
    client.write(0, test_page::OFFSET + test_page::KICK, 4);
    let (header, _) = client.receive();
    client.send(&failure(&header, 14));
    assert_eq!(client.read(0, test_page::OFFSET + test_page::FAILED), 1);
    assert!(client.end().is_ok());
}

#[test]
fn a_request_that_wants_no_reply_gets_none() {
    let mut client = Client::agree();
    let mut message = request(1, command::DMA_MAP, &[&[0; 32]]);
    message[8] = 0x10;
    client.send(&message);
    assert_eq!(client.read(7, 0), 0x1103_17cb);
    assert!(client.end().is_ok());
}

#[test]
fn what_the_card_cannot_do_is_refused_and_the_conversation_goes_on() {
    let mut client = Client::agree();
    let outside = Client::access(7, 0xfe, 4);
    assert_eq!(client.call(command::REGION_READ, &[&outside]).0.failure(), Some(22));
    let nowhere = Client::access(1, 0, 4);
    assert_eq!(client.call(command::REGION_WRITE, &[&nowhere, &[0; 4]]).0.failure(), Some(22));
    assert_eq!(client.call(14, &[&[0; 8]]).0.failure(), Some(95));
    for (flags, index, start, count, errno) in [
        (0x24_u32, 1_u32, 0_u32, 32_u32, None),
        (0x21, 1, 0, 0, None),
        (0x24, 1, 1, 32, Some(22)),
        (0x24, 1, u32::MAX, 1, Some(22)),
        (0x27, 1, 0, 1, Some(22)),
        (0x24, 2, 0, 1, Some(22)),
    ] {
        let set = [20, flags, index, start, count].map(u32::to_le_bytes).concat();
        assert_eq!(
            client.call(command::SET_IRQS, &[&set]).0.failure(),
            errno,
            "{flags:x} {index} {start} {count}"
        );
    }
    assert!(client.end().is_ok());
}

#[test]
fn a_reset_brings_the_card_to_its_first_state() {
    let mut client = Client::agree();
    client.program(0, 0xfee0_0578, 1);
    client.write(7, 0x10, 0xfe00_0000);
    assert_eq!(client.call(command::RESET, &[]).0.failure(), None);
    client.write(0, test_page::OFFSET + test_page::KICK, 0);
    assert_eq!(client.read(0, test_page::OFFSET + test_page::IGNORED), 1);
    assert_eq!(client.read(7, 0x10), 4);
    assert!(client.end().is_ok());
}

#[test]
fn a_violation_ends_the_conversation() {
    let violate = |client: Client, message: &[u8]| {
        let Client { mut stream, model } = client;
        stream.write_all(message).unwrap();
        let error = model.join().unwrap().unwrap_err();
        assert!(matches!(error, ServeError::Violation(_)), "{error}");
        // Nothing more comes, and nobody waits for us.
        match stream.read(&mut [0; 1]) {
            Ok(count) => assert_eq!(count, 0),
            Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset),
        }
    };
    violate(Client::connect(), &request(1, command::GET_INFO, &[&[0; 16]]));
    violate(Client::connect(), &request(1, command::VERSION, &[&[1, 0, 0, 0]]));
    violate(Client::connect(), &request(1, command::VERSION, &[&[0, 0, 0, 0], b"{"]));
    violate(Client::connect(), &request(1, command::VERSION, &[&[0, 0, 0, 0], b"[]\0"]));
    violate(Client::agree(), &request(1, command::GET_INFO, &[&[0; 15]]));
    violate(Client::agree(), &[0, 0, 10, 0, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0]);
    violate(Client::agree(), &[0; 16]);
    let mut nothing = request(1, command::DMA_WRITE, &[]);
    nothing[8] = 1;
    violate(Client::agree(), &nothing);
}

#[test]
fn a_reply_of_the_wrong_kind_or_length_ends_the_conversation() {
    for wrong in [
        |request_header: &Header| reply(request_header, &[&[0; 8]]),
        |request_header: &Header| {
            let mut message = reply(request_header, &[]);
            message[2] = 11;
            message
        },
    ] {
        let mut client = Client::agree();
        client.program(1, 0xfee0_0578, 1);
        client.write(0, test_page::OFFSET + test_page::KICK, 1);
        let (header, _) = client.receive();
        client.send(&wrong(&header));
        assert!(matches!(client.model.join().unwrap(), Err(ServeError::Violation(_))));
    }
}

#[test]
fn a_client_may_leave_between_messages_only() {
    assert!(Client::agree().end().is_ok());
    let mut client = Client::agree();
    client.send(&request(1, command::GET_INFO, &[&[0; 16]])[..20]);
    assert!(matches!(client.end(), Err(ServeError::Broken)));
    let mut client = Client::agree();
    client.send(&[0; 3]);
    assert!(matches!(client.end(), Err(ServeError::Broken)));
}

#[test]
fn descriptors_are_counted_and_closed() {
    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
    let send = |client: &Client, message: &[u8], count: usize| {
        let (near, far) = UnixStream::pair().unwrap();
        let descriptors = vec![far.as_fd(); count];
        let mut space = [std::mem::MaybeUninit::uninit(); 512];
        let mut control = SendAncillaryBuffer::new(&mut space);
        assert!(control.push(SendAncillaryMessage::ScmRights(&descriptors)));
        let parts = [std::io::IoSlice::new(message)];
        assert_eq!(sendmsg(&client.stream, &parts, &mut control, SendFlags::empty()).unwrap(), message.len());
        near
    };
    let mut client = Client::agree();
    let mut near = send(&client, &request(1, command::DMA_MAP, &[&[0; 32]]), 1);
    assert_eq!(client.receive().0.failure(), None);
    // The other ends are all closed: one by us, one by the model.
    assert_eq!(near.read(&mut [0; 1]).unwrap(), 0);
    assert!(client.end().is_ok());

    let client = Client::agree();
    let _near = send(&client, &request(1, command::GET_INFO, &[&[0; 16]]), 1);
    let malformed =
        matches!(client.model.join().unwrap(), Err(ServeError::Violation(Violation::Malformed(_))));
    assert!(malformed);

    let client = Client::agree();
    let _near = send(&client, &request(1, command::DMA_MAP, &[&[0; 32]]), 9);
    assert!(matches!(client.model.join().unwrap(), Err(ServeError::Descriptors)));
}
