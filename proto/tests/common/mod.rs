// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! For the tests that write requests of any kind.

use virtio_irq_proto::{Request, SourceRequest};
use zerocopy::IntoBytes;

/// The request as a driver puts it into the queue.
pub(crate) fn emit(request: &Request) -> Vec<u8> {
    match request {
        Request::ListFunctions(list) => list.to_wire().as_bytes().to_vec(),
        Request::GetMessages(get) => get.to_wire().as_bytes().to_vec(),
        Request::Allocate(allocate) => allocate.to_wire().as_bytes().to_vec(),
        Request::Free(range) => SourceRequest::Free.to_wire(*range).as_bytes().to_vec(),
        Request::Mask(range) => SourceRequest::Mask.to_wire(*range).as_bytes().to_vec(),
        Request::Unmask(range) => SourceRequest::Unmask.to_wire(*range).as_bytes().to_vec(),
        Request::ResetFunction(reset) => reset.to_wire().as_bytes().to_vec(),
    }
}
